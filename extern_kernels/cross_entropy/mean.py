"""Mean cross-entropy over rows, as torch.nn.functional.cross_entropy gives it, with its gradient.

cross_entropy_mean_with_gradient(logits, target, ignore_index=-100, label_smoothing=0.0,
    z_loss=0.0, softcap=0.0) -> (loss, grad_logits)

logits, target, ignore_index, label_smoothing, z_loss, softcap: as of cross_entropy
loss: 0-d, float32 (float64 for float64 logits): the mean over the rows that count; NaN where none
    does
grad_logits: the gradient of loss, of the logits' shape and dtype. The kernels are right when it is
    the memory of the logits.

loss is differentiable; grad_logits is not. cross_entropy_mean gives the loss, and its gradient in
the backward pass.
"""

import torch

import opaq

from .cross_entropy import EXTRAS, FLOAT, REQUIRES_CPU, REQUIRES_CUDA, cross_entropy
from .kept_gradients import keep, scaled
from .with_gradient import (
    cpu_call,
    cross_entropy_with_gradient_reference,
    cuda_launch,
    differentiable_gradient,
    scale_gradient,
)

cross_entropy_mean_with_gradient = opaq.op(
    "opaq_kernels::cross_entropy_mean_with_gradient(Tensor logits, Tensor target, "
    f"int ignore_index=-100, {EXTRAS}) -> (Tensor loss, Tensor grad_logits)",
    outputs={
        "loss": opaq.tensor([], dtype=FLOAT),
        "grad_logits": opaq.like("logits", may_overwrite=True),
    },
)

# counted: the number of rows that count; scale: 1 / counted
COUNTED = opaq.tensor([], dtype=FLOAT)
SCRATCH = {
    "scale": opaq.tensor("1", dtype=FLOAT),
    "losses": opaq.tensor("logits.size(0)", dtype=FLOAT),
    "lse": opaq.tensor("logits.size(0)", dtype=FLOAT),
}
_COUNT = "scale, counted, target, logits.size(0), target.stride(0), ignore_index"
_MEAN = "loss, losses, counted, logits.size(0)"


def declare_mean(op: opaq.Op, scratch: dict[str, opaq.Output], *names: str) -> None:
    """The kernels of an op that computes a mean with its gradient. names: as of cuda_launch."""
    op.cuda(
        source=opaq.file("mean.cu"),
        scratch=scratch,
        steps=[
            opaq.step(entry="count_rows", grid="1", block=1024, args=_COUNT),
            opaq.step(source=opaq.file("with_gradient.cu"), **cuda_launch(*names)),
            opaq.step(entry="mean_of_losses", grid="1", block=1024, args=_MEAN),
        ],
        requires=[*REQUIRES_CUDA, "logits.size(0) < 2147483648"],
    )
    op.cpu(
        source=opaq.file("mean.cpp"),
        scratch=scratch,
        steps=[
            opaq.step(entry="count_rows<{logits.dtype}>", args=_COUNT),
            opaq.step(source=opaq.file("with_gradient.cpp"), **cpu_call(*names)),
            opaq.step(entry="mean_of_losses<{logits.dtype}>", args=_MEAN),
        ],
        requires=REQUIRES_CPU,
    )


declare_mean(cross_entropy_mean_with_gradient, {**SCRATCH, "counted": COUNTED}, "losses", "scale")


@cross_entropy_mean_with_gradient.reference
def cross_entropy_mean_with_gradient_reference(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    count = (target != ignore_index).sum(dtype=dtype)
    loss, _, grad = cross_entropy_with_gradient_reference(
        logits, target, count.reciprocal(), ignore_index, label_smoothing, z_loss, softcap
    )
    return loss.sum() / count, grad


def _setup_context(ctx, inputs, output) -> None:
    logits, target, *ctx.numbers = inputs
    ctx.save_for_backward(logits, target)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_loss: torch.Tensor, _):
    _, grad = cross_entropy_mean_with_gradient(*ctx.saved_tensors, *ctx.numbers)
    return scale_gradient(grad, grad_loss), *[None] * 5


cross_entropy_mean_with_gradient.backward(
    _backward, setup_context=_setup_context, non_differentiable="target"
)


def cross_entropy_mean(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Mean loss over the rows that count; NaN where none does. Arguments: as of cross_entropy.

    Where the logits require a gradient, it is computed along with the loss, by one op, and kept
    until the backward pass in the place of what else would be saved.
    """
    numbers = ignore_index, label_smoothing, z_loss, softcap
    if torch.is_grad_enabled() and logits.requires_grad:
        return _MeanWithGradient.apply(logits, target, *numbers)
    loss, _ = cross_entropy(logits, target, *numbers)
    return loss.sum() / (target != ignore_index).sum()


class _MeanWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, *numbers):
        loss, grad = cross_entropy_mean_with_gradient(logits, target, *numbers)
        ctx.numbers = numbers
        keep(ctx, [grad], (logits, target))
        return loss

    @staticmethod
    def backward(ctx, grad_mean):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            logits, target = ctx.saved_tensors
            ignore_index, *extras = ctx.numbers
            how = grad_mean, ignore_index, tuple(extras), True
            return differentiable_gradient(logits, target, *how), *[None] * 5

        def anew(logits, target):
            return [cross_entropy_mean_with_gradient(logits, target, *ctx.numbers)[1]]

        return *scaled(ctx, grad_mean, anew), *[None] * 5
