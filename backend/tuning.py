"""Choice by measurement: times the implementations that fit a call, and keeps which was fastest.

Contestants take turns. A result that differs from the first implementation's excludes its
implementation. The best of many is often one that was lucky: it meets the first once more, alone,
and is taken only if it is at least 2 % faster there and before, in both halves of the rounds.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from . import _runtime, tuning_ranks, tuning_store, validate
from .example_arguments import fake_argument, real_argument
from .lowering import counts, lists, options, tuner

if TYPE_CHECKING:
    from .op import Op

_LEAST_GAIN = 1.02
_ROUNDS = 2 * 6
_COLD_BYTES = 128 << 20  # operands take turns until they fill this: more than an L2 cache holds
_LAUNCHES = 16  # in one CUDA graph


@dataclass(frozen=True)
class Tuned:
    """What was found for one call. us: the median time of each implementation that gives the first
    one's results, in microseconds; of others, why they are out.
    """

    op: str
    problem: str  # "x bfloat16[16x4096]"
    fastest: str
    us: dict[str, float]
    out: dict[str, str] = field(default_factory=dict)
    stored: bool = False  # it was found earlier, on an equal machine

    @property
    def speedup(self) -> float:
        """Of the fastest over the implementation that serves where nothing was measured."""
        first = next(iter(self.us.values()), 0.0)
        return first / self.us[self.fastest] if self.us.get(self.fastest) else 1.0

    def __str__(self) -> str:
        rows = [f"{self.op}: {self.problem}{' (stored)' if self.stored else ''}"]
        for name, us in sorted(self.us.items(), key=lambda item: item[1]):
            rows.append(f"  {us:10.2f} us  {name}{'  <- chosen' if name == self.fastest else ''}")
        rows += [f"              {name}: {why}" for name, why in self.out.items()]
        return "\n".join(rows)


def tune(op: Op, *args: Any, search: bool = True, again: bool = False, **kwargs: Any) -> Tuned:
    """Finds the fastest implementation of an op for calls with arguments like these: with their
    dtypes, sizes, strides and ints. Later calls of the process use it, in eager and, with the
    option tune="stored" of backend="opaq", in graphs that are compiled. What was found is kept on
    disk for equal machines: device, driver, versions and the op's implementations. All processes of
    torch.distributed use what the first of them has found.

    args, kwargs: the call's arguments; written ones are copied first. search: False to use only
    what is stored. again: measure though it is stored. Not while a CUDA graph is captured. Raises
    opaq.LaunchError where no implementation fits, or the op draws random numbers or has effects.
    """
    described, values = lists.form_of(op.info, args, kwargs)
    form = described["name"]
    fakes = [fake_argument(value) for value in values]
    problem = _runtime.problem(form, fakes)
    if op.effects is not None:
        raise _runtime.LaunchError(
            f"{op.name}: an op with effects={op.effects!r} cannot be tuned: its calls cannot be "
            "repeated"
        )
    if not problem["fits"]:
        raise _runtime.LaunchError(
            f"{op.name}: nothing to tune: no implementation that is launched fits this call:\n"
            + _runtime.plan(form, fakes)["reasons"]
        )
    store = _store(op)

    def measured() -> Tuned:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise _runtime.LaunchError(
                f"{op.name}: tuning launches what it measures, and a CUDA graph is being captured; "
                "tune before"
            )
        return _measure(op, form, values, problem)

    found = _found(store, form, fakes, problem, measured if search else None, again)
    if found is None:
        first = problem["fits"][0]
        return Tuned(op.name, problem["text"], first, {})
    store.use(form, only_agreed=tuning_ranks.are_several())
    return found


@contextlib.contextmanager
def prefer(op: str | Op, names: Sequence[str]) -> Iterator[None]:
    """A context in which an op tries implementations of these names first, in this order, whatever
    was measured; "cuda" also means those whose names begin with "cuda:". For the whole process;
    graphs that use the op are compiled again, inside and afterwards. Raises opaq.DeclarationError
    for a name that no implementation has.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    declared = check_names("opaq.prefer(...)", op, wanted)
    before = _preferred.get(declared.name, [])
    _set_order(declared, wanted)
    try:
        yield
    finally:
        _set_order(declared, before)


