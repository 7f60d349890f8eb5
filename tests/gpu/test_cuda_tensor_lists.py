"""Lists of tensors in launches on a GPU: the same in eager, in both wrappers, in a package and in
CUDA graphs.
"""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

import opaq

FORMS = ["eager", "dispatcher", "Python wrapper", "C++ wrapper", "package", "CUDA graph"]
SOURCE = """
template <int N> struct Table { float* p[N]; const float* g[N]; long long size[N]; float rate; };
template <int N> __global__ void sgd(const __grid_constant__ Table<N> t) {
  const int k = blockIdx.y;
  for (long long i = blockIdx.x * 256LL + threadIdx.x; i < t.size[k]; i += gridDim.x * 256LL)
    t.p[k][i] -= t.rate * t.g[k][i];
}
"""


def sgd(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor(a!)[] ps, Tensor[] gs, float rate) -> ()", replace=True)
    return op.cuda(
        source=SOURCE,
        entry="sgd<{len(ps)}>",
        args=[opaq.struct("Table", p="ps", g="gs", size="[p.numel() for p in ps]", rate="rate")],
        grid="max(ceil_div(p.numel(), 256) for p in ps), len(ps)",
        block=256,
        requires="all(p.numel() == g.numel() for p, g in zip(ps, gs))",
    )


@pytest.mark.parametrize("form", FORMS)
def test_all_forms(form: str, tmp_path: pathlib.Path) -> None:
    op = sgd(f"gpu_lists::form{FORMS.index(form)}")
    call = op.overload if form == "dispatcher" else op

    class Model(torch.nn.Module):
        def forward(self, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            ps = [x + 1 for x in xs]
            call(ps, [p.clone() for p in ps], 0.5)
            return tuple(ps)

    model: Any = Model()
    xs = [torch.randn(100 + 300 * i, device="cuda") for i in range(3)]
    if form == "package":
        program = torch.export.export(model, tuple(xs))
        path = opaq.package(program, tmp_path / "model.pt2")
        model = torch._inductor.aoti_load_package(path, run_single_threaded=True)
    elif form not in ("eager", "dispatcher"):
        options = {"cpp_wrapper": form == "C++ wrapper", "triton.cudagraphs": form == "CUDA graph"}
        model = torch.compile(model, fullgraph=True, options=options)
    for _ in range(3):
        torch.testing.assert_close(list(model(*xs)), [0.5 * (x + 1) for x in xs])


def test_many_tensors() -> None:
    op = sgd("gpu_lists::many")
    ps = [torch.randn(50 + i, device="cuda") for i in range(150)]
    gs = [torch.randn_like(p) for p in ps]
    expected = [p - 0.1 * g for p, g in zip(ps, gs)]
    op(ps, gs, 0.1)
    torch.testing.assert_close(ps, expected)


def test_items_on_several_devices_are_refused() -> None:
    op = sgd("gpu_lists::devices")
    with pytest.raises(opaq.LaunchError, match="`ps_1` is on cpu, but another argument is on cuda"):
        op([torch.ones(2, device="cuda"), torch.ones(2)], [torch.ones(2, device="cuda")] * 2, 0.1)
