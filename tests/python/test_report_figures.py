"""opaq.report() during garbage collection, and what `profile` measures: launches of the profiled
graph, without those that compile, by node, graph and implementation; and windows of time.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import opaq
from opaq import _runtime

COPY = "void f(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) out[i] = x[i]; }"
SLOW = """#include <chrono>
#include <thread>
void f(const float* x, float* out, long n) {
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  for (long i = 0; i < n; ++i) out[i] = x[i];
}
"""


def copy(name: str, source: str = COPY) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> (Tensor out)", outputs=opaq.like("x"))
    op.cpu(source=source, entry="f", args="x, out, x.numel()")
    return op


def row(name: str) -> dict[str, object]:
    (found,) = [item for item in opaq.report().as_dict()["implementations"] if item["op"] == name]
    return found


def test_garbage_collection_inside_the_walk_over_launch_objects(unique: str) -> None:
    op = copy(unique)

    class Cycle:
        pass

    def garbage(count: int) -> None:
        # as the modules of generated wrappers are after torch.compiler.reset()
        for i in range(count):
            cycle = Cycle()
            cycle.me = cycle
            cycle.launch = _runtime.launcher(op.name, op.info["hash"], "cpu", f"op{i}", "graph")

    thresholds = gc.get_threshold()
    try:
        for _ in range(4):
            gc.collect()
            gc.disable()
            garbage(1000)
            gc.enable()
            gc.set_threshold(50, 1, 1)
            found = [node for node in _runtime.node_stats() if node["op"] == unique]
            assert len(found) <= 1000 and all(
                node["graph"] == "graph" and node["calls"] == 0 for node in found
            )
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()


def test_a_finalizer_that_calls_the_op_while_its_result_is_allocated(unique: str) -> None:
    """Garbage collection is forced to happen there. The call by the finalizer must not change the
    shape that the interrupted call allocates.
    """
    op = copy(unique)
    sizes = iter(range(10, 10_000))

    class Calls:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            n = next(sizes)
            assert op(torch.ones(n)).shape == (n,)

    thresholds = gc.get_threshold()
    try:
        gc.set_threshold(3, 1, 1)
        for n in range(1, 300):
            Calls()
            x = torch.ones(n % 7, 3)
            assert op(x).shape == x.shape
            assert op(x).shape == x.shape
    finally:
        gc.set_threshold(*thresholds)


def test_profile_counts_only_timed_calls_of_its_own_graph(unique: str) -> None:
    op = copy(unique, SLOW)
    x = torch.ones(3)
    for _ in range(6):
        op(x)
    assert (
        row(unique)["calls"] == 6
        and row(unique)["timed_calls"] == 0
        and row(unique)["host_us_per_call"] is None
    )
    timed = torch.compile(lambda x: op(x) + 1, backend="opaq", options={"profile": True})
    for _ in range(3):
        timed(x)
    after = row(unique)
    assert after["calls"] == 9 and after["timed_calls"] == 3 and after["host_us_per_call"] >= 5000
    untimed = torch.compile(lambda x: op(x) + 2, backend="opaq")
    for _ in range(3):
        untimed(x)
        op(x)
    assert row(unique)["calls"] == 15 and row(unique)["timed_calls"] == 3
    assert row(unique)["host_us_per_call"] == after["host_us_per_call"]


def test_profile_does_not_count_compiling(unique: str) -> None:
    op = copy(unique, f"// {unique} {id(object())}\n{COPY}")
    compiled = torch.compile(lambda x: op(x) + 1, backend="opaq", options={"profile": True})
    for _ in range(4):
        compiled(torch.ones(4))
    found = row(unique)
    assert found["compile_seconds"] > 0 and found["calls"] == 4 and found["timed_calls"] == 3
    # a quarter or more if one of the calls counted it
    assert found["host_us_per_call"] < 1e6 * found["compile_seconds"] / 5
    assert "timed  host us/call" in str(opaq.report())


def of_op(name: str, kind: str = "nodes") -> list[dict[str, Any]]:
    """Rows of the report: nodes of the op, or the graphs that these are in."""
    found = opaq.report().as_dict()
    nodes = [node for node in found["nodes"] if node["op"] == name]
    graphs = {node["graph"] for node in nodes}
    return nodes if kind == "nodes" else [g for g in found["graphs"] if g["graph"] in graphs]


@pytest.mark.parametrize("cpp", [False, True], ids=["python", "cpp"])
def test_times_by_node_and_graph(unique: str, cpp: bool) -> None:
    slow, fast = copy(unique, SLOW), copy(f"{unique}_fast")
    x = torch.ones(3)
    slow(x), fast(x)  # loaded: the first launch of a Python wrapper is timed, too
    compiled = torch.compile(
        lambda x: fast(slow(slow(x)) + 1),
        backend="opaq",
        options={"profile": True, "cpp_wrapper": cpp},
    )
    for _ in range(4):
        compiled(x)
    timed = 3 if cpp else 4  # not the first
    nodes, (quick,), (graph,) = of_op(unique), of_op(f"{unique}_fast"), of_op(unique, "graphs")
    assert [(node["calls"], node["timed_calls"]) for node in [*nodes, quick]] == [(4, timed)] * 3
    assert all(5000 <= node["host_us_per_call"] < 50_000 for node in nodes)
    assert 0 < quick["host_us_per_call"] < 5000
    assert (graph["nodes"], graph["calls"], graph["timed_calls"]) == (3, 12, 3 * timed)
    of_nodes = [*(node["host_us_per_call"] for node in nodes), quick["host_us_per_call"]]
    assert graph["host_us_per_call"] == pytest.approx(sum(of_nodes) / 3)
    assert graph["host_seconds"] == pytest.approx(sum(of_nodes) * timed * 1e-6)
    assert row(unique)["timed_calls"] == 2 * timed and row(unique)["host_us_per_call"] >= 5000
    shown = str(opaq.report())
    assert "graph" in shown and "host ms" in shown and f"{graph['host_us_per_call']:.2f}" in shown


def test_times_of_a_node_whose_launches_choose(unique: str) -> None:
    """In a C++ wrapper each implementation has times of its own, without its first launch."""
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor out)", outputs=opaq.like("x"))
    even = {"requires": "x.size(0) % 2 == 0", "priority": 1}
    op.cpu(name="even", source=SLOW, entry="f", args="x, out, x.numel()", **even)
    op.cpu(name="any", source=COPY, entry="f", args="x, out, x.numel()")
    compiled = torch.compile(
        lambda x: op(x) + 1,
        backend="opaq",
        dynamic=True,
        options={"profile": True, "cpp_wrapper": True},
    )
    for size in (4, 5, 7, 6, 9, 8):
        compiled(torch.ones(size))
    (node,) = of_op(unique)
    assert (node["calls"], node["timed_calls"]) == (6, 4)
    assert node["served_by"] == "even 3, any 3"
    rows = opaq.report().as_dict()["implementations"]
    times = {r["implementation"]: r for r in rows if r["op"] == unique}
    assert [times[name]["timed_calls"] for name in ("even", "any")] == [2, 2]
    assert times["even"]["host_us_per_call"] >= 5000 > times["any"]["host_us_per_call"]


def test_a_backward_graph_is_profiled_with_its_forward_graph(unique: str) -> None:
    op, gradient = copy(unique), copy(f"{unique}_backward")
    op.register_autograd(lambda ctx, grad: gradient(grad))
    x = torch.ones(3, requires_grad=True)
    compiled = torch.compile(lambda x: op(x) * 2, backend="opaq", options={"profile": True})
    for _ in range(2):
        compiled(x).sum().backward()
    for name in (unique, f"{unique}_backward"):
        (node,) = of_op(name)
        assert node["calls"] == 2 and node["timed_calls"] >= 1 and node["host_us_per_call"] > 0


@pytest.mark.parametrize("cpp", [False, True], ids=["python", "cpp"])
def test_code_without_the_option_has_no_timers(unique: str, cpp: bool) -> None:
    op = copy(unique)
    x = torch.ones(3)
    for profile in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(
            lambda x: op(x) + 1, backend="opaq", options={"profile": profile, "cpp_wrapper": cpp}
        )
        _, (code,) = run_and_get_code(compiled, x)
        assert ("CallTimer" in code or "profile=True" in code) == profile
        assert ("opaq_begun" in code) == (profile and cpp)


@pytest.mark.parametrize("cpp", [False, True], ids=["python", "cpp"])
def test_a_window_of_time(unique: str, cpp: bool) -> None:
    op = copy(unique, f"// {unique} {id(object())}\n{COPY}")
    options = {"profile": True, "cpp_wrapper": cpp}
    compiled = torch.compile(lambda x: op(x) + 1, backend="opaq", options=options)
    x = torch.ones(3)
    for _ in range(5):
        compiled(x)
    before = opaq.report(reset=True)
    (node,) = [node for node in before.nodes if node.op == unique]
    assert node.calls == 5 and row(unique)["calls"] == 0
    (node,) = of_op(unique)
    assert (node["calls"], node["timed_calls"], node["host_us_per_call"]) == (0, 0, None)
    assert node["served_by"] == "" and node["implementation"] == "cpu"
    assert row(unique)["compiled"] == 0 and row(unique)["compile_seconds"] == 0
    for _ in range(2):
        compiled(x)
    (node,), (graph,) = of_op(unique), of_op(unique, "graphs")
    assert (node["calls"], node["timed_calls"], node["served_by"]) == (2, 2, "cpu")
    assert (graph["calls"], graph["timed_calls"]) == (2, 2)
    assert row(unique)["calls"] == row(unique)["timed_calls"] == 2