def check_names(where: str, op: str | Op, names: Sequence[str]) -> Op:
    """The op, which has implementations of these names."""
    from .op import find_op

    declared = find_op(op) if isinstance(op, str) else op
    if declared is None:
        raise _runtime.DeclarationError(f"{where}: no op is named {op!r}")
    known = [each["name"] for each in declared.info["implementations"]]
    for name in names:
        if not any(options.is_meant(each, name) for each in known):
            expected = f"implementations are {', '.join(known)}"
            validate.refuse(f"{declared.name}: {where}", "names", name, expected)
    return declared


_preferred: dict[str, list[str]] = {}  # by the name of the op, while a context is open


def _set_order(op: Op, names: list[str]) -> None:
    _preferred[op.name] = names
    _runtime.prefer(op.name, names)
    op.order_changed()


def _store(op: Op) -> tuning_store.Store:
    return tuning_store.open_store(op.name, op.info["hash"], _runtime.cuda_driver())


def _store_of(name: str) -> tuning_store.Store | None:
    from .op import find_op

    op = find_op(name)
    return None if op is None else _store(op)


def _found(
    store: tuning_store.Store,
    form: str,
    args: Sequence[Any],
    problem: _runtime.Problem,
    measure: Callable[[], Tuned] | None,
    again: bool = False,
) -> Tuned | None:
    """What is stored for a call, else what `measure` finds; or what the first process of
    torch.distributed that asked for this has found.
    """
    question = tuning_ranks.Question(store.key(form, problem), again)
    kept = store.find(form, problem)
    answer, own = question.answer(), None
    if not answer or (answer == tuning_ranks.NOTHING and measure is not None):
        own = None if again else kept
        if own is None and measure is not None:
            own = measure()
        answer = question.agree(own, answer)
    found = tuning_ranks.read(answer, problem) or own
    if found is not None and (kept is None or again or found.fastest != kept.fastest):
        store.keep(form, args, problem, found)
    store.agreed.add((form, problem["key"]))
    return found


# ---- graphs --------------------------------------------------------------------------------------


class _Tuner:
    """What the lowering asks for the option `tune`."""

    def fastest(
        self, name: str, form: str, args: Sequence[_runtime.FakeArgument], search: bool
    ) -> tuner.Fastest | None:
        from .op import find_op

        op = find_op(name)
        if op is None or op.effects is not None or _preferred.get(name):
            return None
        problem = _runtime.problem(form, args)
        if not problem["fits"]:
            return None

        def measured() -> Tuned:
            with torch.random.fork_rng(devices=_cuda_devices()):
                values = [real_argument(value) for value in args]
            return _measure(op, form, values, problem)

        searched = search and len(problem["fits"]) > 1
        found = _found(_store(op), form, args, problem, measured if searched else None)
        if found is None:
            return None
        return tuner.Fastest(found.fastest, next(iter(found.us), found.fastest), found.speedup)

    def known(self, name: str, form: str) -> list[list[Any]]:
        store = _store_of(name)
        return [] if store is None else store.calls(form)

    def digest(self, name: str) -> str:
        store = _store_of(name)
        return "" if store is None else store.digest()


def _cuda_devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


tuner.installed = _Tuner()


# ---- measuring -----------------------------------------------------------------------------------


def _measure(op: Op, form: str, values: Sequence[Any], problem: _runtime.Problem) -> Tuned:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    contest = _Contest(op, form, values, device)
    first, *others = problem["fits"]
    with torch.no_grad():
        if why := contest.prepare(first):
            raise _runtime.LaunchError(f"{op.name}: its implementation `{first}` fails: {why}")
    with ThreadPoolExecutor() as pool:
        ready = dict(zip(others, pool.map(contest.prepare, others)))
    out = {name: why for name, why in ready.items() if why}
    running = [name for name in problem["fits"] if name not in out]
    with torch.no_grad():
        times = contest.times(running)
        us = {name: statistics.median(found) for name, found in times.items()}
        best = min(us, key=lambda name: us[name])
        fastest = first
        if _is_faster(best, first, times):
            again = contest.times([first, best])
            us |= {name: statistics.median(found) for name, found in again.items()}
            fastest = best if _is_faster(best, first, again) else first
    return Tuned(op.name, problem["text"], fastest, us, out)


