"""Two results of one benchmark compared: what changed by more than the measurements vary."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from opaq import Error
from opaq.terminal import plain

from . import figures
from .figures import Record
from .result import FORMAT
from .table import columns

# Facts of a machine that change from minute to minute.
VARYING = ("temperature c", "clock sm", "clock memory")
WRITE_ONE = "write one with `opaq bench BENCHMARK --output PATH`"
Key = tuple[str, str, str]  # case, contestant, metric


class ResultError(Error, ValueError):
    """A file is no result, or one that cannot be compared."""


@dataclass(frozen=True)
class Change:
    """What became of the figure of one contestant.

    outcome: "better" or "worse" (or "changed", where the metric knows no better) only if the two
    95 % intervals do not overlap; "same" if they do; "unknown" if one of them has no interval;
    "wrong", "failed" or "absent" if it has no figure now, for that reason; "again" if it has one
    again; "none" if it had none before for the same reason.
    """

    case: str
    contestant: str
    metric: str
    unit: str
    old: float | None
    new: float | None
    percent: float | None  # of the value; None where there is no old value, or it is 0
    outcome: str
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    benchmark: str
    dates: tuple[str, str]
    warnings: list[str]
    changes: list[Change]  # of the records that both results have, in the order of the new one
    appeared: list[Key]
    vanished: list[Key]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def count(self, *outcomes: str) -> int:
        return sum(change.outcome in outcomes for change in self.changes)

    def __str__(self) -> str:
        return _text(self)


def load(path: str | os.PathLike[str], benchmark: str = "") -> dict[str, Any]:
    """Reads a result, of that benchmark if one is named; raises ResultError, or OSError if there is
    no such file.
    """
    where = os.fspath(path)
    with open(path, "rb") as stream:
        content = stream.read()
    try:
        result: dict[str, Any] = json.loads(content)
    except ValueError as error:  # of JSON or of UTF-8
        raise ResultError(
            f"{where}: expected a result of opaq bench, but it is not JSON: {error}; {WRITE_ONE}"
        ) from None
    except RecursionError:
        raise ResultError(f"{where}: JSON nested too deeply for a result; {WRITE_ONE}") from None
    check(result, where)
    if benchmark and result["benchmark"] != benchmark:
        raise ResultError(
            f"{where}: got a result of the benchmark {_shown(result['benchmark'])}; expected one "
            f"of {benchmark}, which it is compared with; {WRITE_ONE}"
        )
    return result


def check(result: Any, where: str) -> None:
    """Raises ResultError if `result` lacks what the table, the page and the comparison read."""
    if not isinstance(result, dict) or "format" not in result or "records" not in result:
        got = f"an object with {_names(result)}" if isinstance(result, dict) else _kind(result)
        raise ResultError(
            f"{where}: got {got}; expected a result of opaq bench, an object with format and "
            f"records; {WRITE_ONE}"
        )
    if result["format"] != FORMAT or isinstance(result["format"], bool):
        raise ResultError(
            f"{where}: got format {_shown(result['format'])}; this opaq reads format {FORMAT}; "
            "measure again with this version, or read it with the version that wrote it"
        )
    for name in ("benchmark", "title"):
        if not isinstance(result.get(name), str):
            raise _wrong(where, name, result.get(name), "a string")
    for name in ("machine", "method"):
        if not isinstance(result.get(name, {}), dict):
            raise _wrong(where, name, result[name], "an object")
    if not isinstance(result["records"], list):
        raise _wrong(where, "records", result["records"], "a list")
    for number, record in enumerate(result["records"]):
        _check_record(record, f"records[{number}]", where)


def _check_record(record: Any, name: str, where: str) -> None:
    if not isinstance(record, dict):
        raise _wrong(where, name, record, "an object")
    for field in ("case", "contestant", "metric"):
        if not isinstance(record.get(field), str):
            raise _wrong(where, f"{name}.{field}", record.get(field), "a string")
    for field in ("unit", "better", "to", "verdict", "note"):
        if not isinstance(record.get(field, ""), str):
            raise _wrong(where, f"{name}.{field}", record[field], "a string")
    for field in ("value", "low", "high", "ratio", "ratio_low", "ratio_high", "floor"):
        value = record.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise _wrong(where, f"{name}.{field}", value, "a number or null")


def _wrong(where: str, name: str, got: Any, expected: str) -> ResultError:
    return ResultError(f"{where}: {name}: got {_shown(got)}; expected {expected}; {WRITE_ONE}")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _names(mapping: Mapping[str, Any]) -> str:
    return ", ".join(list(mapping)[:4]) or "nothing in it"


def _kind(value: Any) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), _shown(value))


def text(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The comparison of two results in lines of plain text."""
    return str(compare(old, new))


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Compares two results of one benchmark, record by record."""
    if old["benchmark"] != new["benchmark"]:
        raise ResultError(
            f"the old result is of the benchmark {old['benchmark']!r}, the new one of "
            f"{new['benchmark']!r}; expected two results of one benchmark; give both of one"
        )
    before, after = _by_key(old, "old"), _by_key(new, "new")
    return Comparison(
        new["benchmark"],
        (str(old.get("date") or "?"), str(new.get("date") or "?")),
        _warnings(old, new),
        [_change(before[key], after[key]) for key in after if key in before],
        [key for key in after if key not in before],
        [key for key in before if key not in after],
    )


def _by_key(result: Mapping[str, Any], which: str) -> dict[Key, Record]:
    found: dict[Key, Record] = {}
    for record in result["records"]:
        key = _key(record)
        if key in found:
            raise ResultError(
                f"the {which} result has two records of {' / '.join(key)}; expected one for each "
                "case, contestant and metric; measure again"
            )
        found[key] = record
    return found


def _key(record: Record) -> Key:
    return record["case"], record["contestant"], record["metric"]


def _change(old: Record, new: Record) -> Change:
    before, after = figures.finite(old.get("value")), figures.finite(new.get("value"))
    unit = new.get("unit") or old.get("unit") or ""
    percent, note = None, new.get("note") or ""
    if after is None:
        outcome = new.get("verdict") or "absent"
        if before is None and outcome == (old.get("verdict") or "absent"):
            outcome = "none"
    elif before is None:
        outcome, note = "again", f"was {old.get('verdict') or 'absent'}"
    elif (old.get("unit") or "") != (new.get("unit") or ""):
        outcome, note = "unknown", f"the unit was {old.get('unit') or 'none'}"
    else:
        percent = 100 * (after - before) / abs(before) if before else None
        outcome = _outcome(old, new, after < before)
        note = "no interval" if outcome == "unknown" else ""
    return Change(*_key(new), unit, before, after, percent, outcome, note)


def _outcome(old: Record, new: Record, less: bool) -> str:
    old_low, old_high = figures.bounds(old)
    new_low, new_high = figures.bounds(new)
    if old_low is None or old_high is None or new_low is None or new_high is None:
        return "unknown"
    if old_low <= new_high and new_low <= old_high:
        return "same"
    better = new.get("better") or old.get("better") or ""
    if better not in figures.BETTER:
        return "changed"
    return "better" if less == (better == "less") else "worse"


def _warnings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between the runs, beside the code that is measured."""
    warnings = []
    for part in ("machine", "method"):
        was, now = (dict(figures.facts(result.get(part) or {})) for result in (old, new))
        for name in dict.fromkeys([*was, *now]):
            if name not in VARYING and was.get(name) != now.get(name):
                before, after = was.get(name, "not recorded"), now.get(name, "not recorded")
                warnings.append(f"{name} differs: {before} (old), {after} (new)")
    commands = [" && ".join(figures.commands(result)) for result in (old, new)]
    if commands[0] != commands[1]:
        warnings.append(f"the command differs: {commands[0]} (old), {commands[1]} (new)")
    return warnings


