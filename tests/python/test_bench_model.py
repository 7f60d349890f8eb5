"""`opaq bench model`: the user's model under several backends, one of them wrong, one slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opaq import cli

MODELS = """
import time, torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(16, 16)
    def forward(self, x):
        print("from the model")
        return self.inner(x).relu()

def make(B=4):
    return Model(), (torch.randn(B, 16),)

def nothing(B=4):
    return Model()

def with_dropout():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)), [torch.randn(2, 4)]

@torch._dynamo.register_backend
def planted_wrong(graph, inputs):
    return lambda *args: [each * 1.01 for each in graph(*args)]

@torch._dynamo.register_backend
def planted_slow(graph, inputs):
    def run(*args):
        time.sleep(0.01)
        return graph(*args)
    return run

@torch._dynamo.register_backend
def planted_broken(graph, inputs):
    raise RuntimeError("no such chip")

@torch._dynamo.register_backend
def planted_crash(graph, inputs):
    import os
    print("about to end", flush=True)
    os._exit(9)
"""


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "models.py").write_text(MODELS)
    return subprocess.run(
        [sys.executable, "-m", "opaq", "bench", "model", *arguments, "--device", "cpu"],
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


def test_wrong_slow_and_failing_contestants_are_called_out(tmp_path: Path) -> None:
    names = "eager,aot_eager,planted_wrong,planted_slow,planted_broken,planted_crash"
    done = bench(tmp_path, "models.py:make", "--backend", names, "--rounds", "6", "--json")
    assert done.returncode == 1  # a contestant was wrong
    found = records(done)
    step = {name: found["step", name, "time of a step"] for name in names.split(",")}
    assert step["eager"]["verdict"] == "baseline" and step["eager"]["value"] > 0
    assert step["planted_slow"]["verdict"] == "slower"
    assert step["planted_slow"]["value"] >= 10
    for name, verdict, note in [
        ("planted_wrong", "wrong", "result 0: relative error 0.01"),
        ("planted_broken", "failed", "no such chip"),
        ("planted_crash", "failed", "its process ended: exit status 9, about to end"),
    ]:
        assert step[name]["verdict"] == verdict and step[name]["value"] is None
        assert note in step[name]["note"]
        assert ("step", name, "peak memory") not in found  # it is not ranked
    assert found["step", "aot_eager", "graphs"]["value"] >= 1
    assert found["step", "aot_eager", "graph breaks"]["value"] >= 1  # print()
    assert found["step", "eager", "first call"]["value"] > 0


def test_training_and_several_sizes(tmp_path: Path) -> None:
    done = bench(
        tmp_path, "models.py:make", "--train", "--dynamic", "B=2,3,5", "--backend",
        "eager,aot_eager", "--rounds", "2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = records(done)
    assert {case for case, _, _ in found} == {"B=2", "B=3", "B=5"}
    assert found["B=3", "aot_eager", "recompiled graphs"]["value"] > 0  # sizes become symbols
    assert found["B=5", "aot_eager", "recompiled graphs"]["value"] == 0


def test_active_dropout_is_not_compared(tmp_path: Path) -> None:
    arguments = ("--train", "--backend", "eager,aot_eager", "--rounds", "1", "--json")
    found = records(bench(tmp_path, "models.py:with_dropout", *arguments))
    note = found["step", "aot_eager", "time of a step"]["note"]
    assert note == "results are not compared: Dropout with p=0.5 is random"


def test_text_and_page(tmp_path: Path) -> None:
    done = bench(
        tmp_path, "models.py:make", "--backend", "eager", "--rounds", "1", "--html", "page.html",
        "--output", "result.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "time of a step" in done.stdout and "from the model" not in done.stdout
    assert "opaq bench model models.py:make" in (tmp_path / "page.html").read_text()
    again = bench(
        tmp_path, "models.py:make", "--backend", "eager", "--rounds", "1", "--compare",
        "result.json",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr


def test_a_model_of_transformers(tmp_path: Path) -> None:
    small = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,num_key_value_heads=2,"
    small += "intermediate_size=64,vocab_size=100"
    done = bench(
        tmp_path, "--hf", "LlamaForCausalLM", "--config", small, "--tokens", "8", "--train",
        "--backend", "eager,aot_eager", "--rounds", "1", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert records(done)["step", "aot_eager", "time of a step"]["value"] > 0


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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(["bench", "model", *arguments, "--device", "cpu"])
    except SystemExit as exit:  # by argparse
        status = exit.code
    shown = capsys.readouterr()
    assert status == 2 and shown.out == ""
    assert message in shown.err.strip().splitlines()[-1]
