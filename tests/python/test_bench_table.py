"""Results of benchmarks on a terminal, and the progress of a run."""

from __future__ import annotations

import dataclasses
import io
import os
import re
from typing import Any

import pytest
from bench_results import many, record, result, small

from opaq.bench import table
from opaq.bench.table import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and shows what one would."""

    def isatty(self) -> bool:
        return True

    def shown(self) -> list[str]:
        """The lines on the screen, by the control sequences that `Progress` uses."""
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[\d*[FK]|[\r\n]|[^\r\n\x1b]+", self.getvalue()):
            if part == table.CLEAR_REST:
                lines[row] = lines[row][:column]
            elif part.startswith("\x1b"):
                row, column = row - int(part[2:-1]), 0
                assert row >= 0, "above the first line"
            elif part == "\n":
                row, column = row + 1, 0
                lines[row:] = lines[row:] or [""]
            elif part == "\r":
                column = 0
            else:
                lines[row] = lines[row][:column] + part + lines[row][column + len(part) :]
                column += len(part)
        while len(lines) > 1 and not lines[-1]:
            lines.pop()
        return lines


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(table.shutil, "get_terminal_size", lambda: os.terminal_size((40, 8)))
    return Terminal()


def test_a_result_is_a_table_by_case() -> None:
    assert table.text(result(small())) == (
        """\
Host time of one op
Host time of one op in a chain of 50.
NVIDIA H200, driver 580.159.04, torch 2.15.0+cu132, cuda 13.2, 2026-11-27
$ opaq bench boundary --device cuda

added op (us, less is better); ratios are to raw loop
chain of 50
  raw loop     3.00  2.94 to 3.06                         baseline
  opaq         3.50  3.43 to 3.57  1.17x  1.14x to 1.19x  slower
  triton_op    2.50  2.45 to 2.55  0.83x  0.82x to 0.85x  faster
  CuPy            -                                       absent    not installed: CuPy
  numba           -                                       wrong     error 0.3; at most 1e-5
  custom_op       -                                       failed    RuntimeError: no kernel image
  lower bound  2.90"""
    )


def test_many_cases_are_a_line_each_with_a_summary() -> None:
    shown = many(20)
    absent = record(shown["records"][0]["case"], "CuPy", None, verdict="absent", note="not here")
    shown["records"].insert(1, absent)
    lines = table.text(shown).splitlines()[6:]
    assert re.split(r"  +", lines[0]) == ["", "raw loop", "CuPy", "opaq", "opaq, tuned"]
    assert re.split(r"  +", lines[1]) == [
        "1 x 64 x 4096, bfloat16",
        "1.00 baseline",
        "absent",
        "0.900 0.90x faster",
        "0.800 0.80x faster",
    ]
    assert lines[-4:] == [
        "CuPy, 1 x 64 x 4096, bfloat16: not here",
        "CuPy: 1 case: 1 absent",
        "opaq: 20 cases: 20 faster; ratio 0.90x to 0.92x, median 0.91x",
        "opaq, tuned: 20 cases: 20 faster; ratio 0.80x to 0.82x, median 0.81x",
    ]


def test_a_result_without_records_says_so() -> None:
    assert table.text(result([])).endswith("\n\nno records")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.468, "3.47"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (0.01234, "0.0123"),
        (0.0, "0"),
        (-2.5, "-2.50"),
        (7, "7"),
        (1.5e-7, "1.50e-07"),
        (float("nan"), "-"),
        (None, "-"),
    ],
)
def test_figures_have_three_digits(value: Any, shown: str) -> None:
    only = {**record("a", "x", 1.0), "value": value, "low": None, "high": None}
    assert table.text(result([only])).splitlines()[-1].split() == ["x", shown]


def test_control_characters_do_not_reach_the_terminal() -> None:
    bad = "a\x1b[31mred\n\x07"
    shown = result([record(bad, bad, None, verdict="failed", note=bad)], title=bad, what=bad)
    text = table.text(shown)
    assert "\x1b" not in text and "\x07" not in text and "a\\x1b[31mred" in text
    stream = io.StringIO()
    Progress(stream).step(bad)
    Progress(stream).record(shown["records"][0])
    assert "\x1b" not in stream.getvalue() and stream.getvalue().count("\n") == 2


def test_wide_letters_keep_the_columns_aligned() -> None:
    lines = table.columns([("核心", "1"), ("abcd", "2"), ("e\u0301", "3")])
    assert lines == ["核心  1", "abcd  2", "e\u0301     3"]


def test_progress_is_a_line_for_each_step_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.step("inductor: compile")
        for each in small()[1:4:2]:
            progress.record(each)
    assert stream.getvalue() == (
        "inductor: compile\n"
        "chain of 50, added op: opaq 3.50 us, 1.17x raw loop, slower\n"
        "chain of 50, added op: CuPy absent: not installed: CuPy\n"
    )


def test_progress_takes_records_as_benchmarks_make_them() -> None:
    fields = record("a", "opaq", 3.5)
    stream = io.StringIO()
    Progress(stream).record(dataclasses.make_dataclass("Record", fields)(**fields))
    assert stream.getvalue() == "a, added op: opaq 3.50 us\n"


def test_progress_on_a_terminal_fills_a_table_above_the_step(terminal: Terminal) -> None:
    with Progress(terminal) as progress:
        progress.step("opaq: compile")
        assert terminal.shown() == ["opaq: compile"]
        progress.step("opaq: run")
        assert terminal.shown() == ["opaq: run"]
        progress.record(record("a", "opaq", 3.5))
        progress.record(record("a", "triton_op", 4.0))
        progress.step("next")
        assert terminal.shown() == [
            "a, added op",
            "  opaq       3.50 us",
            "  triton_op  4.00 us",
            "next",
        ]
    assert terminal.shown() == [""], "nothing is left of it"


def test_progress_keeps_within_the_terminal(terminal: Terminal) -> None:
    progress = Progress(terminal)
    for i in range(30):
        progress.record(record(f"case {i}", "核" * 30, float(i + 1)))
    progress.step("a step with a text that is much longer than forty columns")
    shown = terminal.shown()
    assert len(shown) == 7 and all(table.width(line) < 40 for line in shown)
    assert shown[-1] == "a step with a text that is much long..."
    assert shown[-3] == "case 29, added op"


def test_progress_without_stderr_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with Progress() as progress:
        progress.step("a")
        progress.record(record("a", "opaq", 1.0))
