"""Fake (meta) behaviour of an op: its output rules, printed by the runtime as Python, made into a function of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _runtime, lowering


def signature(args: list[_runtime.ArgInfo]) -> str:
    """Python parameter list of a schema: "x, weight, *, eps=1e-6"."""
    parameters, star = [], False
    for arg in args:
        if arg["keyword_only"] and not star:
            parameters.append("*")
            star = True
        default = arg["default"]
        if arg["torch_type"] in ("ScalarType", "Layout", "MemoryFormat") and default not in (None, "None"):
            default = f"torch.{default}"
        parameters.append(arg["name"] if default is None else f"{arg['name']}={default}")
    return ", ".join(parameters)


def make_fake(info: _runtime.OpInfo) -> Callable[..., Any]:
    """A function of the op's arguments that returns empty outputs; works on real, meta and fake tensors, with symbolic sizes."""
    results = []
    for output in info["outputs"]:
        shape = "[" + ", ".join(output["shape"]) + "]"
        device = f"device={output['device_of']}.device"
        if output["strides"]:
            results.append(f"torch.empty_strided({shape}, [{', '.join(output['strides'])}], dtype={output['dtype']}, {device})")
        else:
            results.append(f"torch.empty({shape}, dtype={output['dtype']}, {device})")
    value = results[0] if len(results) == 1 else ("(" + ", ".join(results) + ",)" if results else "None")
    compute = make_function("compute", signature(info["args"]), value, info["name"])

    def fake(*args: Any, **kwargs: Any) -> Any:
        lowering.activate_when_compiling()
        return compute(*args, **kwargs)

    return fake


def make_function(name: str, parameters: str, value: str, where: str) -> Callable[..., Any]:
    """A Python function from texts that the runtime has parsed and printed."""
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(f"def {name}({parameters}):\n    return {value}\n", f"<opaq: {where}>", "exec"), scope)
    return scope[name]
