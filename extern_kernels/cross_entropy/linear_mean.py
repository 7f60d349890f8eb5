"""Mean cross-entropy of a linear layer's outputs, which never exist all at once."""

import torch

import opaq

from .cross_entropy import check_extras, cross_entropy
from .kept_gradients import keep, scaled
from .with_gradient import (
    cross_entropy_with_gradient_,
    differentiable_gradient,
    scale_gradient,
)

CHOSEN = 0  # rows of a group: those of rows_of_group


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    rows: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """cross_entropy_mean(hidden @ weight.t(), target, ...), by groups of up to `rows` rows.

    hidden: [N, D]; weight: [V, D], of the same dtype; target: [N], int64; rows: None for equal
    groups of up to 1024, five of them where these have 800 or more; reduction: "mean" over the rows
    that count, or "sum"; the others: as of cross_entropy.

    Gradients of hidden and weight are computed along with the loss, from the logits of the same
    rows, and kept until the backward pass; no [N, V] tensor is. The weight's gradient is added up
    over the groups of rows in its own dtype: in bfloat16 five groups round it five times. More rows
    are faster and more exact, fewer take less memory: that of rows * V logits, in whose place their
    gradient is put. In a compiled graph it is one opaque node, in which nothing is traced; under
    autocast its parts are traced. The chunking is that of Liger kernels (Hsu et al. 2024,
    arXiv:2410.10989).

    Raises ValueError for other shapes, and numbers out of range.
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
    if rows is not None and rows < 1:
        raise ValueError(f"linear_cross_entropy: got rows={rows}; expected at least 1")
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f'linear_cross_entropy: got reduction={reduction!r}; expected "mean" or "sum": for the '
            "loss of each row, call cross_entropy"
        )
    check_extras("linear_cross_entropy", label_smoothing, z_loss, softcap)
    how = ignore_index, rows or CHOSEN, (label_smoothing, z_loss, softcap), reduction == "mean"
    grad = torch.is_grad_enabled()
    needed = grad and hidden.requires_grad, grad and weight.requires_grad
    if torch.compiler.is_compiling() and not torch.is_autocast_enabled(hidden.device.type):
        return of_one_node(hidden, weight, target, *how, needed)
    if any(needed):
        return _LinearMean.apply(hidden, weight, target, how)
    return _loss(hidden, weight, target, *how)


def rows_of_group(count: int) -> int:
    """Of so many rows. Groups are equal, since a short one would use a GPU badly. Five of them take
    an eighth of the memory of all logits and their gradient; on an H200, groups of less than 800
    rows were slower by a tenth (4096 x 4096 x 128256, bfloat16)."""
    groups = max(-(-count // 1024), min(5, count // 800), 1)
    return max(1, -(-count // groups))


def _groups(hidden, target, rows):
    rows = rows or rows_of_group(hidden.shape[0])
    return zip(hidden.split(rows), target.split(rows))


def _float_zero(like: torch.Tensor) -> torch.Tensor:
    return like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32))


def _loss(hidden, weight, target, ignore_index, rows, extras, mean):
    total = _float_zero(hidden)
    for h, t in _groups(hidden, target, rows):
        total = total + cross_entropy(h @ weight.t(), t, ignore_index, *extras)[0].sum()
    return total / (target != ignore_index).sum() if mean else total


def _loss_and_gradients(hidden, weight, target, ignore_index, rows, extras, mean, needed):
    """(loss, gradient of hidden or None, gradient of weight or None)."""
    total = _float_zero(hidden)
    if mean:
        scale = (target != ignore_index).sum(dtype=total.dtype).reciprocal()
    else:
        scale = torch.ones_like(total)
    of_hidden, of_weight = [], None

    def add(h, t):
        """A group of rows; in a function, so that its logits are gone before those of the next."""
        nonlocal total, of_weight
        grad = h @ weight.t()  # the logits, at first
        loss, _ = cross_entropy_with_gradient_(grad, t, scale, ignore_index, *extras)
        total = total + loss.sum()
        if needed[0]:
            of_hidden.append(grad @ weight)
        if needed[1] and of_weight is None:
            of_weight = grad.t() @ h
        elif needed[1]:
            of_weight.addmm_(grad.t(), h)

    for h, t in _groups(hidden, target, rows):
        add(h, t)
    if needed[1] and of_weight is None:
        of_weight = torch.zeros_like(weight)  # there are no rows
    return total * scale, torch.cat(of_hidden) if of_hidden else None, of_weight


def _differentiable(hidden, weight, target, grad_loss, ignore_index, extras, mean, needed):
    """The gradients, of which gradients can be taken: all logits exist at once."""
    logits = hidden @ weight.t()
    grad = differentiable_gradient(logits, target, grad_loss, ignore_index, extras, mean)
    return grad @ weight if needed[0] else None, grad.t() @ hidden if needed[1] else None


# ---- compiled graphs: one node -------------------------------------------------------------------


@opaq.custom_op("opaq_kernels::linear_cross_entropy", mutates_args=())
def _opaque(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int,
    rows: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,
    mean: bool,
    of_hidden: bool,
    of_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, gradient of hidden, gradient of weight): empty where it is not needed."""
    how = ignore_index, rows, (label_smoothing, z_loss, softcap), mean
    needed = of_hidden, of_weight
    empty = hidden.new_empty(0), weight.new_empty(0)
    if not any(needed):
        return _loss(hidden, weight, target, *how), *empty
    loss, *gradients = _loss_and_gradients(hidden, weight, target, *how, needed)
    return loss, *(none if grad is None else grad for grad, none in zip(gradients, empty))


