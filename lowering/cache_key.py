"""Inductor's cache keys hold the hash of every opaque op in the graph, and of opaq itself: neither a changed kernel nor code that another opaq
wrote is served stale."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Container, Iterator
from typing import Any

import torch.fx
from opaq import _runtime

from . import copies, options, python_functions
from .compat import inductor


def install(registered: Container[str]) -> None:
    inductor.on_cache_key(lambda graph_module: key_of(graph_module, registered))


def key_of(graph_module: torch.fx.GraphModule | None, registered: Container[str]) -> tuple[Any, ...] | None:
    """(op, hash) of the opaque ops in the graph and its subgraphs, the lowering options and the writer; None for a graph without any."""
    found = {name for name in _op_names(graph_module) if name in registered}
    settings = dataclasses.astuple(options.current())
    if found and options.current().check:
        raise inductor.CacheBypass("opaq's contract check compares with the traced graph, which no compile cache holds")
    if not found and options.current() == options.Options():
        return None
    sharing = [copies.traced_sharing(module.graph, found) for module in _graph_modules(graph_module)]
    return (tuple((name, _hash(name)) for name in sorted(found)), settings, sharing, writer())


def _graph_modules(graph_module: torch.fx.GraphModule | None) -> Iterator[torch.fx.GraphModule]:
    if graph_module is not None:
        yield from (module for module in graph_module.modules() if isinstance(module, torch.fx.GraphModule))


@functools.cache
def writer() -> str:
    """SHA-256 of what writes generated code: this package and the runtime."""
    folder = pathlib.Path(__file__).parent
    digest = hashlib.sha256()
    for path in [*sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".h")), pathlib.Path(_runtime.__file__)]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _hash(name: str) -> str:
    return python_functions[name].hash if name in python_functions else _runtime.describe(name)["hash"]


def _op_names(graph_module: torch.fx.GraphModule | None) -> Iterator[str]:
    """Ops called by the graph, directly or as the argument of a higher-order op (auto_functionalized)."""
    for module in _graph_modules(graph_module):
        for node in module.graph.nodes:
            if node.op == "call_function":
                for value in (node.target, *node.args, *node.kwargs.values()):
                    name = inductor.op_name(value)
                    if name is not None:
                        yield name
