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
from opaq import _runtime, lowering

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


@pytest.mark.parametrize("form", FORMS)
def test_numbers_follow_the_seed_and_never_repeat(form: str, unique: str, tmp_path: Any) -> None:
    op, x = noise(unique), torch.ones(1000)
    model: Callable[..., Any] = Model(op if form != "dispatcher" else op.overload)
    if form == "package":
        path = opaq.package(torch.export.export(Model(op), (x,)), tmp_path / "model.pt2")
        model = torch._inductor.aoti_load_package(path)
    elif form.endswith("wrapper"):
        options = {"cpp_wrapper": form == "C++ wrapper"}
        model = torch.compile(model, fullgraph=True, options=options)
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
    noise(unique)
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


def test_what_a_node_on_cuda_prints(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), effects="random")
    op.cuda(
        source="__global__ void f(const float* x, float* y, const unsigned long long* rng) {}",
        entry="f",
        grid=1,
        block=32,
        scratch=RNG,
        args="x, y, rng",
    )
    planned = _runtime.plan(op.name, [("float32", (8, 4), (4, 1), "cuda:0", 4096)])
    assert planned["workspace_bytes"] == 16
    lowering.activate()
    python = wrapper_source(lambda x: op.overload(x), (8, 4))
    assert "empty_strided_cuda((2, ), (1, ), torch.uint64)" in python
    with lowering.options.use(archs=("sm_90a",)):
        cpp = cpp_part(wrapper_source(lambda x: op.overload(x), (8, 4), cpp=True))
        package = wrapper_source(lambda x: op.overload(x), (8, 4), package=True)
    for text in (cpp, package):
        assert (
            "opaq_draw_philox(opaq_memory_of_rng.at(opaq_workspace.data()), "
            "aoti_torch_device_type_cuda(), opaq_device, aoti_torch_cuda_randint_low_out);"
        ) in text
