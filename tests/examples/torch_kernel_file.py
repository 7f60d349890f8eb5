"""A kernel file as it is in an extension of PyTorch, with PyTorch's headers, AT_DISPATCH and a
launcher: NVRTC compiles the kernel, and opaq launches it.
"""

import torch

import opaq

SOURCE = r"""
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

template <typename scalar_t>
__global__ void leaky_relu_kernel(const scalar_t* __restrict__ x, scalar_t* __restrict__ y,
                                  int64_t n, float slope) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i < n) y[i] = x[i] > scalar_t(0) ? x[i] : scalar_t(slope * x[i]);
}

void leaky_relu(const at::Tensor& x, at::Tensor& y, double slope) {
  TORCH_CHECK(x.is_cuda(), "x must be on a GPU");
  const int64_t blocks = std::max<int64_t>(1, (x.numel() + 255) / 256);
  AT_DISPATCH_FLOATING_TYPES_AND_HALF(x.scalar_type(), "leaky_relu", [&] {
    leaky_relu_kernel<scalar_t><<<blocks, 256, 0, c10::cuda::getCurrentCUDAStream()>>>(
        x.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(), x.numel(), slope);
  });
}
"""

leaky_relu = opaq.op(
    "examples::leaky_relu(Tensor x, float slope=0.01) -> (Tensor y)", outputs=opaq.like("x")
)
leaky_relu.cuda(
    source=SOURCE,  # or opaq.file("leaky_relu.cu")
    compiler="auto",  # the default: NVRTC first, and nvcc for what NVRTC refuses (`opaq doctor`)
    # torch_type gives c10::Half for float16, and so on, as AT_DISPATCH does.
    entry="leaky_relu_kernel<opaq::torch_type<{x.dtype}>>",
    grid="ceil_div(x.numel(), 256)",
    block=256,
    args="x, y, x.numel(), slope",
)


@leaky_relu.reference
def _(x: torch.Tensor, slope: float = 0.01) -> torch.Tensor:
    return torch.where(x > 0, x, x * slope)


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(1000, device=device)
    expected = torch.nn.functional.leaky_relu(x, 0.2)
    torch.testing.assert_close(leaky_relu(x, 0.2), expected)
    torch.testing.assert_close(torch.compile(leaky_relu)(x, 0.2), expected)
    print(opaq.report())  # on a GPU, its column `compiler` says which one served
