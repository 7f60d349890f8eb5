"""Storage offsets in Inductor's lowerings of views."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch._inductor import ir, lowering
from torch._inductor.virtualized import V


def lower_storage_offset() -> None:
    """Lowers `sym_storage_offset` to the offset in the traced graph, as it is done for sizes."""
    lowering.register_lowering(torch.ops.aten.sym_storage_offset.default, type_promotion_kind=None)(
        _traced_offset
    )


def count_from_storage_start() -> None:
    """Lowers `as_strided` of a graph input so that its offset counts from the start of the storage.
    Inductor's pointer to the input points to the input's first element."""
    if (
        "storage_offset_relative_to_input_storage"
        in inspect.signature(lowering.as_strided).parameters
    ):
        return  # a torch between 2.11 and 2.15 that subtracts the input's offset itself
    aten = torch.ops.aten
    for view in (aten.as_strided.default, aten.as_strided_.default, aten.as_strided_copy.default):
        lowering.register_lowering(view, type_promotion_kind=None)(
            _from_the_start_of_the_input(lowering.lowerings[view])
        )


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
    """The storage offset of the graph input that `x` is or is a view of; 0 for other buffers."""
    data = x.data
    while isinstance(data, (ir.BaseView, ir.StorageBox)):
        data = data.data
    if not isinstance(data, ir.InputBuffer):
        return 0
    placeholders = V.graph.current_node.graph.find_nodes(op="placeholder")
    fake = next(
        (
            node.meta["val"]
            for node in placeholders
            if V.graph.qualify_name(node.target) == data.get_name()
        ),
        None,
    )
    return 0 if fake is None else _expression(fake.storage_offset())


def _expression(offset: Any) -> Any:
    return offset.node.expr if isinstance(offset, torch.SymInt) else int(offset)
