"""Cross-entropy and its gradient in one launch: declarations and references.

cross_entropy_with_gradient(logits, target, scale, ignore_index=-100, label_smoothing=0.0,
    z_loss=0.0, softcap=0.0) -> (loss, lse, grad_logits)

logits, target, label_smoothing, z_loss, softcap, loss, lse: as of cross_entropy
scale: one element, float32 (float64 for float64 logits): the gradient that reaches the loss of each
    row, such as 1 / (number of rows that count) for their mean
grad_logits: the gradient of (loss * scale).sum(), of the logits' shape and dtype; with neither
    label smoothing nor z-loss nor softcap it is (softmax(logits) - onehot(target)) * scale. 0 in
    rows whose target is ignore_index, NaN in rows whose target lies outside [0, V). The kernels
    are right when it is the memory of the logits.

loss and lse are differentiable; grad_logits is not.

cross_entropy_with_gradient_(logits, target, scale, ...) -> (loss, lse): the same, with grad_logits
in the place of the logits; it has no gradient.

scale_gradient(grad, factor, of=None) -> grad * factor, and scale_gradient_(grad, factor), in place

factor: one element, float32 (float64 for a float64 grad). In place with a factor of 1 nothing is
moved.
of: what it is the gradient of, whose values are not read. It has a compiled graph keep an input
    until the backward pass, so that PyTorch raises an error there for create_graph=True, which
    compiled graphs do not have: where a backward pass reads no input that requires a gradient,
    PyTorch takes gradients of gradients for zeros.
"""

import torch

import opaq

from .. import rows
from .cross_entropy import (
    CUDA_DTYPES,
    EXTRA_ARGS,
    EXTRAS,
    FLOAT,
    KIND,
    REQUIRES_CPU,
    REQUIRES_CUDA,
    capped,
    cross_entropy_backward,
    cross_entropy_op,
    cross_entropy_reference,
    gradient_of_rows,
    safe_index,
)

cross_entropy_with_gradient = opaq.op(
    "opaq_kernels::cross_entropy_with_gradient(Tensor logits, Tensor target, Tensor scale, "
    f"int ignore_index=-100, {EXTRAS}) -> (Tensor loss, Tensor lse, Tensor grad_logits)",
    outputs={
        "loss": opaq.tensor("logits.size(0)", dtype=FLOAT),
        "lse": opaq.tensor("logits.size(0)", dtype=FLOAT),
        "grad_logits": opaq.like("logits", may_overwrite=True),
    },
)
cross_entropy_with_gradient_ = opaq.op(
    "opaq_kernels::cross_entropy_with_gradient_(Tensor(a!) logits, Tensor target, Tensor scale, "
    f"int ignore_index=-100, {EXTRAS}) -> (Tensor loss, Tensor lse)",
    outputs={name: opaq.tensor("logits.size(0)", dtype=FLOAT) for name in ("loss", "lse")},
)
scale_gradient = opaq.op(
    "opaq_kernels::scale_gradient(Tensor grad, Tensor factor, Tensor? of=None) -> (Tensor out)",
    outputs=opaq.like("grad", may_overwrite=True),
)
scale_gradient_ = opaq.op("opaq_kernels::scale_gradient_(Tensor(a!) grad, Tensor factor) -> ()")

# ---- CUDA: a row in the shared memory and registers of a block or a cluster of blocks ------------

_PACKS = "ceil_div(logits.size(1) * logits.itemsize, 16)"
# A thread has groups of 4 packs, of narrow rows two of them and of wide ones four: all in shared
# memory, of which a block takes at most 96 KiB, or the fourth in registers, which the extras do not
# leave. What remains of a very wide row is read twice.
_PLAIN = f"({KIND}) == 0"
_RANKS = rows.sharing(_PACKS, 16 * 512)
_MOST_GROUPS = f"(4 if {_PLAIN} or {_PACKS} <= 6144 * {_RANKS} else 3)"
_GROUPS = f"min({_MOST_GROUPS}, max(2, ceil_div({_PACKS}, 512)))"
_THREADS = f"min(512, {rows.fitting(_PACKS, _RANKS, f'4 * {_GROUPS}')})"
_MOST = f"(12 if {_PLAIN} or {_THREADS} > 384 else 16)"
_SLOTS = rows.slots(_PACKS, _RANKS, _THREADS, _MOST)
# Rows of a team: few, so that the last wave is short, but reading one while another is computed
# pays where they are narrow, or shared by several blocks.
_EACH = f"(4 if {_PACKS} <= 1024 else 1 if 2048 < {_PACKS} and {_RANKS} == 1 else 2)"
_TEAMS = f"ceil_div(logits.size(0), max(1, min({_EACH}, logits.size(0) // 512)))"


