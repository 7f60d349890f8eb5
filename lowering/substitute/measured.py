"""Where a substitution was measured to be faster: data in a file beside the pattern, which
`opaq bench kernels --update` writes.

    {"measured": [{"arch": "sm_90", "dtype": "bfloat16", "training": false,
                   "rows": 8192, "columns": 32000, "gain": 1.41, "form": "halves"}, ...]}

form: of the call, where a pattern tells forms apart. gain: the time of what Inductor makes (of the
modes that were measured the fastest one) divided by the time of the replacement.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FASTER = 1.02  # a smaller gain may be chance: the graph is left alone


@dataclasses.dataclass(frozen=True)
class Point:
    arch: str
    dtype: str
    training: bool
    rows: int
    columns: int
    gain: float
    form: str = ""

    def described(self) -> dict[str, Any]:
        """As the file has it."""
        found = dataclasses.asdict(self)
        return found if self.form else {k: v for k, v in found.items() if k != "form"}


@functools.cache
def read(path: Path) -> tuple[Point, ...]:
    """Empty where the file does not exist: nothing was measured so far."""
    if not path.exists():
        return ()
    return tuple(Point(**each) for each in json.loads(path.read_text())["measured"])


def write(path: Path, points: Sequence[Point], facts: dict[str, Any]) -> None:
    """Adds measurements, in place of those of the same call. facts: of the latest (device,
    versions)."""
    every = {dataclasses.replace(point, gain=0): point for point in [*read(path), *points]}
    every = sorted(every.values(), key=lambda point: (point.form, *dataclasses.astuple(point)))
    lines = ",\n".join(f"    {json.dumps(point.described())}" for point in every)
    path.write_text(f'{{\n  "facts": {json.dumps(facts)},\n  "measured": [\n{lines}\n  ]\n}}\n')
    read.cache_clear()


def alike(
    points: Sequence[Point], arch: str, dtype: str, training: bool, form: str
) -> Sequence[Point]:
    """The measurements of such calls. float16 is as fast as bfloat16: the kernels move as many
    bytes, and differ in conversions."""
    call = (arch, dtype, training, form)
    found = [p for p in points if (p.arch, p.dtype, p.training, p.form) == call]
    if not found and dtype == "float16":
        return alike(points, arch, "bfloat16", training, form)
    return found


def gain(points: Sequence[Point], rows: int, columns: int) -> float | None:
    """The smallest gain of the measurements around a size: of the nearest numbers of columns on
    both sides that were measured with as few rows, and of each of them the nearest numbers of rows
    on both sides. More rows than were measured count as the most that were. None where there is no
    measurement on a side.
    """
    by_width: dict[int, dict[int, float]] = {}
    for point in points:
        by_width.setdefault(point.columns, {})[point.rows] = point.gain
    usable = {width: gains for width, gains in by_width.items() if min(gains) <= rows}
    found = []
    for width in _around(usable, columns):
        gains = usable[width]
        found += [gains[height] for height in _around(gains, min(rows, max(gains)))]
    return min(found, default=None)


def _around(known: Iterable[int], value: int) -> tuple[int, ...]:
    """The nearest on both sides; empty if there is none on one of them."""
    below = [each for each in known if each <= value]
    above = [each for each in known if each >= value]
    return (max(below), min(above)) if below and above else ()
