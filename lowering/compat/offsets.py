"""Storage offsets in Inductor's lowerings, where Inductor gets them wrong: an op that writes to a view would write to other memory (stock custom ops do)."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch._higher_order_ops import auto_functionalize
from torch._inductor import ir, lowering
from torch._inductor.fx_passes.reinplace import graph_call_function as insert_call
from torch._inductor.virtualized import V
from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq


def lower_storage_offsets() -> None:
    """Makes Inductor lower storage offsets, and views that are given by one, as PyTorch means them.

    `sym_storage_offset`, up to torch 2.15: the offset as it was traced, as for sizes and strides; Inductor's own fallback takes 0.
    `as_strided`, torch 2.11: the offset counts from the start of the storage, but the pointer of a graph input is where the input begins. torch 2.15
    subtracts the input's offset, and where no offset is given, takes that of the view.

    `try_use_slice`, up to torch 2.15: which slice of its base a written view is; see `_slice_of`.
    """
    auto_functionalize.try_use_slice = _slice_of
    aten = torch.ops.aten
    lowering.register_lowering(aten.sym_storage_offset.default, type_promotion_kind=None)(_traced_offset)
    if "storage_offset_relative_to_input_storage" not in inspect.signature(lowering.as_strided).parameters:
        for view in (aten.as_strided.default, aten.as_strided_.default, aten.as_strided_copy.default):
            lowering.register_lowering(view, type_promotion_kind=None)(_from_the_start_of_the_input(lowering.lowerings[view]))


def _traced_offset(_: Any) -> Any:
    return _expression(V.graph.current_node.meta["val"])


def _from_the_start_of_the_input(lower: Callable[..., Any]) -> Callable[..., Any]:
    def lower_view(x: Any, size: Any, stride: Any, storage_offset: Any = None) -> Any:
        if storage_offset is None:
            layout = x.maybe_get_layout()
            return lower(x, size, stride, layout.offset if layout is not None else None)
        return lower(x, size, stride, sympy.expand(storage_offset - _offset_of_input(x)))

    return lower_view


def _offset_of_input(x: Any) -> Any:
    """Of the graph input that `x` is, or is a view of; 0 for what Inductor computes."""
    data = x.data
    while isinstance(data, (ir.BaseView, ir.StorageBox)):
        data = data.data
    if not isinstance(data, ir.InputBuffer):
        return 0
    placeholders = V.graph.current_node.graph.find_nodes(op="placeholder")
    fake = next((node.meta["val"] for node in placeholders if V.graph.qualify_name(node.target) == data.get_name()), None)
    return 0 if fake is None else _expression(fake.storage_offset())


def _expression(offset: Any) -> Any:
    return offset.node.expr if isinstance(offset, torch.SymInt) else int(offset)


_original_slice = auto_functionalize.try_use_slice


def _slice_of(base: torch.Tensor, view: torch.Tensor) -> Any:
    """(dim, start, end) of a view that an op writes to; None: it is recorded by sizes, strides and offset instead. Upstream takes the storage's start for that of
    `base` (up to torch 2.15), so that of a graph input `x[1:]` other elements are written."""
    return _original_slice(base, view) if statically_known_true(base.storage_offset() == 0) else None


def offset_from(graph: Any, value: Any, eager: torch.Tensor, place: Any) -> Any:
    """How much further into its storage the graph's node `value` lies than `eager`: an int, or a node. place: a node with eager's offset, where that is
    symbolic."""
    offset = value.meta["val"].storage_offset()
    if statically_known_true(offset == eager.storage_offset()):
        return 0

    def symbol(offset: Any, node: Any) -> Any:
        return insert_call(graph, torch.ops.aten.sym_storage_offset.default, node) if isinstance(offset, torch.SymInt) else offset

    return _plus(graph, symbol(offset, value), symbol(eager.storage_offset(), place), operator.sub)


def replay_view(graph: Any, view: Any, value: Any, moved: Any) -> Any:
    """The view operation `view` of another value, which lies `moved` elements further into its storage than the one whose view it is."""
    args, kwargs = list(view.args[1:]), dict(view.kwargs)
    if view.target is torch.ops.aten.as_strided.default:
        if len(args) > 2 and args[2] is not None:
            args[2] = _plus(graph, args[2], moved)
        elif kwargs.get("storage_offset") is not None:
            kwargs["storage_offset"] = _plus(graph, kwargs["storage_offset"], moved)
    return insert_call(graph, view.target, value, *args, **kwargs)


def move_views(graph: Any, call: Any, base: int, moved: Any) -> None:
    """Records in a call of auto_functionalized_v2 that the base of that index lies `moved` elements further into its storage than before."""
    suffix = "_storage_offset"
    for name, offset in call.kwargs.items():
        if name.endswith(suffix) and call.kwargs.get(name.removesuffix(suffix) + "_base_index") == base:
            call.kwargs = {**call.kwargs, name: _plus(graph, offset, moved)}


def laid_out_as(value: torch.Tensor, eager: torch.Tensor) -> bool:
    """Whether strides and storage offset are known to be the same."""
    return statically_known_true(sym_eq((*value.stride(), value.storage_offset()), (*eager.stride(), eager.storage_offset())))


def _plus(graph: Any, a: Any, b: Any, operation: Callable[[Any, Any], Any] = operator.add) -> Any:
    if isinstance(a, torch.fx.Node) or isinstance(b, torch.fx.Node):
        return insert_call(graph, operation, a, b)
    return operation(a, b)
