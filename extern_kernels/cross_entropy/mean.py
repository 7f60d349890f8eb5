"""Mean cross-entropy over rows, as torch.nn.functional.cross_entropy gives it."""

import torch

from .cross_entropy import cross_entropy
from .with_gradient import cross_entropy_with_gradient, scale_gradient, scale_gradient_


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
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        scale = (target != ignore_index).sum(dtype=dtype).reciprocal()
        loss, _, grad = cross_entropy_with_gradient(logits, target, scale, ignore_index)
        ctx.ignore_index = ignore_index
        if torch.compiler.is_compiling():
            ctx.save_for_backward(grad)
        else:
            ctx.save_for_backward(logits, target, scale)
            ctx.gradient = grad
        return loss.sum() * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_mean):
        if torch.compiler.is_compiling():
            (grad,) = ctx.saved_tensors
            return scale_gradient(grad, grad_mean), None, None
        # The gradient is given away: a second backward pass (retain_graph=True) computes it anew.
        grad, ctx.gradient = ctx.gradient, None
        if grad is None:
            logits, target, scale = ctx.saved_tensors
            _, _, grad = cross_entropy_with_gradient(logits, target, scale, ctx.ignore_index)
        scale_gradient_(grad, grad_mean)
        return grad, None, None
