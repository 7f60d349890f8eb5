"""opaq: opaque operators that torch.compile's Inductor launches directly."""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401  libtorch must be loaded before the runtime looks for it

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

from .custom_op import custom_op  # noqa: E402
from .op import Op, op  # noqa: E402
from .package import package  # noqa: E402
from .report import Report, report  # noqa: E402
from .rules import Output, file, like, tensor  # noqa: E402

__version__: str
__all__ = [
    "CaptureError",
    "CompileError",
    "ContractError",
    "DeclarationError",
    "DriverError",
    "Error",
    "LaunchError",
    "MissingError",
    "Op",
    "Output",
    "Report",
    "custom_op",
    "file",
    "like",
    "op",
    "package",
    "report",
    "tensor",
    "warmup",
]


def warmup(op: Op, *args: Any) -> None:
    """As op.warmup(*args): compiles and loads what op(*args) needs, without running it."""
    op.warmup(*args)


def __getattr__(name: str) -> str:
    if name == "__version__":  # read when asked for: importing opaq stays fast
        import importlib.metadata

        return importlib.metadata.version("opaq")
    raise AttributeError(f"module 'opaq' has no attribute {name!r}")
