"""Changes of a mode that change nothing: models compute a target under no_grad of what has no
gradient anyway, and turn autocast off where it is off.

A pattern is not looked for across a change of a mode.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from . import operations
from .operations import function_name, value_of


def remove(graph: Graph) -> bool:
    """Changes the graph; returns whether it did."""
    found = [*_without_gradients(graph), *_without_autocast(graph)]
    for node in reversed(found):
        graph.erase_node(node)
    return bool(found)


def _without_gradients(graph: Graph) -> list[Node]:
    """Those that turn gradients off, and on again behind nodes that give none, and those that set
    what is set."""
    found: list[Node] = []
    inside: list[Node] = []
    mode, off = torch.is_grad_enabled(), None
    for node in graph.nodes:
        if not function_name(node).endswith("set_grad_enabled"):
            inside.append(node)
        elif node.args == (mode,):
            found.append(node)
        else:
            if off is not None and not _lose_gradients(inside):
                found += [off, node]
            off, mode, inside = node if mode else None, not mode, []
    return found


def _lose_gradients(nodes: list[Node]) -> bool:
    """Whether something else reads values of these nodes that would have gradients if gradients
    were on."""
    with_gradients: set[Node] = set()
    for node in nodes:
        if _has_gradient(node, with_gradients):
            if operations.may_write(node) or not set(node.users) <= set(nodes):
                return True
            with_gradients.add(node)
    return False


def _has_gradient(node: Node, with_gradients: set[Node]) -> bool:
    if operations.reads_sizes(node):
        return False
    inputs = [value for each in node.all_input_nodes for value in _tensors(value_of(each))]
    has_some = any(value.requires_grad for value in inputs)
    if not has_some and with_gradients.isdisjoint(node.all_input_nodes):
        return False
    results = _tensors(value_of(node))
    return operations.may_write(node) or any(each.dtype.is_floating_point for each in results)


def _tensors(value: object) -> list[torch.Tensor]:
    each = value if isinstance(value, (tuple, list)) else (value,)
    return [one for one in each if isinstance(one, torch.Tensor)]


def _without_autocast(graph: Graph) -> list[Node]:
    """Those that turn autocast off where it is never on."""
    entered = [node for node in graph.nodes if function_name(node).endswith("enter_autocast")]
    left = [node for node in graph.nodes if function_name(node).endswith("exit_autocast")]
    devices = {node.args[0] for node in entered}
    known = all(isinstance(each, str) and not torch.is_autocast_enabled(each) for each in devices)
    off = all(len(node.args) > 2 and node.args[2] is False for node in entered)
    paired = all(node.args and node.args[0] in entered for node in left)
    return [*entered, *left] if known and off and paired else []
