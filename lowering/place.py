"""Makes the buffers that a node takes as tensor arguments: in the layout that its kernel needs, and
sharing memory exactly where eager's tensors share it.

The traced graph records each argument as a fake tensor (`eager`), with eager's strides and memory.
Inductor's buffers may differ in both: it chooses the layouts of intermediates, a lowering may
return its input where eager makes a copy, and changing a layout makes a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sympy
import torch

from opaq import _runtime

from . import alignment
from .compat.inductor import inductor, ir
from .copies import extent, extent_of, may_overlap


def place(
    op: str,
    values: Mapping[Any, Any],
    eager: Mapping[Any, torch.Tensor],
    nodes: Mapping[Any, Any],
    written: Collection[Any],
    contiguous: Container[Any] = (),
    aligned: Container[Any] = (),
    padded: Mapping[Any, Sequence[Any]] = MappingProxyType({}),
) -> tuple[dict[Any, Any], Callable[[], None]]:
    """Returns (the buffers of the arguments in `eager`, a function that must be called after the
    launch and copies back what was written to copies).

    Buffers of arguments in `contiguous` are row-major, those in `padded` have the strides given
    there (padded.py), all others have eager's. Addresses of those in `aligned` are aligned as well
    as in eager. Keys are names of arguments, or whatever else identifies them. nodes: the graph's
    nodes of arguments, where known. written: the arguments that `op` writes to. Raises LaunchError
    if two written arguments that are different tensors in eager lie in the same memory.
    """
    written = [name for name in eager if name in written]
    for name in written:
        inductor.lay_out_as_traced(values[name], nodes.get(name))

    def strides(name: Any) -> Sequence[Any]:
        return padded.get(name) or inductor.expressions(eager[name].stride())

    def laid_out(name: Any) -> Any:
        value, fake = values[name], eager[name]
        value.realize()
        if name in aligned:
            value = alignment.aligned_as_traced(value, fake, name in written)
        # a dimension of size 1 may have any stride
        row_major = name in contiguous and not inductor.has_row_major(fake)
        return _with_strides(
            value,
            ir.FlexibleLayout.contiguous_strides(value.get_size()) if row_major else strides(name),
        )

    buffers = {name: laid_out(name) for name in eager}
    _copy_together(
        op,
        eager,
        written,
        [name for name in eager if name in contiguous and not inductor.has_row_major(eager[name])],
        buffers,
    )
    for name in written:
        keep_old_values(values[name], nodes.get(name))
        for other in eager:
            if (
                other == name
                or not _same_memory(buffers[other], buffers[name])
                or inductor.shares_storage(eager[other], eager[name])
            ):
                continue
            if may_overlap(_extent(buffers[other]), _extent(buffers[name])):
                if other in written:
                    raise _runtime.LaunchError(
                        f"{op}: it writes to `{name}` and `{other}`, which are different "
                        "tensors in eager but share memory in the graph that "
                        "Inductor made; a pass of Inductor has merged them. Call the op "
                        "outside torch.compile, and report this as a bug of opaq"
                    )
                copy = _box(ir.ExternKernel.copy_input(buffers[other]))
                buffers[other] = _with_strides(copy, strides(other))
    for name in written:
        _share(name, values, eager, contiguous, buffers)
    for name in written:
        inductor.compute_readers(buffers[name])

    def carry_back() -> None:
        for name in written:
            if buffers[name].get_name() != values[name].get_name():
                inductor.copy_into(values[name], _box(buffers[name]))

    return buffers, carry_back


def keep_old_values(value: Any, node: Any) -> None:
    """To be called before a write to `value`, which is the graph's `node`: copies values in the
    same memory that later nodes read and that are not views of `node`.

    They exist where the lowering of an operation that copies in eager returns its input."""
    memory = _storage(value)
    if memory is None or node is None:
        return
    for other, later in inductor.live_values():
        if _storage(later) is memory and not inductor.views_of_one(other, node):
            inductor.replace_value(other, ir.ExternKernel.copy_input(later))


def _with_strides(value: Any, strides: Sequence[Any]) -> Any:
    if not inductor.has_strides(value, strides):
        value = ir.ExternKernel.require_exact_strides(value, strides)
    return ir.ExternKernel.realize_input(value)


def _copy_together(
    op: str,
    eager: Mapping[Any, torch.Tensor],
    written: Collection[Any],
    copied: list[Any],
    buffers: dict[Any, Any],
) -> None:
    """Makes row-major copies as the runtime does (runtime/choose/copies.cpp): arguments that are
    the same view share one, and a written argument that overlaps another one is refused.
    """
    for index, name in enumerate(copied):
        same = next(
            (other for other in copied[:index] if _same_view(eager[other], eager[name])), name
        )
        buffers[name] = buffers[same]
    for name in (name for name in copied if name in written):
        for other in eager:
            together = other in copied and _same_view(eager[other], eager[name])
            shares = (
                other != name
                and not together
                and inductor.shares_storage(eager[other], eager[name])
            )
            if shares and may_overlap(extent_of(eager[other]), extent_of(eager[name])):
                raise _runtime.LaunchError(
                    f"{op}: argument `{name}` is written and not row-major, so the kernel would "
                    f"write to a copy of it, but it shares memory with `{other}`; "
                    "pass tensors that share no memory, or row-major ones, or let the kernel "
                    f"take the strides ({name}.stride(i) in args)"
                )


def _same_view(a: torch.Tensor, b: torch.Tensor) -> bool:
    geometry = [
        (fake.dtype, list(fake.shape), list(fake.stride()), fake.storage_offset())
        for fake in (a, b)
    ]
    return inductor.shares_storage(a, b) and str(geometry[0]) == str(geometry[1])


def _share(
    name: Any,
    values: Mapping[Any, Any],
    eager: Mapping[Any, torch.Tensor],
    contiguous: Container[Any],
    buffers: dict[Any, Any],
) -> None:
    """Puts a written argument and those that share its memory in eager into one buffer, if Inductor
    has them in several.
    """

    def taken_as_is(other: Any) -> bool:  # eager makes row-major copies of the others
        return other not in contiguous or inductor.has_row_major(eager[other])

    sharing = [
        other
        for other in eager
        if inductor.shares_storage(eager[other], eager[name]) and taken_as_is(other)
    ]
    apart = [other for other in sharing if not _same_memory(buffers[other], buffers[name])]
    if name not in sharing or not any(
        may_overlap(extent_of(eager[other]), extent_of(eager[name])) for other in apart
    ):
        return
    fakes = [eager[other] for other in sharing]
    begins = [fake.storage_offset() for fake in fakes]
    begin = next(
        (one for one in begins if all(inductor.known_at_most(one, another) for another in begins)),
        0,
    )
    ends = inductor.expressions(
        [extent(fake.shape, fake.stride(), fake.storage_offset(), 1)[1] - begin for fake in fakes]
    )
    memory = inductor.empty_strided(
        [sympy.Max(1, *ends)], [1], dtype=eager[name].dtype, device=eager[name].device
    )
    for other in sharing:
        window = inductor.as_strided(memory, eager[other], begin)
        inductor.copy_into(window, values[other])
        buffers[other] = ir.ExternKernel.realize_input(window)


# ---- memory --------------------------------------------------------------------------------------


def _box(buffer: Any) -> Any:
    return buffer if isinstance(buffer, ir.TensorBox) else ir.TensorBox(buffer)


def _same_memory(a: Any, b: Any) -> bool:
    return a.get_name() == b.get_name()


def _storage(value: Any) -> Any:
    """The object that holds a value's data, which is the same for all values in one memory; None
    for a value that is not a tensor.
    """
    while True:
        value = inductor.storage_box(value)
        if not isinstance(value, ir.StorageBox):
            return None
        layout = value.data.layout if isinstance(value.data, ir.Buffer) else None
        if not isinstance(layout, ir.NonOwningLayout):
            return value.data
        value = layout.view  # a part of the result of `cat`, where Inductor computes it


def _extent(buffer: Any) -> tuple[Any, Any]:
    layout = buffer.get_layout()
    return extent(layout.size, layout.stride, layout.offset, layout.dtype.itemsize)
