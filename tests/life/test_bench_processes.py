"""`opaq bench` in processes of its own: a wrong, a slow and two failing contestants are called out,
and the other benchmarks that start processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_models import MODELS


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "models.py").write_text(MODELS)
    return subprocess.run(
        [sys.executable, "-m", "opaq", "bench", *arguments, "--device", "cpu"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )


def records(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str, str], Any]:
    assert done.stdout.startswith("{"), done.stderr
    return {
        (each["case"], each["contestant"], each["metric"]): each
        for each in json.loads(done.stdout)["records"]
    }


@pytest.mark.long
def test_wrong_slow_and_failing_contestants_are_called_out(tmp_path: Path) -> None:
    names = (
        "eager,aot_eager,planted_wrong,planted_slow,planted_broken,planted_endless,planted_crash"
    )
    done = bench(
        tmp_path,
        "model",
        "models.py:make",
        "--backend",
        names,
        "--rounds",
        "6",
        "--timeout",
        "25",
        "--json",
    )
    assert done.returncode == 1  # a contestant was wrong
    found = records(done)
    step = {name: found["step", name, "time of a step"] for name in names.split(",")}
    assert step["eager"]["verdict"] == "baseline" and step["eager"]["value"] > 0
    assert step["planted_slow"]["verdict"] == "slower"
    assert step["planted_slow"]["value"] >= 10
    for name, verdict, note in [
        ("planted_wrong", "wrong", "result 0: relative error 0.01"),
        ("planted_broken", "failed", "no such chip"),
        ("planted_endless", "failed", "no answer within 25 s (--timeout)"),
        ("planted_crash", "failed", "its process ended: exit status 9, about to end"),
    ]:
        assert step[name]["verdict"] == verdict and step[name]["value"] is None
        assert note in step[name]["note"]
        assert ("step", name, "peak memory") not in found  # it is not ranked
    assert found["step", "aot_eager", "graphs"]["value"] >= 1
    assert found["step", "aot_eager", "graph breaks"]["value"] >= 1  # print()
    assert found["step", "eager", "first call"]["value"] > 0


def test_text_and_page(tmp_path: Path) -> None:
    done = bench(
        tmp_path, "model", "models.py:make", "--backend", "eager", "--rounds", "1",
        "--html", "page.html", "--output", "result.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "time of a step" in done.stdout and "from the model" not in done.stdout
    assert "opaq bench model models.py:make" in (tmp_path / "page.html").read_text()
    again = bench(
        tmp_path, "model", "models.py:make", "--backend", "eager", "--rounds", "1", "--compare",
        "result.json",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr


def test_cold_starts(tmp_path: Path) -> None:
    done = bench(tmp_path, "cold", "--rounds", "1", "--kernels", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = records(done)
    assert found["import, after torch", "opaq", "time"]["value"] > 0
    first = found["first compile", "opaq", "time"]
    assert first["value"] > 0 or first["verdict"] == "absent"  # without NVRTC
