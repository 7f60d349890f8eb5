"""A run of each benchmark with tiny counts, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import substituting
import torch

from opaq import cli
from opaq.bench import kernel_cases, result
from opaq.lowering.substitute import apply
from opaq.lowering.substitute.pattern import patterns


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


def test_linear_loss(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--tokens", "40", "--width", "8", "--classes", "30"
    found = run(capsys, "linear_loss", *sizes)
    assert not [key for key, each in found.items() if each["verdict"] == "wrong"]
    case = "40 x 8 x 30"
    assert found[case, "opaq, linear_cross_entropy by name", "time"]["value"] > 0


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "check", "--only", "launch: 1 float", "--rounds", "6")
    assert found["launch: 1 float doubled", "on", "processor time"]["verdict"] == "slower"


def test_no_case_of_kernels_is_there_twice() -> None:
    names = [case.name for case in kernel_cases.cases("cpu", 1.0, regions=True)]
    assert len(set(names)) == len(names)


def test_each_pattern_that_needs_measurements_has_cases() -> None:
    cases = kernel_cases.cases("cpu", 1.0, regions=True)
    files = {patterns[case.pattern].measurements for case in cases if case.pattern}
    assert {each.measurements for each in patterns.values()} - {None} <= files


@pytest.mark.parametrize("dtype", ["", "bfloat16"])
def test_the_dtype_of_cases(dtype: str) -> None:
    found = {case.name: case for case in kernel_cases.cases("cpu", 0.001, dtype=dtype)}
    case = found["rms_norm 32 x 4096"]
    assert case.dtype == (dtype or "float32")
    assert {str(each.dtype) for each in case.make()} == {f"torch.{case.dtype}"}
    assert found["multinomial 1 x 32000"].dtype == "float32"  # of probabilities, always


def test_cases_are_what_patterns_find() -> None:
    """With the sizes and the form that measurements are looked up by."""
    lost = []
    seen = {("sample_multinomial", ""), ("sample_exponential_race", "")}  # other random numbers
    for case in kernel_cases.cases("cpu", 0.001, dtype="bfloat16"):
        kind = case.pattern, case.form
        if not case.pattern or not case.substituted or (kind in seen and not case.form):
            continue
        seen.add(kind)
        torch.compiler.reset()
        with apply.collected() as places:
            unasked = torch.compile(case.plain, backend=substituting.backend("all"))
            case.call(unasked)(*case.make())
        rows, columns = case.sizes
        of_form = f" ({case.form})" if case.form else ""
        reason = f"it was not measured for {rows} x {columns} values on cpu{of_form}"
        # of fewer rows, the table of an embedding is small, which is another form
        if not any(e.pattern == case.pattern and e.reason.startswith(reason) for e in places):
            lost.append((case.name, places))
    assert lost == []


@pytest.mark.life
def test_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--small", "--contestants", "opaq,eager", "--rounds", "1")
    found = run(capsys, "kernels", *arguments)
    cases = {case for case, _, _ in found}
    assert {case.partition(" ")[0] for case in cases} == {
        "rms_norm",
        "add_rms_norm",
        "l2_norm",
        "layer_norm",
        "silu_mul",
        "gelu_mul",
        "rms_norm_float8",
        "silu_mul_float8",
        "rope",
        "rope_paged",
        "cross_entropy",
        "cross_entropy_label_smoothing",
        "cross_entropy_mean",
        "cross_entropy_softcap",
        "cross_entropy_softcap_and_logits",
        "cross_entropy_and_log_sum",
        "token_log_probability",
        "linear_cross_entropy",
        "softmax",
        "log_softmax",
        "sample",
        "top_k_probabilities",
        "top_p_probabilities",
        "min_p_probabilities",
        "top_k_top_p_of_rows",
        "multinomial",
        "sample_multinomial",
        "exponential_race",
        "sample_exponential_race",
        "penalize",
        "repetition_penalty",
        "token_penalties",
        "min_p_of_rows",
        "moe_scores",
        "moe_route",
        "moe_permute",
        "moe_combine",
        "embedding",
        "cumsum",
        "bincount",
        "sort",
    }
    for case in cases:
        assert found[case, "opaq", "time of a call"]["value"] > 0
        assert found[case, "opaq", "time of a call"]["floor"] > 0


def test_a_result_is_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, svg = str(tmp_path / "check.json"), tmp_path / "plot.svg"
    run(capsys, "check", "--only", "launch: 1 float", "--rounds", "1", "--output", path)
    assert cli.main(["bench", "show", path, "--svg", str(svg), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("processor time (us, less is better); ratios are to off. cpu, torch")
    assert "`opaq bench check --only 'launch: 1 float' --rounds 1" in lines[0]
    assert lines[2:4] == ["|  | launch: 1 float doubled |", "| --- | --- |"]
    assert lines[4].startswith("| off | ") and lines[5].endswith("x |")
    assert svg.read_text().startswith("<svg")
    assert cli.main(["bench", "show", path, "--compare", path]) == 0
    assert "The contract check" in capsys.readouterr().out
    assert cli.main(["bench", "show", path, "--markdown", "--metric", "time"]) == 2
    error = capsys.readouterr().err
    assert "metric: got 'time'; expected one of processor time" in error


def test_what_was_measured_before_a_stop_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(arguments: Any, progress: Any) -> Any:
        progress.record(result.Record("c", "opaq", "m", "us", value=1.0))
        raise KeyboardInterrupt

    monkeypatch.setattr("opaq.bench.check.run", stopped)
    path = tmp_path / "check.json"
    assert cli.main(["bench", "check", "--output", str(path)]) == cli.INTERRUPTED
    found = json.loads(path.read_text())
    assert found["method"] == {"stopped_by": "KeyboardInterrupt"}
    assert [each["value"] for each in found["records"]] == [1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "--contestants", "opaq,triton"], "--contestants: got 'triton'; expected opaq"),
        (["kernels", "--only", "conv"], "--only: no case has 'conv' in its name; there are rms_n"),
        (["compile", "--nodes", "1,x"], "--nodes: got '1,x'; expected whole numbers"),
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
