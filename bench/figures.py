"""How the records of a result are grouped, and how their figures are written: what the terminal
table, the page and the comparison share.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]

# Verdicts of a contestant that has no figure; the record's note tells the reason.
WITHOUT_FIGURE = ("wrong", "failed", "absent")
BETTER = {"less": "less is better", "more": "more is better"}
SUMMARISED = 4  # from so many cases on, a summary is shorter than they are
MACHINE_TITLE = ("device", "driver", "torch", "cuda")  # what a figure depends on most


@dataclass(frozen=True)
class Case:
    """The contestants of one case in one metric, in the order of the records."""

    name: str
    records: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Metric:
    """All records of one metric in one unit, by case."""

    name: str
    unit: str
    cases: list[Case] = field(default_factory=list)

    @property
    def better(self) -> str:
        """ "less", "more" or ""; a record without a value does not say."""
        return next((r["better"] for r in self.records if r.get("better")), "")

    @property
    def records(self) -> list[Record]:
        return [record for case in self.cases for record in case.records]

    @property
    def to(self) -> str:
        """The contestant that all ratios of the metric are to; "" if there are several or none."""
        names = {record["to"] for record in self.records if record.get("ratio") is not None}
        return names.pop() if len(names) == 1 else ""

    @property
    def contestants(self) -> list[str]:
        return list(dict.fromkeys(record["contestant"] for record in self.records))

    @property
    def title(self) -> str:
        """The metric with what its figures mean, such as "added op (us, less is better)"."""
        meaning = [part for part in (self.unit, BETTER.get(self.better, "")) if part]
        return f"{self.name} ({', '.join(meaning)})" if meaning else self.name


def metrics(result: Mapping[str, Any]) -> list[Metric]:
    """The metrics of a result with their cases, each in the order of its first record."""
    found: dict[tuple[str, str], Metric] = {}
    cases: dict[tuple[str, str, str], Case] = {}
    for record in result["records"]:
        key = (record["metric"], record.get("unit") or "")
        if key not in found:
            found[key] = Metric(*key)
        of_case = (*key, record["case"])
        if of_case not in cases:
            cases[of_case] = Case(record["case"])
            found[key].cases.append(cases[of_case])
        cases[of_case].records.append(record)
    return list(found.values())


@dataclass(frozen=True)
class Summary:
    """How one contestant did against another over the cases of a metric."""

    contestant: str
    to: str
    cases: int
    verdicts: dict[str, int]
    ratios: list[float]  # sorted

    @property
    def text(self) -> str:
        """Such as "3 cases: 2 faster, 1 equal; ratio 0.79 to 1.02, median 0.95"."""
        parts = [f"{self.cases} {'case' if self.cases == 1 else 'cases'}"]
        if self.verdicts:
            parts[0] += ": " + ", ".join(f"{n} {verdict}" for verdict, n in self.verdicts.items())
        if self.ratios:
            low, high = times(self.ratios[0]), times(self.ratios[-1])
            median = times(statistics.median(self.ratios))
            parts.append(
                f"ratio {low} to {high}, median {median}" if low != high else f"ratio {low}"
            )
        return "; ".join(parts)


def summaries(metric: Metric) -> list[Summary]:
    """A summary for each contestant that is compared, or has no figure, in any case."""
    order = ("faster", "equal", "slower", *WITHOUT_FIGURE)
    pairs: dict[str, list[Record]] = {}
    for record in metric.records:
        if is_base(record):
            continue
        if record.get("verdict") or record.get("ratio") is not None:
            pairs.setdefault(record["contestant"], []).append(record)
    found = []
    for contestant, records in pairs.items():
        counts = Counter(record["verdict"] for record in records if record.get("verdict"))
        names = {record["to"] for record in records if record.get("to")}
        found.append(
            Summary(
                contestant,
                names.pop() if len(names) == 1 else "",
                len(records),
                {verdict: counts[verdict] for verdict in order if counts[verdict]},
                sorted(r["ratio"] for r in records if finite(r.get("ratio")) is not None),
            )
        )
    return found


def is_base(record: Record) -> bool:
    """Whether the others of its case are compared with this one."""
    return record.get("verdict") == "baseline" or record["contestant"] == record.get("to")


def verdict(record: Record) -> str:
    """The verdict in a word; "baseline" for the contestant that others are compared with."""
    return "baseline" if is_base(record) else record.get("verdict") or ""


def finite(value: Any) -> float | None:
    """A figure that can be drawn and compared, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an int beyond any float
        return None


def _decimals(value: float) -> int:
    """Decimals that give three significant digits."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0


def unit(text: str) -> str:
    """A unit as the page writes it: µs for us."""
    return "µs" if text == "us" else text


def number(value: Any, like: float | None = None) -> str:
    """A figure with three significant digits, or with as many decimals as `like`; "" for none."""
    if finite(value) is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value if like is None else like)
    if size and not 1e-3 <= size < 1e12:
        return f"{value:.2e}"
    return f"{value:,.{_decimals(value if like is None else like)}f}"


def times(ratio: Any) -> str:
    """A ratio, such as "1.16x"; "" for none."""
    if finite(ratio) is None:
        return ""
    return f"{ratio:.2f}x" if 0.1 <= abs(ratio) < 10 else f"{number(float(ratio))}x"


def interval(record: Record) -> str:
    """The 95 % interval of the value, such as "3.41 to 3.55"; "" if there is none."""
    low, high = bounds(record)
    if low is None or high is None:
        return ""
    center = finite(record.get("value"))
    return f"{number(low, center)} to {number(high, center)}"


def ratio_interval(record: Record) -> str:
    """The 95 % interval of the ratio, such as "1.15x to 1.18x"; "" if there is none."""
    low, high = (times(bound) for bound in bounds(record, "ratio"))
    return f"{low} to {high}" if low and high else ""


def bounds(record: Record, name: str = "") -> tuple[float | None, float | None]:
    """The 95 % interval of the value, or of `name`."""
    prefix = f"{name}_" if name else ""
    return finite(record.get(f"{prefix}low")), finite(record.get(f"{prefix}high"))


def facts(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The facts of a machine or method as pairs of text; a mapping inside becomes one line."""
    return [(str(key).replace("_", " "), fact(value)) for key, value in mapping.items()]


def fact(value: Any) -> str:
    """A value of a machine or method as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {fact(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(fact, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def machine_title(result: Mapping[str, Any]) -> str:
    """The machine and date in one line, such as "NVIDIA H200, driver 580, torch 2.15"."""
    machine = result.get("machine") or {}
    parts = [
        str(machine[key]) if key == "device" else f"{key} {machine[key]}"
        for key in MACHINE_TITLE
        if machine.get(key)
    ]
    return ", ".join([*parts, *([str(result["date"])] if result.get("date") else [])])


def commands(result: Mapping[str, Any]) -> list[str]:
    command = result.get("command") or []
    return [command] if isinstance(command, str) else list(command)


def notes(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records that have a note, by note: one reason often holds for many cases."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.get("note"):
            found.setdefault(record["note"], []).append(record)
    return found
