"""Tensor maps on a GPU: tiles loaded and stored, the same in eager, both wrappers, a package and
CUDA graphs, for every size and address that a call has.
"""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import tensor_map_kernel
import torch

import opaq

FORMS = ["eager", "Python wrapper", "C++ wrapper", "package", "CUDA graph"]
pytestmark = pytest.mark.skipif(
    torch.cuda.get_device_capability() < (9, 0), reason="tensor maps need compute capability 9.0"
)


def in_form(form: str, op: opaq.Op, folder: pathlib.Path, *example: Any) -> Any:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, loads: torch.Tensor) -> torch.Tensor:
            return op(x, 2.5, loads)

    model = Model()
    if form == "eager":
        return model
    if form == "CUDA graph":
        return captured(model)
    if form == "package":
        rows = torch.export.Dim("rows", min=2, max=1000)
        program = torch.export.export(model, example, dynamic_shapes=({0: rows}, None))
        return torch._inductor.aoti_load_package(opaq.package(program, folder / "model.pt2"))
    options = {"cpp_wrapper": form == "C++ wrapper"}
    return torch.compile(model, fullgraph=True, dynamic=True, options=options)


def captured(model: torch.nn.Module) -> Any:
    """One CUDA graph for each shape. It writes to `loads`, for which torch.compile makes none."""
    graphs: dict[torch.Size, Any] = {}

    def call(x: torch.Tensor, loads: torch.Tensor) -> torch.Tensor:
        if x.shape not in graphs:
            own = x.clone()
            model(own, loads)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = model(own, loads)
            graphs[x.shape] = own, graph, y
            loads.zero_()
        own, graph, y = graphs[x.shape]
        own.copy_(x)
        graph.replay()
        return y

    return call


@pytest.mark.parametrize("form", FORMS)
def test_tiles_are_loaded_and_stored(form: str, tmp_path: pathlib.Path) -> None:
    op = tensor_map_kernel.declare(f"gpu_tensor_maps::form{FORMS.index(form)}")
    example = torch.randn(20, 5, 36, device="cuda")
    loads = torch.zeros(1, dtype=torch.int32, device="cuda")
    call = in_form(form, op, tmp_path, example, loads)
    for rows in (20, 20, 7, 20, 300):  # tiles that the matrix fills only in part, too
        x = torch.randn(rows, 5, 36, device="cuda")
        loads.zero_()
        torch.testing.assert_close(call(x, loads), x * 2.5, rtol=0, atol=0)
        assert loads.item() == 2 * -(-rows * 5 // tensor_map_kernel.ROWS)


def test_a_tensor_that_cannot_be_mapped_is_an_error_and_no_launch() -> None:
    op = tensor_map_kernel.declare("gpu_tensor_maps::refused")
    loads = torch.zeros(1, dtype=torch.int32, device="cuda")
    with pytest.raises(opaq.LaunchError, match="stride 0 of `x` is 35 elements of 4 bytes"):
        op(torch.randn(4, 35, device="cuda"), 1.0, loads)
    with pytest.raises(opaq.LaunchError, match="address of `x` is not a multiple of 16 bytes"):
        op(torch.randn(4 * 36 + 1, device="cuda")[1:].view(4, 36), 1.0, loads)
    assert loads.item() == 0
