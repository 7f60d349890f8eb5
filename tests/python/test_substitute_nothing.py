"""A graph in which nothing is replaced is the one that PyTorch traced, whatever was tried."""

from __future__ import annotations

from typing import Any

import pytest
import substituting
import torch
import torch.nn.functional as F
from torch.fx import Graph

from opaq import extern_kernels

extern_kernels.load_patterns()
Tensor = torch.Tensor


def norm(x: Tensor) -> Tensor:
    """A mean by a sum, which patterns have as torch.mean, then a write."""
    y = x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-6).sqrt()
    y[:, 0] = 0
    return y * 1


def in_modes(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = torch.ones_like(x)
    with torch.autocast("cpu", enabled=False):
        return F.softmax(x * scale, dim=-1)


def in_branches(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: norm(x).sum(), lambda x: x.sum() / 2, (x,))


def as_text(graph: Graph) -> list[str]:
    return [f"{node.op} {node} {node.target} {node.args} {node.kwargs}" for node in graph.nodes]


@pytest.mark.parametrize("function", [norm, in_modes, in_branches])
def test_it_stays_as_it_was(function: Any) -> None:
    traced: list[list[str]] = []
    kept: list[list[str]] = []

    def of_all(graph: Graph, into: list[list[str]]) -> None:
        module = graph.owning_module
        assert module is not None
        graphs_in = (each.graph for each in module.modules() if hasattr(each, "graph"))
        into.extend(as_text(each) for each in graphs_in)

    def plain(graph_module: torch.fx.GraphModule, _: Any) -> Any:
        of_all(graph_module.graph, traced)
        return graph_module.forward

    x = torch.randn(4, 8)
    torch.compile(function, backend=plain)(x)
    torch.compiler.reset()
    ours = substituting.backend("all", seen=lambda graph: of_all(graph, kept))
    torch.testing.assert_close(torch.compile(function, backend=ours)(x), function(x))
    assert kept == traced != []


def test_explaining_and_compiling_it_go_on() -> None:
    """What Dynamo notes on nodes is there still."""
    x = torch.randn(4, 8, requires_grad=True)
    compiled = torch.compile(lambda x: norm(x * 1), backend="opaq", fullgraph=True)
    compiled(x).sum().backward()
    result, x.grad = x.grad, None
    norm(x * 1).sum().backward()
    torch.testing.assert_close(result, x.grad)
