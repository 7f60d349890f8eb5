"""Inductor nodes of opaque ops: a launch into buffers that Inductor allocates, plans and frees, and
a call of a Python function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import cpp_wrapper, overload_of, python_wrapper
from .compat import pytorch
from .compat.inductor import OrderedSet, V, inductor, ir, tree_map
from .contract.traced import checked_call

if TYPE_CHECKING:
    from opaq._runtime import OpInfo

    from .cpp_plan import CppForm
    from .decision import Decision
    from .symbolic import SymbolicTensor


class _InOrder:
    """A node that waits for the one before it that has ordered effects, if it has such effects
    itself; and the same for nodes that draw random numbers.
    """

    effect_before: Any = None
    draw_before: Any = None

    def get_read_writes(self) -> Any:
        read_writes = super().get_read_writes()
        for before in (self.effect_before, self.draw_before):
            if before is not None:
                read_writes.reads.add(before)
        return read_writes

    def keep_draws_in_order(self, overload: Any) -> None:
        """To be called when the node has been registered."""
        if pytorch.draws(overload):
            self.draw_before = inductor.draw_before()
            inductor.note_draw(self.get_name())


class Result(ir.InputsKernel):
    """The buffer of a result. The launch that defines it also gives it memory."""

    def __init__(self, planned: SymbolicTensor, launch: OpaqueKernel) -> None:
        sizes, strides = map(inductor.expressions, (planned.sizes, planned.strides))
        layout = ir.FixedLayout(planned.device, planned.dtype, sizes, strides)
        super().__init__(name=None, layout=layout, inputs=[])
        self.launch = launch
        self.name = V.graph.register_buffer(self)

    def get_defining_op(self) -> Any:
        return self.launch

    def should_allocate(self) -> bool:
        return False  # OpaqueKernel.codegen does


class OpaqueKernel(_InOrder, ir.ExternKernel):
    """One launch. It defines its results, and writes to the buffers of the arguments that its
    schema declares as written, and of its workspace.

    inputs: tensor arguments in schema order, then the workspace if it has one.
    """

    def __init__(
        self,
        info: OpInfo,
        values: Mapping[str, Any],
        results: Sequence[SymbolicTensor],
        device: torch.device,
        decision: Decision,
        cpp: CppForm | None = None,
        workspace: Any = None,
    ) -> None:
        tensors = [name for name, value in values.items() if isinstance(value, ir.IRNode)]
        buffers = self.unwrap_storage(
            [*(values[name] for name in tensors), *([] if workspace is None else [workspace])]
        )
        scalars = [value for name, value in values.items() if name not in tensors]
        super().__init__(None, ir.NoneLayout(device=device), buffers, tuple(_flat(scalars)), {})
        self.info, self.decision, self.device, self.cpp = info, decision, device, cpp
        self.checked = checked_call(V.graph.current_node)
        self.names = [*tensors, *(result["name"] for result in info["results"])]
        self.arguments = [
            tensors.index(name) if name in tensors else _Scalar(value)
            for name, value in values.items()
        ]
        self.results = [Result(result, self) for result in results]
        self.has_workspace = workspace is not None
        overload = overload_of(info["name"])
        inductor.obey_partition_rule(self, overload)
        self.effect_before = inductor.effect_before()
        mutated = [
            buffers[tensors.index(arg["name"])]
            for arg in info["args"]
            if arg["mutated"] and arg["name"] in tensors
        ]
        written = {buffer.get_name(): buffer for buffer in (*mutated, *buffers[len(tensors) :])}
        self.mutation_outputs = [
            ir.MutationOutput(ir.NoneLayout(device=device), buffer, self)
            for buffer in written.values()
        ]
        self.effect_only = not results and not mutated
        defines = results or self.mutation_outputs
        self.name = None if defines else V.graph.register_buffer(self)
        V.graph.register_operation(self)
        self.keep_draws_in_order(overload)

    def get_outputs(self) -> list[Any]:
        return [*self.results, *self.mutation_outputs] or [self]

    def get_name(self) -> str:
        """The name of a buffer that others can depend on to wait for the launch, as Inductor does
        to keep ops with ordered effects in order.
        """
        return self.get_outputs()[0].name

    def get_device(self) -> torch.device:
        return self.device

    def should_allocate(self) -> bool:
        return False

    def has_side_effects(self) -> bool:
        """An op that writes nothing is called for an effect that Inductor cannot see."""
        return self.effect_only

    def get_unbacked_symbol_defs(self) -> Any:
        return OrderedSet()

    def codegen(self, wrapper: Any) -> None:
        arguments = self._give_memory(wrapper)
        split = len(arguments) - self.has_workspace
        buffers = [*arguments[:split], *self.results, *arguments[split:]]
        references = [buffer.codegen_reference() for buffer in buffers]
        if self.cpp is not None:
            self.codegen_comment(wrapper, self.info["name"])
            named = dict(zip(self.names, references))
            node, reason = self.get_operation_name(), self.decision.reason
            workspace = references[-1] if self.has_workspace else None
            cpp_wrapper.launch(
                wrapper, self.info, self.cpp, node, self.device, reason, named, workspace
            )
            return
        args = [
            python_wrapper.scalar(item.value) if isinstance(item, _Scalar) else references[item]
            for item in self.arguments
        ]
        kernel = python_wrapper.launch_object(
            wrapper,
            self.info,
            self.get_operation_name(),
            self.device,
            self.decision,
            self.checked,
            self.has_workspace,
        )
        self.codegen_comment(wrapper, kernel)
        tensors = [None if isinstance(item, _Scalar) else buffers[item] for item in self.arguments]
        python_wrapper.launch(
            wrapper,
            kernel,
            [*args, *references[split:]],
            self.device,
            [*tensors, *buffers[split:]],
        )

    def _give_memory(self, wrapper: Any) -> list[Any]:
        """Gives the results memory: of their own, or that of an argument. Returns `inputs`, with a
        result in place of the argument that it is written over.
        """
        arguments = list(self.inputs)
        for result, rule in zip(self.results, self.info["results"]):
            over = rule["over"]
            index = self.names.index(over) if over and over not in self.decision.copied else -1
            if index >= 0 and inductor.may_overwrite(wrapper, self, index, result):
                wrapper.make_comment(f"{wrapper.comment} {rule['name']} is written over {over}")
                inductor.overwrite(wrapper, arguments[index], result)
                arguments[index] = result
            else:
                inductor.allocate(wrapper, result)
        return arguments


class _Scalar:
    """An argument that is not a tensor; None for an absent one."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _flat(values: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        flat.extend(value if isinstance(value, (list, tuple)) else [value])
    return flat


