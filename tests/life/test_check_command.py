"""`opaq check`: which ops it takes, exit statuses, and what is on stdout and stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from opaq import _runtime

pytestmark = pytest.mark.skipif(
    not _runtime.doctor()["nvrtc"]["found"], reason="NVRTC is not installed"
)

FINE = """
import opaq
print("loading")
scale = opaq.op("check_command::scale(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
scale.cuda(
    source="template <typename T> __global__ void scale(const T* x, float by, T* out) "
    "{ out[threadIdx.x] = x[threadIdx.x] * T(by); }",
    entry="scale<{x.dtype}>", grid=1, block="x.numel()", args="x, by, out")
"""
WRONG = """
other = opaq.op("check_command::other(Tensor x) -> Tensor", outputs=opaq.like("x"))
other.cuda(source="__global__ void other(const float* x, float* out) { out[0] = y[0]; }",
    entry="other", grid=1, block=1, args="x, out")
"""
REFUSED = FINE.replace('args="x, by, out"', 'args="x, by, uot"')


def check(folder: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "kernels.py").write_text(source)
    command = [sys.executable, "-m", "opaq", "check", *arguments, "--arch", "sm_80,sm_90a"]
    return forked.run(command, cwd=folder)


def test_a_file_without_problems(tmp_path: Path) -> None:
    done = check(tmp_path, FINE, "kernels.py", "--example", "float64[32], by=0.5", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # and nothing else
    assert found["ok"] and found["target"] == "kernels.py"
    (kernel,) = found["ops"][0]["implementations"]
    assert kernel["entry"] == "scale<double>" and kernel["launch"]["block"] == [32, 1, 1]
    assert [code["arch"] for code in kernel["code"]] == ["sm_80", "sm_90a"]
    assert done.stderr == (
        "loading\nchecking check_command::scale: cuda for sm_80, sm_90a\n"  # progress
    )


def test_a_module_with_problems(tmp_path: Path) -> None:
    done = check(tmp_path, FINE + WRONG, "kernels")
    assert done.returncode == 1
    assert "scale<float>(float const*, float, float*)" in done.stdout
    assert 'identifier "y" is undefined' in done.stdout and "1 problem found" in done.stdout


@pytest.mark.parametrize("name", ["scale", "check_command::scale"])
def test_one_op_of_a_file(tmp_path: Path, name: str) -> None:
    done = check(tmp_path, FINE + WRONG, f"kernels.py:{name}")
    assert done.returncode == 0 and "other" not in done.stdout


def test_a_refused_declaration_is_a_problem(tmp_path: Path) -> None:
    done = check(tmp_path, REFUSED, "kernels.py")
    assert done.returncode == 1
    assert "PROBLEM: kernels.py, line 5: args of check_command::scale" in done.stdout
    assert "unknown name 'uot'; did you mean 'out'?" in done.stdout
    found = json.loads(check(tmp_path, REFUSED, "kernels.py", "--json").stdout)
    assert not found["ok"] and "did you mean 'out'?" in found["problem"]


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (FINE, ["missing.py"], "missing.py: there is no such file; give"),
        (FINE, ["missing"], "missing: there is no such module; give the name of a module"),
        (FINE, ["kernels.py:scael"], "kernels.py: no op is named 'scael'; it has check_com"),
        ("import opaq", ["kernels.py"], "kernels.py: it declares no op with opaq.op(...)"),
        ("import opaq\n1 / 0", ["kernels.py"], "line 2: loading it raised ZeroDivision"),
        ("import nothing_like_it", ["kernels.py"], "loading it raised ModuleNotFound"),
        ("raise SystemExit(0)", ["kernels.py"], "line 1: loading it raised SystemExit"),
        (FINE, ["kernels.py", "--example", "float32[3"], "'float32[3': it is not written"),
        (FINE, ["kernels.py", "--example", "3"], "--example '3': check_command::scale: arg"),
        (FINE + WRONG, ["kernels.py", "--example", "int8[3]"], "kernels.py declares 2 ops"),
        (FINE, ["kernels.py", "--arch", "hopper"], "arch: got 'hopper' (str); expected"),
    ],
)
def test_wrong_use_is_one_line(
    tmp_path: Path, source: str, arguments: list[str], message: str
) -> None:
    done = check(tmp_path, source, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.removeprefix("loading\n").splitlines()
    assert len(lines) == 1 and message in lines[0], done.stderr


def test_a_kernel_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "k.cu").write_text("__global__ void k() {}")
    done = check(tmp_path, FINE, "k.cu")
    assert done.returncode == 2 and "`opaq new k.cu` prints a declaration" in done.stderr
