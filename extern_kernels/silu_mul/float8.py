"""SwiGLU activation with a float8 result and its scales in one launch, for inference: declaration
and reference.

silu_mul_float8(gate, up, block=0, rule=0, least=0.0) -> (y, scale)

gate, up: [..., n], of one shape and floating dtype; the halves of one projection, `gate, up =
    h.chunk(2, -1)` for a 2- or 3-dimensional h, are read where they lie
block: 0, one scale for each row; or 128, one for each 128 values of a row, and n a multiple of 128
y: float8_e4m3fn of gate's shape
scale: float32 [rows, 1], or [rows, n/128] with strides (1, rows); rows: gate.numel() / n

v = silu(gate) * up in float32, not rounded to gate's dtype; y and scale are made of v by
`rule` and `least` as by rms_norm_float8, and feed scaled_linear in the same way.

There is no gradient. Raises ValueError for another block or rule, a row length that the block does
not divide, or gate and up of different shapes or dtypes.
"""

import torch

import opaq

from .. import float8, gated, rows

silu_mul_float8 = opaq.op(
    "opaq_kernels::silu_mul_float8(Tensor gate, Tensor up, int block=0, int rule=0, "
    "float least=0.0) -> (Tensor y, Tensor scale)",
    outputs=float8.outputs("gate"),
)
_ROWS = rows.count("gate")
_CUDA = [
    rows.one_of("gate", rows.CUDA_DTYPES),
    *gated.SAME,
    *float8.fits("gate"),
]
_PACKS = rows.packs("gate")
# Threads for a row: up to two packs each in a warp, up to four each in 512 threads.
_LANES = (
    f"(max(1, next_power_of_2(ceil_div({_PACKS}, 2))) if {_PACKS} <= 64 else "
    f"min(512, max(32, next_power_of_2(ceil_div({_PACKS}, 4)))))"
)
_BLOCK_LANES = f"max({_LANES}, {float8.BLOCK} * gate.itemsize // 16)"
_HELD = 512 * 4
_ALIGNED = ["gate.size(-1) * gate.itemsize % 16 == 0", "aligned(gate, 16)", "aligned(up, 16)"]


_STRIDED = ["gate.dim() == 2 or gate.dim() == 3", *gated.strided("gate"), *gated.strided("up")]

for _name, _block, _lanes in [("rows", 0, _LANES), ("blocks", float8.BLOCK, _BLOCK_LANES)]:
    for _kind, _strides, _requires, _priority in [
        ("", "gate.size(-1), gate.size(-1)", [], 1),
        ("strided-", "gate.stride(-2), up.stride(-2)", _STRIDED, 2),
    ]:
        silu_mul_float8.cuda(
            name=f"cuda:{_kind}{_name}",
            source=opaq.file("float8.cu"),
            entry=f"silu_mul_float8<{{gate.dtype}}, {{{_lanes}}}, "
            f"{{ceil_div({_PACKS}, {_lanes})}}, {_block}, {{rule}}>",
            grid=f"ceil_div({_ROWS}, max(1, 256 // {_lanes}))",
            block=[_lanes, f"max(1, 256 // {_lanes})"],
            args=f"y, scale, gate, up, {_ROWS}, gate.size(-1), {_strides}, least",
            requires=[
                *_CUDA,
                f"block == {_block}",
                f"{_PACKS} <= {_HELD}",
                *_ALIGNED,
                *_requires,
            ],
            priority=_priority,
        )
    silu_mul_float8.cuda(
        name=f"cuda:any-{_name}",
        source=opaq.file("float8.cu"),
        entry=f"silu_mul_float8_any<{{gate.dtype}}, {_block}, {{rule}}>",
        grid=_ROWS,
        block=256,
        args=f"y, scale, gate, up, {_ROWS}, gate.size(-1), least",
        requires=[*_CUDA, f"block == {_block}"],
    )
silu_mul_float8.cpu(
    source=opaq.file("float8.cpp"),
    entry="silu_mul_float8<{gate.dtype}>",
    args=f"y, scale, gate, up, {_ROWS}, gate.size(-1), block, rule, least",
    requires=[
        rows.one_of("gate", rows.CPU_DTYPES),
        *gated.SAME,
        *float8.fits("gate"),
    ],
)


@silu_mul_float8.reference
def silu_mul_float8_reference(
    gate: torch.Tensor, up: torch.Tensor, block: int = 0, rule: int = 0, least: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    gated.check("silu_mul_float8", gate, up)
    float8.check("silu_mul_float8", "gate", gate.shape, block, rule, least)
    wide = torch.promote_types(gate.dtype, torch.float32)
    v = torch.nn.functional.silu(gate.to(wide)) * up.to(wide)
    return float8.quantize(v.float(), block, rule, least)


silu_mul_float8.backward(None)
