"""RMSNorm of x + residual, with its gradient, in one launch: declaration and reference.

add_rms_norm(x, residual, weight, eps=1e-6, offset=0.0, unrounded=False) -> (y, sum, rstd)

x, residual: [..., n], floating, of one shape and dtype
sum: x + residual, in their dtype
weight, y, rstd: as of rms_norm(sum, weight, eps, offset), which says which errors there are too
unrounded: whether y and rstd are those of the sum in float32, before it is rounded to `sum` (the
    gradient is computed from `sum`, in either case)
"""

import torch

import opaq

from .. import rows
from ..rows import CPU, CUDA, DTYPES, FLOAT, HELD, ITEMS, LANES, PACKS, ROWS
from .rms_norm import KEPT, OFFSET, WEIGHT, gradients, rms_norm_reference

add_rms_norm = opaq.op(
    "opaq_kernels::add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps=1e-6, "
    "float offset=0.0, bool unrounded=False) -> (Tensor y, Tensor sum, Tensor rstd)",
    outputs={
        "y": opaq.like("x"),
        "sum": opaq.like("x"),
        "rstd": opaq.tensor("x.shape[:-1]", dtype=FLOAT),
    },
)
_REQUIRES = [OFFSET, "residual.dtype == x.dtype", "residual.shape == x.shape"]
_ALIGNED = rows.aligned("x", "residual", "y", "sum", optional=("weight",))
_ARGS = "y, sum, rstd, x, residual, weight"
_UNROUNDED = "{unrounded and x.itemsize < 4}"  # a sum in float32 is not rounded

add_rms_norm.cuda(
    name="cuda:registers",
    source=opaq.file("rms_norm.cu"),
    entry=f"add_rms_norm<{DTYPES}, {{{LANES}}}, {{{ITEMS}}}, {{{WEIGHT}}}, {_UNROUNDED}>",
    grid=f"ceil_div({ROWS}, 256 // {LANES})",
    block=[LANES, f"256 // {LANES}"],
    args=f"{_ARGS}, {ROWS}, x.size(-1), eps, offset",
    requires=[*CUDA, *_REQUIRES, *_ALIGNED, f"{PACKS} <= {HELD}"],
    priority=1,
)
# Wider rows: clusters of up to 8 blocks, of as few threads as have all packs if each has 8.
_RANKS = rows.sharing(PACKS, HELD)
_THREADS = rows.fitting(PACKS, _RANKS, 8)
# Few of these rows, of 16 bits, but enough for clusters to take turns with: clusters of 8 blocks
# that work on several rows at once (rms_norm_pipelined.cu), where the kernel below has blocks for
# one wave and a part of another. (float32, more rows, and much shorter chunks were not measured.)
_PIPELINED = rows.Pipelined(PACKS, ROWS, (8,), KEPT, tensors=2, ring=160)
add_rms_norm.cuda(
    name="cuda:pipelined",
    source=opaq.file("rms_norm_pipelined.cu"),
    entry=f"add_rms_norm_pipelined<{DTYPES}, {_PIPELINED.template}, {{{WEIGHT}}}, "
    "{float32 if unrounded else x.dtype}>",
    **_PIPELINED.launch,
    args=f"{_ARGS}, {ROWS}, {_PIPELINED.args}, x.size(-1), eps, offset",
    requires=[
        *CUDA,
        *_REQUIRES,
        *_ALIGNED,
        *_PIPELINED.requires,
        f"x.itemsize == 2 and {ROWS} <= 512 and {_PIPELINED.chunk} >= 384",
    ],
    priority=1,
)
add_rms_norm.cuda(
    name="cuda:shared",
    source=opaq.file("rms_norm.cu"),
    entry=f"add_rms_norm_shared<{DTYPES}, {{{_THREADS}}}, 8, {{{_RANKS}}}, {{{WEIGHT}}}, "
    f"{_UNROUNDED}>",
    grid=f"{_RANKS} * {ROWS}",
    block=_THREADS,
    args=f"{_ARGS}, {ROWS}, x.size(-1), eps, offset",
    requires=[*CUDA, *_REQUIRES, *_ALIGNED, f"{PACKS} > {HELD} and {PACKS} <= 8 * {HELD}"],
    priority=1,
)
add_rms_norm.cuda(
    name="cuda:any",
    source=opaq.file("rms_norm.cu"),
    entry=f"add_rms_norm_any<{DTYPES}, {_UNROUNDED}>",
    grid=ROWS,
    block=256,
    args=f"{_ARGS}, x.size(-1), eps, offset",
    requires=[*CUDA, *_REQUIRES],
)
add_rms_norm.cpu(
    source=opaq.file("rms_norm.cpp"),
    entry="add_rms_norm<{x.dtype}>",
    args=f"{_ARGS}, {ROWS}, x.size(-1), eps, offset",
    requires=[*CPU, *_REQUIRES],
)


@add_rms_norm.reference
def add_rms_norm_reference(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float = 1e-6,
    offset: float = 0.0,
    unrounded: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"add_rms_norm: residual is {residual.dtype} of shape {tuple(residual.shape)}; "
            f"expected {x.dtype} of shape {tuple(x.shape)}, as x"
        )
    total = x + residual
    wide = x.float() + residual.float() if unrounded and x.itemsize < 4 else total
    y, rstd = rms_norm_reference(wide, weight, eps, offset)
    return y.to(x.dtype), total, rstd


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1], inputs[2], output[2])
    ctx.offset = inputs[4]
    ctx.set_materialize_grads(False)


def _backward(
    ctx,
    grad_y: torch.Tensor | None,
    grad_sum: torch.Tensor | None,
    grad_rstd: torch.Tensor | None,
):
    sums = ctx.needs_input_grad[2]
    grad, grad_weight = gradients(grad_y, grad_rstd, *ctx.saved_tensors, grad_sum, ctx.offset, sums)
    return grad, grad, grad_weight, None, None, None


add_rms_norm.backward(_backward, setup_context=_setup_context)
