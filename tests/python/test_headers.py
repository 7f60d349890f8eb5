"""The C++ headers that opaq installs, as a project of a user's finds them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import opaq

PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(user CXX)
find_package(opaq REQUIRED)
add_executable(user main.cpp)
target_link_libraries(user PRIVATE opaq::opaq)
"""
MAIN = """
#include <opaq/host_types.h>
#include <opaq/version.h>

#include <cstdio>

int main() {
  const opaq::bfloat16 third = 1.0f / 3.0f;
  std::printf("%s %d.%d.%d %.9g %zu", OPAQ_VERSION, OPAQ_VERSION_MAJOR, OPAQ_VERSION_MINOR,
              OPAQ_VERSION_PATCH, static_cast<double>(third), sizeof third);
}
"""
PRINTED = f"{opaq.__version__} {opaq.__version__} 0.333984375 2"


def run(*command: object) -> str:
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("variable", ["CMAKE_PREFIX_PATH", "opaq_DIR"])
def test_a_project_finds_the_headers_by_find_package(tmp_path: Path, variable: str) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("needs cmake")
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    (tmp_path / "main.cpp").write_text(MAIN)
    build = tmp_path / "build"
    run(cmake, "-S", tmp_path, "-B", build, f"-D{variable}={opaq.get_cmake_dir()}")
    run(cmake, "--build", build)
    assert run(build / "user") == PRINTED


def test_the_headers_compile_as_cpp17_without_warnings(tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(MAIN)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    include = f"-I{opaq.get_include()}"
    run("g++", *flags, include, tmp_path / "main.cpp", "-o", tmp_path / "user")
    assert run(tmp_path / "user") == PRINTED


def test_only_headers_for_users_are_installed() -> None:
    installed = sorted(path.name for path in Path(opaq.get_include(), "opaq").iterdir())
    assert installed == ["declare.h", "host_types.h", "op.h", "version.h"]


def test_a_host_source_may_include_the_types_that_it_names(tmp_path: Path) -> None:
    op = opaq.op("opaq_headers::double_it(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="#include <opaq/host_types.h>\n"
        "void f(const opaq::bfloat16* x, opaq::bfloat16* out) { out[0] = x[0] + x[0]; }",
        entry="f",
        args="x, out",
        include_dirs=[opaq.get_include()],
    )
    assert op(torch.ones(1, dtype=torch.bfloat16)).item() == 2
