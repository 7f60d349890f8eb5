"""RMSNorm in unmodified models."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from .rms_norm import rms_norm


def _when(arguments) -> str:
    x, weight = arguments["x"], arguments["weight"]
    if weight.dim() != 1 or x.dim() == 0 or weight.shape[0] != x.shape[-1]:
        return "the weight has not the shape of the last dimension"
    if weight.dtype != x.dtype:
        return "the weight has another dtype than x"
    return ""


pattern = opaq.pattern(
    "rms_norm",
    lambda x, weight, eps: rms_norm(x, weight, eps)[0],
    {"x": torch.empty(2, 8, device="meta"), "weight": torch.empty(8, device="meta"), "eps": 1e-6},
    when=_when,
    streamed=("x",),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    measurements=Path(__file__).with_name("measured.json"),
)


@pattern.spelling
def _(x, weight, eps):  # transformers: Llama, Mistral, Qwen
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


@pattern.spelling
def _(x, weight, eps):
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


@pattern.spelling
def _(x, weight, eps):
    return x * (1 / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)) * weight


@pattern.spelling
def _(x, weight, eps):
    return F.rms_norm(x, (8,), weight, eps)
