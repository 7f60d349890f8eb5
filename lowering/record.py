"""What was decided for each node of each compiled graph of this process: the facts behind
report()."""

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
    # its name ("a or b" where each launch from C++ decides), "reference", "python", or
    # "dispatcher": Inductor's stock call
    implementation: str
    # why not an earlier one, and what is left to be checked at each launch; "" when there is
    # nothing to say
    reason: str


_nodes: list[NodeRecord] = []


def nodes() -> list[NodeRecord]:
    """Of Python wrappers, then of C++ wrappers, each in order of loading: a graph that comes out of
    a compile cache is there too.
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
    """For a node of a C++ wrapper, which announces itself to the runtime when it is loaded."""
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
