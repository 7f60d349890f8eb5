"""LayerNorm over the last dimension, with its gradient: declaration and reference.

layer_norm(x, weight, bias, eps=1e-5) -> (y, mean, rstd)

x: [..., n], floating
weight, bias: [n], of x's dtype, or both float32; or None, which is as ones or zeros
y: (x - mean) * rstd * weight + bias, x's shape and dtype, rounded once from float32
mean: of the last dimension, [...], float32 (float64 for a float64 x); differentiable too
rstd: 1 / sqrt(mean((x - mean)^2) + eps), as mean

Formula: Ba, Kiros and Hinton 2016, arXiv:1607.06450. Raises ValueError for a weight or a bias of
another length.
"""

import torch

import opaq

from .. import rows
from ..rows import (
    CPU,
    CUDA,
    FLOAT,
    HELD,
    HELD_BACKWARD,
    ITEMS,
    ITEMS_BACKWARD,
    LANES,
    LANES_BACKWARD,
    PACKS,
    ROWS,
    STAGES_BACKWARD,
)
from ..sum_of_blocks.sum_of_blocks import sum_of_blocks

# Blocks of consecutive rows, whose sums for the gradients of weight and bias are partial results.
# One block of wide rows keeps a multiprocessor busy, and its sums, two rows of float32, are to be
# written and added up: there are no more of them than an H100 or H200 has multiprocessors.
_NARROW = 512  # the most packs of a narrow row
# Wide rows that norm_backward_pipelined.cuh takes two at a time, as far as this was faster.
_TWO_ROWS = (
    f"{PACKS} > 8192 and {PACKS} <= 8 * 2048 if x.dtype == float32 else "
    f"{PACKS} > 4096 and {PACKS} <= 8192 and defined(weight) and weight.dtype == float32"
)
_BLOCKS = rows.blocks(_NARROW, _TWO_ROWS)
_PER_BLOCK = rows.per_block(_BLOCKS)

layer_norm = opaq.op(
    "opaq_kernels::layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps=1e-5) -> "
    "(Tensor y, Tensor mean, Tensor rstd)",
    outputs={
        "y": opaq.like("x"),
        "mean": opaq.tensor("x.shape[:-1]", dtype=FLOAT),
        "rstd": opaq.tensor("x.shape[:-1]", dtype=FLOAT),
    },
)
layer_norm_backward = opaq.op(
    "opaq_kernels::layer_norm_backward(Tensor grad_y, Tensor? grad_mean, Tensor? grad_rstd, "
    "Tensor x, Tensor? weight, Tensor mean, Tensor rstd, bool sums=True) "
    "-> (Tensor grad_x, Tensor partial)",
    outputs={
        "grad_x": opaq.like("x"),
        # of each block, or of none unless `sums`: what its rows add to grad_weight and grad_bias
        "partial": opaq.tensor(f"({_BLOCKS} if sums else 0), 2, x.size(-1)", dtype=FLOAT),
    },
)

# ---- CUDA: a row in registers where it fits and is aligned, else two passes over it --------------

# Rows that these threads take at a time: two where they are short and still fill the device.
_EACH = f"(2 if {ITEMS} <= 2 and {ROWS} * {LANES} >= 2048 * 256 else 1)"

# Wider rows, forward: clusters of up to 8 blocks of 192 or 256 threads with up to 16 packs each in
# shared memory: of one row, or, where there are rows enough, of two, and of two more after these.
_RANKS = rows.sharing(PACKS, 256 * 8)
_THREADS = f"(192 if {PACKS} <= 192 * 8 * {_RANKS} else 256)"
_SLOTS = rows.slots(PACKS, _RANKS, _THREADS, 16)
_TOGETHER = f"(2 if {_SLOTS} <= 8 and {ROWS} * {_RANKS} >= 1024 else 1)"

