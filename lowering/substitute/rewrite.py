"""Puts the op of a pattern in the place of what was found in a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer

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
    if nodes.is_transformed(at):
        raise Refused(
            "it is inside a transform of torch.func (grad, jvp, vmap), which may need derivatives "
            "that the op does not have"
        )
    arguments = [node for node in found.arguments.values() if isinstance(node, Node)]
    if not set(found.roots).isdisjoint(arguments):
        raise Refused("a result is an argument of the others")
    if arguments and not nodes.comes_before(last := nodes.last(arguments), at):
        at = last.next
    readers = [user for root in found.roots for user in root.users if user not in found.region]
    if any(nodes.comes_before(reader, at) for reader in readers):
        raise Refused("a result is used before all arguments are there")
    computed = [node for node in found.region if not operations.is_view(node)]
    if not all(nodes.same_memory(node, at) for node in computed):
        raise Refused("something may be written to memory, or a mode changes, between its parts")
    if not all(nodes.may_be_drawn_at(node, at) for node in found.region):
        raise Refused("other random numbers may be drawn between its parts")
    return at


def check_uses(found: Match) -> None:
    """Raises Refused where values inside the pattern are needed elsewhere, so that they would be
    computed twice."""
    region, roots = found.region, set(found.roots)

    def shows(node: Node) -> Node | None:
        """What a node is a view or an exact cast of."""
        source = node.args[0] if operations.rearranges(node) else operations.has_values_of(node)
        exact = source and (operations.rearranges(node) or operations.is_exact_cast(node, source))
        return source if exact else None

    for node in region - roots:
        source: Node | None = node
        while source in region - roots and (below := shows(source)) is not None:
            source = below
        if source not in region - roots:  # an argument or a result, in another shape or dtype
            continue
        for user in node.users:
            if user in region or operations.reads_sizes(user):
                continue
            if operations.is_needed(user, region):
                raise Refused(f"{node.name}, a part of it, is used elsewhere ({user.name})")


def check_writes_after(found: Match, nodes: Nodes, at: Node) -> None:
    """Raises Refused where the memory of an argument or a result is written to after `at`, if there
    is a backward pass: the op may keep them for it, where PyTorch's functions do not need them."""
    arguments = [node for node in found.arguments.values() if operations.is_tensor(node)]
    if not torch.is_grad_enabled() or not any(value_of(each).requires_grad for each in arguments):
        return
    kept = [("an argument", each, operations.memory_of(each)) for each in arguments]
    kept += [("a result", each, operations.memory_of(each)) for each in found.roots]
    if nodes.written_outside:
        outside = set[int]().union(*map(operations.memory_of, _inputs_and_results(nodes)))
        if any(not memory.isdisjoint(outside) for _, _, memory in kept):
            raise Refused("the graph that calls this one writes to what the op may keep")
    for writer in nodes.writers_after(at):
        for written in writer.all_input_nodes:
            if not operations.writes_to(writer, {written}):
                continue
            for kind, each, memory in kept:
                if written is each or not memory.isdisjoint(operations.memory_of(written)):
                    raise Refused(
                        f"{writer.name} writes to {kind} ({each.name}) afterwards, which the op "
                        "may need for its gradient"
                    )


def _inputs_and_results(nodes: Nodes) -> list[Node]:
    inputs = [node for node in nodes.graph.nodes if node.op == "placeholder"]
    return [*inputs, *nodes.graph.output_node().all_input_nodes]


def check_products(found: Match) -> None:
    """Raises Refused where a matrix product inside the pattern is computed in other dtypes than the
    arguments have: under autocast, or of numbers that were cast to a wider one for it."""
    given = list(filter(operations.is_tensor, found.arguments.values()))
    for node in filter(operations.is_product, found.region):
        tensors = map(value_of, (*given, *node.all_input_nodes, node))
        dtypes = {each.dtype for each in tensors if each.is_floating_point()}
        if len(dtypes) > 1:
            names = " and ".join(sorted(str(each).removeprefix("torch.") for each in dtypes))
            raise Refused(f"{node.name} is computed in another dtype than it is given in ({names})")


