"""A pattern whose replacement computes something else; apart from the tests, which import it only
while they need it, since the tests of all patterns would try it too."""

from __future__ import annotations

import torch

import opaq

NAME = "opaq_test_wrong"


def wrong(x: torch.Tensor) -> torch.Tensor:
    return x.sinh() + 1


PATTERN = opaq.pattern(NAME, wrong, {"x": torch.empty(2, 8)})


@PATTERN.spelling
def _(x: torch.Tensor) -> torch.Tensor:
    return x.sinh() * 0.125
