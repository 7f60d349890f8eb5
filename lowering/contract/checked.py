"""The launch objects and Python functions of a generated wrapper under the contract check."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from opaq import _runtime, call_site

from .. import overload_of
from .compare import first_difference, identical
from .replay import UNKNOWN, Record, copy_together, partial_results, replay
from .traced import kept

Layout = tuple[Sequence[int], Sequence[int], torch.dtype]  # sizes, strides, dtype


class Run:
    """What the kept graph gives for the inputs of the graph that this thread runs."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def start(self, number: int, inputs: Sequence[Any]) -> None:
        self._threads.records = number, replay(kept[number], inputs) if number in kept else {}

    def record(self, call: tuple[int, int] | None) -> Record | None:
        number, records = getattr(self._threads, "records", (None, {}))
        return records.get(call[1]) if call is not None and call[0] == number else None


class Checked:
    """Holds calls of one node against what was traced."""

    def __init__(self, run: Run, op: str, overload: Any, place: Callable[[], str], call: tuple[int, int] | None) -> None:
        """place: where the call is, for messages."""
        self.run, self.op, self.overload, self.call, self.place = run, op, overload, call, place
        self.arguments = overload._schema.arguments
        self.names = [argument.name for argument in self.arguments]
        self.written = [a.name for a in self.arguments if a.alias_info is not None and a.alias_info.is_write]
        self.partial = partial_results(op)
        self.groups = kept[call[0]].calls[call[1]].groups if call is not None and call[0] in kept else None

    def launch(self, launcher: Callable[..., None], results: Sequence[str]) -> Callable[..., None]:
        """The launch object, called with what it takes and with how its tensors were laid out when the graph was compiled."""
        count = len(self.names) + len(results)

        def checked(*values: Any, laid_out: Sequence[Layout | None]) -> None:
            self._as_compiled([*self.names, *results], values, laid_out)
            args = dict(zip(self.names, values))
            expected = self._expected(args)
            launcher(*values)
            self._compare_after(expected, {**args, **dict(zip(range(len(results)), values[len(self.names) : count]))}, results)

        return checked

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A Python function, which may write to the arguments that its op declares as written, and to no other."""

        def checked(*args: Any, **kwargs: Any) -> Any:
            named = {**dict(zip(self.names, args)), **kwargs}
            kept_values = {name: value.clone() for name, value in named.items() if isinstance(value, torch.Tensor) and name not in self.written}
            expected = self._expected(named)
            made = function(*args, **kwargs)
            self._unchanged(named, kept_values)
            results = list(made) if isinstance(made, (tuple, list)) else [made]
            names = [f"result {index}" for index in range(len(results))] if len(results) > 1 else ["result"]
            self._compare_after(expected, {**named, **dict(enumerate(results))}, names)
            return made

        return checked

    # ---- the parts -----------------------------------------------------------------------------------------------------

    def _as_compiled(self, names: Sequence[str], values: Sequence[Any], laid_out: Sequence[Layout | None]) -> None:
        for name, value, layout in zip(names, values, laid_out):
            if layout is None:
                continue
            sizes, strides, dtype = tuple(layout[0]), tuple(layout[1]), layout[2]
            if tuple(value.shape) != sizes or value.dtype != dtype or (value.numel() and not _same_strides(sizes, value.stride(), strides)):
                self._violated(
                    f"`{name}` is {value.dtype} {tuple(value.shape)} with strides {value.stride()}; the graph was compiled for {dtype} {sizes} with "
                    f"strides {strides}: an op before it makes something else than its fake implementation says"
                )

    def _expected(self, args: Mapping[str, Any]) -> Mapping[Any, Any]:
        """Written arguments by name and results by number, as they should be after the call. The call's arguments are compared here."""
        if self.groups is None:
            return {}
        record = self.run.record(self.call)
        exact = record is not None
        for name, value in args.items():
            if not isinstance(value, torch.Tensor):
                continue
            traced = record.before.get(name, UNKNOWN) if record is not None else UNKNOWN
            if not isinstance(traced, torch.Tensor):
                exact = False
                continue
            self._compare(f"argument `{name}`", value, traced, "the traced graph gives it")
            exact = exact and identical(value, traced)
        return record.after if exact and record is not None else self._alone(args)

    def _alone(self, args: Mapping[str, Any]) -> Mapping[Any, Any]:
        """The op run by itself on copies of these arguments, which share memory only where they do in eager."""
        assert self.groups is not None
        copies = {name: value for name, value in args.items() if not isinstance(value, torch.Tensor)}
        for group in sorted({self.groups.get(name, -1) for name in args if name not in copies}):
            members = [name for name in args if name not in copies and self.groups.get(name, -1) == group]
            copies.update(zip(members, copy_together([args[name] for name in members])))
        positional = [copies[a.name] for a in self.arguments if not a.kwarg_only and a.name in copies]
        with torch.no_grad():
            named = {a.name: copies[a.name] for a in self.arguments if a.kwarg_only and a.name in copies}
            try:
                made = _runtime.call_checked(self.overload, tuple(positional), named)
            except Exception:  # noqa: BLE001  the launch fails alike, and says where
                return {}
        return {
            **{name: copies[name] for name in self.written if name in copies},
            **dict(enumerate(made if isinstance(made, (tuple, list)) else [made])),
        }

    def _compare_after(self, expected: Mapping[Any, Any], values: Mapping[Any, Any], results: Sequence[str]) -> None:
        for key, wanted in expected.items():
            if key in self.partial:
                continue
            got = values.get(key)
            if isinstance(wanted, torch.Tensor) and isinstance(got, torch.Tensor):
                what = f"argument `{key}` after the call" if isinstance(key, str) else f"result `{results[key]}`"
                self._compare(what, got, wanted, "the op gives when it is run alone on what the traced graph gives it")

    def _compare(self, what: str, got: torch.Tensor, expected: torch.Tensor, says: str) -> None:
        if got.shape != expected.shape or got.dtype != expected.dtype:
            self._violated(f"{what} is {got.dtype} {tuple(got.shape)}, and not the {expected.dtype} {tuple(expected.shape)} that {says}")
        index = first_difference(got, expected)
        if index is not None:
            self._violated(
                f"{what} is {got[index].item()} at {list(index)}, and not the {expected[index].item()} that {says}; a pass of Inductor dropped a copy or "
                f"moved a read behind a write: report this as a bug of opaq, and call the op outside torch.compile meanwhile"
            )

    def _unchanged(self, args: Mapping[str, Any], before: Mapping[str, torch.Tensor]) -> None:
        written = {args[name].untyped_storage().data_ptr() for name in self.written if isinstance(args.get(name), torch.Tensor)}
        for name, old in before.items():
            now = args[name]
            if now.untyped_storage().data_ptr() in written:
                continue  # it may have changed where the written argument covers it
            index = _first_changed(old, now)
            if index is not None:
                self._violated(
                    f"argument `{name}` is not declared as written, but the function changed it: {name}{list(index)} was {old[index].item()}, and is "
                    f"{now[index].item()}; name it in mutates_args, or write to a copy"
                )

    def _violated(self, text: str) -> None:
        raise _runtime.ContractError(f"{self.op}{self.place()}: {text}")


def eager_function(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A Python function of an op that is declared with it next, checked where it is called."""

    def place() -> str:
        line = call_site.find()
        return f" (called at {line})" if line else ""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return Checked(Run(), op, overload_of(op), place, None).function(function)(*args, **kwargs)

    return call


def _first_changed(old: torch.Tensor, now: torch.Tensor) -> tuple[int, ...] | None:
    if old.shape != now.shape:
        return ()
    changed = old.ne(now) & ~(old.isnan() & now.isnan())
    return tuple(int(i) for i in changed.nonzero()[0]) if bool(changed.any()) else None


def _same_strides(sizes: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    return all(size == 1 or x == y for size, x, y in zip(sizes, a, b))
