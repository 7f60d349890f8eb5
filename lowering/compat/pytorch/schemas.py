"""Operators of the dispatcher and their schemas."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._library import custom_ops
from torch.utils._python_dispatch import TorchDispatchMode

_NOT_REPEATABLE = ("prims", "inductor", "c10d", "_c10d_functional", "c10d_functional")


class _Names(TorchDispatchMode):
    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._names = names

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self._names.add(function.name())
        return function(*args, **(kwargs or {}))


class Schemas:
    @contextlib.contextmanager
    def ops_that_run(self) -> Iterator[set[str]]:
        """The names of the dispatcher's ops that run in the block, below autograd."""
        names: set[str] = set()
        with _Names(names):
            yield names

    def is_overload(self, value: Any) -> bool:
        """Whether a value is an op of the dispatcher, which has a schema."""
        return isinstance(value, torch._ops.OpOverload)

    def is_higher_order(self, value: Any) -> bool:
        """Whether a value is an op that calls others (auto_functionalized, cond); has no schema."""
        return isinstance(value, torch._ops.HigherOrderOperator)

    def op_name(self, value: Any) -> str | None:
        """ "mylib::rms_norm", or "mylib::rms_norm.overload", for an op of the dispatcher, a packet
        of its overloads, or what torch.library.custom_op returns."""
        if isinstance(value, torch._ops.OpOverload):
            return value.name()
        if isinstance(value, torch._ops.OpOverloadPacket):
            return value._qualified_op_name
        if isinstance(value, torch._ops.HigherOrderOperator):
            return f"higher_order::{value.name()}"
        return value._qualname if isinstance(value, custom_ops.CustomOpDef) else None

    def draws_or_communicates(self, overload: Any) -> bool:
        """Whether an op is of a namespace in which untagged ops draw random numbers or communicate
        with other processes.
        """
        return overload.namespace in _NOT_REPEATABLE

    def base_name(self, overload: Any) -> str:
        """ "rms_norm" of the op "mylib::rms_norm.overload"."""
        return overload._opname

    def writes(self, op: Any) -> bool:
        """Whether an op writes to an argument, or one of the overloads of a packet does."""
        if isinstance(op, torch._ops.OpOverloadPacket):
            return any(getattr(op, name)._schema.is_mutable for name in op.overloads())
        return op._schema.is_mutable

    def has_schema(self, value: Any) -> bool:
        """Whether a value is an op of the dispatcher, or a packet of its overloads."""
        return isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))

    def schema_text(self, overload: Any) -> str:
        """ "mylib::scale(Tensor x, float by) -> Tensor"."""
        return str(overload._schema)

    def argument_names(self, overload: Any) -> list[str]:
        """The names of an op's arguments, in order."""
        return [argument.name for argument in overload._schema.arguments]

    def default_values(self, overload: Any) -> list[Any]:
        """The default of each argument, in order, as a user writes it: a schema has the number of a
        dtype, layout or memory format. None where there is no default."""
        return [
            _as_given(argument, argument.default_value) if argument.has_default_value() else None
            for argument in overload._schema.arguments
        ]

    def numbered_arguments(self, overload: Any) -> dict[str, Callable[[Any], Any]]:
        """For each argument whose values may be numbers of dtypes, layouts or memory formats, what
        turns them into these objects."""
        return {
            argument.name: functools.partial(_as_given, argument)
            for argument in overload._schema.arguments
            if any(name in str(argument.real_type) for name in _NUMBERED)
        }

    def is_out(self, overload: Any) -> bool:
        """Whether the op is an out= variant by its tag (since torch 2.15)."""
        return getattr(torch.Tag, "out", None) in overload.tags

    def keyword_only_names(self, overload: Any) -> list[str]:
        """The names of the arguments after the `*` of the schema, in order."""
        return [argument.name for argument in overload._schema.arguments if argument.kwarg_only]

    def defaulted_names(self, overload: Any) -> set[str]:
        """The names of the arguments that have a default."""
        return {arg.name for arg in overload._schema.arguments if arg.has_default_value()}

    def tensor_names(self, overload: Any) -> list[str]:
        """The names of the arguments that are tensors or lists of them, in order."""
        return [arg.name for arg in overload._schema.arguments if "Tensor" in str(arg.type)]

    def takes_keyword_tensors(self, overload: Any) -> bool:
        """Whether an argument after the `*` of the schema is a tensor or a list of them."""
        return not set(self.tensor_names(overload)).isdisjoint(self.keyword_only_names(overload))

    def result_count(self, overload: Any) -> int:
        """How many results an op has."""
        return len(overload._schema.returns)

    def results_lost_in_cpp(self, overload: Any) -> str:
        """The results as the schema writes them, if Inductor's C++ wrapper (2.11 to 2.15) crashes
        or does not compile when an op that the dispatcher calls returns them; else ""."""
        types = [str(result.real_type) for result in overload._schema.returns]
        if "Optional[Tensor]" in types or (len(types) > 1 and set(types) != {"Tensor"}):
            return str(overload._schema).rpartition("-> ")[2]
        return ""

    def written_names(self, overload: Any) -> tuple[str, ...]:
        """The arguments that an op writes to."""
        return tuple(
            arg.name
            for arg in overload._schema.arguments
            if arg.alias_info is not None and arg.alias_info.is_write
        )

    def returned_names(self, overload: Any) -> tuple[str, ...]:
        """The arguments that an op writes to and returns (Tensor(a!) -> Tensor(a!)), in the order
        of its results.
        """
        return tuple(name for name in argument_of_results(overload) if name is not None)

    def leaves_by_argument(
        self, overload: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> dict[tuple[str, int | None], Any]:
        """The values of a call by argument name, and index where the argument is a list."""
        leaves = {}
        for name, value in {**dict(zip(self.argument_names(overload), args)), **kwargs}.items():
            items = enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
            leaves.update({(name, index): item for index, item in items})
        return leaves

    def with_leaves(
        self,
        overload: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        leaves: dict[tuple[str, int | None], Any],
    ) -> tuple[Any, Any]:
        """The arguments of a call, with some of its leaves (leaves_by_argument) replaced."""

        def replaced(name: str, value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [leaves.get((name, index), item) for index, item in enumerate(value)]
            return leaves.get((name, None), value)

        names = self.argument_names(overload)
        return tuple(replaced(name, value) for name, value in zip(names, args)), {
            name: replaced(name, value) for name, value in kwargs.items()
        }


def argument_of_results(overload: Any) -> list[str | None]:
    """For each result, the written argument that it is; None where it is new."""
    sets = {
        tuple(arg.alias_info.before_set): arg.name
        for arg in overload._schema.arguments
        if arg.alias_info is not None and arg.alias_info.is_write
    }
    return [
        sets.get(tuple(result.alias_info.before_set)) if result.alias_info is not None else None
        for result in overload._schema.returns
    ]


# Types of arguments that a schema's default and Inductor give by number.
_NUMBERED = {
    "ScalarType": torch.dtype,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
}


def _as_given(argument: Any, value: Any) -> Any:
    """A value of an argument, with objects in place of their numbers and of a device's name."""
    kind = str(argument.real_type)
    if isinstance(value, (list, tuple)):
        return [_as_given(argument, item) for item in value]
    if isinstance(value, str) and "Device" in kind:
        return torch.device(value)
    for name in _NUMBERED:
        if name in kind and type(value) is int:
            return _objects(name)[value]
    return value


@functools.cache
def _objects(kind: str) -> dict[int, Any]:
    """The dtypes, layouts or memory formats by number: what PyTorch's schema parser makes of their
    names.
    """
    found = {}
    for name, value in vars(torch).items():
        if isinstance(value, _NUMBERED[kind]) and str(value) == f"torch.{name}":
            try:
                schema = torch._C.parse_schema(f"f({kind} x={name}) -> ()")
            except RuntimeError:  # it has no such name
                continue
            found[schema.arguments[0].default_value] = value
    return found
