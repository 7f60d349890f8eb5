"""RMSNorm over the last dimension, with its gradient: declaration and reference.

rms_norm(x, weight, eps=1e-6, offset=0.0) -> (y, rstd)

x: [..., n], floating
weight: [n], of x's dtype or float32; or None, which is as a weight of ones
offset: added to the weight in float32: 1 for models that keep their weights around zero (Gemma)
y: x * rstd * (weight + offset), x's shape and dtype, rounded once from float32
rstd: 1 / sqrt(mean(x^2) + eps), [...], float32 (float64 for a float64 x); differentiable too

Formula: Zhang and Sennrich 2019, arXiv:1910.07467. Raises ValueError for a weight of another
length, and for an offset without a weight.
"""

import torch

import opaq

from .. import rows
from ..rows import (
    CPU,
    CUDA,
    DTYPES,
    FLOAT,
    HEIGHT_BACKWARD,
    HELD,
    HELD_BACKWARD,
    ITEMS,
    ITEMS_BACKWARD,
    LANES,
    LANES_BACKWARD,
    PACKS,
    ROWS,
    SHARED_BACKWARD,
    STAGES_BACKWARD,
)
from ..rows_of_clusters import Cluster
from ..sum_of_blocks.sum_of_blocks import sum_of_blocks

# Wide rows that norm_backward_pipelined.cuh takes two at a time, as far as this was faster.
_TWO_ROWS = f"x.itemsize == 2 and {PACKS} > 8192 and {PACKS} <= 8 * 2048"
BLOCKS = rows.blocks(HELD_BACKWARD, _TWO_ROWS)
PER_BLOCK = rows.per_block(BLOCKS)

rms_norm = opaq.op(
    "opaq_kernels::rms_norm(Tensor x, Tensor? weight, float eps=1e-6, float offset=0.0) "
    "-> (Tensor y, Tensor rstd)",
    outputs={"y": opaq.like("x"), "rstd": opaq.tensor("x.shape[:-1]", dtype=FLOAT)},
)
rms_norm_backward = opaq.op(
    "opaq_kernels::rms_norm_backward(Tensor grad_y, Tensor? grad_rstd, Tensor x, Tensor? weight, "
    "Tensor rstd, Tensor? added=None, float offset=0.0, bool sums=True) "
    "-> (Tensor grad_x, Tensor partial)",
    outputs={
        "grad_x": opaq.like("x"),
        # of each block, or of none unless `sums`: what its rows add to grad_weight
        "partial": opaq.tensor(f"({BLOCKS} if sums else 0), x.size(-1)", dtype=FLOAT),
    },
    accumulates="added",
)

OFFSET = "defined(weight) or offset == 0"
WEIGHT = "(0 if not defined(weight) else 1 if offset == 0 else 2)"  # as opaq::weighted has it

# ---- CUDA: a row in registers where it fits and is aligned, else two passes over it --------------

_CUDA = [*CUDA, OFFSET]
_ALIGNED = rows.aligned("x", "y", optional=("weight",))
# Wider rows, forward: clusters of up to 8 blocks of up to 512 threads with up to 8 packs each in
# shared memory, two rows one after the other.
_RANKS = rows.sharing(PACKS, 512 * 8)
_THREADS = f"min(512, {rows.fitting(PACKS, _RANKS, 8)})"
_SLOTS = rows.slots(PACKS, _RANKS, _THREADS, 8)
# Many of the rows that clusters compute, where blocks can have so much shared memory: clusters of 4
# or 8 blocks that work on several rows at once (rms_norm_pipelined.cu), each block on up to 2048
# packs of a row, whose weights it keeps. Few rows are left to the kernel above, of which more
# blocks are resident.
KEPT = "16 // x.itemsize * weight.itemsize if defined(weight) else 0"
_PIPELINED = rows.Pipelined(PACKS, ROWS, (4, 8), KEPT)
# Where the kernel above was slower: in 16 bits (float32 was not measured), rows of more than 8192
# packs; of fewer, those that are not whole lines of 128 bytes, and few rows, unless blocks have far
# fewer packs than they could have.
_FASTER = [
    f"x.itemsize == 2 and {PACKS} > 512 * 8",
    f"{PACKS} > 8192 or {PACKS} % 8 != 0 or {ROWS} <= 1024 and {_PIPELINED.chunk} >= 960",
]
# Where there are more rows of up to 256 KB, clusters of 8 blocks that hold one row each, in
# registers (rms_norm_of_clusters.cu), were faster than both: of at least 512 rows of 128 KB.
_CLUSTER = Cluster(PACKS, ROWS, 8)
_MANY = [f"x.itemsize == 2 and {PACKS} > 512 * 8 and {PACKS} <= 512 * 32", f"{ROWS} >= 512"]

