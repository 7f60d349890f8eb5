"""Products, however their factors are associated: (a * b) * c, a * (b * c), a * c / (1 / b)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from torch.fx import Node

from .calls import Operation
from .nodes import Nodes
from .operations import without_casts

NAMES = ("mul", "div", "reciprocal", "square", "pow")
_MOST = 6  # factors of a spelling
_WAYS = 64  # of dividing a product of the graph into factors, that are tried


@dataclasses.dataclass(frozen=True)
class Factor:
    value: Any  # a node or a number
    divides: bool


@dataclasses.dataclass(frozen=True)
class Product:
    factors: tuple[Factor, ...]
    inside: frozenset[Node] = frozenset()  # products that are multiplied out, and casts around them


def is_one(operation: Operation | None) -> bool:
    """Also a square and a cube."""
    return operation is not None and (
        operation.name in NAMES[:-1] or operation.name == "pow" and operation.args[1] == 3
    )


@functools.cache
def of_spelling(nodes: Nodes, node: Node) -> Product | None:
    """The product with all its factors; None if it has two, or too many. What is computed for other
    readers, too, stays one factor."""

    def opened(value: Any) -> bool:
        return isinstance(value, Node) and len(value.users) == 1

    every = _ways(nodes, Product(_factors(nodes, node, False)), 0, opened, _MOST)
    whole = max(every, key=lambda each: len(each.inside))
    return whole if len(whole.factors) > 2 else None


def ways(nodes: Nodes, node: Node, count: int) -> Iterator[Product]:
    """The ways in which a node of the graph is a product of so many factors."""
    every = _ways(nodes, Product(_factors(nodes, node, False)), 0, lambda value: True, count)
    return (each for each in itertools.islice(every, _WAYS) if len(each.factors) == count)


def _factors(nodes: Nodes, node: Node, divides: bool) -> tuple[Factor, ...]:
    operation = nodes.operation(node)
    assert operation is not None
    if operation.name == "reciprocal":
        return (Factor(operation.args[0], not divides),)
    if operation.name in ("square", "pow"):
        return (Factor(operation.args[0], divides),) * (2 if operation.name == "square" else 3)
    first, second = operation.args
    return Factor(first, divides), _factor(second, divides != (operation.name == "div"))


def _factor(value: Any, divides: bool) -> Factor:
    """x / 2 is x * 0.5, for powers of 2."""
    exact = isinstance(value, (int, float)) and abs(math.frexp(value)[0]) == 0.5
    return Factor(1 / value, False) if exact and divides else Factor(value, divides)


def _ways(
    nodes: Nodes,
    product: Product,
    first: int,
    opened: Callable[[Any], bool],
    most: int,
) -> Iterator[Product]:
    """The product, and what becomes of it by multiplying out some of its factors, from number
    `first` on; each has at most `most` factors."""
    yield product
    for number in range(first, len(product.factors)):
        factor = product.factors[number]
        value, casts = without_casts(factor.value)
        if not is_one(nodes.operation(value)) or not opened(factor.value) or not opened(value):
            continue
        inner = _factors(nodes, value, factor.divides)
        factors = (*product.factors[:number], *inner, *product.factors[number + 1 :])
        if len(factors) <= most:
            inside = product.inside | casts | {value}
            yield from _ways(nodes, Product(factors, inside), number, opened, most)
