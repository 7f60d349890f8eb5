"""Penalties for tokens as models write them, by our op; chains of logits processors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import substituting
import torch
import torch.nn.functional as F
from kernel_checks import needs_transformers
from test_sampling_pattern import found_in

Tensor = torch.Tensor
NAMES = ["repetition_penalty", "token_penalties"]
FILTERS = ["top_k_probabilities", "top_p_probabilities", "min_p_probabilities"]
ROWS = ["top_k_top_p_of_rows"]


def some(dtype: torch.dtype = torch.float32, classes: int = 60) -> tuple[Tensor, Tensor]:
    """Logits without equal ones, some of them 0 or infinite, and tokens, some of them twice."""
    torch.manual_seed(1)
    logits = torch.stack([torch.randperm(classes) for _ in range(3)]).sub(classes // 2) / 8
    logits[0, 5], logits[1, 6], logits[2, 7] = 0.0, -torch.inf, -0.0
    tokens = torch.randint(0, classes, (3, 25))
    tokens[0, :3], tokens[1, 0], tokens[2, 0] = 5, 6, 7
    return logits.to(dtype), tokens


def gathered(logits: Tensor, tokens: Tensor, penalty: float = 1.3) -> Tensor:
    """transformers, before version 5"""
    score = torch.gather(logits, 1, tokens)
    score = torch.where(score < 0, score * penalty, score / penalty)
    return logits.scatter(1, tokens, score)


def gathered_in_place(logits: Tensor, tokens: Tensor) -> Tensor:
    logits = logits * 2
    score = logits.gather(1, tokens)
    score = torch.where(score > 0, score / 1.2, score * 1.2)
    logits.scatter_(1, tokens, score)
    return logits


def marked(logits: Tensor, tokens: Tensor) -> Tensor:
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, tokens, True)
    return torch.where(seen, torch.where(logits > 0, logits / 1.2, logits * 1.2), logits)


def counted_mask(logits: Tensor, tokens: Tensor) -> Tensor:
    counts = torch.zeros(*logits.shape, dtype=torch.int64, device=logits.device)
    counts.scatter_add_(1, tokens, torch.ones_like(tokens))
    return torch.where(counts > 0, torch.where(logits < 0, logits * 2.0, logits / 2.0), logits)


def of_transformers(logits: Tensor, tokens: Tensor) -> Tensor:
    transformers = pytest.importorskip("transformers")
    return transformers.RepetitionPenaltyLogitsProcessor(1.3)(tokens, logits).contiguous()


def of_float32(logits: Tensor, tokens: Tensor) -> Tensor:
    return gathered(logits.to(copy=True, dtype=torch.float32), tokens)


REPEATED = [gathered, gathered_in_place, marked, counted_mask, of_float32]
REPEATED += [pytest.param(of_transformers, marks=needs_transformers)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", REPEATED)
def test_repetition_penalties(function: Any, dtype: torch.dtype) -> None:
    logits, tokens = some(dtype)
    expected = function(logits.clone(), tokens)
    result, found = found_in(function, NAMES, logits, tokens)
    assert [each.pattern for each in found if each.applied] == ["repetition_penalty"], found
    assert result.dtype == expected.dtype and result.stride() == expected.stride()
    if expected.dtype == torch.float32:
        torch.testing.assert_close(result, expected)
    else:  # the same rounding
        assert torch.equal(result, expected)


def counted(tokens: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """vLLM's get_token_bin_counts_and_mask; a token `classes` is a padding."""
    rows = tokens.shape[0]
    counts = torch.zeros((rows, classes + 1), dtype=torch.long, device=tokens.device)
    counts.scatter_add_(1, tokens, torch.ones_like(tokens))
    counts = counts[:, :classes]
    return counts, counts > 0


