"""Arguments of a pattern whose rows Inductor makes longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import Node

from ..compat.inductor import inductor
from ..padded import may_be_padded
from . import operations
from .operations import value_of
from .rewrite import Refused


def is_padded(node: Any) -> bool:
    """Whether a node has the result of a matrix product to which Inductor gives longer rows: one
    with a bias whose rows are not whole packs of 16 bytes. What Inductor computes reads them as
    they are."""
    node = operations.computed(node)
    if node is None or not operations.is_tensor(node):
        return False
    name, product = operations.function_name(node), value_of(node)
    of_linear = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if name != "addmm" and (name != "linear" or of_linear is None):
        return False
    if not inductor.pads(product.device) or product.dim() == 0:
        return False
    return bool(product.shape[-1] * product.itemsize % 16 != 0)


def check(padded: Mapping[str, Node], added: Sequence[Node]) -> None:
    """Raises Refused where one of the ops in the `added` nodes would get a copy of an argument."""
    for name, node in padded.items():
        ops = [
            reader
            for reader in operations.readers([node], operations.shows_through)
            if reader in added and operations.is_opaque(reader)
        ]
        if not all(may_be_padded(getattr(op.target, "tags", ())) for op in ops):
            raise Refused(
                f"Inductor pads the rows of `{name}` ({node.name}), and the op would need a copy"
            )
