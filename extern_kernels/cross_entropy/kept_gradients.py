"""Gradients that are computed along with a mean loss, and kept until the backward pass."""

import torch

from .with_gradient import scale_gradient, scale_gradient_


def keep(ctx, gradients, inputs) -> None:
    """In forward of a torch.autograd.Function. gradients: of the loss, for the first inputs of the
    function, None where none is needed. inputs: tensors from which they can be computed anew."""
    ctx.needed = [gradient is not None for gradient in gradients]
    if torch.compiler.is_compiling():
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
    else:
        ctx.save_for_backward(*inputs)
        ctx.gradients = gradients


def scaled(ctx, grad_loss, anew) -> list:
    """In backward: the gradients times that of the loss. anew: computes them from the inputs, for a
    second backward pass (retain_graph=True): in eager mode the first one gives them away."""
    if torch.compiler.is_compiling():
        kept = iter(ctx.saved_tensors)
        return [scale_gradient(next(kept), grad_loss) if need else None for need in ctx.needed]
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:
        gradients = anew(*ctx.saved_tensors)
    for gradient in gradients:
        if gradient is not None:
            scale_gradient_(gradient, grad_loss)
    return gradients
