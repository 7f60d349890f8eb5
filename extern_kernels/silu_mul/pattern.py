"""SwiGLU in unmodified models: silu(gate) * up."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from .. import float8_spellings as made
from .. import gated
from .float8 import silu_mul_float8
from .silu_mul import silu_mul

_EXAMPLES = {"gate": torch.empty(2, 8, device="meta"), "up": torch.empty(2, 8, device="meta")}


def _float8(
    gate,
    up,
    scale_least=None,
    size_least=None,
    factor_least=None,
    parts=None,
    block=None,
    columns=None,
):
    least = {"scale_least": scale_least, "size_least": size_least, "factor_least": factor_least}
    return made.results(silu_mul_float8, gate, up, **least, block=block)


# First, so that a product is taken with what follows it.
float8_pattern = opaq.pattern(
    "silu_mul_float8",
    _float8,
    {
        "gate": torch.empty(2, 256, device="meta"),
        "up": torch.empty(2, 256, device="meta"),
        **made.NUMBERS,
        **made.SIZES,
    },
    when=lambda arguments: made.refusal(arguments, "gate") or gated.refusal(arguments),
    streamed=("gate", "up"),
    sizes=lambda arguments: rows_and_columns(arguments["gate"]),
    measurements=Path(__file__).with_name("measured_float8.json"),
    exact=True,
)


for _made in [
    lambda gate, up: made.plain(F.silu(gate) * up, False),
    lambda gate, up, factor_least: made.by_factor(F.silu(gate) * up, False, factor_least),
    lambda gate, up, scale_least: made.scale_bounded(F.silu(gate) * up, True, scale_least),
    lambda gate, up, size_least: made.size_bounded(F.silu(gate) * up, True, size_least),
    lambda gate, up, factor_least: made.by_factor(F.silu(gate) * up, True, factor_least),
    lambda gate, up: made.plain(F.silu(gate) * up, True),
    lambda gate, up, parts, block, columns, factor_least: made.blocks_by_factor(
        F.silu(gate) * up, parts, block, columns, factor_least
    ),
    lambda gate, up, parts, block, columns: made.blocks_plain(
        F.silu(gate) * up, parts, block, columns
    ),
    lambda gate, up, parts, block, columns, scale_least: made.blocks_scale_bounded(
        F.silu(gate) * up, parts, block, columns, scale_least
    ),
    lambda gate, up, parts, block, columns, size_least: made.blocks_size_bounded(
        F.silu(gate) * up, parts, block, columns, size_least
    ),
    lambda gate, up, parts, block, columns, size_least: made.flat_blocks_size_bounded(
        F.silu(gate) * up, parts, block, columns, size_least
    ),
]:
    float8_pattern.spelling(_made)

pattern = opaq.pattern(
    "silu_mul",
    lambda gate, up: silu_mul(gate, up),
    _EXAMPLES,
    when=gated.refusal,
    streamed=("gate", "up"),
    sizes=lambda arguments: rows_and_columns(arguments["gate"]),
    measurements=Path(__file__).with_name("measured.json"),
)


@pattern.spelling
def _(gate, up):
    return F.silu(gate) * up


@pattern.spelling
def _(gate, up):
    return gate * torch.sigmoid(gate) * up


@pattern.spelling
def _(gate, up):
    return gate / (1 + torch.exp(-gate)) * up
