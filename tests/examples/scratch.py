"""A kernel that needs scratch memory: declare it by name. Nobody else sees it. In compiled graphs
Inductor plans it with the other buffers, and its memory is free again right after the call.
"""

import torch

import opaq

sum_squares = opaq.op(
    "examples::sum_squares(Tensor x) -> (Tensor total)",
    outputs=opaq.tensor([], dtype="float32"),
)
sum_squares.cuda(
    source="""
    // Every block adds up its part; the one that finishes last adds up the parts.
    __global__ void sum_squares(const float* x, float* total, float* partial, int* finished,
                                long n) {
      __shared__ float sums[256];
      __shared__ bool last;
      float sum = 0;
      for (long i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) sum += x[i] * x[i];
      sums[threadIdx.x] = sum;
      __syncthreads();
      if (threadIdx.x == 0) {
        for (int t = 1; t < 256; ++t) sum += sums[t];
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(finished, 1) == gridDim.x - 1;
      }
      __syncthreads();
      if (!last || threadIdx.x != 0) return;
      sum = 0;
      for (int b = 0; b < gridDim.x; ++b) sum += ((volatile float*)partial)[b];
      *total = sum;
      *finished = 0;  // as `once` promises
    }
    """,
    entry="sum_squares",
    scratch={
        "partial": opaq.tensor("min(ceil_div(x.numel(), 1024), 1024)", dtype="float32"),
        "finished": opaq.zeros(1, dtype="int32", once=True),
    },
    grid="partial.size(0)",
    block=256,
    args="x, total, partial, finished, x.numel()",
)
sum_squares.cpu(
    source="""
    void sum_squares(const float* x, float* total, float* partial, long parts, long n) {
      for (long p = 0; p < parts; ++p) {
        partial[p] = 0;
        for (long i = p; i < n; i += parts) partial[p] += x[i] * x[i];
      }
      *total = 0;
      for (long p = 0; p < parts; ++p) *total += partial[p];
    }
    """,
    entry="sum_squares",
    scratch={"partial": opaq.tensor(64, dtype="float32")},
    args="x, total, partial, partial.size(0), x.numel()",
)

device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.randn(5000, device=device)
for function in (sum_squares, torch.compile(sum_squares)):
    torch.testing.assert_close(function(x), x.square().sum())
print("the sum of squares is PyTorch's")
