"""Linear steps: a sum of two values that took the same ones, as the way of their sum, and signs
behind what is summed or chosen.

Losses with label smoothing are written as two sums over the rows, of the log-probability of the
class and of all of them; an op gives the sum of both for each row.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, Node

from . import forms, operations
from .operations import value_of

# A function of torch, and its arguments after the first one.
_Step = tuple[Any, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class _Term:
    """factor * node, where nothing else reads the node."""

    node: Node
    factor: float = 1.0

    def times(self, graph: Graph) -> Node:
        if self.factor == 1:
            return self.node
        return graph.call_function(torch.mul, (self.node, self.factor))


def of_two(graph: Graph, node: Node) -> Node | None:
    """a * f(p) + b * f(q), as f(a * p + b * q), where f is sums, masks, divisions and views, and p
    and q are computed from one log_softmax."""
    found = forms.operation(node)
    if found is None or found.name not in ("add", "sub"):
        return None
    if operations.digits(value_of(node).dtype) < 2:  # each of what is added would be rounded
        return None
    one, other = (_term(value, node) for value in found.args)
    if one is None or other is None:
        return None
    if found.name == "sub":
        other = dataclasses.replace(other, factor=-other.factor)
    way: list[_Step] = []
    while (taken := _step(one, other, node)) is not None:
        step, one, other = taken
        way.append(step)
    if not way or not _of_one_log_softmax(one.node, other.node):
        return None
    if any(operations.written_between(each.node, node) for each in (one, other)):
        return None
    made = graph.call_function(torch.add, (one.times(graph), other.times(graph)))
    for function, others in reversed(way):
        made = graph.call_function(function, (made, *others))
    return made


def _term(value: Any, reader: Node, factor: float = 1.0) -> _Term | None:
    """Without numbers that it is multiplied with."""
    while operations.is_tensor(value) and set(value.users) == {reader}:
        found = forms.operation(value)
        if found is None:
            return _Term(value, factor)
        first, *others = found.args
        if found.name == "neg":
            inner, factor = first, -factor
        elif found.name == "mul" and _is_number(others[0]):
            inner, factor = first, factor * others[0]
        elif found.name == "mul" and _is_number(first):
            inner, factor = others[0], factor * first
        elif found.name == "div" and _is_number(others[0]) and others[0] != 0:
            inner, factor = first, factor / others[0]
        else:
            return _Term(value, factor)
        value, reader = inner, value
    return None


def _step(one: _Term, other: _Term, last: Node) -> tuple[_Step, _Term, _Term] | None:
    """(what both do last, and what it is done to). last: what is to be replaced."""
    first, second = forms.operation(one.node), forms.operation(other.node)
    if first is None or second is None or first.name != second.name:
        return None
    step: _Step
    factors = [one.factor, other.factor]
    sources = [first.args[0], second.args[0]]
    if first.name in ("sum", "mean"):
        step = getattr(torch, first.name), first.args[1:]
        known = second.args[1:] == first.args[1:]
    elif first.name == "squeeze":
        dim = first.args[1]
        known = second.args[1] == dim and type(dim) is int
        step = torch.squeeze, (dim,)
    elif first.name == "masked_fill":
        mask, number = first.args[1:]
        known = _is_number(number) and number == second.args[2] == 0
        known = known and _are_one(mask, second.args[1], last)
        step = torch.masked_fill, (mask, 0.0)
    elif first.name == "div":
        divisors = [_without_number(each.args[1]) for each in (first, second)]
        divisor = divisors[0][0]
        known = operations.is_tensor(divisor) and _are_one(divisor, divisors[1][0], last)
        factors = [factor / number for factor, (_, number) in zip(factors, divisors)]
        step = torch.div, (divisor,)
    elif first.name == "mul":
        both = [(found.args, found.args[::-1]) for found in (first, second)]
        ways = [pair for pair in itertools.product(*both) if _is_common(pair, last)]
        if not ways:
            return None
        (source, mask), (other_source, _) = ways[0]
        known, sources = True, [source, other_source]
        step = torch.mul, (mask,)
    else:
        return None
    inner = [
        _term(source, term.node, factor)
        for source, term, factor in zip(sources, (one, other), factors)
    ]
    if not known or inner[0] is None or inner[1] is None:
        return None
    return step, inner[0], inner[1]


def _without_number(value: Any) -> tuple[Any, float]:
    """(x, number) of x * number."""
    found = forms.operation(value)
    if found is not None and found.name == "mul":
        for x, number in (found.args, found.args[::-1]):
            if _is_number(number) and number != 0:
                return x, number
    return value, 1.0


def _is_common(factors: Any, last: Node) -> bool:
    """Of two products, whether the second factors are one tensor."""
    (_, one), (_, other) = factors
    return operations.is_tensor(one) and _are_one(one, other, last)


def _are_one(one: Any, other: Any, last: Node) -> bool:
    """Whether two nodes before `last` have equal values: one is the other, or they are computed
    alike from the same tensors, as masks are."""
    if not (isinstance(one, Node) and isinstance(other, Node)):
        return type(one) is type(other) and _is_number(one) and bool(one == other)
    if one is other:
        return operations.is_tensor(one)
    alike = (one.op, one.target, one.kwargs) == (other.op, other.target, other.kwargs)
    if not alike or one.op not in ("call_method", "call_function"):
        return False
    if operations.function_name(one) not in _ALIKE or len(one.args) != len(other.args):
        return False
    if any(operations.written_between(each, last) for each in (one, other)):
        return False
    return all(_are_one(a, b, last) for a, b in zip(one.args, other.args))


_ALIKE = {"eq", "ne", "lt", "gt", "le", "ge", "invert", "logical_not", "bitwise_not", "unsqueeze"}
_ALIKE |= {"sum", "squeeze", "long", "int", *operations.CASTS}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _of_one_log_softmax(one: Node, other: Node) -> bool:
    first, second = (value_of(each) for each in (one, other))
    if first.shape != second.shape or not second.is_floating_point():
        return False
    shared = set(_sources(one)) & set(_sources(other))
    names = [found.name for each in shared if (found := forms.operation(each)) is not None]
    return "log_softmax" in names


def _sources(node: Node) -> Iterator[Node]:
    """What a node is computed from first, and a step before that."""
    for _ in range(2):
        node = node.args[0] if node.args else None
        if not operations.is_tensor(node):
            return
        yield node


def sign_outside(graph: Graph, node: Node) -> Node | None:
    """(-x).gather(dim, index) and (-x).sum(dim), as -(x.gather(dim, index)) and -(x.sum(dim))."""
    source = node.args[0]
    if not operations.is_tensor(source) or operations.function_name(source) != "neg":
        return None
    known = len(source.args) == 1 and not source.kwargs and operations.is_tensor(source.args[0])
    if not known or not value_of(source).is_floating_point():
        return None
    if operations.written_between(source, node):
        return None
    args = (source.args[0], *node.args[1:])
    made = graph.create_node(node.op, node.target, args, dict(node.kwargs))
    return graph.call_function(torch.neg, (made,))
