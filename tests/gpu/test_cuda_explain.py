"""opaq.explain() where there is a GPU: its architecture, backward graphs, and no launches."""

from __future__ import annotations

import torch

import opaq
from opaq import _runtime

SCALE = """__global__ void f(const float* x, float* out, long long n) {
  long long i = blockIdx.x * 256LL + threadIdx.x;
  if (i < n) out[i] = x[i] * 2; }"""


def test_graphs_are_told_and_nothing_is_launched(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    grid = "ceil_div(x.numel(), 256)"
    op.cuda(source=SCALE, entry="f", grid=grid, block=256, args="x, out, x.numel()")
    op.backward(lambda ctx, grad: op(grad * 1))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = op(self.linear(x))
            torch._dynamo.graph_break()
            return op(y).sum()

    model, x = Model().cuda(), torch.randn(8, 64, device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    found = opaq.explain(model, x)
    assert torch.cuda.memory_allocated() <= before + 4096  # torch's own touch of the context
    kinds = [graph.kind for graph in found.graphs if graph.nodes]
    assert sorted(kinds) == ["backward", "backward", "forward", "forward"]
    assert found.remarks == [] and found.archs == [_runtime.device_arch(0)]
    for node in found.nodes:
        assert (node.device, node.implementation) == ("cuda:0", "cuda")
        (code,) = node.implementations[0].launches[0].code
        assert code["bytes"] > 0 and code["resources"]["registers"] > 0
    calls = [each["calls"] for each in _runtime.implementation_stats() if each["op"] == unique]
    assert sum(calls) == 0 and all(p.grad is None for p in model.parameters())
    compiled = torch.compile(model, backend="opaq")
    compiled(x).backward()
    ran = [node for node in opaq.report().nodes if node.op == unique]
    assert [node.implementation for node in ran] == ["cuda"] * 4
    assert model.linear.weight.grad is not None
