"""RMSNorm of x + residual, with its gradient, in one launch: declaration and reference.

add_rms_norm(x, residual, weight, eps=1e-6) -> (y, sum, rstd)

x, residual: [..., n], floating, of one shape and dtype
weight: [n], of x's dtype
sum: x + residual, in their dtype
y, rstd: as of rms_norm(sum, weight, eps)
"""

import torch

import opaq

from .. import rows
from ..rows import CPU, CUDA, FLOAT, HELD, ITEMS, LANES, PACKS, ROWS
from ..sum_of_blocks.sum_of_blocks import sum_of_blocks
from .rms_norm import rms_norm_backward, rms_norm_reference

add_rms_norm = opaq.op(
    "opaq_kernels::add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps=1e-6) "
    "-> (Tensor y, Tensor sum, Tensor rstd)",
    outputs={
        "y": opaq.like("x"),
        "sum": opaq.like("x"),
        "rstd": opaq.tensor("x.shape[:-1]", dtype=FLOAT),
    },
)
_ALIKE = ["residual.dtype == x.dtype", "residual.shape == x.shape"]
_ARGS = "y, sum, rstd, x, residual, weight"

add_rms_norm.cuda(
    name="cuda:registers",
    source=opaq.file("rms_norm.cu"),
    entry=f"add_rms_norm<{{x.dtype}}, {{{LANES}}}, {{{ITEMS}}}>",
    grid=f"ceil_div({ROWS}, 256 // {LANES})",
    block=[LANES, f"256 // {LANES}"],
    args=f"{_ARGS}, {ROWS}, x.size(-1), eps",
    requires=[
        *CUDA,
        *_ALIKE,
        *rows.aligned("x", "residual", "weight", "y", "sum"),
        f"{PACKS} <= {HELD}",
    ],
    priority=1,
)
add_rms_norm.cuda(
    name="cuda:any",
    source=opaq.file("rms_norm.cu"),
    entry="add_rms_norm_any<{x.dtype}>",
    grid=ROWS,
    block=256,
    args=f"{_ARGS}, x.size(-1), eps",
    requires=[*CUDA, *_ALIKE],
)
add_rms_norm.cpu(
    source=opaq.file("rms_norm.cpp"),
    entry="add_rms_norm<{x.dtype}>",
    args=f"{_ARGS}, {ROWS}, x.size(-1), eps",
    requires=[*CPU, *_ALIKE],
)


@add_rms_norm.reference
def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"add_rms_norm: residual is {residual.dtype} of shape {tuple(residual.shape)}; "
            f"expected {x.dtype} of shape {tuple(x.shape)}, as x"
        )
    total = x + residual
    y, rstd = rms_norm_reference(total, weight, eps)
    return y, total, rstd


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1], inputs[2], output[2])


def _backward(ctx, grad_y: torch.Tensor, grad_sum: torch.Tensor, grad_rstd: torch.Tensor):
    total, weight, rstd = ctx.saved_tensors
    grad, partial = rms_norm_backward(grad_y, grad_rstd, total, weight, rstd, grad_sum)
    return grad, grad, sum_of_blocks(partial, weight), None


add_rms_norm.backward(_backward, setup_context=_setup_context)