# Many of these rows, where blocks can have so much shared memory: clusters that work on several
# rows at once (layer_norm_pipelined.cu), each block on up to 2048 packs of a row. Few rows are left
# to the kernel above, of which three blocks a multiprocessor are resident. In shared memory are
# chunks of rows, and the weights and biases of the block's columns.
_PIPELINED = rows.Pipelined(
    PACKS,
    ROWS,
    (2, 3, 4, 5, 8, 16),
    "2 * 16 // x.itemsize * (weight.itemsize if defined(weight) else bias.itemsize "
    "if defined(bias) else x.itemsize)",
)
# Where the kernel above was slower: for rows of whole lines of 128 bytes; in float32, not with
# clusters of two blocks; in 16 bits, not where threads are mostly idle in the last step of a chunk,
# and with clusters of 3 and 5 blocks, where nearly all threads are busy in it.
_CHUNK = f"(768 if {_PIPELINED.ranks} % 2 == 0 else 960)"
_IN_16_BITS = f"{PACKS} > 2048 and {_PIPELINED.chunk} >= {_CHUNK}"
_FASTER = [
    f"{PACKS} % 8 == 0",
    f"{PACKS} > 4096 if x.dtype == float32 else {_IN_16_BITS}",
]

_CUDA = [
    *CUDA,
    rows.parameter("bias", float32=True),
    "not defined(weight) or not defined(bias) or bias.dtype == weight.dtype",
]
_DTYPES = rows.DTYPES.replace("else x.dtype", "else bias.dtype if defined(bias) else x.dtype")
_GIVEN = "{defined(weight)}, {defined(bias)}"
_ALIGNED = rows.aligned("x", "y", optional=("weight", "bias"))

