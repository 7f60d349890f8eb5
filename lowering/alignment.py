"""Addresses of arguments: what eager has at the start of memory of its own may be a view in the
compiled graph, since Inductor drops copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .compat.inductor import V, inductor, ir

if TYPE_CHECKING:
    from opaq._runtime import OpInfo

ALIGNMENT = (
    64  # bytes; that of every buffer that Inductor allocates, and of every tensor that torch does
)


def arguments(info: OpInfo) -> set[str]:
    """Those whose address some requirement reads."""
    return {
        name
        for implementation in info["implementations"]
        for requirement in implementation["requires"]
        for name in requirement["reads_data"]
    }


def restored(value: Any, traced: torch.Tensor) -> Any:
    """The realised value, or a copy of it: where the traced graph has memory of its own for this
    argument, and the value may lie otherwise in its memory than there, or in that of an argument of
    the graph, whose address nothing is known of."""
    if not _in_own_memory(traced):
        return value
    where = inductor.place_in_memory(ir.ExternKernel.realize_input(value))
    if where is not None:
        distance = (where - traced.storage_offset()) * value.get_dtype().itemsize
        if isinstance(distance, int) and distance % ALIGNMENT == 0:
            return value
    return ir.ExternKernel.copy_input(value)


def _in_own_memory(traced: torch.Tensor) -> bool:
    """Whether the traced tensor lies in no argument of the graph."""
    inputs = (
        node.meta.get("val")
        for node in V.graph.current_node.graph.nodes
        if node.op in ("placeholder", "get_attr")
    )
    return not any(
        inductor.shares_storage(value, traced)
        for value in inputs
        if isinstance(value, torch.Tensor)
    )
