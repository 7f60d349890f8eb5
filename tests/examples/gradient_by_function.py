"""A gradient given as a Python function, as for torch.library.register_autograd. It is traced:
compiled, its PyTorch operations are fused like any others.
"""

from typing import Any

import torch

import opaq

cube = opaq.op("examples::cube(Tensor x) -> Tensor", outputs=opaq.like("x"))
cube.cuda(
    source="""
    __global__ void cube(const float* x, float* out, long n) {
      const long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
      if (i < n) out[i] = x[i] * x[i] * x[i];
    }
    """,
    entry="cube",
    grid="ceil_div(x.numel(), 256)",
    block=256,
    args="x, out, x.numel()",
)
cube.cpu(
    source="""
    void cube(const float* x, float* out, long n) {
      for (long i = 0; i < n; ++i) out[i] = x[i] * x[i] * x[i];
    }
    """,
    entry="cube",
    args="x, out, x.numel()",
)


def save(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    (x,) = ctx.saved_tensors
    return 3 * x.square() * grad


cube.backward(backward, setup_context=save)

device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.randn(1000, device=device, requires_grad=True)
for function in (cube, torch.compile(lambda x: cube(x))):
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    torch.testing.assert_close(gradient, 3 * x.detach() ** 2)
print("the gradient is 3 x^2, in eager mode and compiled")
