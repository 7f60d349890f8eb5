"""Ops that return what they write (torch.Tag.inplace and torch.Tag.out, since torch 2.15)."""

from __future__ import annotations

from typing import Any

from torch._higher_order_ops import auto_functionalize


def return_arguments() -> None:
    """Has such an op return the written argument in compiled graphs, as in eager. torch traces its
    result as another tensor: a later write to the result does not reach the argument, and a graph
    that returns it may return a copy.
    """
    for kind in ("inplace", "out"):
        name = f"_do_auto_functionalize_v2_for_{kind}_operator"
        setattr(auto_functionalize, name, _returning(getattr(auto_functionalize, name)))


def _returning(functionalize: Any) -> Any:
    def functionalized(ctx: Any, op: Any, schema: Any, arguments: dict[str, Any]) -> Any:
        given = dict(arguments)  # from which torch removes what is written
        functionalize(ctx, op, schema, arguments)
        names, _ = auto_functionalize.get_mutable_args_from_schema(schema)
        written = tuple(given[name] for name in names)
        return written[0] if len(written) == 1 else written

    return functionalized
