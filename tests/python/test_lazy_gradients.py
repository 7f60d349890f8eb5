"""Gradients of results that are returned beside a loss: computed only if they are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.utils import run_fw_bw_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode

import opaq
from opaq import lazy_gradients
from opaq.extern_kernels import silu_mul
from opaq.lowering.compat.pytorch.effects import can_run_again

Tensor = torch.Tensor


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small results stand for large ones."""
    monkeypatch.setattr(lazy_gradients, "LARGE", 64)


class Model(torch.nn.Module):
    def __init__(self, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(8) if norm else torch.nn.Identity()
        self.head = torch.nn.Linear(8, 32)
        self.dropout = dropout

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(F.dropout(self.norm(x), self.dropout))
        return F.cross_entropy(logits, target), logits


def operands(rows: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 8, requires_grad=True), torch.randint(32, (rows,))


def is_lazy(result: Tensor) -> bool:
    return type(result.grad_fn).__name__ == "_GradientBackward"


def compile_with_opaq(model: Any, **settings: Any) -> Any:
    options = {"substitute": "none", **settings.pop("options", {})}
    return torch.compile(model, backend="opaq", options=options, **settings)


TOTALS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the loss": lambda loss, logits: loss,
    "the logits": lambda loss, logits: logits.square().sum(),
    "both": lambda loss, logits: loss * 2 + logits[:, 3].exp().sum(),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("asked", TOTALS)
def test_gradients_are_those_of_eager(asked: str, dynamic: bool) -> None:
    model = Model()
    compiled = compile_with_opaq(model, dynamic=dynamic, fullgraph=True)
    for rows, what in [(6, asked), (6, "both"), (9 if dynamic else 6, "the logits"), (6, asked)]:
        x, target = operands(rows)
        trained = [x, *model.parameters()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = compiled(x, target)
            found = torch.autograd.grad(TOTALS[what](*results), trained)
        expected = model(x, target)
        torch.testing.assert_close(results, expected)
        torch.testing.assert_close(found, torch.autograd.grad(TOTALS[what](*expected), trained))


def test_the_backward_graph_gets_no_gradient_of_the_logits() -> None:
    model, (x, target) = Model(), operands()
    for lazy in (True, False):
        torch.compiler.reset()
        compiled = compile_with_opaq(model, options={"lazy_gradients": lazy})
        _, (_, back) = run_fw_bw_and_get_code(lambda: compiled(x, target)[0])  # noqa: B023
        assert ("tangents_2" in back) == (not lazy)


def test_explain_shows_the_backward_graph_that_is_compiled() -> None:
    for lazy, added in [(True, "None"), (False, "float32[6, 32] strides [32, 1]")]:
        options = {"substitute": ["cross_entropy"], "lazy_gradients": lazy}
        explained = opaq.explain(compile_with_opaq(Model(), options=options), *operands())
        back = [graph for graph in explained.graphs if graph.kind == "backward"]
        (node,) = [node for graph in back for node in graph.nodes]
        assert node.op == "opaq_kernels::cross_entropy_backward"
        assert node.arguments["added"] == added


@pytest.mark.filterwarnings("ignore:result 1 of a compiled graph")
def test_they_have_no_gradients_themselves() -> None:
    """Left out without a word, a penalty of gradients would be missing in those of the weight."""
    model, (x, target) = Model(), operands()
    compiled = compile_with_opaq(model)
    for once in (True, False):
        loss, logits = compiled(x, target)
        (grad,) = torch.autograd.grad(logits.square().sum(), x, create_graph=True)
        expected = torch.autograd.grad(model(x, target)[1].square().sum(), x)[0]
        torch.testing.assert_close(grad.detach(), expected)
        assert grad.requires_grad
        if once:
            with pytest.raises(RuntimeError, match="does not support double backward"):
                (loss + grad.square().sum()).backward()


def test_once_asked_for_they_are_compiled() -> None:
    model, (x, target) = Model(), operands()
    compiled = compile_with_opaq(model)
    _, logits = compiled(x, target)
    assert is_lazy(logits) and logits.requires_grad
    message = "result 1 of a compiled graph was differentiated beside its loss"
    with pytest.warns(UserWarning, match=message):
        logits.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, logits = compiled(x, target)
        assert not is_lazy(logits)
        logits.sum().backward()
        assert not is_lazy(compiled(x, target)[1])


def test_accumulated_gradients_of_both() -> None:
    model, (x, target) = Model(), operands()
    loss, logits = compile_with_opaq(model)(x, target)
    loss.backward()
    with pytest.warns(UserWarning):
        logits.sum().backward()
    found = [each.grad for each in model.parameters()]
    expected = model(x, target)
    total = expected[0] + expected[1].sum()
    torch.testing.assert_close(found, list(torch.autograd.grad(total, list(model.parameters()))))


def test_without_gradients_nothing_is_added() -> None:
    model, (x, target) = Model(), operands()
    compiled = compile_with_opaq(model)
    compiled(x, target)
    with torch.no_grad():
        loss, logits = compiled(x, target)
    assert not loss.requires_grad and not logits.requires_grad


def test_logits_that_are_changed_in_place() -> None:
    """As without: what the backward pass needs is missed, and not computed from other numbers."""
    model, (x, target) = Model(), operands()
    for lazy in (True, False):
        torch.compiler.reset()
        loss, logits = compile_with_opaq(model, options={"lazy_gradients": lazy})(x, target)
        logits.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_parameter_that_changed_before_they_were_asked_for() -> None:
    model, (x, target) = Model(), operands()
    _, logits = compile_with_opaq(model)(x, target)
    with torch.no_grad():
        model.head.weight.add_(1)
    message = "an input of the graph, such as a parameter, had been modified by an inplace"
    with pytest.raises(RuntimeError, match=message):
        logits.sum().backward()


def test_hooks_of_saved_tensors_see_no_parameter_more() -> None:
    model, (x, target) = Model(), operands()
    saved: dict[bool, list[Any]] = {True: [], False: []}
    for lazy, found in saved.items():
        torch.compiler.reset()
        compiled = compile_with_opaq(model, options={"lazy_gradients": lazy})
        compiled(x, target)
        keep: Callable[[Tensor], Tensor] = lambda t: found.append(t.shape) or t  # noqa: B023, E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            compiled(x, target)
    assert len(saved[True]) == len(saved[False]) > 0


def test_an_input_that_counts_no_writes() -> None:
    model, (x, target) = Model(), operands()
    with torch.inference_mode():
        offset = torch.ones(6, 1)

    def program(x: Tensor, target: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.head(x) + offset
        return F.cross_entropy(logits, target), logits

    loss, logits = compile_with_opaq(program)(x, target, offset)
    assert is_lazy(logits)
    with pytest.warns(UserWarning):
        (loss + logits.sum()).backward()


def custom(x: Tensor) -> Tensor:
    return silu_mul(x, x)


def attention(x: Tensor, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(*[x.view(1, 2, 3, 32)] * 3, dropout_p=dropout)


def weighted(results: Any) -> Tensor:
    return sum((each * torch.linspace(-1, 2, each.numel()).view_as(each)).sum() for each in results)


LEFT: dict[str, Callable[[Tensor, Tensor, torch.nn.Module], Any]] = {
    "no loss": lambda x, w, m: (x @ w, (x @ w).square()),
    "a loss that does not depend on it": lambda x, w, m: (x.sum(), x @ w),
    "a view of another result": lambda x, w, m: ((y := x @ w).sum(), y, y.t()),
    "an input": lambda x, w, m: ((x @ w).sum(), x.view(-1)),
    "small": lambda x, w, m: ((y := (x @ w)[:1, :8]).sum(), y),
    "without a gradient": lambda x, w, m: ((y := (x @ w).detach()).sum() + w.sum(), y),
    "dropout": lambda x, w, m: ((y := F.dropout(x @ w)).sum(), y),
    "random numbers": lambda x, w, m: ((y := x @ w + torch.rand(32)).sum(), y),
    "random attention": lambda x, w, m: ((y := attention(x @ w, 0.5)).sum(), y),
    "a buffer is written": lambda x, w, m: ((y := m(x) @ w).sum(), y),
    "a custom op": lambda x, w, m: ((y := custom(x @ w)).sum(), y),
}
TAKEN: dict[str, Callable[[Tensor, Tensor, torch.nn.Module], Any]] = {
    "a product": lambda x, w, m: ((y := x @ w).sum(), y),
    "attention": lambda x, w, m: ((y := attention(x @ w, 0.0)).sum(), y),
    "dropout of nothing": lambda x, w, m: ((y := F.dropout(x @ w, 0.0)).sum(), y),
    "memory of its own is written": lambda x, w, m: ((y := (x @ w).mul_(2)).sum(), y),
    "two of them": lambda x, w, m: ((y := x @ w).sum() + (z := y.exp()).sum(), y, z),
}


@pytest.mark.parametrize("case", [*LEFT, *TAKEN])
def test_which_graphs_are_taken(case: str) -> None:
    program = {**LEFT, **TAKEN}[case]
    norm = torch.nn.BatchNorm1d(8)
    x, w = (torch.randn(size).mul(0.3).requires_grad_() for size in ((6, 8), (8, 32)))
    results = compile_with_opaq(lambda x, w: program(x, w, norm))(x, w)
    large = [each for each in results if each.dim() > 0]
    assert [is_lazy(each) for each in large] == [case in TAKEN] * len(large)
    if case in TAKEN:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.autograd.grad(weighted(results), [x, w])
        expected = torch.autograd.grad(weighted(program(x, w, norm)), [x, w])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("asked", TOTALS)
@pytest.mark.parametrize("inside", [False, True])
def test_under_autocast(asked: str, inside: bool) -> None:
    """The backward pass is outside of it, and the graph runs again as it was traced."""
    model, (x, target) = Model(), operands()

    def step(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if not inside:
            return model(x, target)
        with torch.autocast("cpu", torch.bfloat16):
            return model(x, target)

    compiled = compile_with_opaq(step)
    trained = [x, *model.parameters()]

    def gradients_of(function: Any, lazy: bool | None = None) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
            results = function(x, target)
        assert results[1].dtype == torch.bfloat16
        assert lazy is None or is_lazy(results[1]) == lazy
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.autograd.grad(TOTALS[asked](*results), trained)

    expected = gradients_of(step)
    for lazy in (True, asked == "the loss"):
        found = gradients_of(compiled, lazy)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_what_cannot_be_traced_is_not_taken() -> None:
    graph = torch.fx.symbolic_trace(lambda x: x.exp())
    assert not can_run_again(graph, [torch.ones(3)])  # no fake tensor
    assert not can_run_again(graph, [])
    with FakeTensorMode():
        assert can_run_again(graph, [torch.ones(3)])
        assert not can_run_again(graph, [torch.ones(3), 1])  # it raises
