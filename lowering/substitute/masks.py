"""Masks that are true nowhere, and what they would fill.

A layer of experts clears the rows of experts on other devices, `rows.masked_fill(experts >= n, 0)`,
also where the experts are what topk chose among n. Each such mask reads and writes all rows once.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from . import operations
from .operations import function_name, value_of

_FILLS = ("masked_fill", "masked_fill_")


def remove(graph: Graph) -> bool:
    """Changes the graph; returns whether it did."""
    fills = [node for node in graph.nodes if function_name(node) in _FILLS]
    if not fills:
        return False
    writes: dict[Node, int] = {}  # the number of nodes before it that may write
    count = 0
    for node in graph.nodes:
        writes[node] = count
        count += operations.may_write(node)
    changed = False
    for node in fills:
        if len(node.args) == 3 and _is_false(node.args[1], writes) and _is_input(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            changed = True
    return changed


def _is_false(mask: Any, writes: dict[Node, int]) -> bool:
    while operations.is_view(mask):
        mask = mask.args[0]
    if not isinstance(mask, Node) or function_name(mask) not in ("ge", "gt"):
        return False
    if len(mask.args) != 2 or type(mask.args[1]) is not int:
        return False
    source, least = mask.args[0], mask.args[1] + (function_name(mask) == "gt")
    while isinstance(source, Node) and source.args:
        call = source.args[0]
        if function_name(source) == "getitem" and isinstance(call, Node):
            name, number = function_name(call), source.args[1]
            if name == "topk" and number == 1:
                return writes[call] == writes[mask] and _classes(call) <= least
            if name == "sort" and number == 0:
                source = call.args[0] if call.args else None
                continue
        if not (operations.is_view(source) or function_name(source) in ("index_select", "gather")):
            return False
        source = call
    return False


def _classes(topk: Node) -> float:
    """From how many it chooses."""
    among = value_of(topk.args[0]) if topk.args else None
    dim = topk.args[2] if len(topk.args) > 2 else topk.kwargs.get("dim", -1)
    if among is None or not isinstance(dim, int) or not among.dim():
        return float("inf")
    size = among.shape[dim]
    return size if isinstance(size, int) else float("inf")


def _is_input(fill: Node) -> bool:
    """Whether the result may be the input itself: it is, or nothing else has the input's memory."""
    if function_name(fill) == "masked_fill_":
        return True
    source = fill.args[0]
    if not operations.is_tensor(source):
        return False
    before, after = value_of(source), value_of(fill)
    alike = (before.dtype, before.shape, before.stride()) == (
        after.dtype,
        after.shape,
        after.stride(),
    )
    reader = fill
    while isinstance(source, Node) and set(source.users) == {reader}:
        if operations.source_of_cast(source) is None:
            return alike and operations.is_kernel_of_its_own(source)
        source, reader = source.args[0], source
    return False
