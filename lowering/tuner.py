"""What the lowering asks for measured times; the package opaq installs what answers. It is apart
from lowering/tuned.py, which loads sympy: importing opaq stays fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from opaq._runtime import FakeArgument


@dataclasses.dataclass(frozen=True)
class Fastest:
    """What was found for one call. speedup: over the implementation that would serve it else."""

    implementation: str
    otherwise: str
    speedup: float

    def __str__(self) -> str:
        if self.implementation == self.otherwise:
            return "measured to be the fastest"
        return f"measured {self.speedup:.2f} times as fast as {self.otherwise}"


class Tuner(Protocol):
    def fastest(
        self, op: str, form: str, args: Sequence[FakeArgument], search: bool
    ) -> Fastest | None:
        """None where nothing was measured."""

    def known(self, op: str, form: str) -> list[list[Any]]:
        """The arguments of the calls that were measured."""

    def digest(self, op: str) -> str:
        """Of all that was measured of an op, for cache keys."""


installed: Tuner | None = None
