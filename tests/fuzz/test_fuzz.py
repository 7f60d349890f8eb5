"""Runs some programs of the fuzz, and tests that it finds and prints a wrong kernel."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

FUZZ = pathlib.Path(__file__).parent / "run.py"


def fuzz(*options: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, FUZZ, *options],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("programs", [8, pytest.param(25, marks=pytest.mark.life)])
def test_opaq_never_differs_from_pytorch_in_silence(programs: int) -> None:
    code, output = fuzz(f"--programs={programs}", "--minutes=4", "--seed=1", "--workers=1")
    assert code == 0, output
    report = json.loads(output.splitlines()[-1])
    assert report["failures"] == 0
    # 25 and 200 on an idle machine; 8 and 68 of 8 programs
    assert report["programs"] >= 5 and report["calls compared"] >= 40


@pytest.mark.long
def test_a_wrong_kernel_is_found_and_printed_as_a_program(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import opaq\n"
        "kind = type(opaq.op('fuzz_wrong::op(Tensor x) -> ()'))\n"
        "declare = kind.cpu\n"
        "kind.cpu = lambda op, *, source, **rest: declare(op, source=source.replace('double* t "
        "= new', 'n -= n > 7; double* t = new'), **rest)\n"
    )
    code, output = fuzz(
        "--programs=40",
        "--minutes=2",
        "--seed=1",
        "--workers=1",
        "--forms=eager",
        f"--found={tmp_path / 'found'}",
        PYTHONPATH=str(tmp_path),
    )
    assert code == 1
    assert re.search(
        r"Found by: python tests/run.py fuzz --seed 1 --batch \d+ --program \d+ --device cpu",
        output,
    )
    (program,) = (tmp_path / "found").iterdir()
    alone = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    # the wrong kernels are this test's, not opaq's
    assert "seed 0, grow 0: the same" in alone.stdout
