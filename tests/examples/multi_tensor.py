"""One launch for many tensors, as optimizers do it: their addresses go to the kernel in a struct,
which holds arrays of pointers. An op takes up to 64 arguments; longer lists are cut into pieces.
"""

import functools

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


@functools.cache
def step_op(count: int) -> opaq.Op:
    """An op that updates `count` parameters in place."""
    written = [f"Tensor(a{i}!) p{i}" for i in range(count)]
    read = [f"Tensor g{i}" for i in range(count)]
    op = opaq.op(f"examples::sgd_{count}({', '.join(written + read)}, float rate) -> ()")
    table = opaq.struct(
        "Table",
        parameter=[*(f"p{i}" for i in range(count)), ...],
        gradient=[*(f"g{i}" for i in range(count)), ...],
        size=[*(f"p{i}.numel()" for i in range(count)), ...],
        count=count,
        rate="rate",
    )
    op.cuda(
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
        grid=f"32, {count}",
        block=256,
        args=[table],
    )
    op.cpu(
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
    )
    return op


def sgd(parameters: list[torch.Tensor], gradients: list[torch.Tensor], rate: float) -> None:
    for begin in range(0, len(parameters), MOST):
        some = slice(begin, begin + MOST)
        step_op(len(parameters[some]))(*parameters[some], *gradients[some], rate)


device = "cuda" if torch.cuda.is_available() else "cpu"
parameters = [torch.randn(100 + i, device=device) for i in range(40)]
gradients = [torch.randn_like(parameter) for parameter in parameters]
expected = [p - 0.1 * g for p, g in zip(parameters, gradients, strict=True)]
sgd(parameters, gradients, 0.1)
torch.testing.assert_close(parameters, expected)

step = step_op(3)
compiled = torch.compile(lambda p, g: step(*p, *g, 0.1), fullgraph=True)
expected = [p - 0.1 * g for p, g in zip(parameters[:3], gradients[:3], strict=True)]
compiled(parameters[:3], gradients[:3])
torch.testing.assert_close(parameters[:3], expected)
