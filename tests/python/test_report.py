"""opaq.report(): which implementation runs at each node, why, and what it cost."""

from __future__ import annotations

import pytest
import torch

import opaq
from opaq import _runtime


def test_report_tells_nodes_calls_and_reasons(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    body = (
        "void f(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) out[i] = "
        "x[i] + 1; }"
    )
    op.cpu(
        name="wide",
        source=body,
        entry="f",
        args="x, out, x.numel()",
        requires="x.numel() >= 1000",
        priority=1,
    )
    op.cpu(name="plain", source=body, entry="f", args="x, out, x.numel()")
    compiled = torch.compile(lambda x: op(op(x)), backend="opaq", options={"profile": True})
    for _ in range(3):
        compiled(torch.zeros(4))
    found = opaq.report()
    nodes = [node for node in found.nodes if node.op == unique]
    assert [(node.implementation, node.calls, node.device) for node in nodes] == [
        ("plain", 3, "cpu")
    ] * 2
    assert all("wide" in node.reason and "x.numel() >= 1000" in node.reason for node in nodes)
    (plain,) = [
        item
        for item in found.implementations
        if item.op == unique and item.implementation == "plain"
    ]
    assert plain.calls == 6 and plain.host_us_per_call > 0 and plain.compile_seconds >= 0
    assert unique in str(found) and "host us/call" in str(found)


@pytest.mark.skipif(
    not _runtime.doctor()["nvrtc"]["found"],
    reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc",
)
def test_report_tells_which_kernels_spill(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) y) -> ()")
    body = """template <int N> __global__ void __launch_bounds__(1024, 1) f(float* y) {
      float a[N];
    #pragma unroll
      for (int i = 0; i < N; ++i) a[i] = y[i * 7 + threadIdx.x];
      __syncthreads();
    #pragma unroll
      for (int i = 0; i < N; ++i) y[i] += a[N - 1 - i] * a[i]; }"""
    op.cuda(name="narrow", source=body, entry="f<4>", args="y")
    op.cuda(name="wide", source=body, entry="f<128>", args="y")
    op.cuda(name="unused", source=body, entry="f<8>", args="y")
    made = {
        name: _runtime.compile(op.name, [("float32", (4096,), (1,), "cuda:0", 256)], "sm_90a", name)
        for name in ("narrow", "wide")
    }
    found = opaq.report()
    spilled = {
        item["implementation"]: item["spill_bytes"]
        for item in found.as_dict()["implementations"]
        if item["op"] == unique
    }
    assert spilled == {
        "narrow": 0,
        "wide": sum(made["wide"]["resources"][f"spill_{what}"] for what in ("stores", "loads")),
        "unused": None,
    }
    assert spilled["wide"] > 0
    sizes = {i.implementation: i.image_bytes for i in found.implementations if i.op == unique}
    assert sizes == {**{name: made[name]["bytes"] for name in made}, "unused": None}
    assert f"{unique}: wide spills registers: {spilled['wide']} bytes a thread" in str(found)
    assert f"{unique}: narrow" not in str(found)
