"""RMSNorm over the last dimension, with its gradient: declaration and reference.

rms_norm(x, weight, eps=1e-6) -> (y, rstd)

x: [..., n], floating
weight: [n], of x's dtype
y: x's shape and dtype, rounded once from float32
rstd: 1 / sqrt(mean(x^2) + eps), [...], float32 (float64 for a float64 x); differentiable too

Formula: Zhang and Sennrich 2019, arXiv:1910.07467.
"""

import torch

import opaq

from .. import rows
from ..rows import (
    BLOCKS,
    CPU,
    CUDA,
    FLOAT,
    HELD,
    ITEMS,
    ITEMS_BACKWARD,
    LANES,
    LANES_BACKWARD,
    PACKS,
    PER_BLOCK,
    ROWS,
)
from ..sum_of_blocks.sum_of_blocks import sum_of_blocks

rms_norm = opaq.op(
    "opaq_kernels::rms_norm(Tensor x, Tensor weight, float eps=1e-6) -> (Tensor y, Tensor rstd)",
    outputs={"y": opaq.like("x"), "rstd": opaq.tensor("x.shape[:-1]", dtype=FLOAT)},
)
rms_norm_backward = opaq.op(
    "opaq_kernels::rms_norm_backward(Tensor grad_y, Tensor grad_rstd, Tensor x, Tensor weight, "
    "Tensor rstd, Tensor? added=None) -> (Tensor grad_x, Tensor grad_weight_partial)",
    outputs={
        "grad_x": opaq.like("x"),
        "grad_weight_partial": opaq.tensor(f"{BLOCKS}, x.size(-1)", dtype=FLOAT),
    },
    accumulates="added",
)

# ---- CUDA: a row in registers where it fits and is aligned, else two passes over it --------------

# Rounds that a block of 256 threads holds in shared memory, up to 64 KB, which every device has.
_STAGES = f"(4 if {ITEMS_BACKWARD} == 1 else 3 if {ITEMS_BACKWARD} == 2 else 2)"
_AHEAD = 256 * 4  # packs of a row that the backward kernel which reads ahead takes

# Wider rows, forward: clusters of up to 8 blocks of 512 threads with up to 8 packs each in shared
# memory, two rows one after the other.
_RANKS = f"max(1, min(8, next_power_of_2(ceil_div({PACKS}, 512 * 8))))"
_SLOTS = f"min(8, 4 * ceil_div({PACKS}, 4 * 512 * {_RANKS}))"


rms_norm.cuda(
    name="cuda:registers",
    source=opaq.file("rms_norm.cu"),
    entry=f"rms_norm<{{x.dtype}}, {{{LANES}}}, {{{ITEMS}}}>",
    grid=f"ceil_div({ROWS}, 256 // {LANES})",
    block=[LANES, f"256 // {LANES}"],
    args=f"y, rstd, x, weight, {ROWS}, x.size(-1), eps",
    requires=[*CUDA, *rows.aligned("x", "weight", "y"), f"{PACKS} <= {HELD}"],
    priority=1,
)
rms_norm.cuda(
    name="cuda:wide",
    source=opaq.file("rms_norm_wide.cu"),
    entry=f"rms_norm_wide<{{x.dtype}}, 512, {{{_RANKS}}}>",
    grid=f"{_RANKS} * ceil_div({ROWS}, 2)",
    block=512,
    shared=f"{_SLOTS} * 512 * 16",
    args=f"y, rstd, x, weight, {ROWS}, {_SLOTS}, x.size(-1), eps",
    requires=[*CUDA, *rows.aligned("x", "weight", "y"), f"{PACKS} > {HELD}"],
    priority=1,
)
rms_norm.cuda(
    name="cuda:any",
    source=opaq.file("rms_norm.cu"),
    entry="rms_norm_any<{x.dtype}>",
    grid=ROWS,
    block=256,
    args="y, rstd, x, weight, x.size(-1), eps",
    requires=CUDA,
)
_BACKWARD_ARGS = (
    f"grad_x, grad_weight_partial, grad_y, grad_rstd, x, weight, rstd, added, {ROWS}, "
    f"{PER_BLOCK}, x.size(-1)"
)
_ADDED = "added.dtype == x.dtype and added.shape == x.shape"
_BACKWARD_CUDA = [
    *CUDA,
    "grad_y.dtype == x.dtype",
    "grad_rstd.dtype == float32",
    "rstd.dtype == float32",
    f"not defined(added) or {_ADDED}",
]
_BACKWARD_ALIGNED = [
    *rows.aligned("grad_y", "x", "weight", "grad_x"),
    "not defined(added) or aligned(added, 16)",
]
for _name, _adds, _condition in [
    ("cuda:ahead", "false", "not defined(added)"),
    ("cuda:ahead-added", "true", "defined(added)"),
]:
    rms_norm_backward.cuda(
        name=_name,
        source=opaq.file("rms_norm_backward.cu"),
        entry=f"rms_norm_backward_ahead<{{x.dtype}}, {{{LANES_BACKWARD}}}, {{{ITEMS_BACKWARD}}}, "
        f"{{{_STAGES}}}, {_adds}>",
        grid=BLOCKS,
        block=[LANES_BACKWARD, f"256 // {LANES_BACKWARD}"],
        shared=f"{_STAGES} * 2 * {ITEMS_BACKWARD} * 256 * 16",
        args=_BACKWARD_ARGS,
        requires=[*_BACKWARD_CUDA, *_BACKWARD_ALIGNED, f"{PACKS} <= {_AHEAD}", _condition],
        priority=1,
    )
