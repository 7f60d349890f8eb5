"""What nodes print into Inductor's C++ wrappers: a prelude once, a function for each op, a call for
each node. The text is meant to be read by users.
"""

from __future__ import annotations

import dataclasses
import json
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sympy
import torch

from opaq import _runtime

from . import cpp_files, record
from .compat.inductor import inductor
from .devices import device_name
from .lists import declared_name
from .symbolic import SymbolicTensor

if TYPE_CHECKING:
    from opaq._runtime import CppFile, OpInfo

    from .cpp_plan import CppForm


@dataclasses.dataclass
class _Printed:
    """What has been printed into one wrapper so far."""

    manifest: cpp_files.Manifest | None  # of a package
    parts: set[str] = dataclasses.field(default_factory=set)
    functions: set[str] = dataclasses.field(default_factory=set)
    nodes: set[str] = dataclasses.field(
        default_factory=set
    )  # a subgraph's may be printed at each of its calls
    checks: list[str] = dataclasses.field(
        default_factory=list
    )  # Python: of files, when the wrapper is loaded


_printed: weakref.WeakKeyDictionary[Any, _Printed] = weakref.WeakKeyDictionary()


def launch(
    wrapper: Any,
    info: OpInfo,
    form: CppForm,
    node: str,
    device: torch.device,
    reason: str,
    references: Mapping[str, str],
    workspace: str | None = None,
) -> None:
    """Prints the call of one node and what it needs. `reason`: why these implementations;
    `references`, `workspace`: C++ of the tensors."""
    printed = _printed_by(wrapper)
    package = inductor.wrapper_language() == "package"
    files = [
        [_attach(wrapper, info, file) for file in launch]
        for launch in _runtime.cpp_code(form.compiled)
    ]
    if not package:
        _check_when_loaded(wrapper, printed, info["name"], files)
    never_empty = [name for name, value in form.known.items() if _never_empty(value)]
    function = _runtime.cpp_function(form.compiled, files, never_empty)
    name = function["name"]
    for part in function["prelude"]:
        _print_prelude(wrapper, printed, part)
    if name not in printed.functions:
        printed.functions.add(name)
        wrapper.prefix.splice(_guarded(name, function["definition"]))
    if printed.manifest:
        printed.manifest.add(
            f"constants:{node}" if inductor.folds_constants() else node,
            name,
            json.loads(function["manifest_entry"]),
        )
    args = [
        references[argument] if argument in references else scalar(form.known[argument], kind)
        for argument, kind in function["parameters"]
    ]
    if function["workspace"]:
        args.append("nullptr" if workspace is None else workspace)  # nullptr: allocated there
    if device.type == "cuda":
        index = str(device.index or 0)
        stream = (
            (inductor.user_stream() or "stream") if package else f"opaq_current_stream({index})"
        )
        args += (
            ["this->device_idx_", stream, "this->cubin_dir_"]
            if package
            else [index, stream, "std::nullopt"]
        )
    if not package:
        names = [item["name"] for item in form.implementations]
        args.append(
            _define_node(wrapper, printed, info["name"], node, device, names, reason, form.timed)
        )
        if form.timed:
            args.append(f"opaq_timers_{node}.by_implementation")
        wrapper.writeline(f"opaq_{node}.check();")
    if form.profiled:
        args.append(_runtime.cpp_string(node))
    wrapper.writeline(f"{name}({', '.join(args)});")


def count(wrapper: Any, op: str, node: str, device: torch.device, reason: str) -> None:
    """Prints the counter of a node that Inductor itself prints as a call through the dispatcher."""
    counters = _define_node(wrapper, _printed_by(wrapper), op, node, device, ["dispatcher"], reason)
    wrapper.writeline(f"{counters}[0].add();")


def _printed_by(wrapper: Any) -> _Printed:
    if wrapper not in _printed:
        manifest = None
        if inductor.wrapper_language() == "package":
            constants = inductor.constants_wrapper()
            packaged_with = (
                _printed.get(constants) if constants else None
            )  # which share one manifest: a package cannot hold two
            manifest = packaged_with.manifest if packaged_with else cpp_files.Manifest(wrapper)
        _printed[wrapper] = _Printed(manifest)
    return _printed[wrapper]


