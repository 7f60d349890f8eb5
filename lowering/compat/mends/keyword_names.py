"""Arguments whose names Python reserves, such as `from`."""

from __future__ import annotations

import keyword
from typing import Any

import torch
from torch.fx.graph import CodeGen


def print_by_position() -> None:
    """Lets a call give such an argument by keyword, f(x, **{"from": 1.0}). torch.fx (2.11 to 2.15)
    prints it into a graph's code as `f(x, from = 1.0)`; it is given by position before that.
    """
    printed = CodeGen._gen_python_code

    def _gen_python_code(self: CodeGen, nodes: Any, *args: Any, **kwargs: Any) -> Any:
        for node in nodes:
            if node.kwargs and isinstance(node.target, torch._ops.OpOverload):
                _give_by_position(node)
        return printed(self, nodes, *args, **kwargs)

    CodeGen._gen_python_code = _gen_python_code


def _give_by_position(node: torch.fx.Node) -> None:
    reserved = [name for name in node.kwargs if keyword.iskeyword(name)]
    arguments = node.target._schema.arguments
    if not reserved or any(arg.kwarg_only for arg in arguments if arg.name in reserved):
        return
    last = max(i for i, arg in enumerate(arguments) if arg.name in reserved)
    given = dict(node.kwargs)
    added = [given.pop(arg.name, arg.default_value) for arg in arguments[len(node.args) : last + 1]]
    node.args, node.kwargs = (*node.args, *added), given
