"""Runs a kept graph beside the compiled one, as far as each launch needs it, to know the arguments
of each opaque call there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from opaq import _runtime

from ..compat import pytorch
from .traced import KeptGraph, Step, tensors_in, with_tensors


class _Unknown:
    """Stands for a value that cannot be known by running the graph again."""

    def __repr__(self) -> str:
        return "<unknown>"


UNKNOWN = _Unknown()


class Replay:
    """One run. It changes no tensor of the compiled graph: what may be written is copied first.

    `take` gives the arguments of the next call that is launched. The caller runs the op by itself
    and hands its results to `give`, so that the run continues with them.
    """

    def __init__(self, traced: KeptGraph, inputs: Sequence[Any]) -> None:
        self._traced = traced
        self._next = 0  # of traced.steps
        self._values: dict[torch.fx.Node, Any] = {
            node: getattr(traced.module, str(node.target)) for node in traced.constants
        }
        used = [inputs[index] for index, _ in traced.inputs]
        self._values.update(
            zip(
                (node for _, node in traced.inputs),
                copy_together(used) if traced.copies_inputs else used,
            )
        )
        # arguments of calls that were run here, but are launched later
        self._ahead: dict[int, dict[str, Any]] = {}
        self._left = len(traced.calls)
        self._unwritten: set[int] = set()  # storages with memory that was never written
        self._lost: set[int] = set()  # storages with unknown values

    @property
    def done(self) -> bool:
        return self._left == 0

    def take(self, number: int) -> dict[str, Any] | None:
        """The arguments of a call by name, some of which may be UNKNOWN; None if there is no such
        call or it was taken before.
        """
        while number not in self._ahead and self._next < len(self._traced.steps):
            step = self._traced.steps[self._next]
            self._next += 1
            if step.call == number:
                self._left -= 1
                return self._arguments(step)
            with torch.no_grad():
                self._run(step)
        self._left -= number in self._ahead
        return self._ahead.pop(number, None)

    def give(self, number: int, args: Mapping[str, Any], results: Sequence[Any] | None) -> None:
        """Takes the outcome of the call that was taken last: its arguments, written ones with their
        new values, and its results; None if they are unknown.
        """
        step = self._traced.steps[self._next - 1]
        if step.call != number:
            return  # it was run ahead
        written = self._traced.calls[number].written
        given = tensors_in({name: args[name] for name in written if name in args})
        for name, value in tensors_in(
            {name: self._argument(step, name) for name in written}
        ).items():
            if results is None:
                self._lost.add(pytorch.storage_id(value))
            elif given[name] is not value:
                value.copy_(given[name])
        if results is not None:
            self._keep(step, results)
        self._forget(step)

    def _arguments(self, step: Step) -> dict[str, Any]:
        """The arguments of a call that is about to run; until it has, its results are unknown."""
        assert step.call is not None
        self._values[step.node] = UNKNOWN
        args, kwargs, tensors = self._filled(step)
        named = {**dict(zip(self._traced.calls[step.call].names, args)), **kwargs}
        if self._lost and any(pytorch.storage_id(value) in self._lost for value in tensors):
            return dict.fromkeys(named, UNKNOWN)
        if self._unwritten:
            unwritten = {
                name
                for name, value in named.items()
                if any(
                    pytorch.storage_id(item) in self._unwritten
                    for item in tensors_in({name: value}).values()
                )
            }
            return {name: UNKNOWN if name in unwritten else value for name, value in named.items()}
        return named

    def _argument(self, step: Step, name: str) -> Any:
        assert step.call is not None
        position = self._traced.calls[step.call].names.index(name)
        value = (
            step.node.args[position]
            if position < len(step.node.args)
            else step.node.kwargs.get(name)
        )
        return torch.fx.map_arg(value, lambda node: self._values[node])

    def _filled(self, step: Step) -> tuple[list[Any], dict[str, Any], list[torch.Tensor]]:
        """(arguments, keyword arguments, tensors among them)"""
        tensors: list[torch.Tensor] = []

        def fill(value: Any) -> Any:
            if isinstance(value, torch.fx.Node):
                value = self._values[value]
                tensors.extend(
                    item
                    for item in (value if isinstance(value, (tuple, list)) else (value,))
                    if isinstance(item, torch.Tensor)
                )
                return value
            if isinstance(value, (tuple, list)):
                return [fill(item) for item in value]
            return (
                slice(fill(value.start), fill(value.stop), fill(value.step))
                if isinstance(value, slice)
                else value
            )

        return (
            [fill(value) for value in step.node.args],
            {name: fill(value) for name, value in step.node.kwargs.items()},
            tensors,
        )

    def _run(self, step: Step) -> None:
        """Runs a step that comes before the call that is launched. If it is an opaque call too, it
        is launched later, and its arguments are kept until then.
        """
        args, kwargs, tensors = self._filled(step)
        if step.call is not None:
            named = self._arguments(step)
            before = tensors_in(named)
            self._ahead[step.call] = (
                with_tensors(named, dict(zip(before, copy_together(list(before.values())))))
                if self._traced.copies_inputs
                else named
            )
        result = self._result(step, args, kwargs, tensors)
        if result is UNKNOWN:
            self._values[step.node] = result
            self._lost.update(
                pytorch.storage_id(value)
                for value in _written(step.node.target, args, kwargs, tensors)
            )
        elif step.call is not None:
            self._keep(step, result if isinstance(result, (tuple, list)) else (result,))
        else:
            self._values[step.node] = result
            self._mark(step, result, tensors)
        self._forget(step)

    def _forget(self, step: Step) -> None:
        """Frees what no later step needs, unless storages are marked as lost or unwritten: another
        value could get the address of a freed one, and with it the mark.
        """
        if not self._lost and not self._unwritten:
            for node in step.last_uses:
                del self._values[node]

    def _result(
        self,
        step: Step,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        tensors: Sequence[torch.Tensor],
    ) -> Any:
        known = not any(self._values[node] is UNKNOWN for node in step.node.all_input_nodes)
        if (
            not known
            or not step.runs
            or (self._lost and any(pytorch.storage_id(value) in self._lost for value in tensors))
        ):
            return UNKNOWN
        try:
            return (
                step.node.target(*args, **kwargs)
                if step.call is None
                else run_alone(step.node.target, args, kwargs, check=True)
            )
        except Exception:  # noqa: BLE001  not compared; the compiled graph reports errors itself
            return UNKNOWN

    def _mark(self, step: Step, result: Any, tensors: Sequence[torch.Tensor]) -> None:
        """Records which memory was never written."""
        if step.allocates:
            self._unwritten |= _storages(result)
        elif self._unwritten and any(
            pytorch.storage_id(value) in self._unwritten for value in tensors
        ):
            made = _storages(result)
            if step.keeps:
                self._unwritten |= made
            elif not made <= {pytorch.storage_id(value) for value in tensors}:  # not a view
                self._lost |= made

    def _keep(self, step: Step, results: Sequence[Any]) -> None:
        """Keeps the results of a call for the steps after it."""
        assert step.call is not None
        call = self._traced.calls[step.call]
        self._values[step.node] = results[0] if len(results) == 1 else tuple(results)
        self._unwritten.update(pytorch.storage_id(results[index]) for index in call.partial)


def run_alone(overload: Any, args: Sequence[Any], kwargs: dict[str, Any], *, check: bool) -> Any:
    """Runs an opaque op by itself."""
    if not torch.is_grad_enabled():
        return _runtime.call_alone(overload, tuple(args), kwargs, check)
    with torch.no_grad():
        return _runtime.call_alone(overload, tuple(args), kwargs, check)


def copy_together(values: Sequence[Any]) -> list[Any]:
    """`values` with the tensors copied; the copies share memory among them as the originals do."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies = []
    for value in values:
        if isinstance(value, torch.Tensor):
            value = value.detach()
            storage = value.untyped_storage()
            key = storage.data_ptr() or id(value)
            if key not in storages:
                storages[key] = storage.clone()
            value = torch.empty(0, dtype=value.dtype, device=value.device).set_(
                storages[key], value.storage_offset(), value.size(), value.stride()
            )
        copies.append(value)
    return copies


def _storages(result: Any) -> set[int]:
    return {
        pytorch.storage_id(value)
        for value in (result if isinstance(result, (tuple, list)) else (result,))
        if isinstance(value, torch.Tensor)
    }


def _written(
    target: Any, args: Sequence[Any], kwargs: dict[str, Any], tensors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The tensors that a call writes to; all, if the target has no schema."""
    if not pytorch.is_overload(target):
        return list(tensors)
    named = {**dict(zip(pytorch.argument_names(target), args)), **kwargs}
    return list(
        tensors_in(
            {name: named[name] for name in pytorch.written_names(target) if name in named}
        ).values()
    )