layer_norm.cuda(
    name="cuda:registers",
    source=opaq.file("layer_norm.cu"),
    entry=f"layer_norm<{_DTYPES}, {{{LANES}}}, {{{ITEMS}}}, {{{_EACH}}}, {_GIVEN}>",
    grid=f"ceil_div({ROWS}, 256 // {LANES} * {_EACH})",
    block=[LANES, f"256 // {LANES}"],
    args=f"y, mean, rstd, x, weight, bias, {ROWS}, x.size(-1), eps",
    requires=[*_CUDA, *_ALIGNED, f"{PACKS} <= {HELD}"],
    priority=1,
)
layer_norm.cuda(
    name="cuda:pipelined",
    source=opaq.file("layer_norm_pipelined.cu"),
    entry=f"layer_norm_pipelined<{_DTYPES}, {_PIPELINED.template}, {_GIVEN}>",
    **_PIPELINED.launch,
    cluster=_PIPELINED.ranks,  # so that clusters of 16 are allowed
    args=f"y, mean, rstd, x, weight, bias, {ROWS}, {_PIPELINED.args}, x.size(-1), eps",
    requires=[*_CUDA, *_ALIGNED, *_PIPELINED.requires, *_FASTER],
    priority=1,
)
layer_norm.cuda(
    name="cuda:wide",
    source=opaq.file("layer_norm_wide.cu"),
    entry=f"layer_norm_wide<{_DTYPES}, {{{_THREADS}}}, {{{_RANKS}}}, {{{_TOGETHER}}}, {_GIVEN}>",
    grid=f"{_RANKS} * ceil_div({ROWS}, 4 if {_TOGETHER} == 2 else 1)",
    block=_THREADS,
    shared=f"{_TOGETHER} * {_SLOTS} * {_THREADS} * 16",
    args=f"y, mean, rstd, x, weight, bias, {ROWS}, {_SLOTS}, x.size(-1), eps",
    requires=[*_CUDA, *_ALIGNED, f"{PACKS} > {HELD}"],
    priority=1,
)
layer_norm.cuda(
    name="cuda:any",
    source=opaq.file("layer_norm.cu"),
    entry=f"layer_norm_any<{_DTYPES}>",
    grid=ROWS,
    block=256,
    args="y, mean, rstd, x, weight, bias, x.size(-1), eps",
    requires=_CUDA,
)
_BACKWARD_ARGS = (
    f"grad_x, partial, grad_y, grad_mean, grad_rstd, x, weight, mean, rstd, {ROWS}, "
    f"{_PER_BLOCK}, x.size(-1), sums"
)
_BACKWARD_CUDA = [
    *CUDA,
    "grad_y.dtype == x.dtype",
    *(f"{name}.dtype == float32" for name in ("mean", "rstd")),
    *(f"not defined({name}) or {name}.dtype == float32" for name in ("grad_mean", "grad_rstd")),
]
_BACKWARD_ALIGNED = rows.aligned("grad_y", "x", "grad_x", optional=("weight",))
# Wide rows, backward: in a round, a block takes one or two rows, and each thread two to four packs
# of them, in up to 96 KB of shared memory, which every device from sm_80 on has. Where one stage
# is all that fits, registers hold its packs, and its slots are filled again at once.
_WIDE = f"{PACKS} > {_NARROW}"
_WIDE_ITEMS = f"(1 if {PACKS} <= 768 else 2 if {PACKS} <= 1024 else 3 if {PACKS} <= 1536 else 4)"
_WIDE_STAGES = f"(2 if {_WIDE_ITEMS} % 2 == 1 else 3 if {_WIDE_ITEMS} == 2 else 1)"
_LANES_BACKWARD = f"({rows.fitting(PACKS, 1, _WIDE_ITEMS)} if {_WIDE} else {LANES_BACKWARD})"
_ITEMS_BACKWARD = f"({_WIDE_ITEMS} if {_WIDE} else {ITEMS_BACKWARD})"
_EACH_BACKWARD = f"(2 if {_WIDE} and {PACKS} <= 768 else 1)"
_STAGES_BACKWARD = f"({_WIDE_STAGES} if {_WIDE} else {STAGES_BACKWARD})"
_PACKS_BACKWARD = f"{_ITEMS_BACKWARD} * {_EACH_BACKWARD}"  # of a thread, of each tensor
layer_norm_backward.cuda(
    name="cuda:ahead",
    source=opaq.file("layer_norm_backward.cu"),
    entry=f"layer_norm_backward_ahead<{rows.DTYPES}, {{{_LANES_BACKWARD}}}, {{{_ITEMS_BACKWARD}}}, "
    f"{{{_EACH_BACKWARD}}}, {{{_STAGES_BACKWARD}}}>",
    grid=_BLOCKS,
    block=[_LANES_BACKWARD, rows.height_backward(_LANES_BACKWARD)],
    shared=rows.shared_backward(_STAGES_BACKWARD, _PACKS_BACKWARD, _LANES_BACKWARD),
    args=_BACKWARD_ARGS,
    requires=[*_BACKWARD_CUDA, *_BACKWARD_ALIGNED, f"{PACKS} <= {HELD_BACKWARD}"],
    priority=1,
)
rows.declare_wide_backward(
    layer_norm_backward,
    "cuda:{}",
    "layer_norm_backward_pipelined",
    rows.DTYPES,
    "",
    _BLOCKS,
    _TWO_ROWS,
    [*_BACKWARD_CUDA, *_BACKWARD_ALIGNED],
    source=opaq.file("layer_norm_backward.cu"),
    args=_BACKWARD_ARGS,
)
layer_norm_backward.cuda(
    name="cuda:any",
    source=opaq.file("layer_norm_backward.cu"),
    entry=f"layer_norm_backward_any<{rows.DTYPES}>",
    grid=[_BLOCKS, rows.SHARES],
    block=256,
    args=_BACKWARD_ARGS,
    requires=_BACKWARD_CUDA,
)

# ---- CPU -----------------------------------------------------------------------------------------

