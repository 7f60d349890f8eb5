"""Detours that models take, written as the operations in which patterns are spelled. The graph
means the same before and after. Spellings are rewritten, too, so that either may take a detour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from . import forms, operations, rewrite
from .operations import function_name, value_of


def by_place(graph: Graph) -> bool:
    """Writes torch.reshape(input=x, ...) as torch.reshape(x, ...): the tensor that is looked at in
    another shape is the first argument of its node. Returns whether the graph changed."""
    changed = False
    for node in graph.nodes:
        names = ("input", "self", "tensor")
        name = next((each for each in names if each in node.kwargs), None)
        if name is not None and not node.args and function_name(node) in operations.VIEWS:
            node.args = (node.kwargs[name],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}
            changed = True
    return changed


def rewritten(graph: Graph) -> bool:
    """Changes the graph; returns whether it did."""
    changed = False
    for node in list(graph.nodes):
        rule = _RULES.get(function_name(node))
        if rule is None or not node.args or not operations.is_tensor(node):
            continue
        mark = node.prev
        with graph.inserting_before(node):
            made = rule(graph, node)
        changed |= made is node
        if made is None or made is node:
            continue
        rewrite.complete(rewrite.between(mark, node), node)
        if not operations.alike(value_of(node), value_of(made)):
            rewrite.take_back(graph, mark, node)
            continue
        source = node.args[0]
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        if isinstance(source, Node) and not source.users and function_name(source) in _LEFT:
            graph.erase_node(source)
        changed = True
    return changed


def _largest(graph: Graph, node: Node) -> Node | None:
    """x.max(dim)[0], of which the index is not read. (Gradients of equal values differ.)"""
    call, number = node.args
    found = forms.operation(call)
    if found is None or found.name != "max" or len(call.users) > 1:
        return None
    if number != 0 or value_of(node).requires_grad:
        return None
    source, dim, keepdim = found.args
    whole = isinstance(value_of(call), tuple) and type(dim) is int and type(keepdim) is bool
    return graph.call_function(torch.amax, (source, dim, keepdim)) if whole else None


def _same_shape(graph: Graph, node: Node) -> Any:
    """A view of the same shape, which is the tensor itself."""
    source, *sizes = node.args
    if node.kwargs or any(isinstance(size, torch.dtype) for size in sizes):
        return None
    if any(isinstance(size, Node) and type(value_of(size)) is int for size in sizes):
        return None  # of a spelling: any number
    if any(user.op == "output" for user in node.users):
        computed = isinstance(source, Node) and source.op.startswith("call")
        if not computed or len(source.users) > 1:
            return None  # the result is a tensor of its own
    return source if operations.is_tensor(source) else None


def _put_back(graph: Graph, node: Node) -> Any:
    """What a scatter puts back from the order of a sort into that of before, over any tensor, as it
    is over itself."""
    found = forms.operation(node)
    if found is None or found.name != "scatter" or value_of(node).requires_grad:
        return None
    base, dim, index, source = found.args
    order = forms.operation(index)
    if base is source or order is None or not operations.is_tensor(source):
        return None
    call = order.args[0] if (order.name, *order.args[1:]) == ("item", 1) else None
    sort = forms.operation(call)
    whole = value_of(index).shape == value_of(source).shape == value_of(node).shape
    if sort is None or sort.name != "sort" or sort.args[1] != dim or not whole:
        return None
    return graph.call_method("scatter", (source, dim, index, source))


def _numbers_like(graph: Graph, node: Node) -> Any:
    """values / exponential numbers in a new tensor of the same shape, as in one like the values."""
    values, numbers = node.args if len(node.args) == 2 and not node.kwargs else (None, None)
    if not isinstance(numbers, Node) or function_name(numbers) != "exponential":
        return None
    new = numbers.args[0]
    if not operations.is_tensor(values) or not operations.is_tensor(new) or len(numbers.users) > 1:
        return None
    alike = operations.alike(value_of(values), value_of(new))
    if function_name(new) not in _NEW or not alike or values not in _before(numbers):
        return None
    with graph.inserting_before(numbers):
        like = graph.call_function(torch.empty_like, (values,))
    rewrite.complete([like], numbers)
    numbers.update_arg(0, like)
    return node


_NEW = ("empty", "new_empty", "zeros", "zeros_like", "new_zeros", "ones_like")
_LEFT = ("max", "empty_like", *_NEW)  # what nothing may read any more


def _before(node: Node) -> set[Node]:
    found = set()
    while (node := node.prev).op != "root":
        found.add(node)
    return found


_RULES: dict[str, Callable[[Graph, Node], Any]] = {
    "getitem": _largest,
    **dict.fromkeys(("view", "reshape"), _same_shape),
    "scatter": _put_back,
    "div": _numbers_like,
}
