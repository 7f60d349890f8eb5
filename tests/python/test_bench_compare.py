"""Two results of a benchmark compared, and files that are no results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from bench_results import record, result, small

from opaq import Error
from opaq.bench.compare import ResultError, compare, load, text


def changed(old: dict[str, Any], new: dict[str, Any]) -> Any:
    return compare(result([old]), result([new])).changes[0]


@pytest.mark.parametrize(
    ("old", "new", "better", "percent", "outcome"),
    [
        (100.0, 90.0, "less", -10.0, "better"),
        (100.0, 110.0, "less", 10.0, "worse"),
        (100.0, 110.0, "more", 10.0, "better"),
        (100.0, 90.0, "more", -10.0, "worse"),
        (100.0, 90.0, "", -10.0, "changed"),
        (100.0, 103.0, "less", 3.0, "same"),  # 98 to 102, and 100.9 to 105.1
        (0.0, 5.0, "less", None, "worse"),
    ],
)
def test_a_change_counts_only_where_the_intervals_do_not_overlap(
    old: float, new: float, better: str, percent: float | None, outcome: str
) -> None:
    found = changed(
        record("a", "opaq", old, better=better), record("a", "opaq", new, better=better)
    )
    assert found.outcome == outcome
    assert found.percent == (None if percent is None else pytest.approx(percent))


def test_a_single_measurement_is_not_judged() -> None:
    found = changed(record("a", "opaq", 1.0, low=None, high=None), record("a", "opaq", 9.0))
    assert (found.outcome, found.percent, found.note) == ("unknown", 800.0, "no interval")


def test_other_units_are_not_compared() -> None:
    found = changed(record("a", "opaq", 1.0, unit="ms"), record("a", "opaq", 1000.0))
    assert (found.outcome, found.percent, found.note) == ("unknown", None, "the unit was ms")


def test_figures_that_are_lost_or_there_again_are_told() -> None:
    there = record("a", "x", 1.0)
    absent = record("a", "x", None, verdict="absent", note="not installed: x")
    wrong = record("a", "x", None, verdict="wrong", note="error 0.3")
    assert (changed(there, wrong).outcome, changed(there, wrong).note) == ("wrong", "error 0.3")
    assert (changed(absent, there).outcome, changed(absent, there).note) == ("again", "was absent")
    assert changed(absent, wrong).outcome == "wrong"
    assert changed(absent, absent).outcome == "none"


def test_the_comparison_is_told_in_lines() -> None:
    old, new = result(small()), result(small())
    new["records"][1].update(value=3.0, low=2.9, high=3.1)
    new["records"][2]["contestant"] = "triton"
    new["machine"].update(torch="2.16.0", environment={"OMP_NUM_THREADS": "2"})
    del new["machine"]["driver"]
    new["method"]["rounds"] = 30
    new.update(date="2026-12-01", command="opaq bench boundary")
    comparison = compare(old, new)
    assert text(old, new) == (
        """\
boundary: 2026-11-27 (old) and 2026-12-01 (new)
warning: driver differs: 580.159.04 (old), not recorded (new)
warning: torch differs: 2.15.0+cu132 (old), 2.16.0 (new)
warning: environment differs: OMP_NUM_THREADS 1 (old), OMP_NUM_THREADS 2 (new)
warning: rounds differs: 15 (old), 30 (new)
warning: the command differs: opaq bench boundary --device cuda (old), opaq bench boundary (new)

added op (us)
chain of 50
  raw loop   3.00  ->  3.00   +0.0 %
  opaq       3.50  ->  3.00  -14.3 %  better
  CuPy          -  ->     -                   not installed: CuPy
  numba         -  ->     -                   error 0.3; at most 1e-5
  custom_op     -  ->     -                   RuntimeError: no kernel image

appeared:
  triton: chain of 50, added op

vanished:
  triton_op: chain of 50, added op

5 records compared: 1 better, 0 worse, 1 within their intervals, 3 without a figure as before"""
    )
    assert json.loads(json.dumps(comparison.as_dict()))["changes"][1]["outcome"] == "better"


def test_what_varies_from_minute_to_minute_is_no_warning() -> None:
    old, new = result(small()), copy.deepcopy(result(small()))
    old["machine"].update(temperature_c="35", clock_sm="345 MHz")
    new["machine"].update(temperature_c="61", clock_sm="1980 MHz")
    assert compare(old, new).warnings == []


def test_results_of_two_benchmarks_are_refused() -> None:
    with pytest.raises(
        ResultError,
        match="the old result is of the benchmark 'boundary', the new one of 'cold'; expected two "
        "results of one benchmark",
    ):
        compare(result(small()), result(small(), benchmark="cold"))


def test_a_record_that_is_there_twice_is_refused() -> None:
    with pytest.raises(
        ResultError,
        match="the new result has two records of a / opaq / added op; expected one for each case",
    ):
        compare(result([]), result([record("a", "opaq", 1.0)] * 2))


def test_a_result_is_read(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result(small())))
    assert load(file) == result(small())
    assert load(file, "boundary") == result(small())
    with pytest.raises(
        ResultError,
        match=r'result.json: got a result of the benchmark "boundary"; expected one of cold, which '
        "it is compared with; write one with `opaq bench BENCHMARK --output PATH`",
    ):
        load(file, "cold")


RECORD = record("a", "opaq", 1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.json: expected a result of opaq bench, but it is not JSON: Expecting value"),
        (b'{"format": 1', "but it is not JSON: Expecting ',' delimiter: line 1 column 13"),
        (b"\xff\x00\xfe", "but it is not JSON: 'utf-"),
        (b"[" * 100_000, "r.json: JSON nested too deeply for a result"),
        ([1], "got a list; expected a result of opaq bench, an object with format and records"),
        (None, "got null; expected a result"),
        (7, "got 7; expected a result"),
        ({}, "got an object with nothing in it; expected a result"),
        ({"a": 1, "b": 2}, "got an object with a, b; expected a result"),
        ({**result([]), "format": 2}, "got format 2; this opaq reads format 1; measure again"),
        ({**result([]), "format": True}, "got format true; this opaq reads format 1"),
        ({**result([]), "benchmark": 3}, "benchmark: got 3; expected a string; write one with"),
        ({**result([]), "machine": []}, "machine: got []; expected an object"),
        ({**result([]), "records": {}}, "records: got {}; expected a list"),
        (result([RECORD, 5]), "records[1]: got 5; expected an object"),  # type: ignore[list-item]
        (result([{**RECORD, "case": None}]), "records[0].case: got null; expected a string"),
        (result([{**RECORD, "unit": 1}]), "records[0].unit: got 1; expected a string"),
        (result([{**RECORD, "value": "3"}]), 'records[0].value: got "3"; expected a number or'),
        (result([{**RECORD, "low": True}]), "records[0].low: got true; expected a number or null"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ResultError) as raised:
        load(file)
    assert message in str(raised.value) and str(file) in str(raised.value)
    assert "\n" not in str(raised.value) and isinstance(raised.value, Error)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.json")
