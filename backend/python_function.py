"""Implementations that are Python functions, called with the op's arguments and its results, which
they write. Compiled graphs call them directly; the dispatcher calls them through another op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _runtime
from .reference import add_note, define_for_dispatcher

_library = torch.library.Library("opaq_python", "FRAGMENT")
_fills: dict[str, Callable[..., None]] = {}  # by the name of the dispatcher's op


def define(info: _runtime.OpInfo, implementation: str, function: Callable[..., Any]) -> None:
    """Makes `function` the implementation of this name; replaces an earlier one."""
    op, results = info["name"], [result["name"] for result in info["results"]]

    def fill(*values: Any) -> None:
        try:
            with torch.no_grad():
                returned = function(*values)
        except Exception as error:
            add_note(error, f"raised by implementation `{implementation}` of {op}")
            raise
        if returned is not None:
            raise _runtime.LaunchError(
                f"{op}: implementation `{implementation}` returned {type(returned).__name__}; it "
                f"fills its last arguments ({', '.join(results)}) and returns nothing"
                if results
                else f"{op}: implementation `{implementation}` returned "
                f"{type(returned).__name__}; the op has no results: return nothing"
            )

    name, schema = _runtime.python_kernel(op, implementation)
    first = name not in _fills
    _fills[name] = fill
    if first:
        define_for_dispatcher(
            _library,
            schema.partition("::")[2],
            lambda *args, **kw: _fill_in_order(info, name, args, kw),
        )
    _runtime.set_python_function(op, implementation, fill)


def _fill_in_order(
    info: _runtime.OpInfo, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    given = {**dict(zip((arg["name"] for arg in info["args"]), args)), **kwargs}
    values = [given.get(arg["name"], arg["default_value"]) for arg in info["args"]]
    _fills[name](*values, *(given[result["name"]] for result in info["results"]))
