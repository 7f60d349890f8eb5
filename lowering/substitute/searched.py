"""What decides where a pattern's measurements say nothing (the options tune="stored" and "search"):
a gain that was measured on this machine. The package opaq installs what answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ..compat.inductor import inductor
from .pattern import Pattern

_MOST_BYTES = 1 << 30  # of the tensors of a place that is measured
_NUMBERS = (bool, int, float, str, type(None))


@dataclasses.dataclass(frozen=True)
class Place:
    """A place of a graph. arguments, as JSON has them: by name, a number, or of a tensor [dtype,
    sizes, strides, device, whether it requires a gradient]; sizes that only the launch knows are
    those of the call at hand."""

    pattern: Pattern
    spelling: int
    training: bool
    arguments: Mapping[str, Any]


class Searcher(Protocol):
    def gain(self, place: Place, search: bool) -> float | str:
        """How many times as fast the pattern's op is as what Inductor makes of the spelling; or why
        that is not known. search: measure it if it is not."""


installed: Searcher | None = None


def gain(
    pattern: Pattern, spelling: int, values: Mapping[str, Any], training: bool, search: bool
) -> float | str:
    """As Searcher.gain. values: the arguments, tensors without memory."""
    if installed is None:
        return ""
    arguments = {}
    for name in pattern.arguments:
        value = values[name]
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_complex():
                return f"`{name}` is not a dense tensor of real numbers"
            arguments[name] = [
                str(value.dtype).removeprefix("torch."),
                [inductor.size_hint(size) for size in value.shape],
                [inductor.size_hint(stride) for stride in value.stride()],
                value.device.type,
                training and value.requires_grad,
            ]
        else:
            if isinstance(value, (torch.SymInt, torch.SymFloat)):
                value = inductor.size_hint(value)
            if not isinstance(value, _NUMBERS):
                return f"`{name}` is neither a tensor nor a number"
            arguments[name] = value
    if sum(map(_bytes, arguments.values())) > _MOST_BYTES:
        return "its tensors are too large to measure"
    return installed.gain(Place(pattern, spelling, training, arguments), search)


def _bytes(argument: Any) -> int:
    if not isinstance(argument, list):
        return 0
    dtype, sizes = argument[:2]
    count: int = getattr(torch, dtype).itemsize
    for size in sizes:
        count *= size
    return count
