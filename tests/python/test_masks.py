"""Masks that are true nowhere are no reason to read and write a tensor once more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import substituting
import torch

import opaq
from opaq.lowering.substitute.operations import function_name

Tensor = torch.Tensor
FILLS = ("masked_fill", "masked_fill_")
EXPERTS, K = 4, 2


def compared(function: Callable[..., Any], *arguments: Any) -> int:
    """How many masks are left; results are compared with eager's."""
    left = []
    backend = substituting.backend(
        "silu_mul",
        seen=lambda graph: left.append(sum(function_name(node) in FILLS for node in graph.nodes)),
    )
    torch.compiler.reset()
    expected = function(*(each.clone() for each in arguments))
    found = torch.compile(function, backend=backend)(*(each.clone() for each in arguments))
    torch.testing.assert_close(found, expected)
    return left[0]


def chosen(scores: Tensor) -> Tensor:
    return torch.topk(scores, K, dim=-1)[1]


def of_experts(x: Tensor, weight: Tensor, experts: Tensor, count: int = EXPERTS) -> Tensor:
    """As transformers writes a layer whose experts may be on other devices."""
    in_order, order = torch.sort(experts.reshape(-1))
    rows = x[order // K]
    mask = (in_order >= count).unsqueeze(-1)
    in_order.clamp_(max=count - 1)
    rows.masked_fill_(mask, 0.0)
    return (rows @ weight).masked_fill(mask, 0.0) * in_order.unsqueeze(-1)


def softmax_router(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    probabilities, experts = torch.topk(scores.softmax(-1), K, dim=-1)
    probabilities /= probabilities.sum(-1, keepdim=True)
    return of_experts(x, weight, experts) * probabilities.square().sum()


def sigmoid_router(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    return of_experts(x, weight, chosen(scores.sigmoid()))


def greater(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    return (x @ weight).masked_fill(chosen(scores)[:, :1] > EXPERTS - 1, 1.0)


def selected(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    experts = chosen(scores).flatten().index_select(0, torch.arange(x.size(0), device=x.device))
    return (x @ weight).float().masked_fill((experts >= EXPERTS).unsqueeze(1), 1.0)


@pytest.fixture
def values() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 8), torch.randn(8, 8), torch.randn(6, EXPERTS)


@pytest.mark.parametrize("function", [softmax_router, sigmoid_router, greater, selected])
def test_experts_that_topk_chose_among_all(function: Callable[..., Tensor], values: Any) -> None:
    assert compared(function, *values) == 0


def test_gradients_and_compiled_results(values: Any) -> None:
    def gradients(call: Callable[..., Tensor]) -> list[Tensor]:
        given = [each.double().requires_grad_() for each in values]
        result = call(*given)
        result.square().sum().backward()
        return [result, *(each.grad for each in given if each.grad is not None)]

    compiled = torch.compile(softmax_router, backend="opaq", options={"substitute": "all"})
    for found, expected in zip(gradients(compiled), gradients(softmax_router), strict=True):
        torch.testing.assert_close(found, expected)


def given_experts(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    return of_experts(x, weight, (scores[:, :K] * 10).long().abs())


def of_more_classes(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    return of_experts(x, weight, chosen(scores), EXPERTS - 1)


def written(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    experts = chosen(scores)
    experts.add_(1)
    return of_experts(x, weight, experts)


def read_twice(x: Tensor, weight: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    rows = x @ weight
    filled = rows.masked_fill(chosen(scores)[:, :1] >= EXPERTS, 0.0)
    return rows, filled.add_(1)


def of_an_argument(x: Tensor, weight: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    filled = x.masked_fill(chosen(scores)[:, :1] >= EXPERTS, 0.0)
    return filled.add_(1), x * 2


def wider(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    return (x[:1] @ weight).masked_fill(chosen(scores)[:, :1] >= EXPERTS, 0.0)


def from_values(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    return (x @ weight).masked_fill(torch.topk(scores * 9, K)[0][:, :1] >= EXPERTS, 0.0)


def written_mask(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    mask = chosen(scores)[:, :1] >= EXPERTS
    mask |= scores[:, :1] > 0
    return (x @ weight).masked_fill(mask, 0.0)


def written_view_of_a_mask(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    mask = chosen(scores)[:, :1] >= EXPERTS
    mask.detach().logical_or_(scores[:, :1] > 0)
    return (x @ weight).masked_fill(mask, 0.0)


def written_part_of_a_mask(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    mask = chosen(scores) >= EXPERTS
    mask.chunk(2, dim=1)[0].logical_or_(scores[:, :1] > 0)
    return (x @ weight).masked_fill(mask[:, :1], 0.0)


def written_copy_of_a_mask(x: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    mask = (chosen(scores)[:, :1] >= EXPERTS)[torch.arange(len(scores))]
    mask.logical_or_(scores[:, :1] > 0)
    return (x @ weight).masked_fill(mask, 0.0)


@pytest.mark.parametrize(
    "function",
    [
        given_experts,
        of_more_classes,
        written,
        written_mask,
        written_view_of_a_mask,
        written_part_of_a_mask,
        written_copy_of_a_mask,
        read_twice,
        of_an_argument,
        wider,
        from_values,
    ],
)
def test_masks_that_stay(function: Callable[..., Any], values: Any) -> None:
    assert compared(function, *values) > 0


def test_nothing_is_removed_where_nothing_is_substituted(values: Any) -> None:
    compiled = torch.compile(sigmoid_router, backend="opaq", options={"substitute": "none"})
    torch.testing.assert_close(compiled(*values), sigmoid_router(*values))
    assert not opaq.explain(compiled, *values).substitutions
