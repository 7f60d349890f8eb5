"""Structs by value and cast pointers in launches on a GPU: the same in eager, in both wrappers, in
a package and in CUDA graphs.
"""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

import opaq

FORMS = ["eager", "Python wrapper", "C++ wrapper", "package", "CUDA graph"]
SOURCE = """
namespace ns {
enum Mode : signed char { kSum, kMean };
struct Scale { bool on; double by[2][2]; };
struct Base { signed char first; };
template <class T> struct Params : Base {
  const T* x; T* y; long long n; unsigned char small; Scale scale; Mode mode; float eps;
  union { int i; float f; };
  int sizes[4];
  __device__ double sum() const {
    double s = first + small + scale.on + int(mode) + eps + f;
    for (int i = 0; i < 4; ++i) s += scale.by[i / 2][i % 2] + sizes[i];
    return s;
  }
};
struct alignas(32) Tail { char c; double d; };
}
template <class T>
__global__ void k(const __grid_constant__ ns::Params<T> p, const unsigned* bits, ns::Tail t) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < p.n) p.y[i] = p.x[i] + T(p.sum() + t.c + t.d) + T(bits[i] >> 31);
}
"""


def in_form(form: str, op: opaq.Op, folder: pathlib.Path, x: torch.Tensor) -> Any:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x, 0.25)

    model = Model()
    if form == "eager":
        return model
    if form == "package":
        program = torch.export.export(model, (x,))
        return torch._inductor.aoti_load_package(opaq.package(program, folder / "model.pt2"))
    options = {"cpp_wrapper": form == "C++ wrapper", "triton.cudagraphs": form == "CUDA graph"}
    return torch.compile(model, fullgraph=True, options=options)


@pytest.mark.parametrize("form", FORMS)
def test_structs_and_casts(form: str, tmp_path: pathlib.Path) -> None:
    op = opaq.op(
        f"gpu_arguments::form{FORMS.index(form)}(Tensor x, float eps) -> (Tensor y)",
        outputs=opaq.like("x"),
    )
    fields = {
        "first": 1,
        "x": "x",
        "y": "y",
        "n": "x.numel()",
        "small": 200,
        "scale": {"on": "eps < 1", "by": [[1, "eps"], ["x.size(0) / x.size(1)", 4.5]]},
        "mode": 1,
        "eps": "eps",
        "f": "eps * 2",
        "sizes": "[*x.shape, ...]",
    }
    op.cuda(
        source=SOURCE,
        entry="k<{x.dtype}>",
        grid="ceil_div(x.numel(), 256)",
        block=256,
        args=[opaq.struct("Params", **fields), opaq.cast("const unsigned*", "x"), "[7, eps * 4]"],
    )
    x = torch.randn(3, 500, device="cuda")
    call = in_form(form, op, tmp_path, x)
    total = 1 + 200 + 1 + 1 + 0.25 + 0.5 + 503 + 1 + 0.25 + 3 / 500 + 4.5 + 7 + 1
    for _ in range(3):
        x = torch.randn(3, 500, device="cuda")
        torch.testing.assert_close(call(x), x + total + (x < 0))


def test_a_table_of_tensors_fills_most_of_the_parameters() -> None:
    """A struct of 3,984 bytes, of which each field may change at each launch."""
    names = [f"x{i}" for i in range(60)]
    op = opaq.op(
        f"gpu_arguments::sum_of_tables({', '.join(f'Tensor {name}' for name in names)}) -> "
        "(Tensor y)",
        outputs=opaq.like("x0"),
    )
    op.cuda(
        source="""
        struct Table { const float* x[496]; float* y; int count, n; };
        __global__ void total(const __grid_constant__ Table t) {
          const int i = blockIdx.x * blockDim.x + threadIdx.x;
          if (i >= t.n) return;
          float sum = 0;
          for (int k = 0; k < t.count; ++k) sum += t.x[k][i];
          t.y[i] = sum;
        }""",
        entry="total",
        grid="ceil_div(x0.numel(), 256)",
        block=256,
        args=[opaq.struct("Table", x=[*names, ...], y="y", count=60, n="x0.numel()")],
    )
    for _ in range(2):
        tensors = [torch.randn(1000, device="cuda") for _ in names]
        torch.testing.assert_close(op(*tensors), sum(tensors), rtol=1e-4, atol=1e-4)
