"""A kernel with random numbers of its own: PyTorch's generator gives the seed as a tensor, so that
torch.manual_seed, compiled graphs and CUDA graphs govern it as they do PyTorch's own kernels.
"""

import torch

import opaq

dropout_op = opaq.op(
    "examples::seeded_dropout(Tensor x, Tensor seed, float p) -> (Tensor y)",
    outputs=opaq.like("x"),
)
# A counter-based generator: the number of element i depends on the seed and on i alone.
RANDOM = """
QUALIFIERS float random_of(unsigned long long seed, unsigned long long i) {
  unsigned long long z = seed + (i + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return ((z ^ (z >> 31)) >> 40) * (1.0f / (1 << 24));
}
"""
dropout_op.cuda(
    source=RANDOM.replace("QUALIFIERS", "__device__")
    + """
    __global__ void dropout(const float* x, const long long* seed, float p, float* y, long long n) {
      const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
      if (i < n) y[i] = random_of(*seed, i) < p ? 0 : x[i] / (1 - p);
    }
    """,
    entry="dropout",
    grid="ceil_div(x.numel(), 256)",
    block=256,
    args="x, seed, p, y, x.numel()",
)
dropout_op.cpu(
    source=RANDOM.replace("QUALIFIERS", "static")
    + """
    void dropout(const float* x, const long long* seed, float p, float* y, long long n) {
      for (long long i = 0; i < n; ++i) y[i] = random_of(*seed, i) < p ? 0 : x[i] / (1 - p);
    }
    """,
    entry="dropout",
    args="x, seed, p, y, x.numel()",
)


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    return dropout_op(x, torch.randint(0, 1 << 62, (1,), device=x.device), p)


device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.ones(10_000, device=device)
for function in (dropout, torch.compile(dropout)):
    torch.manual_seed(0)
    first, second = function(x, 0.25), function(x, 0.25)
    assert abs((first == 0).float().mean() - 0.25) < 0.02
    assert not torch.equal(first, second)  # each call advances the generator
    torch.manual_seed(0)
    torch.testing.assert_close(function(x, 0.25), first)  # and the seed decides