def _requires_scale(float_type: str) -> list[str]:
    return [f"scale.dtype == {float_type}", "scale.numel() == 1"]


def _args(loss: str, lse_low: str, grad: str, scale: str, slots: str = "") -> str:
    logits = "0" if grad == "logits" else "logits"
    return (
        f"{loss}, lse, {lse_low}, {grad}, {logits}, target, {scale}, logits.size(0), {slots}"
        f"logits.size(1), {grad}.stride(0), logits.stride(0), target.stride(0), ignore_index, "
        f"{EXTRA_ARGS}"
    )


def cuda_launch(
    loss: str, scale: str, grad: str = "grad_logits", lse_low: str = "0"
) -> dict[str, str]:
    """How the kernel is launched, with these names of tensors. lse_low: "0": there is none. grad:
    "logits": it takes their place."""
    anywhere = f"({grad}.stride(0) - logits.stride(0)) * logits.itemsize % 16 != 0"
    return {
        "entry": f"cross_entropy_with_gradient<{{logits.dtype}}, {{{_THREADS}}}, {{{_RANKS}}}, "
        f"{{{KIND}}}, {{{anywhere}}}>",
        "grid": f"{_RANKS} * {_TEAMS}",
        "block": _THREADS,
        "shared": f"{_SLOTS} * {_THREADS} * 16",
        "args": _args(loss, lse_low, grad, scale, f"{_SLOTS}, "),
    }


def cpu_call(
    loss: str, scale: str, grad: str = "grad_logits", lse_low: str = "0"
) -> dict[str, str]:
    """The same on the CPU."""
    return {
        "entry": f"cross_entropy_with_gradient<{{logits.dtype}}, {{{KIND}}}>",
        "args": _args(loss, lse_low, grad, scale),
    }


for _op, _grad in (
    (cross_entropy_with_gradient, "grad_logits"),
    (cross_entropy_with_gradient_, "logits"),
):
    _op.cuda(
        source=opaq.file("with_gradient.cu"),
        **cuda_launch("loss", "scale", _grad),
        requires=[*REQUIRES_CUDA, *_requires_scale("float32")],
    )
    _op.cpu(
        source=opaq.file("with_gradient.cpp"),
        **cpu_call("loss", "scale", _grad),
        requires=[*REQUIRES_CPU, *_requires_scale("logits.dtype")],
    )


def _declare_scale(op: opaq.Op, function: str, tensors: tuple[str, ...]) -> None:
    args = f"{', '.join(tensors)}, factor, grad.numel()"
    for name, vec, aligned, priority in (
        ("cuda:packs", "16 / grad.itemsize", [f"aligned({each}, 16)" for each in tensors], 1),
        ("cuda:elements", "1", [], 0),
    ):
        op.cuda(
            name=name,
            source=opaq.file("with_gradient.cu"),
            entry=f"{function}<{{grad.dtype}}, {{{vec}}}>",
            grid="min(1024, ceil_div(grad.numel() * grad.itemsize, 4096))",
            block=256,
            args=args,
            requires=[
                " or ".join(f"grad.dtype == {dtype}" for dtype in CUDA_DTYPES),
                "factor.dtype == float32",
                "factor.numel() == 1",
                *aligned,
            ],
            priority=priority,
        )
    op.cpu(
        source=opaq.file("with_gradient.cpp"),
        entry=f"{function}<{{grad.dtype}}>",
        args=args,
        requires=[
            "grad.dtype == float32 or grad.dtype == float64",
            "factor.dtype == grad.dtype",
            "factor.numel() == 1",
        ],
    )


