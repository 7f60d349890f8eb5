"""How opaque ops become Inductor nodes: the interface of this package. Importing it does not import
Inductor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from . import compat, options
from .record import NodeRecord, Substitution, nodes, substitutions

__all__ = [
    "Accumulated",
    "MANIFEST",
    "PRELUDE",
    "NodeRecord",
    "PythonFunction",
    "Substitution",
    "accumulating",
    "activate",
    "activate_when_compiling",
    "compat",
    "formulas",
    "largest_results",
    "nodes",
    "options",
    "overload_of",
    "python_functions",
    "register",
    "substitutions",
]

MANIFEST = "opaq.json"  # the file in a package that lists its opaque ops, for `opaq inspect`
# A line in the C++ source of every wrapper that has opaque ops.
PRELUDE = "// Expressions of opaque ops."


@dataclasses.dataclass(frozen=True)
class PythonFunction:
    """An op that is one Python function, called as function(*args, **keyword_only_args) -> results;
    its fake implementation gives their layouts.
    """

    function: Callable[..., Any]
    devices: frozenset[str] | None = None  # the device types that it serves; None: all


# By qualified name; an op is put here before `register`.
python_functions: dict[str, PythonFunction] = {}

# For each op, a function that returns its gradient formula. AOTAutograd traces the formula, so it
# is part of the cache keys.
formulas: dict[str, Callable[[], Any]] = {}

# For each op, a function that returns the function which makes its results on fake tensors, with
# the bounds in place of sizes that only a launch knows.
largest_results: dict[str, Callable[[], Callable[..., Any]]] = {}


@dataclasses.dataclass
class Accumulated:
    """The argument that an op adds to its first result."""

    argument: str
    # device types: of implementations that read the argument, and of those that do not
    reading: set[str] = dataclasses.field(default_factory=set)
    ignoring: set[str] = dataclasses.field(default_factory=set)

    def is_served(self, device: str) -> bool:
        """Whether a call with the argument is served there as one without it is."""
        return device in self.reading or device not in self.ignoring


# By op.
accumulating: dict[str, Accumulated] = {}

# Ops in order of declaration, each with the dispatcher's kernels that its declaration registered;
# any other kernels come from somebody else.
registered: dict[str, list[tuple[str, str]]] = {}
# Their overloads. torch.library.custom_op makes a new one when an op is declared again.
_overloads: dict[str, Any] = {}
_active = False
# What the dispatcher's kernels of an op run.
_KERNELS = (
    __name__,
    "opaq.autograd",
    "opaq.custom_op",
    "opaq.formulas",
    "opaq.python_function",
    "opaq.reference",
    "opaq.vmap",
)


def overload_of(qualname: str) -> Any:
    """The op of PyTorch's dispatcher: torch.ops.<namespace>.<name>.<overload, else default>.
    AttributeError where none is defined.
    """
    namespace, name = qualname.partition("[")[0].split("::")  # a form is called as its op is
    name, _, overload = name.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")


def register(qualname: str) -> None:
    """Records an op ("mylib::rms_norm") that is declared or changed. Cheap. Its lowering is
    installed at once if lowerings are active, else by `activate`.
    """
    overload = overload_of(qualname)
    new = _overloads.get(qualname) is not overload
    if new:
        _overloads[qualname] = overload
        registered[qualname] = compat.pytorch.own_kernels(qualname)
    if new and _active:
        _install(qualname)


def activate() -> None:
    """Imports Inductor and gives it a lowering for every registered op, once. Called when tracing
    starts.
    """
    global _active
    if _active:
        return
    from . import accumulate, cache_key, copies, lower, record
    from .compat.inductor import inductor
    from .contract import traced

    compat.pytorch.skip_frames(_KERNELS)
    inductor.install_mends()
    cache_key.install(registered)
    copies.install(registered)
    inductor.before_writes(lambda graph: lower.install_for(graph, registered))
    accumulate.install(accumulating)
    inductor.after_compile(record.trace_new)
    traced.install(registered)  # the hook that is installed last sees a graph first
    _active = True
    for qualname in list(registered):
        _install(qualname)


def activate_when_compiling() -> None:
    """Activates if Dynamo has been imported. Fake implementations call it: they run before Inductor
    lowers a graph, but also in programs that compile nothing and should not import Inductor.
    """
    if not _active and compat.pytorch.tracer_is_loaded():
        activate()


def _install(qualname: str) -> None:
    from . import lower

    lower.install(qualname, overload_of(qualname))
