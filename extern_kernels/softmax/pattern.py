"""softmax and log_softmax over the last dimension in unmodified models, with the scale and the mask
of attention."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from ..softmax_spellings import log_softmax_by_hand, log_softmax_by_sum
from .softmax import broadcasts, log_softmax, softmax

X, MASK = torch.empty(2, 8, device="meta"), torch.empty(8, device="meta")


def _when(arguments) -> str:
    x, mask = arguments["x"], arguments.get("mask")
    if x.dim() == 0:
        return "x has no dimensions"
    if mask is not None and not broadcasts(mask.shape, x.shape):
        return "what is added does not broadcast to the shape of x"
    if mask is not None and mask.dim() == 0:  # it may be on the CPU, and no kernel takes it
        return "what is added is one number"
    return ""


pattern = opaq.pattern(
    "softmax",
    lambda x, scale=1.0, divisor=1.0, mask=None: softmax(x, scale / divisor, mask),
    {"x": X, "scale": 0.125, "divisor": 8.0, "mask": MASK},
    when=_when,
    streamed=("x",),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    measurements=Path(__file__).with_name("measured.json"),
)


# The longest first: what is left of a softmax is found by the last one.
@pattern.spelling
def _(x, scale, mask):
    return F.softmax(x * scale + mask, dim=-1)


@pattern.spelling
def _(x, divisor, mask):  # transformers: GPT-2, BERT
    return F.softmax(x / divisor + mask, dim=-1)


@pattern.spelling
def _(x, mask):
    return F.softmax(x + mask, dim=-1)


@pattern.spelling
def _(x, scale):
    return F.softmax(x * scale, dim=-1)


@pattern.spelling
def _(x, divisor):
    return F.softmax(x / divisor, dim=-1)


@pattern.spelling
def _(x):
    return F.softmax(x, dim=-1)


@pattern.spelling
def _(x):
    exponentials = torch.exp(x - x.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


@pattern.spelling
def _(x):
    return torch.exp(x - torch.logsumexp(x, -1, keepdim=True))


@pattern.spelling
def _(x):  # the op also gives numbers where these exponentials overflow
    exponentials = torch.exp(x)
    return exponentials / exponentials.sum(-1, keepdim=True)


log_pattern = opaq.pattern(
    "log_softmax",
    lambda x: log_softmax(x),
    {"x": X},
    when=_when,
    streamed=("x",),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    measurements=Path(__file__).with_name("log_measured.json"),
)


@log_pattern.spelling
def _(x):
    return F.log_softmax(x, dim=-1)


log_pattern.spelling(log_softmax_by_hand)
log_pattern.spelling(log_softmax_by_sum)
