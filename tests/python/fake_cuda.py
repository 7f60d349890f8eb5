"""Makes Inductor's wrapper source for a graph on "cuda" without a GPU, to test the lines that opaq
prints. Nothing is compiled or run.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._inductor import config
from torch._inductor.compile_fx import get_cpp_wrapper_config
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import decompose_auto_functionalized
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from opaq.lowering.compat.inductor.dry_run import pretend_cuda


@contextlib.contextmanager
def pretend_gpu(mixed: bool = False) -> Iterator[None]:
    """Patches torch so that it lowers graphs of opaque ops for "cuda"; mixed: also graphs with
    Triton kernels, for which no code is made.

    torch.cuda.is_available is not patched, since torch would then try to allocate.
    """
    codegen = "torch._inductor.codegen"
    patches = {
        "torch._inductor.scheduler.has_triton": lambda: True,
        f"{codegen}.wrapper.PythonWrapperCodegen.generate_and_run_autotune_block": lambda self: (
            None
        ),
    }
    if mixed:
        patches |= {
            "torch.utils._triton.triton_hash_with_backend": lambda: "pretended",
            f"{codegen}.cpp_wrapper_gpu.DeferredTritonCallWrapper.generate": lambda self, wrapper: (
                None
            ),
        }
    with contextlib.ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch(name, value))
        if mixed:
            stack.enter_context(pretend_cuda())
        yield


def wrapper_source(
    function: Callable[..., Any],
    *shapes: Sequence[int],
    dynamic: bool = False,
    device: str = "cuda",
    cpp: bool = False,
    package: bool = False,
    mixed: bool = False,
) -> str:
    """The wrapper that Inductor writes for function(float32 tensors of these shapes): in Python,
    `cpp` or AOTInductor's `package`.

    dynamic: every size above 1 is symbolic. mixed: the graph holds Triton kernels too.
    """
    shape_env = ShapeEnv()
    fake_mode = FakeTensorMode(shape_env=shape_env)
    with fake_mode:
        args = [
            torch.empty(_sizes(shape, i, shape_env) if dynamic else shape, device=device)
            for i, shape in enumerate(shapes)
        ]
    with fake_mode, tracing(TracingContext(fake_mode)):
        graph_module = make_fx(function, decomposition_table=select_decomp_table())(*args)
        decompose_auto_functionalized(graph_module.graph)
    patches = dict(get_cpp_wrapper_config()) if cpp or package else {}
    if package:  # where there is a GPU, Inductor tunes Triton kernels while it packages
        patches |= {"aot_inductor.package": True, "triton.autotune_at_compile_time": True}
    with (
        pretend_gpu(mixed),
        V.set_debug_handler(DebugContext()),
        V.set_fake_mode(fake_mode),
        V.set_aot_compilation(package),
        config.patch(patches),
        tracing(TracingContext(fake_mode)),
    ):
        graph = GraphLowering(
            graph_module,
            example_inputs=args,
            shape_env=shape_env,
            is_inference=True,
            cpp_wrapper=cpp or package,
            aot_mode=package,
        )
        with V.set_graph_handler(graph), V.set_extern_kernel_nodes([]):
            graph.freeze_runtime_asserts()
            graph.run(*args)
            return graph.codegen()[0].value


def cpp_part(source: str) -> str:
    """The C++ in a wrapper that wrapper_source(..., cpp=True) gives, which is a Python module
    around it.
    """
    return re.search(r"""cpp_wrapper_src = \(\s*r('''|\"\"\")(.*?)\1""", source, re.DOTALL)[2]


def _sizes(shape: Sequence[int], position: int, shape_env: ShapeEnv) -> list[Any]:
    sizes = []
    for dim, size in enumerate(shape):
        source = ConstantSource(f"argument{position}_dim{dim}")
        symbol = shape_env.create_symbol(size, source, dynamic_dim=DimDynamic.DYNAMIC)
        sizes.append(shape_env.create_symintnode(symbol, hint=size, source=source))
    return sizes
