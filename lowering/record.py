"""The implementation that was chosen for each node of each compiled graph in this process, for
opaq.report(), for the log, and for torch's structured trace.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from opaq import _runtime

from .compat import pytorch

log = pytorch.logger("opaq")  # TORCH_LOGS="+opaq" shows every decision


@dataclasses.dataclass(frozen=True)
class NodeRecord:
    graph: str  # as node_stats() and wrapper_nodes() of the runtime name it
    node: str
    op: str
    device: str
    # its name ("a or b" if each launch from C++ chooses), "reference", "python", or "dispatcher"
    # (Inductor's own call of the op)
    implementation: str
    # why not an implementation that is tried earlier, and what each launch checks; may be ""
    reason: str


@dataclasses.dataclass(frozen=True)
class Substitution:
    """A place of a graph that computes what a pattern does."""

    pattern: str
    place: str  # "model.py:12, in forward": the user's line; "" where it is not known
    applied: bool
    reason: str  # why the place is left as it is, or on what grounds it is replaced
    # time of what Inductor makes over that of the op, as measured for nearby sizes; None: unknown
    gain: float | None = None


_nodes: list[NodeRecord] = []
_substitutions: list[Substitution] = []


def substitutions() -> list[Substitution]:
    """Those of this process, in order of compilation."""
    return list(_substitutions)


def add_substitutions(found: Sequence[Substitution]) -> None:
    _substitutions.extend(found)
    for each in found:
        log.debug(
            "pattern %s at %s %s: %s",
            each.pattern,
            each.place or "a line that is not known",
            "is replaced" if each.applied else "is left",
            each.reason,
        )


def nodes() -> list[NodeRecord]:
    """Those of Python wrappers, then those of C++ wrappers, in order of loading. Graphs that come
    from a compile cache are included.
    """
    announced = _runtime.wrapper_nodes()
    return [
        *_nodes,
        *(
            NodeRecord(
                n["graph"], n["node"], n["op"], n["device"], " or ".join(n["served"]), n["reason"]
            )
            for n in announced
        ),
    ]


def add(record: NodeRecord) -> None:
    _nodes.append(record)
    log_decision(record)


_traced: set[str] = set()  # graphs


def trace_new() -> None:
    """Adds to the structured trace (TORCH_TRACE) what each graph holds that was loaded since the
    last call.
    """
    graphs: dict[str, list[NodeRecord]] = {}
    for record in nodes():
        if record.graph not in _traced:
            graphs.setdefault(record.graph, []).append(record)
    _traced.update(graphs)
    for graph, records in graphs.items():
        pytorch.trace_artifact("opaq", functools.partial(_described, graph, records))


def _described(graph: str, records: list[NodeRecord]) -> dict[str, Any]:
    """The nodes of a graph, and the implementations of their ops, with what is known so far of
    their code: in Python wrappers it may be compiled by the first launch only.
    """
    called = {(record.op, record.device.split(":")[0]) for record in records}
    facts = ("op", "implementation", "device", "compiler", "image_bytes", "spill_bytes")
    return {
        "graph": graph,
        "nodes": [dataclasses.asdict(record) for record in records],
        "implementations": [
            {fact: stats[fact] for fact in facts}
            for stats in _runtime.implementation_stats()
            if (stats["op"], stats["device"]) in called
        ],
    }


def log_decision(record: NodeRecord) -> None:
    """Logs a record. Nodes of C++ wrappers are only logged: they register with the runtime when the
    wrapper is loaded.
    """
    why = record.reason and f" ({record.reason})"
    log.info(
        "%s %s: %s on %s runs %s%s",
        record.graph,
        record.node,
        record.op,
        record.device,
        record.implementation,
        why,
    )
