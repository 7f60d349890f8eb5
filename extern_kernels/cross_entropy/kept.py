"""Mean cross-entropy of logits that are still there in the backward pass, with its gradient.

cross_entropy_mean_kept(logits, target, aligned_rows=False, ignore_index=-100, label_smoothing=0.0,
    z_loss=0.0, softcap=0.0) -> (loss, lse, lse_low, counted, kept)

logits, target, ignore_index, label_smoothing, z_loss, softcap, lse: as of cross_entropy
loss: 0-d, float32 (float64 for float64 logits): the mean over the rows that count; NaN where none
    does
counted: 0-d, of the loss's dtype: the number of rows that count
kept: the gradient of the loss, of the logits' shape and dtype
aligned_rows: each row of kept begins at a multiple of 128 bytes, so that the matrix products which
    read it are fast; it has a longer stride then, unless a row is a multiple of 16 bytes anyway

loss is differentiable, the other results are not. The backward pass leaves what was kept as it is
where nothing is left to do: the gradient of the loss is 1, and no other gradient of the logits is
added, or one that is 0 (PyTorch makes such, of the shape of the logits, where a compiled graph
returns these and the loss does not depend on them). Else the gradient is computed from the logits,
so that it is rounded once: row by row, if there is something to add to a row.

Forward, the logits are read once; backward, they are not, as a rule. Unlike
cross_entropy_mean_with_gradient, this never puts the gradient into the memory of the logits.
"""

import torch

import opaq

from .cross_entropy import (
    EXTRAS,
    FLOAT,
    REQUIRES_CPU,
    REQUIRES_CUDA,
    cpu_gradient,
    cross_entropy_backward_reference,
    cross_entropy_reference,
    cuda_gradient,
    gradient_like,
    like_logits,
    ways_to_add,
)
from .mean import COUNTED, SCRATCH, cross_entropy_mean_with_gradient_reference, declare_mean

_NUMBERS = f"int ignore_index=-100, {EXTRAS}"
_ROWS = opaq.tensor("logits.size(0)", dtype=FLOAT)
_BYTES = "logits.size(1) * logits.itemsize"
_ALIGNED = f"ceil_div({_BYTES}, 128) * 128 // logits.itemsize"

cross_entropy_mean_kept = opaq.op(
    "opaq_kernels::cross_entropy_mean_kept(Tensor logits, Tensor target, bool aligned_rows=False, "
    f"{_NUMBERS}) -> (Tensor loss, Tensor lse, Tensor lse_low, Tensor counted, Tensor kept)",
    outputs={
        "loss": opaq.tensor([], dtype=FLOAT),
        "lse": _ROWS,
        "lse_low": _ROWS,
        "counted": COUNTED,
        "kept": opaq.like(
            "logits",
            strides=f"{_ALIGNED} if aligned_rows and {_BYTES} % 16 != 0 else logits.size(1), 1",
        ),
    },
    tags=torch.Tag.flexible_layout,
)
cross_entropy_mean_kept_backward = opaq.op(
    "opaq_kernels::cross_entropy_mean_kept_backward(Tensor grad_loss, Tensor kept, Tensor logits, "
    f"Tensor target, Tensor lse, Tensor lse_low, Tensor counted, Tensor? added=None, {_NUMBERS}) "
    "-> (Tensor grad_logits)",
    outputs=gradient_like("kept"),
    accumulates="added",
    tags=torch.Tag.flexible_layout,
)

# ---- kernels -------------------------------------------------------------------------------------

_SCRATCH = {name: SCRATCH[name] for name in ("scale", "losses")}

declare_mean(cross_entropy_mean_kept, _SCRATCH, "losses", "scale", "kept", "lse_low")


def _requires_kept(float_type: str) -> list[str]:
    return [
        like_logits("kept"),
        "kept.stride(1) == 1 or kept.size(1) == 1",
        *(f"{name}.dtype == {float_type}" for name in ("grad_loss", "lse", "lse_low", "counted")),
        *(f"{name}.numel() == 1" for name in ("grad_loss", "counted")),
        *(f"{name}.numel() == logits.size(0)" for name in ("lse", "lse_low")),
    ]


for _name, _how, _condition in ways_to_add("added", "kOfLogits"):
    cross_entropy_mean_kept_backward.cuda(
        name=_name,
        **cuda_gradient("added", _how, kept=True),
        requires=[
            *REQUIRES_CUDA,
            *_requires_kept("float32"),
            "logits.size(0) < 2147483648",
            _condition,
        ],
    )
cross_entropy_mean_kept_backward.cpu(
    **cpu_gradient("0", "added", kept=True),
    requires=[
        *REQUIRES_CPU,
        *_requires_kept("logits.dtype"),
        f"not defined(added) or {like_logits('added')}",
    ],
)

# ---- meaning and gradients -----------------------------------------------------------------------


@cross_entropy_mean_kept.reference
def cross_entropy_mean_kept_reference(
    logits: torch.Tensor,
    target: torch.Tensor,
    aligned_rows: bool = False,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    numbers = ignore_index, label_smoothing, z_loss, softcap
    _, lse, lse_low = cross_entropy_reference(logits, target, *numbers)
    loss, grad = cross_entropy_mean_with_gradient_reference(logits, target, *numbers)
    return loss, lse, lse_low, (target != ignore_index).sum(dtype=loss.dtype), grad


@cross_entropy_mean_kept_backward.reference
def cross_entropy_mean_kept_backward_reference(
    grad_loss: torch.Tensor,
    kept: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    lse_low: torch.Tensor,
    counted: torch.Tensor,
    added: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> torch.Tensor:
    if grad_loss.numel() != 1 or counted.numel() != 1 or kept.shape != logits.shape:
        raise ValueError(
            "cross_entropy_mean_kept_backward: grad_loss, counted and kept have shapes "
            f"{tuple(grad_loss.shape)}, {tuple(counted.shape)} and {tuple(kept.shape)}; expected "
            f"one element each, and the shape of the logits, {tuple(logits.shape)}"
        )
    of_row = grad_loss.reshape(1) / counted.reshape(1)
    return cross_entropy_backward_reference(
        of_row.expand(logits.size(0)),
        torch.zeros_like(lse),
        logits,
        target,
        lse,
        lse_low,
        ignore_index,
        added,
        label_smoothing,
        z_loss,
        softcap,
    )


def _setup_context(ctx, inputs, output) -> None:
    logits, target, _, *ctx.numbers = inputs
    _, lse, lse_low, counted, kept = output
    ctx.save_for_backward(kept, logits, target, lse, lse_low, counted)
    ctx.mark_non_differentiable(lse, lse_low, counted, kept)


def _backward(ctx, grad_loss: torch.Tensor, *_):
    grad = cross_entropy_mean_kept_backward(grad_loss, *ctx.saved_tensors, None, *ctx.numbers)
    return grad, *[None] * 6


cross_entropy_mean_kept.backward(
    _backward, setup_context=_setup_context, non_differentiable="target"
)
