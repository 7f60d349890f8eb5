"""What `opaq bench` shows on a terminal: a result as a table, and the progress of a run."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from opaq.terminal import plain

from . import figures
from .figures import WITHOUT_FIGURE, Metric, Record

WIDTH = 100
MANY_CASES = 8  # from here on a case is one line, with a column for each contestant
MOST_COLUMNS = 5
START, UP, CLEAR_REST = "\r", "\x1b[{}F", "\x1b[K"  # of a line


def text(result: Mapping[str, Any]) -> str:
    """The result as lines of plain text: what was measured, and each metric by case."""
    parts = [plain(result["title"])]
    parts += textwrap.wrap(plain(result.get("what") or ""), WIDTH)
    parts += [plain(line) for line in (figures.machine_title(result),) if line]
    parts += [plain(f"$ {command}") for command in figures.commands(result)]
    for metric in figures.metrics(result):
        to = f"; ratios are to {metric.to}" if metric.to else ""
        parts += ["", plain(metric.title + to), *_lines(metric)]
    if not result["records"]:
        parts += ["", "no records"]
    return "\n".join(parts)


def _lines(metric: Metric) -> list[str]:
    if len(metric.cases) < MANY_CASES or len(metric.contestants) > MOST_COLUMNS:
        lines = _by_case(metric)
    else:
        lines = [*_a_case_a_line(metric), *_reasons(metric)]
    if len(metric.cases) >= figures.SUMMARISED:
        for summary in figures.summaries(metric):
            to = f" to {summary.to}" if summary.to and not metric.to else ""
            lines.append(plain(f"{summary.contestant}{to}: {summary.text}"))
    return lines


def _by_case(metric: Metric) -> list[str]:
    """A line for each contestant, under a line for each case."""
    rows: list[tuple[str, ...]] = []
    heads: dict[int, str] = {}
    for case in metric.cases:
        heads[len(rows)] = plain(case.name)
        rows += [_row(record, metric) for record in case.records]
        floor = next((figures.finite(r.get("floor")) for r in case.records if r.get("floor")), None)
        if floor is not None:
            rows.append(("  lower bound", figures.number(floor), "", "", "", "", ""))
    lines = []
    for i, line in enumerate(columns(rows, right=(1, 3))):
        lines += [heads[i]] if i in heads else []
        lines.append(line)
    return lines


def _row(record: Record, metric: Metric) -> tuple[str, ...]:
    """Contestant, value, interval, ratio, interval, verdict and note."""
    ratio = _ratio(record)
    to = "" if metric.to or not ratio else f"to {record['to']}"
    note = f"{record['note']}" if record.get("note") else ""
    if record.get("verdict") in WITHOUT_FIGURE:
        return _cells(f"  {record['contestant']}", "-", "", "", "", record["verdict"], note)
    return _cells(
        f"  {record['contestant']}",
        figures.number(record["value"]) or "-",
        figures.interval(record),
        ratio,
        " ".join(filter(None, (figures.ratio_interval(record), to))),
        figures.verdict(record),
        note,
    )


def _ratio(record: Record) -> str:
    return "" if figures.is_base(record) else figures.times(record.get("ratio"))


def _cells(*cells: str) -> tuple[str, ...]:
    return tuple(plain(cell) for cell in cells)


def _a_case_a_line(metric: Metric) -> list[str]:
    """A line for each case, with a column for each contestant."""
    rows = [("", *(plain(name) for name in metric.contestants))]
    for case in metric.cases:
        by_name = {record["contestant"]: record for record in case.records}
        cells = [_cell(by_name.get(name)) for name in metric.contestants]
        rows.append(_cells(case.name, *cells))
    return columns(rows)


def _cell(record: Record | None) -> str:
    if record is None:
        return "-"
    if record.get("verdict") in WITHOUT_FIGURE:
        return str(record["verdict"])
    parts = [figures.number(record["value"]) or "-", _ratio(record)]
    return " ".join(filter(None, [*parts, figures.verdict(record)]))


def _reasons(metric: Metric) -> list[str]:
    """The notes, for which a case's line has no room."""
    lines = []
    for note, records in figures.notes(metric.records).items():
        names = ", ".join(dict.fromkeys(record["contestant"] for record in records))
        cases = f"{len(records)} cases" if len(records) > 1 else records[0]["case"]
        lines.append(plain(f"{names}, {cases}: {note}"))
    return lines


