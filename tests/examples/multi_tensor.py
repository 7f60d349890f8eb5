"""One launch for many tensors, as optimizers do it: the op takes lists of tensors, and their
addresses go to the kernel in a struct, which holds arrays of pointers. Longer lists are cut into
pieces.
"""

import torch

import opaq

MOST = 24  # tensors of one launch, each with its gradient
TABLE = """
struct Table {
  float* parameter[24];
  const float* gradient[24];
  long long size[24];
  int count;
  float rate;
};
"""

step = opaq.op("examples::sgd(Tensor(a!)[] parameters, Tensor[] gradients, float rate) -> ()")
table = opaq.struct(
    "Table",
    parameter="[*parameters, ...]",  # the addresses; what is left of the array is zero
    gradient="[*gradients, ...]",
    size="[*(p.numel() for p in parameters), ...]",
    count="len(parameters)",
    rate="rate",
)
same = "all(p.numel() == g.numel() for p, g in zip(parameters, gradients))"
step.cuda(
    source=TABLE
    + """
    __global__ void step(const __grid_constant__ Table t) {
      const int k = blockIdx.y;
      for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < t.size[k];
           i += gridDim.x * (long long)blockDim.x)
        t.parameter[k][i] -= t.rate * t.gradient[k][i];
    }
    """,
    entry="step",
    grid="max(ceil_div(p.numel(), 256) for p in parameters), len(parameters)",
    block=256,
    args=[table],
    requires=same,
)
step.cpu(
    source=TABLE
    + """
    void step(const Table t) {
      for (int k = 0; k < t.count; ++k)
        for (long long i = 0; i < t.size[k]; ++i)
          t.parameter[k][i] -= t.rate * t.gradient[k][i];
    }
    """,
    entry="step",
    args=[table],
    requires=same,
)


def sgd(parameters: list[torch.Tensor], gradients: list[torch.Tensor], rate: float) -> None:
    for begin in range(0, len(parameters), MOST):
        some = slice(begin, begin + MOST)
        step(parameters[some], gradients[some], rate)


device = "cuda" if torch.cuda.is_available() else "cpu"
parameters = [torch.randn(100 + i, device=device) for i in range(40)]
gradients = [torch.randn_like(parameter) for parameter in parameters]
for run in (sgd, torch.compile(sgd, fullgraph=True)):
    expected = [p - 0.1 * g for p, g in zip(parameters, gradients, strict=True)]
    run(parameters, gradients, 0.1)
    torch.testing.assert_close(parameters, expected)
