"""Inductor's names for torch 2.15: what opaq uses has kept its 2.11 spelling, but for streams."""

from __future__ import annotations

from torch._inductor.stream_utils import get_stream_name
from torch._inductor.virtualized import V

from .torch_2_11 import *  # noqa: F403
from .torch_2_11 import __all__ as __all__


def effect_before() -> None:
    return None  # Inductor's own dependencies hold


def user_stream() -> str | None:
    index = V.graph.scheduler.current_stream_idx
    return get_stream_name(index) if index else None


def keep_dependencies() -> None:
    pass  # Inductor does


def keep_arrays_apart() -> None:
    pass  # Inductor does
