"""Top-k, top-p and min-p with numbers of their own for each row, top-p as it was first written, and
draws into new tensors, by our ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_exponential_race import RACES, numbers_of_eager  # noqa: F401
from test_sampling_pattern import found_in, same_tokens

Tensor = torch.Tensor
ROWS = ["top_k_top_p_of_rows"]


def in_order(logits: Tensor, k: Tensor | None, p: Tensor | None, out: bool) -> Any:
    """vLLM: apply_top_k_top_p"""
    logits_sort, logits_idx = logits.sort(dim=-1, descending=False)
    if k is not None:
        top_k_mask = logits_sort.size(1) - k.to(torch.long)
        top_k_mask = logits_sort.gather(1, top_k_mask.unsqueeze(dim=1))
        top_k_mask = logits_sort < top_k_mask
        logits_sort.masked_fill_(top_k_mask, -float("inf"))
    if p is not None:
        probs_sort = logits_sort.softmax(dim=-1)
        if out:
            probs_sum = torch.cumsum(probs_sort, dim=-1, out=probs_sort)
        else:
            probs_sum = probs_sort.cumsum(dim=-1)
        top_p_mask = probs_sum <= 1 - p.unsqueeze(dim=1)
        top_p_mask[:, -1] = False
        logits_sort.masked_fill_(top_p_mask, -float("inf"))
    return logits_sort, logits_idx


def vllm(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
    logits_sort, logits_idx = in_order(logits, k, p, True)
    return logits.scatter_(dim=-1, index=logits_idx, src=logits_sort)


def older_vllm(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
    logits_sort, logits_idx = in_order(logits, k, p, False)
    return torch.empty_like(logits_sort).scatter_(dim=-1, index=logits_idx, src=logits_sort)


def numbers() -> tuple[Tensor, Tensor, Tensor]:
    """Also rows of equal logits, of none, and of a nan; k of one and all, p of 0 and 1."""
    torch.manual_seed(0)
    logits = torch.randn(8, 200) * 3
    logits[1, 3:150], logits[2], logits[2, 7] = -torch.inf, 0.0, 9.0
    logits[3], logits[4, 5], logits[5, 10:40] = -torch.inf, torch.nan, 4.0
    k = torch.tensor([1, 5, 200, 17, 50, 20, 200, 3], dtype=torch.int32)
    p = torch.tensor([0.9, 0.5, 0.95, 0.5, 0.1, 1.0, 0.0, 0.99])
    return logits, k, p


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("given", ["k", "p", "both"])
@pytest.mark.parametrize("function", [vllm, older_vllm])
def test_numbers_of_each_row(function: Callable[..., Tensor], given: str, dynamic: bool) -> None:
    logits, k, p = numbers()

    def probabilities(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
        return function(logits * 1.0, k, p).softmax(dim=-1, dtype=torch.float32)

    arguments = (logits, None if given == "p" else k, None if given == "k" else p)
    if dynamic:
        for each in arguments:
            if each is not None:
                torch._dynamo.mark_dynamic(each, 0)
    result, found = found_in(probabilities, ROWS, *arguments)
    assert [each.applied for each in found] == [True], found
    torch.testing.assert_close(result, probabilities(*arguments), equal_nan=True)


def test_k_of_64_bits_and_of_no_cast() -> None:
    logits, k, _ = numbers()

    def kept(logits: Tensor, k: Tensor) -> Tensor:
        ascending, index = torch.sort(logits)
        least = ascending.gather(1, (logits.shape[1] - k).unsqueeze(1))
        ascending = ascending.masked_fill(ascending < least, -torch.inf)
        return torch.zeros_like(logits).scatter(1, index, ascending).softmax(-1)

    for function in (kept, lambda x, k: vllm(x * 1.0, k, None).softmax(-1)):
        result, found = found_in(function, ROWS, logits, k.long())
        assert [each.applied for each in found] == [True], found
        torch.testing.assert_close(result, function(logits, k.long()), equal_nan=True)


def test_one_number_for_all_rows_is_left() -> None:
    logits, _, p = numbers()

    def probabilities(logits: Tensor, p: Tensor) -> Tensor:
        return older_vllm(logits, None, p).softmax(-1)

    result, found = found_in(probabilities, ROWS, logits, p[:1])
    assert [(each.applied, each.reason) for each in found] == [
        (False, "row_top_p has not a number for each row")
    ]
    torch.testing.assert_close(result, probabilities(logits, p[:1]), equal_nan=True)


def shifted(logits: Tensor, strict: bool = True) -> Tensor:
    """The gist that most code was copied from"""
    sorted_logits, sorted_indices = torch.sort(logits, descending=True)
    cumulative_probs = torch.cumsum(F.softmax(sorted_logits, dim=-1), dim=-1)
    removed = cumulative_probs > 0.8 if strict else cumulative_probs >= 0.8
    removed[..., 1:] = removed[..., :-1].clone()
    removed[..., 0] = 0
    indices_to_remove = removed.scatter(1, sorted_indices, removed)
    return F.softmax(logits.masked_fill(indices_to_remove, -float("Inf")), dim=-1)


def put_back(logits: Tensor) -> Tensor:
    descending, index = torch.sort(logits / 0.7, dim=-1, descending=True)
    probs = F.softmax(descending, dim=-1)
    descending[torch.cumsum(probs, dim=-1) - probs > 0.8] = -float("inf")
    return F.softmax(logits.scatter(-1, index, descending), dim=-1)


@pytest.mark.parametrize("function", [shifted, put_back])
def test_top_p_in_descending_order(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 150) * 3
    logits[1, 4:90] = -torch.inf
    logits[2, 3] = torch.nan
    result, found = found_in(function, ["top_p_probabilities"], logits)
    assert [each.applied for each in found] == [True], found
    torch.testing.assert_close(result, function(logits), equal_nan=True)


def test_top_p_that_need_not_be_passed_is_left() -> None:
    logits = torch.randn(6, 150)
    result, found = found_in(lambda x: shifted(x, False), ["top_p_probabilities"], logits)
    assert not found
    torch.testing.assert_close(result, shifted(logits, False))


def test_a_view_that_is_read_after_the_write_sees_it() -> None:
    def function(logits: Tensor) -> tuple[Tensor, Tensor]:
        mask = logits > 0
        first = mask[..., :1]
        mask[..., 0] = False
        return F.softmax(logits.masked_fill(mask, 0.0), dim=-1), first

    logits = torch.randn(4, 8)
    result, _ = found_in(function, ["softmax"], logits)
    torch.testing.assert_close(result, function(logits))


NEW: dict[str, Callable[[Tensor], Tensor]] = {
    "empty": lambda p: torch.empty(p.shape, dtype=p.dtype, device=p.device),
    "sizes": lambda p: torch.empty(p.size()),
    "new_empty": lambda p: p.new_empty(p.shape),
    "zeros_like": lambda p: torch.zeros_like(p),
}


@pytest.mark.parametrize("name", NEW)
def test_draws_into_new_tensors(name: str) -> None:
    def drawn(x: Tensor) -> Tensor:
        probs = x.softmax(-1)
        q = NEW[name](probs)
        q.exponential_()
        return probs.div_(q).argmax(dim=-1).view(-1)

    torch.manual_seed(0)
    assert same_tokens(drawn, torch.randn(64, 300), RACES) == ["exponential_race"]


@pytest.mark.parametrize("shape", [(300,), (1, 300)])
def test_numbers_that_rows_share_are_left(shape: Any) -> None:
    def drawn(x: Tensor) -> Tensor:
        return (x.softmax(-1) / torch.empty(shape).exponential_()).argmax(-1)

    torch.manual_seed(0)
    assert same_tokens(drawn, torch.randn(64, 300), RACES) == []


# ---- min-p ---------------------------------------------------------------------------------------


def min_p_of_vllm(logits: Tensor, min_p: Tensor) -> Tensor:
    probability_values = F.softmax(logits, dim=-1)
    max_probabilities = torch.amax(probability_values, dim=-1, keepdim=True)
    adjusted_min_p = max_probabilities.mul_(min_p)
    invalid_token_mask = probability_values < adjusted_min_p
    logits = logits.masked_fill(invalid_token_mask, -float("inf"))
    return logits.softmax(dim=-1, dtype=torch.float32)


@pytest.mark.parametrize("dynamic", [False, True])
def test_min_p_of_rows(dynamic: bool) -> None:
    logits, _, least = numbers()
    least[-1] = 0.0
    result, found = found_in(
        min_p_of_vllm, ["min_p_of_rows"], logits, least.unsqueeze(1), dynamic=dynamic
    )
    assert [each.applied for each in found] == [True]
    torch.testing.assert_close(result, min_p_of_vllm(logits, least[:, None]), equal_nan=True)


def test_min_p_of_all_rows_is_left() -> None:
    logits, least = numbers()[0], torch.rand(1, 1)
    result, found = found_in(min_p_of_vllm, ["min_p_of_rows"], logits, least)
    assert [each.reason for each in found] == ["row_min_p has not a number for each row"]
    torch.testing.assert_close(result, min_p_of_vllm(logits, least), equal_nan=True)


def test_min_p_of_logits_without_dimensions_is_left() -> None:
    def filtered(logits: Tensor, min_p: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        removed = probabilities < probabilities.amax(-1, keepdim=True) * min_p
        return logits.masked_fill(removed, -float("inf")).softmax(-1)

    logits, least = torch.tensor(2.0), torch.rand(3, 1)
    result, found = found_in(filtered, ["min_p_of_rows"], logits, least)
    reason = "the logits have 0 dimension(s); expected two, [rows, classes]"
    assert [each.reason for each in found] == [reason]
    torch.testing.assert_close(result, filtered(logits, least))
