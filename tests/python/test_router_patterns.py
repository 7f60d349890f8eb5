"""Routers by scores as models write them: what is found, how it is told to the op, what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from opaq.extern_kernels import load_patterns
from opaq.lowering.record import Substitution
from opaq.lowering.substitute import apply

load_patterns()
NAMES = ["moe_route", "moe_route_unnormalized", "moe_route_scored", "moe_scores"]
NAMES += ["moe_permute", "moe_combine"]
generator = torch.Generator().manual_seed(0)
LOGITS = torch.randn(40, 12, generator=generator)
BIAS = torch.randn(12, generator=generator).abs()


def compared(function: Any, *arguments: Tensor) -> tuple[list[Substitution], list[Any]]:
    """(the places, the nodes of the changed graph); its results and gradients are eager's."""
    places: list[Substitution] = []
    nodes: list[Any] = []

    def backend(module: Any, _: Any) -> Any:
        with apply.collected() as found:
            apply.apply(module, NAMES)
        places.extend(found)
        nodes.extend(module.graph.nodes)
        return module

    def called(call: Any) -> list[Tensor]:
        leaf = arguments[0].detach().requires_grad_()
        results = call(leaf, *arguments[1:])
        results = results if isinstance(results, tuple) else (results,)
        total = sum((each * 3).sin().sum() for each in results if each.requires_grad)
        return [*(each.detach() for each in results), *torch.autograd.grad(total, leaf)]

    torch.compiler.reset()
    for result, expected in zip(
        called(torch.compile(function, backend=backend)), called(function), strict=True
    ):
        if not expected.is_floating_point():
            result, expected = result.sort(-1)[0], expected.sort(-1)[0]
        torch.testing.assert_close(result, expected)
    return places, nodes


