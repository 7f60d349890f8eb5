"""Mean cross-entropy of a linear layer's outputs, which never exist all at once."""

import torch

from .cross_entropy import cross_entropy
from .kept_gradients import keep, scaled
from .with_gradient import cross_entropy_with_gradient


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    rows: int = 1024,
) -> torch.Tensor:
    """cross_entropy_mean(hidden @ weight.t(), target, ignore_index), by `rows` rows at a time.

    hidden: [N, D]; weight: [V, D], of the same dtype; target: [N], int64.

    Gradients of hidden and weight are computed along with the loss, from the logits of the same
    rows, and kept until the backward pass; no [N, V] tensor is. The weight's gradient is added up
    over the groups of rows in its own dtype: in bfloat16 four groups round it four times. More rows
    are faster and more exact, fewer take less memory: rows * V logits and, in eager mode, as many
    of their gradient. It is meant for eager code: in a compiled graph PyTorch copies the weight's
    gradient for each group, and the plain composition under backend="opaq" is faster. The chunking
    is that of Liger kernels (Hsu et al. 2024, arXiv:2410.10989).

    Raises ValueError for other shapes.
    """
    if (
        hidden.dim() != 2
        or weight.dim() != 2
        or hidden.shape[1] != weight.shape[1]
        or target.shape != hidden.shape[:1]
    ):
        raise ValueError(
            f"linear_cross_entropy: hidden has shape {tuple(hidden.shape)}, weight "
            f"{tuple(weight.shape)} and target {tuple(target.shape)}; expected [N, D], [V, D] and "
            "[N]: flatten the leading dimensions first"
        )
    if rows < 1:
        raise ValueError(f"linear_cross_entropy: got rows={rows}; expected at least 1")
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearMean.apply(hidden, weight, target, ignore_index, rows)
    total = _float_zero(hidden)
    for h, t in zip(hidden.split(rows), target.split(rows)):
        total = total + cross_entropy(h @ weight.t(), t, ignore_index)[0].sum()
    return total / (target != ignore_index).sum()


def _float_zero(like: torch.Tensor) -> torch.Tensor:
    return like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32))


def _loss_and_gradients(hidden, weight, target, ignore_index, rows, needed):
    """(mean loss, gradient of hidden or None, gradient of weight or None)."""
    total = _float_zero(hidden)
    scale = (target != ignore_index).sum(dtype=total.dtype).reciprocal()
    of_hidden, of_weight = [], None
    for h, t in zip(hidden.split(rows), target.split(rows)):
        loss, _, grad = cross_entropy_with_gradient(h @ weight.t(), t, scale, ignore_index)
        total = total + loss.sum()
        if needed[0]:
            of_hidden.append(grad @ weight)
        if needed[1] and of_weight is None:
            of_weight = grad.t() @ h
        elif needed[1]:
            of_weight.addmm_(grad.t(), h)
    if needed[1] and of_weight is None:
        of_weight = torch.zeros_like(weight)  # there are no rows
    return total * scale, torch.cat(of_hidden) if of_hidden else None, of_weight


class _LinearMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, ignore_index, rows):
        ctx.numbers = ignore_index, rows, (hidden.requires_grad, weight.requires_grad)
        loss, *gradients = _loss_and_gradients(hidden, weight, target, *ctx.numbers)
        keep(ctx, gradients, (hidden, weight, target))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_mean):
        def anew(*inputs):
            return _loss_and_gradients(*inputs, *ctx.numbers)[1:]

        return *scaled(ctx, grad_mean, anew), None, None, None
