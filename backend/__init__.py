"""opaq: opaque operators that torch.compile's Inductor launches directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch  # noqa: F401  libtorch must be loaded before the runtime looks for it

from . import _runtime
from ._runtime import (
    CaptureError,
    CompileError,
    ContractError,
    DeclarationError,
    DriverError,
    Error,
    LaunchError,
    MissingError,
)
from .torch_objects import bind

bind()

from . import libraries  # noqa: E402
from .arguments import cast, struct  # noqa: E402
from .custom_op import custom_op  # noqa: E402
from .explain import Explanation, explain  # noqa: E402
from .libraries import get_op, load_library  # noqa: E402
from .op import Op, op  # noqa: E402
from .opcheck import opcheck  # noqa: E402
from .package import package  # noqa: E402
from .pattern import Pattern, pattern  # noqa: E402
from .report import Report, report  # noqa: E402
from .rules import Output, file, like, tensor  # noqa: E402
from .steps import Exponential, Philox, Step, Zeros, exponential, philox, step, zeros  # noqa: E402
from .tensor_map import tensor_map  # noqa: E402
from .tuning import Tuned, prefer, tune  # noqa: E402

__version__: str
__all__ = [
    "CaptureError",
    "CompileError",
    "ContractError",
    "DeclarationError",
    "DriverError",
    "Error",
    "Explanation",
    "Exponential",
    "LaunchError",
    "MissingError",
    "Op",
    "Output",
    "Pattern",
    "Philox",
    "Report",
    "Step",
    "Tuned",
    "Zeros",
    "cast",
    "custom_op",
    "explain",
    "exponential",
    "file",
    "get_cmake_dir",
    "get_include",
    "get_op",
    "like",
    "load_library",
    "op",
    "opcheck",
    "package",
    "pattern",
    "philox",
    "prefer",
    "report",
    "step",
    "struct",
    "tensor",
    "tensor_map",
    "tune",
    "warmup",
    "zeros",
]


libraries.start()


def warmup(op: Op, *args: Any) -> None:
    """As op.warmup(*args): compiles and loads what op(*args) needs, without running it."""
    op.warmup(*args)


def get_include() -> str:
    """The folder of opaq's C++ headers, for a compiler's -I.

    <opaq/op.h>          declares ops in a shared library (C++20)
    <opaq/host_types.h>  opaq::bfloat16, opaq::float16, opaq::float8_e4m3fn and the other element
                         types that host sources of Op.cpu may name (C++17)
    <opaq/version.h>     OPAQ_VERSION (a string), OPAQ_VERSION_MAJOR, _MINOR, _PATCH
    """
    return str(Path(_runtime.__file__).parent / "include")


def get_cmake_dir() -> str:
    """The folder of opaq's CMake package. It gives the target opaq::opaq: opaq's C++ headers,
    libopaq.so, and libtorch_cpu.so if it is found beside opaq or in CMAKE_PREFIX_PATH:

    cmake -DCMAKE_PREFIX_PATH=$(python -c "import opaq; print(opaq.get_cmake_dir())") ...

    find_package(opaq REQUIRED)
    target_link_libraries(my_kernels PRIVATE opaq::opaq)
    """
    return str(Path(_runtime.__file__).parent / "share" / "cmake" / "opaq")


def __getattr__(name: str) -> str:
    if name == "__version__":  # read when asked for: importing opaq stays fast
        import importlib.metadata

        return importlib.metadata.version("opaq")
    raise AttributeError(f"module 'opaq' has no attribute {name!r}")
