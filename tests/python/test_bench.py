"""A run of each benchmark with tiny counts, on the CPU."""

from __future__ import annotations

import json
from typing import Any

import pytest

from opaq import cli


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[tuple[str, str, str], Any]:
    status = cli.main(["bench", *arguments, "--device", "cpu", "--json"])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    return {
        (each["case"], each["contestant"], each["metric"]): each
        for each in json.loads(shown.out)["records"]
    }


def test_compile(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "compile", "--nodes", "1,3", "--rounds", "1")
    assert found["3 nodes", "opaq", "compile time"]["value"] > 0
    assert ("3 nodes", "opaq", "one more node") in found
    assert ("1 node", "opaq", "one more node") not in found


def test_memory(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "memory", "--layers", "2", "--tokens", "16", "--width", "8")
    assert len(found) == 6 and all(not each["verdict"] for each in found.values())


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "check", "--only", "launch: 1 float", "--rounds", "6")
    assert found["launch: 1 float doubled", "on", "processor time"]["verdict"] == "slower"


def test_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--small", "--contestants", "opaq,eager", "--rounds", "1")
    found = run(capsys, "kernels", *arguments)
    cases = {case for case, _, _ in found}
    assert {case.partition(" ")[0] for case in cases} == {
        "rms_norm",
        "silu_mul",
        "rope",
        "cross_entropy",
    }
    for case in cases:
        assert found[case, "opaq", "time of a call"]["value"] > 0
        assert found[case, "opaq", "time of a call"]["floor"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "--contestants", "opaq,triton"], "--contestants: got 'triton'; expected some"),
        (["kernels", "--only", "conv"], "--only: no case has 'conv' in its name; there are rms_n"),
        (["compile", "--nodes", "1,x"], "--nodes: got '1,x'; expected numbers, as in 1,10"),
        (["matmul"], "opaq bench matmul measures cuBLASLt, which needs a GPU"),
        (["launch"], "opaq bench launch measures cuLaunchKernel, which needs a GPU"),
        (["boundry"], "invalid choice: 'boundry'"),
        (["memory", "--compare", "missing.json"], "missing.json"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        known = ["--device", "cpu"] if arguments != ["boundry"] else []
        status = cli.main(["bench", *arguments, *known])
    except SystemExit as exit:  # by argparse
        status = exit.code
    shown = capsys.readouterr()
    assert status == 2 and shown.out == ""
    assert message in shown.err.strip().splitlines()[-1]
