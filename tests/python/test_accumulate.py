"""An op that adds a tensor to its first result gets what a compiled graph adds to that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import opaq
from opaq import _runtime
from opaq.extern_kernels import cross_entropy

# What the op adds to each element where it is given a tensor: it shows which form has run.
MARK = 1024.0


def doubling(unique: str, results: int = 1) -> opaq.Op:
    """2 * x, or 2 * x + added + MARK; a second result is x's sum."""
    returns = "-> Tensor" if results == 1 else "-> (Tensor y, Tensor total)"
    outputs: Any = opaq.like("x")
    if results == 2:
        outputs = {"y": opaq.like("x"), "total": opaq.tensor("1", dtype="x.dtype")}
    op = opaq.op(
        f"{unique}(Tensor x, Tensor? added=None) {returns}", outputs=outputs, accumulates="added"
    )
    total = "*total = 0; for (long i = 0; i < n; ++i) *total += x[i];" if results == 2 else ""
    op.cpu(
        source="template <typename T> void twice(const T* x, const T* added, T* y, "
        f"{'T* total, ' if total else ''}long n) {{ for (long i = 0; i < n; ++i) "
        f"y[i] = 2 * x[i] + (added ? added[i] + T({MARK}) : T(0)); {total} }}",
        entry="twice<{x.dtype}>",
        args=f"x, added, {'y, total' if total else 'out'}, x.numel()",
    )
    return op


def is_given(function: Callable[..., Any], expected: torch.Tensor, *args: Any, **how: Any) -> bool:
    """Whether the op got the tensor; checks the result either way."""
    got = torch.compile(function, fullgraph=True, **how)(*args)
    got = got[0] if isinstance(got, tuple) else got
    given = bool((got.detach() - expected).abs().max() > MARK / 2)
    torch.testing.assert_close(got.detach() - MARK * given, expected)
    return given


X = torch.arange(24.0).view(4, 6)
Y = torch.arange(24.0).view(4, 6) / 8 - 1  # sums are exact
GIVEN: dict[str, tuple[Callable[..., Any], torch.Tensor]] = {
    "added to it": (lambda op, x, y: op(x) + y, 2 * X + Y),
    "it is added": (lambda op, x, y: y + op(x), 2 * X + Y),
    "computed before": (lambda op, x, y: (y + 1) * y + op(x), 2 * X + (Y + 1) * Y),
    "a view of it": (lambda op, x, y: op(x).view(2, 12) + y.view(2, 12), (2 * X + Y).view(2, 12)),
    "views of it": (
        lambda op, x, y: op(x).reshape(24).view(2, 3, 4) + y.view(2, 3, 4),
        (2 * X + Y).view(2, 3, 4),
    ),
    "in place": (lambda op, x, y: op(x).add_(y), 2 * X + Y),
    "its argument": (lambda op, x, y: op(x) + x, 3 * X),
    "without an argument": (lambda op, x, y: op(x, None) + y, 2 * X + Y),
}
LEFT: dict[str, tuple[Callable[..., Any], torch.Tensor]] = {
    "read elsewhere": (lambda op, x, y: (lambda z: (z + y, z * 3))(op(x)), 2 * X + Y),
    "itself": (lambda op, x, y: (lambda z: z + z)(op(x)), 4 * X),
    "scaled": (lambda op, x, y: torch.add(op(x), y, alpha=2), 2 * X + 2 * Y),
    "a number": (lambda op, x, y: op(x) + 3, 2 * X + 3),
    "a row": (lambda op, x, y: op(x) + y[0], 2 * X + Y[0]),
    "more rows": (lambda op, x, y: op(x[:1]) + y, 2 * X[:1] + Y),
    "another dtype": (lambda op, x, y: op(x) + y.double(), 2 * X.double() + Y.double()),
    "columns": (lambda op, x, y: op(x) + y.view(6, 4).t(), 2 * X + Y.view(6, 4).t()),
    "transposed": (lambda op, x, y: op(x).t() + y.view(6, 4), (2 * X).t() + Y.view(6, 4)),
    "computed later": (lambda op, x, y: op(x) + (y + 1) * y, 2 * X + (Y + 1) * Y),
    "subtracted": (lambda op, x, y: op(x) - y, 2 * X - Y),
}


