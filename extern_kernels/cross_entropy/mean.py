"""Mean cross-entropy over rows, as torch.nn.functional.cross_entropy gives it."""

import torch

from .cross_entropy import cross_entropy
from .kept_gradients import keep, scaled
from .with_gradient import cross_entropy_with_gradient


def cross_entropy_mean(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int = -100
) -> torch.Tensor:
    """Mean loss over the rows that count; NaN where none does. logits, target: as of cross_entropy.

    Where the logits require a gradient, it is computed along with the loss, in one launch, and kept
    until the backward pass in the place of what else would be saved.
    """
    if torch.is_grad_enabled() and logits.requires_grad:
        return _MeanWithGradient.apply(logits, target, ignore_index)
    loss, _ = cross_entropy(logits, target, ignore_index)
    return loss.sum() / (target != ignore_index).sum()


class _MeanWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, ignore_index):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        scale = (target != ignore_index).sum(dtype=dtype).reciprocal()
        loss, _, grad = cross_entropy_with_gradient(logits, target, scale, ignore_index)
        ctx.ignore_index = ignore_index
        keep(ctx, [grad], (logits, target, scale))
        return loss.sum() * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_mean):
        def anew(logits, target, scale):
            return [cross_entropy_with_gradient(logits, target, scale, ctx.ignore_index)[2]]

        return *scaled(ctx, grad_mean, anew), None, None
