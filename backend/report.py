"""`opaq.report()`: which implementation runs at each node of each compiled graph, why, how often,
and what compiling cost.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from . import _runtime, lowering
from .terminal import table


@dataclass(frozen=True)
class NodeFacts:
    graph: str
    node: str
    op: str
    device: str
    implementation: str  # chosen when the graph was compiled
    # that the last call ran; in a C++ wrapper all that calls ran, each with its number of calls; ""
    # before the first call
    served_by: str
    reason: str
    calls: int


@dataclass(frozen=True)
class ImplementationFacts:
    op: str
    implementation: str
    device: str
    calls: int
    timed_calls: int  # how many of `calls` were timed
    host_us_per_call: float | None  # mean over the timed calls; None: there were none
    compile_seconds: float
    compiled: int
    disk_hits: int
    # of its device code: "NVRTC", "nvcc" or both; "" for other code, and before the first compile
    compiler: str
    # per thread, stored and loaded: the maximum over images; None: unknown (CPU, binaries, PTX)
    spill_bytes: int | None


@dataclass(frozen=True)
class Report:
    """Launches are timed in Python wrappers of graphs that are compiled with
    options={"profile": True}, except launches that compile or load something first. The time is
    that of the call in the wrapper: reading arguments, choosing the implementation, launching the
    kernel. On the CPU it includes the kernel's run.

    str() gives two tables and a line for each implementation that spills registers; `as_dict` the
    same as JSON-like data.
    """

    nodes: list[NodeFacts] = field(default_factory=list)
    implementations: list[ImplementationFacts] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "nodes": [vars(node) for node in self.nodes],
            "implementations": [vars(item) for item in self.implementations],
        }

    def __str__(self) -> str:
        nodes = [("graph", "node", "op", "device", "implementation", "calls", "reason")]
        for n in self.nodes:
            served = (
                n.implementation
                if n.served_by in ("", n.implementation)
                else f"{n.implementation}, served by {n.served_by}"
            )
            nodes.append((n.graph, n.node, n.op, n.device, served, str(n.calls), n.reason))
        rows = [
            (
                "op",
                "implementation",
                "device",
                "calls",
                "timed",
                "host us/call",
                "compile s",
                "compiled",
                "from cache",
                "compiler",
            )
        ]
        for i in self.implementations:
            host = "-" if i.host_us_per_call is None else f"{i.host_us_per_call:.2f}"
            rows.append(
                (
                    i.op,
                    i.implementation,
                    i.device,
                    str(i.calls),
                    str(i.timed_calls),
                    host,
                    f"{i.compile_seconds:.3f}",
                    str(i.compiled),
                    str(i.disk_hits),
                    i.compiler or "-",
                )
            )
        spilling = [
            f"{i.op}: {i.implementation} spills registers: {i.spill_bytes} bytes a thread"
            for i in self.implementations
            if i.spill_bytes
        ]
        return "\n\n".join([table(nodes), table(rows), *spilling])


def report() -> Report:
    """What ran in this process so far: nodes of compiled graphs, and implementations."""
    counts = {
        (stats["graph"], stats["node"]): (stats["implementation"], stats["calls"])
        for stats in _runtime.node_stats()
    }
    from_cpp: Counter[tuple[str, str, str]] = Counter()
    for node in _runtime.wrapper_nodes():
        counts[node["graph"], node["node"]] = (_served_by(node["served"]), node["calls"])
        for implementation, calls in node["served"].items():
            from_cpp[node["op"], implementation, node["device"].split(":")[0]] += calls
    nodes = []
    for record in lowering.nodes():
        served_by, calls = counts.get((record.graph, record.node), ("", 0))
        nodes.append(
            NodeFacts(
                record.graph,
                record.node,
                record.op,
                record.device,
                record.implementation,
                served_by,
                record.reason,
                calls,
            )
        )
    implementations = []
    for stats in _runtime.implementation_stats():
        implementations.append(
            ImplementationFacts(
                op=stats["op"],
                implementation=stats["implementation"],
                device=stats["device"],
                calls=stats["calls"]
                + from_cpp[stats["op"], stats["implementation"], stats["device"]],
                timed_calls=stats["timed_calls"],
                host_us_per_call=stats["host_seconds"] / stats["timed_calls"] * 1e6
                if stats["timed_calls"]
                else None,
                compile_seconds=stats["compile_seconds"],
                compiled=stats["compiled"],
                disk_hits=stats["disk_hits"],
                compiler=stats["compiler"],
                spill_bytes=stats["spill_bytes"],
            )
        )
    return Report(nodes, implementations)


def _served_by(served: dict[str, int]) -> str:
    """ "cpu:vec4 3, cpu 1": calls by implementation (C++ wrappers do not record which was last);
    only the name if one serves all calls.
    """
    used = {name: calls for name, calls in served.items() if calls}
    return (
        next(iter(used))
        if len(used) == 1
        else ", ".join(f"{name} {calls}" for name, calls in used.items())
    )
