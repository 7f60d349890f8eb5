"""Forward-mode derivatives of ops and custom ops, by the formula given to `jvp`; PyTorch's own
derivatives are the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp
from torch.testing import assert_close

import opaq


def formula(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * x * w


def backward(ctx: Any, gradient: torch.Tensor) -> Any:
    x, w = ctx.saved_tensors
    return 2 * x * w * gradient, x * x * gradient


def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def forward(inputs: Any, tangents: Any, output: torch.Tensor) -> torch.Tensor:
    (x, w), (dx, dw) = inputs, tangents
    found = torch.zeros_like(output)
    if dx is not None:
        found = found + 2 * x * w * dx
    return found if dw is None else found + x * x * dw


@pytest.fixture(params=["op", "custom_op"])
def op(unique: str, request: Any) -> Any:
    if request.param == "op":
        made = opaq.op(f"{unique}(Tensor x, Tensor w) -> Tensor", outputs=opaq.like("x"))
        made.reference(formula)
        made.jvp(forward)
    else:

        def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return x * x * w

        made = opaq.custom_op(unique, function, mutates_args=())
        made.register_fake(lambda x, w: torch.empty_like(x))
        made.register_jvp(forward)
    made.register_autograd(backward, setup_context=setup_context)
    return made


def dual(f: Any) -> torch.Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(X, W), W)).tangent


X, W = torch.randn(4), torch.randn(4)
DERIVATIVES: dict[str, Callable[[Any], Any]] = {
    "jvp": lambda f: jvp(f, (X, W), (W, X)),
    "of one argument": lambda f: jvp(lambda x: f(x, W), (X,), (W,)),
    "dual tensors": dual,
    "jacfwd": lambda f: jacfwd(f)(X, W),
    "hessian": lambda f: hessian(lambda x: f(x, W).sum())(X),
    "reverse over forward": lambda f: jacrev(jacfwd(f))(X, W),
    "gradient of jvp": lambda f: grad(lambda x: jvp(lambda x: f(x, W), (x,), (W,))[1].sum())(X),
    "jvp of jvp": lambda f: jvp(
        lambda x: jvp(lambda x: f(x, W), (x,), (W,))[1], (X,), (torch.ones(4),)
    ),
}


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("compiled", [False, True])
def test_values(op: Any, derivative: str, compiled: bool) -> None:
    run = DERIVATIVES[derivative]
    run = torch.compile(run, fullgraph=True) if compiled else run
    assert_close(run(op), DERIVATIVES[derivative](formula))


def test_a_cpp_wrapper(op: Any) -> None:
    run = torch.compile(
        DERIVATIVES["jvp"], fullgraph=True, dynamic=False, options={"cpp_wrapper": True}
    )
    assert_close(run(op), DERIVATIVES["jvp"](formula))


def test_reverse_mode_through_a_tangent(op: Any) -> None:
    x = X.clone().requires_grad_()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(op(forward_ad.make_dual(x, W), W)).tangent
    assert_close(torch.autograd.grad(tangent.sum(), x)[0], 2 * W * W)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("derivative", ["jvp", "dual tensors"])
def test_without_a_formula_a_tangent_is_refused(
    unique: str, derivative: str, compiled: bool
) -> None:
    op = opaq.op(f"{unique}(Tensor x, Tensor w) -> Tensor", outputs=opaq.like("x"))
    op.reference(formula)
    run = DERIVATIVES[derivative]
    run = torch.compile(run, fullgraph=True) if compiled else run
    with pytest.raises(Exception, match=r"no forward-mode formula.*declare one with \.jvp\(\.\.\."):
        run(op)


def test_an_op_that_writes_takes_no_formula(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) x) -> ()")
    with pytest.raises(opaq.DeclarationError, match="it writes to `x`; only an op that returns"):
        op.jvp(forward)
    with pytest.raises(opaq.DeclarationError, match=r"a function \(inputs, tangents, output\)"):
        op.jvp(3)


def test_several_results(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor[] xs, float by) -> (Tensor a, Tensor b, Tensor order)",
        outputs={
            "a": opaq.like("xs[0]"),
            "b": opaq.like("xs[0]"),
            "order": opaq.like("xs[0]", dtype="int64"),
        },
    )
    op.reference(lambda xs, by: (xs[0] * xs[1] * by, xs[0] + 1, xs[0].argsort()))

    @op.jvp
    def _(inputs: Any, tangents: Any, output: Any) -> Any:
        (x, y), by = inputs
        (dx, dy), _ = tangents
        return (x * dy + y * dx) * by, None, None

    outputs, tangents = jvp(lambda x, y: op([x, y], 3.0), (X, W), (W, X))
    assert_close(outputs, (X * W * 3, X + 1, X.argsort()))
    assert_close(tangents[0], 3 * (X * X + W * W))
    assert_close(tangents[1:], (torch.zeros(4), torch.zeros(4, dtype=torch.int64)))

    op.jvp(lambda inputs, tangents, output: tangents[0][0])
    with pytest.raises(opaq.LaunchError, match="returned 1 tangents; expected 3, one for each"):
        jvp(lambda x: op([x, x], 3.0), (X,), (W,))
