"""How many graphs Dynamo has made in this process, and how many graph breaks it met."""

from __future__ import annotations

import dataclasses
import sys


@dataclasses.dataclass(frozen=True)
class GraphCounts:
    graphs: int
    breaks: int


def counts() -> GraphCounts:
    """Zero before Dynamo is loaded, which this does not do."""
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is None:
        return GraphCounts(0, 0)
    counters = utils.counters
    return GraphCounts(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
