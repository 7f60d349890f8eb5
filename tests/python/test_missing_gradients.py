"""Gradients that are needed: a formula that does not give one is an error; of several backward ops,
those run that give what is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from forms import OPTIONS

import opaq


def test_a_formula_that_returns_too_little_is_an_error(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, Tensor weight, float by=1.0) -> Tensor", outputs=opaq.like("x")
    )
    op.cpu(
        source="void f(const float* x, const float* w, float* y) { *y = *x * *w; }",
        entry="f",
        args="x, weight, out",
    )
    op.backward(lambda ctx, grad: grad)
    x, weight = torch.ones(1, requires_grad=True), torch.ones(1)
    expected = (
        rf"gradient formula of {unique} returned an incorrect number of gradients "
        r"\(expected 3, got 1: a Tensor\); it returns one for each argument, in the order "
        "x, weight, by: None where the argument needs none"
    )
    for w in (weight, weight.clone().requires_grad_()):
        with pytest.raises(opaq.DeclarationError, match=expected):
            op(x, w).sum().backward()


@pytest.mark.parametrize("make", ["op", "custom_op"])
def test_a_missing_gradient_is_an_error(unique: str, make: str) -> None:
    def scaled(x: torch.Tensor, ws: list[torch.Tensor]) -> torch.Tensor:
        return x * ws[0] + ws[1]

    if make == "op":
        op = opaq.op(f"{unique}(Tensor x, Tensor[] ws) -> Tensor", outputs=opaq.like("x"))
        op.reference(scaled)
    else:
        op = opaq.custom_op(unique, scaled, mutates_args=())
        op.register_fake(lambda x, ws: torch.empty_like(x))
    x, ws = torch.ones(2, requires_grad=True), [torch.ones(2), torch.ones(2, requires_grad=True)]
    lost = rf"formula of {unique} returned None for `ws`, which requires grad; return its gradient"
    for found in (lambda grad: (grad, None), lambda grad: (grad, [grad, None])):
        op.register_autograd(lambda ctx, grad, found=found: found(grad))
        for call in (op, torch.compile(op, fullgraph=True, backend="aot_eager")):
            with pytest.raises(RuntimeError, match=lost):
                call(x, ws).sum().backward()
        op(x, [ws[0], ws[0]]).sum().backward()  # which needs none
    op.register_autograd(lambda ctx, grad: (grad, None), non_differentiable="ws")
    op(x, ws).sum().backward()
    assert ws[1].grad is None
    op.register_autograd(lambda ctx, grad: (None, [None, grad]))
    with pytest.raises(opaq.DeclarationError, match=r"returned None for `x`, which requires grad"):
        op(x, ws).sum().backward()
    with pytest.raises(opaq.DeclarationError, match="non_differentiable='by', but `by` is no ten"):
        op.register_autograd(lambda ctx, grad: (grad, None), non_differentiable="by")


def test_a_formula_may_have_no_gradient_where_it_got_none(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, Tensor w) -> (Tensor a, Tensor b)",
        outputs={"a": opaq.like("x"), "b": opaq.like("w")},
    )
    op.reference(lambda x, w: (x * 2, w * 3))
    op.backward(
        lambda ctx, a, b: (None if a is None else a * 2, None if b is None else b * 3),
        setup_context=lambda ctx, inputs, output: ctx.set_materialize_grads(False),
    )
    x, w = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    op(x, w)[0].sum().backward()
    assert x.grad.tolist() == [2, 2] and w.grad is None


def product(name: str) -> tuple[opaq.Op, list[opaq.Op], list[str]]:
    """x * w with three backward ops: for x, for w, for both; and what of them has run."""
    op = opaq.op(f"{name}(Tensor x, Tensor w) -> (Tensor y)", outputs=opaq.like("x"))
    op.reference(lambda x, w: x * w)
    ran: list[str] = []

    def backward(part: str, schema: str, formula: Callable[..., Any]) -> opaq.Op:
        outputs = {f"grad_{each}": opaq.like("grad_y") for each in part}
        made = opaq.op(f"{name}_{part}{schema}", outputs=outputs)

        @made.register_kernel("cpu")
        def _(*args: Any) -> Any:
            ran.append(part)
            return formula(*args)

        return made

    parts = [
        backward(
            "xw",
            "(Tensor grad_y, Tensor x, Tensor w) -> (Tensor grad_x, Tensor grad_w)",
            lambda g, x, w: (g * w, g * x),
        ),
        backward("x", "(Tensor grad_y, Tensor w) -> (Tensor grad_x)", lambda g, w: g * w),
        backward("w", "(Tensor x, *, Tensor grad_y) -> (Tensor grad_w)", None),
    ]
    parts[2].register_kernel("cpu", lambda x, *, grad_y: [ran.append("w"), grad_y * x][1])
    return op, parts, ran


@pytest.mark.parametrize("form", ["eager", "inductor", "cpp"])
def test_the_backward_op_that_gives_what_is_needed_runs(unique: str, form: str) -> None:
    op, parts, ran = product(unique)
    op.backward(parts, saves="x, w")
    call = op
    if form != "eager":
        call = torch.compile(lambda x, w: op(x, w), fullgraph=True, **OPTIONS[form])
    for needed in ("xw", "x", "w"):
        x, w = torch.full((2,), 2.0), torch.full((2,), 3.0)
        x.requires_grad_("x" in needed)
        w.requires_grad_("w" in needed)
        y = call(x, w)
        if form == "eager":
            assert len(y.grad_fn.saved_tensors) == len(needed)  # keeps only what is read
        y.sum().backward()
        assert ran == [needed]
        ran.clear()
        assert x.grad is None or x.grad.tolist() == [3, 3]
        assert w.grad is None or w.grad.tolist() == [2, 2]
    op.backward(parts[1:])  # one for each argument
    x, w = torch.full((2,), 2.0).requires_grad_(), torch.full((2,), 3.0).requires_grad_()
    op(x, w).sum().backward()
    assert ran == ["x", "w"] and x.grad.tolist() == [3, 3] and w.grad.tolist() == [2, 2]


def test_what_backward_ops_do_not_give_is_refused(unique: str) -> None:
    op, parts, _ = product(unique)
    op.backward(parts[1])
    x, w = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    op(x, w.detach()).sum().backward()
    refused = rf"{unique}: `w` requires grad, but the op's backward ops give no gradient for it"
    for call in (op, op.overload, torch.compile(op, backend="aot_eager", fullgraph=True)):
        with pytest.raises(RuntimeError, match=refused):
            call(x, w)
    op.backward(parts[1], non_differentiable=["w"])
    op(x, w).sum().backward()
    assert w.grad is None and x.grad.tolist() == [2, 2]
    with pytest.raises(opaq.DeclarationError, match=f"{unique}_x gives the gradients of `x`, as "):
        op.backward([parts[1], parts[1]])
    with pytest.raises(opaq.DeclarationError, match="saves='x', but .* reads w, x; leave"):
        op.backward(parts[1:], saves="x")


def test_a_backward_op_is_told_what_is_needed(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, Tensor w) -> (Tensor y)", outputs=opaq.like("x"))
    op.reference(lambda x, w: x * w)
    back = opaq.op(
        f"{unique}_backward(Tensor grad_y, Tensor x, Tensor w, bool needs_grad_x, "
        "bool needs_grad_w) -> (Tensor grad_x, Tensor grad_w)",
        outputs={
            "grad_x": opaq.like("x"),
            "grad_w": opaq.tensor("w.numel() if needs_grad_w else 0", dtype="w.dtype"),
        },
    )
    seen = []

    @back.register_kernel("cpu")
    def _(grad: Any, x: Any, w: Any, for_x: bool, for_w: bool) -> Any:
        seen.append((for_x, for_w))
        return grad * w, grad * x if for_w else x.new_empty(0)

    op.backward(back)
    for needs in ((True, True), (True, False)):
        x, w = (torch.ones(2).requires_grad_(need) for need in needs)
        op(x, w).sum().backward()
        assert x.grad.tolist() == [1, 1] and seen.pop() == needs


def test_needs_are_known_when_values_are_saved(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor[] xs, Tensor w) -> Tensor", outputs=opaq.like("w"))
    op.reference(lambda xs, w: xs[0] * w)
    seen = []
    op.backward(
        lambda ctx, grad: ([None, None], grad),
        setup_context=lambda ctx, inputs, output: seen.append(ctx.needs_input_grad),
    )
    x, w = torch.ones(2), torch.ones(2, requires_grad=True)
    op([x, x], w).sum().backward()
    assert seen == [([False, False], True)]


def test_a_formula_may_leave_out_defaults_at_the_end(unique: str) -> None:
    def scaled(x: torch.Tensor, y: torch.Tensor | None = None, by: float = 2.0) -> torch.Tensor:
        return x * by if y is None else x * y * by

    op = opaq.custom_op(unique, scaled, mutates_args=())
    op.register_fake(lambda x, y=None, by=2.0: torch.empty_like(x))
    op.register_autograd(lambda ctx, grad: grad * 2)
    x = torch.ones(2, requires_grad=True)
    for call in (op, torch.compile(op, fullgraph=True, backend="aot_eager")):
        x.grad = None
        call(x).sum().backward()
        assert x.grad.tolist() == [2, 2]
        with pytest.raises(RuntimeError, match=r"expected 3, got 1: a .*Tensor\); it returns one"):
            call(x, x.detach().clone().requires_grad_()).sum().backward()
