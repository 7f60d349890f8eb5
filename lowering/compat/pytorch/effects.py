"""Whether a graph may be run once more, as if it had not run, on inputs that are as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import pytorch


def can_run_again(graph_module: torch.fx.GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether running a graph of PyTorch's own ops draws no random numbers and writes to no input.
    inputs: fake tensors and numbers, as Dynamo has traced it with. False, too, where a graph has
    graphs in it, or is given tensors of other classes."""
    tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
    if not tensors or not all(isinstance(each, FakeTensor) for each in tensors):
        return False
    if any(isinstance(each, torch.fx.GraphModule) for each in graph_module.children()):
        return False
    watch = _Watch(tensors)
    try:
        with torch.no_grad(), tensors[0].fake_mode, watch:
            graph_module(*inputs)
    except Exception:  # what cannot be traced is not known
        return False
    return not watch.found


def versions(values: Sequence[Any]) -> list[int]:
    """How often each tensor was written to so far; -1 of tensors that do not count it, and of what
    is no tensor."""
    try:
        return [each._version for each in values]
    except (AttributeError, RuntimeError):
        return [
            each._version if isinstance(each, torch.Tensor) and not each.is_inference() else -1
            for each in values
        ]


class _Watch(TorchDispatchMode):
    """found: whether there was an op that draws, writes to an input, or is not PyTorch's own."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.found = False
        self._memory = {pytorch.memory_of(each) for each in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.found |= func.namespace not in ("aten", "prims", "prim")
        known = func._schema.arguments
        given = {arg.name: arg.default_value for arg in known}
        given |= {arg.name: value for arg, value in zip(known, args)} | kwargs
        # attention without dropout has the tag, too
        if torch.Tag.nondeterministic_seeded in func.tags and given.get("dropout_p", 1) != 0:
            self.found = True
        for arg in known:
            written, value = arg.alias_info, given.get(arg.name)
            if written is not None and written.is_write and isinstance(value, torch.Tensor):
                self.found |= pytorch.memory_of(value) in self._memory
        return func(*args, **kwargs)
