"""The fake (meta) implementation of an op: a Python function made from its output rules, which the
runtime prints as Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _runtime, lowering
from .lowering import lists
from .lowering.functions import functions, identifier, identifiers


def signature(args: list[_runtime.ArgInfo]) -> tuple[str, dict[str, Any]]:
    """Python parameter list of a schema, "x, weight, *, eps=default_eps", and the values of its
    defaults by name. Parameters have the identifiers of arguments.
    """
    parameters, defaults, star = [], {}, False
    for arg in args:
        if arg["keyword_only"] and not star:
            parameters.append("*")
            star = True
        name = identifier(arg["name"])
        if arg["default"] is None:
            parameters.append(name)
        else:
            defaults[f"default_{name}"] = arg["default_value"]
            parameters.append(f"{name}=default_{name}")
    return ", ".join(parameters), defaults


def make_fake(info: _runtime.OpInfo) -> Callable[..., Any]:
    """A function of the op's arguments that returns empty outputs; works on real, meta and fake
    tensors, with symbolic sizes.
    """
    if lists.has_lists(info):
        return _fake_of_forms(info)
    results = []
    for output in info["outputs"]:
        shape = "[" + ", ".join(output["shape"]) + "]"
        device = f"device={output['device']}"
        if output["strides"]:
            results.append(
                f"opaq.torch.empty_strided({shape}, [{', '.join(output['strides'])}], "
                f"dtype={output['dtype']}, {device})"
            )
        else:
            results.append(f"opaq.torch.empty({shape}, dtype={output['dtype']}, {device})")
    value = (
        results[0]
        if len(results) == 1
        else ("(" + ", ".join(results) + ",)" if results else "None")
    )
    compute = make_function(*signature(info["args"]), value, info["name"])

    def fake(*args: Any, **kwargs: Any) -> Any:
        lowering.activate_when_compiling()
        _refuse_some_on_meta(info["name"], (*args, *kwargs.values()))
        return compute(*args, **identifiers(kwargs))

    return fake


def _refuse_some_on_meta(op: str, values: tuple[Any, ...]) -> None:
    """PyTorch calls the fake implementation if any tensor is a meta tensor. Results on the device
    of another tensor would never be written.
    """
    devices = {value.device.type for value in values if isinstance(value, torch.Tensor)}
    if len(devices) > 1 and "meta" in devices:
        others = ", ".join(sorted(devices - {"meta"}))
        raise _runtime.LaunchError(
            f"{op}: some tensors are on meta and some on {others}; all tensors of a call must "
            "share a device"
        )


def _fake_of_forms(info: _runtime.OpInfo) -> Callable[..., Any]:
    """The same for an op with lists of tensors."""
    forms: dict[str, Callable[..., Any]] = {}

    def fake(*args: Any, **kwargs: Any) -> Any:
        form, flat = lists.form_of(info, args, kwargs)
        if form["name"] not in forms:
            forms[form["name"]] = make_fake(form)
        positional = sum(not arg["keyword_only"] for arg in form["args"])
        keywords = zip((arg["name"] for arg in form["args"][positional:]), flat[positional:])
        return forms[form["name"]](*flat[:positional], **dict(keywords))

    return fake


def make_function(
    parameters: str, defaults: dict[str, Any], value: str, where: str
) -> Callable[..., Any]:
    """A Python function from texts that the runtime has parsed and printed."""
    scope = {"opaq": functions, **defaults}
    exec(
        compile(f"def compute({parameters}):\n    return {value}\n", f"<opaq: {where}>", "exec"),
        scope,
    )
    return scope["compute"]