rms_norm_backward.cuda(
    name="cuda:registers",
    source=opaq.file("rms_norm.cu"),
    entry=f"rms_norm_backward<{{x.dtype}}, {{ceil_div({PACKS}, 512)}}>",
    grid=BLOCKS,
    block=512,
    args=_BACKWARD_ARGS,
    requires=[
        *_BACKWARD_CUDA,
        *_BACKWARD_ALIGNED,
        f"{PACKS} > {_AHEAD}",
        f"{PACKS} <= 4 * 512",
    ],
    priority=1,
)
rms_norm_backward.cuda(
    name="cuda:any",
    source=opaq.file("rms_norm.cu"),
    entry="rms_norm_backward_any<{x.dtype}>",
    grid=BLOCKS,
    block=256,
    args=_BACKWARD_ARGS,
    requires=_BACKWARD_CUDA,
)

# ---- CPU -----------------------------------------------------------------------------------------

rms_norm.cpu(
    source=opaq.file("rms_norm.cpp"),
    entry="rms_norm<{x.dtype}>",
    args=f"y, rstd, x, weight, {ROWS}, x.size(-1), eps",
    requires=CPU,
)
rms_norm_backward.cpu(
    source=opaq.file("rms_norm.cpp"),
    entry="rms_norm_backward<{x.dtype}>",
    args=f"grad_x, grad_weight_partial, grad_y, grad_rstd, x, weight, rstd, added, {ROWS}, "
    f"{PER_BLOCK}, {BLOCKS}, x.size(-1)",
    requires=[
        *CPU,
        "grad_y.dtype == x.dtype",
        "grad_rstd.dtype == x.dtype",
        "rstd.dtype == x.dtype",
        f"not defined(added) or {_ADDED}",
    ],
)

# ---- meaning and gradient ------------------------------------------------------------------------


@rms_norm.reference
def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    if weight.shape != x.shape[-1:]:
        raise ValueError(
            f"rms_norm: weight has shape {tuple(weight.shape)}; expected {tuple(x.shape[-1:])}, "
            f"the last dimension of x {tuple(x.shape)}"
        )
    wide = x.double() if x.dtype == torch.float64 else x.float()
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    return (wide * rstd.unsqueeze(-1) * weight).to(x.dtype), rstd


@rms_norm_backward.reference
def rms_norm_backward_reference(
    grad_y: torch.Tensor,
    grad_rstd: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    added: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    n = x.size(-1)
    scale = rstd.unsqueeze(-1)
    g, v = grad_y.to(rstd.dtype), x.to(rstd.dtype)
    dot = (g * weight * v).sum(-1) + grad_rstd
    grad_x = g * weight * scale - v * (dot * rstd.pow(3) / n).unsqueeze(-1)
    if added is not None:
        grad_x = grad_x + added
    return grad_x.to(x.dtype), rows.sums_by_block((g * v * scale).reshape(rstd.numel(), n))


def _setup_context(ctx, inputs, output) -> None:
    x, weight = inputs[:2]
    ctx.save_for_backward(x, weight, output[1])


def _backward(ctx, grad_y: torch.Tensor, grad_rstd: torch.Tensor):
    x, weight, rstd = ctx.saved_tensors
    grad_x, partial = rms_norm_backward(grad_y, grad_rstd, x, weight, rstd)
    return grad_x, sum_of_blocks(partial, weight), None


rms_norm.backward(_backward, setup_context=_setup_context)
