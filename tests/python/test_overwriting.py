"""Results that may be written over an argument: where compiled graphs do so, and where not."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import fake_cuda
import pytest
import torch
from forms import OPTIONS, run_package
from torch._inductor import config as inductor_config
from torch._inductor.utils import run_and_get_code, run_fw_bw_and_get_code

import opaq
from opaq.extern_kernels import cross_entropy, cross_entropy_mean, rope, silu_mul

SOURCE = """
void scale(float* y, const float* x, const float* by, long n) {
  for (long i = 0; i < n; ++i) y[i] = 2 * x[i] + by[i];
}
void reversed(float* y, const float* x, const float* by, long n) {
  for (long i = 0; i < n; ++i) y[i] = 2 * x[n - 1 - i] + by[i];
}
"""
CUDA = """
__global__ void scale(float* y, const float* x, const float* by, long n) {
  const long i = blockIdx.x * 256L + threadIdx.x;
  if (i < n) y[i] = 2 * x[i] + by[i];
}"""
WRITTEN_OVER = "y is written over x"
RULE = opaq.like("x", may_overwrite=True)


def scale_op(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x, Tensor by) -> (Tensor y)", outputs=RULE)
    args = "y, x, by, x.numel()"
    op.cpu(source=SOURCE, entry="scale", args=args)
    op.cuda(source=CUDA, entry="scale", grid="ceil_div(x.numel(), 256)", block=256, args=args)
    op.reference(lambda x, by: 2 * x + by)
    return op


def code_of(model: Callable[..., Any], *args: torch.Tensor, **how: Any) -> str:
    """The generated code; the values must be those of eager."""
    result, codes = run_and_get_code(torch.compile(model, fullgraph=True, **how), *args)
    torch.testing.assert_close(result, model(*args))
    return codes[-1]


def square() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 6), torch.randn(6, 6)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("form", [name for name in OPTIONS if name != "eager"])
def test_an_intermediate(unique: str, form: str, dynamic: bool) -> None:
    op = scale_op(unique)
    code = code_of(lambda x, w: op(x @ w, w), *square(), dynamic=dynamic, **OPTIONS[form])
    assert WRITTEN_OVER in code
    body = code[code.index("inductor_entry_impl(" if form == "cpp" else "def call(") :]
    allocations = body.count("aoti_torch_empty_strided(") + body.count("= empty_strided_cpu(")
    assert allocations == 1  # the product, which is the result too


@pytest.mark.parametrize(
    "options", [{"memory_planning": True}, {"memory_planning": True, "cpp_wrapper": True}]
)
def test_planned_memory(unique: str, options: dict[str, Any]) -> None:
    op = scale_op(unique)

    def model(x: torch.Tensor, w: torch.Tensor) -> Any:
        first = op(x @ w, w)
        return op(first @ w, x), op(first.sin() @ x, w) @ w

    assert WRITTEN_OVER in code_of(model, *square(), options=options)


@pytest.mark.life
def test_a_package(unique: str, tmp_path: pathlib.Path) -> None:
    op = scale_op(unique)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return op(op(x @ x, x), x)

    x = torch.randn(6, 6)
    torch.testing.assert_close(run_package(Model(), x, tmp_path), Model()(x))


def test_a_view_with_the_layout_of_the_result(unique: str) -> None:
    op = scale_op(unique)

    def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return op((x @ w).view(4, 9), w.view(4, 9)).view(2, 18)

    for options in ({}, {"cpp_wrapper": True}):
        assert WRITTEN_OVER in code_of(model, *square(), options=options)


def test_a_chain_takes_one_memory(unique: str) -> None:
    op = scale_op(unique)
    code = code_of(lambda x, w: op(op(op(x @ w, w), x), w).sin(), *square())
    assert code.count(WRITTEN_OVER) == 3
    assert code.count("= empty_strided_cpu(") == 1


def test_a_result_that_nothing_reads(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, Tensor by) -> (Tensor y, Tensor z)",
        outputs={"y": RULE, "z": opaq.like("by", may_overwrite=True)},
    )
    op.cpu(
        source="void both(float* y, float* z, const float* x, const float* by, long n) { for (long "
        "i = 0; i < n; ++i) { const float a = x[i], b = by[i]; y[i] = a + b; z[i] = a - b; } }",
        entry="both",
        args="y, z, x, by, x.numel()",
    )
    for index in (0, 1):
        for options in ({}, {"cpp_wrapper": True}, {"memory_planning": True}):
            code = code_of(lambda x, w: op(x @ w, w @ x)[index] + 1, *square(), options=options)  # noqa: B023
            assert WRITTEN_OVER in code and "z is written over by" in code
    code = code_of(lambda x, w: op(x @ w, w)[0] + 1, *square())  # z has memory, and loses it again
    assert "z is written over by" not in code


NOT: dict[str, Callable[[Any, torch.Tensor, torch.Tensor], Any]] = {
    "an input of the graph": lambda op, x, w: op(x, w),
    "a view of an input": lambda op, x, w: op(x.view(3, 12), w.view(3, 12)),
    "returned": lambda op, x, w: ((h := x @ w), op(h, w)),
    "a view of it is returned": lambda op, x, w: ((h := x @ w).view(-1), op(h, w)),
    "read later": lambda op, x, w: (op(h := x @ w, w), h.sum()),
    "read later by an op": lambda op, x, w: (op(h := x @ w, w), op(x, h)),
    "a view of it is read later": lambda op, x, w: (op(h := x @ w, w), h.t() @ w),
    "written later": lambda op, x, w: (op(h := x @ w, w), h.add_(1)),
    "given twice": lambda op, x, w: op(h := x @ w, h),
    "an alias is given too": lambda op, x, w: op((h := x @ w)[:3], h[3:]),
    "transposed": lambda op, x, w: op((x @ w).t(), w),
    "a part": lambda op, x, w: op((x @ w)[:3], w[:3]),
    "a part that begins later": lambda op, x, w: op((x @ w)[2:], w[2:]),
    "expanded": lambda op, x, w: op((x @ w)[:1].expand(6, 6), w),
    "a part of a concatenation": lambda op, x, w: (
        torch.cat([h := x.sin(), w.cos()]),
        op(h, w),
    ),
    "whose part is read": lambda op, x, w: (
        op(torch.cat([h := x.sin(), w.cos()]), torch.cat([x, w])),
        h @ w,
    ),
}


@pytest.mark.parametrize(
    "cpp", [False, pytest.param(True, marks=pytest.mark.life)], ids=["python", "cpp"]
)
@pytest.mark.parametrize("case", NOT)
def test_where_memory_is_not_taken(unique: str, case: str, cpp: bool) -> None:
    op = scale_op(unique)
    code = code_of(lambda x, w: NOT[case](op, x, w), *square(), options={"cpp_wrapper": cpp})
    assert WRITTEN_OVER not in code


def test_where_inductor_is_told_not_to(unique: str) -> None:
    op = scale_op(unique)
    code = code_of(lambda x, w: op(x @ w, w), *square(), options={"inplace_buffers": False})
    assert WRITTEN_OVER not in code


def test_a_size_that_is_only_known_to_be_as_large(unique: str) -> None:
    op = scale_op(unique)

    def model(x: torch.Tensor, w: torch.Tensor, z: torch.Tensor) -> Any:
        return op(x @ w, z), op((x @ w).view(-1)[: z.size(0) * 6], z.view(-1))

    code = code_of(model, *square(), torch.randn(6, 6), dynamic=True)
    assert code.count(WRITTEN_OVER) >= 1


def test_a_branch(unique: str) -> None:
    """What a branch takes from outside belongs to the graph around it."""
    op = scale_op(unique)

    def model(x: torch.Tensor, w: torch.Tensor) -> Any:
        h = x @ w
        return torch.cond(
            x.sum() > 0, lambda h, w: op(h, w), lambda h, w: op(h @ w, w).sin(), (h, w)
        ), h

    x, w = torch.randn(6, 6), torch.randn(6, 6)
    code = code_of(model, x.abs(), w)
    assert code.count(WRITTEN_OVER) == 1
    code_of(model, -x.abs(), w)


def test_a_result_may_be_written_by_what_follows(unique: str) -> None:
    op = scale_op(unique)

    def model(x: torch.Tensor, w: torch.Tensor) -> Any:
        y = op(x @ w, w)
        z = y + 1
        y.mul_(3)
        return y, z, op(z, w)

    for options in ({}, {"cpp_wrapper": True}):
        code_of(model, *square(), options=options)


# ---- backward graphs -----------------------------------------------------------------------------


def backward_code(model: Callable[..., Any], *args: torch.Tensor) -> str:
    """That of the backward graph; gradients must be those of eager."""

    def run(function: Callable[..., Any]) -> Any:
        given = [t.clone().requires_grad_(t.is_floating_point()) for t in args]
        result, codes = run_fw_bw_and_get_code(lambda: function(*given))
        return result, [t.grad for t in given], codes

    expected, grads, _ = run(model)
    result, got, codes = run(torch.compile(model, fullgraph=True))
    torch.testing.assert_close((result, got), (expected, grads), rtol=1e-5, atol=1e-4)
    return codes[-1]


def mean_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """With a gradient that reads the logits in the backward graph."""
    return cross_entropy(logits, target)[0].mean()


def head(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return mean_loss(hidden @ weight.t(), target)


def head_arguments() -> tuple[torch.Tensor, ...]:
    return torch.randn(12, 8), torch.randn(50, 8), torch.randint(0, 50, (12,))


def test_a_gradient_takes_the_memory_of_logits() -> None:
    code = backward_code(head, *head_arguments())
    assert "grad_logits is written over logits" in code
    assert "empty_strided_cpu((12, 50)" not in code


def test_a_gradient_that_is_computed_with_the_loss() -> None:
    def model(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy_mean(hidden @ weight.t(), target)

    given = [t.requires_grad_(t.is_floating_point()) for t in head_arguments()]
    compiled = torch.compile(model, fullgraph=True)
    _, (forward, backward) = run_fw_bw_and_get_code(lambda: compiled(*given))
    assert "grad_logits is written over logits" in forward
    assert "out is written over grad" in backward
    backward_code(model, *head_arguments())


def test_an_input_of_the_backward_graph_that_is_not_donated() -> None:
    with torch._functorch.config.patch(donated_buffer=False):
        code = backward_code(head, *head_arguments())
    assert "grad_logits is written over logits" not in code


def test_logits_that_the_user_keeps() -> None:
    def model(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Any:
        logits = hidden @ weight.t()
        return mean_loss(logits, target), logits.detach()

    backward_code(head, *head_arguments())  # the same backward graph, which may overwrite them
    torch.compiler.reset()
    hidden, weight, target = head_arguments()
    kept = []

    def loss(*args: torch.Tensor) -> torch.Tensor:
        loss, logits = torch.compile(model, fullgraph=True)(*args)
        kept.append(logits)
        return loss

    hidden.requires_grad_(), weight.requires_grad_()
    _, codes = run_fw_bw_and_get_code(lambda: loss(hidden, weight, target))
    assert "grad_logits is written over logits" not in codes[-1]
    torch.testing.assert_close(kept[0], (hidden @ weight.t()).detach())


# Operations that change nothing: torch removes them, with the view or the copy that they make.
@pytest.mark.parametrize(
    "unchanged",
    [
        lambda logits: logits / 1.0,
        pytest.param(lambda logits: (logits * 1).permute(2, 0, 1), marks=pytest.mark.life),
        pytest.param(lambda logits: (logits + 0).split(1)[0], marks=pytest.mark.life),
        pytest.param(lambda logits: torch.stack([logits])[0], marks=pytest.mark.life),
    ],
)
def test_logits_that_the_user_keeps_under_another_name(unchanged: Callable[..., Any]) -> None:
    def model(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> Any:
        logits = torch.nn.functional.linear(hidden.view(3, 4, -1), weight)
        return mean_loss(logits.view(12, -1), target), unchanged(logits)

    hidden, weight, target = head_arguments()
    weight.requires_grad_()
    loss, kept = torch.compile(model, fullgraph=True)(hidden, weight, target)
    loss.backward()
    torch.testing.assert_close(kept, model(hidden, weight, target)[1])


@pytest.mark.parametrize(
    "copied",
    [
        torch.clone,
        pytest.param(lambda x: torch.cat([x]), marks=pytest.mark.life),
        pytest.param(lambda x: torch.nn.functional.pad(x, (0, 0)), marks=pytest.mark.life),
    ],
)
def test_logits_that_are_a_copy_of_an_argument(copied: Callable[..., Any]) -> None:
    def model(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return mean_loss(copied(x).view(12, -1), target)

    x, target = torch.randn(3, 4, 50, requires_grad=True), torch.randint(0, 50, (12,))
    before = x.detach().clone()
    torch.compile(model, fullgraph=True)(x, target).backward()
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_logits_that_are_saved_twice(scale: float | None) -> None:
    """Nothing tells that two inputs of a backward graph are one memory, but the traced graph."""

    class Both(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(logits, flat)
            return logits.sum() + flat.sum()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> Any:
            logits, flat = ctx.saved_tensors
            return logits.sin() * grad, flat.cos() * grad

    def model(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = hidden @ weight.t()
        flat = logits.view(-1) if scale is None else logits.view(-1) / scale
        return mean_loss(logits, target) + Both.apply(logits, flat)

    backward_code(model, *head_arguments())


def test_activations_and_rotations() -> None:
    def mlp(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return silu_mul(x @ w, x @ v).square().sum()

    code = backward_code(mlp, torch.randn(4, 8), torch.randn(8, 16), torch.randn(8, 16))
    assert "grad_gate is written over gate" in code and "grad_up is written over up" in code

    def attention(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        q_out, k_out = rope(q.sin(), k.sin(), cos.detach(), sin.detach())
        # gradients of the layout of rope's own: tokens before heads
        q_out, k_out = (each.transpose(1, 2).reshape(2, 4, 24) for each in (q_out, k_out))
        return (q_out @ k_out.transpose(-1, -2)).sin().sum()

    shape = (2, 3, 4, 8)
    code = backward_code(
        attention, torch.randn(shape), torch.randn(shape), *torch.randn(2, 1, 4, 8)
    )
    assert "grad_q is written over grad_q_out" in code


# ---- device code ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["python", "cpp", "package"])
def test_a_wrapper_for_cuda(unique: str, form: str) -> None:
    op = scale_op(unique)
    kind = {} if form == "python" else {form: True}
    with opaq.lowering.options.use(archs=("sm_90a",)):
        source = fake_cuda.wrapper_source(lambda x, w: op(op(x, w), w), (8, 8), (8, 8), **kind)
    assert WRITTEN_OVER in source
    code = source[source.index(WRITTEN_OVER) :]
    assert "buf1 = buf0" in code or "auto buf1 = std::move(buf0);" in code


def test_parts_of_a_graph_that_become_cuda_graphs(unique: str) -> None:
    """Memory that another part has made is an argument of this one, and not taken."""
    op, apart = scale_op(unique), scale_op(f"{unique}_apart")
    options = {
        "triton.cudagraphs": True,
        "graph_partition": True,
        "custom_should_partition_ops": [apart.name],
    }
    with inductor_config.patch(options):
        within = fake_cuda.wrapper_source(
            lambda x, w: apart(op(op(x, w), w), w), (8, 8), (8, 8), mixed=True
        )
        across = fake_cuda.wrapper_source(
            lambda x, w: op(apart(op(x, w), x), w), (8, 8), (8, 8), mixed=True
        )
    assert within.count("def partition_") == 1 and across.count("def partition_") == 2
    assert within.count(WRITTEN_OVER) == 1  # by the second op; the third gets what a part returns
    assert WRITTEN_OVER not in across


# ---- checks --------------------------------------------------------------------------------------


def test_the_contract_check_takes_it(unique: str) -> None:
    op = scale_op(unique)
    options = {"check": "contract"}
    for _ in range(2):
        code = code_of(lambda x, w: op(x @ w, w).sin(), *square(), backend="opaq", options=options)
        assert WRITTEN_OVER in code


def test_the_contract_check_finds_a_kernel_that_is_wrong_in_place(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, Tensor by) -> (Tensor y)", outputs=RULE)
    op.cpu(source=SOURCE, entry="reversed", args="y, x, by, x.numel()")
    compiled = torch.compile(
        lambda x, w: op(x @ w, w), backend="opaq", options={"check": "contract"}
    )
    with pytest.raises(opaq.ContractError, match="result `y` is .* and not the .* when it is run"):
        compiled(*square())


def test_opcheck_tries_it(unique: str) -> None:
    x, by = square()
    assert opaq.opcheck(scale_op(unique), x, by=by)["overwritten"] == "SUCCESS"
    wrong = opaq.op(f"{unique}_wrong(Tensor x, Tensor by) -> (Tensor y)", outputs=RULE)
    wrong.cpu(source=SOURCE, entry="reversed", args="y, x, by, x.numel()")
    with pytest.raises(opaq.ContractError, match=r"1 of \d+ checks failed:\n  overwritten: Tensor"):
        opaq.opcheck(wrong, x, by)


def test_explain_tells_it(unique: str) -> None:
    op = scale_op(unique)
    found = opaq.explain(lambda x, w: op(x @ w, w), *square())
    assert found.nodes[0].may_overwrite == {"y": "x"}
    assert "x by y" in str(found)


# ---- declarations --------------------------------------------------------------------------------

REFUSED = {
    "no such argument": (
        "(Tensor x) -> (Tensor y)",
        opaq.like("z", may_overwrite=True),
        "no argument is named 'z'; tensor arguments are x",
    ),
    "no tensor": (
        "(Tensor x, int n) -> (Tensor y)",
        opaq.like("n", may_overwrite=True),
        "'n' is of type int; expected a tensor argument",
    ),
    "optional": (
        "(Tensor x, Tensor? z) -> (Tensor y)",
        opaq.like("z", may_overwrite=True),
        "'z' may be None",
    ),
    "a list": (
        "(Tensor x, Tensor[] z) -> (Tensor y)",
        opaq.like("z", may_overwrite=True),
        "'z' is a list; take an item",
    ),
    "an item of a list": (
        "(Tensor x, Tensor[] z) -> (Tensor y)",
        opaq.like("z[0]", may_overwrite=True),
        "'z[0]' is an item of a list; expected a result with the shape and dtype of a tensor",
    ),
    "written": (
        "(Tensor(a!) x) -> (Tensor y)",
        opaq.like("x", may_overwrite=True),
        "'x' is written by the op, `Tensor(a!) x`; expected a result with the shape and dtype of a",
    ),
    "another dtype": (
        "(Tensor x) -> (Tensor y)",
        opaq.like("x", dtype="float32", may_overwrite=True),
        'that is only read, as in opaq.like("x", may_overwrite=True); leave one of them out',
    ),
    "another shape": (
        "(Tensor x) -> (Tensor y)",
        opaq.like("x", shape="x.numel()", may_overwrite=True),
        "shape='x.numel()' replaces that of 'x'",
    ),
    "two results": (
        "(Tensor x) -> (Tensor y, Tensor z)",
        {"y": RULE, "z": RULE},
        "outputs 'y' and 'z' may both overwrite 'x'; its memory has room for one: leave may_",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_declarations(unique: str, case: str) -> None:
    schema, rules, text = REFUSED[case]
    with pytest.raises(opaq.DeclarationError) as error:
        op = opaq.op(f"{unique}{schema}", outputs=rules)
        op(torch.ones(2), [torch.ones(2)])  # rules of an op with lists are read at its first call
    assert text in str(error.value)


def test_it_is_no_option_of_scratch_memory(unique: str) -> None:
    with pytest.raises(opaq.DeclarationError, match="may_overwrite: got True"):
        opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=RULE).cpu(
            source="void f() {}", entry="f", args="", scratch={"s": RULE}
        )
