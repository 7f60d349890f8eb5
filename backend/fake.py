"""The fake (meta) implementation of an op: a Python function made from its output rules, which the
runtime prints as Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _runtime, lowering
from .lowering import counts, lists
from .lowering.compat import pytorch
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


def make_fake(info: _runtime.OpInfo, largest: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the op's arguments that returns empty outputs; works on real, meta and fake
    tensors, with symbolic sizes. Sizes that only a launch knows are new symbols. largest: as
    make_largest gives it.
    """
    if not counts.are_read(info):
        return largest
    several = len(info["outputs"]) > 1

    def fake(*args: Any, **kwargs: Any) -> Any:
        wholes = largest(*args, **kwargs)
        wholes = wholes if several else (wholes,)
        form = lists.form_of(info, args, kwargs)[0]
        sizes: dict[str, Any] = {}
        for output, whole in zip(form["outputs"], wholes):
            for dim, name in output["counted"]:
                if name not in sizes:
                    sizes[name] = _new_size(info["name"], whole.shape[dim])
        results = tuple(
            counts.with_sizes(whole, output["counted"], sizes)
            for output, whole in zip(form["outputs"], wholes)
        )
        return results if several else results[0]

    return fake


def _new_size(op: str, bound: Any) -> Any:
    """A symbol for a size from 0 to `bound`. Raises what PyTorch raises where there can be none, so
    that torch.compile calls the op outside of the graph.
    """
    if isinstance(bound, int) and bound == 0:
        return 0
    try:
        context = torch.library.get_ctx()
    except RuntimeError:
        raise _runtime.LaunchError(
            f"{op}: the sizes of its results are known only when it has run, and tensors on meta "
            "run nothing; call it on tensors with memory"
        ) from None
    if isinstance(bound, int):
        return context.new_dynamic_size(min=0, max=bound)
    return pytorch.at_most(context.new_dynamic_size(), bound)


def make_largest(info: _runtime.OpInfo) -> Callable[..., Any]:
    """The same as make_fake, with the bounds in place of sizes that only a launch knows."""
    if lists.has_lists(info):
        return _largest_of_forms(info)
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

    def largest(*args: Any, **kwargs: Any) -> Any:
        lowering.activate_when_compiling()
        _refuse_some_on_meta(info["name"], (*args, *kwargs.values()))
        return compute(*args, **identifiers(kwargs))

    return largest


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


def _largest_of_forms(info: _runtime.OpInfo) -> Callable[..., Any]:
    """The same for an op with lists of tensors."""
    forms: dict[str, Callable[..., Any]] = {}

    def largest(*args: Any, **kwargs: Any) -> Any:
        form, flat = lists.form_of(info, args, kwargs)
        if form["name"] not in forms:
            forms[form["name"]] = make_largest(form)
        positional, keywords = lists.as_called(form, flat)
        return forms[form["name"]](*positional, **keywords)

    return largest


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
