"""A kernel that needs scratch memory: declare the workspace as one more output. In compiled graphs
Inductor plans it like any other buffer, and its memory is free again right after the call.
"""

import torch

import opaq

sum_squares_op = opaq.op(
    "examples::sum_squares(Tensor x) -> (Tensor total, Tensor partial)",
    outputs={
        "total": opaq.tensor([], dtype="float32"),
        "partial": opaq.tensor("64", dtype="float32"),  # the workspace: a sum for each thread
    },
)
sum_squares_op.cuda(
    source="""
    __global__ void sum_squares(const float* x, float* total, float* partial, long n) {
      float sum = 0;
      for (long i = threadIdx.x; i < n; i += blockDim.x) sum += x[i] * x[i];
      partial[threadIdx.x] = sum;
      __syncthreads();
      if (threadIdx.x != 0) return;
      for (int t = 1; t < blockDim.x; ++t) sum += partial[t];
      *total = sum;
    }
    """,
    entry="sum_squares",
    grid=1,
    block="partial.size(0)",
    args="x, total, partial, x.numel()",
)
sum_squares_op.cpu(
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
    args="x, total, partial, partial.size(0), x.numel()",
)


def sum_squares(x: torch.Tensor) -> torch.Tensor:
    """What users call: they never see the workspace."""
    total, _partial = sum_squares_op(x)
    return total


device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.randn(5000, device=device)
for function in (sum_squares, torch.compile(sum_squares)):
    torch.testing.assert_close(function(x), x.square().sum())
print("the sum of squares is PyTorch's")
