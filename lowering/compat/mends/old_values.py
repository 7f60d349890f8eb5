"""Values that are computed from an input before the graph writes to it. PyTorch's own operations
are affected too: https://github.com/pytorch/pytorch/pull/197039.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from . import recomputed_calls


def save_old_values() -> None:
    """Has the partitioner save what reads an input that the graph writes to at its end. The
    backward graph would compute it again from what was written. Activation checkpoints are left
    alone: they compute again in eager, too."""
    recomputed_calls.save(_readers_of_written_inputs)


def _readers_of_written_inputs(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """The nodes that make new values of such an input, directly or of a view of it."""
    memory = {
        node.args[0]
        for node in graph.nodes
        if node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder"
    }
    for node in graph.nodes:  # in order: a view comes before what reads it
        if node.op != "call_function" or memory.isdisjoint(node.all_input_nodes):
            continue
        if is_view(node.target):
            memory.add(node)
        elif isinstance(node.meta.get("val"), torch.Tensor):
            if node.target is not torch.ops.aten.copy_.default:
                yield node
        else:  # several results, which are saved one by one
            yield from node.users


def is_view(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.is_view
