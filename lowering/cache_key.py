"""Inductor's cache keys hold the hash of every opaque op in the graph, so that a changed kernel is never served stale."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator
from typing import Any

import torch.fx
from opaq import _runtime

from . import options, python_functions
from .compat import inductor


def install(registered: Container[str]) -> None:
    inductor.on_cache_key(lambda graph_module: key_of(graph_module, registered))


def key_of(graph_module: torch.fx.GraphModule | None, registered: Container[str]) -> tuple[Any, ...] | None:
    """(op, hash) of the opaque ops in the graph and its subgraphs, and the lowering options; None for a graph without any."""
    found = {name for name in _op_names(graph_module) if name in registered} if graph_module is not None else set()
    settings = dataclasses.astuple(options.current())
    if not found and options.current() == options.Options():
        return None
    return (tuple((name, _hash(name)) for name in sorted(found)), settings)


def _hash(name: str) -> str:
    return python_functions[name].hash if name in python_functions else _runtime.describe(name)["hash"]


def _op_names(graph_module: torch.fx.GraphModule) -> Iterator[str]:
    """Ops called by the graph, directly or as the argument of a higher-order op (auto_functionalized)."""
    for module in graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if node.op == "call_function":
                for value in (node.target, *node.args, *node.kwargs.values()):
                    name = inductor.op_name(value)
                    if name is not None:
                        yield name
