"""Inputs of a backward graph that nothing else holds, which Inductor and opaq may write over."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
from torch._functorch._aot_autograd import graph_compile

from ..pytorch import pytorch
from .old_values import is_view

aten = torch.ops.aten

# What torch takes out of graphs where it changes nothing, besides views.
_MAY_BE_REMOVED = (
    aten._unsafe_view.default,
    aten.clone.default,
    aten.cat.default,
    aten.constant_pad_nd.default,
    aten.repeat.default,
    torch.ops.prims.convert_element_type.default,
)


def leave_memory_that_others_hold() -> None:
    """Takes saved tensors out of the list if the user holds their memory: arguments and results of
    the forward graph, and results of the backward graph.

    torch (2.11 to 2.15) compares the storages of fake values. But if a pass over the joint graph
    removes an operation that changes nothing, as in x.clone() or x / 1, what remains gets the fake
    value of that operation, with a storage of its own. So this follows the nodes instead."""
    original = graph_compile.collect_bw_donated_buffer_idxs

    def collect_bw_donated_buffer_idxs(fw_module: Any, bw_module: Any, metadata: Any) -> list[int]:
        found = original(fw_module, bw_module, metadata)
        results = _results(fw_module)
        saved = results[metadata.tensors_saved_for_backwards_slice]
        inputs = fw_module.graph.find_nodes(op="placeholder")
        held = {_memory(node) for node in (*inputs, *results[: metadata.num_forward])}
        # of those that are saved, too: each of two would be written over while the other is read
        storages = {(_memory(node), _storage(node)) for node in saved}
        held |= {node for node, count in Counter(node for node, _ in storages).items() if count > 1}
        held_later = {_memory(node) for node in _results(bw_module)}
        inputs_later = bw_module.graph.find_nodes(op="placeholder")
        first = metadata.num_symints_saved_for_bw
        return [
            number
            for number in found
            if _memory(saved[number - first]) not in held and inputs_later[number] not in held_later
        ]

    graph_compile.collect_bw_donated_buffer_idxs = collect_bw_donated_buffer_idxs


def _results(module: torch.fx.GraphModule) -> Any:
    return module.graph.output_node().args[0]


def _memory(node: Any) -> Any:
    """The node whose memory a node may have."""
    while (viewed := _viewed(node)) is not None:
        node = viewed
    return node


def _viewed(node: Any) -> torch.fx.Node | None:
    """The node of whose memory a node is a view, or may become one; None if it has its own."""
    if not (isinstance(node, torch.fx.Node) and node.op == "call_function" and node.args):
        return None
    source = node.args[0]
    if node.target is operator.getitem:  # one of several views, or of other results
        call = source
        source = call.args[0] if isinstance(call, torch.fx.Node) and is_view(call.target) else None
    elif node.target in _MAY_BE_REMOVED:
        sources = source if isinstance(source, (list, tuple)) else [source]
        source = sources[0] if len(sources) == 1 and _looks_like(node, sources[0]) else None
    elif not is_view(node.target):
        return None
    return source if isinstance(source, torch.fx.Node) else None


def _looks_like(node: torch.fx.Node, other: Any) -> bool:
    """Whether the elements of two nodes may be the same."""
    if not isinstance(other, torch.fx.Node):
        return False
    a, b = (each.meta.get("val") for each in (node, other))
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return True
    return a.dtype == b.dtype and pytorch.surely_equal([a.numel()], [b.numel()])


def _storage(node: Any) -> int | None:
    value = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    plain = isinstance(value, torch.Tensor) and value.layout is torch.strided
    return pytorch.storage_id(value) if plain else None