def scalar(value: Any, kind: str) -> str:
    """C++ of an argument that is not a tensor; `kind`: its type in the schema."""
    if value is None:
        return "std::nullopt"
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        value = value.node.expr
    if isinstance(value, (sympy.Expr, sympy.logic.boolalg.Boolean)):
        return inductor.cexpr(value)
    if isinstance(value, (list, tuple)):
        return (
            f"std::initializer_list<int64_t>{{{', '.join(scalar(item, 'int') for item in value)}}}"
        )
    if isinstance(value, torch.dtype):
        return f"opaq_{str(value).removeprefix('torch.')}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"std::string_view({_runtime.cpp_string(value)})"
    if isinstance(value, float) or kind == "float":
        value = float(value)
        if math.isfinite(value):
            return repr(value)
        limit = "quiet_NaN()" if math.isnan(value) else "infinity()"
        return f"{'-' if value < 0 else ''}std::numeric_limits<double>::{limit}"
    return (
        "INT64_MIN"
        if value == -(1 << 63)
        else f"INT64_C({value})"
        if abs(value) > 0x7FFFFFFF
        else str(value)
    )


def _define_node(
    wrapper: Any,
    printed: _Printed,
    op: str,
    node: str,
    device: torch.device,
    implementations: Sequence[str],
    reason: str,
    timed: bool = False,
) -> str:
    """Prints what the report reads of a node, once. Returns the name of its counters."""
    if not printed.nodes:
        for part in ("errors", "nodes"):
            _print_prelude(wrapper, printed, part)
        wrapper.prefix.splice(_runtime.cpp_graph(inductor.graph_label()))
    if node not in printed.nodes:
        printed.nodes.add(node)
        where = device_name(device)
        wrapper.prefix.splice(
            _runtime.cpp_counters(node, op, where, implementations, reason, timed)
        )
        record.log_decision(
            record.NodeRecord(
                inductor.graph_label(), node, op, where, " or ".join(implementations), reason
            )
        )
    return f"opaq_{node}.calls"


def _print_prelude(wrapper: Any, printed: _Printed, part: str) -> None:
    """Adds a part of the prelude to the wrapper's header, which comes before any namespace. What it
    defines is internal to the wrapper: wrappers in one process share nothing.
    """
    if part not in printed.parts:
        printed.parts.add(part)
        wrapper.header.splice(_guarded(f"OPAQ_{part.upper()}", _runtime.cpp_prelude(part)))


def _guarded(name: str, text: str) -> str:
    """A graph and the graph of its folded constants are printed into one file."""
    return f"#ifndef {name}_PRINTED\n#define {name}_PRINTED\n{text}#endif\n"


def _never_empty(value: Any) -> bool:
    return isinstance(value, SymbolicTensor) and all(
        isinstance(size, (int, sympy.Integer)) and size != 0 for size in value.sizes
    )


def _attach(wrapper: Any, info: OpInfo, file: CppFile) -> tuple[str, str]:
    """Writes a file of code beside the wrapper, unless it stays where it is. Returns the name by
    which the C++ code finds it, and its digest."""
    if file["bytes"] is None:
        return file["path"], ""
    stem = declared_name(info["name"]).split("::")[1]
    path, digest = cpp_files.write_code(file["bytes"], stem, file["suffix"])
    return cpp_files.attach(wrapper, path), digest


def _check_when_loaded(
    wrapper: Any, printed: _Printed, op: str, files: Sequence[Sequence[tuple[str, str]]]
) -> None:
    """Prints Python that checks the files of code when Inductor loads the wrapper from its
    cache."""
    lines = [
        f"opaq_check_code({name!r}, {sha256!r}, {op!r})"
        for launch in files
        for name, sha256 in launch
        if sha256
    ]
    if lines and not printed.checks:
        lines = [*_CHECK, *lines]
    for line in dict.fromkeys(lines):
        if line not in printed.checks:
            inductor.prepend_python(wrapper, len(printed.checks), line)
            printed.checks.append(line)


# Where opaq is not installed, only the wrapper's C++ checks the files, at its first launch.
_CHECK = (
    "try:",
    "    from opaq.lowering.generated import check_code as opaq_check_code",
    "except ImportError:",
    "    opaq_check_code = lambda *code: None",
)
