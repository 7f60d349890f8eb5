"""Features of torch.compile and torch.export, each with an opaque op in it; PyTorch's arithmetic is
the reference.
"""

from __future__ import annotations

import functools
import io
import pathlib
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.testing import assert_close
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import opaq

SCALE = (
    "void f(const float* x, double by, float* out, long n) { for (long i = 0; i < n; ++i) "
    "out[i] = x[i] * by; }"
)
X = torch.randn(4)


@pytest.fixture
def op(unique: str) -> opaq.Op:
    op = opaq.op(f"{unique}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=SCALE, entry="f", args="x, by, out, x.numel()")
    op.backward(
        lambda ctx, grad: (grad * ctx.by, None),
        setup_context=lambda ctx, inputs, output: setattr(ctx, "by", inputs[1]),
    )
    return op


def test_set_stance(op: opaq.Op) -> None:
    call = torch.compile(lambda x: op(x) + 1)
    for stance in ("force_eager", "default", "eager_on_recompile"):
        with torch.compiler.set_stance(stance):
            assert_close(call(X), X * 2 + 1)


def test_nested_compile_region(op: opaq.Op) -> None:
    @torch.compiler.nested_compile_region
    def layer(x: torch.Tensor) -> torch.Tensor:
        return op(x).sin()

    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    got = torch.compile(lambda x: layer(layer(x)), fullgraph=True)(x)
    expected = ((y * 2).sin() * 2).sin()
    assert_close(got, expected)
    assert_close(*(torch.autograd.grad(z.sum(), leaf)[0] for z, leaf in ((got, x), (expected, y))))


def test_scan(op: opaq.Op) -> None:
    def combine(carry: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = op(carry + x)
        return y, y.clone()

    xs, carry, rows = torch.randn(3, 4), torch.zeros(4), []
    for x in xs:
        carry = (carry + x) * 2
        rows.append(carry)
    call = torch.compile(lambda xs: scan(combine, torch.zeros(4), xs)[1], fullgraph=True)
    assert_close(call(xs), torch.stack(rows))


def test_while_loop_and_cond(op: opaq.Op) -> None:
    def loop(x: torch.Tensor) -> torch.Tensor:
        start = (torch.tensor(0), x)
        return while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, op(x)), start)[1]

    def branch(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: op(x), lambda x: op(x, 3.0), (x,))

    assert_close(torch.compile(loop, fullgraph=True)(X), X * 8)
    for x in (X.abs(), -X.abs()):
        by = 2 if x.sum() > 0 else 3
        assert_close(torch.compile(branch, fullgraph=True)(x), x * by)


@pytest.mark.parametrize("form", ["cpp", "package"])
def test_a_loop_and_a_branch_in_cpp(op: opaq.Op, form: str, tmp_path: pathlib.Path) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            start = (torch.tensor(0), x)
            y = while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, op(x)), start)[1]
            return torch.cond(y.sum() > 0, lambda x: op(x), lambda x: op(x, 3.0), (y,))

    if form == "cpp":
        got = torch.compile(Model(), fullgraph=True, options={"cpp_wrapper": True})(X.abs())
    else:
        path = opaq.package(torch.export.export(Model(), (X.abs(),)), tmp_path / "model.pt2")
        got = torch._inductor.aoti_load_package(str(path))(X.abs())
    assert_close(got, X.abs() * 16)


def test_export_and_back(op: opaq.Op) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x) + 1

    exported = torch.export.export(Model(), (X,))
    memory = io.BytesIO()
    torch.export.save(exported, memory)
    memory.seek(0)
    for program in (
        exported,
        exported.run_decompositions(),
        torch.export.load(memory),
        torch.export.draft_export(Model(), (X,)),
    ):
        assert_close(program.module()(X), X * 2 + 1)
        assert_close(torch.compile(program.module())(X), X * 2 + 1)
    assert_close(op(X), X * 2)


def test_selective_checkpoint_by_the_op(op: opaq.Op) -> None:
    asked = []

    def policy(ctx: Any, called: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        asked.append(called)
        save = called is op.overload
        return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE

    x = X.clone().requires_grad_()
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    loss = checkpoint(lambda x: op(op(x).sin()).sum(), x, use_reentrant=False, context_fn=contexts)
    loss.backward()
    assert op.overload in asked
    assert_close(x.grad, 4 * (X * 2).cos())


def test_compiled_autograd(unique: str, op: opaq.Op) -> None:
    backward = opaq.op(
        f"{unique}_backward(Tensor grad_out, float by) -> (Tensor grad_x)",
        outputs=opaq.like("grad_out"),
    )
    backward.reference(lambda grad_out, by: grad_out * by)
    by_op = opaq.op(f"{unique}_by_op(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    by_op.reference(lambda x, by=2.0: x * by)
    by_op.backward(backward)
    for called in (op, by_op):
        for by in (2.0, 3.0, 4.0):  # which is kept outside the saved tensors
            x = X.clone().requires_grad_()
            with torch._dynamo.compiled_autograd._enable(torch.compile(fullgraph=True)):
                called(called(x, 3.0), by).sum().backward()
            assert_close(x.grad, torch.full((4,), 3 * by))


def test_dynamic_sizes_compile_once(op: opaq.Op) -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    call = torch.compile(lambda x: op(x) + 1, backend=counter, fullgraph=True)
    first = torch.randn(5)
    torch._dynamo.mark_dynamic(first, 0)
    for x in (first, torch.randn(9), torch.randn(17)):
        assert_close(call(x), x * 2 + 1)
    assert counter.frame_count == 1


def test_sizes_that_depend_on_data(op: opaq.Op) -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return op(x.nonzero().float()) + 1

    x = torch.tensor([0.0, 1.0, 2.0, 0.0])
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(call, fullgraph=True)
        for value in (x, x + 1, x * 0):
            assert_close(compiled(value), value.nonzero().float() * 2 + 1)
