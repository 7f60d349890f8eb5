"""How everything here is measured: contestants take turns, a figure is a median with an interval,
and a contestant is checked before it is timed.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

Name = TypeVar("Name")  # of a contestant


@dataclasses.dataclass(frozen=True)
class Interval:
    """The median of the values of some rounds, and an interval that holds the true median with a
    probability of 95 %; of fewer than six rounds, all that was seen."""

    median: float
    low: float
    high: float
    rounds: int


def interval(values: Sequence[float]) -> Interval:
    """By order statistics, without an assumption about the distribution: the number of values below
    the true median is binomial. (Hahn and Meeker, Statistical Intervals, chapter 5.)"""
    ordered = sorted(values)
    count = len(ordered)
    if not count:
        return Interval(math.nan, math.nan, math.nan, 0)
    left_out, below = 0, 0.0
    while left_out < count // 2:
        below += math.comb(count, left_out) / 2**count
        if below > 0.025:
            break
        left_out += 1
    first = max(left_out - 1, 0)
    return Interval(statistics.median(ordered), ordered[first], ordered[count - 1 - first], count)


def in_turns(
    contestants: Mapping[Name, Callable[[], float]],
    rounds: int,
    progress: Callable[[str], None] = lambda step: None,
) -> dict[Name, list[float]]:
    """Calls each contestant once a round, so that a change of clock or load affects all alike. A
    contestant returns its figure. The order of a round is the reverse of the one before."""
    found: dict[Name, list[float]] = {name: [] for name in contestants}
    for round in range(rounds):
        progress(f"round {round + 1} of {rounds}")
        order = list(contestants)
        for name in order if round % 2 == 0 else reversed(order):
            found[name].append(contestants[name]())
    return found


def host_us(
    call: Callable[[], Any],
    *,
    per: int,
    synchronize: Callable[[], None],
    repeats: int = 200,
    warmups: int = 20,
) -> float:
    """Median host time of one of the `per` steps inside `call`, in microseconds; the device is idle
    when each repeat starts."""
    for _ in range(warmups):
        call()
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6 / per)
    synchronize()
    return statistics.median(times)


def synchronizer(device: str) -> Callable[[], None]:
    """What waits for the device."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


# Of relative RMS errors, where there is no result in a wider dtype to compare with.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a contestant's results are compared with: those of the first contestant, and the same
    computed in a wider dtype, or None where that is not possible."""

    results: Sequence[torch.Tensor]
    exact: Sequence[torch.Tensor] | None = None


def mistake(got: Sequence[torch.Tensor], expected: Expected) -> str:
    """Why results are wrong; "" if they are right: of equal shapes and dtypes, nan and infinities
    in the same places, and as near to the exact result as the first contestant's, within a factor
    of three; where that is not known, within TOLERANCES of the first contestant's."""
    if len(got) != len(expected.results):
        return f"{len(got)} results; expected {len(expected.results)}"
    for number, (mine, theirs) in enumerate(zip(got, expected.results)):
        where = f"result {number}"
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return f"{where}: {_kind(mine)}; expected {_kind(theirs)}"
        if not theirs.dtype.is_floating_point and not theirs.dtype.is_complex:
            if (differs := int((mine != theirs).sum())) != 0:
                return f"{where}: {differs} of {mine.numel()} values differ"
            continue
        allowed, ties = TOLERANCES.get(theirs.dtype, 1e-1), 0.0
        if theirs.dtype.itemsize == 1:  # float8, which has no arithmetic
            step = torch.finfo(theirs.dtype).eps
            mine, theirs = mine.float(), theirs.float()
            ties = _error_of_ties(theirs, step)
        rest = ~(mine.isfinite() & theirs.isfinite())
        if not mine[rest].isclose(theirs[rest], equal_nan=True).all():
            return f"{where}: nan or infinity where there should be none, or the reverse"
        if expected.exact is None:
            error, against = relative_error(mine, theirs), "those of the first contestant"
        else:
            exact = expected.exact[number]
            against = f"the result in {str(exact.dtype).removeprefix('torch.')}"
            error, least = relative_error(mine, exact), relative_error(theirs, exact)
            allowed = max(3 * least, allowed / 100, ties)
        if error > allowed:
            return f"{where}: relative error {error:.2g} to {against}; allowed are {allowed:.2g}"
    return ""


def _error_of_ties(expected: torch.Tensor, step: float) -> float:
    """The relative RMS error of two of the largest values that are rounded to the next one, since
    they lie in the middle: few of float8 do, but one may be more than is allowed for few values."""
    values = expected[expected.isfinite()].double()
    if not values.any():
        return 0.0
    largest, total = values.abs().max().item(), values.square().sum().item()
    return step * largest * math.sqrt(2 / total)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS of the difference over RMS of the expected values, both finite ones only."""
    wide = torch.complex128 if expected.dtype.is_complex else torch.float64
    got, expected = got.to(wide), expected.to(wide)
    both = got.isfinite() & expected.isfinite()
    a, b = got[both], expected[both]
    if not a.numel():
        return 0.0
    scale = b.abs().square().mean().sqrt().item()
    difference = (a - b).abs().square().mean().sqrt().item()
    return difference / scale if scale else difference


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


SAMPLED = 1 << 20  # values of a tensor that are compared


def sampled(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or of a large one evenly spaced values."""
    return tensor if tensor.numel() <= SAMPLED else tensor.flatten()[:: tensor.numel() // SAMPLED]


def tensors_in(value: Any, numbers: bool = False) -> list[torch.Tensor]:
    """All tensors in a result: of lists, dicts, dataclasses, and outputs of transformers. numbers:
    these, too, as tensors."""
    if isinstance(value, torch.Tensor):
        return [value]
    if numbers and isinstance(value, (int, float, complex)):
        return [torch.tensor(value)]
    if isinstance(value, Mapping):
        value = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, each.name) for each in dataclasses.fields(value)]
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for each in value for tensor in tensors_in(each, numbers)]
