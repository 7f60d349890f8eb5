"""Launches in the profiles of torch.profiler: one name for an op in every form, with the
implementation and the node where shapes are recorded; and nothing where no profiler is on.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code
from torch.profiler import ProfilerActivity, profile

import opaq

COPY = "void f(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) out[i] = x[i]; }"
X = torch.ones(8)
RECORDED = {"cpp_wrapper": True, "cpp.enable_kernel_profile": True}


def copy(name: str, **rules: Any) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> (Tensor out)", outputs=opaq.like("x"))
    op.cpu(source=COPY, entry="f", args="x, out, x.numel()", **rules)
    return op


def profiled(run: Callable[[], Any], shapes: bool = True) -> Any:
    with profile(activities=[ProfilerActivity.CPU], record_shapes=shapes) as found:
        run()
    return found


def launches(run: Callable[[], Any], op: str) -> list[dict[str, str]]:
    """What the profiler shows beside the name, for each launch of the op."""
    return [dict(e.kwinputs) for e in profiled(run).events() if e.name == f"opaq::{op}"]


def test_an_eager_call(unique: str) -> None:
    op = copy(unique)
    op(X)
    for run in (lambda: op(X), lambda: op.overload(X)):
        names = [event.name for event in profiled(run).events()]
        assert names.count(unique) == 1  # the dispatcher's
        assert names.count(f"opaq::{unique}") == 1
        assert launches(run, unique) == [{"implementation": "cpu"}]


def test_the_nodes_of_a_python_wrapper(unique: str) -> None:
    op = copy(unique)
    compiled = torch.compile(lambda x: op(op(x) + 1), fullgraph=True)
    compiled(X)
    found = launches(lambda: compiled(X), unique)
    nodes = [node for node in opaq.report().nodes if node.op == unique]
    assert found == [
        {"implementation": "cpu", "graph": node.graph, "node": node.node} for node in nodes
    ]
    assert len(found) == 2


def test_the_nodes_of_a_cpp_wrapper(unique: str) -> None:
    op = copy(unique)
    compiled = torch.compile(lambda x: op(op(x) + 1), fullgraph=True, options=RECORDED)
    compiled(X)
    nodes = [node for node in opaq.report().nodes if node.op == unique]
    assert launches(lambda: compiled(X), unique) == [
        {"implementation": "cpu", "node": node.node} for node in nodes
    ]


def test_a_cpp_wrapper_records_only_with_inductors_option(unique: str) -> None:
    op = copy(unique)
    compiled = torch.compile(lambda x: op(x) + 1, fullgraph=True, options={"cpp_wrapper": True})
    _, (code,) = run_and_get_code(compiled, X)
    assert "ProfilerEvent" not in code and launches(lambda: compiled(X), unique) == []


def test_a_package(unique: str, tmp_path: pathlib.Path) -> None:
    op = copy(unique)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x) + 1

    exported = torch.export.export(Model(), (X,))
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
        path = opaq.package(exported, tmp_path / "model.pt2")
    run = torch._inductor.aoti_load_package(str(path))
    assert torch.equal(run(X), X + 1)
    (found,) = launches(lambda: run(X), unique)
    assert found["implementation"] == "cpu" and found["node"].startswith("op")


def test_the_implementation_that_each_launch_chooses(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor out)", outputs=opaq.like("x"))
    even = {"requires": "x.size(0) % 2 == 0", "priority": 1}
    op.cpu(name="even", source=COPY, entry="f", args="x, out, x.numel()", **even)
    op.cpu(name="any", source=COPY, entry="f", args="x, out, x.numel()")
    for options in ({}, RECORDED):
        torch.compiler.reset()
        compiled = torch.compile(lambda x: op(x) * 2, dynamic=True, options=options)
        compiled(torch.ones(4))
        found = launches(lambda: [compiled(torch.ones(size)) for size in (6, 7)], unique)
        assert [launch["implementation"] for launch in found] == ["even", "any"]
    found = launches(lambda: [op(torch.ones(size)) for size in (6, 7)], unique)
    assert found == [{"implementation": "even"}, {"implementation": "any"}]


def test_a_reference(unique: str) -> None:
    op = copy(unique, requires="x.size(0) > 100")
    op.reference(lambda x: x.clone())
    assert launches(lambda: op(X), unique) == [{"implementation": "reference"}]


def test_a_python_function_in_a_graph(unique: str) -> None:
    @opaq.custom_op(unique, mutates_args=())
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    function.register_fake(torch.empty_like)
    compiled = torch.compile(lambda x: function(x) * 2, fullgraph=True)
    compiled(X)
    (found,) = launches(lambda: compiled(X), unique)
    (node,) = [node for node in opaq.report().nodes if node.op == unique]
    assert found == {"implementation": "python", "graph": node.graph, "node": node.node}


def test_gradients(unique: str) -> None:
    op, gradient = copy(unique), copy(f"{unique}_backward")
    op.register_autograd(lambda ctx, grad: gradient(grad))
    x = torch.ones(3, requires_grad=True)
    compiled = torch.compile(lambda x: op(x) * 2)
    for run in (lambda: op(x).sum().backward(), lambda: compiled(x).sum().backward()):
        run()
        assert len(launches(run, unique)) == len(launches(run, f"{unique}_backward")) == 1


def test_averages_have_a_row_for_each_op(unique: str, tmp_path: pathlib.Path) -> None:
    op = copy(unique)
    compiled = torch.compile(lambda x: op(op(x) + 1), fullgraph=True)
    compiled(X)
    found = profiled(lambda: [compiled(X), op(X)], shapes=False)
    (row,) = [row for row in found.key_averages() if row.key == f"opaq::{unique}"]
    assert row.count == 3
    with_facts = profiled(lambda: compiled(X))
    with_facts.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    shown = [event["args"] for event in events if event.get("name") == f"opaq::{unique}"]
    nodes = [node.node for node in opaq.report().nodes if node.op == unique]
    assert [(args["implementation"], args["node"]) for args in shown] == [
        ("cpu", node) for node in nodes
    ]


def test_errors_end_their_events(unique: str) -> None:
    op = copy(unique, requires="x.size(0) > 100")

    def run() -> None:
        with pytest.raises(opaq.LaunchError, match="no implementation fits"):
            op(X)
        with torch.profiler.record_function("after"):
            pass

    events = {event.name: event for event in profiled(run).events()}
    assert events["after"].cpu_parent is None
    assert f"opaq::{unique}" in events


# ---- NVTX ----------------------------------------------------------------------------------------


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is pushed and popped, in order; annotations begin with @."""
    seen: list[str] = []

    @contextlib.contextmanager
    def mark(annotation: dict[str, str], *, backward: bool) -> Iterator[None]:
        assert not backward
        seen.append(f"@{annotation['name']} {annotation['node']} {annotation['graph']}")
        yield

    monkeypatch.setattr(torch.cuda.nvtx, "range_push", seen.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: seen.append("end"))
    if hasattr(torch.cuda, "graph_annotations"):
        monkeypatch.setattr(torch.cuda.graph_annotations, "mark_kernels", mark)
    return seen


