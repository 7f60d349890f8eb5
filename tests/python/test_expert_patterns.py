"""The rows of experts put back in the order of tokens and added, as models write it. Graphs run
eagerly here."""

from __future__ import annotations

from typing import Any

import pytest
import substituting
import torch
from torch import Tensor

from opaq.extern_kernels import load_patterns
from opaq.lowering.substitute import apply

load_patterns()
EXPERTS = torch.stack([torch.randperm(8)[:3] for _ in range(10)])


def compared(function: Any, k: int = 3, dtype: torch.dtype = torch.float64) -> list[str]:
    """The patterns that are replaced; results and gradients are compared with eager's."""
    torch.manual_seed(0)
    x, weights = torch.randn(10, 4, dtype=dtype), torch.rand(10, k, dtype=torch.float32)
    arguments = [x.requires_grad_(), weights.requires_grad_()]

    def called(call: Any) -> list[Tensor]:
        result = call(*arguments, EXPERTS[:, :k].contiguous())
        return [result.detach(), *torch.autograd.grad(result.sin().sum(), arguments)]

    torch.compiler.reset()
    with apply.collected() as found:
        backend = substituting.backend("moe_combine", "moe_permute")
        ours = called(torch.compile(function, backend=backend))
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(ours, called(function), **tolerance)
    return [each.pattern for each in found if each.applied]


