"""Ops that a shared library declares in C++ (<opaq/op.h>): tests/cpp_library, built as a user
builds it, in a program without Python and in Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import opaq

PROJECT = Path(__file__).parents[1] / "cpp_library"
WRONG = r"""
#include <opaq/op.h>
#include <cstdlib>
#include <string>

static void f(const float* x, float* out) { out[0] = x[0]; }

OPAQ_OPS(cpp_wrong) {
  const std::string wrong = std::getenv("WRONG");
  op("right(Tensor x) -> Tensor").outputs(opaq::like("x")).cpu(&f, {.args = "x, out"});
  const std::string f_of_x = "f(Tensor x) -> Tensor";
  if (wrong == "schema") op("f(Tensr x) -> Tensor").outputs(opaq::like("x"));
  if (wrong == "output") op(f_of_x).outputs(opaq::like("y"));
  if (wrong == "args") op(f_of_x).outputs(opaq::like("x")).cpu(&f, {.args = "out"});
  if (wrong == "file")
    op(f_of_x).outputs(opaq::like("x"))
        .cuda({.source = opaq::file("no.cu"), .entry = "f", .grid = 1, .block = 1, .args = "x"});
  if (wrong == "twice")
    op("right(Tensor x) -> Tensor").outputs(opaq::like("x", {.dtype = "float32"}));
}
"""
MESSAGES = {
    "schema": "wrong.cpp:12: schema of cpp_wrong::f: argument 'x': unknown type 'Tensr'",
    "output": "wrong.cpp:13: like of cpp_wrong::f, output 'out': no argument is named 'y'",
    "args": "wrong.cpp:14: signature of cpp_wrong::f, implementation 'cpu': 'void (float const*, "
    "float*)' has 2 parameters; args lists 1",
    "file": "cpp_wrong::f: .cuda(...): cannot read ",
    "twice": "cpp_wrong::right is already declared, and differs",
}


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [str(part) for part in command]
    env = {**os.environ, **variables}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=env)


def built(build: Path, *definitions: str) -> Path:
    cmake = shutil.which("cmake")
    assert cmake is not None
    prefixes = f"{opaq.get_cmake_dir()};{torch.utils.cmake_prefix_path}"
    configured = run(
        cmake, "-S", PROJECT, "-B", build, f"-DCMAKE_PREFIX_PATH={prefixes}", *definitions
    )
    assert configured.returncode == 0, configured.stderr
    made = run(cmake, "--build", build, "-j", "2")
    assert made.returncode == 0, made.stdout + made.stderr
    return build


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("cpp_library"))


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "wrong.cpp").write_text(WRONG)
    package, torch_lib = Path(opaq.get_include()).parent, Path(torch.__file__).parent / "lib"
    made = run(
        *("g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
        *(folder / "wrong.cpp", "-o", folder / "libwrong.so", f"-I{opaq.get_include()}"),
        *(f"-L{package}", f"-L{torch_lib}", "-lopaq", "-ltorch_cpu"),
        f"-Wl,-rpath,{package}:{torch_lib}",
    )
    assert made.returncode == 0, made.stderr
    return folder / "libwrong.so"


@pytest.fixture(scope="module")
def ops(build: Path) -> dict[str, opaq.Op]:
    return {op.name: op for op in opaq.load_library(build / "libcpp_library.so")}


def test_a_program_without_python_calls_the_ops(build: Path) -> None:
    done = run(build / "cpp_library_main", build / "libcpp_library.so")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": equal\n") == 5


def test_a_copy_of_a_library_has_the_same_ops(
    build: Path, ops: dict[str, opaq.Op], tmp_path: Path
) -> None:
    shutil.copy(build / "scale.cu", tmp_path)
    copied = shutil.copy(build / "libcpp_library.so", tmp_path)
    assert set(opaq.load_library(copied)) == set(ops.values())
    assert set(opaq.load_library(build / "libcpp_library.so")) == set(ops.values())


def test_the_ops_are_those_of_python_too(ops: dict[str, opaq.Op]) -> None:
    scale = opaq.get_op("cpp_library::scale")
    assert scale is ops["cpp_library::scale"]
    x = torch.randn(3, 4, requires_grad=True)
    torch.testing.assert_close(scale(x, 3.0), x * 3)
    torch.testing.assert_close(scale(x.double()), x.double() * 2)  # by the reference
    scale(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 2.0))
    opaq.opcheck(scale, x, 3.0)
    with pytest.raises(opaq.DeclarationError, match="did you mean 'cpp_library::scale'"):
        opaq.get_op("cpp_library::scal")


def test_random_numbers(ops: dict[str, opaq.Op]) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(3, 7, dtype=dtype)
        torch.manual_seed(0)
        drawn = ops["cpp_library::exponential"](x)
        torch.manual_seed(0)
        assert torch.equal(drawn, torch.empty_like(x).exponential_())


def model(x: torch.Tensor) -> torch.Tensor:
    y = torch.ops.cpp_library.scale(x, 3.0)
    return torch.ops.cpp_library.dot_rows(y, x).sin()


@pytest.mark.parametrize("form", ["stock", "opaq", "cpp_wrapper"])
def test_compiled_graphs_launch_the_ops(ops: dict[str, opaq.Op], form: str) -> None:
    torch.compiler.reset()
    how = {
        "stock": {},
        "opaq": {"backend": "opaq", "options": {"strict": True}},
        "cpp_wrapper": {"options": {"cpp_wrapper": True}},
    }[form]
    x = torch.randn(5, 7)
    torch.testing.assert_close(torch.compile(model, **how)(x), model(x))
    served = {node.op for node in opaq.report().nodes}
    assert {"cpp_library::scale", "cpp_library::dot_rows"} <= served


def test_gradients_are_compiled(ops: dict[str, opaq.Op]) -> None:
    torch.compiler.reset()
    x = torch.randn(5, 7, requires_grad=True)
    scale = ops["cpp_library::scale"]
    torch.compile(lambda x: scale(x, 3.0).sin())(x).sum().backward()
    torch.testing.assert_close(x.grad, 3 * (3 * x).cos())


def test_a_package_holds_the_library(ops: dict[str, opaq.Op], tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return model(x)

    x = torch.randn(5, 7)
    path = opaq.package(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    torch.testing.assert_close(torch._inductor.aoti_load_package(str(path))(x), model(x))


def test_torch_alone_loads_the_library_and_opaq_follows(build: Path) -> None:
    program = f"""
import sys, torch
torch.ops.load_library({str(build / "libcpp_library.so")!r})
assert "opaq" in sys.modules
scale = torch.ops.cpp_library.scale
x = torch.randn(4, requires_grad=True)
torch.testing.assert_close(torch.compile(lambda x: scale(x, 3.0), backend="aot_eager")(x), 3 * x)
"""
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", MESSAGES)
def test_a_wrong_declaration_is_an_error_in_python(wrong: Path, case: str) -> None:
    program = f"""
import torch, opaq
try:
    opaq.load_library({str(wrong)!r})
except opaq.DeclarationError as error:
    print(error)
assert not torch._C._dispatch_has_kernel("cpp_wrong::f")
"""
    done = run(sys.executable, "-c", program, WRONG=case)
    assert done.returncode == 0, done.stderr
    assert MESSAGES[case] in done.stdout


def test_a_wrong_declaration_ends_a_program_without_python(build: Path, wrong: Path) -> None:
    done = run(build / "cpp_library_main", wrong, WRONG="args")
    assert done.returncode < 0
    assert f"opaq: {MESSAGES['args']}" in done.stderr