def test_nvtx_ranges(unique: str, ranges: list[str]) -> None:
    op = copy(unique)

    @opaq.custom_op(f"{unique}_python", mutates_args=())
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    function.register_fake(torch.empty_like)
    compiled = torch.compile(lambda x: function(op(x)) * 2, backend="opaq", options={"nvtx": True})
    assert torch.equal(compiled(X), (X + 1) * 2)
    ranges.clear()
    compiled(X)
    nodes = [node for node in opaq.report().nodes if node.op.startswith(unique)]
    expected = []
    for node in nodes:
        name = f"opaq::{node.op}"
        marks = [f"@{name} {node.node} {node.graph}"] * hasattr(torch.cuda, "graph_annotations")
        expected += [name, *marks, "end"]
    assert ranges == expected and len(nodes) == 2
    ranges.clear()
    op(X)
    torch.compile(lambda x: op(x) * 3, backend="opaq")(X)
    assert ranges == []


def test_an_nvtx_range_ends_with_an_error(unique: str, ranges: list[str]) -> None:
    op = copy(unique, requires="x.size(0) > 100")
    compiled = torch.compile(lambda x: op(x) * 2, backend="opaq", options={"nvtx": True})
    compiled(torch.ones(200))
    ranges.clear()
    with pytest.raises(Exception, match="no implementation fits"):
        compiled(X)
    assert ranges.count("end") == ranges.count(f"opaq::{unique}")


def test_nvtx_is_refused_where_there_is_none(unique: str, monkeypatch: Any) -> None:
    op = copy(unique)
    options = {"nvtx": True, "cpp_wrapper": True}
    with pytest.raises(Exception, match='"nvtx" is for Inductor\'s Python wrapper.*emit_nvtx'):
        torch.compile(lambda x: op(x) * 2, backend="opaq", options=options)(X)

    def push(name: str) -> None:
        raise RuntimeError("NVTX functions not installed")

    monkeypatch.setattr(torch.cuda.nvtx, "range_push", push)
    with pytest.raises(Exception, match=f'{unique}: NVTX ranges need a torch.*option "nvtx" out'):
        torch.compile(lambda x: op(x) * 4, backend="opaq", options={"nvtx": True})(X)


# ---- provenance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cpp", [False, True], ids=["python", "cpp"])
def test_inductors_provenance_knows_the_nodes(unique: str, cpp: bool) -> None:
    """The kernel's name, from which nodes of the graph and which lines of the user's it comes."""
    op = copy(unique)
    kept = {}
    dump = torch._inductor.debug.dump_inductor_provenance_info

    def keep() -> Any:
        kept.update(dump())
        kept["lines"] = dict(torch._inductor.debug._inductor_kernel_stack_trace)
        return dump()

    def model(x: torch.Tensor) -> torch.Tensor:
        return op(x) * 5  # the user's line

    options = {"cpp_wrapper": cpp, "trace.provenance_tracking_level": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._inductor.debug, "dump_inductor_provenance_info", keep)
        _, (code,) = run_and_get_code(torch.compile(model, options=options), X)
    ours = unique if cpp else unique.split("::")[1]
    (kernel,) = [name for name in kept["cppCodeToPost"] if name.startswith(ours)]
    (source,) = kept["cppCodeToPost"][kernel]
    assert source.startswith(unique.split("::")[1])
    assert kept["postToCppCode"][source] == [kernel]
    assert any("# the user's line" in line for line in kept["lines"][kernel])
    assert f"[Provenance debug handles] {kernel}" in code