layer_norm.cpu(
    source=opaq.file("layer_norm.cpp"),
    entry="layer_norm<{x.dtype}>",
    args=f"y, mean, rstd, x, weight, bias, {ROWS}, x.size(-1), eps",
    requires=[*CPU, rows.parameter("bias")],
)
layer_norm_backward.cpu(
    source=opaq.file("layer_norm.cpp"),
    entry="layer_norm_backward<{x.dtype}>",
    args=f"grad_x, partial, grad_y, grad_mean, grad_rstd, x, weight, mean, rstd, {ROWS}, "
    f"{_PER_BLOCK}, partial.size(0), x.size(-1), sums",
    requires=[
        *CPU,
        *(f"{name}.dtype == x.dtype" for name in ("grad_y", "mean", "rstd")),
        *(f"not defined({name}) or {name}.dtype == x.dtype" for name in ("grad_mean", "grad_rstd")),
    ],
)

# ---- meaning and gradient ------------------------------------------------------------------------


@layer_norm.reference
def layer_norm_reference(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows.check_parameter("layer_norm", "weight", weight, x)
    rows.check_parameter("layer_norm", "bias", bias, x)
    wide = x.double() if x.dtype == torch.float64 else x.float()
    mean = wide.mean(-1)
    apart = wide - mean.unsqueeze(-1)
    rstd = torch.rsqrt(apart.square().mean(-1) + eps)
    y = apart * rstd.unsqueeze(-1)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype), mean, rstd


@layer_norm_backward.reference
def layer_norm_backward_reference(
    grad_y: torch.Tensor,
    grad_mean: torch.Tensor | None,
    grad_rstd: torch.Tensor | None,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    sums: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    n = x.size(-1)
    scale = rstd.unsqueeze(-1)
    grad, v = grad_y.to(rstd.dtype), x.to(rstd.dtype) - mean.unsqueeze(-1)
    g = grad if weight is None else grad * weight
    shift = (g.sum(-1) * rstd - (0 if grad_mean is None else grad_mean)) / n
    pull = ((g * v).sum(-1) + (0 if grad_rstd is None else grad_rstd)) * rstd.pow(3) / n
    grad_x = (g * scale - shift.unsqueeze(-1) - v * pull.unsqueeze(-1)).to(x.dtype)
    if not sums:
        return grad_x, rstd.new_empty(0, 2, n)
    both = torch.stack([grad * v * scale, grad], -2)
    of_rows = both.reshape(rstd.numel(), 2, n)
    return grad_x, rows.sums_by_block(of_rows, x, _NARROW, _two_rows(x, weight))


def _two_rows(x: torch.Tensor, weight: torch.Tensor | None) -> bool:
    """_TWO_ROWS"""
    packs = x.size(-1) * x.itemsize // 16
    if x.dtype == torch.float32:
        return 8192 < packs <= 8 * 2048
    return 4096 < packs <= 8192 and weight is not None and weight.dtype == torch.float32


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias = inputs[:3]
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.dtypes = [None if each is None else each.dtype for each in (weight, bias)]
    ctx.set_materialize_grads(False)  # few use mean and rstd: no zeros are made for them


def _backward(
    ctx,
    grad_y: torch.Tensor | None,
    grad_mean: torch.Tensor | None,
    grad_rstd: torch.Tensor | None,
):
    x, weight, mean, rstd = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(x)
    needed = ctx.needs_input_grad[1:3]
    grad_x, partial = layer_norm_backward(
        grad_y, grad_mean, grad_rstd, x, weight, mean, rstd, any(needed)
    )
    if not any(needed):
        return grad_x, None, None, None
    wanted = {dtype for dtype, need in zip(ctx.dtypes, needed) if need}
    like = x if wanted == {x.dtype} else rstd
    of_both = sum_of_blocks(partial, like)
    grads = [
        each.to(dtype) if need else None for each, dtype, need in zip(of_both, ctx.dtypes, needed)
    ]
    return grad_x, *grads, None


layer_norm.backward(_backward, setup_context=_setup_context)
