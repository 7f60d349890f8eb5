"""Keeps traced graphs: functional, with every copy that a write needs, before Inductor decides
which copies it leaves out.

Only the nodes on which arguments of opaque calls depend are run again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import torch
import torch.fx

from opaq import _runtime, call_site

from .. import copies, options, python_functions, python_wrapper
from ..compat import pytorch
from ..compat.inductor import inductor

# in the meta of a node of Inductor's graph: (number of the kept graph, number of the call in it)
MARK = "opaq_traced_call"


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an opaque op in a kept graph."""

    names: list[str]  # of its arguments
    written: tuple[str, ...]  # of those that it writes to
    # tensors by name (tensors_in): those that share memory in eager have the same number
    groups: dict[str, int]
    partial: frozenset[int]  # indices of the results that may have unwritten elements


@dataclasses.dataclass(frozen=True)
class Step:
    """One node that is run again."""

    node: torch.fx.Node
    call: int | None  # the number of the call, if it calls an opaque op
    runs: bool  # whether running it again gives the same value
    allocates: bool  # its result is memory that was never written
    keeps: bool  # its result is a copy of its argument, unwritten where that is
    last_uses: list[torch.fx.Node]  # nodes that no later step needs


@dataclasses.dataclass(frozen=True)
class KeptGraph:
    module: torch.fx.GraphModule  # owns the nodes
    inputs: list[tuple[int, torch.fx.Node]]  # those that the steps need, with their numbers
    input_count: int
    constants: list[torch.fx.Node]
    calls: list[Call]
    steps: list[Step]  # in order
    copies_inputs: bool  # the compiled graph may write to its inputs before the last call


kept: dict[int, KeptGraph] = {}  # by number; never removed, since generated code refers to them
_numbers = itertools.count()


def install(registered: Container[str]) -> None:
    inductor.before_writes(lambda graph: keep(graph, registered))


def keep(graph: torch.fx.Graph, registered: Container[str]) -> Callable[[], None] | None:
    """Keeps a copy of `graph`. Returns a function to be called when the functional calls have
    become writing ones again: it marks each of them with the number of its call in the kept graph.
    """
    if not options.current().check or not _holds_any(graph, registered):
        return None
    module = inductor.functional_copy(graph, lambda copy: copies.restore_sharing(copy, registered))
    nodes = list(_calls(module.graph, registered))
    number = next(_numbers)
    kept[number] = _kept_graph(module, nodes)

    def mark() -> None:
        now = list(_calls(graph, registered))
        if [node.target for node in now] == [node.target for node in nodes]:
            for index, node in enumerate(now):
                node.meta[MARK] = (number, index)

    return mark


def checked_call(node: torch.fx.Node) -> python_wrapper.CheckedCall | None:
    """The call that is being lowered, for the contract check; None if that is off."""
    if not options.current().check:
        return None
    mark = node.meta.get(MARK)
    return python_wrapper.CheckedCall(
        call_site.of_trace(node.meta.get("stack_trace")), None if mark is None else list(mark)
    )


_ALLOCATIONS = {
    "empty",
    "empty_like",
    "empty_strided",
    "empty_permuted",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "resize",
}
_KEEPS = {"clone", "copy", "copy_", "lift_fresh_copy", "contiguous"}


def _kept_graph(module: torch.fx.GraphModule, calls: list[torch.fx.Node]) -> KeptGraph:
    numbers = {node: number for number, node in enumerate(calls)}
    needed: set[torch.fx.Node] = set()
    steps: list[Step] = []
    for node in reversed(module.graph.nodes):
        if node.op in ("placeholder", "get_attr", "output") or not (
            node in numbers or node in needed or (steps and writes(node.target))
        ):
            continue
        last_uses = [
            *(other for other in node.all_input_nodes if other not in needed),
            *([] if node in needed else [node]),
        ]
        needed.update(node.all_input_nodes)
        name = pytorch.base_name(node.target) if pytorch.is_overload(node.target) else ""
        runs = node.op == "call_function" and _repeatable(node.target)
        steps.append(
            Step(node, numbers.get(node), runs, name in _ALLOCATIONS, name in _KEEPS, last_uses)
        )
    # Inductor may reuse memory of a backward graph's inputs, which were saved only for it.
    backward = "backward" in inductor.graph_label()
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    return KeptGraph(
        module,
        [(index, node) for index, node in enumerate(inputs) if node in needed],
        len(inputs),
        [node for node in module.graph.nodes if node.op == "get_attr" and node in needed],
        [_call(node) for node in calls],
        steps[::-1],
        backward
        or any(node.op == "call_function" and writes(node.target) for node in module.graph.nodes),
    )


def _call(node: torch.fx.Node) -> Call:
    names = pytorch.argument_names(node.target)
    return Call(
        names,
        pytorch.written_names(node.target),
        _groups(node),
        partial_results(pytorch.op_name(node.target)),
    )


def partial_results(op: str) -> frozenset[int]:
    if op in python_functions:
        return frozenset()
    return frozenset(
        index for index, output in enumerate(_runtime.describe(op)["outputs"]) if output["partial"]
    )


def writes(target: Any) -> bool:
    """Whether a call may write to arguments."""
    if not pytorch.is_overload(target):
        return pytorch.is_higher_order(target)
    return bool(pytorch.written_names(target))


def _repeatable(target: Any) -> bool:
    """Whether running a call again gives the same result: it neither draws random numbers nor
    communicates with other processes.
    """
    if pytorch.is_overload(target):
        random = torch.Tag.nondeterministic_seeded in target.tags
        return not random and not pytorch.draws_or_communicates(target)
    return not pytorch.is_higher_order(target)


def _holds_any(graph: torch.fx.Graph, registered: Container[str]) -> bool:
    functional = (pytorch.op_name(call.args[0]) for call in inductor.functional_calls(graph))
    return any(name in registered for name in functional) or any(
        True for _ in _calls(graph, registered)
    )


def _calls(graph: torch.fx.Graph, registered: Container[str]) -> Iterator[torch.fx.Node]:
    for node in graph.nodes:
        if (
            node.op == "call_function"
            and pytorch.is_overload(node.target)
            and pytorch.op_name(node.target) in registered
        ):
            yield node


def _groups(node: torch.fx.Node) -> dict[str, int]:
    args, kwargs = node.meta.get("eager_input_vals") or inductor.fakes_of((node.args, node.kwargs))
    names = pytorch.argument_names(node.target)
    tensors = tensors_in({**dict(zip(names, args)), **kwargs})
    values = list(tensors.values())
    return {
        name: next(
            i
            for i, other in enumerate(values)
            if other is value or inductor.shares_storage(other, value)
        )
        for name, value in tensors.items()
    }


def tensors_in(args: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors among arguments by name; those of a list `xs` are `xs[0]`, `xs[1]`, ..."""
    tensors = {}
    for name, value in args.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, (tuple, list)):
            tensors.update(
                (f"{name}[{index}]", item)
                for index, item in enumerate(value)
                if isinstance(item, torch.Tensor)
            )
    return tensors


def with_tensors(args: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """`args` with other tensors, by the names of tensors_in."""

    def changed(name: str, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [tensors.get(f"{name}[{index}]", item) for index, item in enumerate(value)]
        return tensors.get(name, value)

    return {name: changed(name, value) for name, value in args.items()}
