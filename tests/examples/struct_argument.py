"""A kernel that takes its arguments in one struct by value, as many libraries write them."""

import torch

import opaq

STRUCT = """
struct Size { long rows, columns; };
template <typename T> struct NormParams {
  const T* x;
  const T* weight;  // may be nullptr
  T* y;
  Size size;
  float eps;
  bool plus_one;  // weights are stored as differences to 1
};
"""
rms_norm = opaq.op(
    "examples::rms_norm_of_struct(Tensor x, Tensor? weight, float eps=1e-6) -> (Tensor y)",
    outputs=opaq.like("x"),
)
args = opaq.struct(
    "NormParams",
    x="x",
    weight="weight",
    y="y",
    size={"rows": "x.numel() // x.size(-1)", "columns": "x.size(-1)"},
    eps="eps",
    plus_one=False,
)
rms_norm.cuda(
    source=STRUCT
    + """
    template <typename T>
    __global__ void rms_norm(const __grid_constant__ NormParams<T> p) {
      __shared__ float sum;
      if (threadIdx.x == 0) sum = 0;
      __syncthreads();
      const long row = blockIdx.x * p.size.columns;
      float own = 0;
      for (long i = threadIdx.x; i < p.size.columns; i += blockDim.x)
        own += float(p.x[row + i]) * float(p.x[row + i]);
      atomicAdd(&sum, own);
      __syncthreads();
      const float scale = rsqrtf(sum / p.size.columns + p.eps);
      for (long i = threadIdx.x; i < p.size.columns; i += blockDim.x) {
        const float weight = p.weight ? float(p.weight[i]) + p.plus_one : 1;
        p.y[row + i] = T(float(p.x[row + i]) * scale * weight);
      }
    }
    """,
    entry="rms_norm<{x.dtype}>",
    grid="x.numel() // x.size(-1)",
    block=256,
    args=[args],
)
rms_norm.cpu(
    source="#include <cmath>"
    + STRUCT
    + """
    template <typename T> void rms_norm(NormParams<T> p) {
      for (long row = 0; row < p.size.rows; ++row, p.x += p.size.columns, p.y += p.size.columns) {
        double sum = 0;
        for (long i = 0; i < p.size.columns; ++i) sum += double(p.x[i]) * p.x[i];
        const double scale = 1 / std::sqrt(sum / p.size.columns + p.eps);
        for (long i = 0; i < p.size.columns; ++i)
          p.y[i] = T(p.x[i] * scale * (p.weight ? p.weight[i] + p.plus_one : 1));
      }
    }
    """,
    entry="rms_norm<{x.dtype}>",
    args=[args],
)

device = "cuda" if torch.cuda.is_available() else "cpu"
x, weight = torch.randn(8, 1000, device=device), torch.randn(1000, device=device)
expected = torch.nn.functional.rms_norm(x, (1000,), weight, eps=1e-6)
torch.testing.assert_close(rms_norm(x, weight), expected)
torch.testing.assert_close(torch.compile(rms_norm)(x, weight), expected)
torch.testing.assert_close(
    rms_norm(x, None), torch.nn.functional.rms_norm(x, (1000,), None, eps=1e-6)
)
