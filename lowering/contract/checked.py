"""The launch objects and Python functions of a generated wrapper under the contract check."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from opaq import _runtime, call_site

from .. import counts, overload_of
from ..compat import pytorch
from .compare import CLOSE, OTHER_SHAPE, SAME_LAYOUT, compare, index_of
from .replay import UNKNOWN, Replay, copy_together, run_alone
from .traced import kept, partial_results, tensors_in, with_tensors

_OF_GRAPH = "the traced graph gives it"
_OF_OP = "the op gives when it is run by itself on what the traced graph gives it"

Layout = tuple[Sequence[int], Sequence[int], torch.dtype]  # sizes, strides, dtype


class Run:
    """The run of the kept graph that accompanies the current call of the compiled graph, per
    thread.
    """

    def __init__(self) -> None:
        self._threads = threading.local()

    def start(self, number: int, inputs: Sequence[Any]) -> None:
        traced = kept.get(number)
        self._threads.replay = (
            (number, Replay(traced, inputs))
            if traced is not None and len(inputs) == traced.input_count
            else None
        )

    def of(self, call: tuple[int, int] | None) -> Replay | None:
        """The run that a call belongs to."""
        current = getattr(self._threads, "replay", None)
        return (
            current[1]
            if current is not None and call is not None and current[0] == call[0]
            else None
        )

    def end(self) -> None:
        self._threads.replay = None

    def keep(self, results: Any) -> None:
        """Keeps the results of an op that was run by itself until the next one is run. Getting
        their memory from the system at each call would cost more than the rest of the check.
        """
        self._threads.kept = results


@dataclasses.dataclass
class _Alone:
    """How to run the op by itself, to compare the launch with it."""

    args: Mapping[str, Any]
    check: bool  # under the contract check; not needed if the launch does the same and is checked
    replay: Replay | None  # gets the results


class Checked:
    """Compares the calls of one node with those in the traced graph."""

    def __init__(
        self,
        run: Run,
        op: str,
        overload: Any,
        place: Callable[[], str],
        call: tuple[int, int] | None,
        draws: bool,
    ) -> None:
        """place: where the call is, for messages. draws: whether random numbers may be drawn, by
        the op or by Python code.
        """
        self.run, self.op, self.overload, self.call, self.place, self.draws = (
            run,
            op,
            overload,
            call,
            place,
            draws,
        )
        self.names = pytorch.argument_names(overload)
        self.keyword_only = set(pytorch.keyword_only_names(overload))
        self.written = pytorch.written_names(overload)
        self.partial = partial_results(op)
        self.groups = (
            kept[call[0]].calls[call[1]].groups if call is not None and call[0] in kept else None
        )

    def launch(self, launcher: Callable[..., None], info: _runtime.OpInfo) -> Callable[..., None]:
        """The checked launch object. Calls take, besides its arguments, the layouts that its
        tensors had when the graph was compiled. info: of the op that is launched.
        """
        outputs = [output["name"] for output in info["outputs"]]
        names = [*self.names, *(result["name"] for result in info["results"])]
        arguments, count = len(self.names), len(names)

        def checked(*values: Any, laid_out: Sequence[Layout | None]) -> None:
            self._as_compiled(names, values, laid_out)
            args = dict(zip(self.names, values))
            alone = self._before(args, values[arguments:count])
            drawn = _RandomNumbers(values) if self.draws else None
            launcher(*values)
            if alone is not None:
                results = counts.shortened(info, values[arguments:count])
                self._after(alone, args, results, outputs, drawn)

        return checked

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The checked Python function, which may write only to arguments that its op declares as
        written.
        """

        def checked(*args: Any, **kwargs: Any) -> Any:
            named = {**dict(zip(self.names, args)), **kwargs}
            kept_values = {
                name: value.clone()
                for name, value in tensors_in(self._only(named, written=False)).items()
            }
            alone = self._before(named)
            drawn = _RandomNumbers(named.values()) if self.draws else None
            made = function(*args, **kwargs)
            self._unchanged(named, kept_values)
            if alone is not None:
                results = list(made) if isinstance(made, (tuple, list)) else [made]
                names = (
                    [f"result {index}" for index in range(len(results))]
                    if len(results) > 1
                    else ["result"]
                )
                self._after(alone, named, results, names, drawn)
            return made

        return checked

    # ---- the parts -------------------------------------------------------------------------------

    def _as_compiled(
        self, names: Sequence[str], values: Sequence[Any], laid_out: Sequence[Layout | None]
    ) -> None:
        for name, value, layout in zip(names, values, laid_out):
            if layout is None:
                continue
            sizes, strides, dtype = layout
            if value.shape == sizes and value.dtype == dtype and value.stride() == strides:
                continue
            sizes, strides = tuple(sizes), tuple(strides)
            if (
                tuple(value.shape) != sizes
                or value.dtype != dtype
                or (value.numel() and not _same_strides(sizes, value.stride(), strides))
            ):
                self._violated(
                    f"`{name}` is {value.dtype} {tuple(value.shape)} with strides "
                    f"{value.stride()}; the graph was compiled for {dtype} {sizes} with "
                    f"strides {strides}: an op before it does not return what its fake "
                    "implementation says"
                )

    def _before(
        self, args: Mapping[str, Any], results: Sequence[torch.Tensor] = ()
    ) -> _Alone | None:
        """Compares the arguments of a call with those in the traced graph. None: there is nothing
        to compare its results with. results: that the call writes, perhaps over arguments.
        """
        if self.groups is None or self.call is None:
            return None
        replay = self.run.of(self.call)
        traced = replay.take(self.call[1]) if replay is not None else None
        if traced is None:
            replay, traced = None, {}
        same = same_layout = True
        wanted_tensors = tensors_in(traced)
        for name, value in tensors_in(args).items():
            wanted = wanted_tensors.get(name)
            if wanted is not None:
                found = self._compare("argument", name, value, wanted, _OF_GRAPH)
                same, same_layout = same and found != CLOSE, same_layout and found == SAME_LAYOUT
            else:
                same = False
        if same:
            return _Alone(
                {**args, **{name: value for name, value in traced.items() if value is not UNKNOWN}},
                not same_layout,
                replay,
            )
        memory = {_memory(value) for value in results if value.numel()}
        if not self.written and not any(_memory(t) in memory for t in tensors_in(args).values()):
            return _Alone(args, False, replay)
        return _Alone(self._copies(args), True, replay)

    def _copies(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Copies of the arguments, which share memory only where eager's tensors do."""
        assert self.groups is not None
        groups: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors_in(args).items():
            groups.setdefault(self.groups.get(name, -1), {})[name] = value
        copies: dict[str, torch.Tensor] = {}
        for members in groups.values():
            copies.update(zip(members, copy_together(list(members.values()))))
        return with_tensors(args, copies)

    def _only(self, args: Mapping[str, Any], *, written: bool) -> dict[str, Any]:
        return {name: value for name, value in args.items() if (name in self.written) == written}

    def _after(
        self,
        alone: _Alone,
        args: Mapping[str, Any],
        results: Sequence[Any],
        names: Sequence[str],
        drawn: _RandomNumbers | None,
    ) -> None:
        """Runs the op by itself, and compares the results of the call with those."""
        assert self.call is not None
        positional = [
            alone.args[name]
            for name in self.names
            if name in alone.args and name not in self.keyword_only
        ]
        keywords = {name: alone.args[name] for name in self.keyword_only if name in alone.args}
        self.run.keep(None)
        try:
            run = functools.partial(
                run_alone, self.overload, positional, keywords, check=alone.check
            )
            made = drawn.again(run) if drawn is not None else run()
        except _runtime.ContractError:
            raise
        except Exception:  # noqa: BLE001  there is nothing to compare with
            wanted = None
        else:
            wanted = made if isinstance(made, (tuple, list)) else (made,)
            if self.written:
                after = tensors_in(self._only(alone.args, written=True))
                for name, got in tensors_in(self._only(args, written=True)).items():
                    self._compare("argument", name, got, after[name], _OF_OP)
            for index, (name, got, expected) in enumerate(zip(names, results, wanted)):
                if (
                    index not in self.partial
                    and isinstance(got, torch.Tensor)
                    and isinstance(expected, torch.Tensor)
                ):
                    self._compare("result", name, got, expected, _OF_OP)
        self.run.keep(wanted)
        if alone.replay is not None:
            alone.replay.give(self.call[1], alone.args, wanted)
            if alone.replay.done:
                self.run.end()

    def _compare(
        self, kind: str, name: str, got: torch.Tensor, expected: torch.Tensor, says: str
    ) -> int:
        found = compare(got, expected)
        if found >= 0 or found == OTHER_SHAPE:
            what = f"{kind} `{name}`" + (
                " after the call" if kind == "argument" and says is _OF_OP else ""
            )
            if found == OTHER_SHAPE:
                self._violated(
                    f"{what} is {got.dtype} {tuple(got.shape)}, and not the {expected.dtype} "
                    f"{tuple(expected.shape)} that {says}"
                )
            index = index_of(found, got.shape)
            self._violated(
                f"{what} is {got[index].item()} at {list(index)}, and not the "
                f"{expected[index].item()} that {says}; a pass of Inductor dropped a copy "
                "or "
                "moved a read behind a write: report this as a bug of opaq, and call the op "
                "outside torch.compile meanwhile"
            )
        return found

    def _unchanged(self, args: Mapping[str, Any], before: Mapping[str, torch.Tensor]) -> None:
        written = {_memory(value) for value in tensors_in(self._only(args, written=True)).values()}
        after = tensors_in(args)
        for name, old in before.items():
            now = after[name]
            if written and _memory(now) in written:
                continue  # it may have changed where the written argument covers it
            found = compare(now, old, bits=True)
            if found == OTHER_SHAPE:
                self._violated(
                    f"argument `{name}` is not declared as written, but the function made it "
                    f"{now.dtype} {tuple(now.shape)}; it was {old.dtype} {tuple(old.shape)}"
                )
            if found >= 0:
                index = index_of(found, now.shape)
                self._violated(
                    f"argument `{name}` is not declared as written, but the function changed "
                    f"it: {name}{list(index)} was {old[index].item()}, and is "
                    f"{now[index].item()}; name it in mutates_args, or write to a copy"
                )

    def _violated(self, text: str) -> None:
        raise _runtime.ContractError(f"{self.op}{self.place()}: {text}")


def eager_function(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of an op of custom_op, checked at each call in eager mode."""

    def place() -> str:
        line = call_site.find()
        return f" (called at {line})" if line else ""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return Checked(Run(), op, overload_of(op), place, None, False).function(function)(
            *args, **kwargs
        )

    return call


class _RandomNumbers:
    """The state of torch's generators, on the CPU and on the devices of `values`, before a call."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.devices = sorted(
            {
                value.device.index
                for value in values
                if isinstance(value, torch.Tensor) and value.is_cuda
            }
        )
        self.before = self._now()

    def again(self, run: Callable[[], Any]) -> Any:
        """run(), with the random numbers that were drawn since; the generators' state stays."""
        after = self._now()
        self._set(self.before)
        try:
            return run()
        finally:
            self._set(after)

    def _now(self) -> list[torch.Tensor]:
        return [
            torch.get_rng_state(),
            *(torch.cuda.get_rng_state(device) for device in self.devices),
        ]

    def _set(self, states: Sequence[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:]):
            torch.cuda.set_rng_state(state, device)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _same_strides(sizes: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    return all(size == 1 or x == y for size, x, y in zip(sizes, a, b))
