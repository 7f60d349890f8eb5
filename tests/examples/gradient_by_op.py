"""A gradient that is itself an opaque op. Arguments are bound by name: `grad_out` of the backward
op is the gradient of the result `out`, `x` is the argument x, and its result `grad_x` is x's
gradient.
"""

import torch

import opaq

CUDA = """
__global__ void softplus(const float* x, float* out, long n) {
  const long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
  if (i < n) out[i] = log1pf(expf(x[i]));
}
__global__ void softplus_backward(const float* grad_out, const float* x, float* grad_x, long n) {
  const long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
  if (i < n) grad_x[i] = grad_out[i] / (1 + expf(-x[i]));
}
"""
CPP = """
#include <cmath>
void softplus(const float* x, float* out, long n) {
  for (long i = 0; i < n; ++i) out[i] = std::log1p(std::exp(x[i]));
}
void softplus_backward(const float* grad_out, const float* x, float* grad_x, long n) {
  for (long i = 0; i < n; ++i) grad_x[i] = grad_out[i] / (1 + std::exp(-x[i]));
}
"""
launch = {"grid": "ceil_div(x.numel(), 256)", "block": 256}

softplus = opaq.op("examples::softplus(Tensor x) -> Tensor", outputs=opaq.like("x"))
softplus.cuda(source=CUDA, entry="softplus", args="x, out, x.numel()", **launch)
softplus.cpu(source=CPP, entry="softplus", args="x, out, x.numel()")

softplus_backward = opaq.op(
    "examples::softplus_backward(Tensor grad_out, Tensor x) -> (Tensor grad_x)",
    outputs=opaq.like("x"),
)
arguments = "grad_out, x, grad_x, x.numel()"
softplus_backward.cuda(source=CUDA, entry="softplus_backward", args=arguments, **launch)
softplus_backward.cpu(source=CPP, entry="softplus_backward", args=arguments)

softplus.backward(softplus_backward)

device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.randn(1000, device=device, requires_grad=True)
(expected,) = torch.autograd.grad(torch.nn.functional.softplus(x).sum(), x)
for function in (softplus, torch.compile(lambda x: softplus(x))):
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    torch.testing.assert_close(gradient, expected)
print("the gradient is PyTorch's, in eager mode and compiled")
