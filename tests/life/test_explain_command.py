"""`opaq explain`: the functions that it takes, what it prints, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from opaq import _runtime

MODEL = '''
import torch, opaq

scale = opaq.op("explain_command::scale(Tensor x) -> Tensor", outputs=opaq.like("x"))
scale.cuda(
    source="""__global__ void scale(const float* x, float* out, long n) {
      long i = blockIdx.x * 256L + threadIdx.x;
      if (i < n) out[i] = x[i] * 2; }""",
    entry="scale", grid="ceil_div(x.numel(), 256)", block=256, args="x, out, x.numel()",
)
scale.reference(lambda x: x * 2)
scale.backward(lambda ctx, grad: grad * 2)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x, shift=0.0):
        print("in the model")
        return scale(self.linear(x) + shift)

def made():
    return Model(), (torch.randn(2, 8),), {"shift": 1.0}

def fails():
    raise ValueError("no weights\\nhere")

def exits():
    raise SystemExit("no data")

def a_model_alone():
    return Model()

def wrong_sizes():
    return Model(), (torch.randn(2, 7),)
'''


def line(start: str) -> int:
    """The number of the line of MODEL that begins so."""
    lines = [text.strip() for text in MODEL.splitlines()]
    return 1 + next(number for number, text in enumerate(lines) if text.startswith(start))


def explain(
    folder: Path, *arguments: str, inductor: bool = False
) -> subprocess.CompletedProcess[str]:
    (folder / "model.py").write_text(MODEL)
    command = [sys.executable, "-m", "opaq", "explain", *arguments]
    return forked.run(command, inductor=inductor, cwd=folder)


@pytest.mark.skipif(not _runtime.doctor()["nvrtc"]["found"], reason="NVRTC is not installed")
def test_a_model_on_a_gpu_that_need_not_be_there(tmp_path: Path) -> None:
    done = explain(
        tmp_path,
        *("model.py:made", "--device", "cuda", "--arch", "sm_90a", "--json", "--html", "a.html"),
        inductor=True,
    )
    assert done.returncode == 0, done.stderr
    assert "in the model" in done.stderr
    found = json.loads(done.stdout)  # and nothing else
    nodes = [node for graph in found["graphs"] for node in graph["nodes"]]
    assert [(node["device"], node["implementation"]) for node in nodes] == [("cuda:0", "cuda")]
    assert nodes[0]["place"] == f"{tmp_path}/model.py:{line('return scale')}, in forward"
    cuda, reference = nodes[0]["implementations"]
    (code,) = cuda["launches"][0]["code"]
    assert (code["arch"], code["resources"]["spill_stores"]) == ("sm_90a", 0)
    assert (reference["name"], reference["role"]) == ("reference", "not used")
    (at_print,) = found["breaks"]
    assert at_print["place"] == f"{tmp_path}/model.py:{line('print')}, in forward"
    page = (tmp_path / "a.html").read_text()
    assert page.startswith("<!doctype html>") and "explain_command::scale" in page
    assert "return scale(self.linear(x) + shift)" in page  # the line of code
    assert str(code["bytes"]) in page and " src=" not in page and " href=" not in page


def test_a_model_on_the_cpu_as_text(tmp_path: Path) -> None:
    done = explain(tmp_path, "model.py:made", inductor=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Model: ") and "opaque node" in lines[0]
    assert "reference" in done.stdout and "it is for cuda" in done.stdout


THAT_RETURNS = "that returns (model, args) or (model, args, kwargs)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["model.py"],
            "model.py: it names no function; give FILE_OR_MODULE:name, a function " + THAT_RETURNS,
        ),
        (
            ["model.py:fails"],
            f"model.py, line {line('raise')}: model.py:fails raised ValueError: no weights",
        ),
        (
            ["model.py:exits"],
            f"model.py, line {line('raise SystemExit')}: model.py:exits raised SystemExit: no data",
        ),
        (
            ["model.py:a_model_alone"],
            (
                "model.py:a_model_alone: it returned Model; expected (model, args) or (model, "
                "args, kwargs): a module or function, a tuple, and a dict"
            ),
        ),
        (["model.py:made", "--html", "."], ".: Is a directory"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = explain(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == message


def test_a_model_that_cannot_be_compiled(tmp_path: Path) -> None:
    done = explain(tmp_path, "model.py:wrong_sizes")
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("opaq.explain: tracing Model failed (")
    assert f"model.py:{line('return scale')}, in forward)" in last
