"""Finds the places of a graph where it computes what a spelling of a pattern does.

A spelling is a graph too. Its inputs stand for any tensor or number. Casts between floating dtypes
inside the pattern are passed over, since the op that is put there rounds once, at its end; not so
where the pattern says that dtypes matter.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from . import forms, operations, products
from .nodes import Nodes
from .operations import value_of
from .products import Factor


@dataclasses.dataclass(frozen=True)
class Match:
    roots: tuple[Node, ...] = ()  # the results of the pattern
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # by name of the input
    nodes: Mapping[Node, Node] = dataclasses.field(default_factory=dict)  # by node of the spelling
    passed: frozenset[Node] = frozenset()  # casts, products inside a product

    @property
    def region(self) -> set[Node]:
        """All nodes that compute the results from the arguments."""
        return {*self.nodes.values(), *self.passed}


def matches(
    spelling: Nodes, graph: Nodes, casts_matter: bool = False, in_order: bool = False
) -> Iterator[Match]:
    """One for each node that computes the first result, in order. The other results are the nearest
    nodes that go with it. The graph may be changed between two matches. in_order: the factors of
    products are as the spelling has them, but for their order in a * b; so they are, too, where
    casts matter."""
    wanted = results_of(spelling)
    candidates = [_candidates(result, spelling, graph) for result in wanted]

    def completed(found: Match) -> Iterator[Match]:
        number = len(found.roots)
        if number == len(wanted):
            yield found
            return
        near = [node for node in candidates[number] if node in graph and node not in found.roots]
        for node in sorted(near, key=lambda node: graph.distance(found.roots[0], node)):
            yield from extended(found, node)

    def extended(found: Match, node: Node) -> Iterator[Match]:
        """The matches in which the next result is this node."""
        matcher = _Matcher(spelling, graph, node, casts_matter, in_order)
        for more in matcher.matched(wanted[len(found.roots)], node, found):
            yield from completed(dataclasses.replace(more, roots=(*found.roots, node)))

    for first in candidates[0]:
        if first in graph:
            yield from itertools.islice(extended(Match(), first), 1)


def results_of(spelling: Nodes) -> tuple[Any, ...]:
    results = next(node for node in spelling.graph.nodes if node.op == "output").args[0]
    return results if isinstance(results, tuple) else (results,)


def _candidates(result: Node, spelling: Nodes, graph: Nodes) -> list[Node]:
    operation = spelling.operation(result)
    if operation is None:
        return []
    return graph.named(*(products.NAMES if products.is_one(operation) else (operation.name,)))


@dataclasses.dataclass(frozen=True)
class _Matcher:
    spelling: Nodes
    graph: Nodes
    result: Node  # of the graph, that is looked at
    casts_matter: bool
    in_order: bool

    def matched(self, pattern: Any, value: Any, found: Match) -> Iterator[Match]:
        """The ways in which `value` of the graph is what `pattern` of the spelling computes."""
        if isinstance(pattern, tuple):
            if isinstance(value, (tuple, list)) and len(value) == len(pattern):
                yield from self._all_matched(pattern, tuple(value), found)
            return
        if not isinstance(pattern, Node):
            same = type(pattern) is type(value) or {type(pattern), type(value)} == {int, float}
            if same and pattern == value:
                yield found
            return
        pattern = operations.without_casts(pattern)[0]
        if pattern.op == "placeholder":
            yield from self._bound(pattern, value, found)
            return
        value, passed = (
            (value, frozenset()) if self.casts_matter else operations.without_casts(value)
        )
        known = found.nodes.get(pattern)
        if known is value:
            yield dataclasses.replace(found, passed=found.passed | passed)
            return
        if known is not None and not self._may_be_repeated(value):
            return
        wanted, given = self.spelling.operation(pattern), self.graph.operation(value)
        if wanted is None or given is None:
            return
        if given.name == "floats" != wanted.name and not self.casts_matter:
            # of integers or truth values: what takes them computes with floating-point numbers
            found = dataclasses.replace(found, passed=found.passed | passed | {value})
            yield from self.matched(pattern, given.args[0], found)
            return
        start = dataclasses.replace(
            found,
            nodes={**found.nodes, pattern: value} if known is None else found.nodes,
            passed=found.passed | passed | (set() if known is None else {value}),
        )
        if wanted.name == given.name and len(wanted.args) == len(given.args):
            yield from self._all_matched(wanted.args, given.args, start)
            if wanted.name in forms.COMMUTATIVE:
                yield from self._all_matched(wanted.args, given.args[::-1], start)
        if self.in_order or self.casts_matter:
            return
        if products.is_one(wanted) and products.is_one(given):
            yield from self._product_matched(pattern, value, start)
        if (source := operations.times_one(value)) is not None:
            passed |= {value}
            yield from self.matched(
                pattern, source, dataclasses.replace(found, passed=found.passed | passed)
            )

    def _product_matched(self, pattern: Node, value: Node, found: Match) -> Iterator[Match]:
        """With the factors in any order, however they are associated."""
        wanted = products.of_spelling(self.spelling, pattern)
        if wanted is None:
            return
        # Those that are computed first: an input stands for anything.
        factors = sorted(wanted.factors, key=lambda each: _is_input(each.value))
        for given in products.ways(self.graph, value, len(factors)):
            start = dataclasses.replace(found, passed=found.passed | given.inside)
            yield from self._factors_matched(factors, given.factors, start)

    def _factors_matched(
        self, wanted: Sequence[Factor], given: Sequence[Factor], found: Match
    ) -> Iterator[Match]:
        if not wanted:
            yield found
            return
        for number, factor in enumerate(given):
            if factor.divides == wanted[0].divides:
                for more in self.matched(wanted[0].value, factor.value, found):
                    left = (*given[:number], *given[number + 1 :])
                    yield from self._factors_matched(wanted[1:], left, more)

    def _may_be_repeated(self, value: Any) -> bool:
        """Whether what is computed twice has equal values: models write `x.mean(-1)` twice."""
        return isinstance(value, Node) and not operations.is_random(value)

    def _all_matched(
        self, patterns: tuple[Any, ...], values: tuple[Any, ...], found: Match
    ) -> Iterator[Match]:
        if not patterns:
            yield found
            return
        for first in self.matched(patterns[0], values[0], found):
            yield from self._all_matched(patterns[1:], values[1:], first)

    def _bound(self, pattern: Node, value: Any, found: Match) -> Iterator[Match]:
        """Binds an input of the spelling; nothing if it stands for something else already."""
        name = pattern.name
        if not isinstance(value_of(pattern), torch.Tensor):
            example = value_of(pattern)
            alike = (
                type(value) is type(example)
                if isinstance(example, (str, bool))
                else _is_number(value_of(value))
            )
            if alike and found.arguments.get(name, value) == value:
                yield dataclasses.replace(found, arguments={**found.arguments, name: value})
            return
        if not operations.is_like(value, value_of(pattern)):
            return
        source, passed = value, set()
        if not self.casts_matter:
            source, passed = self.graph.before_exact_casts(value, self.result)
        known = found.arguments.get(name)
        if known is None:
            arguments = {**found.arguments, name: source}
            yield dataclasses.replace(found, arguments=arguments, passed=found.passed | passed)
        elif known is source or (
            self.graph.same_memory(known, source) and same_value(known, source)
        ):
            yield dataclasses.replace(found, passed=found.passed | passed)


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float, torch.SymInt, torch.SymFloat))
    return number and not isinstance(value, bool)


def _is_input(value: Any) -> bool:
    value = operations.without_casts(value)[0]
    return isinstance(value, Node) and value.op == "placeholder"


def _may_be_same(node: Node) -> bool:
    if operations.rearranges(node) or operations.source_of_cast(node) is not None:
        return True
    return operations.is_tensor(node) and operations.function_name(node) in ("cos", "sin")


def same_value(one: Any, other: Any) -> bool:
    """Whether two nodes are one, or the same view, part, cast, cosine or sine of one."""
    if one is other:
        return True
    if not (_may_be_same(one) and _may_be_same(other)):
        return False
    if one.target != other.target or one.kwargs != other.kwargs:
        return False
    return len(one.args) == len(other.args) and all(
        same_value(a, b) if isinstance(a, Node) and isinstance(b, Node) else a == b
        for a, b in itertools.zip_longest(one.args, other.args)
    )
