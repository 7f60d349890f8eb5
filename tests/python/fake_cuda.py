"""Inductor's wrapper source for a device="cuda" graph on a machine with no GPU. Nothing is compiled or run: it shows the lines that we print."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import decompose_auto_functionalized
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv


@contextlib.contextmanager
def pretend_gpu() -> Iterator[None]:
    """Enough for graphs of opaque ops alone. torch.cuda.is_available is left as it is: were it patched, torch would try to allocate."""
    with mock.patch("torch._inductor.scheduler.has_triton", lambda: True):
        yield


def wrapper_source(function: Callable[..., Any], *shapes: Sequence[int], dynamic: bool = False, device: str = "cuda") -> str:
    """The Python wrapper that Inductor writes for function(float32 tensors of these shapes). dynamic: every size above 1 is symbolic."""
    shape_env = ShapeEnv()
    fake_mode = FakeTensorMode(shape_env=shape_env)
    with fake_mode:
        args = [torch.empty(_sizes(shape, i, shape_env) if dynamic else shape, device=device) for i, shape in enumerate(shapes)]
    with fake_mode, tracing(TracingContext(fake_mode)):
        graph_module = make_fx(function, decomposition_table=select_decomp_table())(*args)
        decompose_auto_functionalized(graph_module.graph)
    with pretend_gpu(), V.set_debug_handler(DebugContext()), V.set_fake_mode(fake_mode), tracing(TracingContext(fake_mode)):
        graph = GraphLowering(graph_module, example_inputs=args, shape_env=shape_env, is_inference=True)
        with V.set_graph_handler(graph):
            graph.freeze_runtime_asserts()
            graph.run(*args)
            return graph.codegen()[0].value


def _sizes(shape: Sequence[int], position: int, shape_env: ShapeEnv) -> list[Any]:
    sizes = []
    for dim, size in enumerate(shape):
        source = ConstantSource(f"argument{position}_dim{dim}")
        symbol = shape_env.create_symbol(size, source, dynamic_dim=DimDynamic.DYNAMIC)
        sizes.append(shape_env.create_symintnode(symbol, hint=size, source=source))
    return sizes
