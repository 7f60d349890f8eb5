"""Rotations of neighbours by 2 x 2 matrices, as FLUX writes rope:

matrices = stack([cos, -sin, sin, cos], -1).view(..., 2, 2)     (parts of it joined by cat)
pairs = x.reshape(*x.shape[:-1], -1, 1, 2)
y = matrices[..., 0] * pairs[..., 0] + matrices[..., 1] * pairs[..., 1]
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from ..compat.pytorch import pytorch
from . import forms, operations
from .operations import function_name, value_of


def by_matrices(graph: Graph, node: Node) -> Node | None:
    """The sum, as both results of each pair beside each other, made with cos and sin; where the
    matrices are rotations that this graph makes."""
    found = forms.operation(node)
    if found is None or found.name != "add":
        return None
    columns = [_column(each) for each in found.args]
    if None in columns or {each[2] for each in columns} != {0, 1}:
        return None
    (matrices, pairs, _), (others, other_pairs, _) = columns
    if matrices is not others or pairs is not other_pairs or not _are_pairs(pairs):
        return None
    x = pairs.args[0]
    if not _are_rotations(matrices):
        return None
    if operations.written_between(matrices, node) or operations.written_between(x, node):
        return None

    def part(of: Node, *place: Any) -> Node:
        return graph.call_function(operator.getitem, (of, (Ellipsis, *place)))

    def product(one: Node, other: Node) -> Node:
        return graph.call_function(torch.mul, (one, other))

    cos, sin = (part(matrices, row, 0) for row in (0, 1))
    first, second = (part(x, slice(start, None, 2)) for start in (0, 1))

    turned = [
        graph.call_function(torch.sub, (product(first, cos), product(second, sin))),
        graph.call_function(torch.add, (product(second, cos), product(first, sin))),
    ]
    return graph.call_function(torch.stack, (turned, -1))


def _column(value: Any) -> tuple[Node, Node, int] | None:
    """(matrices, pairs, number) of matrices[..., number] * pairs[..., number]."""
    found = forms.operation(value)
    if found is None or found.name != "mul":
        return None
    for one, other in (found.args, found.args[::-1]):
        matrices, pairs = (_source_and_number(each) for each in (one, other))
        if matrices is None or pairs is None or matrices[1] != pairs[1]:
            continue
        if tuple(value_of(matrices[0]).shape[-2:]) == (2, 2):
            return (*matrices[:1], *pairs)
    return None


def _source_and_number(node: Any) -> tuple[Node, int] | None:
    """Of x[..., number]."""
    if not operations.is_tensor(node) or function_name(node) != "getitem":
        return None
    source, index = node.args
    whole = isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis
    if not whole or type(index[1]) is not int or not operations.is_tensor(source):
        return None
    return source, index[1]


def _are_pairs(node: Node) -> bool:
    """x.reshape(*x.shape[:-1], -1, 1, 2)"""
    source = node.args[0] if node.args else None
    if function_name(node) not in ("view", "reshape", "unflatten"):
        return False
    if not operations.is_tensor(source) or value_of(source).dtype != value_of(node).dtype:
        return False
    before, after = value_of(source).shape, value_of(node).shape
    if len(after) != len(before) + 2 or tuple(after[-2:]) != (1, 2):
        return False
    return pytorch.surely_equal(before[:-1], after[:-3])


def _are_rotations(node: Any) -> bool:
    """Whether the last two dimensions are [[cos, -sin], [sin, cos]] of some angle."""
    if not operations.is_tensor(node) or not node.op.startswith("call"):
        return False
    name = function_name(node)
    if name in ("unsqueeze", *operations.CASTS) or operations.source_of_cast(node) is not None:
        kept = name != "unsqueeze" or _keeps_last_two(node)
        return kept and _are_rotations(node.args[0])
    found = forms.operation(node)
    if found is not None and found.name == "cat":
        return found.args[1] < -2 and all(map(_are_rotations, found.args[0]))
    if name == "getitem" and found is not None and found.name == "unsqueeze":
        return _keeps_last_two(node) and _are_rotations(node.args[0])
    return _is_split(node, name) and _are_four(node.args[0])


def _keeps_last_two(node: Node) -> bool:
    found = forms.operation(node)
    return found is not None and found.name == "unsqueeze" and found.args[1] < -2


def _is_split(node: Node, name: str) -> bool:
    """A view of the last dimension of 4 as 2 x 2."""
    source = node.args[0]
    if not operations.is_tensor(source) or name not in ("view", "reshape", "unflatten"):
        return False
    before, after = value_of(source).shape, value_of(node).shape
    if before[-1:] != (4,) or after[-2:] != (2, 2) or len(after) != len(before) + 1:
        return False
    return pytorch.surely_equal(before[:-1], after[:-2])


def _are_four(node: Node) -> bool:
    """stack([cos, -sin, sin, cos], -1)"""
    found = forms.operation(node)
    if found is None or found.name != "stack" or found.args[1] != -1 or len(found.args[0]) != 4:
        return False
    cos, minus_sin, sin, other_cos = map(forms.operation, found.args[0])
    negated = minus_sin is not None and minus_sin.name == "neg" and minus_sin.args[0]
    other_sin = forms.operation(negated) if isinstance(negated, Node) else None
    angles = []
    for each, name in ((cos, "cos"), (other_cos, "cos"), (sin, "sin"), (other_sin, "sin")):
        if each is None or each.name != name:
            return False
        angles.append(each.args[0])
    return all(angle is angles[0] for angle in angles)
