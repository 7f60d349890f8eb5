"""Argument names of writing ops that conflict with parameters of torch's own functions."""

from __future__ import annotations

import inspect
import types
from typing import Any

from torch._higher_order_ops.auto_functionalize import auto_functionalized, auto_functionalized_v2


def make_own_parameters_positional() -> None:
    """Lets a writing op have arguments of any name. torch (2.11 to 2.15) passes an op's arguments
    by keyword to functions whose own parameters have names like `mode` and `ctx`. This makes these
    parameters positional-only, as they are given.
    """
    for call in (auto_functionalized, auto_functionalized_v2):
        for table in (call.python_key_table, call.py_kernels):
            for key, function in table.items():
                if isinstance(function, types.FunctionType):
                    table[key] = _own_parameters_positional(function)


def _own_parameters_positional(function: Any) -> Any:
    given = [
        each
        for each in inspect.signature(function).parameters.values()
        if each.kind is each.POSITIONAL_OR_KEYWORD and each.default is each.empty
    ]
    code = function.__code__.replace(co_posonlyargcount=len(given))
    made = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made
