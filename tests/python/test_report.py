"""opaq.report(): which implementation runs at each node, why, and what it cost."""

from __future__ import annotations

import torch

import opaq


def test_report_tells_nodes_calls_and_reasons(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    body = "void f(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) out[i] = x[i] + 1; }"
    op.cpu(name="wide", source=body, entry="f", args="x, out, x.numel()", requires="x.numel() >= 1000", priority=1)
    op.cpu(name="plain", source=body, entry="f", args="x, out, x.numel()")
    compiled = torch.compile(lambda x: op(op(x)), backend="opaq", options={"profile": True})
    for _ in range(3):
        compiled(torch.zeros(4))
    found = opaq.report()
    nodes = [node for node in found.nodes if node.op == unique]
    assert [(node.implementation, node.calls, node.device) for node in nodes] == [("plain", 3, "cpu")] * 2
    assert all("wide" in node.reason and "x.numel() >= 1000" in node.reason for node in nodes)
    (plain,) = [item for item in found.implementations if item.op == unique and item.implementation == "plain"]
    assert plain.calls == 6 and plain.host_us_per_call > 0 and plain.compile_seconds >= 0
    assert unique in str(found) and "host us/call" in str(found)
    opaq._runtime.set_timing(False)
