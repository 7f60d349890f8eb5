"""An elementwise op: declared once; runs in eager mode and compiled, on a GPU or the CPU."""

import torch

import opaq

scale_add = opaq.op(
    "examples::scale_add(Tensor x, Tensor y, float alpha=1.0) -> Tensor",
    outputs=opaq.like("x"),
)
scale_add.cuda(
    source="""
    template <typename T>
    __global__ void scale_add(const T* x, const T* y, float alpha, T* out, long n) {
      const long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
      if (i < n) out[i] = x[i] + T(alpha) * y[i];
    }
    """,
    entry="scale_add<{x.dtype}>",
    grid="ceil_div(x.numel(), 256)",
    block=256,
    args="x, y, alpha, out, x.numel()",
    requires=["x.shape == y.shape", "x.dtype == y.dtype"],
)
scale_add.cpu(
    source="""
    template <typename T>
    void scale_add(const T* x, const T* y, double alpha, T* out, long n) {
      for (long i = 0; i < n; ++i) out[i] = x[i] + T(alpha) * y[i];
    }
    """,
    entry="scale_add<{x.dtype}>",
    args="x, y, alpha, out, x.numel()",
    requires=["x.shape == y.shape", "x.dtype == y.dtype"],
)

device = "cuda" if torch.cuda.is_available() else "cpu"
x, y = torch.randn(1000, device=device), torch.randn(1000, device=device)
torch.testing.assert_close(scale_add(x, y, alpha=2.0), x + 2 * y)


@torch.compile
def twice(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return scale_add(scale_add(x, y), y)


torch.testing.assert_close(twice(x, y), x + 2 * y)
print(opaq.report())