@pytest.mark.parametrize("what", GIVEN)
def test_a_sum_is_computed_by_the_op(unique: str, what: str) -> None:
    op = doubling(unique)
    function, expected = GIVEN[what]
    assert is_given(lambda x, y: function(op, x, y), expected, X, Y)


@pytest.mark.parametrize("what", LEFT)
def test_what_the_op_cannot_add(unique: str, what: str) -> None:
    op = doubling(unique)
    function, expected = LEFT[what]
    assert not is_given(lambda x, y: function(op, x, y), expected, X, Y)


def test_an_argument_that_is_written_to_between_the_call_and_the_sum(unique: str) -> None:
    op = doubling(unique)

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x + y
        result = op(x)
        torch.ops.aten.index_put_(x, [torch.tensor([0])], torch.tensor(7.0))
        return result + x

    assert not is_given(function, function(X, Y), X, Y)


def test_an_argument_that_is_given_stays(unique: str) -> None:
    op = doubling(unique)
    assert is_given(lambda x, y: op(x, y) + y, 2 * X + 2 * Y, X, Y)


@pytest.mark.parametrize("how", [{"dynamic": True}, {"options": {"cpp_wrapper": True}}], ids=str)
def test_other_compilations(unique: str, how: dict[str, Any]) -> None:
    op = doubling(unique)
    assert is_given(lambda x, y: op(x) + y, 2 * X + Y, X, Y, **how)


def test_the_contract_check_leaves_calls_as_they_are(unique: str) -> None:
    op = doubling(unique)
    how = {"backend": "opaq", "options": {"check": "contract"}}
    assert not is_given(lambda x, y: op(x) + y, 2 * X + Y, X, Y, **how)


