"""Rows divided by the root of their sum of squares, in unmodified models: RMSNorm whose weights are
all the inverse of the root of the width. The op adds them to zeros in float32.

As in pattern.py, the square of a tiny number, below which a norm is not, is added to that of the
norm instead.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import example_of, rows_and_columns

# Where such rows are multiplied with the root of their width, they are those patterns.
from .pattern import refusal_of_number
from .rms_norm import rms_norm


def _when(arguments) -> str:
    x, least = arguments["x"], arguments["least_norm"]
    if x.dim() == 0 or x.shape[-1] == 0:
        return "x has no rows"
    return "" if least is None else refusal_of_number(least)


def _normed(x, eps=None, least_norm=None):
    columns = int(example_of(x).shape[-1])
    if least_norm is not None:
        eps = float(example_of(least_norm)) ** 2
    return rms_norm(x, x.new_zeros(columns), eps / columns, columns**-0.5)[0]


pattern = opaq.pattern(
    "l2_norm",
    _normed,
    {"x": torch.empty(2, 8, device="meta"), "eps": 1e-6, "least_norm": 1e-12},
    when=_when,
    streamed=("x",),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    measurements=Path(__file__).with_name("measured_l2.json"),
)


@pattern.spelling
def _(x, eps):  # transformers: Qwen3-Next; flash-linear-attention
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + eps)


@pattern.spelling
def _(x, eps):
    return x / torch.sqrt(x.pow(2).sum(-1, keepdim=True) + eps)


@pattern.spelling
def _(x, least_norm):
    return F.normalize(x, dim=-1, eps=least_norm)


@pattern.spelling
def _(x, least_norm):
    return x / x.norm(dim=-1, keepdim=True).clamp(min=least_norm)


# Rows of zeros become nan.
@pattern.spelling(eps=0.0)
def _(x):  # transformers: CLIP, SigLIP
    return x / torch.sqrt(x.pow(2).sum(-1, keepdim=True))


@pattern.spelling(eps=0.0)
def _(x):
    return x / x.norm(dim=-1, keepdim=True)