@pytest.mark.parametrize("others", [(), (-1,), (8,), (-1, 8)])
def test_numbers_that_are_no_experts_are_where_a_sort_has_them(others: tuple[int, ...]) -> None:
    def permuted(x: Tensor, experts: Tensor) -> tuple[Tensor, ...]:  # transformers: grouped_mm
        in_order, order = torch.sort(experts.reshape(-1))
        counts = torch.histc(in_order.float(), bins=8, min=0, max=7)
        return x[order // 3], order, torch.cumsum(counts, dim=0, dtype=torch.int32), in_order

    experts = EXPERTS.clone()
    for number, other in enumerate(others):
        experts[number::3, number] = other
    torch.compiler.reset()
    x = torch.randn(10, 4)
    with apply.collected() as found:
        backend = substituting.backend("moe_permute")
        rows, order, ends, in_order = torch.compile(permuted, backend=backend)(x, experts)
    assert [each.applied for each in found] == [True]
    expected, stable = experts.flatten().sort(stable=True)
    assert torch.equal(in_order, expected) and torch.equal(order, stable)
    assert torch.equal(rows, x[stable // 3])
    assert torch.equal(ends, permuted(x, experts)[2])


def test_several_numbers_that_are_no_experts_are_in_the_order_of_tokens() -> None:
    def permuted(x: Tensor, experts: Tensor) -> tuple[Tensor, ...]:
        in_order, order = torch.sort(experts.reshape(-1))
        counts = torch.histc(in_order.float(), bins=4, min=0, max=3)
        return x[order // 2], order, torch.cumsum(counts, dim=0, dtype=torch.int32), in_order

    torch.manual_seed(0)
    torch.compiler.reset()
    x, experts = torch.randn(40, 8), torch.randint(-3, 7, (40, 2))
    backend = substituting.backend("moe_permute")
    rows, order, ends, in_order = torch.compile(permuted, backend=backend)(x, experts)
    flat = experts.flatten()
    group = flat.clamp(-1, 4)  # one of all below, and one of all above
    assert torch.equal(order, torch.sort(group, stable=True)[1])
    assert torch.equal(rows, x[order // 2]) and torch.equal(in_order, flat[order])
    assert torch.equal(ends, permuted(x, experts)[2])
    for each in range(4):  # the experts have the rows that a sort gives them
        assert torch.equal(torch.nonzero(in_order == each), torch.nonzero(flat.sort()[0] == each))


def test_counts_of_one_expert_are_left() -> None:
    """torch.histc with equal limits takes the least and the largest value as limits."""

    def permuted(x: Tensor, experts: Tensor) -> tuple[Tensor, ...]:
        in_order, order = torch.sort(experts.reshape(-1))
        counts = torch.histc(in_order.float(), bins=1, min=0, max=0)
        return x[order // 1], order, torch.cumsum(counts, dim=0, dtype=torch.int32), in_order

    torch.compiler.reset()
    arguments = torch.randn(2, 4), torch.tensor([[0], [-1]])
    with apply.collected() as found:
        ours = torch.compile(permuted, backend=substituting.backend("moe_permute"))(*arguments)
    assert [each.applied for each in found] == [False]
    torch.testing.assert_close(ours, permuted(*arguments))


def deepseek(x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    idxs = experts.view(-1).argsort()
    outs = x[idxs // experts.shape[1]] * 2
    new_x = torch.empty_like(outs)
    new_x[idxs] = outs
    return (
        new_x.view(*experts.shape, -1)
        .type(weights.dtype)
        .mul_(weights.unsqueeze(dim=-1))
        .sum(dim=1)
        .type(new_x.dtype)
    )


def torchtitan(x: Tensor, weights: Tensor, experts: Tensor, before: bool = False) -> Tensor:
    k = experts.shape[1]
    order = torch.argsort(experts.view(-1), stable=True)
    rows = x[order // k]
    if before:
        rows = (rows.float() * weights.view(-1)[order].reshape(-1, 1)).to(x.dtype)
    output = rows * 2
    unsorted = torch.zeros((x.shape[0] * k, x.shape[1]), dtype=output.dtype, device=x.device)
    unsorted[order] = output
    unsorted = unsorted.reshape(-1, k, x.shape[1])
    if before:
        return unsorted.sum(dim=1) + 0 * weights.sum()
    return torch.bmm(weights.reshape(-1, 1, k), unsorted.float()).to(x.dtype).squeeze(1)


def torchtitan_before(x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    return torchtitan(x, weights, experts, before=True)


@pytest.mark.parametrize("layer", [deepseek, torchtitan, torchtitan_before])
def test_rows_of_tokens_are_added(layer: Any) -> None:
    for k in (1, 2, 3):
        assert compared(layer, k, torch.float32) == ["moe_combine"]
    assert compared(layer, 3, torch.bfloat16) == ["moe_combine"]


def partly(x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    """Zeros that are not all written."""
    index = experts.reshape(-1)
    rows = torch.zeros(30, 4, dtype=x.dtype)
    rows[index] = x.repeat(3, 1)
    return (rows.view(-1, 3, 4) * weights.unsqueeze(-1)).sum(1)


def of_a_larger_tensor(x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    order = experts.reshape(-1).argsort()
    rows = torch.zeros(60, 4, dtype=x.dtype)
    rows[order] = x.repeat(3, 1)
    return (rows[:30].view(-1, 3, 4) * weights.unsqueeze(-1)).sum(1)


def added(x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    order = experts.reshape(-1).argsort()
    rows = torch.ones(30, 4, dtype=x.dtype)
    rows[order] = x.repeat(3, 1)
    rows = rows.view(3, 10, 4)
    return (rows * weights.t().unsqueeze(-1)).sum(0)


@pytest.mark.parametrize("layer", [partly, of_a_larger_tensor, added])
def test_other_rows_are_left(layer: Any) -> None:
    assert compared(layer, dtype=torch.float32) == []


def test_a_tensor_that_is_read_before_a_write_keeps_its_values() -> None:
    def layer(x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
        rows = x * 2
        same = rows.type(x.dtype)  # the same memory
        before = rows + weights.sum()
        same.mul_(3)
        return before + rows

    assert compared(layer, dtype=torch.float32) == []


class Looped(torch.nn.Module):
    """Experts one after the other, each with the tokens that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(4, 3)
        self.experts = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.topk(self.gate(x).softmax(-1), 2)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, token, expert(x[token]) * weights[token, place, None])
        return out


@pytest.mark.parametrize("captured", [False, True])
def test_loops_over_experts_are_left(captured: bool) -> None:
    """Also where their sizes, which depend on values, are symbols of one graph."""
    torch.manual_seed(0)
    model, x = Looped(), torch.randn(10, 4)
    torch.compiler.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=captured):
        compiled = torch.compile(model, backend="opaq", options={"substitute": ["moe_route"]})
        with apply.collected() as found:
            result = compiled(x)
        gradients = torch.autograd.grad(result.sin().sum(), list(model.parameters()))
    assert {each.pattern for each in found if each.applied} <= {"moe_route"}
    expected = model(x)
    torch.testing.assert_close(result, expected)
    expected = torch.autograd.grad(expected.sin().sum(), list(model.parameters()))
    torch.testing.assert_close(gradients, expected)