rms_norm.cuda(
    name="cuda:registers",
    source=opaq.file("rms_norm.cu"),
    entry=f"rms_norm<{DTYPES}, {{{LANES}}}, {{{ITEMS}}}, {{{WEIGHT}}}>",
    grid=f"ceil_div({ROWS}, 256 // {LANES})",
    block=[LANES, f"256 // {LANES}"],
    args=f"y, rstd, x, weight, {ROWS}, x.size(-1), eps, offset",
    requires=[*_CUDA, *_ALIGNED, f"{PACKS} <= {HELD}"],
    priority=1,
)
rms_norm.cuda(
    name="cuda:pipelined",
    source=opaq.file("rms_norm_pipelined.cu"),
    entry=f"rms_norm_pipelined<{DTYPES}, {_PIPELINED.template}, {{{WEIGHT}}}>",
    **_PIPELINED.launch,
    args=f"y, rstd, x, weight, {ROWS}, {_PIPELINED.args}, x.size(-1), eps, offset",
    requires=[*_CUDA, *_ALIGNED, *_PIPELINED.requires, *_FASTER],
    priority=1,
)
rms_norm.cuda(
    name="cuda:clusters",
    source=opaq.file("rms_norm_of_clusters.cu"),
    entry=f"rms_norm_of_clusters<{DTYPES}, {_CLUSTER.template}, {{{WEIGHT}}}>",
    **_CLUSTER.launch,
    args=f"y, rstd, x, weight, {_CLUSTER.part}, x.size(-1), eps, offset",
    requires=[*_CUDA, *_ALIGNED, *_CLUSTER.requires, *_MANY],
    priority=2,
)
rms_norm.cuda(
    name="cuda:wide",
    source=opaq.file("rms_norm_wide.cu"),
    entry=f"rms_norm_wide<{DTYPES}, {{{_THREADS}}}, {{{_RANKS}}}, {{{WEIGHT}}}>",
    grid=f"{_RANKS} * ceil_div({ROWS}, 2)",
    block=_THREADS,
    shared=f"{_SLOTS} * {_THREADS} * 16",
    args=f"y, rstd, x, weight, {ROWS}, {_SLOTS}, x.size(-1), eps, offset",
    requires=[*_CUDA, *_ALIGNED, f"{PACKS} > {HELD}"],
    priority=1,
)
rms_norm.cuda(
    name="cuda:any",
    source=opaq.file("rms_norm.cu"),
    entry=f"rms_norm_any<{DTYPES}>",
    grid=ROWS,
    block=256,
    args="y, rstd, x, weight, x.size(-1), eps, offset",
    requires=_CUDA,
)
_BACKWARD_ARGS = (
    f"grad_x, partial, grad_y, grad_rstd, x, weight, rstd, added, {ROWS}, {PER_BLOCK}, "
    "x.size(-1), offset, sums"
)
_ADDED = "added.dtype == x.dtype and added.shape == x.shape"
_BACKWARD_CUDA = [
    *CUDA,
    "grad_y.dtype == x.dtype",
    "not defined(grad_rstd) or grad_rstd.dtype == float32",
    "rstd.dtype == float32",
    f"not defined(added) or {_ADDED}",
]
_BACKWARD_ALIGNED = rows.aligned("grad_y", "x", "grad_x", optional=("weight", "added"))
for _name, _adds, _condition in [
    ("cuda:ahead", "false", "not defined(added)"),
    ("cuda:ahead-added", "true", "defined(added)"),
]:
    rms_norm_backward.cuda(
        name=_name,
        source=opaq.file("rms_norm_backward.cu"),
        entry=f"rms_norm_backward_ahead<{DTYPES}, {{{LANES_BACKWARD}}}, {{{ITEMS_BACKWARD}}}, "
        f"{{{STAGES_BACKWARD}}}, {_adds}>",
        grid=BLOCKS,
        block=[LANES_BACKWARD, HEIGHT_BACKWARD],
        shared=SHARED_BACKWARD,
        args=_BACKWARD_ARGS,
        requires=[*_BACKWARD_CUDA, *_BACKWARD_ALIGNED, f"{PACKS} <= {HELD_BACKWARD}", _condition],
        priority=1,
    )
    rows.declare_wide_backward(
        rms_norm_backward,
        _name.replace("ahead", "{}"),
        "rms_norm_backward_pipelined",
        DTYPES,
        f", {_adds}",
        BLOCKS,
        _TWO_ROWS,
        [*_BACKWARD_CUDA, *_BACKWARD_ALIGNED, _condition],
        source=opaq.file("rms_norm_backward.cu"),
        args=_BACKWARD_ARGS,
    )