def vllm(logits: Tensor, prompt: Tensor, tokens: Tensor, r: Tensor, f: Tensor, p: Tensor) -> Tensor:
    """vLLM's apply_penalties with apply_repetition_penalties_torch; the logits come from a head."""
    logits = (logits @ torch.eye(logits.shape[1], dtype=logits.dtype)).to(torch.float32)
    _, prompt_mask = counted(prompt, logits.shape[1])
    counts, mask = counted(tokens, logits.shape[1])
    repeated = r.unsqueeze(dim=1).repeat(1, logits.size(1))
    penalties = torch.where(prompt_mask | mask, repeated, 1.0)
    logits *= torch.where(logits > 0, 1.0 / penalties, penalties)
    logits -= f.unsqueeze(dim=1) * counts
    logits -= p.unsqueeze(dim=1) * mask
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_penalties_of_vllm(dtype: torch.dtype) -> None:
    logits, tokens = some(dtype)
    logits[1, 6] = -1e30  # the head adds zeros times it
    prompt = tokens[:, :11] + 1
    prompt[:, 4:], tokens[1, 9:] = 60, 60
    given = (logits, prompt, tokens, *(torch.rand(3, 3) + 0.5).unbind())
    result, found = found_in(vllm, NAMES, *given)
    assert [each.pattern for each in found if each.applied] == ["token_penalties"], found
    torch.testing.assert_close(result, vllm(*given))
    torch.compiler.reset()
    seen: list[str] = []
    backend = substituting.backend(
        *NAMES, seen=lambda graph: seen.extend(str(node.target) for node in graph.nodes)
    )
    torch.compile(vllm, backend=backend)(*given)
    assert not [each for each in seen if "scatter_add" in each]  # nothing is counted twice


def both(logits: Tensor, tokens: Tensor) -> Tensor:
    counts = torch.zeros_like(logits).scatter_add_(1, tokens, torch.ones_like(tokens).to(logits))
    return logits - 0.3 * counts - 0.2 * (counts > 0).float()


def at_once(logits: Tensor, tokens: Tensor) -> Tensor:
    counts, mask = counted(tokens, logits.shape[1])
    return logits - (counts * 0.3 + mask.to(logits.dtype) * 0.2)


def frequency(logits: Tensor, tokens: Tensor) -> Tensor:
    ones = torch.ones_like(tokens, dtype=torch.int32)
    counts = torch.zeros(*logits.shape, dtype=torch.int32, device=logits.device)
    return logits - counts.scatter_add(1, tokens, ones) * 0.3


def presence(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits - 0.3 * counted(tokens, logits.shape[1])[1]


def all_three(logits: Tensor, tokens: Tensor) -> Tensor:
    counts, seen = counted(tokens, logits.shape[1])
    logits = torch.where(seen, torch.where(logits < 0, logits * 1.5, logits / 1.5), logits)
    return logits - 0.3 * counts - 0.2 * seen


COUNTED: list[Callable[[Tensor, Tensor], Tensor]] = [both, at_once, frequency, presence, all_three]


@pytest.mark.parametrize("function", COUNTED)
def test_presence_and_frequency(function: Any) -> None:
    logits, tokens = some()
    result, found = found_in(function, NAMES, logits, tokens)
    assert [each.pattern for each in found if each.applied] == ["token_penalties"], found
    torch.testing.assert_close(result, function(logits, tokens))


def test_only_one_is_put() -> None:
    """A frequency penalty behind a repetition penalty of the same tokens is one op, not two."""
    logits, tokens = some()
    _, found = found_in(lambda x, t: all_three(x, t) * 2, NAMES, logits, tokens)
    assert sum(each.applied for each in found) == 1


# ---- chains of processors ------------------------------------------------------------------------


@needs_transformers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_of_a_chain_is_found(dtype: torch.dtype) -> None:
    import transformers

    listed = transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(1.3),
            transformers.TemperatureLogitsWarper(0.7),
            transformers.TopKLogitsWarper(10),
            transformers.TopPLogitsWarper(0.9),
        ]
    )

    def token(tokens: Tensor, logits: Tensor) -> Tensor:  # as `generate` draws it
        scores = listed(tokens, logits[:, -1, :].to(copy=True, dtype=torch.float32))
        return torch.multinomial(F.softmax(scores, dim=-1), num_samples=1).squeeze(1)

    logits, tokens = some(dtype)
    names = [*FILTERS, "sample_multinomial", *NAMES]
    torch.manual_seed(5)
    expected = token(tokens, logits.unsqueeze(1))
    torch.manual_seed(5)
    result, found = found_in(token, names, tokens, logits.unsqueeze(1))
    assert [each.pattern for each in found if each.applied] == [
        "top_p_probabilities",
        "sample_multinomial",
        "repetition_penalty",
    ], found
    assert torch.equal(result, expected)


