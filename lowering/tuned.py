"""The implementation that was measured to be the fastest for a node (the option `tune`). Sizes must
be known: what serves others is chosen by requirements and priority.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import sympy
import torch

from . import options
from .devices import device_name
from .symbolic import SymbolicTensor

if TYPE_CHECKING:
    from opaq._runtime import FakeArgument, OpInfo


class Tuner(Protocol):
    def fastest(
        self, op: str, form: str, args: Sequence[FakeArgument], search: bool
    ) -> tuple[str, str]:
        """(name of an implementation, what was measured); "" where nothing was."""

    def digest(self, op: str) -> str:
        """Of all that was measured of an op, for cache keys."""


tuner: Tuner | None = None  # set by the package opaq


def fastest(op: str, info: OpInfo, known: Mapping[str, Any]) -> tuple[str, str]:
    """(name, what was measured) for a call of the op's form `info`; known: its arguments,
    SymbolicTensor for tensors."""
    mode = options.current().tune
    if mode == "off" or tuner is None:
        return "", ""
    try:
        args = [_argument(known[arg["name"]]) for arg in info["args"]]
    except ValueError:
        return "", ""
    return tuner.fastest(op, info["name"], args, mode == "search")


def digest(op: str) -> str:
    return "" if options.current().tune == "off" or tuner is None else tuner.digest(op)


def _argument(value: Any) -> FakeArgument:
    """As the runtime takes it. ValueError: it is not known before the call."""
    if isinstance(value, SymbolicTensor):
        sizes, strides = ([_int(item) for item in items] for items in (value.sizes, value.strides))
        dtype = str(value.dtype).removeprefix("torch.")
        return dtype, sizes, strides, device_name(value.device), 4096
    if isinstance(value, (sympy.Basic, torch.SymInt, torch.SymFloat, torch.SymBool)):
        raise ValueError(f"{value} is not known")
    return value


def _int(value: Any) -> int:
    if isinstance(value, sympy.Basic) and not value.is_Integer:
        raise ValueError(f"{value} is not known")
    return int(value)