def check_filled(found: Match) -> None:
    """Raises Refused where a new tensor that one number fills has not the shape that the spelling
    gives it, that of another tensor: it broadcasts, or the other one does."""
    for wanted, given in found.nodes.items():
        if operations.function_name(wanted) not in operations.FILLED_LIKE:
            continue
        source = wanted.args[0]
        like = found.nodes.get(source, found.arguments.get(source.name))
        if like is not None and value_of(like).shape != value_of(given).shape:
            raise Refused(f"{given.name} has not the shape of {like.name}")


def check_gradients(roots: Sequence[Node], results: Sequence[Node]) -> None:
    """Raises Refused where only some of the results have gradients in the graph, but the op gives
    them to all."""
    before = [value_of(root).requires_grad for root in roots]
    after = [value_of(result).requires_grad for result in results]
    if any(before) and before != after:
        raise Refused("a result has no gradient, which the op gives it")


def narrowing_casts(
    nodes: Nodes, root: Node, dtype: torch.dtype, region: Collection[Node]
) -> list[Node]:
    """What converts a result to the dtype of the replacement's. Empty if it has that dtype. Raises
    Refused if something but the pattern reads it with more digits than the replacement has.
    """
    wide = value_of(root).dtype
    if wide == dtype or operations.loses_nothing(wide, dtype):
        return []
    casts = [
        user for user in root.users if user not in region or operations.source_of_cast(user) is root
    ]
    for user in casts:
        if operations.source_of_cast(user) is not root or value_of(user).dtype != dtype:
            name = str(wide).removeprefix("torch.")
            raise Refused(f"{user.name} reads the result in {name}, which the op does not give")
        if len(casts) > 1 or not nodes.same_memory(root, user):
            raise Refused("the casts of the result are tensors of their own, or in another mode")
    return casts


def check_layout(nodes: Nodes, root: Node, result: Node) -> None:
    """Raises Refused if the results differ in a way that something can see. An op that stands for a
    spelling takes any strides, as the spelling does."""
    before, after = value_of(root), value_of(result)
    if before.shape != after.shape:
        raise Refused("the op gives results of another shape")
    if before.stride() == after.stride():
        return

    def passes_them_on(reader: Node) -> bool:
        if nodes.is_put(reader) and operations.is_opaque(reader) and root in reader.args:
            args = [after if each is root else each for each in reader.args]
            again = _evaluated(reader.op, reader.target, tuple(args), reader.kwargs)
            return not _laid_out_alike(value_of(reader), again)
        return operations.keeps_strides(reader)

    for reader in operations.readers([root], passes_them_on):
        op = nodes.is_put(reader) and operations.is_opaque(reader)
        if not op and (reader.op == "output" or operations.needs_strides(reader)):
            raise Refused(f"{reader.name} sees that the op lays out its result in another way")


def _laid_out_alike(one: Any, other: Any) -> bool:
    """Whether the tensors that an op gives have the same strides."""
    both = [each if isinstance(each, (tuple, list)) else (each,) for each in (one, other)]
    return [each.stride() for each in both[0]] == [each.stride() for each in both[1]]


def put(
    nodes: Nodes,
    found: Match,
    mark: Node,
    at: Node,
    replacement: Callable[..., Any],
    names: Sequence[str],
    exact: bool,
    check: Callable[[Sequence[Node], Sequence[Node]], None],
) -> None:
    """Replaces the results of what was found by new nodes between `mark` and `at`, where those of
    `narrowed` are. Raises Refused, before anything else is changed, if the replacement's results
    are not those of the graph, or if `check`, which is given the new nodes and results, does."""
    graph = nodes.graph
    with graph.inserting_before(at):
        given = [found.arguments[name] for name in names]
        try:
            results = _results(graph, replacement, given, at, found.roots[0])
        except Exception as error:
            text = str(error).partition("\n")[0]  # PyTorch adds whole stacks to some
            raise Refused(f"the replacement fails: {type(error).__name__}: {text}") from error
        if exact and any(
            value_of(root).dtype != value_of(result).dtype
            for root, result in zip(found.roots, results)
        ):
            raise Refused("the op gives results of other dtypes")
        casts = [
            narrowing_casts(nodes, root, value_of(result).dtype, found.region)
            for root, result in zip(found.roots, results)
        ]
        for root, result in zip(found.roots, results):
            check_layout(nodes, root, result)
        check_gradients(found.roots, results)
        check(between(mark, at), results)
        for root, result, narrow in zip(found.roots, results, casts):
            for cast in narrow:
                nodes.replace(cast, result)
                nodes.erase(cast)
            if root.users:
                dtype = value_of(root).dtype
                if value_of(result).dtype != dtype:
                    result = graph.call_method("to", (result, dtype))
                    complete([result], root)
                nodes.replace(root, result)
    nodes.added(between(mark, at), at)
    for node in nodes.backwards(found.region):
        for user in list(node.users):
            if not user.users and operations.rearranges(user):  # its shape alone was read
                nodes.erase(user)
        if not node.users:
            nodes.erase(node)


