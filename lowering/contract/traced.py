"""Keeps graphs as they were traced: functional, with every copy that a write needs, before Inductor decides which of them it leaves out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Container, Iterator

import torch.fx
from opaq import call_site

from .. import copies, emit, options
from ..compat import inductor, library

MARK = "opaq_traced_call"  # in the meta of a node of Inductor's graph: (number of the kept graph, number of the call in it)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an opaque op in a kept graph."""

    node: torch.fx.Node
    groups: dict[str, int]  # tensor arguments by name: those that share memory in eager have the same number


@dataclasses.dataclass(frozen=True)
class Traced:
    module: torch.fx.GraphModule
    calls: list[Call]


kept: dict[int, Traced] = {}  # for the process's life, as the code that refers to them may be
_numbers = itertools.count()


def install(registered: Container[str]) -> None:
    inductor.before_writes(lambda graph: keep(graph, registered))


def keep(graph: torch.fx.Graph, registered: Container[str]) -> Callable[[], None] | None:
    """Keeps a copy of `graph`; the result, to be called once Inductor's has writing calls again, marks these with the kept ones that they were."""
    if options.current().check != "contract" or not _holds_any(graph, registered):
        return None
    module = inductor.functional_copy(graph, lambda copy: copies.restore_sharing(copy, registered))
    nodes = list(_calls(module.graph, registered))
    number = next(_numbers)
    kept[number] = Traced(module, [Call(node, _groups(node)) for node in nodes])

    def mark() -> None:
        now = list(_calls(graph, registered))
        if [node.target for node in now] == [node.target for node in nodes]:
            for index, node in enumerate(now):
                node.meta[MARK] = (number, index)

    return mark


def facts_of(node: torch.fx.Node) -> emit.Traced | None:
    """What a checked launch is told of the call that is being lowered; None where nothing is checked."""
    if not options.current().check:
        return None
    mark = node.meta.get(MARK)
    return emit.Traced(call_site.of_trace(node.meta.get("stack_trace")), None if mark is None else list(mark))


def _holds_any(graph: torch.fx.Graph, registered: Container[str]) -> bool:
    functional = (library.op_name(call.args[0]) for call in inductor.functional_calls(graph))
    return any(name in registered for name in functional) or any(True for _ in _calls(graph, registered))


def _calls(graph: torch.fx.Graph, registered: Container[str]) -> Iterator[torch.fx.Node]:
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and library.op_name(node.target) in registered:
            yield node


def _groups(node: torch.fx.Node) -> dict[str, int]:
    args, kwargs = node.meta.get("eager_input_vals") or inductor.fakes_of((node.args, node.kwargs))
    names = [argument.name for argument in node.target._schema.arguments]
    tensors = {name: value for name, value in {**dict(zip(names, args)), **kwargs}.items() if isinstance(value, torch.Tensor)}
    values = list(tensors.values())
    return {
        name: next(i for i, other in enumerate(values) if other is value or inductor.shares_storage(other, value)) for name, value in tensors.items()
    }
