"""Lowering without compiling: Inductor stops when a graph has been lowered."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._inductor import compile_fx as inductor_compile
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .tracing import FakeRun

# An H100, in place of a GPU that is not there. Inductor divides its own loops by it; no decision
# about an opaque op depends on it.
PROPERTIES = SimpleNamespace(
    name="pretended",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 << 30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    gcnArchName="",
    L2_cache_size=50 << 20,
)
_NO_CACHES = {"fx_graph_cache": False, "fx_graph_remote_cache": False}


class _Lowered(BaseException):
    """Raised in place of printing a wrapper; no Exception, so that Inductor lets it pass."""


class DryRun:
    def pretend_cuda(self) -> AbstractContextManager[None]:
        """Answers questions about the GPU in the block where there is none."""
        return pretend_cuda()

    def lower_fx(
        self,
        graph_module: Any,
        example_inputs: Sequence[Any],
        patches: dict[str, Any],
        settings: Callable[[str], AbstractContextManager[Any]],
        fakes: FakeRun,
    ) -> Any:
        """As compile_fx, but nothing is compiled: each graph is lowered inside settings(kind),
        where the kind is "forward", "backward" or "inference". The result computes on fake tensors
        of `fakes`.
        """

        def lower_inner(module: Any, inputs: Sequence[Any], **facts: Any) -> Any:
            graph = torch.fx.GraphModule(module, copy.deepcopy(module.graph))  # as it is now
            kind = (
                "backward"
                if facts.get("is_backward")
                else "inference"
                if facts.get("is_inference")
                else "forward"
            )
            with settings(kind), contextlib.suppress(_Lowered), _stop_after_lowering():
                inductor_compile.compile_fx_inner(module, inputs, **facts)

            def run(inputs: list[Any]) -> Any:
                taken = list(inputs)
                inputs.clear()
                with fakes.in_graph():
                    return graph(*taken)

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        with pretend_cuda(), unset_fake_temporarily():
            return inductor_compile.compile_fx(
                graph_module,
                example_inputs,
                inner_compile=lower_inner,
                config_patches={**patches, **_NO_CACHES, **_folding(graph_module)},
            )


@contextlib.contextmanager
def _stop_after_lowering() -> Iterator[None]:
    def stop(*_: Any, **__: Any) -> Any:
        raise _Lowered

    with (
        mock.patch.object(GraphLowering, "codegen", stop),
        mock.patch.object(GraphLowering, "codegen_with_cpp_wrapper", stop),
        mock.patch.object(GraphLowering, "compile_to_module", stop),
    ):
        yield


def _folding(graph_module: torch.fx.GraphModule) -> dict[str, Any]:
    """The pass that folds constants computes them on the graph's device."""
    if torch.cuda.is_available():
        return {}
    values = [node.meta.get("example_value") for node in graph_module.graph.nodes]
    here = all(each.device.type == "cpu" for each in values if isinstance(each, torch.Tensor))
    return {} if here else {"joint_graph_constant_folding": False}


@contextlib.contextmanager
def pretend_cuda() -> Iterator[None]:
    """Answers Inductor's questions about the GPU where there is none."""
    if torch.cuda.is_available():
        yield
        return
    cuda = "torch._dynamo.device_interface.CudaInterface"
    with (
        mock.patch(f"{cuda}.get_device_properties", staticmethod(lambda device=None: PROPERTIES)),
        mock.patch(f"{cuda}.is_bf16_supported", staticmethod(lambda *_, **__: True)),
        mock.patch("torch.cuda.get_device_capability", lambda *_: (9, 0)),
    ):
        yield
