"""`opaq bench model`: what a worker does, and mistakes of the user's."""

from __future__ import annotations

import argparse
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from bench_models import MODELS

from opaq import cli
from opaq.bench import contest, model
from opaq.bench.model_worker import Contestant, WorkerFailed
from opaq.bench.result import Record
from opaq.bench.table import Progress
from opaq.bench.wanted import Wanted, _function

WANTED: dict[str, Any] = {
    "target": "models.py:make",
    "hf": None,
    "config": "",
    "batch": 2,
    "tokens": 8,
    "train": True,
    "dtype": None,
    "device": "cpu",
    "seed": 0,
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.py").write_text(MODELS.partition("@torch._dynamo")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contestant(backend: str, **changes: Any) -> Contestant:
    made = Contestant()
    made.start({**WANTED, **changes}, backend)
    return made


def test_training_at_several_sizes(models: Path) -> None:
    eager, compiled = contestant("eager"), contestant("aot_eager")
    recompiled = []
    for size in ({"B": 2}, {"B": 3}, {"B": 5}):
        eager.first_call(size, "expected.pt", True)
        facts = compiled.first_call(size, "expected.pt", False)
        assert facts["mistake"] == "" and facts["graph_breaks"] >= 1  # print()
        assert compiled.seconds_of_step() > 0
        recompiled.append(facts["recompiled"] > 0)
    assert recompiled[1:] == [True, False]  # sizes become symbols


def test_active_dropout_is_not_compared(models: Path) -> None:
    facts = contestant("eager", target="models.py:with_dropout").first_call({}, "unused.pt", True)
    assert facts["unchecked"] == "results are not compared: Dropout with p=0.5 is random"


def test_a_model_of_transformers(models: Path) -> None:
    small = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,num_key_value_heads=2,"
    small += "intermediate_size=64,vocab_size=100"
    eager = contestant("eager", target=None, hf="LlamaForCausalLM", config=small)
    assert eager.first_call({}, "expected.pt", True)["mistake"] == ""
    assert eager.facts_of_step()["peak_mib"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either FILE_OR_MODULE:FUNCTION, a function that returns (model, args) or"),
        (["models.py:make", "--hf", "BertModel"], "give either FILE_OR_MODULE:FUNCTION"),
        (["models.py"], "models.py: it names no function; give FILE_OR_MODULE:name"),
        (["missing.py:make"], "missing.py: there is no such file; give a Python file with a funct"),
        (["models.py:mak"], "models.py: it has no function 'mak'; expected one that returns"),
        (["models.py:nothing"], "models.py:nothing: it returned Model; expected (model, args) "),
        (["models.py:make", "--backend", "inductr"], "--backend: got 'inductr'; expected eager"),
        (["models.py:make", "--dynamic", "B"], "--dynamic: got 'B'; expected a name and sizes"),
        (["models.py:make", "--dynamic", "B=x"], "the sizes must be whole numbers"),
        (["models.py:make", "--dtype", "int8"], "--dtype: got 'int8'; expected one of bfloat16"),
        (["models.py:make", "--backend", "eager,eager"], "--backend: 'eager' is named twice; name"),
        (["models.py:make", "--output", "."], ".: Is a directory"),
        (["models.py:make", "--html", "models.py/x.html"], "File exists"),
        (["models.py:make", "--rounds", "0"], "got '0'; expected a whole number, at least 1"),
        (["--hf", "NoSuchModel"], "has no model class 'NoSuchModel'; give one such as Llama"),
    ],
)
def test_mistakes_of_the_user_are_one_line(
    models: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    try:
        status = cli.main(["bench", "model", *arguments, "--device", "cpu"])
    except SystemExit as exit:  # by argparse
        status = exit.code
    shown = capsys.readouterr()
    assert status == 2 and shown.out == ""
    assert message in shown.err.strip().splitlines()[-1]


ODD = """
import numpy, torch

AT_IMPORT = torch.randn(4, 4)

def drawn_where_loaded():
    weight = torch.from_numpy(numpy.random.rand(4)).float()
    return lambda x: (x @ AT_IMPORT + weight), [torch.randn(2, 4)]

class Counter(torch.nn.Module):
    def __init__(self, error=0.0):
        super().__init__()
        self.error = error
        self.calls = 0
        self.register_buffer("steps", torch.zeros(()))
    def forward(self, x):
        self.steps += 1
        self.calls += 1
        wrong = self.error if torch.compiler.is_compiling() else 0.0
        return x * self.steps * self.calls * (1 + wrong)

def counter(B=2):
    return Counter(), [torch.randn(B, 4)]

def wrong_counter(B=2):
    return Counter(error=0.1), [torch.randn(B, 4)]

def draws():
    return torch.rand_like, [torch.randn(2, 4)]

def returns_none():
    return lambda x: None, [torch.randn(2)]

def returns_wrong_int():
    return lambda x: {"n": 5 if torch.compiler.is_compiling() else 6}, [torch.randn(2)]

def needs_gradient():
    return lambda x: torch.complex(x, 2 * x), [torch.randn(2, requires_grad=True)]

def needs_none():
    return torch.nn.Linear(2, 2).requires_grad_(False), [torch.randn(2)]
"""


@pytest.fixture
def odd(models: Path) -> Path:
    (models / "odd.py").write_text(ODD)
    return models


def checked(function: str, *sizes: dict[str, int], **changes: Any) -> list[dict[str, Any]]:
    """What is told of a compiled contestant at each size, beside eager; it makes more steps."""
    changes = {"train": False, **changes, "target": f"odd.py:{function}"}
    eager, compiled = contestant("eager", **changes), contestant("aot_eager", **changes)
    told = []
    for size in sizes or ({},):
        eager.first_call(size, "expected.pt", True)
        told.append(compiled.first_call(size, "expected.pt", False))
        compiled.seconds_of_step()
    return told


def test_what_the_file_draws_is_equal_in_each_process(odd: Path) -> None:
    wanted = {**WANTED, "target": "odd.py:drawn_where_loaded", "train": False}
    for number in range(2):
        _function.cache_clear()  # as in a process of its own
        made = Contestant()
        made.start(wanted, "eager")
        assert made.first_call({}, "expected.pt", number == 0)["mistake"] == ""


def test_a_model_with_state_starts_anew_at_each_size(odd: Path) -> None:
    assert [told["mistake"] for told in checked("counter", {"B": 2}, {"B": 3})] == ["", ""]
    # the result in float64 is that of as many steps
    told = checked("wrong_counter", dtype="bfloat16")[0]
    assert told["mistake"].startswith("result 0: relative error 0.1 to the result in float64")


@pytest.mark.parametrize(
    ("function", "unchecked"),
    [
        ("draws", "results are not compared: what the model draws is random"),
        ("returns_none", "results are not compared: they hold no tensors and no numbers"),
    ],
)
def test_results_that_cannot_be_compared(odd: Path, function: str, unchecked: str) -> None:
    told = checked(function)[0]
    assert told["mistake"] == "" and told["unchecked"] == unchecked


@pytest.mark.parametrize(
    ("dtype", "against"),
    [("bfloat16", "the result in float32"), (None, "those of the first contestant")],
)
def test_a_model_too_large_for_float64(
    odd: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None, against: str
) -> None:
    monkeypatch.setattr("opaq.bench.model_worker.LARGE", -1)
    mistake = checked("wrong_counter", dtype=dtype)[0]["mistake"]
    assert mistake.startswith(f"result 0: relative error 0.1 to {against}")


def test_numbers_are_results(odd: Path) -> None:
    assert checked("returns_wrong_int")[0]["mistake"] == "result 0: 1 of 1 values differ"


def test_gradients_of_arguments(odd: Path) -> None:
    made = contestant("eager", target="odd.py:needs_gradient")
    made.first_call({}, "expected.pt", True)
    assert len(made._step.results()) == 2  # the output, and the gradient
    with pytest.raises(ValueError, match="--train: no result needs a gradient; expected a model w"):
        contestant("eager", target="odd.py:needs_none").first_call({}, "unused.pt", True)


def test_a_contestant_that_fails_while_it_is_timed_loses_no_other(
    odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InProcess(Contestant):
        def __init__(self, wanted: Wanted, backend: str, folder: str, patience: float) -> None:
            self.start(dataclasses.asdict(wanted), backend)
            self.seconds_of_step = self.failing if backend == "eager" else lambda: 1.0

        def failing(self) -> float:
            raise WorkerFailed("the cache is full")

        def close(self) -> None:
            pass

    monkeypatch.setattr(contest, "Worker", InProcess)
    command = argparse.Namespace(**{**WANTED, "target": "models.py:make", "train": False})
    command.backend, command.dynamic = "eager,aot_eager", None
    command.rounds, command.timeout = 2, 60.0
    progress = Progress(io.StringIO())
    model.run(command, progress)
    records = [Record(**each) for each in progress.records]
    found = {each.contestant: each for each in records if each.metric == contest.STEP}
    assert found["eager"].verdict == "failed" and found["eager"].note == "the cache is full"
    assert found["aot_eager"].value == 1000 and found["aot_eager"].verdict == "baseline"
