"""RMSNorm with a float8 result and its scales in one launch, for inference: declaration and
reference.

rms_norm_float8(x, weight, eps=1e-6, block=0, rule=0, least=0.0) -> (y, scale)

x: [..., n], floating
weight: [n], of x's dtype
block: 0, one scale for each row; or 128, one for each 128 values of a row, and n a multiple of 128
y: float8_e4m3fn of x's shape
scale: float32 [rows, 1], or [rows, n/128] with strides (1, rows); rows: x.numel() / n

v = x * rstd * weight in float32, as of rms_norm, not rounded to x's dtype; largest: max|v| of the
row or block; all in float32:
    rule 0: scale = largest / 448, not below 2^-126, and 1 where all are zero; y = v * (1 / scale)
    rule 1: scale = largest / 448, not below `least`; y = v / scale
    rule 2: largest is at least `least`, scale = largest / 448; y = v / scale
    rule 3: the same scale; y = v * (448 / largest), as DeepGEMM's per_token_cast_to_fp8
y is rounded to nearest even and saturated: y * scale is v. A NaN makes NaN of its row.

scaled_linear(y, weight, scale, weight_scale) takes both as they are; with block=128 it wants a
number of rows that is a multiple of 4, and scales of the weight for each 128 values or block.

There is no gradient. Raises ValueError for another block or rule, a negative `least`, a row length
that the block does not
divide, or a weight of another length.
"""

import torch

import opaq

from .. import float8, rows
from ..rows import CPU, CUDA, HELD, LANES, PACKS

rms_norm_float8 = opaq.op(
    "opaq_kernels::rms_norm_float8(Tensor x, Tensor weight, float eps=1e-6, int block=0, "
    "int rule=0, float least=0.0) -> (Tensor y, Tensor scale)",
    outputs=float8.outputs("x"),
)
_ROWS = rows.count("x")
_CUDA = [*CUDA, "weight.dtype == x.dtype"]

# Threads for a row: as rms_norm has; where rows are many, each thread of longer ones takes up to
# eight packs, since much of what is computed for a row or a block of 128 values does not depend on
# how many threads share it.
_FEW = f"({PACKS} <= 128 or {_ROWS} < 1024)"
_LANES = f"({LANES} if {_FEW} else min(256, next_power_of_2(ceil_div({PACKS}, 8))))"
# A block of 128 values is held by neighbouring lanes, one pack each.
_BLOCK_LANES = f"max({_LANES}, {float8.BLOCK} * x.itemsize // 16)"
for _name, _block, _lanes, _threads in [
    ("rows", 0, _LANES, f"(256 if {_FEW} else 64)"),
    ("blocks", float8.BLOCK, _BLOCK_LANES, f"(256 if {_FEW} else 128)"),
]:
    _height = f"max(1, {_threads} // {_lanes})"
    rms_norm_float8.cuda(
        name=f"cuda:{_name}",
        source=opaq.file("float8.cu"),
        entry=f"rms_norm_float8<{{x.dtype}}, {{{_lanes}}}, {{ceil_div({PACKS}, {_lanes})}}, "
        f"{{{_lanes} * {_height}}}, {_block}, {{rule}}>",
        grid=f"ceil_div({_ROWS}, {_height})",
        block=[_lanes, _height],
        args=f"y, scale, x, weight, {_ROWS}, x.size(-1), eps, least",
        requires=[
            *_CUDA,
            *float8.fits("x"),
            *rows.aligned("x", "weight", "y"),
            f"{PACKS} <= {HELD}",
            f"block == {_block}",
        ],
        priority=1,
    )
    rms_norm_float8.cuda(
        name=f"cuda:any-{_name}",
        source=opaq.file("float8.cu"),
        entry=f"rms_norm_float8_any<{{x.dtype}}, {_block}, {{rule}}>",
        grid=_ROWS,
        block=256,
        args=f"y, scale, x, weight, {_ROWS}, x.size(-1), eps, least",
        requires=[*_CUDA, *float8.fits("x"), f"block == {_block}"],
    )
rms_norm_float8.cpu(
    source=opaq.file("float8.cpp"),
    entry="rms_norm_float8<{x.dtype}>",
    args=f"y, scale, x, weight, {_ROWS}, x.size(-1), block, eps, rule, least",
    requires=[*CPU, *float8.fits("x")],
)


@rms_norm_float8.reference
def rms_norm_float8_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    block: int = 0,
    rule: int = 0,
    least: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    float8.check("rms_norm_float8", "x", x.shape, block, rule, least)
    rows.check_parameter("rms_norm_float8", "weight", weight, x)
    wide = x.double() if x.dtype == torch.float64 else x.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return float8.quantize((wide * rstd * weight).float(), block, rule, least)


rms_norm_float8.backward(None)
