"""Puts the op of a pattern in the place of what was found in a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node, Tracer

from . import operations
from .match import Match
from .nodes import Nodes
from .operations import value_of


class Refused(Exception):
    """Why a place is left as it is; the text is for the user."""


def anchor(found: Match, nodes: Nodes) -> Node:
    """The node before which the replacement is put: the first result, or what comes right after the
    last argument. Raises Refused.
    """
    at = nodes.first(found.roots)
    arguments = [node for node in found.arguments.values() if isinstance(node, Node)]
    if arguments and not nodes.comes_before(last := nodes.last(arguments), at):
        at = last.next
    readers = [user for root in found.roots for user in root.users if user not in found.region]
    if any(nodes.comes_before(reader, at) for reader in readers):
        raise Refused("a result is used before all arguments are there")
    computed = [node for node in found.region if not operations.is_view(node)]
    if not all(nodes.same_memory(node, at) for node in computed):
        raise Refused("something may be written to memory, or a mode changes, between its parts")
    return at


def check_uses(found: Match) -> None:
    """Raises Refused where values inside the pattern are needed elsewhere, so that they would be
    computed twice."""
    region = found.region
    for node in region - set(found.roots):
        source = operations.source_of_cast(node)
        if operations.is_view(node) or (source and operations.is_exact_cast(node, source)):
            continue
        for user in node.users:
            if user not in region:
                raise Refused(f"{node.name}, a part of it, is used elsewhere ({user.name})")


def narrowing_casts(root: Node, dtype: torch.dtype) -> list[Node]:
    """What converts a result to the dtype of the replacement's. Empty if it has that dtype. Raises
    Refused if something reads it with more digits than the replacement has.
    """
    wide = value_of(root).dtype
    if wide == dtype or operations.loses_nothing(wide, dtype):
        return []
    casts = list(root.users)
    for user in casts:
        if operations.source_of_cast(user) is not root or value_of(user).dtype != dtype:
            name = str(wide).removeprefix("torch.")
            raise Refused(f"{user.name} reads the result in {name}, which the op does not give")
    return casts


def put(
    nodes: Nodes,
    found: Match,
    at: Node,
    replacement: Callable[..., Any],
    names: Sequence[str],
) -> None:
    """Replaces the results of what was found. Raises Refused, and changes nothing, if the
    replacement's results are not those of the graph."""
    graph, mark = nodes.graph, at.prev
    with graph.inserting_before(at):
        try:
            given = [_narrow(nodes, found.arguments[name], at) for name in names]
            results = _results(graph, replacement, given, found.roots[0])
            casts = [
                narrowing_casts(root, value_of(result).dtype)
                for root, result in zip(found.roots, results)
            ]
            for root, result in zip(found.roots, results):
                if value_of(root).shape != value_of(result).shape:
                    raise Refused("the op gives results of another shape")
        except Exception as error:
            for node in reversed(_between(mark, at)):
                graph.erase_node(node)
            if isinstance(error, Refused):
                raise
            raise Refused(f"the replacement fails: {type(error).__name__}: {error}") from error
        for root, result, narrow in zip(found.roots, results, casts):
            for cast in narrow:
                nodes.replace(cast, result)
                nodes.erase(cast)
            if root.users:
                dtype = value_of(root).dtype
                if value_of(result).dtype != dtype:
                    result = _call(graph, "call_method", "to", (result, dtype), {}, root)
                nodes.replace(root, result)
    nodes.added(_between(mark, at), at)
    for node in nodes.backwards(found.region):
        if not node.users:
            nodes.erase(node)


def _between(first: Node, last: Node) -> list[Node]:
    found = []
    while (first := first.next) is not last:
        found.append(first)
    return found


def _narrow(nodes: Nodes, value: Any, at: Node) -> Any:
    """An argument without casts to wider dtypes below its views."""
    if not operations.is_view(value) or value not in nodes:
        return value
    source = value.args[0]
    if not operations.is_tensor(source):
        return value
    inner = source
    while (below := operations.source_of_cast(inner)) is not None and (
        operations.is_exact_cast(inner, below) and nodes.same_memory(inner, at)
    ):
        inner = below
    inner = _narrow(nodes, inner, at)
    if inner is source:
        return value
    try:
        args = (inner, *value.args[1:])
        return _call(nodes.graph, value.op, value.target, args, dict(value.kwargs), value)
    except (RuntimeError, ValueError):  # the cast also made it dense, which the view needs
        return value


def _results(
    graph: Graph, function: Callable[..., Any], given: Sequence[Any], like: Node
) -> tuple[Node, ...]:
    made = _copied(graph, function, given, like)
    if not isinstance(made, Node) or operations.is_tensor(made):
        return made if isinstance(made, tuple) else (made,)
    return tuple(
        _call(graph, "call_function", operator.getitem, (made, number), {}, like)
        for number in range(len(value_of(made)))
    )


def _copied(graph: Graph, function: Callable[..., Any], given: Sequence[Any], like: Node) -> Any:
    """What function(*given) returns, called in the graph."""
    inner = Tracer().trace(function)
    results: dict[Node, Any] = {}
    arguments = iter(given)
    for node in inner.nodes:
        if node.op == "placeholder":
            results[node] = next(arguments)
        elif node.op == "output":
            return torch.fx.map_arg(node.args[0], lambda each: results[each])
        else:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda each: results[each])
            results[node] = _call(graph, node.op, node.target, args, kwargs, like)
    raise AssertionError("a graph has an output")


def _call(
    graph: Graph, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: Node
) -> Node:
    """A new node, with an example value, that comes from the same line of the user's code."""
    examples, named = torch.fx.map_arg((args, kwargs), value_of)
    if kind == "call_method":
        example = getattr(examples[0], target)(*examples[1:], **named)
    else:
        example = target(*examples, **named)
    node = graph.create_node(kind, target, args, kwargs)
    node.meta = {key: like.meta[key] for key in _PLACES if key in like.meta}
    node.meta["example_value"] = example
    return node


_PLACES = ("stack_trace", "nn_module_stack", "source_fn_stack")
