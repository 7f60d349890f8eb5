"""What was decided for each node of each compiled graph of this process: the facts behind report()."""

from __future__ import annotations

import dataclasses
import logging

log = logging.getLogger("opaq")  # TORCH_LOGS="+opaq" shows every decision


@dataclasses.dataclass(frozen=True)
class NodeRecord:
    graph: str  # as node_stats() of the runtime names it
    node: str
    op: str
    device: str
    implementation: str  # its name, "reference", "python", or "dispatcher" for Inductor's stock call
    reason: str  # why not an earlier one, and what is left to be checked at each launch; "" when there is nothing to say


_nodes: list[NodeRecord] = []


def nodes() -> list[NodeRecord]:
    """In order of loading: a graph that comes out of a compile cache is there too."""
    return list(_nodes)


def add(record: NodeRecord) -> None:
    _nodes.append(record)
    why = record.reason and f" ({record.reason})"
    log.info("%s %s: %s on %s runs %s%s", record.graph, record.node, record.op, record.device, record.implementation, why)
