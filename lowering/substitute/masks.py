"""Masks that are true nowhere, and what they would fill.

A layer of experts clears the rows of experts on other devices, `rows.masked_fill(experts >= n, 0)`,
also where the experts are what topk chose among n. Each such mask reads and writes all rows once.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from . import forms, operations
from .operations import function_name, value_of

_FILLS = ("masked_fill", "masked_fill_")


def remove(graph: Graph) -> bool:
    """Changes the graph; returns whether it did."""
    fills = [node for node in graph.nodes if function_name(node) in _FILLS]
    if not fills:
        return False
    writes = operations.how_many_before(graph, operations.may_write)
    sharing = operations.sharing(graph)
    changed = False
    for node in fills:
        if len(node.args) == 3 and _is_false(node.args[1], writes, sharing) and _is_input(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            changed = True
    return changed


def _is_false(mask: Any, writes: dict[Node, int], sharing: dict[int, set[Node]]) -> bool:
    while operations.is_view(mask):
        mask = mask.args[0]
    compared = forms.operation(mask)
    if compared is None or compared.name not in ("le", "lt"):
        return False
    least, numbers = compared.args  # least <= numbers
    topk = _chooser(numbers)
    if type(least) is not int or topk is None or writes[topk] != writes[mask]:
        return False
    if _classes(topk) > least + (compared.name == "lt"):
        return False
    memory = list(operations.memory(value_of(mask)))
    return bool(memory) and not any(_is_written(sharing[each]) for each in memory)


def _is_written(masks: set[Node]) -> bool:
    """Whether anything but a fill by one of them may write to masks that share memory."""
    return any(
        operations.may_write(reader)
        and not (function_name(reader) in _FILLS and reader.args[0] not in masks)
        for each in masks
        for reader in each.users
    )


def _chooser(numbers: Any) -> Node | None:
    """The topk whose indices these are, in any order."""
    while isinstance(numbers, Node) and numbers.args:
        name, source = function_name(numbers), numbers.args[0]
        if name == "getitem" and isinstance(source, Node):
            result = (function_name(source), numbers.args[1])
            if result == ("topk", 1):
                return source
            if result == ("sort", 0):
                numbers = source.args[0] if source.args else None
                continue
        if not (operations.rearranges(numbers) or name in ("index_select", "gather")):
            return None
        numbers = source
    return None


def _classes(topk: Node) -> float:
    """From how many it chooses."""
    found = forms.operation(topk)
    if found is None or not value_of(found.args[0]).dim():
        return float("inf")
    among, _, dim, _ = found.args
    size = value_of(among).shape[dim]
    return size if isinstance(size, int) else float("inf")


def _is_input(fill: Node) -> bool:
    """Whether the result may be the input itself: it is, or nothing else has the input's memory."""
    if function_name(fill) == "masked_fill_":
        return True
    source = fill.args[0]
    if not operations.is_tensor(source):
        return False
    alike = operations.alike(value_of(source), value_of(fill))
    reader = fill
    while isinstance(source, Node) and set(source.users) == {reader}:
        if operations.source_of_cast(source) is None:
            return alike and operations.is_kernel_of_its_own(source)
        source, reader = source.args[0], source
    return False
