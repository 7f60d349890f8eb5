"""A reduction whose kernel is a template over dtype and row length: values in braces become
template arguments, and each combination is compiled when it is first needed.
"""

import torch

import opaq

row_sum = opaq.op(
    "examples::row_sum(Tensor x) -> Tensor",
    outputs=opaq.tensor("x.shape[:-1]", dtype="float32"),
)
row_sum.cuda(
    source="""
    #include <cuda_fp16.h>
    #include <cuda_bf16.h>

    template <typename T, int width>
    __global__ void row_sum(const T* x, float* out) {  // a warp for each row
      float sum = 0;
    #pragma unroll
      for (int i = threadIdx.x; i < width; i += 32) sum += float(x[blockIdx.x * (long)width + i]);
      for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
      if (threadIdx.x == 0) out[blockIdx.x] = sum;
    }
    """,
    entry="row_sum<{x.dtype}, {x.size(-1)}>",
    grid="x.numel() // x.size(-1)",
    block=32,
    args="x, out",
    requires="x.dim() > 0 and x.size(-1) > 0",
)
row_sum.cpu(
    source="""
    template <typename T, long width>
    void row_sum(const T* x, float* out, long rows) {
      for (long r = 0; r < rows; ++r) {
        float sum = 0;
        for (long i = 0; i < width; ++i) sum += float(x[r * width + i]);
        out[r] = sum;
      }
    }
    """,
    entry="row_sum<{x.dtype}, {x.size(-1)}>",
    args="x, out, x.numel() // x.size(-1)",
    requires="x.dim() > 0 and x.size(-1) > 0",
)

device = "cuda" if torch.cuda.is_available() else "cpu"
compiled = torch.compile(lambda x: row_sum(x))
for dtype, shape in ((torch.float32, (5, 64)), (torch.bfloat16, (2, 3, 100))):
    x = torch.randn(shape, device=device).to(dtype)
    for function in (row_sum, compiled):
        torch.testing.assert_close(function(x), x.float().sum(-1))
print(row_sum.explain(x))
