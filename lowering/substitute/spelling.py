"""Functions as graphs with example values: the spellings of a pattern, and what replaces them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Interpreter, Node, Tracer


def graph_of(function: Callable[..., Any], examples: Sequence[Any]) -> Graph:
    """The graph of function(*examples), with the value of each node as its example. Sizes, dtypes
    and other numbers that the function computes from its arguments are constants in it. Raises what
    the function raises.
    """
    tracer = Tracer()
    graph = tracer.trace(function)
    with torch.no_grad():
        _Examples(GraphModule(tracer.root, graph)).run(*examples)
    for node in list(graph.nodes):
        if node.op in ("placeholder", "output"):
            continue
        if isinstance(node.meta["example_value"], _CONSTANTS):
            for user in list(node.users):
                user.args = _with_constant(user.args, node)
                user.kwargs = _with_constant(user.kwargs, node)
            graph.erase_node(node)
    return graph


_CONSTANTS = (bool, int, float, str, torch.dtype, torch.device, torch.Size)


def _with_constant(arguments: Any, node: Node) -> Any:
    value = node.meta["example_value"]
    return torch.fx.map_arg(arguments, lambda each: value if each is node else each)


class _Examples(Interpreter):
    def run_node(self, node: Node) -> Any:
        node.meta["example_value"] = super().run_node(node)
        return node.meta["example_value"]
