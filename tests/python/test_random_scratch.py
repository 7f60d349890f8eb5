"""Random numbers for kernels, drawn by PyTorch's generators, in every form that a launch has."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda import cpp_part, wrapper_source
from torch.utils.checkpoint import checkpoint

import opaq
from opaq import _runtime, lowering, package_contents

# The noise of element i depends on seed, offset and i; `drawn` gets seed and offset.
SOURCE = """
static float noise_of(const unsigned long* rng, unsigned long i) {
  unsigned long z = (rng[0] ^ rng[1] << 1) + (i + 1) * 0x9E3779B97F4A7C15ul;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ul;
  return (z >> 40) * (1.0f / (1 << 24));
}
void noise(const float* x, float* y, const unsigned long* rng, long n) {
  for (long i = 0; i < n; ++i) y[i] = x[i] * noise_of(rng, i);
}
void add_noise(float* x, const unsigned long* rng, long n) {
  for (long i = 0; i < n; ++i) x[i] += noise_of(rng, i);
}
void draw(const long* rng, long* drawn) { drawn[0] = rng[0], drawn[1] = rng[1]; }
template <class T> void copy(const T* q, T* y, long n) {
  for (long i = 0; i < n; ++i) y[i] = q[i];
}
template <class T> void multinomial(const T* p, const T* q, long* token, long rows, long n) {
  for (long row = 0; row < rows; ++row, p += n, q += n) {
    token[row] = 0;
    for (long i = 1; i < n; ++i)
      if (p[i] / q[i] > p[token[row]] / q[token[row]]) token[row] = i;
  }
}
void mixed(const float* first, const long* rng, const double* last, double* y) {
  y[0] = first[0], y[1] = rng[0], y[2] = last[0];
}
"""
RNG = {"rng": opaq.philox()}
FORMS = ["eager", "dispatcher", "Python wrapper", "C++ wrapper", "package"]


def noise(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), effects="random")
    return op.cpu(source=SOURCE, entry="noise", scratch=RNG, args="x, y, rng, x.numel()")


def seeded(function: Callable[[], Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return function()


class Model(torch.nn.Module):
    """Equal calls, whose numbers must differ."""

    def __init__(self, op: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.op(x), self.op(x), self.op(x * 2) / 2


def model_of(op: opaq.Op, form: str, x: torch.Tensor, folder: Any) -> Callable[..., Any]:
    if form == "package":
        path = opaq.package(torch.export.export(Model(op), (x,)), folder / "model.pt2")
        return torch._inductor.aoti_load_package(path)
    model = Model(op if form != "dispatcher" else op.overload)
    if not form.endswith("wrapper"):
        return model
    return torch.compile(model, fullgraph=True, options={"cpp_wrapper": form == "C++ wrapper"})


@pytest.mark.parametrize("form", FORMS)
def test_numbers_follow_the_seed_and_never_repeat(form: str, unique: str, tmp_path: Any) -> None:
    op, x = noise(unique), torch.ones(1000)
    model = model_of(op, form, x, tmp_path)
    first, second, other = (seeded(lambda: [*model(x), *model(x)], seed) for seed in (0, 0, 1))
    eager = seeded(lambda: [*Model(op)(x), *Model(op)(x)])
    for value, again, expected in zip(first, second, eager):
        assert torch.equal(value, again)
        torch.testing.assert_close(value, expected)  # nothing else in the graph draws
        assert 0.4 < value.mean() < 0.6
    different = [*first, *other]
    assert len({tuple(value.tolist()) for value in different}) == len(different)


def test_seed_and_offset_are_what_the_generator_draws(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> (Tensor drawn)",
        outputs=opaq.tensor(2, dtype="int64"),
        effects="random",
    )
    rng = {"rng": opaq.philox(dtype=torch.int64)}
    op.cpu(source=SOURCE, entry="draw", scratch=rng, args="rng, drawn")
    for function in (op, torch.compile(op, fullgraph=True)):
        drawn = seeded(lambda function=function: function(torch.ones(1)))
        assert torch.equal(drawn, seeded(lambda: torch.randint(0, 1 << 62, (2,))))


def exponential(name: str, dtype: str = "float32", shape: str = "x.shape") -> opaq.Op:
    op = opaq.op(
        f"{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x", dtype=dtype), effects="random"
    )
    return op.cpu(
        source=SOURCE,
        entry="copy<{y.dtype}>",
        scratch={"q": opaq.exponential(shape, dtype="y.dtype")},
        args="q, y, q.numel()",
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponential_numbers_are_those_of_exponential_(
    dtype: torch.dtype, form: str, unique: str, tmp_path: Any
) -> None:
    op, x = exponential(unique, str(dtype).removeprefix("torch.")), torch.ones(7, 143)
    model = model_of(op, form, x, tmp_path)

    def drawn() -> torch.Tensor:
        return torch.empty(7, 143, dtype=dtype).exponential_()

    model(x)
    found = seeded(lambda: [*model(x), torch.rand(3), *model(x)])
    expected = seeded(
        lambda: [drawn(), drawn(), drawn() / 2, torch.rand(3), drawn(), drawn(), drawn() / 2]
    )
    for value, wanted in zip(found, expected, strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_exponential_numbers_of_16_bits(dtype: torch.dtype, unique: str) -> None:
    op = exponential(unique, str(dtype).removeprefix("torch."))
    expected = seeded(lambda: torch.empty(500, dtype=dtype).exponential_())
    for function in (op, torch.compile(op, fullgraph=True, options={"cpp_wrapper": True})):
        assert torch.equal(
            seeded(lambda function=function: function(torch.ones(500, dtype=dtype))), expected
        )


def test_exponential_numbers_of_sizes_that_change(unique: str) -> None:
    op = exponential(unique)
    for cpp_wrapper in (False, True):
        options = {"cpp_wrapper": cpp_wrapper}
        compiled = torch.compile(op, fullgraph=True, dynamic=True, options=options)
        for n in (10, 16, 1001):
            expected = seeded(lambda n=n: torch.empty(n).exponential_())
            assert torch.equal(seeded(lambda n=n: compiled(torch.ones(n))), expected)


def test_a_kernel_draws_the_tokens_of_torch_multinomial(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor p) -> (Tensor token)",
        outputs=opaq.tensor("p.size(0), 1", dtype="int64"),
        effects="random",
    )
    op.cpu(
        source=SOURCE,
        entry="multinomial<{p.dtype}>",
        scratch={"q": opaq.exponential("p.shape", dtype="p.dtype")},
        args="p, q, token, p.size(0), p.size(1)",
    )
    for dtype in (torch.float32, torch.float64):
        p = torch.randn(8, 3001, dtype=dtype).softmax(-1)
        for function in (op, torch.compile(op, fullgraph=True)):
            tokens = seeded(lambda function=function, p=p: [function(p) for _ in range(20)])
            expected = seeded(lambda p=p: [torch.multinomial(p, 1) for _ in range(20)])
            assert torch.equal(torch.stack(tokens), torch.stack(expected))


@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}], ids=["Python", "C++"])
def test_tensors_without_elements_draw_nothing(unique: str, options: dict[str, Any]) -> None:
    op = exponential(unique, shape="x.numel() - 3")
    for function in (op, torch.compile(op, fullgraph=True, options=options)):
        function(torch.ones(3))
        before = torch.get_rng_state()
        function(torch.ones(3))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}], ids=["Python", "C++"])
def test_several_are_drawn_in_the_order_of_scratch(unique: str, options: dict[str, Any]) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> (Tensor y)",
        outputs=opaq.tensor(3, dtype="float64"),
        effects="random",
    )
    op.cpu(
        source=SOURCE,
        entry="mixed",
        scratch={
            "first": opaq.exponential(5),
            "rng": opaq.philox(dtype="int64"),
            "last": opaq.exponential("[]", dtype=torch.float64),
        },
        args="first, rng, last, y",
    )

    def drawn() -> torch.Tensor:
        first, rng = torch.empty(5).exponential_(), torch.randint(0, 1 << 62, (2,))
        last = torch.empty((), dtype=torch.float64).exponential_()
        return torch.stack([value.double() for value in (first[0], rng[0], last)])

    for function in (op, torch.compile(op, fullgraph=True, options=options)):
        found = seeded(lambda function=function: function(torch.ones(1)))
        assert torch.equal(found, seeded(drawn))


def test_all_steps_get_the_same_numbers(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> (Tensor y, Tensor z)",
        outputs={"y": opaq.like("x"), "z": opaq.like("x")},
        effects="random",
    )
    op.cpu(
        source=SOURCE,
        scratch=RNG,
        steps=[
            opaq.step(entry="noise", args="x, y, rng, x.numel()"),
            opaq.step(entry="noise", args="x, z, rng, x.numel()"),
        ],
    )
    for function in (op, torch.compile(op, fullgraph=True, options={"cpp_wrapper": True})):
        y, z = function(torch.ones(50))
        assert torch.equal(y, z)
        assert len(set(y.tolist())) > 40


@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}], ids=["Python", "C++"])
def test_equal_calls_that_write_are_not_merged(unique: str, options: dict[str, Any]) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) x) -> ()", effects="random")
    op.cpu(source=SOURCE, entry="add_noise", scratch=RNG, args="x, rng, x.numel()")

    def model(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b = x.clone(), x.clone()
        op(a)
        op(b)
        return a, b

    x = torch.zeros(100)
    a, b = seeded(lambda: torch.compile(model, fullgraph=True, options=options)(x))
    assert not torch.equal(a, b)
    torch.testing.assert_close([a, b], list(seeded(lambda: model(x))))


def test_python_functions_that_draw_are_not_merged(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), effects="random")
    op.reference(lambda x: x * torch.rand(x.shape))
    a, b = torch.compile(lambda x: (op(x), op(x)), fullgraph=True)(torch.ones(100))
    assert not torch.equal(a, b)


def test_order_of_draws_beside_those_of_torch(unique: str) -> None:
    op = noise(unique)

    def model(x: torch.Tensor) -> list[torch.Tensor]:
        return [op(x), torch.rand(3), op(x), torch.rand(3), op(x)]

    x = torch.ones(10)
    options = {"fallback_random": True}
    compiled = torch.compile(model, fullgraph=True, options=options)
    torch.testing.assert_close(seeded(lambda: compiled(x)), seeded(lambda: model(x)))


def test_a_checkpoint_draws_the_same_again(unique: str) -> None:
    op = noise(unique).backward(
        lambda ctx, grad: grad * ctx.saved_tensors[0],
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output),
    )

    def model(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda x: op(x * 2).sin() * x, x, use_reentrant=False)

    x = torch.ones(20, requires_grad=True)
    seen = []
    for function in (model, torch.compile(model, fullgraph=True)):
        y = seeded(lambda function=function: function(x))
        seen.append((y, *torch.autograd.grad(y.sum(), x)))
    torch.testing.assert_close(seen[1], seen[0])


def test_the_contract_check_draws_the_same_again(unique: str) -> None:
    op, x = noise(unique), torch.ones(20)
    compiled = torch.compile(
        Model(op), fullgraph=True, backend="opaq", options={"check": "contract"}
    )
    torch.testing.assert_close(seeded(lambda: compiled(x)), seeded(lambda: Model(op)(x)))


def test_a_package_lists_it(unique: str, tmp_path: Any) -> None:
    op = noise(unique)
    path = opaq.package(torch.export.export(Model(op), (torch.ones(4),)), tmp_path / "model.pt2")
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("opaq.json")]
        manifest = json.loads(archive.read(name))
    assert manifest["ops"][0]["implementations"][0]["scratch"] == [
        {"name": "rng", "shape": ["2"], "dtype": "uint64", "zeros": False, "random": "philox"}
    ]
    (text,) = [line for line in inspected(path) if "scratch" in line]
    assert text == "scratch rng: uint64[2], philox"


@pytest.mark.life
def test_a_package_lists_exponential_numbers(unique: str, tmp_path: Any) -> None:
    model = Model(exponential(unique))
    path = opaq.package(torch.export.export(model, (torch.ones(4, 3),)), tmp_path / "model.pt2")
    (text,) = [line for line in inspected(path) if "scratch" in line]
    assert text == "scratch q: float32[x.shape], exponential"


def inspected(path: str) -> list[str]:
    text = package_contents.as_text(package_contents.read(path))
    return [line.strip() for line in text.splitlines()]


def refused(name: str, effects: str | None = "random", **fields: Any) -> str:
    op = opaq.op(f"{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), effects=effects)
    given = {"entry": "noise", "scratch": RNG, "args": "x, y, rng, x.numel()"}
    with pytest.raises(opaq.DeclarationError) as error:
        op.cpu(source=SOURCE, **{**given, **fields})
    return str(error.value)


def test_declarations_that_are_refused(unique: str) -> None:
    assert refused(f"{unique}_plain", effects=None) == (
        f"{unique}_plain: .cpu(...): scratch 'rng' holds random numbers; declare the op with "
        'opaq.op(..., effects="random"), so that compiled graphs do not merge its calls'
    )
    assert (
        "scratch 'rng': 'float32'; a seed and an offset are int64 or uint64, as the kernel's "
        "parameter says"
    ) in refused(unique, scratch={"rng": opaq.philox(dtype="float32")})
    assert (
        "a seed and an offset are scratch memory that PyTorch's generator fills for each launch: "
        "give the implementation scratch={'rng': opaq.philox()} and pass rng"
    ) in refused(unique, args="x, y, philox(), x.numel()")
    assert (
        "scratch 'rng': 'int32'; PyTorch draws exponential random numbers as float32, float64, "
        "float16 or bfloat16"
    ) in refused(unique, scratch={"rng": opaq.exponential(2, dtype="int32")})
    assert f"{unique}_exponential: .cpu(...): scratch 'rng' holds random numbers; declare" in (
        refused(f"{unique}_exponential", effects=None, scratch={"rng": opaq.exponential(2)})
    )
    assert (
        "exponential(4): random numbers are scratch memory that PyTorch's generator fills for each "
        "launch: give the implementation scratch={'noise': opaq.exponential(...)} and pass noise"
    ) in refused(unique, args="x, y, exponential(4), x.numel()")
    with pytest.raises(opaq.DeclarationError, match=r"opaq\.exponential\(\.\.\.\)"):
        opaq.exponential(None)
    noise(unique)
    assert (
        "scratch: 'rng: [2], uint64, philox' before, 'rng: [2], float32, exponential' now"
    ) in refused(unique, scratch={"rng": opaq.exponential(2)})
    assert "scratch: 'rng: [2], uint64, philox' before, 'rng: [2], uint64' now" in refused(
        unique, scratch={"rng": opaq.tensor(2, dtype="uint64")}
    )
    with pytest.raises(opaq.DeclarationError, match="with effects='random'; got None"):
        opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))


def test_replaced_effects(unique: str) -> None:
    tag = torch.Tag.nondeterministic_seeded
    op = noise(unique)
    assert tag in op.overload.tags
    hash_before = op.info["hash"]
    opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), replace=True)
    assert tag not in op.overload.tags
    assert op.info["hash"] != hash_before


def on_cuda(name: str, scratch: Any, type: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), effects="random")
    return op.cuda(
        source=f"__global__ void f(const float* x, float* y, const {type}* random) {{}}",
        entry="f",
        grid=1,
        block=32,
        scratch={"rng": scratch},
        args="x, y, rng",
    )


@pytest.mark.parametrize(
    ("scratch", "type", "bytes", "planned", "drawn"),
    [
        (
            opaq.philox(),
            "unsigned long long",
            16,
            "(2, ), (1, ), torch.uint64",
            "opaq_draw_philox(RNG, DEVICE, aoti_torch_cuda_randint_low_out);",
        ),
        (
            opaq.exponential("x.shape"),
            "float",
            128,
            "(8, 4), (4, 1), torch.float32",
            "opaq_draw_exponential(RNG, DEVICE);",
        ),
    ],
    ids=["philox", "exponential"],
)
def test_what_a_node_on_cuda_prints(
    unique: str, scratch: Any, type: str, bytes: int, planned: str, drawn: str
) -> None:
    op = on_cuda(unique, scratch, type)
    plan = _runtime.plan(op.name, [("float32", (8, 4), (4, 1), "cuda:0", 4096)])
    assert plan["workspace_bytes"] == bytes
    lowering.activate()
    python = wrapper_source(lambda x: op.overload(x), (8, 4))
    assert f"buf0 = empty_strided_cuda({planned})" in python
    assert ", buf1, buf0, " in python  # x, the result, the workspace, the stream
    with lowering.options.use(archs=("sm_90a",)):
        cpp = cpp_part(wrapper_source(lambda x: op.overload(x), (8, 4), cpp=True))
        package = wrapper_source(lambda x: op.overload(x), (8, 4), package=True)
    drawn = drawn.replace("RNG", "opaq_memory_of_rng.at(opaq_workspace.data())")
    drawn = drawn.replace("DEVICE", "aoti_torch_device_type_cuda(), opaq_device")
    assert drawn in cpp
    assert drawn in package


def test_another_dtype_than_pytorch_draws_is_refused_by_the_launch(unique: str) -> None:
    op = exponential(unique, dtype="int64")
    message = (
        f"{unique}: scratch 'q' of implementation 'cpu': dtype 'int64'; PyTorch draws exponential "
        "random numbers as float32, float64, float16 or bfloat16"
    )
    for function in (op, op.overload, torch.compile(op, fullgraph=True)):
        with pytest.raises(opaq.LaunchError) as error:
            function(torch.ones(4))
        assert str(error.value) == message
    compiled = torch.compile(op, fullgraph=True, options={"cpp_wrapper": True})
    with pytest.raises(Exception, match="random numbers as float32") as refused:
        compiled(torch.ones(4))
    assert message in str(refused.value)
