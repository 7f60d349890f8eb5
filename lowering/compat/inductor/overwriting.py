"""Whether a node may have a result in the memory of one of its arguments. Decided while the node is
printed, when it is known what runs before it and after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._C import _is_alias_of
from torch._inductor import config, ir
from torch._inductor.codegen.wrapper import can_match_buffer_size
from torch._inductor.utils import get_donated_idxs
from torch._inductor.virtualized import V


class Overwriting:
    def donated_inputs(self) -> list[int] | None:
        """The indices of those inputs of the backward graph being compiled that nothing else
        holds. Inductor writes over them, but leaves them out of the keys of its cache: an equal
        graph whose inputs the user holds too would overwrite these.
        """
        return get_donated_idxs()

    def may_overwrite(self, wrapper: Any, kernel: Any, index: int, result: Any) -> bool:
        """Whether `result` of the node `kernel` may take the memory of input `index`.

        The memory must be that of an intermediate, or of a donated input of a backward graph, in
        the layout of the result, and nothing else may read it in this node or after it. These are
        the conditions of Inductor's own kernels (SchedulerNode.decide_inplace_update), and that no
        part of the graph that is recorded as a CUDA graph gets or returns the memory.
        """
        argument = kernel.inputs[index]
        buffer = argument.data.data if isinstance(argument, ir.ReinterpretView) else argument
        return (
            config.inplace_buffers
            and isinstance(buffer, ir.Buffer)
            and _is_plain(buffer)
            and _same_layout(argument.get_layout(), result.get_layout())
            and can_match_buffer_size(buffer, result)
            and wrapper.can_reuse(buffer)
            and self._is_read_last(wrapper, kernel, index, buffer.get_name())
        )

    def overwrite(self, wrapper: Any, argument: Any, result: Any) -> None:
        """Prints that the memory of an argument is `result` from here on."""
        buffer = argument.data.data if isinstance(argument, ir.ReinterpretView) else argument
        V.graph.removed_buffers.discard(result.get_name())
        wrapper.codegen_inplace_reuse(buffer, result)

    def allocate(self, wrapper: Any, result: Any) -> None:
        """Prints the allocation of a result of the node that is being printed, though nothing may
        read it."""
        V.graph.removed_buffers.discard(result.get_name())
        wrapper.codegen_allocation(result)

    def _is_read_last(self, wrapper: Any, kernel: Any, index: int, name: str) -> bool:
        scheduler = V.graph.scheduler
        node = scheduler.name_to_node[kernel.get_operation_name()]
        known = {**scheduler.name_to_buf, **scheduler.name_to_donated_buffer}
        if name not in known or not self._runs_where_made(name, node):
            return False
        done = scheduler.completed_operations | V.graph.removed_operations
        renamed = scheduler.mutation_real_name.items()
        versions = [name, *(new for new, old in renamed if old == name)]
        others = [each.get_name() for at, each in enumerate(kernel.inputs) if at != index]
        return (
            _is_of_this_part(wrapper, name, known[name].defining_op)
            and not known[name].get_aliases()
            # users of a buffer are those of all its aliases too
            and all(
                user.is_weak or user.node is node or user.node.get_name() in done
                for version in versions
                for user in known[version].users
            )
            and all(name not in _memory(known, other) for other in others)
            and (name not in scheduler.name_to_donated_buffer or _is_alone(name))
        )

    def _runs_where_made(self, name: str, node: Any) -> bool:
        """Whether a node runs on the stream, and allocates in the pool, of a buffer."""
        return True  # before 2.15 there is one of each


def _is_plain(buffer: Any) -> bool:
    return type(buffer.get_output_spec()) is ir.FixedLayout and not isinstance(
        buffer.get_defining_op(), ir.NopKernel
    )


def _same_layout(argument: Any, result: Any) -> bool:
    def equal(a: Sequence[Any], b: Sequence[Any]) -> bool:
        known = V.graph.sizevars.statically_known_equals
        return len(a) == len(b) and all(known(x, y) for x, y in zip(a, b))

    return (
        argument.device == result.device
        and argument.dtype == result.dtype
        and equal(
            [*argument.size, *argument.stride, argument.offset],
            [*result.size, *result.stride, result.offset],
        )
    )


def _is_of_this_part(wrapper: Any, name: str, made_by: Any) -> bool:
    """Whether memory is not passed between parts of the graph that become CUDA graphs. made_by: the
    scheduler's node; None for a donated input."""
    if not V.graph.partition_maps:
        return True
    if getattr(wrapper, "partition_signatures", None) is not None:
        return name in wrapper.allocated
    return made_by is None or V.graph.scheduler.should_partition(made_by) is not None


def _memory(known: dict[str, Any], name: str) -> Iterator[str]:
    """The names of a buffer and of all buffers that it may be a view of."""
    yield name
    for other in known[name].get_aliases() if name in known else ():
        yield from _memory(known, other)


def _is_alone(name: str) -> bool:
    """Whether no other input of the graph is a view of the same memory."""
    nodes = V.graph.module.graph.find_nodes(op="placeholder")
    inputs = {node.target: node.meta.get("val") for node in nodes}
    return isinstance(inputs.get(name), torch.Tensor) and not any(
        _is_alias_of(value, inputs[name])
        for other, value in inputs.items()
        if other != name and isinstance(value, torch.Tensor)
    )