def hand_written(logits: Tensor, tokens: Tensor, k: int = 10, p: float = 0.9) -> Tensor:
    logits = at_once(logits, tokens) / 0.8
    least = torch.topk(logits, k)[0][..., -1, None]
    logits = logits.masked_fill(logits < least, -float("inf"))
    ascending, index = torch.sort(logits, descending=False)
    removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    removed[..., -1:] = False
    removed = removed.scatter(1, index, removed)
    return F.softmax(logits.masked_fill(removed, -float("inf")), dim=-1)


def test_penalties_before_filters() -> None:
    logits, tokens = some()
    result, found = found_in(hand_written, [*FILTERS, *NAMES], logits, tokens)
    patterns = [each.pattern for each in found if each.applied]
    assert patterns == ["top_p_probabilities", "token_penalties"], found
    torch.testing.assert_close(result, hand_written(logits, tokens))


# ---- what is left --------------------------------------------------------------------------------


def other_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    score = torch.gather(logits, 1, tokens)
    return logits.scatter(1, tokens + 1, torch.where(score < 0, score * 1.3, score / 1.3))


def other_number(logits: Tensor, tokens: Tensor) -> Tensor:
    score = torch.gather(logits, 1, tokens)
    return logits.scatter(1, tokens, torch.where(score < 0, score * 1.3, score / 1.4))


def other_sign(logits: Tensor, tokens: Tensor) -> Tensor:
    score = torch.gather(logits, 1, tokens)
    return logits.scatter(1, tokens, torch.where(score < 0, score / 1.3, score * 1.3))


def of_small_integers(logits: Tensor, tokens: Tensor) -> Tensor:
    counts = torch.zeros(logits.shape, dtype=torch.int8)
    return logits - 0.3 * counts.scatter_add(1, tokens, torch.ones_like(tokens).to(torch.int8))


def of_ones_and_twos(logits: Tensor, tokens: Tensor) -> Tensor:
    counts = torch.zeros(logits.shape, dtype=torch.int64)
    return logits - 0.3 * counts.scatter_add(1, tokens, torch.full_like(tokens, 2))


def of_one_column(logits: Tensor, tokens: Tensor) -> Tensor:
    counts = torch.zeros(3, 1, dtype=torch.int64)
    return logits - 0.3 * counts.scatter_add(1, tokens * 0, torch.ones_like(tokens))


def of_a_mask_of_one_column(logits: Tensor, tokens: Tensor) -> Tensor:
    seen = torch.zeros(3, 1, dtype=torch.bool).scatter(1, tokens * 0, True)
    return torch.where(seen, torch.where(logits > 0, logits / 1.2, logits * 1.2), logits)


def of_fewer_rows(logits: Tensor, tokens: Tensor) -> Tensor:
    counts = torch.zeros(1, logits.shape[1], dtype=torch.int64)
    return logits - 0.3 * counts.scatter_add(1, tokens[:1], torch.ones_like(tokens[:1]))


def below_zero(logits: Tensor, tokens: Tensor) -> Tensor:
    return gathered(logits, tokens, -1.5)


