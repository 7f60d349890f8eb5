"""Means and sums of squares, however they are written, as x.square().mean(dim), and variances."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Graph, Node

from ..compat import pytorch
from . import forms, operations
from .calls import Operation
from .operations import value_of


def of_sum(graph: Graph, node: Node) -> Node | None:
    """x.sum(dim) / n, and x.sum(dim) * (1 / n), of n values: x.mean(dim)."""
    found = forms.operation(node)
    pairs = [found.args] if found is not None and found.name in ("mul", "div") else []
    if pairs and found.name == "mul":
        pairs.append(found.args[::-1])
    for summed, number in pairs:
        reduced = _once_read(summed, node, "sum")
        if reduced is None or not value_of(reduced.args[0]).is_floating_point():
            continue
        count = _count(*reduced.args[:2])
        if _is_inverse(number, count) if found.name == "mul" else _is_count(number, count):
            dtype = {"dtype": summed.kwargs["dtype"]} if "dtype" in summed.kwargs else {}
            return graph.call_function(torch.mean, reduced.args, dtype)
    return None


def of_norm(graph: Graph, node: Node) -> Node | None:
    """x.norm(dim=dim) ** 2, which is the sum of squares, and (x.norm(dim=dim) / n ** 0.5) ** 2,
    which is their mean. (The norm alone has other gradients at 0 than the root of the sum.)"""
    found = forms.operation(node)
    if found is None or found.name != "square":
        return None
    norm, reader, factor = found.args[0], node, None
    if (scaled := _once_read(norm, node, "mul", "div")) is not None:
        norm, reader, factor = scaled.args[0], norm, scaled.args[1]
        if scaled.name == "mul" and not isinstance(norm, Node):
            norm, factor = factor, norm
        if not isinstance(factor, float) or not math.isfinite(factor) or factor == 0:
            return None
        factor = factor * factor if scaled.name == "div" else 1 / (factor * factor)
    reduced = _once_read(norm, reader, "norm")
    if reduced is None or factor is not None and not _is_near(factor, _count(*reduced.args[:2])):
        return None
    reduce = torch.sum if factor is None else torch.mean
    return _of_squares(graph, reduce, reduced.args, value_of(node).dtype)


def of_einsum(graph: Graph, node: Node) -> Node | None:
    """einsum("...d,...d->...", x, x), which is the sum of squares."""
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    if not isinstance(equation, str) or node.kwargs or len(operands) != 2:
        return None
    x = operands[0]
    terms, _, result = equation.replace(" ", "").partition("->")
    one, _, other = terms.partition(",")
    alike = operands[1] is x and one == other and one[:-1] == result and "->" in equation
    if not alike or not operations.is_tensor(x) or not value_of(x).is_floating_point():
        return None
    if not one[-1:].isalpha() or one[-1] in result:
        return None
    return _of_squares(graph, torch.sum, (x, (-1,), False), value_of(node).dtype)


def of_both(graph: Graph, node: Node) -> Node | None:
    """An item of var_mean, as the variance or the mean alone."""
    call, index = node.args
    if not isinstance(call, Node) or operations.function_name(call) != "var_mean":
        return None
    found = forms.operation(call)
    if found is None or index not in (0, 1) or operations.written_between(call, node):
        return None
    if index == 0:
        return graph.call_function(torch.var, call.args, dict(call.kwargs))
    return graph.call_function(torch.mean, found.args[:3])


def of_moments(graph: Graph, node: Node) -> Node | None:
    """x.square().mean(dim) - x.mean(dim).square(), as the variance, which loses fewer digits."""
    found = forms.operation(node)
    if found is None or found.name != "sub":
        return None
    squares, square = (
        _once_read(each, node, name) for each, name in zip(found.args, ("mean", "square"))
    )
    if squares is None or square is None:
        return None
    of_squares = _once_read(squares.args[0], found.args[0], "square")
    mean = forms.operation(square.args[0])
    if of_squares is None or mean is None:
        return None
    source, *how = of_squares.args[0], *squares.args[1:]
    if (mean.name, *mean.args) != ("mean", source, *how):
        return None
    if operations.written_between(source, node) or value_of(node).dtype != value_of(source).dtype:
        return None
    dims, keepdim = how
    return graph.call_function(torch.var, (source, dims), {"correction": 0, "keepdim": keepdim})


def _once_read(value: Any, reader: Node, *names: str) -> Operation | None:
    """What a node computes, if it is one of these operations, which nothing else reads, and nothing
    is written between the two."""
    found = forms.operation(value)
    if found is None or found.name not in names or len(value.users) > 1:
        return None
    return None if operations.written_between(value, reader) else found


def _count(source: Node, dims: tuple[int, ...]) -> Any:
    """How many values a reduction takes together: an int or a torch.SymInt."""
    return math.prod(value_of(source).shape[dim] for dim in dims)


def _is_count(number: Any, count: Any) -> bool:
    number = value_of(number) if isinstance(number, Node) and _of_sizes(number) else number
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, (int, torch.SymInt)):
        return False
    return pytorch.surely_equal((number,), (count,))


def _of_sizes(node: Node) -> bool:
    """Not so an input of a spelling, which stands for any number."""
    return isinstance(value_of(node), torch.SymInt)


def _is_inverse(number: Any, count: Any) -> bool:
    known = isinstance(number, float) and number != 0
    return known and _is_near(1 / number, count)


def _is_near(number: float, count: Any) -> bool:
    """Whether it is the count, but for the rounding of numbers of Python."""
    return isinstance(count, int) and math.isclose(number, count, rel_tol=1e-12)


def _of_squares(graph: Graph, reduce: Any, args: tuple[Any, ...], dtype: torch.dtype) -> Node:
    """In float32 where the result has fewer digits, as einsum and norm add up."""
    source, dims, keepdim = args
    wide = dtype if operations.digits(dtype) > 1 else torch.float32
    if value_of(source).dtype != wide:
        source = graph.call_method("to", (source, wide))
    squares = graph.call_method("square", (source,))
    made = graph.call_function(reduce, (squares, dims, keepdim))
    return made if dtype == wide else graph.call_method("to", (made, dtype))
