"""An op that writes to an argument: `Tensor(a!)` in the schema, as in PyTorch."""

import torch

import opaq

# Writes rows into a cache at given positions, as a key-value cache is filled.
store = opaq.op("examples::store(Tensor(a!) cache, Tensor rows, Tensor positions) -> ()")
store.cuda(
    source="""
    __global__ void store(float* cache, const float* rows, const long* positions, long width) {
      for (long i = threadIdx.x; i < width; i += blockDim.x)
        cache[positions[blockIdx.x] * width + i] = rows[blockIdx.x * width + i];
    }
    """,
    entry="store",
    grid="positions.size(0)",
    block=128,
    args="cache, rows, positions, rows.size(1)",
)
store.cpu(
    source="""
    void store(float* cache, const float* rows, const long* positions, long count, long width) {
      for (long r = 0; r < count; ++r)
        for (long i = 0; i < width; ++i) cache[positions[r] * width + i] = rows[r * width + i];
    }
    """,
    entry="store",
    args="cache, rows, positions, positions.size(0), rows.size(1)",
)


def step(cache: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    store(cache, rows, positions)
    return cache


device = "cuda" if torch.cuda.is_available() else "cpu"
rows, positions = torch.randn(3, 8, device=device), torch.tensor([4, 0, 2], device=device)
expected = torch.zeros(5, 8, device=device).index_copy(0, positions, rows)

for function in (step, torch.compile(step)):
    cache = torch.zeros(5, 8, device=device)
    result = function(cache, rows, positions)
    torch.testing.assert_close(cache, expected)
    assert result is cache  # written in place: nothing was copied
print("the cache was written in place, in eager mode and compiled")