@pytest.mark.parametrize(
    "function",
    [
        other_tokens,
        other_number,
        other_sign,
        of_small_integers,
        of_ones_and_twos,
        of_one_column,
        of_a_mask_of_one_column,
        of_fewer_rows,
        below_zero,
    ],
)
def test_what_is_something_else(function: Any) -> None:
    logits, tokens = some()
    tokens = tokens.clamp(max=58)
    if function is other_tokens:
        tokens[:] = torch.arange(25) * 2
    result, found = found_in(function, NAMES, logits, tokens)
    assert not any(each.applied for each in found)
    torch.testing.assert_close(result, function(logits, tokens))


def test_tokens_that_are_no_classes_stay_an_error() -> None:
    logits, tokens = some()
    for wrong in (-1, 60):
        tokens[1, 2] = wrong
        with pytest.raises(RuntimeError, match=f"token {wrong} is out of bounds for 60 classes"):
            found_in(gathered, NAMES, logits, tokens)


@needs_transformers
def test_tokens_of_a_larger_vocabulary_are_passed_over_as_in_transformers() -> None:
    logits, tokens = some()
    tokens[:, 4:9] = 1000
    result, found = found_in(of_transformers, NAMES, logits, tokens)
    assert any(each.applied for each in found)
    torch.testing.assert_close(result, of_transformers(logits, tokens))


def test_gradients_are_left() -> None:
    logits, tokens = some()
    logits.requires_grad_()
    _, found = found_in(gathered, NAMES, logits, tokens)
    assert [each.reason for each in found] == ["the op has no gradient"]


def test_gradients_of_penalties_are_left() -> None:
    logits, tokens = some()
    logits[1, 6] = 0.0

    def of_rows(logits: Tensor, tokens: Tensor, each: Tensor) -> Tensor:
        return logits - each.unsqueeze(1) * counted(tokens, logits.shape[1])[0]

    each = torch.rand(3, requires_grad=True)
    result, found = found_in(of_rows, NAMES, logits, tokens, each)
    assert [each.reason for each in found] == ["the op has no gradient"]
    (ours,) = torch.autograd.grad(result.sum(), each)
    (eager,) = torch.autograd.grad(of_rows(logits, tokens, each).sum(), each)
    torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("penalty", [torch.inf, -torch.inf, torch.nan])
def test_penalties_that_are_infinite_or_no_numbers(penalty: float) -> None:
    """As in eager: a token that does not occur has a penalty of 0 times that, which is nan."""
    logits, tokens = some()

    def often(logits: Tensor, tokens: Tensor) -> Tensor:
        return logits - penalty * counted(tokens, logits.shape[1])[0]

    def once(logits: Tensor, tokens: Tensor) -> Tensor:
        return logits - penalty * counted(tokens, logits.shape[1])[1]

    def of_rows(logits: Tensor, tokens: Tensor, each: Tensor) -> Tensor:
        return logits - each.unsqueeze(1) * counted(tokens, logits.shape[1])[0]

    def repeated(logits: Tensor, tokens: Tensor, each: Tensor) -> Tensor:
        return vllm(logits, tokens[:, 5:], tokens, each, torch.ones(3), torch.zeros(3))

    each = torch.tensor([1.0, penalty, 0.0])
    logits[1, 3], logits[1, 4], logits[0, 2] = torch.inf, -0.0, torch.nan
    calls = [(often, logits, tokens), (once, logits, tokens), (of_rows, logits, tokens, each)]
    for function, *given in [*calls, (repeated, logits, tokens, each)]:
        result, found = found_in(function, NAMES, *given)
        left = math.isnan(penalty) and len(given) == 2  # a constant that equals nothing
        assert [place.applied for place in found] == ([] if left else [True])
        torch.testing.assert_close(result, function(*given), equal_nan=True)
        given[0] = torch.zeros_like(logits)
        result, _ = found_in(function, NAMES, *given)
        torch.testing.assert_close(result, function(*given), equal_nan=True)


def test_one_row_and_symbolic_sizes() -> None:
    logits, tokens = some()
    for rows in (1, 2, 3):
        given = logits[:rows], tokens[:rows]
        result, found = found_in(gathered, NAMES, *given, dynamic=True)
        assert {each.applied for each in found} == {True}
        torch.testing.assert_close(result, gathered(*given))
