"""Inductor compiles what patterns put into graphs once for each kind of call: for tests of many
programs in which a pattern is found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch._inductor.config

from opaq import lowering
from opaq.lowering.compat.inductor import inductor


@contextlib.contextmanager
def calls_of_kernels() -> Iterator[None]:
    """In the block, backend="opaq" changes each graph as ever. Inductor compiles the first graph
    with given calls of opaq's kernels: equal constants and options; tensors of equal dtypes and
    layouts. Another graph with the same calls differs in PyTorch's own functions before and after
    them, and runs without being compiled.
    """
    compiled: set[Any] = set()
    compile_fx = inductor.compile_fx

    def compile_once(
        graph_module: torch.fx.GraphModule,
        inputs: Sequence[Any],
        patches: dict[str, Any],
        settings: Callable[[], Any],
    ) -> Any:
        with settings():
            options = lowering.options.current()
        calls = tuple(_call(node) for node in graph_module.graph.nodes if _is_kernel(node))
        key = (
            calls,
            torch.is_grad_enabled(),
            repr(options),
            repr(sorted(patches.items())),
            repr(sorted(torch._inductor.config.get_config_copy().items())),
        )
        if calls and key in compiled:
            return graph_module.forward
        compiled.add(key)
        return compile_fx(graph_module, inputs, patches, settings)

    with mock.patch.object(inductor, "compile_fx", compile_once):
        yield


def _is_kernel(node: torch.fx.Node) -> bool:
    return "opaq_kernels" in str(node.target)


def _call(node: torch.fx.Node) -> Any:
    arguments = torch.fx.map_arg((node.args, node.kwargs), lambda each: _Told(each.meta))
    return str(node.target), repr(arguments)


class _Told:
    """What a call is compiled for: an argument's type and layout."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self.value = meta["example_value"]

    def __repr__(self) -> str:
        value = self.value
        if not isinstance(value, torch.Tensor):
            return str(type(value))
        fixed = [size if isinstance(size, int) else "any" for size in value.shape]
        dense = value.is_contiguous()
        return f"{value.dtype} {fixed} {dense} {value.storage_offset()} {value.requires_grad}"
