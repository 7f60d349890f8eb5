"""What is known of the nodes of a graph, kept while the graph changes: large models have thousands
of nodes, which are looked at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.fx import Graph, Node

from . import forms, operations
from .calls import Operation


class Nodes:
    def __init__(self, graph: Graph, written_outside: bool = False) -> None:
        """written_outside: what calls this graph writes to its inputs or results afterwards."""
        self.graph = graph
        self.written_outside = written_outside
        self._place: dict[Node, float] = {}
        self._writes = operations.how_many_before(graph, operations.may_write)
        self._writers = [node for node in graph.nodes if operations.may_write(node)]
        self._draws = operations.how_many_before(graph, operations.may_draw)
        self._operations: dict[Node, Operation | None] = {}
        self._named: dict[str, list[Node]] = {}
        self._transformed = operations.transformed(graph)
        self._put: set[Node] = set()
        for number, node in enumerate(graph.nodes):
            self._place[node] = number
            if (found := self.operation(node)) is not None:
                self._named.setdefault(found.name, []).append(node)

    def operation(self, node: Any) -> Operation | None:
        if not isinstance(node, Node):
            return None
        if node not in self._operations:
            self._operations[node] = forms.operation(node)
        return self._operations[node]

    def named(self, *names: str) -> list[Node]:
        """Those whose operation has one of these names, in order."""
        found = [node for name in names for node in self._named.get(name, ()) if node in self]
        return found if len(names) == 1 else sorted(found, key=self._place.__getitem__)

    def __contains__(self, node: Node) -> bool:
        """Whether the graph still has the node."""
        return node in self._place

    def comes_before(self, one: Node, other: Node) -> bool:
        return self._place[one] < self._place[other]

    def distance(self, one: Node, other: Node) -> float:
        return abs(self._place[one] - self._place[other])

    def first(self, nodes: Iterable[Node]) -> Node:
        return min(nodes, key=self._place.__getitem__)

    def last(self, nodes: Iterable[Node]) -> Node:
        return max(nodes, key=self._place.__getitem__)

    def backwards(self, nodes: Iterable[Node]) -> list[Node]:
        return sorted(nodes, key=self._place.__getitem__, reverse=True)

    def same_memory(self, one: Node, other: Node) -> bool:
        """Whether nothing is written between the two."""
        return self._writes[one] == self._writes[other]

    def writers_after(self, at: Node) -> list[Node]:
        """What may write to memory after a node or at it, in order."""
        return [node for node in self._writers[self._writes[at] :] if node in self]

    def may_be_drawn_at(self, node: Node, at: Node) -> bool:
        """Whether the random numbers of a node may be drawn before `at` instead: nothing in between
        draws any."""
        return not operations.is_random(node) or abs(self._draws[at] - self._draws[node]) <= 1

    def is_transformed(self, node: Node) -> bool:
        """Whether it is computed inside torch.func.grad, jvp, vmap, ..."""
        return node in self._transformed

    def before_exact_casts(self, node: Node, at: Node) -> tuple[Node, set[Node]]:
        """(what a node has the values of, the casts in between that lose nothing, and products with
        1). Nothing is written between these and `at`: what is written after a cast is not in its
        result.
        """
        passed: set[Node] = set()
        while (source := operations.has_values_of(node)) is not None:
            if not (operations.is_exact_cast(node, source) and self.same_memory(node, at)):
                break
            passed.add(node)
            node = source
        return node, passed

    def is_put(self, node: Node) -> bool:
        """Whether it is the op of a pattern, or a part of what is put there with it."""
        return node in self._put

    def added(self, nodes: Iterable[Node], at: Node) -> None:
        """Nodes that write nothing were put before `at`."""
        for node in nodes:
            self._place[node], self._writes[node] = self._place[at] - 0.5, self._writes[at]
            self._draws[node] = self._draws[at]
            self._put.add(node)

    def replace(self, old: Node, new: Node) -> None:
        """Has all that reads `old` read `new`."""
        # Parts and pairs of columns are operations on what lies below their views.
        for reader in operations.readers([old], operations.is_looked_through):
            self._operations.pop(reader, None)
        old.replace_all_uses_with(new)

    def erase(self, node: Node) -> None:
        self.graph.erase_node(node)
        del self._place[node]
