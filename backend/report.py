"""`opaq.report()`: which implementation runs at each node of each compiled graph, why, how often,
how long a launch takes on the host, and what compiling cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import _runtime, lowering, substitutions
from .lowering import Substitution
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
    timed_calls: int  # how many of `calls` were timed
    host_us_per_call: float | None  # mean over the timed calls; None: there were none


@dataclass(frozen=True)
class GraphFacts:
    graph: str
    nodes: int
    calls: int  # of all nodes, as the rest
    timed_calls: int
    host_us_per_call: float | None
    host_seconds: float  # of the timed calls together


@dataclass(frozen=True)
class ImplementationFacts:
    op: str
    implementation: str
    device: str
    calls: int
    timed_calls: int
    host_us_per_call: float | None
    compile_seconds: float
    compiled: int
    disk_hits: int
    # of its device code: "NVRTC", "nvcc" or both; "" for other code, and before the first compile
    compiler: str
    # per thread, stored and loaded: the maximum over images; None: unknown (CPU, binaries, PTX)
    spill_bytes: int | None
    image_bytes: int | None  # size of the largest image; None: host code, or none was made so far


@dataclass(frozen=True)
class Report:
    """Launches are timed in graphs that are compiled with options={"profile": True}. Launches that
    compile or load something first are not timed (in a C++ wrapper: the first that an
    implementation serves at a node), nor are Python functions. The time is that of the call in the
    wrapper: reading arguments, choosing the implementation, launching the kernel. On the CPU it
    includes the kernel's run.

    `substitutions` are the places where compiled graphs do what a pattern (opaq.pattern) does, and
    whether it was replaced; graphs from a compile cache are included.

    str() gives a table of nodes, one of graphs, one of implementations, one of substitutions, and a
    line for each implementation that spills registers; `as_dict` the same as JSON-like data.
    """

    nodes: list[NodeFacts] = field(default_factory=list)
    implementations: list[ImplementationFacts] = field(default_factory=list)
    graphs: list[GraphFacts] = field(default_factory=list)
    substitutions: list[Substitution] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "nodes": [vars(node) for node in self.nodes],
            "graphs": [vars(graph) for graph in self.graphs],
            "implementations": [vars(item) for item in self.implementations],
            "substitutions": [vars(item) for item in self.substitutions],
        }

    def __str__(self) -> str:
        nodes = [("graph", "node", "op", "device", "implementation", "calls", *_TIMED, "reason")]
        for n in self.nodes:
            served = (
                n.implementation
                if n.served_by in ("", n.implementation)
                else f"{n.implementation}, served by {n.served_by}"
            )
            nodes.append((n.graph, n.node, n.op, n.device, served, *_time_cells(n), n.reason))
        graphs = [("graph", "nodes", "calls", *_TIMED, "host ms")]
        for g in self.graphs:
            graphs.append((g.graph, str(g.nodes), *_time_cells(g), f"{g.host_seconds * 1e3:.3f}"))
        implementations = [
            (
                "op",
                "implementation",
                "device",
                "calls",
                *_TIMED,
                "compile s",
                "compiled",
                "from cache",
                "compiler",
            )
        ]
        for i in self.implementations:
            implementations.append(
                (
                    i.op,
                    i.implementation,
                    i.device,
                    *_time_cells(i),
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
        tables = [table(nodes), table(graphs), table(implementations)]
        if self.substitutions:
            tables.append(table([substitutions.HEAD, *substitutions.rows(self.substitutions)]))
        return "\n\n".join([*tables, *spilling])


_TIMED = ("timed", "host us/call")


def _time_cells(facts: NodeFacts | GraphFacts | ImplementationFacts) -> tuple[str, str, str]:
    host = "-" if facts.host_us_per_call is None else f"{facts.host_us_per_call:.2f}"
    return str(facts.calls), str(facts.timed_calls), host


def report(*, reset: bool = False) -> Report:
    """Nodes of compiled graphs and implementations in this process, and what they did since it
    began, or since the last report(reset=True).

    reset: from now on all numbers (calls, times, compilations) count from 0, so that the next
    report is about what comes between the two.
    """
    global _before
    now = _totals()
    nodes, graphs = _nodes_and_graphs(now, _before)
    found = Report(nodes, _implementations(now, _before), graphs, lowering.substitutions())
    if reset:
        _before = now
    return found


# ---- what is counted -----------------------------------------------------------------------------

# calls, timed_calls, host_seconds and, of implementations, compile_seconds, compiled, disk_hits
_Numbers = Counter[str]


@dataclass
class _Node:
    numbers: _Numbers
    # calls by implementation, of a C++ wrapper; the implementation that served the last call, of a
    # Python wrapper
    served: Counter[str] = field(default_factory=Counter)
    last: str = ""


@dataclass
class _Totals:
    """What was counted since the process began."""

    nodes: dict[tuple[str, str], _Node] = field(default_factory=dict)  # by graph and node
    # by op, implementation, device
    implementations: dict[tuple[str, str, str], _Numbers] = field(default_factory=dict)


_before = _Totals()  # at the last report(reset=True)


def _totals() -> _Totals:
    totals = _Totals()
    for item in _runtime.implementation_stats():
        totals.implementations[_key(item)] = Counter(
            {name: item[name] for name in (*_TIMES, "compile_seconds", "compiled", "disk_hits")}
        )
    for node in _runtime.node_stats():
        totals.nodes[node["graph"], node["node"]] = _Node(
            Counter({name: node[name] for name in _TIMES}), last=node["implementation"]
        )
    for node in _runtime.wrapper_nodes():
        of_node: _Numbers = Counter(calls=node["calls"])
        for implementation, calls in node["served"].items():
            timed = node["timed"].get(implementation, {"calls": 0, "host_seconds": 0.0})
            times = {"timed_calls": timed["calls"], "host_seconds": timed["host_seconds"]}
            of_node.update(times)
            key = (node["op"], implementation, node["device"].split(":")[0])
            totals.implementations.get(key, Counter()).update({"calls": calls, **times})
        totals.nodes[node["graph"], node["node"]] = _Node(of_node, Counter(node["served"]))
    return totals


_TIMES = ("calls", "timed_calls", "host_seconds")


def _key(stats: Mapping[str, Any]) -> tuple[str, str, str]:
    return stats["op"], stats["implementation"], stats["device"]


def _since(now: _Numbers, before: _Numbers) -> _Numbers:
    difference = Counter(now)
    difference.subtract(before)
    return difference


def _times(numbers: _Numbers) -> dict[str, Any]:
    """The fields of this name of a node, a graph or an implementation."""
    timed = numbers["timed_calls"]
    return {
        "calls": numbers["calls"],
        "timed_calls": timed,
        "host_us_per_call": numbers["host_seconds"] / timed * 1e6 if timed else None,
    }


def _nodes_and_graphs(now: _Totals, before: _Totals) -> tuple[list[NodeFacts], list[GraphFacts]]:
    nodes, of_graphs = [], dict[str, list[_Numbers]]()
    for record in lowering.nodes():
        key = (record.graph, record.node)
        node = now.nodes.get(key, _Node(Counter()))
        earlier = before.nodes.get(key, _Node(Counter()))
        numbers = _since(node.numbers, earlier.numbers)
        served = _since(node.served, earlier.served)
        served_by = _served_by(served) if node.served else node.last if numbers["calls"] else ""
        nodes.append(NodeFacts(**vars(record), served_by=served_by, **_times(numbers)))
        of_graphs.setdefault(record.graph, []).append(numbers)
    graphs = []
    for graph, numbers_of_nodes in of_graphs.items():
        together: _Numbers = Counter()
        for numbers in numbers_of_nodes:
            together.update(numbers)
        seconds = float(together["host_seconds"])
        graphs.append(
            GraphFacts(graph, len(numbers_of_nodes), host_seconds=seconds, **_times(together))
        )
    return nodes, graphs


def _served_by(served: Counter[str]) -> str:
    """ "cpu:vec4 3, cpu 1": calls by implementation (C++ wrappers do not record which was last);
    only the name if one serves all calls.
    """
    used = {name: calls for name, calls in served.items() if calls}
    return (
        next(iter(used))
        if len(used) == 1
        else ", ".join(f"{name} {calls}" for name, calls in used.items())
    )


def _implementations(now: _Totals, before: _Totals) -> list[ImplementationFacts]:
    found = []
    for stats in _runtime.implementation_stats():
        key = _key(stats)
        numbers = _since(now.implementations[key], before.implementations.get(key, Counter()))
        if key[0].startswith("opaq_kernels::") and not any(numbers.values()):
            continue  # the patterns of backend="opaq" declare all of these ops
        found.append(
            ImplementationFacts(
                *key,
                **_times(numbers),
                compile_seconds=float(numbers["compile_seconds"]),
                compiled=numbers["compiled"],
                disk_hits=numbers["disk_hits"],
                compiler=stats["compiler"],
                spill_bytes=stats["spill_bytes"],
                image_bytes=stats["image_bytes"],
            )
        )
    return found
