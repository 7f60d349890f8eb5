"""Ops that take lists of floats, bools, strings and optional tensors. The reference is PyTorch's
arithmetic.
"""

from __future__ import annotations

import pathlib

import pytest
import torch
from forms import OPTIONS, run_package

import opaq

BLEND = """
struct Terms { const float* from[4]; float weight[4]; int used[4]; int count; };
void blend(const Terms t, const float* x, float first, bool last, long n, float* out) {
  for (long i = 0; i < n; ++i) {
    float sum = first * x[i] + (last ? 1 : 0);
    for (int k = 0; k < t.count; ++k)
      if (t.used[k]) sum += t.weight[k] * (t.from[k] ? t.from[k][i] : 1);
    out[i] = sum;
  }
}
"""


def blend_op(name: str, defaults: bool = False) -> opaq.Op:
    weights = "float[] weights" + "=[0.5, 2]" * defaults
    used = "bool[] used" + "=[True, True]" * defaults
    op = opaq.op(
        f"{name}(Tensor x, Tensor?[] terms, {weights}, {used}, *, str[] names) -> Tensor",
        outputs=opaq.like("x"),
        replace=True,
    )
    terms = opaq.struct(
        "Terms",
        **{"from": "[*terms, ...]"},
        weight="[*weights, ...]",
        used="[*(int32(1 if u else 0) for u in used), ...]",
        count="len(terms)",
    )
    op.cpu(
        source=BLEND,
        entry="blend",
        args=[terms, "x", "weights[0]", "used[-1]", "x.numel()", "out"],
        requires=[
            "all(w >= 0.0 for w in weights)",
            "all(n != 'wrong' for n in names)",
            "all(not defined(t) or t.numel() == x.numel() for t in terms)",
        ],
    )
    return op


def expected(x, terms, weights, used, names=()):  # type: ignore[no-untyped-def]
    out = weights[0] * x + used[-1]
    for term, weight, use in zip(terms, weights, used):
        out = out + weight * (1 if term is None else term) * use
    return out


def test_eager_and_through_the_dispatcher() -> None:
    op = blend_op("value_lists::eager")
    x, y = torch.randn(5), torch.randn(5)
    for terms in ([y, None], [None, None], (None, y)):
        for call in (op, torch.ops.value_lists.eager):
            out = call(x, list(terms), [0.25, 3.0], [True, False], names=["a", "b"])
            torch.testing.assert_close(out, expected(x, terms, [0.25, 3.0], [True, False]))
    torch.testing.assert_close(
        op(x, [y], [2], [True], names=[]),  # an int for a float
        expected(x, [y], [2.0], [True]),
    )


def test_defaults_and_empty_lists() -> None:
    op = blend_op("value_lists::defaults", defaults=True)
    x, y = torch.randn(5), torch.randn(5)
    for call in (op, torch.ops.value_lists.defaults):
        torch.testing.assert_close(
            call(x, [None, y], names=["a"]), expected(x, [None, y], [0.5, 2.0], [True, True])
        )
        torch.testing.assert_close(call(x, [], names=[]), 0.5 * x + 1)
    out = torch.vmap(lambda x: op(x, [], names=[]))(x[None])
    torch.testing.assert_close(out, (0.5 * x + 1)[None])


@pytest.mark.parametrize("form", OPTIONS)
def test_compiled(form: str) -> None:
    op = blend_op(f"value_lists::compiled_{form}")
    x, y = torch.randn(5), torch.randn(5)

    def f(x: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
        return op(x * 2, [None, y + 1], [0.5, scale], [True, True], names=["a"])

    compiled = torch.compile(f, fullgraph=True, **OPTIONS[form])
    for scale in (1.5, 2.5, 3.5):  # a float that changes becomes a symbol
        torch.testing.assert_close(compiled(x, y, scale), f(x, y, scale))


@pytest.mark.long
def test_package(tmp_path: pathlib.Path) -> None:
    op = blend_op("value_lists::package")

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x, [x + 1, None], [0.5, 2.0], [False, True], names=["a"])

    x = torch.randn(5)
    torch.testing.assert_close(run_package(Model(), x, tmp_path), Model()(x))


def test_a_reference_gets_the_lists() -> None:
    op = opaq.op(
        "value_lists::reference(Tensor x, Tensor?[] ys, float[] w) -> Tensor",
        outputs=opaq.like("x"),
        replace=True,
    )
    op.reference(lambda x, ys, w: x * sum(w) + sum(y for y in ys if y is not None))
    x = torch.randn(3)
    for call in (op, torch.compile(op, fullgraph=True)):
        torch.testing.assert_close(call(x, [None, x], [1.0, 2.0]), 4 * x)


def test_gradients_of_absent_items() -> None:
    op = opaq.op(
        "value_lists::gradient(Tensor x, Tensor?[] ys, float[] w) -> Tensor",
        outputs=opaq.like("x"),
        replace=True,
    )
    op.reference(lambda x, ys, w: x * w[0] + sum(y for y in ys if y is not None))

    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad * ctx.w, [None if y is None else grad for y in ctx.there], None

    def setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.w, ctx.there = inputs[2][0], [None if y is None else True for y in inputs[1]]

    op.backward(backward, setup_context=setup)
    for call in (op, torch.compile(op, fullgraph=True, backend="aot_eager")):
        x, y = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
        call(x, [None, y], [3.0]).sum().backward()
        torch.testing.assert_close(x.grad, torch.full((3,), 3.0))
        torch.testing.assert_close(y.grad, torch.ones(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": 2.0}, "argument `weights` is a float; expected a list of floats"),
        ({"names": "ab"}, "argument `names` is a str; expected a list of strs"),
        ({"used": None}, "argument `used` is None; expected a list of bools"),
        ({"terms": torch.ones(2)}, "argument `terms` is a Tensor; expected a list of torch.Tens"),
        ({"weights": [1.0, "a"]}, "argument `weights_1` is a str; expected a float"),
        ({"weights": [-1.0, 1.0]}, r"all\(w >= 0.0 for w in weights\)"),
        ({"weights": []}, "weights has 0 items"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    op = blend_op("value_lists::wrong")
    right = {"terms": [None, None], "weights": [1.0, 1.0], "used": [True, True], "names": ["a"]}
    with pytest.raises(opaq.LaunchError, match=message):
        op(torch.ones(2), **{**right, **arguments})


@pytest.mark.parametrize(
    ("type", "message"),
    [
        ("float?[]", "only a Tensor may be absent from a list"),
        ("float[]?", "write float\\[\\], and pass an empty list"),
        ("float[2]", "such a list has any length: write float\\[\\]"),
        ("Tensor(a!)?[]", "a tensor that is written cannot be absent"),
        ("complex[]", "complex"),
    ],
)
def test_refused_types(type: str, message: str) -> None:
    with pytest.raises(opaq.DeclarationError, match=message):
        opaq.op(f"value_lists::refused(Tensor x, {type} a) -> Tensor", outputs=opaq.like("x"))