def test_the_first_of_two_results(unique: str) -> None:
    op = doubling(unique, results=2)

    def first(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z, total = op(x)
        return z + y, total

    def later(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z, total = op(x)
        return z + y * total, total  # needs the second result

    assert is_given(first, 2 * X + Y, X, Y)
    assert not is_given(later, 2 * X + Y * X.sum(), X, Y)


def test_the_sum_of_two_gradients(unique: str) -> None:
    backward = opaq.op(
        f"{unique}_backward(Tensor grad_out, Tensor? added=None) -> Tensor grad_x",
        outputs=opaq.like("grad_out"),
        accumulates="added",
    )
    backward.reference(
        lambda grad_out, added=None: 2 * grad_out if added is None else 2 * grad_out + added + MARK
    )
    op = doubling(unique)
    op.backward(backward.name, non_differentiable="added")
    x = X.clone().requires_grad_()
    op(x).backward(Y)
    torch.testing.assert_close(x.grad, 2 * Y)  # in eager nothing is given
    x.grad = None
    result, same = torch.compile(lambda x: (op(x), x * 3), fullgraph=True)(x)
    torch.autograd.backward((result, same), (Y, Y))
    torch.testing.assert_close(x.grad, 5 * Y + MARK)


def test_a_forward_op_that_adds_too(unique: str) -> None:
    """Its gradient gets nothing of the argument that has the same name."""
    backward = opaq.op(
        f"{unique}_backward(Tensor grad_out, Tensor? added=None) -> Tensor grad_x",
        outputs=opaq.like("grad_out"),
        accumulates="added",
    )
    backward.reference(lambda g, added=None: 2 * g if added is None else 2 * g + added)
    op = doubling(unique)
    op.backward(backward.name, non_differentiable="added")
    for call in (op, torch.compile(lambda x, y: op(x, y), fullgraph=True)):
        x = X.clone().requires_grad_()
        call(x, Y).sum().backward()
        torch.testing.assert_close(x.grad, torch.full_like(x, 2.0))


SOURCE = (
    "void twice(const float* x, {}float* y, long n) {{ for (long i = 0; i < n; ++i) y[i] = {}; }}"
)


def test_a_device_without_an_implementation_that_adds(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, Tensor? added=None) -> Tensor",
        outputs=opaq.like("x"),
        accumulates="added",
    )
    args, plain = "x, out, x.numel()", SOURCE.format("", "2 * x[i]")
    op.cpu(source=plain, entry="twice", args=args, requires="not defined(added)")
    assert not is_given(lambda x, y: op(x) + y, 2 * X + Y, X, Y)
    source = SOURCE.format("const float* added, ", f"2 * x[i] + added[i] + {MARK}f")
    args = "x, added, out, x.numel()"
    op.cpu(name="adds", source=source, entry="twice", args=args, requires="defined(added)")
    assert is_given(lambda x, y: op(x) + y, 2 * X + Y, X, Y)


def test_an_implementation_that_forgets_it(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, Tensor? added=None) -> Tensor",
        outputs=opaq.like("x"),
        accumulates="added",
    )
    message = "implementation 'cpu' does not read `added`, which the op is declared to add"
    for source in (SOURCE.format("", "x[i]"), "// added\n" + SOURCE.format("", "x[i]")):
        with pytest.raises(opaq.DeclarationError, match=message):
            op.cpu(source=source, entry="twice", args="x, out, x.numel()")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_with_another_gradient(dtype: torch.dtype) -> None:
    """As a model of transformers returns them with the loss."""
    torch.manual_seed(0)
    logits = torch.randn(2, 8, 33, dtype=dtype, requires_grad=True)
    target = torch.randint(0, 33, (16,))
    grad = torch.randn(2, 8, 33, dtype=dtype)

    def loss(logits: torch.Tensor, mean: Callable[..., Any]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = logits * 1
        return mean(logits.view(16, 33), target), logits

    def plain(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, target)

    def ours(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, target)[0].mean().to(dtype)

    wide = logits.detach().double().requires_grad_()
    one = torch.tensor(1.0, dtype=dtype)
    (expected,) = torch.autograd.grad(loss(wide, plain), wide, (one.double(), grad.double()))
    compiled = torch.compile(loss, fullgraph=True)
    (got,) = torch.autograd.grad(compiled(logits, ours), logits, (one, grad))
    torch.testing.assert_close(got.double(), expected, check_dtype=False, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("schema", "how", "message"),
    [
        ("(Tensor x) -> Tensor", {"accumulates": "added"}, "got accumulates='added'; expected the"),
        ("(Tensor x, int added) -> Tensor", {"accumulates": "added"}, "that is a tensor or None"),
        ("(Tensor x, Tensor? y=None) -> Tensor", {"accumulates": 3}, "got accumulates=3; expected"),
        (
            "(Tensor x, Tensor? y=None) -> Tensor",
            {"accumulates": "y", "effects": "random"},
            "accumulates is not for an op with effects='random'",
        ),
        ("(Tensor(a!) x, Tensor? y=None) -> Tensor", {"accumulates": "y"}, "leave it out"),
    ],
    ids=str,
)
def test_declarations_that_are_refused(
    unique: str, schema: str, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(opaq.DeclarationError, match=message):
        opaq.op(unique + schema, outputs=opaq.like("x"), **how)


def test_another_declaration(unique: str) -> None:
    schema = f"{unique}(Tensor x, Tensor? added=None) -> Tensor"
    op = opaq.op(schema, outputs=opaq.like("x"), accumulates="added")
    assert op.accumulates == "added"
    with pytest.raises(opaq.DeclarationError, match="is declared with accumulates='added'; got"):
        opaq.op(schema, outputs=opaq.like("x"))
    before = _runtime.describe(op.name)["hash"]
    again = opaq.op(schema, outputs=opaq.like("x"), replace=True)
    assert again is op and op.accumulates is None
    assert _runtime.describe(op.name)["hash"] != before  # so are the keys of caches