def columns(rows: Sequence[tuple[str, ...]], right: Sequence[int] = ()) -> list[str]:
    """The rows as lines with their cells in columns; the columns of `right` end together."""
    if not rows:
        return []
    widths = [max(width(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            room = " " * (widths[i] - width(cell))
            cells.append(room + cell if i in right else cell + room)
        lines.append("  ".join(cell for cell, size in zip(cells, widths) if size).rstrip())
    return lines


def width(line: str) -> int:
    """The columns that a line takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in line)
    marks = sum(unicodedata.category(letter) in ("Mn", "Me") for letter in line)
    return len(line) + wide - marks


def cut(line: str, room: int) -> str:
    """The line, cut to `room` columns."""
    if width(line) <= room:
        return line
    while line and width(line) > room - 3:
        line = line[:-1]
    return line + "..."[: max(room, 0)]


class Progress:
    """Shows on stderr what a run is doing, and the records that it has made.

        with Progress() as progress:
            progress.step("inductor: compile")
            progress.record(record)

    On a terminal this is a table of the last records above one line with the step, which is drawn
    again for each change and removed at the end. Elsewhere it is a line for each step and record.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream  # None where there is no stderr
        self.live = (
            self.stream is not None
            and self.stream.isatty()
            and os.environ.get("TERM", "") not in ("", "dumb")
        )
        self.records: list[Record] = []  # made so far
        self._step = ""
        self._drawn = 0  # lines above the cursor's that are ours

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def step(self, what: str) -> None:
        """Says what is being done now."""
        self._step = plain(what)
        if self.live:
            self._draw()
        else:
            self._write(f"{self._step}\n")

    def of(self, case: str) -> Callable[[str], None]:
        """`step` for the steps of a case."""
        return lambda what: self.step(f"{case}, {what}")

    def record(self, *made: Any) -> None:
        """Adds records to the result, and shows them: mappings, or dataclasses with the same
        fields."""
        for each in made:
            record = each if isinstance(each, Mapping) else dataclasses.asdict(each)
            self.records.append(record)
            if not self.live:
                name = f"{record['case']}, {record['metric']}: {record['contestant']}"
                self._write(f"{plain(f'{name} {_figure(record)}')}\n")
        if self.live:
            self._draw()

    def close(self) -> None:
        """Removes what was drawn."""
        if self.live:
            self._show([""])

    def _draw(self) -> None:
        size = shutil.get_terminal_size()
        lines = self._table(size.lines - 2) + [self._step]
        # One column is left free: at the last one terminals differ in where the cursor goes.
        self._show([cut(line, size.columns - 1) for line in lines])

    def _show(self, lines: list[str]) -> None:
        """Draws the lines over the last ones, line by line: a terminal may keep a screen that is
        cleared as a whole among the lines to scroll back to.
        """
        surplus = max(self._drawn - (len(lines) - 1), 0)
        start = UP.format(self._drawn) if self._drawn else START
        drawn = "\n".join(line + CLEAR_REST for line in [*lines, *[""] * surplus])
        self._write(start + drawn + (UP.format(surplus) if surplus else ""))
        self._drawn = len(lines) - 1

    def _table(self, room: int) -> list[str]:
        """The lines of the last records, as many as there is room for."""
        recent = self.records[-max(room, 0) :] if room > 0 else []
        lines, last = [], None
        rows = columns([_cells(f"  {r['contestant']}", _figure(r)) for r in recent])
        for record, row in zip(recent, rows):
            head = plain(f"{record['case']}, {record['metric']}")
            lines += [head] if head != last else []
            lines.append(row)
            last = head
        return lines[-room:] if room > 0 else []

    def _write(self, text: str) -> None:
        if self.stream is not None:
            self.stream.write(text)
            self.stream.flush()


def _figure(record: Record) -> str:
    """A record in a few words, such as "3.47 us, 1.16x raw loop, slower"."""
    if record.get("verdict") in WITHOUT_FIGURE:
        return ": ".join(filter(None, (record["verdict"], record.get("note") or "")))
    value = " ".join(filter(None, (figures.number(record["value"]), record.get("unit") or "")))
    ratio = _ratio(record)
    parts = [value, f"{ratio} {record['to']}" if ratio else "", figures.verdict(record)]
    return ", ".join(filter(None, parts))
