"""Mean cross-entropy over rows, as torch.nn.functional.cross_entropy gives it."""

import torch

from .cross_entropy import cross_entropy
from .kept_gradients import keep, scaled
from .with_gradient import cross_entropy_with_gradient


def cross_entropy_mean(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Mean loss over the rows that count; NaN where none does. Arguments: as of cross_entropy.

    Where the logits require a gradient, it is computed along with the loss, in one launch, and kept
    until the backward pass in the place of what else would be saved.
    """
    numbers = ignore_index, label_smoothing, z_loss, softcap
    if torch.is_grad_enabled() and logits.requires_grad:
        return _MeanWithGradient.apply(logits, target, *numbers)
    loss, _ = cross_entropy(logits, target, *numbers)
    return loss.sum() / (target != ignore_index).sum()


class _MeanWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, ignore_index, *extras):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        scale = (target != ignore_index).sum(dtype=dtype).reciprocal()
        loss, _, grad = cross_entropy_with_gradient(logits, target, scale, ignore_index, *extras)
        ctx.numbers = ignore_index, *extras
        keep(ctx, [grad], (logits, target, scale))
        return loss.sum() * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_mean):
        def anew(logits, target, scale):
            return [cross_entropy_with_gradient(logits, target, scale, *ctx.numbers)[2]]

        return *scaled(ctx, grad_mean, anew), *[None] * 5