rms_norm_backward.cuda(
    name="cuda:any",
    source=opaq.file("rms_norm_backward.cu"),
    entry=f"rms_norm_backward_any<{DTYPES}>",
    grid=[BLOCKS, rows.SHARES],
    block=256,
    args=_BACKWARD_ARGS,
    requires=_BACKWARD_CUDA,
)

# ---- CPU -----------------------------------------------------------------------------------------

rms_norm.cpu(
    source=opaq.file("rms_norm.cpp"),
    entry="rms_norm<{x.dtype}>",
    args=f"y, rstd, x, weight, {ROWS}, x.size(-1), eps, offset",
    requires=[*CPU, OFFSET],
)
rms_norm_backward.cpu(
    source=opaq.file("rms_norm.cpp"),
    entry="rms_norm_backward<{x.dtype}>",
    args=f"grad_x, partial, grad_y, grad_rstd, x, weight, rstd, added, {ROWS}, {PER_BLOCK}, "
    f"partial.size(0), x.size(-1), offset, sums",
    requires=[
        *CPU,
        "grad_y.dtype == x.dtype",
        "not defined(grad_rstd) or grad_rstd.dtype == x.dtype",
        "rstd.dtype == x.dtype",
        f"not defined(added) or {_ADDED}",
    ],
)

# ---- meaning and gradient ------------------------------------------------------------------------


@rms_norm.reference
def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float = 1e-6, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    rows.check_parameter("rms_norm", "weight", weight, x)
    if weight is None and offset != 0:
        raise ValueError(
            f"rms_norm: offset is {offset}, but there is no weight that it could be added to; "
            "expected 0, or a weight"
        )
    wide = x.double() if x.dtype == torch.float64 else x.float()
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    return _weighted(wide * rstd.unsqueeze(-1), weight, offset).to(x.dtype), rstd


@rms_norm_backward.reference
def rms_norm_backward_reference(
    grad_y: torch.Tensor,
    grad_rstd: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    rstd: torch.Tensor,
    added: torch.Tensor | None = None,
    offset: float = 0.0,
    sums: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    n = x.size(-1)
    scale = rstd.unsqueeze(-1)
    grad, v = grad_y.to(rstd.dtype), x.to(rstd.dtype)
    g = _weighted(grad, weight, offset)
    dot = (g * v).sum(-1) + (0 if grad_rstd is None else grad_rstd)
    grad_x = g * scale - v * (dot * rstd.pow(3) / n).unsqueeze(-1)
    if added is not None:
        grad_x = grad_x + added
    if not sums:
        return grad_x.to(x.dtype), rstd.new_empty(0, n)
    of_rows = (grad * v * scale).reshape(rstd.numel(), n)
    two_rows = x.itemsize == 2 and 8192 < n * x.itemsize // 16 <= 8 * 2048
    return grad_x.to(x.dtype), rows.sums_by_block(of_rows, x, HELD_BACKWARD, two_rows)


def _weighted(values: torch.Tensor, weight: torch.Tensor | None, offset: float) -> torch.Tensor:
    """Of float32 or float64 values."""
    return values if weight is None else values * (weight.to(values.dtype) + offset)


def gradients(
    grad_y: torch.Tensor | None,
    grad_rstd: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    rstd: torch.Tensor,
    added: torch.Tensor | None,
    offset: float,
    sums: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of x, and of the weight if `sums`."""
    if grad_y is None:
        grad_y = torch.zeros_like(x)
    grad_x, partial = rms_norm_backward(grad_y, grad_rstd, x, weight, rstd, added, offset, sums)
    return grad_x, sum_of_blocks(partial, weight) if sums and weight is not None else None


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, offset = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.offset = offset
    ctx.set_materialize_grads(False)  # few use rstd: no zeros are made for it


def _backward(ctx, grad_y: torch.Tensor | None, grad_rstd: torch.Tensor | None):
    sums = ctx.needs_input_grad[1]
    found = gradients(grad_y, grad_rstd, *ctx.saved_tensors, None, ctx.offset, sums)
    return *found, None, None


rms_norm.backward(_backward, setup_context=_setup_context)
