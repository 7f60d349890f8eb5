"""The bars of a result's page: one for each contestant, by case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from opaq.page_style import text

from . import figures
from .figures import WITHOUT_FIGURE, Case, Metric, Record

# Cases whose longest bars differ by more than this do not share a scale: the short ones would be
# too short to compare.
SHARED_SCALE = 12


@dataclass(frozen=True)
class Scale:
    """Where a value is, in percent of a chart's width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        return 100 * (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0


def bar_scale(metric: Metric) -> Scale | None:
    """The scale of all cases of a metric; None if each case needs its own."""
    ends = [max(map(abs, values)) for case in metric.cases if (values := _values(case.records))]
    ends = [end for end in ends if end]
    if not ends or max(ends) > SHARED_SCALE * min(ends):
        return None
    return scale_of(metric.records)


def scale_of(records: Sequence[Record]) -> Scale:
    values = [0.0, *_values(records)]
    return Scale(min(values), max(values))


def _values(records: Sequence[Record]) -> list[float]:
    """All that a chart of the records must have room for."""
    fields = ("value", "low", "high", "floor")
    found = (figures.finite(r.get(name)) for r in records for name in fields)
    return [value for value in found if value is not None]


def key(metric: Metric) -> str:
    """What the marks in the bars mean."""
    parts = []
    if any(figures.interval(record) for record in metric.records):
        parts.append('<span class="whisker" aria-hidden="true"></span> 95 % interval of the median')
    if any(figures.finite(record.get("floor")) is not None for record in metric.records):
        parts.append('<span class="floor" aria-hidden="true"></span> lower bound')
    if len(metric.cases) > 1 and bar_scale(metric) is None:
        parts.append("each case has a scale of its own")
    return key_line(f"<span>{part}</span>" for part in parts) if parts else ""


def key_line(parts: Iterable[str]) -> str:
    return f'<p class="key dim">{"".join(parts)}</p>'


def bars(case: Case, metric: Metric, shared: Scale | None) -> str:
    """A horizontal bar for each contestant, with its figures beside it as text."""
    scale = shared or scale_of(case.records)
    return f'<ul class="bars">{"".join(_bar_row(r, metric, scale) for r in case.records)}</ul>'


def _bar_row(record: Record, metric: Metric, scale: Scale) -> str:
    name = f'<span class="who">{text(record["contestant"])}</span>'
    note = text(record.get("note") or "")
    verdict = figures.verdict(record)
    if verdict in WITHOUT_FIGURE or figures.finite(record.get("value")) is None:
        shown = f'<span class="{text(verdict)}">{text(verdict or "no figure")}</span>'
        reason = f"{shown}: {note}" if note else shown
        return f'<li>{name}<span class="without">{reason}</span></li>'
    ours = ' class="ours"' if is_ours(record) else ""
    unit = figures.unit(record.get("unit") or "")
    value = f"{figures.number(record['value'])} {unit}".rstrip()
    interval = figures.interval(record)
    shown = f"<b>{text(value)}</b>" + (f" <small>{text(interval)}</small>" if interval else "")
    ratio = "" if figures.is_base(record) else figures.times(record.get("ratio")).replace("x", "×")
    to = f" to {record['to']}" if ratio and not metric.to else ""
    compared = f'{text(ratio + to)} <span class="{text(verdict)}">{text(verdict)}</span>'
    remark = f'<small class="without">{note}</small>' if note else ""
    return (
        f"<li{ours}>{name}{_bar(record, scale)}"
        f'<span class="value">{shown}</span><span class="ratio">{compared}</span>{remark}</li>'
    )


def is_ours(record: Record) -> bool:
    return str(record["contestant"]).startswith("opaq")


def describe(record: Record) -> str:
    """All of a record in a sentence, for a tooltip and for those who do not see the chart."""
    unit = figures.unit(record.get("unit") or "")
    parts = [f"{record['contestant']}: {figures.number(record['value'])} {unit}".rstrip()]
    if interval := figures.interval(record):
        parts.append(f"95 % interval {interval}")
    if not figures.is_base(record) and (ratio := figures.times(record.get("ratio"))):
        interval = figures.ratio_interval(record)
        parts.append(f"{ratio} of {record['to']}" + (f" ({interval})" if interval else ""))
    parts += [figures.verdict(record)]
    if (floor := figures.number(record.get("floor"))) != "":
        parts.append(f"lower bound {floor} {unit}".rstrip())
    return ", ".join(filter(None, [*parts, record.get("note") or ""]))


def _bar(record: Record, scale: Scale) -> str:
    meaning = text(describe(record))
    zero, end = scale.at(0), scale.at(record["value"])
    marks = [_rect(min(zero, end), abs(end - zero), "bar")]
    low, high = figures.bounds(record)
    if low is not None and high is not None:
        marks.append(line(scale.at(low), scale.at(high), "9", "9", "whisker"))
        marks += [line(scale.at(x), scale.at(x), "5", "13", "whisker") for x in (low, high)]
    floor = figures.finite(record.get("floor"))
    if floor is not None:
        marks.append(line(scale.at(floor), scale.at(floor), "0", "18", "floor"))
    return f'<svg role="img" aria-label="{meaning}"><title>{meaning}</title>{"".join(marks)}</svg>'


def _rect(x: float, width: float, name: str) -> str:
    return f'<rect class="{name}" x="{x:.2f}%" y="3" width="{width:.2f}%" height="12"/>'


def line(x1: float, x2: float, y1: str, y2: str, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.2f}%" x2="{x2:.2f}%" y1="{y1}" y2="{y2}"/>'
