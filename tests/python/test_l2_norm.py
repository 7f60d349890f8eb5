"""Rows that are divided by their norm, by the op of RMSNorm. Graphs run eagerly here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_norm_spellings import EPS, compared, inputs
from torch import Tensor

L2 = {
    "by rsqrt": lambda x: x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + EPS),
    "by a root": lambda x: x / (x.square().sum(-1, keepdim=True) + EPS).sqrt(),
    "normalize": lambda x: F.normalize(x, p=2, dim=-1),
    "by a bounded norm": lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12),
}


@pytest.mark.parametrize("way", L2)
def test_rows_of_norm_one(way: str) -> None:
    assert compared(L2[way], *inputs(1)) == ["l2_norm"]
    assert compared(L2[way], *inputs(1, torch.float32)) == ["l2_norm"]
    x = inputs(1)[0][:1].bfloat16()  # without zeros, whose gradients are huge
    assert compared(L2[way], x) == ["l2_norm"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.normalize(x, dim=1),
        lambda x: F.normalize(x, p=1, dim=-1),
        lambda x: F.normalize(x, dim=-1, eps=0.5),
        lambda x: x / (x * x).sum(-1, keepdim=True),
    ],
)
def test_other_rows_are_left(function: Any) -> None:
    assert compared(function, torch.randn(4, 4, 4, dtype=torch.float64)) == []


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / x.norm(p=2, dim=-1, keepdim=True),
        lambda x: x / torch.pow(torch.sum(torch.pow(x, 2), dim=-1, keepdim=True), 0.5),
    ],
)
def test_norms_that_may_be_zero(function: Any) -> None:
    assert compared(function, inputs(1)[0][:1]) == ["l2_norm"]
    torch.compiler.reset()
    compiled = torch.compile(function, backend="opaq", options={"substitute": ["l2_norm"]})
    zeros = torch.zeros(2, 12)
    assert compiled(zeros).isnan().all() and function(zeros).isnan().all()


def test_rms_norm_by_normalize_is_no_l2_norm() -> None:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * 12**0.5 * weight

    assert compared(norm, *inputs(2)) == ["rms_norm"]
