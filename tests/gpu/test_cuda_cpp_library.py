"""CUDA ops of a library that declares them in C++: in a program without Python, and compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import opaq
from opaq import _runtime

PROJECT = Path(__file__).parents[1] / "cpp_library"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp_library")
    cmake = shutil.which("cmake")
    assert cmake is not None
    prefixes = f"{opaq.get_cmake_dir()};{torch.utils.cmake_prefix_path}"
    subprocess.run(
        [cmake, "-S", PROJECT, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefixes}"], check=True
    )
    subprocess.run([cmake, "--build", folder], check=True)
    return folder


def test_a_program_without_python_launches_the_kernels(build: Path) -> None:
    nvrtc = _runtime.doctor()["nvrtc"]  # Python packages tell Python alone where they are
    done = subprocess.run(
        [build / "cpp_library_main", build / "libcpp_library.so", "cuda"],
        env={**os.environ, "OPAQ_NVRTC": nvrtc["path"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": equal\n") == 4


@pytest.mark.parametrize("cpp_wrapper", [False, True])
def test_compiled_graphs_launch_the_kernels(build: Path, cpp_wrapper: bool) -> None:
    opaq.load_library(build / "libcpp_library.so")
    ops = torch.ops.cpp_library

    def model(x: torch.Tensor) -> torch.Tensor:
        return ops.dot_rows(ops.scale(x, 3.0), x).sin()

    x = torch.randn(50, 70, device="cuda")
    compiled = torch.compile(model, options={"cpp_wrapper": cpp_wrapper})
    torch.testing.assert_close(compiled(x), (3 * x * x).sum(1).sin(), rtol=1e-3, atol=1e-3)


def test_gradients_on_cuda(build: Path) -> None:
    opaq.load_library(build / "libcpp_library.so")
    x = torch.randn(50, device="cuda", requires_grad=True)
    torch.compile(lambda x: torch.ops.cpp_library.scale(x, 3.0).sin())(x).sum().backward()
    torch.testing.assert_close(x.grad, 3 * (3 * x).cos())
