"""References, the ops written in PyTorch: their results are checked against the declaration, and
C++ calls them through the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _runtime

# The dispatcher's namespace in which runtime/torch finds the reference when no implementation fits.
NAMESPACE = "opaq_reference"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")
# (declaration, reference, fake implementation) by the name of the op
_functions: dict[str, tuple[_runtime.OpInfo, Callable[..., Any], Callable[..., Any]]] = {}


def define_reference(
    info: _runtime.OpInfo, function: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., None]:
    """Defines opaq_reference::<ns>__<name> with the op's schema, and returns fallback(*args,
    *outputs), which fills the outputs.

    fake: the op's output rules as a function of its arguments."""
    name = info["name"]
    first = name not in _functions
    _functions[name] = (info, function, fake)
    if first:
        schema = f"{name.replace('::', '__')}{info['schema'][len(name) :]}"
        define_for_dispatcher(_library, schema, lambda *args, **kw: _checked(name, args, kw))
    arity = len(info["args"])

    def fallback(*values: Any) -> None:
        results = _checked(name, values[:arity], {})
        for output, result in zip(
            values[arity:], results if isinstance(results, tuple) else (results,)
        ):
            output.copy_(result)

    return fallback


def define_for_dispatcher(
    library: torch.library.Library, schema: str, function: Callable[..., Any]
) -> None:
    """Defines an op of the dispatcher that calls `function` on every device. What it raises is kept
    for the runtime: PyTorch's C interface, through which the runtime calls the op, loses it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            _runtime.note_python_error(error)
            raise

    library.define(schema)
    library.impl(schema.partition("(")[0], call, "CompositeExplicitAutograd")


def _checked(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs the reference and checks number, shapes and dtypes of its results against the output
    rules. A result with other strides, or in the memory of an argument, is copied.
    """
    info, function, fake = _functions[name]
    keyword_only = [arg["name"] for arg in info["args"] if arg["keyword_only"]]
    if keyword_only and len(args) == len(info["args"]):
        split = len(args) - len(keyword_only)
        args, kwargs = args[:split], {**dict(zip(keyword_only, args[split:])), **kwargs}
    try:
        results = function(*args, **kwargs)
    except Exception as error:
        add_note(error, f"raised by the reference of {name}")
        raise
    if not info["outputs"]:
        return None
    results = tuple(results) if isinstance(results, (tuple, list)) else (results,)
    with torch.device("meta"):
        expected = fake(
            *(_meta(value) for value in args),
            **{key: _meta(value) for key, value in kwargs.items()},
        )
    expected = expected if isinstance(expected, tuple) else (expected,)
    if len(results) != len(expected):
        raise _runtime.LaunchError(
            f"reference of {name} returned {len(results)} results; its schema has "
            f"{len(expected)}: {info['schema']}"
        )
    fitted = []
    inputs = {
        value.untyped_storage().data_ptr()
        for value in (*args, *kwargs.values())
        if isinstance(value, torch.Tensor)
    }
    for output, result, rule in zip(info["outputs"], results, expected):
        if tuple(result.shape) != tuple(rule.shape) or result.dtype != rule.dtype:
            raise _runtime.LaunchError(
                f"reference of {name} returned `{output['name']}` as {result.dtype} "
                f"{tuple(result.shape)}; the output rule says {rule.dtype} "
                f"{tuple(rule.shape)}: correct the rule or the reference"
            )
        if result.stride() != rule.stride() or result.untyped_storage().data_ptr() in inputs:
            result = torch.empty_strided(
                rule.shape, rule.stride(), dtype=rule.dtype, device=result.device
            ).copy_(result)
        fitted.append(result)
    return tuple(fitted) if len(fitted) > 1 else fitted[0]


def add_note(error: Exception, text: str) -> None:
    """As BaseException.add_note of Python 3.11: a line that is printed below the message."""
    notes = getattr(error, "__notes__", [])
    if text not in notes:
        error.__notes__ = [*notes, text]


def _meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else value
