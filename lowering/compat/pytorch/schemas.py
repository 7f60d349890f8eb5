"""Operators of the dispatcher and their schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._library import custom_ops

_NOT_REPEATABLE = ("prims", "inductor", "c10d", "_c10d_functional", "c10d_functional")


class Schemas:
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

    def schema_text(self, overload: Any) -> str:
        """ "mylib::scale(Tensor x, float by) -> Tensor"."""
        return str(overload._schema)

    def argument_names(self, overload: Any) -> list[str]:
        """The names of an op's arguments, in order."""
        return [argument.name for argument in overload._schema.arguments]

    def keyword_only_names(self, overload: Any) -> list[str]:
        """The names of the arguments after the `*` of the schema, in order."""
        return [argument.name for argument in overload._schema.arguments if argument.kwarg_only]

    def result_count(self, overload: Any) -> int:
        """How many results an op has."""
        return len(overload._schema.returns)

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
