"""torch.vmap of ops without a rule of their own: a pointwise op takes the batch as one more
dimension, any other is called once for each sample. PyTorch's own arithmetic is the reference.
"""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from forms import OPTIONS, run_package
from torch import vmap
from torch.func import grad
from torch.testing import assert_close

import opaq

SOURCE = (
    "void f(const float* x, const float* w, float* out, long n) "
    "{ for (long i = 0; i < n; ++i) out[i] = x[i] * x[i] * w[i]; }"
)


def formula(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * x * w


@pytest.fixture(params=[(), torch.Tag.pointwise], ids=["looped", "folded"])
def op(unique: str, request: Any) -> opaq.Op:
    op = opaq.op(
        f"{unique}(Tensor x, Tensor w) -> Tensor", outputs=opaq.like("x"), tags=request.param
    )
    op.cpu(source=SOURCE, entry="f", args="x, w, out, x.numel()", requires="x.numel() == w.numel()")
    op.backward(
        lambda ctx, grad: (2 * ctx.x * ctx.w * grad, ctx.x * ctx.x * grad),
        setup_context=lambda ctx, inputs, output: vars(ctx).update(x=inputs[0], w=inputs[1]),
    )
    return op


CALLS: dict[str, Callable[[Any], Any]] = {
    "both": lambda f: vmap(f)(X, W),
    "other dimensions": lambda f: vmap(f, in_dims=(1, 0))(X.t().contiguous(), W),
    "result": lambda f: vmap(f, out_dims=1)(X, W),
    "one argument": lambda f: vmap(f, in_dims=(0, None))(X, W[0]),
    "none": lambda f: vmap(lambda unused: f(X, W))(torch.ones(2)),
    "nested": lambda f: vmap(vmap(f, in_dims=(1, None)), in_dims=(None, 0))(X, torch.ones(5, 3)),
    "no samples": lambda f: vmap(f)(X[:0], W[:0]),
    "of gradients": lambda f: vmap(grad(lambda x, w: f(x, w).sum()))(X, W),
    "gradients of": lambda f: grad(lambda x: vmap(f)(x, W).sum())(X),
}
X, W = torch.randn(3, 4), torch.randn(3, 4)


@pytest.mark.filterwarnings("ignore:.*has no rule for torch.vmap")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("compiled", [False, True])
def test_values(op: opaq.Op, call: str, compiled: bool) -> None:
    run = CALLS[call]
    run = torch.compile(run, fullgraph=True) if compiled else run
    assert_close(run(op), CALLS[call](formula))


def test_a_loop_is_announced_once(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.reference(torch.sin)
    with pytest.warns(UserWarning, match=rf"{unique} has no rule for torch.vmap .* here 3 times"):
        vmap(op)(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(vmap(op)(X), X.sin())


@pytest.mark.filterwarnings("ignore:.*has no rule for torch.vmap")
def test_written_lists_and_keyword_tensors(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor(a!) sum, Tensor[] xs, Tensor(b!)? seen, *, Tensor? more=None) -> ()"
    )

    @op.register_kernel("cpu")
    def _(sum: Any, xs: list[Any], seen: Any, *, more: Any = None) -> None:
        for x in xs:
            sum.add_(x)
        if more is not None:
            sum.add_(more)
        if seen is not None:
            seen.add_(1)

    total = torch.zeros(3, 4)

    def add(sum: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        op(sum, [x, w], None, more=w)
        return sum

    vmap(add)(total, X, W)
    assert_close(total, X + 2 * W)
    with pytest.raises(opaq.LaunchError, match="but not over `sum`, which the op writes"):
        vmap(lambda x: add(torch.zeros(4), x, x))(X)


@pytest.mark.filterwarnings("ignore:.*has no rule for torch.vmap")
def test_each_item_of_a_written_list_needs_the_batch(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!)[] xs) -> ()")
    op.register_kernel("cpu", lambda xs: [x.add_(1) for x in xs] and None)

    def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        op([x, y])
        return x

    x, y = torch.zeros(3, 4), torch.zeros(3, 4)
    vmap(add)(x, y)
    assert torch.equal(x, torch.ones(3, 4)) and torch.equal(y, x)
    with pytest.raises(opaq.LaunchError, match="but not over `xs`, which the op writes"):
        vmap(add, in_dims=(0, None))(x, torch.zeros(4))


@pytest.mark.filterwarnings("ignore:.*has no rule for torch.vmap")
def test_several_results(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> (Tensor a, Tensor b)",
        outputs={"a": opaq.like("x"), "b": opaq.tensor("x.size(0)", dtype="float32")},
    )
    op.reference(lambda x: (x + 1, x * 2))
    for rows in (X, X[:0]):
        assert_close(vmap(op)(rows), (rows + 1, rows * 2))


def test_a_rule_sees_each_level_of_a_nested_vmap(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.reference(lambda x: x * 2)
    sizes = []

    @op.register_vmap
    def _(info: Any, in_dims: Any, x: torch.Tensor) -> Any:
        sizes.append(info.batch_size)
        return op(x), in_dims[0]

    x = torch.randn(2, 3, 4)
    assert_close(vmap(vmap(op, in_dims=1, out_dims=1))(x), x * 2)
    assert sizes == [4, 2]


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (torch.ones(3), opaq.LaunchError, r"returned Tensor; expected the tuple \(results, out_"),
        ((torch.ones(3), (0, 0)), ValueError, "which has not the structure of its results"),
    ],
)
def test_wrong_rules(unique: str, returned: Any, error: type[Exception], message: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.register_vmap(lambda info, in_dims, x: returned)
    with pytest.raises(error, match=message):
        vmap(op)(X)


@pytest.mark.filterwarnings("ignore:.*has no rule for torch.vmap")
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_random_numbers(unique: str, batched: bool, compiled: bool) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"), effects="random")
    op.reference(torch.rand_like)

    def sample(x: torch.Tensor) -> torch.Tensor:
        return op(x[:1]) if batched else op(W[0, :1]) + 0 * x[:1]

    def draws(randomness: str) -> int:
        run = vmap(sample, randomness=randomness)
        return (torch.compile(run) if compiled else run)(X).unique().numel()

    assert draws("different") == 3
    if not batched:
        assert draws("same") == 1
    for randomness in ("error", "same")[: 1 + batched]:
        with pytest.raises(Exception, match=rf"with randomness=\\*'{randomness}"):
            draws(randomness)


@pytest.mark.long
@pytest.mark.parametrize(
    "tags",
    [pytest.param((), marks=pytest.mark.life), torch.Tag.pointwise],
    ids=["each sample", "pointwise"],
)
@pytest.mark.filterwarnings("ignore:.*has no rule for torch.vmap")
def test_vmap_in_a_cpp_wrapper_and_a_package(
    unique: str, tags: Any, tmp_path: pathlib.Path
) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"), tags=tags)
    op.cpu(
        source="void f(const float* x, float* y, long n) { for (long i = 0; i < n; ++i) "
        "y[i] = 2 * x[i]; }",
        entry="f",
        args="x, out, x.numel()",
    )

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return vmap(op)(x) + 1

    x = torch.randn(3, 2)
    assert_close(torch.compile(Model(), fullgraph=True, **OPTIONS["cpp"])(x), x * 2 + 1)
    assert_close(run_package(Model(), x, tmp_path), x * 2 + 1)
