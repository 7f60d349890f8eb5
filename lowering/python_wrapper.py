"""Prints nodes into Inductor's Python wrapper: launch objects into its header, launches into its
body. Users read the result.
"""

from __future__ import annotations

import dataclasses
import json
import keyword
import math
import re
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sympy
import torch

from . import options
from .compat import pytorch
from .compat.inductor import V, inductor
from .devices import device_name

if TYPE_CHECKING:
    from opaq._runtime import OpInfo

    from .decision import Decision


@dataclasses.dataclass(frozen=True)
class CheckedCall:
    """A node's call, as the contract check identifies it."""

    source: str  # the line of user code, or ""
    # number of the kept graph (contract/traced.py) and of the call in it; None: it is in none
    call: list[int] | None


@dataclasses.dataclass
class _Header:
    """What has been printed into one wrapper's header."""

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    replayed: bool = False  # whether the wrapper's first line replays the traced graph


_headers: weakref.WeakKeyDictionary[Any, _Header] = weakref.WeakKeyDictionary()


def launch_object(
    wrapper: Any,
    info: OpInfo,
    node: str,
    device: torch.device,
    decision: Decision,
    checked: CheckedCall | None = None,
    workspace: bool = False,
) -> str:
    """Prints the header lines of one node's launch object and returns its name."""
    facts = {"device": device_name(device), "node": node, "implementation": decision.implementation}
    if decision.reason:
        facts["reason"] = decision.reason
    if options.current().profile:
        facts["profile"] = True
    if workspace:
        facts["workspace"] = True
    if decision.chooses:
        facts["chosen"] = "at launch"
        if decision.measured.implementation:
            facts["measured"] = decision.measured.for_runtime
    elif checked is not None and not decision.copied:  # an earlier one may fit the copies
        facts["chosen"] = "verified"
    return _define(wrapper, info["name"], info["schema"], info["hash"], "launch", facts, checked)


def python_object(
    wrapper: Any,
    overload: Any,
    node: str,
    device: torch.device | None,
    checked: CheckedCall | None = None,
) -> str:
    """As launch_object, for an op that is a Python function."""
    name = pytorch.op_name(overload)
    facts = {"device": device_name(device or torch.device("cpu")), "node": node}
    return _define(
        wrapper, name, pytorch.schema_text(overload), None, "python_function", facts, checked
    )


def launch(
    wrapper: Any,
    kernel: str,
    args: Sequence[str],
    device: torch.device,
    laid_out: Sequence[Any] = (),
) -> None:
    """Prints the launch; on CUDA the last argument is the current stream of the node's device.

    laid_out: for the contract check, the buffers of `args`, None for those that are no tensors."""
    if device.type == "cuda":
        args = [*args, inductor.raw_stream(wrapper, device.index or 0)]
    if options.current().check:
        layouts = (
            f"({_tuple(b.get_size())}, {_tuple(b.get_stride())}, {b.get_dtype()})"
            if b is not None
            else "None"
            for b in laid_out
        )
        args = [*args, f"laid_out=({', '.join(layouts)},)"]
    wrapper.writeline(f"{kernel}({', '.join(args)})")


def scalar(value: Any) -> str:
    """Python text of an argument that is not a tensor."""
    if isinstance(value, (sympy.Expr, sympy.logic.boolalg.Boolean)):
        return inductor.pexpr(value)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return inductor.pexpr(value.node.expr)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(scalar(item) for item in value)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, torch.device):
        return f"torch.{value!r}"
    return repr(value)


def _check_options(checked: CheckedCall) -> dict[str, Any]:
    """Keyword arguments of a checked node's launch object."""
    options: dict[str, Any] = {"check": True}
    if checked.source:
        options["source"] = checked.source
    if checked.call is not None:
        options["traced"] = checked.call
    return options


def _print_replay(root: Any, header: _Header, checked: CheckedCall) -> None:
    """Prints, once in a wrapper, the line that runs the traced graph on the graph's inputs."""
    if checked.call is not None and inductor.is_root() and not header.replayed:
        header.replayed = True
        inductor.before_body(
            root,
            f"opaq_graph.replay({checked.call[0]}, [{', '.join(V.graph.graph_input_names)}])  # "
            "for the contract check",
        )


def _tuple(values: Sequence[Any]) -> str:
    return f"({', '.join(scalar(value) for value in values)}{',' * (len(values) == 1)})"


def _define(
    wrapper: Any,
    qualname: str,
    schema: str,
    hash: str | None,
    method: str,
    facts: dict[str, Any],
    checked: CheckedCall | None,
) -> str:
    root = inductor.root_wrapper(wrapper)
    header = _headers.get(root)
    if header is None:
        header = _headers[root] = _Header()
        root.header.splice(f"""
            from opaq.lowering.generated import Graph as OpaqGraph

            opaq_graph = OpaqGraph({json.dumps(inductor.graph_label())})
        """)
    if options.current().nvtx:
        facts["nvtx"] = True
    if checked is not None:
        facts |= _check_options(checked)
        _print_replay(root, header, checked)
    name = _unique_name(qualname, header)
    arguments = [json.dumps(qualname), *([] if hash is None else [json.dumps(hash)])]
    arguments += [
        f"{key}={value if isinstance(value, bool) else json.dumps(value)}"
        for key, value in facts.items()
    ]
    root.header.writeline(f"# {schema}")
    root.header.writeline(f"{name} = opaq_graph.{method}({', '.join(arguments)})")
    return name


def _unique_name(qualname: str, header: _Header) -> str:
    """A valid and unique name that is not that of a graph input: in a backward graph, results of
    the op that were saved for it are called `rms_norm_1`.
    """
    base = re.sub(r"\W", "_", qualname.split("::")[1])
    if keyword.iskeyword(base) or base[0].isdigit():
        base = f"op_{base}"
    while True:
        count = header.counts.get(base, 0)
        header.counts[base] = count + 1
        name = f"{base}_{count}"
        if name not in V.graph.graph_input_names and name not in V.graph.constants:
            return name
