"""How opaque ops become Inductor nodes. The public surface of this package; importing it does not import Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import compat, options
from .record import NodeRecord, nodes

__all__ = ["NodeRecord", "activate", "compat", "nodes", "options", "python_functions", "register"]

# The Python callables of ops of kind "python", by qualified name; called as f(*args, **keyword_only_args) -> results. backend/ fills it.
python_functions: dict[str, Callable[..., Any]] = {}

_registered: dict[str, None] = {}  # in order of declaration
_active = False


def register(qualname: str) -> None:
    """Remembers an op ("mylib::rms_norm"), declared or changed. Cheap; takes effect at once when lowerings are active, else at `activate`."""
    new = qualname not in _registered
    _registered[qualname] = None
    if new and _active:
        _install(qualname)


def activate() -> None:
    """Imports Inductor and gives it a lowering for every registered op. Called when tracing starts; does its work once."""
    global _active
    if _active:
        return
    from . import cache_key

    cache_key.install(_registered)
    for qualname in list(_registered):
        _install(qualname)
    _active = True


def _install(qualname: str) -> None:
    from . import lower

    lower.install(qualname)
