"""Choice by measurement on a GPU."""

from __future__ import annotations

import pathlib
import zipfile

import torch

import opaq
from opaq import _runtime
from opaq import extern_kernels as kernels

SOURCE = """
template <int TIMES, int BLOCK>
__global__ void scale(const float* x, float* y, int n) {
  const int i = blockIdx.x * BLOCK + threadIdx.x;
  for (int t = 0; t < TIMES; ++t)
    if (i < n) ((volatile float*)y)[i] = 2 * ((const volatile float*)x)[i];
}"""


def test_values_are_chosen_among(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    op.cuda(
        source=SOURCE,
        entry="scale<{TIMES}, {BLOCK}>",
        grid="ceil_div(x.numel(), BLOCK)",
        block="BLOCK",
        args="x, y, x.numel()",
        tune={"TIMES": [200, 1], "BLOCK": [256, 1024]},
    )
    x = torch.randn(1 << 20, device="cuda")
    found = opaq.tune(op, x)
    assert found.fastest.startswith("cuda:TIMES=1,") and found.speedup > 2 and not found.out
    assert torch.equal(op(x), 2 * x)
    compiled = torch.compile(lambda x: op(x) + 1, backend="opaq", options={"tune": "stored"})
    assert torch.equal(compiled(x), 2 * x + 1)
    (node,) = [node for node in _runtime.node_stats() if node["op"] == op.name]
    assert node["implementation"] == found.fastest


def test_algorithms_of_a_product_are_chosen_among() -> None:
    x = torch.randn(64, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    found = opaq.tune(kernels.linear, x, weight, None, again=True)
    print(found)
    assert found.speedup >= 1 and len(found.us) + len(found.out) == 8
    expected = x.double() @ weight.double().t()
    for wrapper in ({}, {"cpp_wrapper": True}):
        torch.compiler.reset()
        compiled = torch.compile(
            lambda x, w: kernels.linear(x, w),
            backend="opaq",
            options={"tune": "search", **wrapper},
        )
        error = (compiled(x, weight).double() - expected).abs().max()
        assert error < 1e-2 * expected.abs().max()


def test_algorithms_of_a_product_are_chosen_by_ranges_of_rows(tmp_path: pathlib.Path) -> None:
    weight = torch.randn(3072, 1024, device="cuda", dtype=torch.bfloat16)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return kernels.linear(x, weight) + 1

    def close(got: torch.Tensor, x: torch.Tensor) -> None:
        expected = x.double() @ weight.double().t() + 1
        assert (got.double() - expected).abs().max() < 1e-2 * expected.abs().max()

    def rows(count: int) -> torch.Tensor:
        x = torch.randn(count, 1024, device="cuda", dtype=torch.bfloat16)
        torch._dynamo.mark_dynamic(x, 0)
        return x

    for wrapper in ({}, {"cpp_wrapper": True}):
        torch.compiler.reset()
        compiled = torch.compile(
            Model(), backend="opaq", options={"tune": "search", **wrapper}, fullgraph=True
        )
        for count in (16, 3, 1000, 33, 20000):
            x = rows(count)
            close(compiled(x), x)
    print(opaq.report())
    batch = torch.export.Dim("batch", min=2, max=5000)
    exported = torch.export.export(Model(), (rows(16),), dynamic_shapes={"x": {0: batch}})
    path = opaq.package(exported, tmp_path / "model.pt2", tune="stored")
    loaded = torch._inductor.aoti_load_package(str(path))
    for count in (16, 2, 4999):
        x = rows(count)
        close(loaded(x), x)
    # What the library has named here goes with the package.
    assert any(
        b" known=" in archive.read(name)
        for archive in [zipfile.ZipFile(path)]
        for name in archive.namelist()
        if name.endswith(".so")
    )