_declare_scale(scale_gradient, "scale_gradient", ("out", "grad"))
_declare_scale(scale_gradient_, "scale_gradient_in_place", ("grad",))

# ---- meaning and gradients -----------------------------------------------------------------------


@cross_entropy_with_gradient.reference
def cross_entropy_with_gradient_reference(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if scale.numel() != 1:
        raise ValueError(
            f"cross_entropy_with_gradient: scale has shape {tuple(scale.shape)}; expected one "
            "element: for a gradient of its own for each row, call cross_entropy and its gradient"
        )
    extras = label_smoothing, z_loss, softcap
    loss, lse, _ = cross_entropy_reference(logits, target, ignore_index, *extras)
    index, counts, outside = safe_index(target, logits.size(1), ignore_index)
    softmax = torch.softmax(capped(logits, softcap), 1)
    by = scale.reshape(())
    zero = torch.zeros_like(by)
    grad = gradient_of_rows(logits, softmax, lse, by, zero, index, counts, extras)
    grad = torch.where(counts.unsqueeze(1), grad, 0)
    return loss, lse, torch.where(outside.unsqueeze(1), torch.nan, grad).to(logits.dtype)


@cross_entropy_with_gradient_.reference
def cross_entropy_with_gradient_in_place_reference(
    logits: torch.Tensor,
    target: torch.Tensor,
    scale: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    extras = label_smoothing, z_loss, softcap
    loss, lse, grad = cross_entropy_with_gradient_reference(
        logits, target, scale, ignore_index, *extras
    )
    logits.copy_(grad)
    return loss, lse


def differentiable_gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    grad_loss: torch.Tensor,
    ignore_index: int,
    extras: tuple[float, float, float],
    mean: bool,
) -> torch.Tensor:
    """The gradient of the logits, of which PyTorch takes gradients, too (create_graph=True).
    grad_loss: of the mean of the losses, or of their sum."""
    scale = grad_loss / (target != ignore_index).sum() if mean else grad_loss
    _, _, grad = cross_entropy_with_gradient_reference(logits, target, scale, ignore_index, *extras)
    return grad


def _one_factor(name: str, factor: torch.Tensor) -> torch.Tensor:
    if factor.numel() != 1:
        raise ValueError(
            f"{name}: factor has shape {tuple(factor.shape)}; expected one element: multiply by "
            "other tensors with *"
        )
    return factor.reshape(())


@scale_gradient.reference
def scale_gradient_reference(
    grad: torch.Tensor, factor: torch.Tensor, of: torch.Tensor | None = None
) -> torch.Tensor:
    one = _one_factor("scale_gradient", factor)
    return (grad.to(torch.promote_types(grad.dtype, torch.float32)) * one).to(grad.dtype)


@scale_gradient_.reference
def scale_gradient_in_place_reference(grad: torch.Tensor, factor: torch.Tensor) -> None:
    _one_factor("scale_gradient_", factor)
    grad.copy_(scale_gradient_reference(grad, factor))


def _setup_context(ctx, inputs, output) -> None:
    logits, target, _, *ctx.numbers = inputs
    ctx.save_for_backward(logits, target)
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, grad_loss: torch.Tensor, grad_lse: torch.Tensor, _):
    logits, target = ctx.saved_tensors
    ignore_index, *extras = ctx.numbers
    kept = cross_entropy_op(logits, target, ignore_index, *extras)[1:]
    grad = cross_entropy_backward(
        grad_loss, grad_lse, logits, target, *kept, ignore_index, None, *extras
    )
    return grad, *[None] * 6


cross_entropy_with_gradient.backward(
    _backward, setup_context=_setup_context, non_differentiable="target, scale"
)


def _setup_context_of_scale(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward_of_scale(ctx, grad_out: torch.Tensor):
    grad, factor = ctx.saved_tensors
    of_factor = (grad_out.to(factor.dtype) * grad.to(factor.dtype)).sum().reshape(factor.shape)
    return scale_gradient(grad_out, factor), of_factor, None


scale_gradient.backward(_backward_of_scale, setup_context=_setup_context_of_scale)