def _is_faster(name: str, than: str, times: dict[str, list[float]]) -> bool:
    """In both halves of the rounds."""
    ratios = [a / b for a, b in zip(times[than], times[name])]
    halves = ratios[: len(ratios) // 2], ratios[len(ratios) // 2 :]
    return all(statistics.median(half) >= _LEAST_GAIN for half in halves)


class _Contest:
    """Launches of the implementations of one form on copies of the arguments."""

    def __init__(self, op: Op, form: str, values: Sequence[Any], device: torch.device) -> None:
        self.op, self.form, self.device = op, form, device
        self.info = _runtime.describe(form)
        size = sum(value.numel() * value.element_size() for value in values if _is_tensor(value))
        count = max(1, min(_LAUNCHES, _COLD_BYTES // max(size, 1) + 1))
        self.sets = [self._operands(values) for _ in range(count)]
        self.launchers: dict[str, Callable[..., None]] = {}
        self.expected: list[torch.Tensor] | None = None

    def _operands(self, values: Sequence[Any]) -> tuple[list[Any], list[torch.Tensor]]:
        """(arguments, results) in memory of their own."""
        args = [_copy(value) if _is_tensor(value) else value for value in values]
        made = self.op.largest_of_form(self.form, args)
        hidden = len(counts.names(self.info))
        results = [
            *made,
            *(torch.zeros((), dtype=torch.int64, device=self.device) for _ in range(hidden)),
        ]
        return args, results

    def _stream(self) -> list[int]:
        if self.device.type != "cuda":
            return []
        return [torch.cuda.current_stream(self.device).cuda_stream]

    def prepare(self, name: str) -> str:
        """Compiles one implementation; why it is out, or ""."""
        with torch.no_grad():
            return self._prepare(name)

    def _prepare(self, name: str) -> str:
        try:
            self.launchers[name] = _runtime.launcher(
                self.form,
                self.info["hash"],
                str(self.device),
                "opaq.tune",
                name,
                False,
                name,
                "compiled",
            )
            args, results = self._operands(self.sets[0][0])
            self.launchers[name](*args, *results, *self._stream())
        except _runtime.Error as error:
            return str(error).splitlines()[0]
        written = [arg for arg, spec in zip(args, self.info["args"]) if spec["mutated"]]
        got = [*counts.shortened(self.info, results), *written]
        if self.expected is None:
            self.expected = got
            return ""
        try:
            for mine, wanted in zip(got, self.expected):
                torch.testing.assert_close(mine, wanted, equal_nan=True, **_tolerance(wanted))
        except AssertionError as error:
            return f"its results differ: {' '.join(str(error).split())[:200]}"
        return ""

    def times(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Microseconds of a launch, by rounds."""
        runs = {name: self._run(name) for name in names}
        found: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(_ROUNDS + 2):
            for name, run in runs.items():
                us = run()
                if turn >= 2:  # the first two warm up
                    found[name].append(us)
        return found

    def _run(self, name: str) -> Callable[[], float]:
        launcher, sets = self.launchers[name], self.sets

        def launch_all() -> None:
            stream = self._stream()
            for i in range(_LAUNCHES):
                args, results = sets[i % len(sets)]
                launcher(*args, *results, *stream)

        if self.device.type != "cuda":

            def on_host() -> float:
                start = time.perf_counter()
                launch_all()
                return (time.perf_counter() - start) * 1e6 / _LAUNCHES

            return on_host
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(self.device)):
            launch_all()

        def on_device() -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) * 1e3 / _LAUNCHES

        return on_device


def _tolerance(expected: torch.Tensor) -> dict[str, float]:
    """Sums in another order differ by an error that goes with the size of the summands, and not
    with that of a sum which happens to be small: so the absolute tolerance goes with the root mean
    square of all elements.
    """
    if not expected.dtype.is_floating_point or expected.element_size() == 1:
        return {}
    # Smaller dtypes are rounded once, after a sum in float32.
    relative = (2 if expected.element_size() == 2 else 128) * torch.finfo(expected.dtype).eps
    finite = expected[expected.isfinite()].double()
    square = finite.square().mean().item() if finite.numel() else 0.0
    return {"rtol": relative, "atol": relative * square**0.5}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """With the same strides, in memory of its own."""
    copied = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return copied.copy_(tensor.detach())