class _ReturningKernel(_InOrder, ir.FallbackKernel):
    """A call that returns its results. Inductor handles layouts and mutation as for any op."""

    @classmethod
    def call(cls, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        before, known = inductor.effect_before(), len(V.graph.operations)
        results = cls.create(overload, *args, **kwargs)
        for node in V.graph.operations[known:]:
            if isinstance(node, cls):
                node.effect_before = before
                node.keep_draws_in_order(overload)
        return tree_map(
            lambda value: ir.TensorBox.create(value) if isinstance(value, ir.IRNode) else value,
            results,
        )


class PythonFunctionKernel(_ReturningKernel):
    """A call of a Python function."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.checked = checked_call(V.graph.current_node)

    def codegen(self, wrapper: Any) -> None:
        self.python_kernel_name = python_wrapper.python_object(
            wrapper, self.op_overload, self.get_operation_name(), self.get_device(), self.checked
        )
        super().codegen(wrapper)


def dispatcher_kernel(op: str, reason: str) -> type[_ReturningKernel]:
    """The class of a node that calls the dispatcher from a C++ wrapper: Inductor's own code for it,
    preceded by code that counts the call for the report.
    """

    class DispatcherKernel(_ReturningKernel):
        def codegen(self, wrapper: Any) -> None:
            device = self.get_device() or torch.device("cpu")
            cpp_wrapper.count(wrapper, op, self.get_operation_name(), device, reason)
            super().codegen(wrapper)

    return DispatcherKernel
