"""Keeps addresses of arguments aligned as in eager: a tensor that has memory of its own there may
be a view in the compiled graph, since Inductor removes copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .compat.inductor import V, inductor, ir

if TYPE_CHECKING:
    from opaq._runtime import OpInfo

ALIGNMENT = 64  # bytes; of every buffer that Inductor allocates, and every tensor that torch does


def sensitive_arguments(info: OpInfo) -> set[str]:
    """The names of the arguments whose address some requirement reads."""
    return {
        name
        for implementation in info["implementations"]
        for requirement in implementation["requires"]
        for name in requirement["reads_data"]
    }


def aligned_as_traced(value: Any, traced: torch.Tensor, written: bool) -> Any:
    """The realised value, or a copy of it if its address may be aligned worse than in eager: if the
    argument has memory of its own there, and here it lies at another place in its buffer, or in an
    argument of the graph, whose address is unknown.

    An argument of the graph that is written to is written to in eager, too: the traced graph has no
    writes to it, and knows it as a result of the one before."""
    if not _in_own_memory(traced):
        return value
    where = inductor.place_in_memory(ir.ExternKernel.realize_input(value))
    if where is None and written:
        return value
    if where is not None:
        distance = (where - traced.storage_offset()) * value.get_dtype().itemsize
        if isinstance(distance, int) and distance % ALIGNMENT == 0:
            return value
    return ir.ExternKernel.copy_input(value)


def _in_own_memory(traced: torch.Tensor) -> bool:
    """Whether the traced tensor shares no memory with an argument of the graph."""
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
