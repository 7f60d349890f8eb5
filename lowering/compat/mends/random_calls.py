"""Calls of custom ops that draw random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch import compile_utils
from torch._higher_order_ops.auto_functionalize import auto_functionalized, auto_functionalized_v2


def keep_random_calls_apart() -> None:
    """Lets the pass that merges equal calls (AOTAutograd's common subexpression elimination) know
    the tag `nondeterministic_seeded`. torch 2.11 asks by `get_aten_target` whether a call is of one
    of the random ops that it knows.
    """
    target_of = compile_utils.get_aten_target
    random = compile_utils.rand_ops[0]

    def get_aten_target(node: torch.fx.Node) -> Any:
        target = node.target
        if target in (auto_functionalized, auto_functionalized_v2):
            target = node.args[0]
        draws = isinstance(target, torch._ops.OpOverload) and (
            torch.Tag.nondeterministic_seeded in target.tags
        )
        return random if draws else target_of(node)

    compile_utils.get_aten_target = get_aten_target
