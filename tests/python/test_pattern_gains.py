"""Patterns where nothing was measured: tune="search" measures them on this machine, tune="stored"
uses what was found."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from opaq import _runtime, pattern_gains
from opaq.lowering.record import Substitution
from opaq.lowering.substitute import apply


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pattern_gains.searched, "installed", pattern_gains._Gains())
    settings = {**_runtime.settings(), "cache_dir": str(tmp_path)}
    monkeypatch.setattr(_runtime, "settings", lambda: settings)
    return tmp_path / "patterns"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the next measurements find, in place of measurements."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(pattern_gains, "_measured", lambda place: given.pop(0))
    return given


def found_in(function: Callable[..., Any], *args: Any, tune: str) -> list[Substitution]:
    torch.compiler.reset()
    with apply.collected() as found:
        result = torch.compile(function, backend="opaq", options={"tune": tune})(*args)
    torch.testing.assert_close(result, function(*args))
    return found


def log_softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(x, -1)


X = torch.randn(6, 50)
FASTER = {"gain": 1.5, "ops": ["opaq_kernels::log_softmax"]}


def test_a_process_measures_and_what_it_found_is_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, [50], weight, 1e-6)

    arguments = X, torch.ones(50, requires_grad=True)
    [found] = found_in(norm, *arguments, tune="search")
    [file] = cache.iterdir()
    content = json.loads(file.read_text())
    assert content["gain"] > 0 and f"{content['gain']:.2f} times as fast" in found.reason
    assert found.applied == (content["gain"] >= 1.02)
    ops = "rms_norm", "rms_norm_backward", "sum_of_blocks"
    assert content["ops"].keys() == {f"opaq_kernels::{name}" for name in ops}
    assert content["facts"]["training"] and content["facts"]["arguments"]["weight"][-1] is True
    monkeypatch.setattr(pattern_gains.subprocess, "run", None)
    assert found_in(norm, *arguments, tune="stored") == [found]
    assert found_in(norm, *arguments, tune="search") == [found]


@pytest.mark.parametrize(
    "name", ["multinomial", pytest.param("exponential_race", marks=pytest.mark.life)]
)
def test_what_draws_is_measured_with_probabilities_and_the_same_numbers(
    cache: Path, name: str
) -> None:
    def draw(p: torch.Tensor) -> torch.Tensor:
        if name == "multinomial":
            return torch.multinomial(p, 1)
        return torch.argmax(p / torch.empty_like(p).exponential_(1), dim=-1, keepdim=True)

    p = torch.rand(20, 300)
    torch.manual_seed(1)
    expected = draw(p)
    torch.compiler.reset()
    compiled = torch.compile(draw, backend="opaq", options={"tune": "search"})
    with apply.collected() as found:
        torch.manual_seed(1)
        drawn = compiled(p)
    [file] = cache.iterdir()
    content = json.loads(file.read_text())
    assert content["facts"]["pattern"] == name
    assert content["ops"].keys() == {"opaq_kernels::multinomial"}
    assert [each.applied for each in found] == [content["gain"] >= 1.02]
    if found[0].applied or name == "multinomial":
        assert torch.equal(drawn, expected)


def test_off_and_stored_measure_nothing(answers: list[dict[str, Any]]) -> None:
    for tune in ("off", "stored"):
        [found] = found_in(log_softmax, X, tune=tune)
        assert found.reason == "it was not measured for 6 x 50 values on cpu"


def test_a_slower_op_is_left(answers: list[dict[str, Any]]) -> None:
    answers.append({**FASTER, "gain": 0.9})
    [found] = found_in(log_softmax, X, tune="search")
    assert not found.applied
    assert found.reason == "it is not faster for 6 x 50 values on cpu: 0.90 times as fast"


def test_a_failure_is_told_and_not_repeated(answers: list[dict[str, Any]], cache: Path) -> None:
    answers.append({"why": "measuring failed: no memory"})
    for _ in range(2):
        [found] = found_in(log_softmax, X, tune="search")
        assert found.reason.endswith("values on cpu: measuring failed: no memory")
    assert not cache.exists()


def test_other_sizes_and_gradients_are_other_places(
    answers: list[dict[str, Any]], cache: Path
) -> None:
    for x in (X, X[:3], X.clone().requires_grad_(), X.double()):
        answers.append(FASTER)
        assert found_in(log_softmax, x, tune="search")[0].applied
    assert len(list(cache.iterdir())) == 4 and not answers


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: "",
        lambda content: "[]",
        lambda content: json.dumps({**content, "gain": None}),
        lambda content: json.dumps({**content, "ops": {"opaq_kernels::log_softmax": "changed"}}),
        lambda content: json.dumps({**content, "facts": {}}),
    ],
)
def test_damaged_files_and_changed_ops_are_measured_again(
    damage: Callable[[Any], str], answers: list[dict[str, Any]], cache: Path
) -> None:
    answers += [FASTER, {**FASTER, "gain": 2.5}]
    found_in(log_softmax, X, tune="search")
    [file] = cache.iterdir()
    file.write_text(damage(json.loads(file.read_text())))
    assert found_in(log_softmax, X, tune="search")[0].gain == 2.5
    assert json.loads(file.read_text())["gain"] == 2.5


def test_a_folder_that_cannot_be_written_loses_nothing(
    answers: list[dict[str, Any]], cache: Path
) -> None:
    cache.write_text("a file")
    answers += [FASTER, FASTER]
    for _ in range(2):
        assert found_in(log_softmax, X, tune="search")[0].applied
    assert not answers


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a pattern whose replacement computes something else."""
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    name = importlib.import_module("wrong_pattern").NAME
    yield name
    del apply.patterns[name], sys.modules["wrong_pattern"]


def test_a_wrong_op_is_left(wrong: str) -> None:
    [found] = found_in(lambda x: x.sinh() * 0.125, X, tune="search")
    assert not found.applied
    assert "no spelling gives the op's results: result 0: relative error" in found.reason


def test_patterns_of_a_script_cannot_be_measured(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply.patterns[wrong], "module", "__main__")
    [found] = found_in(lambda x: x.sinh() * 0.125, X, tune="search")
    assert found.reason.endswith(
        "a pattern is measured in a process of its own, which has to import it"
    )
