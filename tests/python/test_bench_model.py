"""`opaq bench model`: what a worker does, and mistakes of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_models import MODELS

from opaq import cli
from opaq.bench.model_worker import Contestant

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
        ([], "give either FILE_OR_MODULE:FUNCTION, a function that returns (model, arguments)"),
        (["models.py:make", "--hf", "BertModel"], "give either FILE_OR_MODULE:FUNCTION"),
        (["models.py"], "models.py: it names no function; give FILE_OR_MODULE:name"),
        (["missing.py:make"], "missing.py: there is no such file; give a Python file with a funct"),
        (["models.py:mak"], "models.py: it has no function 'mak'; expected one that returns"),
        (["models.py:nothing"], "models.py:nothing: it returned Model; expected (model, argumen"),
        (["models.py:make", "--backend", "inductr"], "--backend: got 'inductr'; expected eager"),
        (["models.py:make", "--dynamic", "B"], "--dynamic: got 'B'; expected a name and sizes"),
        (["models.py:make", "--dynamic", "B=x"], "the sizes must be whole numbers"),
        (["models.py:make", "--dtype", "int8"], "--dtype: got 'int8'; expected one of bfloat16"),
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
