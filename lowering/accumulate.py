"""Gives a tensor that is added to the result of an op to the op, if the op can add it.

A gradient is often added to another one, because a value is used in several places. An op that is
declared with opaq.op(..., accumulates="added") adds the argument `added` to its first result while
it computes that, so the sum needs no kernel of its own:

    add(other, view(op(x)))    becomes    view(op(x, added=view(other)))

This happens in graphs as Inductor lowers them, forward and backward. The sum is rounded once.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx

from opaq import _runtime

from . import Accumulated, options
from .compat import pytorch
from .compat.inductor import inductor
from .substitute import operations

_aten = torch.ops.aten


def install(accumulating: Mapping[str, Accumulated]) -> None:
    inductor.before_writes(lambda graph: pass_on(graph, accumulating))


def pass_on(graph: torch.fx.Graph, accumulating: Mapping[str, Accumulated]) -> None:
    if options.current().check:  # it compares calls with those of the traced graph
        return
    for node in list(graph.nodes):
        if node.op == "call_function" and pytorch.is_overload(node.target):
            accumulated = accumulating.get(pytorch.op_name(node.target) or "")
            if accumulated:
                _pass_to(graph, node, accumulated)


def _pass_to(graph: torch.fx.Graph, call: torch.fx.Node, accumulated: Accumulated) -> None:
    argument = accumulated.argument
    position = pytorch.argument_names(call.target).index(argument)
    given = pytorch.leaves_by_argument(call.target, call.args, call.kwargs)
    result = _first_result(call)
    if result is None or given.get((argument, None)) is not None:
        return
    if not accumulated.is_served(result.meta["val"].device.type):
        return
    value, user = result, _only_user(result)
    while user is not None and inductor.is_reshape(user):
        value, user = user, _only_user(user)
    other = user and _added_to(user, value)
    if user is None or other is None or not _fits(other, value, result):
        return
    readers = operations.readers([user], inductor.is_view)
    is_returned = any(reader.op == "output" for reader in readers)
    if is_returned and not inductor.has_row_major(value.meta["val"]):
        return  # the sum would be returned with gaps between its rows
    added = other
    while inductor.is_reshape(added):
        added = added.args[0]
    if not (added < call and inductor.has_row_major(added.meta["val"])):
        return  # the call stays where it is: its arguments may be written to in place after it
    if value is not result or added is not other:
        with graph.inserting_before(call):
            try:
                sizes = [inductor.computed(graph, size) for size in result.meta["val"].shape]
            except _runtime.LaunchError:  # a size that is known only when a kernel has run
                return
            added = inductor.insert_call(graph, _aten.reshape.default, added, sizes)
    call.args, call.kwargs = _with(call.args, call.kwargs, position, argument, added)
    if "eager_input_vals" in call.meta:
        call.meta["eager_input_vals"] = _with(
            *call.meta["eager_input_vals"], position, argument, added.meta["val"]
        )
    user.replace_all_uses_with(value)
    graph.erase_node(user)


def _first_result(call: torch.fx.Node) -> torch.fx.Node | None:
    if isinstance(call.meta.get("val"), torch.Tensor):
        return call
    first = [user for user in call.users if user.target is operator.getitem and user.args[1] == 0]
    return first[0] if len(first) == 1 else None


def _only_user(node: torch.fx.Node) -> torch.fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added_to(add: torch.fx.Node, value: torch.fx.Node) -> torch.fx.Node | None:
    """What a node adds to `value`; None if it does something else."""
    if add.target is not _aten.add.Tensor or add.kwargs.get("alpha", 1) != 1:
        return None
    others = [arg for arg in add.args if arg is not value]
    return others[0] if len(others) == 1 and isinstance(others[0], torch.fx.Node) else None


def _fits(other: torch.fx.Node, value: torch.fx.Node, result: torch.fx.Node) -> bool:
    """Whether the sum may have the layout of `value`, which is a view of a result, and has its
    dtype, and the op can read `other` as it reads that result."""
    added, summand, whole = (node.meta.get("val") for node in (other, value, result))
    return (
        isinstance(added, torch.Tensor)
        and added.dtype == summand.dtype
        and added.device == summand.device
        and inductor.has_shape_of(added, summand)
        and inductor.has_row_major(added)
        and all(inductor.has_row_major(each, gaps=True) for each in (summand, whole))
    )


def _with(
    args: Sequence[Any], kwargs: Mapping[str, Any], position: int, argument: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > position:
        return (*args[:position], value, *args[position + 1 :]), dict(kwargs)
    return tuple(args), {**kwargs, argument: value}
