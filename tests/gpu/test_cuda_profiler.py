"""Launches on a GPU in profiles: events, the kernels they start, NVTX, captured CUDA graphs."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import opaq

SCALE = """__global__ void opaq_named_scale(const float* x, float* out, long long n) {
  long long i = blockIdx.x * 256LL + threadIdx.x;
  if (i < n) out[i] = x[i] * 2; }"""


def scale(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    grid = "ceil_div(x.numel(), 256)"
    op.cuda(source=SCALE, entry="opaq_named_scale", grid=grid, block=256, args="x, out, x.numel()")
    return op


def trace(run: Any, path: pathlib.Path, **export: Any) -> list[dict[str, Any]]:
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, record_shapes=True) as found:
        run()
        torch.cuda.synchronize()
    found.export_chrome_trace(str(path), **export)
    return json.loads(path.read_text())["traceEvents"]


@pytest.mark.parametrize("form", ["eager", "python", "cpp", "nvtx"])
def test_kernels_belong_to_events_of_their_op(
    unique: str, form: str, tmp_path: pathlib.Path
) -> None:
    op, x = scale(unique), torch.ones(1000, device="cuda")
    options: dict[str, Any] = {
        "python": {},
        "cpp": {"cpp_wrapper": True, "cpp.enable_kernel_profile": True},
        "nvtx": {"nvtx": True},
    }.get(form, {})
    run = op if form == "eager" else torch.compile(lambda x: op(x), backend="opaq", options=options)
    assert torch.equal(run(x), x * 2)
    events = trace(lambda: run(x), tmp_path / "trace.json")
    (launch,) = [event for event in events if event.get("name") == f"opaq::{unique}"]
    assert launch["args"]["implementation"] == "cuda"
    assert ("node" in launch["args"]) == (form != "eager")
    kernels = [event for event in events if event.get("cat") == "kernel"]
    (kernel,) = [event for event in kernels if "opaq_named_scale" in event["name"]]
    started = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    (start,) = [
        event
        for event in started
        if event["args"].get("correlation") == kernel["args"]["correlation"]
    ]
    assert launch["ts"] <= start["ts"] <= launch["ts"] + launch["dur"]


def test_timed_launches_in_both_wrappers(unique: str) -> None:
    op, x = scale(unique), torch.ones(1000, device="cuda")
    for cpp in (False, True):
        torch.compiler.reset()
        options: dict[str, Any] = {"profile": True, "cpp_wrapper": cpp}
        run = torch.compile(lambda x: op(x), backend="opaq", options=options)
        run(x)
        opaq.report(reset=True)
        for _ in range(20):
            run(x)
        torch.cuda.synchronize()
        (node,) = [n for n in opaq.report().nodes if n.op == unique and n.calls]
        assert (node.calls, node.timed_calls) == (20, 20)
        assert node.host_us_per_call is not None and 0.5 < node.host_us_per_call < 1000


def test_replays_of_captured_kernels_have_names(unique: str, tmp_path: pathlib.Path) -> None:
    op, x = scale(unique), torch.ones(1000, device="cuda")
    run = torch.compile(lambda x: op(x), backend="opaq", options={"nvtx": True})
    run(x)
    # from torch 2.15, with cuda-bindings and a driver of CUDA 13.1; without them there is no name
    annotations = getattr(torch.cuda, "graph_annotations", None)
    named = annotations is not None and annotations.is_available()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **({"enable_annotations": True} if named else {})):
        y = run(x)
    found = annotations.get_kernel_annotations() if named else {}
    export = {"cuda_graph_annotations": found} if named else {}
    events = trace(graph.replay, tmp_path / "trace.json", **export)
    assert torch.equal(y, x * 2)
    (kernel,) = [
        event
        for event in events
        if event.get("cat") == "kernel" and "opaq_named_scale" in event["name"]
    ]
    assert (f"opaq::{unique}" in json.dumps(kernel)) == named
