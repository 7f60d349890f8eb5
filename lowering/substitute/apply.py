"""Finds the patterns in a graph, and decides for each place whether it is replaced."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import dataclasses
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from opaq import call_site

from .. import options, record
from ..compat.inductor import inductor
from ..compat.pytorch import pytorch
from ..record import Substitution
from . import (
    local_writes,
    masks,
    measured,
    modes,
    normal,
    operations,
    packages,
    padding,
    rewrite,
    searched,
)
from .match import Match, matches
from .nodes import Nodes
from .operations import value_of
from .pattern import KEEPS, LARGE, READ_DTYPE, RESULT_DTYPE, Pattern, patterns

_collecting: contextvars.ContextVar[list[Substitution] | None] = contextvars.ContextVar(
    "opaq_substitutions", default=None
)
_ONLY_AT_RUN_TIME = "whether the op may stand there depends on values, known only when it runs"


@contextlib.contextmanager
def collected() -> Iterator[list[Substitution]]:
    """What is found in the block is put into the list, and into no report."""
    found: list[Substitution] = []
    token = _collecting.set(found)
    try:
        yield found
    finally:
        _collecting.reset(token)


def apply(graph_module: GraphModule, wanted: Sequence[str], packaged: bool = False) -> None:
    """Changes a graph and its subgraphs in place; one in which nothing is replaced, and no mask is
    left out, stays as it was. wanted: the option "substitute". packaged: the graph goes into a
    package."""
    if list(wanted) == ["none"]:
        return
    with pytorch.unseen_by_saved_tensor_hooks():
        _apply_all(graph_module, wanted, packaged)


def _apply_all(graph_module: GraphModule, wanted: Sequence[str], packaged: bool) -> None:
    chosen = [each for name, each in patterns.items() if "all" in wanted or name in wanted]
    found: list[Substitution] = []
    written = _written_by_callers(graph_module)
    for module in graph_module.modules():
        if isinstance(module, GraphModule):
            _give_examples(module)
            as_it_was = _copied(module.graph)
            # In which modes a subgraph is called is not known.
            changed = module is graph_module and modes.remove(module.graph)
            changed |= normal.by_place(module.graph) | local_writes.remove(module.graph)
            better = masks.remove(module.graph)
            changed |= normal.rewritten(module.graph)
            nodes = Nodes(module.graph, module in written)
            places: list[tuple[Substitution, set[Node]]] = []
            for pattern in chosen:
                places += _apply(nodes, pattern, pattern.name in wanted, packaged)
            # a part of what another pattern has replaced is no place of its own
            replaced = [region for each, region in places if each.applied]
            found += [
                each
                for each, region in places
                if each.applied or not any(region <= other for other in replaced)
            ]
            if better or replaced:
                module.graph.lint()
                module.recompile()
            elif changed:
                module.graph = as_it_was
    listed = _collecting.get()
    if listed is None:
        record.add_substitutions(found)
    else:
        listed += found


def _copied(graph: Graph) -> Graph:
    """With what others, such as Dynamo, have noted on its nodes."""
    made = copy.deepcopy(graph)
    for node, new in zip(graph.nodes, made.nodes, strict=True):
        known = vars(new)
        known.update({name: value for name, value in vars(node).items() if name not in known})
    return made


def _written_by_callers(module: GraphModule) -> set[torch.nn.Module]:
    """The graphs below one, such as those of checkpointed parts, whose inputs or results are
    written to after their call."""
    found: set[torch.nn.Module] = set()
    writes: list[Node] = []
    for node in reversed(module.graph.nodes):
        called = [each for argument in node.args if (each := _graph_of(module, argument))]
        if not called:
            if operations.may_write(node):
                writes.append(node)
            continue
        memory = set[int]().union(*map(operations.memory_of, (node, *node.all_input_nodes)))
        written = any(
            operations.writes_to(writer, {each})
            and not memory.isdisjoint(operations.memory_of(each))
            for writer in writes
            for each in writer.all_input_nodes
        )
        for each in called:
            found |= set(each.modules()) if written else _written_by_callers(each)
    return found


def _graph_of(module: GraphModule, argument: Any) -> GraphModule | None:
    if not isinstance(argument, Node) or argument.op != "get_attr":
        return None
    value = operator.attrgetter(argument.target)(module)
    return value if isinstance(value, GraphModule) else None


def _give_examples(module: GraphModule) -> None:
    """Example values of the parameters and buffers that the graph of an exported program reads."""
    inputs = [value_of(node) for node in module.graph.nodes if node.op == "placeholder"]
    for node in module.graph.nodes:
        if node.op == "get_attr" and value_of(node) is None:
            value = operator.attrgetter(node.target)(module)
            if isinstance(value, torch.Tensor):
                node.meta["example_value"] = inductor.fake_beside(value, inputs)


def _apply(
    nodes: Nodes, pattern: Pattern, everywhere: bool, packaged: bool
) -> list[tuple[Substitution, set[Node]]]:
    """Replaces a pattern in a graph; returns what was found, with the nodes that compute it.
    everywhere: also where it was not measured to be faster."""
    applied: list[tuple[Substitution, set[Node]]] = []
    # by results, in whichever order; with all that computes them
    refused: dict[frozenset[Node], tuple[Substitution, set[Node]]] = {}
    for number, spelling in enumerate(pattern.graphs()):
        for match in matches(spelling, nodes, pattern.casts_matter, in_order=pattern.exact):
            if any(match.arguments.get(name) == 0 for name in pattern.nonzero):
                continue
            place = call_site.of_trace(match.roots[0].meta.get("stack_trace"))
            try:
                reason, gain = _replace(nodes, match, pattern, number, everywhere, packaged)
            except rewrite.Refused as error:
                left_as_it_is = Substitution(pattern.name, place, False, str(error))
                refused[frozenset(match.roots)] = left_as_it_is, match.region
            else:
                replaced = Substitution(pattern.name, place, True, reason, gain)
                applied.append((replaced, match.region))
    # what another spelling has replaced a part of, is no place any more
    left = [each for each in refused.values() if all(node in nodes for node in each[1])]
    # a part of a place that is left is not a place of its own
    return applied + [each for each in left if not any(each[1] < other for _, other in left)]


def _replace(
    nodes: Nodes,
    match: Match,
    pattern: Pattern,
    spelling: int,
    everywhere: bool,
    packaged: bool,
) -> tuple[str, float | None]:
    """(grounds, gain). spelling: the number of the one that was found. Raises Refused."""
    match = dataclasses.replace(match, arguments={**pattern.defaults(spelling), **match.arguments})
    if pattern.by_name and not everywhere:
        raise rewrite.Refused(f"{pattern.by_name}: ask for it by name")
    rewrite.check_uses(match)
    at = rewrite.anchor(match, nodes)
    rewrite.check_writes_after(match, nodes, at)
    padded: list[str] = []
    leaves_neighbours = not (everywhere or pattern.alone or _saves_more(pattern, match))
    if leaves_neighbours:
        _check_neighbours(match, pattern, nodes)
        padded = [name for name in pattern.streamed if padding.is_padded(match.arguments.get(name))]
    mark = at.prev
    try:
        if not pattern.casts_matter:
            match = rewrite.narrowed(nodes, match, at)
        if pattern.rounds_products:
            rewrite.check_products(match)
        match = dataclasses.replace(match, arguments={**match.arguments, **_told(pattern, match)})
        values = {name: value_of(value) for name, value in match.arguments.items()}
        if refusal := pattern.when(values):
            raise rewrite.Refused(refusal)
        rewrite.check_filled(match)
        training = _is_trained(values)
        gain, why = _gain(pattern, values, training), ""
        tune = options.current().tune
        if gain is None and not everywhere and tune != "off":
            found = searched.gain(pattern, spelling, values, training, tune == "search")
            gain, why = (found, "") if isinstance(found, float) else (None, found)
        if not everywhere:
            _check_gain(pattern, values, gain, why)
        kept = {name: match.arguments[name] for name in padded}

        def check(added: Sequence[Node], results: Sequence[Node]) -> None:
            padding.check(kept, added)
            if packaged:
                packages.check(added)
            if leaves_neighbours:
                _check_narrowing(match, pattern, results)

        put = pattern.replacement, pattern.arguments, pattern.exact
        rewrite.put(nodes, match, mark, at, *put, check)
    except Exception as error:
        rewrite.take_back(nodes.graph, mark, at)
        if pytorch.is_data_dependent(error):
            raise rewrite.Refused(_ONLY_AT_RUN_TIME) from error
        raise
    if everywhere:
        return "it was asked for by name", gain
    return f"measured: {gain:.2f} times as fast", gain


def _is_trained(values: Mapping[str, Any]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in values.values()
    )


def _told(pattern: Pattern, match: Match) -> dict[str, str]:
    """By the parameters that ask: the dtype of the first result, in which dtype the others are
    computed from the last one, and why large arguments stay in memory until the backward pass
    anyway."""
    found = {}
    if RESULT_DTYPE in pattern.arguments:
        found[RESULT_DTYPE] = _name(value_of(match.roots[0]).dtype)
    if READ_DTYPE in pattern.arguments:
        found[READ_DTYPE] = _name(_dtype_read(match.roots[-1], match.region))
    for name in pattern.arguments:
        argument = match.arguments.get(name.removeprefix(KEEPS))
        if name.startswith(KEEPS) and isinstance(argument, Node):
            value = value_of(argument)
            asked = _is_trained({name: value}) and _elements(argument) * value.itemsize >= LARGE
            found[name] = operations.why_kept(argument) if asked else ""
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype_read(node: Node, region: Collection[Node]) -> torch.dtype:
    """Of those in which the values of a node are read in a region, after casts, the widest."""
    dtype: torch.dtype = value_of(node).dtype
    found = []
    for reader in node.users:
        if reader not in region:
            continue
        if not operations.shows_through(reader):
            return dtype
        read = _dtype_read(reader, region)
        found.append(dtype if operations.loses_nothing(dtype, read) else read)
    return max(found, key=operations.digits, default=dtype)


def _saves_more(pattern: Pattern, match: Match) -> bool:
    """Whether the op saves more than one kernel for the pattern and its neighbours would."""
    values = {name: value_of(value) for name, value in match.arguments.items()}
    return inductor.size_hint(pattern.saves(values, _is_trained(values))) > 0


def _check_neighbours(match: Match, pattern: Pattern, nodes: Nodes) -> None:
    """Raises Refused where Inductor would compute the pattern in one kernel with what comes before
    or after it."""
    for name in pattern.streamed:
        node = match.arguments.get(name)
        if operations.is_fused(node):
            raise rewrite.Refused(
                f"Inductor computes `{name}` ({node.name}) in the same kernel, which saves more"
            )
    large = _large(match, pattern)
    for reader in operations.readers(large, operations.shows_through):
        if reader in match.region or operations.shows_through(reader):
            continue
        if not operations.is_fused(reader):
            continue
        if not operations.waits_for_others(reader, large, nodes.comes_before):
            raise rewrite.Refused(
                f"Inductor computes what reads the result ({reader.name}) in the same kernel, "
                "which saves more"
            )


def _check_narrowing(match: Match, pattern: Pattern, results: Sequence[Node]) -> None:
    """Raises Refused where Inductor would write a result with fewer bits at once, since it is read
    so, also by a product under autocast."""
    large = _large(match, pattern)
    for root, result in zip(match.roots, results):
        size = value_of(result).itemsize
        for reader in operations.readers([root] if root in large else [], operations.rearranges):
            if operations.narrows(reader, size) and reader not in match.region:
                name = _name(value_of(reader).dtype)
                raise rewrite.Refused(
                    f"Inductor computes the result in {name} at once, in which it is read "
                    f"({reader.name}), which saves more"
                )


def _large(match: Match, pattern: Pattern) -> list[Node]:
    """Results; to read a small one once more, such as a loss, costs nothing."""
    sizes = [_elements(match.arguments.get(name)) for name in pattern.streamed]
    return [root for root in match.roots if _elements(root) * 64 >= max(sizes, default=0)]


def _elements(node: Any) -> int:
    value = value_of(node)
    return inductor.size_hint(value.numel()) if isinstance(value, torch.Tensor) else 0


def _first(pattern: Pattern, values: Mapping[str, Any]) -> torch.Tensor:
    """The first tensor of floating-point numbers, by whose dtype measurements are looked up; of
    integers, where there is none."""
    given = [values[name] for name in pattern.arguments]
    tensors = [each for each in given if isinstance(each, torch.Tensor)]
    return next((each for each in tensors if each.is_floating_point()), tensors[0])


def _gain(pattern: Pattern, values: Mapping[str, Any], training: bool) -> float | None:
    points = measured.read(pattern.measurements) if pattern.measurements else ()
    first = _first(pattern, values)
    if first.device.type != "cuda" or not points:
        return None
    major, minor = torch.cuda.get_device_capability(first.device)
    arch, dtype = f"sm_{major}{minor}", str(first.dtype).removeprefix("torch.")
    alike = measured.alike(points, arch, dtype, training, pattern.form(values))
    rows, columns = map(inductor.size_hint, pattern.sizes(values))
    return measured.gain(alike, rows, columns)


def _check_gain(pattern: Pattern, values: Mapping[str, Any], gain: float | None, why: str) -> None:
    """why: nothing is known."""
    rows, columns = pattern.sizes(values)
    what = f"{rows} x {columns} values on {_first(pattern, values).device}"
    if form := pattern.form(values):
        what += f" ({form})"
    if gain is None:
        raise rewrite.Refused(f"it was not measured for {what}{': ' if why else ''}{why}")
    if gain < measured.FASTER:
        raise rewrite.Refused(f"it is not faster for {what}: {gain:.2f} times as fast")
