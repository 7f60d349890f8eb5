"""Gradients of opaque ops: reverse mode through torch.autograd, torch.func and compiled graphs;
what has no gradient is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.utils.checkpoint import checkpoint

import opaq

CUBE = (
    "template <class T> void cube(const T* x, T* y, long n) { for (long i = 0; i < n; ++i) "
    "y[i] = x[i] * x[i] * x[i]; }"
)
TREBLE = "void treble(float* x, long n) { for (long i = 0; i < n; ++i) x[i] *= 3; }"
TRIPLE = (
    "void triple(const float* x, float* s, float* y, long n) { for (long i = 0; i < n; "
    "++i) y[i] = s[i] = 3 * x[i]; }"
)
ACCUMULATE = """
template <class T> void accumulate(T* total, const T* x, double by, T* y, long n) {
  for (long i = 0; i < n; ++i) { total[i] += by * x[i]; y[i] = total[i] * x[i]; }
}"""


def cube(name: str) -> Callable[..., Any]:
    op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=CUBE, entry="cube<{x.dtype}>", args="x, out, x.numel()")
    op.backward(
        lambda ctx, grad: 3 * grad * ctx.saved_tensors[0] ** 2,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )
    return op


def python_cube(name: str) -> Callable[..., Any]:
    op = opaq.custom_op(name, lambda x: x**3, mutates_args=(), schema="(Tensor x) -> Tensor")
    op.register_fake(torch.empty_like)
    op.register_autograd(
        lambda ctx, grad: 3 * grad * ctx.saved_tensors[0] ** 2,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )
    return op


def treble(name: str) -> opaq.Op:
    return opaq.op(f"{name}(Tensor(a!) x) -> ()").cpu(
        source=TREBLE, entry="treble", args="x, x.numel()"
    )


def python_treble(name: str) -> Callable[..., Any]:
    def function(x: torch.Tensor) -> None:
        x.mul_(3)

    return opaq.custom_op(name, function, mutates_args=("x",))


def triple(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x, Tensor(a!) scratch) -> Tensor", outputs=opaq.like("x"))
    return op.cpu(source=TRIPLE, entry="triple", args="x, scratch, out, x.numel()")


def accumulate(name: str) -> opaq.Op:
    """total += by * x; y = total * x"""
    op = opaq.op(
        f"{name}(Tensor(a!) total, Tensor x, float by=2.0) -> (Tensor y)", outputs=opaq.like("x")
    )
    op.cpu(source=ACCUMULATE, entry="accumulate<{x.dtype}>", args="total, x, by, y, x.numel()")

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # what is written once more would be stale
        ctx.save_for_backward(inputs[0].clone(), inputs[1])
        ctx.by = inputs[2]

    def backward(ctx: Any, grad_y: torch.Tensor, grad_total: torch.Tensor) -> tuple[Any, ...]:
        total, x = ctx.saved_tensors
        into_total = grad_total + grad_y * x
        return into_total, into_total * ctx.by + grad_y * total, None

    return op.backward(backward, setup_context=setup_context, written="total")


def accumulate_in_torch(total: torch.Tensor, x: torch.Tensor, by: float = 2.0) -> torch.Tensor:
    total.add_(x, alpha=by)
    return total.clone() * x


both = pytest.mark.parametrize("make", [cube, python_cube], ids=["op", "custom_op"])


# ---- torch.func ----------------------------------------------------------------------------------


@both
def test_every_transform_of_reverse_mode(unique: str, make: Callable) -> None:
    op = make(unique)
    x = torch.randn(4, dtype=torch.float64)
    f, g = lambda x: op(x.sin()).sum(), lambda x: (x.sin() ** 3).sum()
    func = torch.func
    same = torch.testing.assert_close
    same(func.grad(f)(x), func.grad(g)(x))
    same(func.grad_and_value(f)(x), func.grad_and_value(g)(x))
    same(
        func.vjp(f, x)[1](torch.ones((), dtype=x.dtype)),
        func.vjp(g, x)[1](torch.ones((), dtype=x.dtype)),
    )
    same(func.jacrev(op)(x), func.jacrev(lambda x: x**3)(x))
    same(func.jacrev(func.jacrev(f))(x), func.jacrev(func.jacrev(g))(x))
    same(
        func.grad(lambda x: func.grad(f)(x).sum())(x), func.grad(lambda x: func.grad(g)(x).sum())(x)
    )
    # the inner transform hands its value to the outer one
    same(func.grad(lambda x: func.vjp(op, x)[0].sum())(x), 3 * x**2)
    same(func.vmap(op)(x), x**3)
    rows = torch.randn(3, 4, dtype=torch.float64)
    same(func.vmap(func.grad(f))(rows), func.vmap(func.grad(g))(rows))
    same(
        func.grad(lambda rows: func.vmap(f)(rows).sum())(rows),
        func.grad(lambda rows: func.vmap(g)(rows).sum())(rows),
    )


@both
def test_transforms_in_compiled_graphs(unique: str, make: Callable) -> None:
    op = make(unique)
    x = torch.randn(4)
    compiled = torch.compile(
        lambda x: torch.func.grad(lambda x: op(x.sin()).sum())(x), fullgraph=True
    )
    torch.testing.assert_close(compiled(x), torch.func.grad(lambda x: (x.sin() ** 3).sum())(x))


@both
def test_double_backward_and_checkpointing(unique: str, make: Callable) -> None:
    op = make(unique)
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(op, (x,))
    assert torch.autograd.gradgradcheck(op, (x,))
    (found,) = torch.autograd.grad(
        checkpoint(lambda x: op(x.sin()), x, use_reentrant=False).sum(), x
    )
    torch.testing.assert_close(found, 3 * x.sin() ** 2 * x.cos())


@both
def test_forward_mode_is_refused_by_name(unique: str, make: Callable) -> None:
    op = make(unique)
    x, one = torch.ones(3), torch.ones(3)
    refused = pytest.raises(
        RuntimeError,
        match=rf"{unique} has no forward-mode formula, but `x` carried a tangent .*use reverse "
        r"mode",
    )
    with refused:
        torch.func.jvp(op, (x,), (one,))
    with refused:
        torch.func.jacfwd(op)(x)
    with refused:
        torch.func.hessian(lambda x: op(x).sum())(x)
    with refused, forward_ad.dual_level():
        op(forward_ad.make_dual(x, one))
    with refused, forward_ad.dual_level(), torch.no_grad():
        op(forward_ad.make_dual(x, one))
    with refused:
        torch.func.jvp(lambda x: torch.func.vjp(op, x)[0], (x,), (one,))
    with pytest.raises(RuntimeError):
        torch.compile(
            lambda x, one: torch.func.jvp(op, (x,), (one,)), backend="eager", fullgraph=True
        )(x, one)
    with forward_ad.dual_level():  # no tangent
        torch.testing.assert_close(op(x), x)


# ---- arguments that the op writes to -------------------------------------------------------------


@pytest.mark.parametrize("make", [treble, python_treble], ids=["op", "custom_op"])
def test_writing_to_what_requires_grad_is_refused_without_a_formula(
    unique: str, make: Callable
) -> None:
    op = make(unique)
    leaf = torch.ones(2, requires_grad=True)
    todo = r"Call the op under torch\.no_grad\(\), or on a clone"
    with pytest.raises(
        opaq.LaunchError,
        match=rf"{unique} writes to `x`: a leaf Variable that requires grad is being used in an "
        rf"in-place operation\. {todo}",
    ):
        op(leaf)
    with pytest.raises(
        opaq.LaunchError,
        match=rf"{unique} writes to `x`: a view of a leaf Variable that requires grad",
    ):
        op(leaf[:1])
    between = leaf * 2
    for call in (
        lambda: op(between),
        lambda: torch.func.grad(lambda x: (op(x * 1), x.sum())[1])(leaf.detach()),
    ):
        with pytest.raises(
            opaq.LaunchError,
            match=rf"{unique} writes to `x`, which requires grad, but has no gradient; declare "
            r".*no_grad.*detach",
        ):
            call()
    with pytest.raises(
        RuntimeError, match=f"{unique} writes to `x`, which requires grad, but has no gradient"
    ):
        torch.compile(lambda x: (op(x * 2),), fullgraph=True, backend="eager")(leaf)
    assert leaf.tolist() == [1, 1] and between.tolist() == [2, 2]
    with torch.no_grad():
        op(leaf)
    assert leaf.tolist() == [3, 3]
    with torch.inference_mode():
        op(leaf)
    assert leaf.tolist() == [9, 9]


def test_writing_what_depends_on_a_gradient_is_refused_without_a_formula(unique: str) -> None:
    op = triple(unique)
    x, scratch = torch.ones(2, requires_grad=True), torch.zeros(2)
    with pytest.raises(
        opaq.LaunchError,
        match=rf"{unique} writes values to `scratch` that depend on `x`, which requires grad, but "
        r"it has no gradient; declare",
    ):
        op(x, scratch)
    op.backward(None)
    out = op(x, scratch)
    assert not out.requires_grad and scratch.tolist() == [3, 3]


def test_gradient_of_an_op_that_writes_and_returns(unique: str) -> None:
    op = triple(unique).backward(lambda ctx, grad: (grad * 3, None))
    for call in (op, op.overload, torch.compile(lambda x, scratch: op(x, scratch), fullgraph=True)):
        x, scratch = torch.ones(2, requires_grad=True), torch.zeros(2)
        (call(x, scratch) + x).sum().backward()
        assert (
            x.grad.tolist() == [4, 4] and scratch.tolist() == [3, 3] and not scratch.requires_grad
        )
        with pytest.raises(
            RuntimeError,
            match=f"{unique} writes to `scratch`, which requires grad, but its gradient formula "
            "does not differentiate",
        ):
            call(x, x * 2)


@pytest.mark.parametrize("make", [treble, python_treble], ids=["op", "custom_op"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_gradient_of_an_op_that_only_writes(unique: str, make: Callable, compiled: bool) -> None:
    op = make(unique)
    (op.backward if isinstance(op, opaq.Op) else op.register_autograd)(lambda ctx, grad: grad * 3)

    def whole(op: Callable, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        op(y)
        return y * x

    def column(op: Callable, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        op(y[:1])
        return y * x

    for model in (whole, column):
        x = torch.tensor([1.0, 2.0], requires_grad=True)
        run = (
            torch.compile(lambda x: model(op, x), fullgraph=True)
            if compiled
            else lambda x: model(op, x)
        )
        y = run(x)
        expected = model(lambda x: x.mul_(3), x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x)
        )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_gradient_of_results_and_written_values(unique: str, compiled: bool) -> None:
    op = accumulate(unique)

    def model(op: Callable, start: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        total = start * 2
        y = op(total, x)
        z = op(total, x.sin(), 0.5)
        return y * z + total

    start, x = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    if not compiled:
        assert torch.autograd.gradcheck(lambda start, x: model(op, start, x), (start, x))
    run = (
        torch.compile(lambda start, x: model(op, start, x), fullgraph=True)
        if compiled
        else lambda start, x: model(op, start, x)
    )
    found, expected = run(start, x), model(accumulate_in_torch, start, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), (start, x)),
        torch.autograd.grad(expected.sum(), (start, x)),
    )


def test_gradient_of_written_values_under_transforms(unique: str) -> None:
    op = accumulate(unique)

    def model(op: Callable, x: torch.Tensor) -> torch.Tensor:
        total = x * 2
        return (op(total, x) * total).sum()

    x = torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(
        torch.func.grad(lambda x: model(op, x))(x),
        torch.func.grad(lambda x: model(accumulate_in_torch, x))(x),
    )


def test_a_view_that_is_written_beside_a_result_is_refused(unique: str) -> None:
    op = accumulate(unique)
    x = torch.randn(3, requires_grad=True)
    total = torch.zeros(6)
    with pytest.raises(
        opaq.LaunchError,
        match=rf"{unique} writes to `total`, a view of another tensor, and has other results .* "
        r"pass a tensor that is no view",
    ):
        op(total[:3], x)
    assert total.tolist() == [0] * 6


def test_a_backward_op_may_take_gradients_of_written_values(unique: str) -> None:
    forward = treble(unique)
    backward = opaq.op(
        f"{unique}_backward(Tensor grad_x) -> (Tensor out)", outputs=opaq.like("grad_x")
    )
    backward.cpu(
        source="void f(const float* g, float* o, long n) { for (long i = 0; i < n; ++i) o[i] = "
        "3 * g[i]; }",
        entry="f",
        args="grad_x, out, out.numel()",
    )
    forward.backward(backward)
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    forward(y)
    y.sum().backward()
    assert x.grad.tolist() == [6, 6]


@pytest.mark.parametrize("call", ["direct", "dispatcher", "compiled"])
def test_saved_values_that_were_written_are_noticed(unique: str, call: str) -> None:
    op = treble(unique)
    run = {
        "direct": op,
        "dispatcher": op.overload,
        "compiled": torch.compile(lambda x: op(x), fullgraph=True),
    }[call]
    weight, saved = torch.ones(2, requires_grad=True), torch.ones(2)
    loss = (weight * saved).sum()
    run(saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()

    both = triple(unique + "_and_return").backward(
        lambda ctx, grad: (grad * ctx.saved_tensors[0], None),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
    )
    scratch = torch.zeros(2)
    loss = both(torch.ones(2, requires_grad=True), scratch).sum()
    run(scratch)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- declarations --------------------------------------------------------------------------------


def test_what_cannot_be_a_gradient_is_refused_at_declaration(unique: str) -> None:
    op = accumulate(unique)
    with pytest.raises(
        opaq.DeclarationError,
        match=r"written='x', but the op does not write to `x`; it writes to `total`",
    ):
        op.backward(lambda ctx, grad: grad, written="x")
    with pytest.raises(
        opaq.DeclarationError,
        match=r"the op returns nothing and written is empty, so there is nothing to differentiate",
    ):
        treble(unique + "_treble").backward(lambda ctx, grad: grad, written="")
    opaq.op(f"{unique}_nothing(Tensor grad_y) -> ()")
    with pytest.raises(
        opaq.DeclarationError,
        match=rf"{unique}_nothing returns nothing; its results must be the gradients",
    ):
        op.backward(f"{unique}_nothing")
    opaq.op(f"{unique}_writes(Tensor(a!) grad_y) -> Tensor", outputs=opaq.like("grad_y"))
    with pytest.raises(
        opaq.DeclarationError,
        match=rf"{unique}_writes writes to `grad_y`, which autograd or the caller of {unique} "
        r"still holds",
    ):
        op.backward(f"{unique}_writes")


def test_keyword_only_arguments_are_differentiated(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, *, Tensor weight, float by=2.0) -> Tensor", outputs=opaq.like("x")
    )
    op.cpu(
        source="void f(const float* x, const float* w, double by, float* y) { *y = *x * *w * by; }",
        entry="f",
        args="x, weight, by, out",
    )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.by = inputs[2]

    op.backward(
        lambda ctx, grad: (
            grad * ctx.saved_tensors[1] * ctx.by,
            grad * ctx.saved_tensors[0] * ctx.by,
            None,
        ),
        setup_context=setup_context,
    )
    for call in (op, torch.compile(lambda x, weight: op(x, weight=weight), fullgraph=True)):
        x, weight = torch.tensor([3.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
        call(x, weight=weight).sum().backward()
        assert x.grad.tolist() == [10] and weight.grad.tolist() == [6]


def test_lists_of_tensors_in_a_custom_op(unique: str) -> None:
    @opaq.custom_op(unique, mutates_args=())
    def scaled(xs: list[torch.Tensor], by: float, *, shift: float = 0.0) -> list[torch.Tensor]:
        return [x * by + shift for x in xs]

    scaled.register_fake(lambda xs, by, shift=0.0: [torch.empty_like(x) for x in xs])

    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
    ) -> None:
        ctx.by = inputs[1]
        assert keyword_only_inputs == {"shift": 1.0}

    scaled.register_autograd(
        lambda ctx, grads: ([grad * ctx.by for grad in grads], None), setup_context=setup_context
    )
    a, b = torch.ones(2, requires_grad=True), torch.ones(3)
    first, second = scaled([a, b], 4.0, shift=1.0)
    assert first.requires_grad and second.tolist() == [5, 5, 5]
    (first.sum() + second.sum()).backward()
    assert a.grad.tolist() == [4, 4]


@pytest.mark.skipif(
    not hasattr(torch.Tag, "inplace"),
    reason="this torch has no tags for in-place and out functions",
)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_functions_that_return_what_they_write(unique: str, compiled: bool) -> None:
    @opaq.custom_op(unique + "_", mutates_args={"x"}, tags=torch.Tag.inplace)
    def add_(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.add_(y)

    @opaq.custom_op(unique + "_out", mutates_args={"out"}, tags=torch.Tag.out)
    def add_out(x: torch.Tensor, y: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(x + y)

    form = (lambda f: torch.compile(f, fullgraph=True)) if compiled else (lambda f: f)
    x, y, out = torch.ones(2), torch.full((2,), 2.0), torch.zeros(2)
    assert form(lambda x, y: add_(x, y))(x, y) is x and x.tolist() == [3, 3]
    assert form(lambda x, y: add_(add_(x, y), y))(x, y) is x and x.tolist() == [7, 7]
    assert form(lambda x, y, out: add_out(x, y, out=out))(x, y, out) is out
    x, out = torch.ones(2), torch.zeros(2)
    assert form(lambda x, y: add_(x, y) * 2)(x, y).tolist() == [6, 6] and x.tolist() == [3, 3]
    assert form(lambda x, y, out: add_out(x, y, out=out) + out)(x, y, out).tolist() == [
        10,
        10,
    ] and out.tolist() == [5, 5]

    z = torch.ones(2, requires_grad=True)
    with pytest.raises(
        RuntimeError,
        match=f"{unique}_ writes values to `x` that depend on `y`, which requires grad, but it has "
        "no gradient",
    ):
        form(lambda x, y: add_(x * 1, y * 1))(x, z)
    with pytest.raises(
        RuntimeError,
        match=rf"{unique}_out is an out variant \(torch.Tag.out\): functions with out=... "
        "arguments don't support automatic differentiation, but `x` requires grad",
    ):
        form(lambda x, y, out: add_out(x * 1, y, out=out))(z, y, out)
    add_.register_autograd(lambda ctx, grad: (grad, grad))
    w = torch.ones(2, requires_grad=True)
    form(lambda x, y: add_(x * 3, y).sin())(w, z).sum().backward()
    torch.testing.assert_close(w.grad, 3 * torch.full((2,), 4.0).cos())
    torch.testing.assert_close(z.grad, torch.full((2,), 4.0).cos())
