"""Runs a kept graph on copies of a compiled graph's inputs, and records what each opaque op was given and what it made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from opaq import _runtime
from torch.utils._pytree import tree_leaves

from .. import python_functions
from .traced import Traced


class _Unknown:
    """Stands for a value that cannot be known by running the graph again."""

    def __repr__(self) -> str:
        return "<unknown>"


UNKNOWN = _Unknown()


@dataclasses.dataclass
class Record:
    """One call: values by argument and result, copies of their own; UNKNOWN where there is none to compare with."""

    before: dict[str, Any]
    after: dict[str, Any]  # written arguments and results


def replay(traced: Traced, inputs: Sequence[Any]) -> dict[int, Record]:
    """The calls that could be run, by number. No effect lasts: inputs are copied, random state is put back."""
    if len(inputs) != sum(node.op == "placeholder" for node in traced.module.graph.nodes):
        return {}
    runner = _Replay(traced)
    devices = sorted({value.device.index for value in inputs if isinstance(value, torch.Tensor) and value.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices):
        runner.run(*copy_together(list(inputs)))
    return runner.records


def copy_together(values: Sequence[Any]) -> list[Any]:
    """Copies of the tensors among `values`, in memory of their own that they share as the originals do."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies = []
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach()
            storage = value.untyped_storage()
            copy = storages.setdefault(storage.data_ptr() or id(value), storage.clone())
            value = torch.empty(0, dtype=value.dtype, device=value.device).set_(copy, value.storage_offset(), value.size(), value.stride())
        copies.append(value)
    return copies


_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_", "resize"}
_KEEPS = {"clone", "copy", "copy_", "lift_fresh_copy", "contiguous"}  # of memory that was not written, a copy is not either


class _Replay(torch.fx.Interpreter):
    def __init__(self, traced: Traced) -> None:
        super().__init__(traced.module, garbage_collect_values=False)  # marks go by storage: none may be freed and used again
        self.numbers = {call.node: number for number, call in enumerate(traced.calls)}
        self.records: dict[int, Record] = {}
        self._unwritten: set[int] = set()  # storages with memory that nothing has written
        self._lost: set[int] = set()  # storages with values that are unknown

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.op in ("placeholder", "get_attr"):
            return super().run_node(n)
        if n.op != "call_function":
            return UNKNOWN
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        leaves = tree_leaves((args, kwargs))
        tensors = [value for value in leaves if isinstance(value, torch.Tensor)]
        name = _name(n.target)
        known = not any(value is UNKNOWN for value in leaves) and not any(_storage(value) in self._lost for value in tensors)
        if not known or not _repeatable(n.target):
            self._lost.update(_storage(value) for value in _written(n.target, args, kwargs))
            return UNKNOWN
        unwritten = any(_storage(value) in self._unwritten for value in tensors)
        try:
            result = self._call(n, args, kwargs) if n in self.numbers else n.target(*args, **kwargs)
        except Exception:  # noqa: BLE001  what cannot be run by itself is not compared; the compiled graph says what is wrong, if anything is
            self._lost.update(_storage(value) for value in _written(n.target, args, kwargs))
            return UNKNOWN
        made = {_storage(value) for value in tree_leaves(result) if isinstance(value, torch.Tensor)}
        if name in _ALLOCATIONS or unwritten and name in _KEEPS:
            self._unwritten |= made
        elif unwritten and not made <= {_storage(value) for value in tensors}:  # not a view
            self._lost |= made
        return result

    def _call(self, n: torch.fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        schema = n.target._schema
        named = {**dict(zip((argument.name for argument in schema.arguments), args)), **kwargs}

        def seen(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return UNKNOWN if _storage(value) in self._unwritten else value.clone()

        before = {name: seen(value) for name, value in named.items()}
        result = _runtime.call_checked(n.target, tuple(args), dict(kwargs))
        results = result if isinstance(result, (tuple, list)) else (result,)
        after = {argument.name: seen(named[argument.name]) for argument in schema.arguments if _is_written(argument) and argument.name in named}
        reads_unwritten = any(value is UNKNOWN for value in before.values())
        partial = partial_results(n.target.name())
        self._unwritten.update(_storage(value) for index, value in enumerate(results) if index in partial)
        for index, value in enumerate(results):
            after[index] = UNKNOWN if reads_unwritten else seen(value)
        self.records[self.numbers[n]] = Record(before, after)
        return result


def partial_results(op: str) -> set[int]:
    """The results of which an op may leave elements unwritten."""
    if op in python_functions:
        return set()
    return {index for index, output in enumerate(_runtime.describe(op)["outputs"]) if output["partial"]}


def _storage(value: torch.Tensor) -> int:
    return value.untyped_storage()._cdata


def _name(target: Any) -> str:
    return target._opname if isinstance(target, torch._ops.OpOverload) else ""


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _written(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that a call writes to; of what has no schema, all."""
    if not isinstance(target, torch._ops.OpOverload):
        return [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    named = {**dict(zip((argument.name for argument in target._schema.arguments), args)), **kwargs}
    leaves = tree_leaves([named[argument.name] for argument in target._schema.arguments if _is_written(argument) and argument.name in named])
    return [value for value in leaves if isinstance(value, torch.Tensor)]


def _repeatable(target: Any) -> bool:
    """Whether a call may be run again: it draws no random numbers and talks to nobody."""
    if isinstance(target, torch._ops.OpOverload):
        random = torch.Tag.nondeterministic_seeded in target.tags
        return not random and target.namespace not in ("prims", "inductor", "c10d", "_c10d_functional", "c10d_functional")
    return not isinstance(target, torch._ops.HigherOrderOperator)
