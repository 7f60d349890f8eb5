"""The ratios of many cases on one axis, for the page of a result."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opaq.page_style import text

from . import figures
from .chart import Scale, describe, key_line, line
from .figures import WITHOUT_FIGURE, Case, Metric, Record

SHAPES = 6  # marks that the ratios of a contestant can have


def ratio_chart(metric: Metric) -> str:
    """The ratios of each case as marks on one logarithmic axis, a line for each case; "" if nothing
    is compared."""
    compared = [record for record in metric.records if _is_compared(record)]
    if not compared:
        return ""
    ends = [
        bound
        for record in compared
        for bound in (record["ratio"], *figures.bounds(record, "ratio"))
        if bound is not None and bound > 0
    ]
    low, high = min([*ends, 0.9]), max([*ends, 1.1])
    room = (high / low) ** 0.03  # for the marks at the ends
    scale = Scale(math.log(low / room), math.log(high * room))
    names = list(dict.fromkeys(record["contestant"] for record in compared))
    rows = "".join(_row(case, scale, names) for case in metric.cases)
    labels = "".join(
        f'<text class="label" x="{scale.at(math.log(tick)):.2f}%" y="13">{tick:g}×</text>'
        for tick in ticks(low, high)
    )
    axis = f'<li class="axis" aria-hidden="true"><span class="who"></span><svg>{labels}</svg></li>'
    return f'{_key(metric, names)}<ul class="ratios">{axis}{rows}{axis}</ul>'


def _key(metric: Metric, names: Sequence[str]) -> str:
    better = {"less": "; left of 1× is faster", "more": "; right of 1× is faster"}
    to = f" to {metric.to}" if metric.to else ""
    parts = [f"<span>Ratio{text(to)}{better.get(metric.better, '')}</span>"]
    for i, name in enumerate(names):
        mark = f'<svg class="mark" aria-hidden="true">{_shape(i % SHAPES, "50%")}</svg>'
        parts.append(f"<span>{mark} {text(name)}</span>")
    return key_line(parts)


def _row(case: Case, scale: Scale, names: Sequence[str]) -> str:
    compared = [record for record in case.records if _is_compared(record)]
    reasons = [
        f"{record['contestant']} {record['verdict']}"
        for record in case.records
        if record.get("verdict") in WITHOUT_FIGURE
    ]
    marks = "".join(_mark(r, scale, names.index(r["contestant"]) % SHAPES) for r in compared)
    meaning = text("; ".join([*map(describe, compared), *reasons]) or "nothing compared")
    without = f" <small>{text('; '.join(reasons))}</small>" if reasons else ""
    one = line(scale.at(0), scale.at(0), "0", "100%", "one")
    return (
        f'<li><span class="who">{text(case.name)}{without}</span>'
        f'<svg role="img" aria-label="{meaning}"><title>{meaning}</title>{one}{marks}</svg></li>'
    )


def _is_compared(record: Record) -> bool:
    ratio = figures.finite(record.get("ratio"))
    return ratio is not None and ratio > 0 and not figures.is_base(record)


def _mark(record: Record, scale: Scale, shape: int) -> str:
    low, high = figures.bounds(record, "ratio")
    whisker = ""
    if low is not None and high is not None and low > 0:
        ends = scale.at(math.log(low)), scale.at(math.log(high))
        whisker = line(*ends, "50%", "50%", f"mark{shape}")
    return whisker + _shape(shape, f"{scale.at(math.log(record['ratio'])):.2f}%")


def _shape(shape: int, x: str) -> str:
    """A mark at x. Contestants differ in colour and in shape."""
    if shape % 3 == 0:
        return f'<circle class="mark{shape}" cx="{x}" cy="50%" r="4"/>'
    # A nested svg moves the origin, in percent, which a path cannot.
    path = "M-4 -4h8v8h-8z" if shape % 3 == 1 else "M0 -5l5 5l-5 5l-5 -5z"
    return f'<svg class="origin" x="{x}" y="50%"><path class="mark{shape}" d="{path}"/></svg>'


# Round values, from the finest to the coarsest; of the last ones, in each power of ten.
_NEAR_ONE = (
    (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2),
    (0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6),
)
_DIGITS = ((1, 2, 5), (1, 3), (1,))
MOST_TICKS = 9


def ticks(low: float, high: float) -> list[float]:
    """Some round values between two positive ones, for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices: list[tuple[float, ...]] = [
        values for values in _NEAR_ONE if values[0] / 1.1 < low and high < values[-1] * 1.1
    ]
    choices += [tuple(d * 10.0**power for power in powers for d in digits) for digits in _DIGITS]
    for values in choices:
        found = [float(value) for value in values if low <= value <= high]
        if len(found) <= MOST_TICKS:
            return found
    return found[:: math.ceil(len(found) / MOST_TICKS)]
