"""Scratch memory and several launches on a GPU: streams, CUDA graphs, both wrappers, packages."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import opaq

# The mean of x * x: a sum for each block, then the sum of these. `ticket` counts finished blocks,
# `check` counts launches that found it other than zero.
SOURCE = """
__device__ float block_sum(float value) {
  __shared__ float sums[256];
  sums[threadIdx.x] = value;
  __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  return sums[0];
}
__global__ void partial_sums(const float* x, float* partial, int* ticket, long n) {
  const long i = blockIdx.x * 256L + threadIdx.x;
  const float value = i < n ? x[i] : 0;
  const float sum = block_sum(value * value);
  if (threadIdx.x != 0) return;
  partial[blockIdx.x] = sum;
  atomicAdd(ticket, 1);
}
__global__ void finish(const float* partial, float* mean, int* ticket, const int* zeros, int parts,
                       long n) {
  float sum = 0;
  for (int p = threadIdx.x; p < parts; p += 256) sum += partial[p];
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  *mean = *ticket == parts && *zeros == 0 ? sum / n : __int_as_float(0x7fc00000);
  *ticket = 0;
}"""


@pytest.fixture(params=[False, True], ids=["zeros", "once"])
def op(request: pytest.FixtureRequest, unique: str) -> opaq.Op:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor mean)", outputs=opaq.tensor([], dtype="float32"))
    return op.cuda(
        source=SOURCE,
        scratch={
            "partial": opaq.tensor("ceil_div(x.numel(), 256)", dtype="float32"),
            "ticket": opaq.zeros(1, dtype="int32", once=request.param),
            "zeros": opaq.zeros("x.numel()", dtype="int32"),
        },
        steps=[
            opaq.step(
                entry="partial_sums",
                grid="partial.size(0)",
                block=256,
                args="x, partial, ticket, x.numel()",
            ),
            opaq.step(
                entry="finish",
                block=256,
                args="partial, mean, ticket, zeros, partial.size(0), x.numel()",
            ),
        ],
    )


def check(result: torch.Tensor, x: torch.Tensor) -> None:
    torch.testing.assert_close(result, x.square().mean())


def test_eager_and_dispatcher(op: opaq.Op) -> None:
    for size in (5000, 300, 100_000, 1, 5000):
        x = torch.randn(size, device="cuda")
        check(op(x), x)
        check(op.overload(x), x)


@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}, {"triton.cudagraphs": True}])
def test_compiled(op: opaq.Op, options: dict[str, Any]) -> None:
    compiled = torch.compile(
        lambda x: op(x * 2) + op(x), fullgraph=True, dynamic=False, options=options
    )
    for _ in range(4):
        x = torch.randn(5000, device="cuda")
        torch.testing.assert_close(compiled(x), 5 * x.square().mean())


def test_dynamic_sizes_are_planned(op: opaq.Op) -> None:
    compiled = torch.compile(lambda x: op(x), fullgraph=True, dynamic=True)
    x = torch.randn(70_000, device="cuda")
    result, (code,) = run_and_get_code(compiled, x)
    check(result, x)
    assert "workspace=True" in code
    check(compiled(x[:999]), x[:999])


def test_many_streams_at_once(op: opaq.Op) -> None:
    streams = [torch.cuda.Stream() for _ in range(8)]
    xs = [torch.randn(200_000 + i, device="cuda") for i in range(8)]
    op(xs[0])
    torch.cuda.synchronize()
    results: list[list[torch.Tensor]] = [[] for _ in streams]
    for _ in range(50):
        for stream, x, found in zip(streams, xs, results):
            with torch.cuda.stream(stream):
                found.append(op(x))
    torch.cuda.synchronize()
    for x, found in zip(xs, results):
        for result in found:
            check(result, x)


def test_a_captured_graph_replayed_beside_eager_calls(op: opaq.Op) -> None:
    x = torch.randn(300_000, device="cuda")
    op(x)  # loads it
    torch.cuda.synchronize()
    graphs, results = [], []
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = op(x)
        graphs.append(graph)
        results.append(result)
    streams = [torch.cuda.Stream() for _ in range(2)]
    eager = []
    for _ in range(50):
        for graph, stream in zip(graphs, streams):
            with torch.cuda.stream(stream):
                graph.replay()
        eager.append(op(x))
    torch.cuda.synchronize()
    for result in (*results, *eager):
        check(result, x)


@pytest.fixture
def address(unique: str) -> opaq.Op:
    """Where memory is that is left at zero; -1 if it was not zero."""
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor at)", outputs=opaq.tensor([], dtype="int64"))
    return op.cuda(
        source="""
__global__ void address(long long* at, int* ticket) {
  *at = *ticket == 0 ? (long long)ticket : -1;
}""",
        entry="address",
        scratch={"ticket": opaq.zeros(1, dtype="int32", once=True)},
        grid=1,
        block=1,
        args="at, ticket",
    )


def captured(op: opaq.Op, *args: Any) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        result = op(*args)
    graph.replay()
    torch.cuda.synchronize()
    return graph, result


def test_a_captured_graph_does_not_zero_what_is_left_at_zero(address: opaq.Op) -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    x = torch.ones(1, device="cuda")
    address(x)
    graph, _ = captured(address, x)
    _, _, count = driver.cuGraphGetNodes(driver.CUgraph(graph.raw_cuda_graph()), 0)
    assert count == 1, "the kernel alone"


def test_each_captured_launch_has_memory_until_its_graph_is_gone(address: opaq.Op) -> None:
    x = torch.ones(1, device="cuda")
    found = [address(x).item()]
    graphs = []
    for _ in range(3):
        graph, result = captured(address, x)
        graphs.append(graph)
        found.append(result.item())
    assert len(set(found)) == 4 and -1 not in found
    del graph, graphs
    gc.collect()
    time.sleep(0.5)  # CUDA tells on a thread of its own
    graph, result = captured(address, x)
    assert result.item() in found[1:]


def test_a_graph_may_outlive_the_package_that_it_was_captured_from(
    op: opaq.Op, tmp_path: Any
) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x * 2)

    x = torch.randn(5000, device="cuda")
    program = torch.export.export(Model(), (x,))
    path = opaq.package(program, tmp_path / "model.pt2")
    # Otherwise the loader waits for events, which a capture does not allow.
    model = torch._inductor.aoti_load_package(path, run_single_threaded=True)
    model(x)
    torch.cuda.synchronize()
    graph, result = captured(model, x)
    torch.testing.assert_close(result, 4 * x.square().mean())
    del model
    gc.collect()
    del graph
    gc.collect()
    time.sleep(0.5)
    check(op(x), x)


def test_package(op: opaq.Op, tmp_path: Any) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x * 2)

    x = torch.randn(5000, device="cuda")
    program = torch.export.export(Model(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    model = torch._inductor.aoti_load_package(opaq.package(program, tmp_path / "model.pt2"))
    for size in (5000, 5000, 70):
        torch.testing.assert_close(model(x[:size]), 4 * x[:size].square().mean())
