"""Arguments whose rows Inductor has padded, and which an op takes as they are, without a copy.

Inductor makes the rows of intermediates longer, so that each begins at an aligned address. An op
gets its arguments with eager's strides, which have no such gaps, unless its declaration has
torch.Tag.flexible_layout or torch.Tag.needs_fixed_stride_order: the op is right with other strides,
too. Here these are always in the order of eager's, with the same innermost one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .compat.inductor import inductor

if TYPE_CHECKING:
    from opaq._runtime import OpInfo

_ALLOWING = {torch.Tag.flexible_layout, torch.Tag.needs_fixed_stride_order}


def may_be_padded(tags: Iterable[torch.Tag]) -> bool:
    """Whether an op with these tags takes arguments as Inductor has padded them."""
    return not _ALLOWING.isdisjoint(tags) and torch.Tag.needs_exact_strides not in tags


def strides_of_arguments(
    info: OpInfo,
    tags: Iterable[torch.Tag],
    device_type: str,
    values: Mapping[str, Any],
    traced: Mapping[str, torch.Tensor],
) -> dict[str, list[Any]]:
    """The strides of the arguments that the op may take as Inductor has padded them, by name. An
    argument is row-major unless every implementation for the device reads its strides.

    tags: of the op. values: its arguments. traced: those that are tensors, as eager has them.
    """
    if not may_be_padded(tags):
        return {}
    names = [arg["name"] for arg in info["args"] if arg["mutated"]]
    written = [traced[name] for name in names if name in traced]
    row_major = {
        name
        for implementation in info["implementations"]
        if implementation["device"] == device_type
        for name in implementation["needs_contiguous"]
    }
    found = {}
    for name, fake in traced.items():
        if name in row_major or any(inductor.shares_storage(fake, other) for other in written):
            continue
        strides = inductor.padded_strides(values[name], fake, _may_choose(info, name))
        if strides is not None and _is_padded(
            inductor.expressions(fake.shape), inductor.expressions(fake.stride()), strides
        ):
            found[name] = strides
    return found


def _may_choose(info: OpInfo, argument: str) -> bool:
    """Whether Inductor may pad an argument whose strides it has yet to choose: not where a result
    could not be written over it then, or would have other strides than the graph returns."""
    return all(
        inductor.pads_result(number) if result["strides"] else result["over"] != argument
        for number, result in enumerate(info["results"])
    )


def _is_padded(sizes: Sequence[Any], eager: Sequence[Any], strides: Sequence[Any]) -> bool:
    """Whether strides differ from eager's, and only by gaps between what is next to each other in
    an outer dimension. Dimensions of size 1 do not matter."""
    dims = [dim for dim, size in enumerate(sizes) if not inductor.known_at_most(size, 1)]
    dims.sort(key=lambda dim: inductor.size_hint(eager[dim]))
    if all(strides[dim] == eager[dim] for dim in dims):
        return False
    return strides[dims[0]] == eager[dims[0]] and all(
        inductor.known_at_most(1, eager[inner])
        and inductor.known_at_most(strides[inner] * sizes[inner], strides[outer])
        for inner, outer in zip(dims, dims[1:])
    )
