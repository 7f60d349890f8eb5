"""An op's schema as `inspect.signature` shows it. An argument whose name Python reserves, `from`,
is shown as `from_`.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any

import torch

from .lowering.functions import identifier


def signature_of(args: list[dict[str, Any]]) -> inspect.Signature:
    """args: `_runtime.OpInfo["args"]`."""
    return inspect.Signature([_parameter(arg) for arg in args])


def _parameter(arg: dict[str, Any]) -> inspect.Parameter:
    kind = (
        inspect.Parameter.KEYWORD_ONLY
        if arg["keyword_only"]
        else inspect.Parameter.POSITIONAL_OR_KEYWORD
    )
    default = inspect.Parameter.empty
    if arg["default"] is not None:
        try:
            default = ast.literal_eval(arg["default"])
        except (SyntaxError, ValueError):
            default = getattr(torch, arg["default"], arg["default"])  # a dtype
    annotation = arg["torch_type"] + "?" * arg["optional"]
    return inspect.Parameter(identifier(arg["name"]), kind, default=default, annotation=annotation)
