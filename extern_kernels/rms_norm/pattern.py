"""RMSNorm in unmodified models."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from .. import float8_spellings as made
from .add_rms_norm import add_rms_norm
from .float8 import rms_norm_float8
from .rms_norm import rms_norm


def _when(arguments) -> str:
    x, weight = arguments["x"], arguments["weight"]
    if x.dim() == 0:
        return "x has no dimension"
    residual = arguments.get("residual", x)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        return "x and the residual have different shapes or dtypes"
    if weight is None:
        return ""
    if weight.dim() != 1 or weight.shape[0] != x.shape[-1]:
        return "the weight has not the shape of the last dimension"
    if weight.dtype != x.dtype:
        return "the weight has another dtype than x"
    return ""


def _scaled(x, weight, eps):  # transformers: Llama, Mistral, Qwen
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def _divided(x, weight, eps):
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _of_pytorch(x, weight, eps):
    return F.rms_norm(x, weight.shape, weight, eps)


_WEIGHTED = [_scaled, _divided, _of_pytorch]
_BARE = [  # without a weight: nanochat
    lambda x, eps: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps),
    lambda x, eps: x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps),
    lambda x, eps: F.rms_norm(x, (8,), None, eps),
]
_EXAMPLES = {
    "x": torch.empty(2, 8, device="meta"),
    "weight": torch.empty(8, device="meta"),
    "eps": 1e-6,
    "offset": 1.0,
}


def _float8(
    x,
    weight,
    eps,
    scale_least=None,
    size_least=None,
    factor_least=None,
    parts=None,
    block=None,
    columns=None,
):
    least = {"scale_least": scale_least, "size_least": size_least, "factor_least": factor_least}
    return made.results(rms_norm_float8, x, weight, eps, **least, block=block)


# First, so that a normalization is taken with what follows it.
float8_pattern = opaq.pattern(
    "rms_norm_float8",
    _float8,
    {
        "x": torch.empty(2, 256, device="meta"),
        "weight": torch.empty(256, device="meta"),
        "eps": 1e-6,
        **made.NUMBERS,
        **made.SIZES,
    },
    when=lambda arguments: made.refusal(arguments, "x") or _when(arguments),
    streamed=("x",),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    measurements=Path(__file__).with_name("measured_float8.json"),
    exact=True,
)
# Then, so that the sum before a normalization is taken with it.
add_pattern = opaq.pattern(
    "add_rms_norm",
    lambda x, residual, eps, weight=None, offset=0.0: add_rms_norm(
        x, residual, weight, eps, offset
    )[:2],
    {**_EXAMPLES, "residual": torch.empty(2, 8, device="meta")},
    when=_when,
    streamed=("x", "residual"),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    measurements=Path(__file__).with_name("measured_add.json"),
)
pattern = opaq.pattern(
    "rms_norm",
    lambda x, eps, weight=None, offset=0.0: rms_norm(x, weight, eps, offset)[0],
    _EXAMPLES,
    when=_when,
    streamed=("x",),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    measurements=Path(__file__).with_name("measured.json"),
)


def _made_float8(norm):
    return [
        lambda x, weight, eps: made.plain(norm(x, weight, eps), False),
        lambda x, weight, eps, factor_least: made.by_factor(
            norm(x, weight, eps), False, factor_least
        ),
        lambda x, weight, eps, scale_least: made.scale_bounded(
            norm(x, weight, eps), True, scale_least
        ),
        lambda x, weight, eps, size_least: made.size_bounded(
            norm(x, weight, eps), True, size_least
        ),
        lambda x, weight, eps, factor_least: made.by_factor(
            norm(x, weight, eps), True, factor_least
        ),
        lambda x, weight, eps: made.plain(norm(x, weight, eps), True),
        lambda x, weight, eps, parts, block, columns, factor_least: made.blocks_by_factor(
            norm(x, weight, eps), parts, block, columns, factor_least
        ),
        lambda x, weight, eps, parts, block, columns: made.blocks_plain(
            norm(x, weight, eps), parts, block, columns
        ),
        lambda x, weight, eps, parts, block, columns, scale_least: made.blocks_scale_bounded(
            norm(x, weight, eps), parts, block, columns, scale_least
        ),
        lambda x, weight, eps, parts, block, columns, size_least: made.blocks_size_bounded(
            norm(x, weight, eps), parts, block, columns, size_least
        ),
        lambda x, weight, eps, parts, block, columns, size_least: made.flat_blocks_size_bounded(
            norm(x, weight, eps), parts, block, columns, size_least
        ),
    ]


for _normalized in (_scaled, _of_pytorch):
    for _made in _made_float8(_normalized):
        float8_pattern.spelling(_made)


def _with_offset(normalized):  # transformers: Gemma
    return lambda x, weight, eps, offset: normalized(x, weight + offset, eps)


def _after_a_sum(normalized):
    def spelling(x, residual, weight, eps):
        total = x + residual
        return normalized(total, weight, eps), total

    return spelling


def _with_offset_after_a_sum(normalized):
    def spelling(x, residual, weight, eps, offset):
        total = x + residual
        return normalized(total, weight + offset, eps), total

    return spelling


def _bare_after_a_sum(normalized):
    def spelling(x, residual, eps):
        total = x + residual
        return normalized(total, eps), total

    return spelling


# In this order, for what is found first is taken: those without a weight are parts of the others,
# and a weight may be the sum of another and a number.
for _normalized in _WEIGHTED:
    pattern.spelling(_with_offset(_normalized))
    add_pattern.spelling(_with_offset_after_a_sum(_normalized))
for _normalized in _WEIGHTED:
    pattern.spelling(_normalized)
    add_pattern.spelling(_after_a_sum(_normalized))
for _normalized in _BARE:
    pattern.spelling(_normalized)
    add_pattern.spelling(_bare_after_a_sum(_normalized))
