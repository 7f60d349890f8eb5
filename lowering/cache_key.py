"""Adds to the keys of Inductor's caches everything that decides what an opaque op in a graph
becomes, and opaq's own code. So no cache returns a graph that was compiled with an older kernel,
header, fake implementation or gradient, or by another version of opaq.

FxGraphCache keeps compiled graphs. Its keys need the kernels, the fake implementations (they give
the layouts of results), and which device types an op serves. AOTAutogradCache keeps what a graph is
traced into. Its keys also need gradients, vmap rules and the like, and the ops that these call.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch.fx

import opaq
from opaq import _runtime, lowering

from . import formulas, options, overload_of, python_functions, record, tuned
from .compat import pytorch
from .compat.inductor import inductor
from .function_digest import CannotDigest, digest

# The ops, each with the dispatcher's kernels that its declaration registered.
Registered = Mapping[str, list[tuple[str, str]]]


def install(registered: Registered) -> None:
    inductor.on_cache_key(
        lambda graph_module, traced: key_of(graph_module, registered, traced), CannotDigest
    )
    inductor.on_package_load(SavedKey)


class SavedKey:
    """The key of a graph that is kept in a package with it. Whoever reads the package activates
    opaq's lowerings thereby, which check the key: no graph was compiled before.
    """

    def __init__(self, key: tuple[Any, ...]) -> None:
        self._key = key

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        lowering.activate()

    def check(self) -> None:
        """Raises LaunchError, with the op, where an op is not what it was when the graph was
        traced.
        """
        ops, _, _, own = self._key
        if own != own_digest():
            raise _runtime.LaunchError("this graph was compiled with another version of opaq")
        for name, before in ops:
            if name not in lowering.registered:
                raise _runtime.LaunchError(
                    f"{name}, which this saved graph calls, is not declared in this process; "
                    "declare it before the model is compiled"
                )
            if _digest(name, lowering.registered, True) != before:
                raise _runtime.LaunchError(
                    f"{name} has changed since this graph was compiled and saved: its kernels, "
                    "fake implementation or gradient are others now; the graph is compiled again"
                )


def key_of(
    graph_module: torch.fx.GraphModule | None, registered: Registered, traced: bool
) -> tuple[Any, ...] | None:
    """What the key of a graph must hold: (op, digest) of each opaque op in it and its subgraphs,
    the lowering options, memory layouts, and opaq's own digest; None for a graph without opaque
    ops.

    traced: as in on_cache_key. Raises CannotDigest, with op and reason, if something that decides
    the result cannot be digested.
    """
    called = set(_op_names(graph_module))
    found = called & registered.keys()
    if traced and any(
        name not in registered and not pytorch.is_stock(name) and pytorch.in_python(name)
        for name in called
    ):
        found = set(registered)  # a Python implementation of another op may call any opaque op
    settings = dataclasses.astuple(options.current())
    if found and options.current().check:
        raise inductor.CacheBypass(
            "opaq's contract check compares with the traced graph, which no compile cache holds"
        )
    if not found and options.current() == options.Options():
        return None
    layouts = (
        [_memory_layouts(module.graph) for module in _graph_modules(graph_module)] if found else []
    )
    if found and not traced:
        layouts.append(inductor.donated_inputs())
    return (
        tuple((name, _digest(name, registered, traced)) for name in sorted(found)),
        settings,
        layouts,
        own_digest(),
    )


def _memory_layouts(graph: torch.fx.Graph) -> list[Any]:
    """How values were laid out in memory when the graph was traced, and which of them shared
    memory. The lowering depends on this, and the text of the graph does not contain it: Inductor
    removes copies before it makes the key, so that a graph with a copy can look like one without.
    """
    memories: dict[int, int] = {}
    return [
        [_described(value, memories) for value in inductor.traced_values(node)]
        for node in graph.nodes
    ]


def _described(value: Any, memories: dict[int, int]) -> Any:
    """For a tensor, a number that stands for its memory, and its layout; for a number, its text;
    None for other values, which the text of the graph contains.
    """
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        memory = memories.setdefault(pytorch.storage_id(value), len(memories))
        return (
            memory,
            str(value.dtype),
            str(value.device),
            str((tuple(value.shape), value.stride(), value.storage_offset())),
        )
    return (
        str(value)
        if isinstance(value, (bool, int, float, torch.SymInt, torch.SymFloat, torch.SymBool))
        else None
    )


def _graph_modules(graph_module: torch.fx.GraphModule | None) -> Iterator[torch.fx.GraphModule]:
    if graph_module is not None:
        yield from (
            module for module in graph_module.modules() if isinstance(module, torch.fx.GraphModule)
        )


@functools.cache
def own_digest() -> str:
    """SHA-256 of opaq's own code, which writes generated code and traces ops: the packages opaq and
    opaq.lowering, and the runtime.
    """
    folders = [pathlib.Path(__file__).parent, *map(pathlib.Path, opaq.__path__)]
    found = {
        path.resolve()
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".py", ".h")
    }
    digest = hashlib.sha256()
    for path in [*sorted(found), pathlib.Path(_runtime.__file__)]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _digest(name: str, registered: Registered, traced: bool) -> str:
    try:
        return digest(
            _parts(name, registered, traced), lambda called: _parts(called, registered, traced)
        )
    except CannotDigest as error:
        why = f"{name} is kept in no compile cache: it depends on {error}"
        record.log.info("%s", why)
        raise CannotDigest(why) from error


def _parts(name: str, registered: Registered, traced: bool) -> list[Any]:
    """All that decides what an op does: texts, and objects that are digested in turn."""
    if pytorch.is_stock(name):
        return []
    overload = overload_of(name)
    rules = pytorch.rules(name)
    parts: list[Any] = [
        pytorch.schema_text(overload),
        sorted(map(str, overload.tags)),
        rules["fake"],
        rules.get("kernels"),
        rules.get("disabled"),
    ]
    if name in python_functions:
        parts.append(sorted(python_functions[name].devices or ["any"]))
    elif name in registered:
        sources = _runtime.refresh_sources(name)
        if sources["unknown"]:
            raise CannotDigest(
                f"files that are not known before they are compiled ({sources['unknown']})"
            )
        parts += [_runtime.describe(name)["hash"], sources["digest"], tuned.digest(name)]
    others = sorted((Counter(pytorch.kernels(name)) - Counter(registered.get(name, ()))).elements())
    for key, place in others:
        if not pytorch.is_live(key) and (name in registered or ".py:" in place):
            raise CannotDigest(
                f"a kernel that was registered for {key} at {place}, whose content cannot be seen"
            )
    parts.append(others)
    if traced:
        parts += [rules, formulas[name]() if name in formulas else None]
    return parts


def _op_names(graph_module: torch.fx.GraphModule | None) -> Iterator[str]:
    """Ops called by the graph, directly or as the argument of a higher-order op
    (auto_functionalized).
    """
    for module in _graph_modules(graph_module):
        for node in module.graph.nodes:
            if node.op == "call_function":
                for value in (node.target, *node.args, *node.kwargs.values()):
                    name = pytorch.op_name(value)
                    if name is not None:
                        yield name
