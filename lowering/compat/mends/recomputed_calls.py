"""Calls that a backward graph must not make again: they would give other values, or have their
effect twice. PyTorch's own custom ops are affected too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._functorch import partitioners
from torch._higher_order_ops.auto_functionalize import auto_functionalized, auto_functionalized_v2
from torch._higher_order_ops.effects import with_effects
from torch.utils.checkpoint import CheckpointPolicy


def save_results() -> None:
    """Has the partitioner save the results of calls with ordered effects, and of custom ops that
    draw random numbers, if activation_memory_budget or aggressive_recomputation lets it recompute
    anything. Activation checkpoints are left alone: there the state of the generator is saved.
    """
    save(lambda graph: filter(_is_kept, graph.nodes))


def save(chosen: Callable[[torch.fx.Graph], Iterable[torch.fx.Node]]) -> None:
    """Has the partitioner save the results of the chosen nodes of each graph, except in activation
    checkpoints."""
    original = partitioners.choose_saved_values_set

    def choose_saved_values_set(joint_graph: Any, node_info: Any, memory_budget: float = 1) -> Any:
        kept = False
        for node in chosen(joint_graph):
            if not partitioners.must_recompute(node):
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
                kept = True
        if kept and memory_budget == 0:  # which saves the inputs and nothing else
            memory_budget = sys.float_info.min
        return original(joint_graph, node_info, memory_budget)

    partitioners.choose_saved_values_set = choose_saved_values_set


def _is_kept(node: torch.fx.Node) -> bool:
    target = node.target
    if target in (auto_functionalized, auto_functionalized_v2):
        target = node.args[0]
    return target is with_effects or (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in target.tags
        and target.namespace not in ("aten", "prims", "inductor_prims")
    )
