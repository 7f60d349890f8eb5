"""The draw of a token by exponential random numbers, as gpt-fast and vLLM write it, by our ops: the
tokens of eager PyTorch and its generator afterwards, also where a row has no probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_sampling_pattern import (
    DRAWING,
    found_in,
    gpt_fast,
    nano_gpt,
    of_transformers,
    same_tokens,
    sorted_in_place,
)

pytestmark = pytest.mark.usefixtures("kernels_as_users_have_them")

RACES = [*DRAWING, "sample_exponential_race", "exponential_race"]


def of_gpt_fast(probs_sort: torch.Tensor) -> torch.Tensor:
    q = torch.empty_like(probs_sort).exponential_(1)
    return torch.argmax(probs_sort / q, dim=-1, keepdim=True).to(dtype=torch.int)


def of_vllm(probs: torch.Tensor) -> torch.Tensor:
    q = torch.empty_like(probs)
    q.exponential_()
    return probs.div_(q).argmax(dim=-1).view(-1)


@pytest.fixture(autouse=True)
def numbers_of_eager() -> Iterator[None]:
    """Also what Inductor draws has the numbers of eager PyTorch."""
    with torch._inductor.config.patch(fallback_random=True):
        yield


def in_place(x: torch.Tensor) -> torch.Tensor:
    probs = x.softmax(-1)
    return probs.div_(torch.empty_like(probs).exponential_()).argmax(-1)


def twice(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    probs = x.softmax(-1)
    return of_gpt_fast(probs), of_gpt_fast(probs)


def filtered_in_place(x: torch.Tensor) -> torch.Tensor:
    return of_vllm(sorted_in_place(x))


def with_the_probabilities(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    probs = gpt_fast(x)  # as gpt-fast's `sample` returns them
    return of_gpt_fast(probs), probs > 0


RACE = ["exponential_race"]
DRAWS: dict[str, tuple[Any, list[str]]] = {
    "gpt-fast": (lambda x: of_gpt_fast(x.softmax(-1)), RACE),
    "gpt-fast, one row": (lambda x: of_gpt_fast(x[0].softmax(-1)), RACE),
    "vLLM": (lambda x: of_vllm(x.softmax(-1, dtype=torch.float32)), RACE),
    "in place": (in_place, RACE),
    "16 bits": (lambda x: of_gpt_fast(x.softmax(-1).half()), RACE),
    "bfloat16": (lambda x: of_gpt_fast(x.softmax(-1).bfloat16()), RACE),
    "64 bits": (lambda x: of_gpt_fast(x.softmax(-1).double()), RACE),
    "two draws": (twice, RACE * 2),
    "columns": (lambda x: of_gpt_fast(x.softmax(0).t()), []),
    "top-k of gpt-fast": (
        lambda x: of_gpt_fast(gpt_fast(x)),
        ["top_k_probabilities", "sample_exponential_race"],
    ),
    "top-k of nanoGPT, in place": (
        lambda x: of_vllm(nano_gpt(x)),
        ["top_k_probabilities", "sample_exponential_race"],
    ),
    "top-p, in place": (
        filtered_in_place,
        ["top_p_probabilities", "sample_exponential_race"],
    ),
    "top-p of transformers": (
        lambda x: of_gpt_fast(of_transformers("top_p")(x)),
        ["top_p_probabilities", "sample_exponential_race"],
    ),
    "probabilities are read": (with_the_probabilities, ["top_k_probabilities", *RACE]),
}


@pytest.mark.parametrize("name", DRAWS)
def test_tokens_are_those_of_eager_pytorch(name: str) -> None:
    function, expected = DRAWS[name]
    torch.manual_seed(0)
    assert same_tokens(function, torch.randn(64, 300) * 2, RACES) == expected


def test_probabilities_of_a_caller_that_are_written_to_stay_as_they_are() -> None:
    def drawn(probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return of_vllm(probs), probs * 1

    assert same_tokens(drawn, torch.rand(8, 50), RACES) == []


# ---- what is left, and its order -----------------------------------------------------------------


def numbers_are_read(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.empty_like(p).exponential_(1)
    return torch.argmax(p / q, dim=-1, keepdim=True), q


def quotients_are_read(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scores = p / torch.empty_like(p).exponential_(1)
    return torch.argmax(scores, dim=-1), scores


def shared_numbers(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.empty_like(p).exponential_(1)
    return torch.argmax(p / q, dim=-1), torch.argmax(p * p / q, dim=-1)


def another_rate(p: torch.Tensor) -> torch.Tensor:
    return torch.argmax(p / torch.empty_like(p).exponential_(2.0), dim=-1)


def drawn_twice(p: torch.Tensor) -> torch.Tensor:
    q = torch.empty_like(p).exponential_()
    q.exponential_()
    return torch.argmax(p / q, dim=-1)


def of_a_row(p: torch.Tensor) -> torch.Tensor:
    q = torch.empty_like(p[0]).exponential_()
    return torch.argmax(p / q, dim=-1)


def of_other_numbers(p: torch.Tensor) -> torch.Tensor:
    return torch.argmax(p / torch.empty_like(p * 2).exponential_(), dim=-1)


def smallest(p: torch.Tensor) -> torch.Tensor:
    return torch.argmax(torch.empty_like(p).exponential_() / p, dim=-1)


def uniform_in_between(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.empty_like(p).exponential_(1)
    uniform = torch.rand(p.shape[0])
    return torch.argmax(p / q, dim=-1), uniform


def dropout_in_between(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.empty_like(p).exponential_(1)
    dropped = torch.nn.functional.dropout(p, 0.5)
    return torch.argmax(p / q, dim=-1), dropped


def numbers_before_both(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.empty_like(p).exponential_()
    r = torch.empty_like(p).exponential_()
    return torch.argmax(p / q, dim=-1), torch.argmax(p / r, dim=-1)


def multinomial_in_between(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.empty_like(p).exponential_()
    other = torch.multinomial(p, 1)
    return torch.argmax(p / q, dim=-1), other


def unread_numbers(p: torch.Tensor) -> torch.Tensor:
    torch.empty_like(p).exponential_()
    return torch.argmax(p / torch.empty_like(p).exponential_(), dim=-1)


def others_around(p: torch.Tensor) -> tuple[torch.Tensor, ...]:
    before = torch.rand(3)
    tokens = of_gpt_fast(p)
    return before, tokens, torch.rand(3), of_gpt_fast(p), torch.randn(2)


LEFT: dict[str, tuple[Any, list[str]]] = {
    "numbers are read": (numbers_are_read, []),
    "quotients are read": (quotients_are_read, []),
    "numbers of two draws": (shared_numbers, []),
    "another rate": (another_rate, []),
    "drawn twice": (drawn_twice, []),
    "of a row": (of_a_row, []),
    "of other numbers": (of_other_numbers, []),
    "inverted": (smallest, []),
    "uniform in between": (uniform_in_between, []),
    "dropout in between": (dropout_in_between, []),
    "numbers before both": (numbers_before_both, RACE),
    "multinomial in between": (multinomial_in_between, ["multinomial"]),
    "unread numbers": (unread_numbers, RACE),
    "others around": (others_around, RACE * 2),
}


@pytest.mark.parametrize("name", LEFT)
def test_every_number_is_that_of_eager_pytorch(name: str) -> None:
    function, expected = LEFT[name]
    torch.manual_seed(0)
    x = torch.rand(16, 40) + 0.01
    if name == "dropout in between" and not inductor_draws_as_eager(function, x):
        _, found = found_in(function, RACES, x)
        assert not any(each.applied for each in found)
    else:
        assert same_tokens(function, x, RACES) == expected


def inductor_draws_as_eager(function: Callable[..., Any], x: torch.Tensor) -> bool:
    """That of torch 2.11 does not beside dropout."""
    torch.manual_seed(7)
    expected = function(x)
    torch.manual_seed(7)
    result = torch.compile(function)(x)
    return all(torch.equal(one, other) for one, other in zip(result, expected))


# ---- rows that are no probabilities --------------------------------------------------------------


def of_no_probabilities() -> torch.Tensor:
    rows = torch.rand(9, 20)
    rows[1] = 0.0
    rows[2] = torch.nan
    rows[3, 7:] = torch.nan
    rows[4, 5] = -1.0
    rows[5] = -rows[5] - 0.1
    rows[6, 11] = torch.inf
    rows[7, 3], rows[7, 9] = torch.inf, torch.nan
    rows[8] = -torch.inf
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_no_probability_is_no_error(dtype: torch.dtype) -> None:
    assert same_tokens(of_gpt_fast, of_no_probabilities().to(dtype), RACES) == RACE


def test_logits_of_no_probabilities_are_no_error() -> None:
    logits = torch.randn(4, 50)
    logits[1] = -torch.inf
    logits[2, 5] = torch.nan
    expected = ["top_k_probabilities", "sample_exponential_race"]
    assert same_tokens(lambda x: of_gpt_fast(gpt_fast(x)), logits, RACES) == expected
