"""The implementation that was chosen for each node of each compiled graph in this process, for
opaq.report().
"""

from __future__ import annotations

import dataclasses
import logging

from opaq import _runtime

log = logging.getLogger("opaq")  # TORCH_LOGS="+opaq" shows every decision


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


_nodes: list[NodeRecord] = []


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