def _text(comparison: Comparison) -> str:
    old, new = comparison.dates
    lines = [f"{comparison.benchmark}: {old} (old) and {new} (new)"]
    lines += [f"warning: {warning}" for warning in comparison.warnings]
    by_metric: dict[tuple[str, str], list[Change]] = {}
    for change in comparison.changes:
        by_metric.setdefault((change.metric, change.unit), []).append(change)
    for (metric, unit), changes in by_metric.items():
        lines += ["", f"{metric} ({unit})" if unit else metric]
        rows = columns([_row(change) for change in changes], right=(1, 3, 4))
        last = None
        for change, row in zip(changes, rows):
            lines += [plain(change.case)] if change.case != last else []
            lines.append(row)
            last = change.case
    for head, keys in (("appeared", comparison.appeared), ("vanished", comparison.vanished)):
        lines += ["", f"{head}:"] if keys else []
        lines += [f"  {contestant}: {case}, {metric}" for case, contestant, metric in keys]
    return "\n".join(plain(line) for line in [*lines, "", _total(comparison)])


def _row(change: Change) -> tuple[str, ...]:
    percent = "" if change.percent is None else f"{change.percent:+.1f} %"
    outcome = "" if change.outcome in ("same", "unknown", "none") else change.outcome
    cells = (
        f"  {change.contestant}",
        figures.number(change.old) or "-",
        "->",
        figures.number(change.new) or "-",
        percent,
        outcome,
        change.note,
    )
    return tuple(plain(cell) for cell in cells)


def _total(comparison: Comparison) -> str:
    total = len(comparison.changes)
    counts = {
        "better": comparison.count("better"),
        "worse": comparison.count("worse"),
        "changed": comparison.count("changed"),
        "without a figure now": comparison.count(*figures.WITHOUT_FIGURE),
        "with a figure again": comparison.count("again"),
        "within their intervals": comparison.count("same"),
        "not comparable": comparison.count("unknown"),
        "without a figure as before": comparison.count("none"),
    }
    shown = [f"{n} {what}" for what, n in counts.items() if n or what in ("better", "worse")]
    return f"{total} {'record' if total == 1 else 'records'} compared: {', '.join(shown)}"
