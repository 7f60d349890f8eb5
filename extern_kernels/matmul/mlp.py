"""A block of two linear layers with gelu between them, whose gradient undoes gelu within the launch
of a product.
"""

from __future__ import annotations

import torch

from .matmul import (
    gelu_grad,
    linear,
    linear_gelu,
    linear_gelu_h,
    linear_grad_weight,
    linear_grad_x,
    takes_gradient,
    weight_gradients,
)


class _MlpGelu(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight_in, bias_in, weight_out, bias_out):
        y, h = linear_gelu_h(x, weight_in, bias_in)
        return linear(y, weight_out, bias_out), y, h

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight_in, _, weight_out, _ = inputs
        _, y, h = output
        ctx.mark_non_differentiable(y, h)
        ctx.save_for_backward(x, weight_in, weight_out, y, h)

    @staticmethod
    def backward(ctx, grad, *_):
        x, weight_in, weight_out, y, h = ctx.saved_tensors
        need_x, need_in, need_bias_in, need_out, need_bias_out = ctx.needs_input_grad
        grad_x = grad_in = grad_bias_in = None
        if need_x or need_in or need_bias_in:
            grad_h, sums = gelu_grad(grad, weight_out, h)
            grad_bias_in = sums if need_bias_in else None
            grad_x = linear_grad_x(grad_h, weight_in) if need_x else None
            grad_in = linear_grad_weight(grad_h, x) if need_in else None
        of_out = weight_gradients(grad, y, need_out, need_bias_out)
        return grad_x, grad_in, grad_bias_in, *of_out


def mlp_gelu(
    x: torch.Tensor,
    weight_in: torch.Tensor,
    bias_in: torch.Tensor,
    weight_out: torch.Tensor,
    bias_out: torch.Tensor | None = None,
) -> torch.Tensor:
    """gelu(x weight_in^T + bias_in) weight_out^T + bias_out, gelu in its tanh form. x: (..., K);
    weight_in: (H, K); bias_in: (H); weight_out: (N, H); bias_out: (N); one dtype, as for linear.
    The gradient is four products; one also undoes gelu and sums for bias_in.
    """
    if takes_gradient(x, weight_in, bias_in, weight_out, bias_out):
        return _MlpGelu.apply(x, weight_in, bias_in, weight_out, bias_out)[0]
    return linear(linear_gelu(x, weight_in, bias_in), weight_out, bias_out)
