"""Results whose sizes only a kernel on the GPU knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import opaq

SOURCE = """
__global__ void positive(const float* x, int n, float* values, long long* count) {
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  if (threadIdx.x != 0) return;
  long long k = 0;
  for (int i = 0; i < n; ++i)
    if (x[i] > 0) values[k++] = x[i];
  *count = k;
}"""


@pytest.fixture(autouse=True)
def _sizes_in_graphs() -> Iterator[None]:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


def positive(name: str, results: str) -> opaq.Op:
    op = opaq.op(
        f"{name}(Tensor x) -> {results}",
        outputs=opaq.tensor("n", dtype="x.dtype", counts={"n": "x.numel()"}),
    )
    op.cuda(source=SOURCE, entry="positive", grid=1, block=32, args="x, x.numel(), values, n")
    return op


def test_eager(unique: str) -> None:
    op = positive(unique, "(Tensor values)")
    for n in (1000, 1, 0):
        x = torch.randn(n, device="cuda")
        assert torch.equal(op(x), x[x > 0])


@pytest.mark.parametrize(
    "options",
    [{}, {"cpp_wrapper": True}, {"triton.cudagraphs": True}, {"triton.cudagraph_trees": False}],
    ids=str,
)
def test_compiled(unique: str, options: dict[str, Any]) -> None:
    op = positive(unique, "(Tensor values)")

    def model(x: torch.Tensor) -> torch.Tensor:
        return op(x * 2).sum() + (x + 1).sum()

    compiled = torch.compile(model, fullgraph=True, options=options)
    for count in (49, 49, 49, 20, 49, 20, 0):  # CUDA graphs are recorded when a size comes again
        x = torch.randn(100, device="cuda").abs()
        x[count:] *= -1
        torch.testing.assert_close(compiled(x), (x * 2)[x > 0].sum() + (x + 1).sum())


def test_package(unique: str, tmp_path: Any) -> None:
    op = positive(unique, "(Tensor values)")

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x * 2) + 1

    x = torch.randn(50, device="cuda")
    path = opaq.package(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    run = torch._inductor.aoti_load_package(str(path))
    y = torch.randn(50, device="cuda")
    torch.testing.assert_close(run(y), (y * 2)[y > 0] + 1)


def test_a_returned_count_needs_no_synchronisation(unique: str) -> None:
    """Neither in a CUDA graph, nor elsewhere."""
    op = positive(unique, "(Tensor values, Tensor n)")
    x = torch.randn(100, device="cuda")
    op.warmup(x)
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph(), stream=torch.cuda.Stream()):
        values, n = op(x)
    for _ in range(2):
        x.normal_()
        graph.replay()
        assert torch.equal(values[: n.item()], x[x > 0])

    def total(x: torch.Tensor) -> torch.Tensor:
        values, n = op(x)
        return torch.where(torch.arange(values.numel(), device="cuda") < n, values, 0).sum()

    compiled = torch.compile(total, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        y = torch.randn(100, device="cuda")
        torch.testing.assert_close(compiled(y), y[y > 0].sum())
    torch.cuda.set_sync_debug_mode("error")
    try:
        op(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
