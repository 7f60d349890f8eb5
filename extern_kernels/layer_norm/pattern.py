"""LayerNorm in unmodified models."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from .layer_norm import layer_norm


def _when(arguments) -> str:
    x = arguments["x"]
    for name in ("weight", "bias"):
        each = arguments[name]
        if each.dim() != 1 or x.dim() == 0 or each.shape[0] != x.shape[-1]:
            return f"the {name} has not the shape of the last dimension"
        if each.dtype != x.dtype:
            return f"the {name} has another dtype than x"
    return ""


pattern = opaq.pattern(
    "layer_norm",
    lambda x, weight, bias, eps: layer_norm(x, weight, bias, eps)[0],
    {
        "x": torch.empty(2, 8, device="meta"),
        "weight": torch.empty(8, device="meta"),
        "bias": torch.empty(8, device="meta"),
        "eps": 1e-5,
    },
    when=_when,
    streamed=("x",),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    measurements=Path(__file__).with_name("measured.json"),
)


@pattern.spelling
def _(x, weight, bias, eps):  # torch.nn.LayerNorm
    return F.layer_norm(x, (8,), weight, bias, eps)


@pattern.spelling
def _(x, weight, bias, eps):
    apart = x - x.mean(-1, keepdim=True)
    return apart / torch.sqrt(apart.pow(2).mean(-1, keepdim=True) + eps) * weight + bias


@pattern.spelling
def _(x, weight, bias, eps):
    variance = x.var(-1, keepdim=True, unbiased=False)
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance + eps) * weight + bias


@pattern.spelling
def _(x, weight, bias, eps):
    apart = x - x.mean(-1, keepdim=True)
    return weight * (apart * torch.rsqrt(apart.pow(2).mean(-1, keepdim=True) + eps)) + bias


@pattern.spelling
def _(x, weight, bias, eps):
    variance = x.var(-1, keepdim=True, unbiased=False)
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(variance + eps) * weight + bias
