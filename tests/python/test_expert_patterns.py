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
