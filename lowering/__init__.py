"""How opaque ops become Inductor nodes. The public surface of this package; importing it does not
import Inductor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from . import compat, options
from .record import NodeRecord, nodes

__all__ = [
    "MANIFEST",
    "PRELUDE",
    "NodeRecord",
    "PythonFunction",
    "activate",
    "activate_when_compiling",
    "compat",
    "formulas",
    "nodes",
    "options",
    "overload_of",
    "python_functions",
    "register",
]

MANIFEST = "opaq.json"  # the file in a package that lists its opaque ops, for `opaq inspect`
PRELUDE = (
    "// Expressions of opaque ops."  # a line in the C++ source of every wrapper that has opaque ops
)


@dataclasses.dataclass(frozen=True)
class PythonFunction:
    """An op that is one Python function, called as function(*args, **keyword_only_args) -> results;
    its fake gives their layouts.
    """

    function: Callable[..., Any]
    devices: frozenset[str] | None = None  # device types it serves; None: all


python_functions: dict[
    str, PythonFunction
] = {}  # by qualified name; to be filled before `register`

# What AOTAutograd traces of an op beside what torch.library knows of it: a function that returns
# the gradient's formula, for the cache keys.
formulas: dict[str, Callable[[], Any]] = {}

# In order of declaration; for each the kernels that it was declared with: others are registered by
# somebody else.
_registered: dict[str, list[tuple[str, str]]] = {}
_active = False


def overload_of(qualname: str) -> Any:
    """The op of PyTorch's dispatcher: torch.ops.<namespace>.<name>.<overload, else default>.
    AttributeError where none is defined.
    """
    namespace, name = qualname.split("::")
    name, _, overload = name.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")


def register(qualname: str) -> None:
    """Remembers an op ("mylib::rms_norm"), declared or changed. Cheap; takes effect at once when
    active, else at `activate`.
    """
    new = qualname not in _registered
    if new:
        _registered[qualname] = compat.pytorch.own_kernels(qualname)
    if new and _active:
        _install(qualname)


def activate() -> None:
    """Imports Inductor and gives it a lowering for every registered op. Called when tracing starts;
    does its work once.
    """
    global _active
    if _active:
        return
    from . import cache_key, copies
    from .compat.inductor import inductor
    from .contract import traced

    inductor.install_mends()
    cache_key.install(_registered)
    copies.install(_registered)
    traced.install(_registered)  # after copies: it sees a graph first
    _active = True
    for qualname in list(_registered):
        _install(qualname)


def activate_when_compiling() -> None:
    """For fake implementations: they run before Inductor lowers a graph, but also with no compiler
    at work, where none is to be imported.
    """
    if not _active and compat.pytorch.tracer_is_loaded():
        activate()


def _install(qualname: str) -> None:
    from . import lower

    lower.install(qualname)