def take_back(graph: Graph, mark: Node, at: Node) -> None:
    """Removes what was added between two nodes."""
    for node in reversed(between(mark, at)):
        graph.erase_node(node)


def between(first: Node, last: Node) -> list[Node]:
    """The nodes after the first and before the last."""
    found = []
    while (first := first.next) is not last:
        found.append(first)
    return found


def narrowed(nodes: Nodes, found: Match, at: Node) -> Match:
    """The match with arguments that have no casts to wider dtypes below their views; adds nodes
    before `at`."""
    with nodes.graph.inserting_before(at):
        given = {name: _narrow(nodes, value, at) for name, value in found.arguments.items()}
    return dataclasses.replace(found, arguments=given)


def _narrow(nodes: Nodes, value: Any, at: Node) -> Any:
    if not operations.rearranges(value) or value not in nodes:
        return value
    if not (operations.is_view(value) or nodes.same_memory(value, at)):
        return value  # a copy of what was there before a write
    if any(isinstance(each, torch.dtype) for each in (*value.args, *value.kwargs.values())):
        return value  # it reads the same bits as another dtype
    source = value.args[0]
    if not operations.is_tensor(source):
        return value
    inner = _narrow(nodes, nodes.before_exact_casts(source, at)[0], at)
    if inner is source:
        return value
    args = (inner, *value.args[1:])
    try:
        example = _evaluated(value.op, value.target, args, value.kwargs)
    except (RuntimeError, ValueError):  # the cast also made it dense, which the view needs
        return value
    made = nodes.graph.create_node(value.op, value.target, args, dict(value.kwargs))
    made.meta["example_value"] = example
    complete([made], value)
    return made


def _results(
    graph: Graph, function: Callable[..., Any], given: Sequence[Any], at: Node, like: Node
) -> list[Node]:
    """The results of function(*given), called in the graph before `at`, where nodes are inserted;
    `like` computes the same."""
    before, tracer = at.prev, GraphAppendingTracer(graph)
    made = function(*(Proxy(each, tracer) if isinstance(each, Node) else each for each in given))
    complete(between(before, at), like)
    if isinstance(made, Proxy):
        value = value_of(made.node)
        several = isinstance(value, (tuple, list))
        made = [made[number] for number in range(len(value))] if several else [made]
        complete(between(before, at), like)
    return [each.node for each in made]


def complete(nodes: Sequence[Node], like: Node) -> None:
    """Gives new nodes example values, and the place of `like` in the user's code."""
    for node in nodes:
        for key in _PLACES:
            if key in like.meta:
                node.meta.setdefault(key, like.meta[key])
        if "example_value" not in node.meta:
            node.meta["example_value"] = evaluated(node)


def evaluated(node: Node) -> Any:
    """The value of a node for the example values of its arguments."""
    return _evaluated(node.op, node.target, node.args, node.kwargs)


def _evaluated(kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    examples, named = torch.fx.map_arg((args, kwargs), value_of)
    if kind == "call_method":
        return getattr(examples[0], target)(*examples[1:], **named)
    return target(*examples, **named)


_PLACES = ("stack_trace", "nn_module_stack", "source_fn_stack")
