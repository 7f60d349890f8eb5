"""The implementation that was measured to be the fastest for a node (the option `tune`). Sizes must
be known: what serves others is chosen by requirements and priority.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import sympy

from . import options
from .symbolic import fake_argument

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
        args = [fake_argument(known[arg["name"]], _known) for arg in info["args"]]
    except ValueError:
        return "", ""
    return tuner.fastest(op, info["name"], args, mode == "search")


def digest(op: str) -> str:
    return "" if options.current().tune == "off" or tuner is None else tuner.digest(op)


def _known(value: Any) -> Any:
    """ValueError: it is not known before the call."""
    if isinstance(value, sympy.Basic) and not value.is_Integer:
        raise ValueError(f"{value} is not known")
    return int(value) if isinstance(value, sympy.Basic) else value
