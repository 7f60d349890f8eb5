"""Min-p as transformers writes it, alone and after the other filters, by our ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_exponential_race import of_gpt_fast
from test_sampling_pattern import found_in, warped

Filter = Callable[[torch.Tensor], torch.Tensor]
FILTERS = ["top_k_probabilities", "top_p_probabilities", "min_p_probabilities"]
DRAWING = ["sample_multinomial", "multinomial", "sample_exponential_race", "exponential_race"]
ORDERS = [
    (),
    ("temperature",),
    ("top_k",),
    ("top_p",),
    ("temperature", "top_k"),
    ("temperature", "top_p"),
    ("top_k", "top_p"),
    ("temperature", "top_k", "top_p"),
]


class InOrder:
    """Min-p as transformers wrote it before version 5."""

    def __init__(self, min_p: float, min_tokens_to_keep: int) -> None:
        self.min_p, self.keep = min_p, min_tokens_to_keep

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        probs = torch.softmax(scores, dim=-1)
        largest, _ = probs.max(dim=-1, keepdim=True)
        removed = probs < self.min_p * largest
        order = torch.argsort(scores, descending=True, dim=-1)
        removed_in_order = torch.gather(removed, dim=-1, index=order)
        removed_in_order[..., : self.keep] = False
        removed = removed_in_order.scatter(1, order, removed_in_order)
        return scores.masked_fill(removed, -float("inf"))


def of_transformers(
    names: tuple[str, ...], min_p: float = 0.1, keep: int = 1, older: bool = False
) -> Filter:
    transformers = pytest.importorskip("transformers")
    made = {
        "temperature": lambda: transformers.TemperatureLogitsWarper(0.7),
        "top_k": lambda: transformers.TopKLogitsWarper(40),
        "top_p": lambda: transformers.TopPLogitsWarper(0.95),
    }
    last = (InOrder if older else transformers.MinPLogitsWarper)(min_p, min_tokens_to_keep=keep)
    return warped(*(made[name]() for name in names), last)


def some_logits() -> torch.Tensor:
    torch.manual_seed(0)
    logits = torch.randn(32, 300) * 3
    logits[1, 4:200] = -torch.inf
    logits[2] = 0.0
    logits[3, 10:20] = logits[3].amax() + 1
    logits[4, :-1] = -torch.inf
    logits[5] = -torch.inf
    logits[6, 8] = torch.nan
    return logits


@pytest.mark.parametrize("older", [False, pytest.param(True, marks=pytest.mark.life)])
@pytest.mark.parametrize("names", ORDERS, ids=lambda names: ", ".join(names) or "alone")
def test_probabilities_are_those_of_transformers(names: tuple[str, ...], older: bool) -> None:
    logits = some_logits()
    if "top_p" in names:  # of equal ones at the border, it may keep any
        logits[2, 7] = 9.0
    for min_p in (0.0, 0.1, 0.5, 1.0):
        function = of_transformers(names, min_p, older=older)
        expected = function(logits.clone())
        result, found = found_in(function, FILTERS, logits)
        assert [(each.pattern, each.applied) for each in found] == [("min_p_probabilities", True)]
        torch.testing.assert_close(result, expected, equal_nan=True)


@pytest.mark.parametrize("older", [False, True])
def test_what_keeps_several_tokens_is_left(older: bool) -> None:
    function = of_transformers((), 0.9, 3, older)
    logits = some_logits()
    result, found = found_in(function, FILTERS, logits)
    assert not any(each.applied for each in found)
    torch.testing.assert_close(result, function(logits.clone()), equal_nan=True)


def test_filtered_logits_that_are_read_are_left() -> None:
    transformers = pytest.importorskip("transformers")
    warper = transformers.MinPLogitsWarper(0.1)

    def function(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = warper(None, logits)
        return F.softmax(scores, dim=-1), scores

    logits = some_logits()
    result, found = found_in(function, FILTERS, logits)
    assert not any(each.applied for each in found)
    for one, other in zip(result, function(logits), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


DRAWS: dict[str, tuple[Any, str]] = {
    "multinomial": (lambda p: torch.multinomial(p, 1), "sample_multinomial"),
    "gpt-fast": (of_gpt_fast, "sample_exponential_race"),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("names", [(), ("top_p",), ("temperature", "top_k", "top_p")], ids=str)
def test_tokens_are_drawn_by_one_op(names: tuple[str, ...], draw: str) -> None:
    drawn, pattern = DRAWS[draw]
    function = of_transformers(names)
    logits = some_logits()[7:]
    torch.manual_seed(7)
    expected, number = drawn(function(logits.clone())), torch.rand(1)
    torch.manual_seed(7)
    result, found = found_in(lambda x: drawn(function(x)), FILTERS + DRAWING, logits)
    assert [each.pattern for each in found if each.applied] == ["min_p_probabilities", pattern]
    assert torch.equal(result, expected) and torch.equal(torch.rand(1), number)
