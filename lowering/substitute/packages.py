"""Ops that cannot go into a package, which runs without Python, are put into no graph of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Node

from .. import registered
from ..cpp_plan import NoCppForm
from ..lower import check_packaged
from . import operations
from .operations import value_of
from .rewrite import Refused


def check(added: Sequence[Node]) -> None:
    """Raises Refused where one of the ops in the `added` nodes has no implementation in CUDA or C++
    that serves it."""
    for node in added:
        if operations.op_name(node) not in registered:
            continue
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value_of)
        try:
            check_packaged(node.target, args, kwargs, value_of(node))
        except NoCppForm as error:
            given = [value_of(each) for each in node.all_input_nodes if operations.is_tensor(each)]
            dtypes = {str(each.dtype).removeprefix("torch.") for each in given}
            raise Refused(
                f"{operations.op_name(node)} cannot go into a package for "
                f"{', '.join(sorted(dtypes))} on {given[0].device}: {error}. Convert the model to "
                "what an implementation in CUDA or C++ takes, or give the op one"
            ) from error
