"""An op with two outputs, each with its own rule for shape and dtype."""

import torch

import opaq

# The largest element of each row, and where it is.
row_max = opaq.op(
    "examples::row_max(Tensor x) -> (Tensor values, Tensor indices)",
    outputs={
        "values": opaq.tensor("x.size(0)", dtype="x.dtype"),
        "indices": opaq.tensor("x.size(0)", dtype=torch.int64),
    },
)
row_max.cuda(
    source="""
    __global__ void row_max(const float* x, float* values, long* indices, long width) {
      const float* row = x + blockIdx.x * width;
      long best = 0;
      for (long i = 1; i < width; ++i)
        if (row[i] > row[best]) best = i;
      values[blockIdx.x] = row[best];
      indices[blockIdx.x] = best;
    }
    """,
    entry="row_max",
    grid="x.size(0)",
    block=1,
    args="x, values, indices, x.size(1)",
    requires="x.dtype == float32 and x.dim() == 2 and x.size(1) > 0",
)
row_max.cpu(
    source="""
    #include <algorithm>

    void row_max(const float* x, float* values, long* indices, long height, long width) {
      for (long r = 0; r < height; ++r) {
        const float* row = x + r * width;
        indices[r] = std::max_element(row, row + width) - row;
        values[r] = row[indices[r]];
      }
    }
    """,
    entry="row_max",
    args="x, values, indices, x.size(0), x.size(1)",
    requires="x.dtype == float32 and x.dim() == 2 and x.size(1) > 0",
)

device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.randn(7, 33, device=device)
for function in (row_max, torch.compile(lambda x: row_max(x))):
    values, indices = function(x)
    torch.testing.assert_close(values, x.max(dim=1).values)
    torch.testing.assert_close(indices, x.max(dim=1).indices)
print("values and indices are those of torch.max")
