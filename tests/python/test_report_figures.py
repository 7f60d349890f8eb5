"""opaq.report() during garbage collection, and what `profile` measures: launches of the profiled
graph, without those that compile.
"""

from __future__ import annotations

import gc

import torch

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