@_opaque.register_fake
def _(hidden, weight, target, ignore_index, rows, *numbers):
    *_, of_hidden, of_weight = numbers
    return (
        _float_zero(hidden),
        hidden.new_empty(hidden.shape if of_hidden else 0),
        weight.new_empty(weight.shape if of_weight else 0),
    )


def _setup_context(ctx, inputs, output) -> None:
    hidden, weight, target, ignore_index, _, *extras, mean, of_hidden, of_weight = inputs
    ctx.needed = of_hidden, of_weight
    ctx.how = ignore_index, tuple(extras), mean
    # A compiled graph keeps those alone that its backward pass reads.
    ctx.save_for_backward(*output[1:], hidden, weight, target)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, grad_mean, *_):
    *kept, hidden, weight, target = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True
        inputs = hidden, weight, target
        return *_differentiable(*inputs, grad_mean, *ctx.how, ctx.needed), *[None] * 9
    # A compiled graph keeps them, although only to raise an error for gradients of gradients.
    gradients = [
        scale_gradient(grad, grad_mean, of) if need else None
        for grad, of, need in zip(kept, (hidden, weight), ctx.needed)
    ]
    return *gradients, *[None] * 9


_opaque.register_autograd(_backward, setup_context=_setup_context, non_differentiable="target")


def of_one_node(hidden, weight, target, ignore_index, rows, extras, mean, needed):
    """The loss; needed: whether hidden and weight get gradients."""
    return _opaque(hidden, weight, target, ignore_index, rows, *extras, mean, *needed)[0]


# ---- eager code ----------------------------------------------------------------------------------


class _LinearMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, how):
        ctx.how = *how, (hidden.requires_grad, weight.requires_grad)
        loss, *gradients = _loss_and_gradients(hidden, weight, target, *ctx.how)
        keep(ctx, gradients, (hidden, weight, target))
        return loss

    @staticmethod
    def backward(ctx, grad_mean):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            ignore_index, _, extras, mean, needed = ctx.how
            how = grad_mean, ignore_index, extras, mean, needed
            return *_differentiable(*ctx.saved_tensors, *how), None, None

        def anew(*inputs):
            return _loss_and_gradients(*inputs, *ctx.how)[1:]

        return *scaled(ctx, grad_mean, anew), None, None
