"""The one format of results: what was measured, on what machine, and a list of records."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import machine
from .measure import Interval, interval

FORMAT = 1

# Of a record, against the contestant that it is compared with.
VERDICTS = ("baseline", "faster", "slower", "equal", "wrong", "failed", "absent", "")


# A smaller difference can come from the order of contestants or the place of their memory.
UNNOTICED = 0.005


@dataclasses.dataclass(frozen=True)
class Record:
    """One figure of one contestant. The records of a case and a metric are compared.

    value, low, high: the median over rounds and its 95 % interval; None without a measurement, low
    and high None where there is one only. ratio: the median over rounds of the ratio of the value
    to that of the contestant `to`, in the same round. floor: a lower bound of the value.
    """

    case: str
    contestant: str
    metric: str
    unit: str
    better: str = ""  # "less", "more" or "": there is no better
    value: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    to: str = ""
    verdict: str = ""  # one of VERDICTS; "" where nothing is compared
    floor: float | None = None
    note: str = ""  # why it is wrong, failed or absent, or a remark


def of_rounds(
    case: str,
    metric: str,
    unit: str,
    rounds: Mapping[str, Sequence[float]],
    *,
    to: str = "",
    better: str = "less",
    floor: str = "",
    notes: Mapping[str, str] | None = None,
) -> list[Record]:
    """The records of contestants that took turns: `rounds` has one value for each of them in each
    round.

    to: the contestant that the others are compared with. floor: the contestant whose median is the
    floor of the others; it is not compared itself, unless it is `to`.
    """
    bound = interval(rounds[floor]).median if floor else None
    records = []
    for name, values in rounds.items():
        found = interval(values)
        record = Record(
            case,
            name,
            metric,
            unit,
            better,
            *_rounded(found),
            floor=None if name == floor else _digits(bound),
            note=(notes or {}).get(name, "lower bound" if name == floor else ""),
        )
        if name == floor != to:
            records.append(record)
            continue
        if name == to:
            record = dataclasses.replace(record, ratio=1.0, to=to, verdict="baseline")
        elif to:
            ratio = interval([a / b for a, b in zip(values, rounds[to]) if b])
            median, low, high = _rounded(ratio)
            record = dataclasses.replace(
                record,
                ratio=median,
                ratio_low=low,
                ratio_high=high,
                to=to,
                verdict=verdict(ratio, better),
            )
        records.append(record)
    return records


def verdict(ratio: Interval, better: str) -> str:
    """ "equal" unless the whole interval lies on one side of 1, and the median is further from it
    than UNNOTICED."""
    if not better:
        return ""
    close = abs(ratio.median - 1) < UNNOTICED
    if math.isnan(ratio.median) or ratio.low <= 1 <= ratio.high or close:
        return "equal"
    return "faster" if (ratio.high < 1) == (better == "less") else "slower"


def without_value(
    case: str, contestant: str, metric: str, unit: str, verdict: str, note: str
) -> Record:
    """Of a contestant that is "wrong", has "failed" or is "absent": `note` says why."""
    return Record(case, contestant, metric, unit, verdict=verdict, note=" ".join(note.split()))


def make(
    benchmark: str,
    title: str,
    what: str,
    command: str,
    method: Mapping[str, Any],
    records: Sequence[Record],
) -> dict[str, Any]:
    """The result. what: of it the first paragraph is kept."""
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "title": title,
        "what": " ".join(what.strip().split("\n\n")[0].split()),
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": machine.facts(),
        "method": dict(method),
        "records": [dataclasses.asdict(record) for record in records],
    }


def as_json(result: Mapping[str, Any]) -> str:
    """The records one a line: they are read and compared as text, too."""
    head = json.dumps({key: value for key, value in result.items() if key != "records"}, indent=1)
    records = ",\n".join("  " + json.dumps(record) for record in result["records"])
    return f'{head[:-2]},\n "records": [\n{records}\n ]\n}}\n'


def _rounded(found: Interval) -> tuple[float | None, float | None, float | None]:
    low, high = (found.low, found.high) if found.rounds > 1 else (None, None)
    return _digits(found.median), _digits(low), _digits(high)


def _digits(value: float | None) -> float | None:
    """Five digits: no measurement here has more."""
    return None if value is None or math.isnan(value) else float(f"{value:.5g}")
