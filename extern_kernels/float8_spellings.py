"""How unmodified code makes float8 values with a scale for each row, or for each 128 values of a
row; each way is a rule of the ops (rms_norm/float8.py).

Without a clamp the result is the same: a quotient is at most 448 * (1 + 2^-23) before it is
rounded, and NaN where a value is infinite.
"""

from collections.abc import Callable
from typing import Any

import torch

from .float8 import BLOCK

# Examples of the numbers: the least scale, the least size of values, and that of rule 3.
NUMBERS = {"scale_least": 1e-12, "size_least": 1e-12, "factor_least": 1e-4}
# Of blocks: how many a row has, the values of one and of a row.
SIZES = {"parts": 2, "block": BLOCK, "columns": 2 * BLOCK}


def results(
    op: Callable[..., Any],
    *given: Any,
    scale_least: Any = None,
    size_least: Any = None,
    factor_least: Any = None,
    block: Any = None,
) -> Any:
    """Of the op with the arguments `given`, laid out as PyTorch does."""
    rule, least = _rule_and_least(scale_least, size_least, factor_least)
    made = op(*given, 0 if block is None else BLOCK, rule, least)
    return made[0], made[1] if block is None else made[1].contiguous()


def _rule_and_least(scale_least: Any, size_least: Any, factor_least: Any) -> tuple[int, Any]:
    """Of the op, by the number that a spelling has."""
    if factor_least is not None:
        return 3, factor_least
    if size_least is not None:
        return 2, size_least
    return 1, 0.0 if scale_least is None else scale_least


def refusal(arguments: dict[str, Any], first: str) -> str:
    """Why the ops do not serve such arguments, or ""; first: the name of the tensor that gives the
    result its shape."""
    tensors = [each for each in arguments.values() if isinstance(each, torch.Tensor)]
    if arguments[first].dim() != 2 or arguments[first].shape[-1] == 0:
        return f"{first} has not two dimensions, or no columns"
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        return "the op has no gradient"
    numbers = [arguments[name] for name in NUMBERS]
    if any(number is not None and number < 0 for number in numbers):
        return "the least scale is negative"
    block, columns = arguments["block"], arguments[first].shape[-1]
    if block is None:
        return ""
    if block != BLOCK:
        return f"a scale is that of {block} values, not of {BLOCK}"
    if arguments["columns"] not in (None, columns) or columns % block:
        return f"{first} has rows of {columns} values, which are not those of the blocks"
    if arguments["parts"] not in (None, columns // block):
        return "the scales are not those of rows"
    return ""


def _narrow(y: Any, clamped: bool) -> Any:
    return (y.clamp(-448.0, 448.0) if clamped else y).to(torch.float8_e4m3fn)


def _largest(v: Any) -> Any:
    return v.abs().amax(-1, keepdim=True)


def plain(v: Any, clamped: bool) -> Any:
    scale = _largest(v) / 448.0
    return _narrow(v / scale, clamped), scale


def scale_bounded(v: Any, clamped: bool, least: Any) -> Any:
    scale = (_largest(v) / 448.0).clamp(min=least)
    return _narrow(v / scale, clamped), scale


def size_bounded(v: Any, clamped: bool, least: Any) -> Any:
    scale = _largest(v).clamp(min=least) / 448.0
    return _narrow(v / scale, clamped), scale


def by_factor(v: Any, clamped: bool, least: Any) -> Any:
    """DeepGEMM's per_token_cast_to_fp8, of whole rows"""
    largest = _largest(v).clamp(min=least)
    return _narrow(v * (448.0 / largest), clamped), largest / 448.0


# ---- for each block of a row ---------------------------------------------------------------------


def blocks_by_factor(v: Any, parts: Any, block: Any, columns: Any, factor_least: Any) -> Any:
    """DeepGEMM's per_token_cast_to_fp8"""
    values = v.view(-1, parts, block)
    largest = values.abs().amax(-1).clamp(min=factor_least)
    y = _narrow(values * (448.0 / largest.unsqueeze(-1)), False)
    return y.view(-1, columns), largest / 448.0


def blocks_plain(v: Any, parts: Any, block: Any, columns: Any) -> Any:
    y, scale = plain(v.view(-1, parts, block), True)
    return y.view(-1, columns), scale.squeeze(-1)


def blocks_scale_bounded(v: Any, parts: Any, block: Any, columns: Any, scale_least: Any) -> Any:
    """vLLM's QuantFP8"""
    y, scale = scale_bounded(v.view(-1, parts, block), True, scale_least)
    return y.view(-1, columns), scale.squeeze(-1)


def blocks_size_bounded(v: Any, parts: Any, block: Any, columns: Any, size_least: Any) -> Any:
    y, scale = size_bounded(v.view(-1, parts, block), True, size_least)
    return y.view(-1, columns), scale.squeeze(-1)


def flat_blocks_size_bounded(v: Any, parts: Any, block: Any, columns: Any, size_least: Any) -> Any:
    """vLLM's per_token_group_quant_fp8"""
    y, scale = size_bounded(v.view(-1, block), True, size_least)
    return y.view(-1, columns), scale.view(-1, parts)