def router(groups: int, kept: int, fill: float, k: int = 3) -> Any:
    """DeepSeek-V3's."""

    def route(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.sigmoid()
        by = scores + bias
        of_group = by.view(-1, groups, 12 // groups).topk(2, dim=-1)[0].sum(dim=-1)
        best = torch.topk(of_group, k=kept, dim=-1, sorted=False)[1]
        mask = torch.zeros_like(of_group)
        mask.scatter_(1, best, 1)
        mask = mask.unsqueeze(-1).expand(-1, groups, 12 // groups).reshape(-1, 12)
        by = by.masked_fill(~mask.bool(), fill)
        experts = torch.topk(by, k=k, dim=-1, sorted=False)[1]
        weights = scores.gather(1, experts)
        weights /= weights.sum(dim=-1, keepdim=True) + 1e-20
        return weights * 2.5, experts

    return route


def deepseek(groups: int, kept: int, fill: float, k: int = 3) -> Any:
    """In the code that DeepSeek publishes."""

    def route(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.sigmoid()
        original_scores = scores
        scores = scores + bias
        scores = scores.view(logits.size(0), groups, -1)
        group_scores = scores.topk(2, dim=-1)[0].sum(dim=-1)
        indices = group_scores.topk(kept, dim=-1)[1]
        mask = scores.new_ones(logits.size(0), groups, dtype=torch.bool)
        mask.scatter_(1, indices, False)
        scores = scores.masked_fill_(mask.unsqueeze(-1), fill).flatten(1)
        indices = torch.topk(scores, k, dim=-1)[1]
        weights = original_scores.gather(1, indices)
        weights /= weights.sum(dim=-1, keepdim=True)
        weights *= 2.5
        return weights, indices

    return route


def of_the_hub(groups: int, kept: int, fill: float, k: int = 3) -> Any:
    """In the code that comes with its weights."""

    def route(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        n = logits.shape[0]
        scores = logits.sigmoid()
        by = scores.view(n, -1) + bias.unsqueeze(0)
        group_scores = by.view(n, groups, -1).topk(2, dim=-1)[0].sum(dim=-1)
        group_idx = torch.topk(group_scores, k=kept, dim=-1, sorted=False)[1]
        group_mask = torch.zeros_like(group_scores)
        group_mask.scatter_(1, group_idx, 1)
        score_mask = group_mask.unsqueeze(-1).expand(n, groups, 12 // groups).reshape(n, -1)
        tmp_scores = by.masked_fill(~score_mask.bool(), fill)
        _, topk_idx = torch.topk(tmp_scores, k=k, dim=-1, sorted=False)
        weights = scores.gather(1, topk_idx)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * 2.5, topk_idx

    return route


def deepseek_v4(normalize: bool, safely: bool) -> Any:
    """Scores are the roots of softplus; there are no groups."""

    def route(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.nn.functional.softplus(logits).sqrt()
        experts = torch.topk(scores + bias, k=3, dim=-1, sorted=False)[1]
        weights = scores.gather(1, experts)
        if normalize:
            total = weights.sum(dim=-1, keepdim=True)
            weights = weights / (total + 1e-20 if safely else total) * 1.5
        return weights, experts

    return route


def in_order(route: Any) -> Any:
    """With the weights in order: that of the choice is free."""

    def ordered(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = route(logits, bias)
        return weights.sort(-1)[0], experts

    return ordered


def arguments_of_route(nodes: list[Any]) -> tuple[Any, ...]:
    (call,) = [node for node in nodes if "moe_route" in str(node.target)]
    return call.args


@pytest.mark.parametrize("normalize, safely", [(True, True), (True, False), (False, False)])
def test_roots_of_softplus(normalize: bool, safely: bool) -> None:
    route = deepseek_v4(normalize, safely)
    places, nodes = compared(in_order(route), LOGITS, BIAS)
    assert [each.applied for each in places] == [True]
    _, k, *how, scale = arguments_of_route(nodes)
    assert (k, *how[:2], scale) == (3, normalize, "sqrt_softplus", 1.5 if normalize else 1.0)

    def halved(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.nn.functional.softplus(logits, beta=2.0).sqrt()
        experts = torch.topk(scores + bias, k=3, dim=-1)[1]
        return scores.gather(1, experts), experts

    assert compared(in_order(halved), LOGITS, BIAS)[0] == []


@pytest.mark.parametrize("shape", [(12, 1), ()])
def test_a_bias_that_is_not_of_experts_is_left(shape: tuple[int, ...]) -> None:
    """As many tokens as experts, so that [tokens, 1] has a number for each expert, too."""
    logits, bias = torch.randn(12, 12), torch.randn(shape)
    places, _ = compared(in_order(deepseek_v4(True, True)), logits, bias)
    assert {each.reason for each in places} == {"the bias has not one number for each expert"}


@pytest.mark.parametrize("fill", [-torch.inf, 0.0])
def test_what_other_groups_score(fill: float) -> None:
    places, nodes = compared(in_order(router(3, 1, fill)), LOGITS, BIAS)
    assert [each.applied for each in places] == [True]
    _, k, normalize, scoring, _, *choice, eps, scale = arguments_of_route(nodes)
    assert (k, normalize, scoring, eps, scale) == (3, True, "sigmoid", 1e-20, 2.5)
    assert choice == [3, 1, 2, fill == 0]


def test_groups_of_which_all_are_kept_are_none() -> None:
    for groups, kept in ((1, 1), (3, 3)):
        _, nodes = compared(in_order(router(groups, kept, 0.0)), LOGITS, BIAS)
        assert arguments_of_route(nodes)[5:7] == (1, 1)


def test_groups_that_the_op_does_not_have_are_left() -> None:
    (place,) = compared(in_order(router(3, 1, -1.0)), LOGITS, BIAS)[0]
    assert place.reason == (
        "the experts of other groups are left out with another number than 0 or -inf"
    )
    (place,) = compared(in_order(router(4, 2, -5.0, k=7)), LOGITS, BIAS)[0]
    assert place.reason == "fewer experts remain than a token has"


def test_a_mask_of_one_column_for_all_groups_is_left() -> None:
    def route(logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.softmax(-1)
        best = scores.view(-1, 3, 4).max(dim=-1)[0].topk(1, dim=-1)[1]
        mask = torch.zeros(len(logits), 1).scatter(1, best, 1)
        mask = mask.unsqueeze(-1).expand(-1, 3, 4).reshape(-1, 12)
        return torch.topk(scores.masked_fill(~mask.bool(), 0.0), k=4, dim=-1)

    logits = torch.full((2, 12), -1.0)
    logits[:, 2], logits[:, 4:10] = 3.0, torch.arange(6.0) / 6
    (place,) = compared(route, logits)[0]
    assert place.reason == "zeros has not the shape of amax"


def test_a_division_that_the_op_does_not_have_is_left_to_inductor() -> None:
    def route(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.softmax(-1)
        experts = torch.topk(scores + bias, 3)[1]
        weights = scores.gather(-1, experts)
        return weights / weights.sum(-1, keepdim=True).clamp(min=0.2), experts

    places, nodes = compared(route, LOGITS, BIAS)
    assert [each.applied for each in places] == [True]
    assert arguments_of_route(nodes)[1:4] == (3, False, "softmax")


def test_a_bias_that_is_a_parameter_has_no_gradient() -> None:
    """As DeepSeek's own code has it; the choice gives it none."""
    places, _ = compared(in_order(router(4, 2, 0.0)), LOGITS, torch.nn.Parameter(BIAS))
    assert [each.applied for each in places] == [True]


def test_other_scores_are_left() -> None:
    def gathered_with_the_bias(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        by = logits.sigmoid() + bias
        experts = torch.topk(by, 3)[1]
        return by.gather(1, experts), experts

    def other_scores(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        experts = torch.topk(logits.sigmoid() + bias, 3)[1]
        return (logits * 2).sigmoid().gather(1, experts), experts

    for function in (gathered_with_the_bias, other_scores):
        assert not any(each.applied for each in compared(function, LOGITS, BIAS)[0])


def test_the_order_of_tokens_is_that_of_the_router() -> None:
    def layer(logits: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        weights, experts = router(3, 2, -torch.inf)(logits, bias)
        numbers, order = torch.sort(experts.reshape(-1))
        rows = x[order // 3]
        counts = torch.histc(numbers.float(), bins=12, min=0, max=11)
        ends = torch.cumsum(counts, dim=0, dtype=torch.int32)
        rows = rows * (1 + numbers.unsqueeze(-1) / 12) + ends[-1] / 120
        rows = rows * weights.reshape(-1)[order].unsqueeze(-1)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.size(0))
        return rows[inverse].view(-1, 3, 8).sum(dim=1)

    x = torch.randn(40, 8, generator=generator)
    places, nodes = compared(layer, LOGITS, BIAS, x)
    replaced = ["moe_combine", "moe_permute", "moe_route_scored"]
    assert sorted(each.pattern for each in places if each.applied) == replaced
    assert not any("moe_order" in str(node.target) for node in nodes)


def llama4(fill: float = -torch.inf, dim: int = 1, k: int = 2) -> Any:
    def scores(logits: Tensor) -> Tensor:
        values, indices = torch.topk(logits, k, dim=dim)
        found = torch.full_like(logits, fill).scatter_(dim, indices, values)
        return torch.nn.functional.sigmoid(found.float()).to(found.dtype)

    return scores


def test_the_scores_of_all_experts() -> None:
    for k in (1, 2, 12):
        places, _ = compared(llama4(k=k), LOGITS)
        assert [(each.pattern, each.applied) for each in places] == [("moe_scores", True)]
    (place,) = compared(llama4(), LOGITS.bfloat16())[0]
    assert place.applied


def test_the_scores_of_all_experts_by_other_functions_are_left() -> None:
    def of_all(logits: Tensor) -> Tensor:
        indices = torch.topk(logits, 2)[1]
        return torch.full_like(logits, -torch.inf).scatter(1, indices, logits[:, :2]).sigmoid()

    for function in (llama4(fill=0.0), llama4(dim=0), of_all):
        assert compared(function, LOGITS)[0] == []
    (place,) = compared(llama4(dim=-1), LOGITS[0])[0]
    assert place.reason == "the logits have 1 dimension(s); expected [tokens, experts] or more"


def by_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = torch.topk(torch.softmax(logits, -1), 3, dim=-1)
    return weights / weights.sum(-1, keepdim=True), experts


def by_softmax_of_chosen(logits: Tensor) -> tuple[Tensor, Tensor]:  # gpt-oss
    largest, experts = torch.topk(logits, 3, dim=-1)
    return torch.softmax(largest, dim=-1), experts


def unnormalized(logits: Tensor) -> tuple[Tensor, Tensor]:
    weights, experts = torch.topk(torch.softmax(logits, -1), 3, dim=-1)
    return weights * 2.0, experts


def by_sigmoid(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid()
    experts = torch.topk(scores + bias, 3, dim=-1)[1]
    weights = scores.gather(-1, experts)
    return weights / weights.sum(-1, keepdim=True), experts


@pytest.mark.parametrize("shape", [(4, 10), (40, 1), (2, 4, 5)])
@pytest.mark.parametrize(
    "function, pattern",
    [
        (by_softmax, "moe_route"),
        (by_softmax_of_chosen, "moe_route"),
        (unnormalized, "moe_route_unnormalized"),
        (by_sigmoid, "moe_route_scored"),
        (llama4(dim=-1), "moe_scores"),
    ],
)
def test_tokens_in_more_dimensions(function: Any, pattern: str, shape: tuple[int, ...]) -> None:
    more = (BIAS,) if function is by_sigmoid else ()
    places, _ = compared(function, LOGITS.view(*shape, 12), *more)
    assert [(each.pattern, each.applied) for each in places] == [(pattern, True)]
    parts = LOGITS.view(2, 20, 12)[:, ::3]  # rows that are no view of two dimensions
    places, _ = compared(function, parts, *more)
    assert [(each.pattern, each.applied) for each in places] == [(pattern, True)]


@pytest.mark.parametrize("of", [deepseek, of_the_hub])
def test_groups_as_deepseek_writes_them(of: Any) -> None:
    for groups, kept in ((4, 2), (3, 3), (3, 1)):
        places, nodes = compared(in_order(of(groups, kept, -torch.inf)), LOGITS, BIAS)
        assert [each.applied for each in places] == [True]
        given = arguments_of_route(nodes)
        assert (given[5], given[6]) == ((1, 1) if groups == kept else (groups, kept))
    (place,) = compared(in_order(of(3, 1, -1.0)), LOGITS, BIAS)[0]
    assert place.reason == (
        "the experts of other groups are left out with another number than 0 or -inf"
    )


def test_scores_that_are_read_through_another_view_are_left() -> None:
    def route(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        by = logits.sigmoid() + bias
        weights, experts = deepseek_in_place(by)
        return weights, by.gather(1, experts)

    def deepseek_in_place(by: Tensor) -> tuple[Tensor, Tensor]:
        scores = by.view(40, 3, 4)
        best = scores.topk(2, dim=-1)[0].sum(dim=-1).topk(1, dim=-1)[1]
        mask = scores.new_ones(40, 3, dtype=torch.bool).scatter_(1, best, False)
        found = scores.masked_fill_(mask.unsqueeze(-1), 0.0).flatten(1)
        return by.sum(-1), torch.topk(found, 3, dim=-1)[1]

    assert compared(route, LOGITS, BIAS)[0] == []
