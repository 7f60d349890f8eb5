"""`opaq doctor`: the software that opaq depends on, where each part was found, and what to do about
what is missing.
"""

from __future__ import annotations

import glob
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from . import _runtime
from .demo import DEMO_PACKAGES
from .terminal import table


@dataclass(frozen=True)
class Part:
    name: str
    found: bool
    version: str
    path: str
    needed_for: str
    advice: str = ""  # what to do when it is missing


def examine() -> list[Part]:
    """Every part, found or not. Creates no CUDA context."""
    facts = _runtime.doctor()
    settings = _runtime.settings()
    driver, nvrtc, nvcc = facts["driver"], facts["nvrtc"], facts["nvcc"]
    nvjitlink, cublaslt = facts["nvjitlink"], facts["cublaslt"]
    return [
        Part("python", True, platform.python_version(), sys.executable, "everything"),
        Part("torch", True, torch.__version__, os.path.dirname(torch.__file__), "everything"),
        _package("triton", "Inductor's own kernels on a GPU"),
        *(_package(name, "opaq demo") for name in DEMO_PACKAGES),
        Part(
            "CUDA driver",
            driver["found"],
            driver["version"],
            driver["path"],
            "launching on a GPU",
            driver["why_not"],
        ),
        Part(
            "NVRTC",
            nvrtc["found"],
            nvrtc["version"],
            nvrtc["path"],
            "compiling CUDA source",
            nvrtc["why_not"] or "pip install nvidia-cuda-nvrtc",
        ),
        *(_headers(part) for part in facts["headers"]),
        Part(
            "nvcc",
            nvcc["found"] and not nvcc["why_not"],
            nvcc["version"],
            nvcc["path"],
            "CUDA sources that NVRTC refuses",
            nvcc["why_not"],
        ),
        Part(
            "nvJitLink",
            nvjitlink["found"],
            nvjitlink["version"],
            nvjitlink["path"],
            "linking LTO-IR",
            nvjitlink["why_not"],
        ),
        Part(
            "cuBLASLt",
            cublaslt["found"],
            cublaslt["version"],
            cublaslt["path"],
            "matmul implementations",
            cublaslt["why_not"],
        ),
        _tool(
            "C++ compiler",
            settings["cxx"],
            "CPU implementations",
            "install g++ or clang++ (C++20), or set CXX",
        ),
        _tool("cmake", "cmake", "building opaq and its tests", "pip install cmake"),
        _tool("ninja", "ninja", "building opaq and its tests", "pip install ninja"),
        _googletest(),
        Part(
            "image cache",
            True,
            f"{facts['cache']['bytes'] / 1e6:.1f} MB",
            facts["cache"]["path"],
            "starting without compiling",
        ),
    ]


def as_json(parts: list[Part]) -> dict[str, Any]:
    return {
        "parts": [asdict(part) for part in parts],
        "ready_for_gpu": all(part.found for part in parts if part.name in ("CUDA driver", "NVRTC")),
    }


def show(parts: list[Part]) -> None:
    rows = [("part", "", "version", "needed for", "where, or what to do")]
    for part in parts:
        state, place = ("found", part.path) if part.found else ("MISSING", part.advice)
        rows.append((part.name, state, part.version, part.needed_for, place))
    print(table(rows))


def _package(name: str, needed_for: str) -> Part:
    try:
        distribution = importlib.metadata.distribution(name)
        return Part(
            name, True, distribution.version, str(distribution.locate_file(name)), needed_for
        )
    except importlib.metadata.PackageNotFoundError:
        return Part(name, False, "", "", needed_for, f"pip install {name}")


def _headers(part: dict[str, str]) -> Part:
    name = part["holds"].removeprefix("the ").removesuffix(" for device code")
    return Part(
        name if "headers" in name else f"{name} headers",
        bool(part["folder"]),
        "",
        part["folder"],
        "CUDA sources that include them",
        part["advice"],
    )


def _tool(name: str, command: str, needed_for: str, advice: str) -> Part:
    path = shutil.which(command) if command else None
    if path is None:
        return Part(name, False, "", "", needed_for, advice)
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"\d+\.\d+(\.\d+)*", done.stdout)
    return Part(name, True, version[0] if version else "", path, needed_for)


def _googletest() -> Part:
    advice = "nothing: tests/run.py downloads it; or apt-get install libgtest-dev"
    for pattern in (
        "/usr/lib/*/cmake/GTest",
        "/usr/lib*/cmake/GTest",
        "/usr/local/lib*/cmake/GTest",
    ):
        for folder in glob.glob(pattern):
            with open(os.path.join(folder, "GTestConfigVersion.cmake"), encoding="utf-8") as file:
                found = re.search(r'PACKAGE_VERSION "([\d.]+)"', file.read())
            return Part("GoogleTest", True, found[1] if found else "", folder, "the C++ tests")
    return Part("GoogleTest", False, "", "", "the C++ tests", advice)
