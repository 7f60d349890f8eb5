"""What a call computes, by the name of its function and its arguments in one order."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from .operations import value_of


@dataclasses.dataclass(frozen=True)
class Operation:
    """args: nodes, numbers, texts, None, and tuples of these, in the order of `SIGNATURES`."""

    name: str
    args: tuple[Any, ...]


# The parameters of operations whose arguments may be given by keyword or left out.
SIGNATURES = {
    name: inspect.signature(eval(f"lambda {parameters}: None"))
    for name, parameters in {
        "add": "input, other, alpha=1",
        "gt": "input, other",
        "ge": "input, other",
        "sub": "input, other, alpha=1",
        "mul": "input, other",
        "div": "input, other, rounding_mode=None",
        "pow": "input, exponent",
        "mean": "input, dim=None, keepdim=False, dtype=None",
        "sum": "input, dim=None, keepdim=False, dtype=None",
        "amax": "input, dim=None, keepdim=False",
        "logsumexp": "input, dim, keepdim=False",
        "max": "input, dim=None, keepdim=False",
        "clamp": "input, min=None, max=None",
        "var": "input, dim=None, unbiased=None, keepdim=False, correction=None",
        "var_mean": "input, dim=None, unbiased=None, keepdim=False, correction=None",
        "norm": "input, p=2, dim=None, keepdim=False, dtype=None",
        "normalize": "input, p=2.0, dim=1, eps=1e-12, out=None",
        "softmax": "input, dim=None, stacklevel=3, dtype=None",
        "log_softmax": "input, dim=None, stacklevel=3, dtype=None",
        "silu": "input, inplace=False",
        "gelu": "input, approximate='none'",
        "relu": "input, inplace=False",
        "rms_norm": "input, normalized_shape, weight=None, eps=None",
        "layer_norm": "input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn=True",
        "cross_entropy": "input, target, weight=None, size_average=None, ignore_index=-100, "
        "reduce=None, reduction='mean', label_smoothing=0.0",
        "cross_entropy_loss": "input, target, weight=None, reduction=1, ignore_index=-100, "
        "label_smoothing=0.0",
        "nll_loss": "input, target, weight=None, size_average=None, ignore_index=-100, "
        "reduce=None, reduction='mean'",
        "linear": "input, weight, bias=None",
        "embedding": "input, weight, padding_idx=None, max_norm=None, norm_type=2.0, "
        "scale_grad_by_freq=False, sparse=False",
        "unsqueeze": "input, dim",
        "squeeze": "input, dim=None",
        "cat": "tensors, dim=0",
        "stack": "tensors, dim=0",
        "select": "input, dim, index",
        "chunk": "input, chunks, dim=0",
        "split": "input, split_size, dim=0",
        "narrow": "input, dim, start, length",
        "topk": "input, k, dim=-1, largest=True, sorted=True",
        "sort": "input, dim=-1, descending=False, stable=False",
        "argsort": "input, dim=-1, descending=False, stable=False",
        "histc": "input, bins=100, min=0, max=0",
        "cumsum": "input, dim, dtype=None",
        "gather": "input, dim, index, sparse_grad=False",
        "take_along_dim": "input, indices, dim=None",
        "index_select": "input, dim, index",
        "index_put": "input, indices, values, accumulate=False",
        "scatter": "input, dim, index, src, reduce=None",
        "scatter_add": "input, dim, index, src",
        "pad": "input, pad, mode='constant', value=None",
        "slice": "input, dim=0, start=None, end=None, step=1",
        "slice_scatter": "input, src, dim=0, start=None, end=None, step=1",
        "masked_fill": "input, mask, value",
        "where": "condition, input, other",
        "one_hot": "input, num_classes=-1",
        "argmax": "input, dim=None, keepdim=False",
        "exponential": "input, lambd=1, generator=None",
        "multinomial": "input, num_samples, replacement=False, generator=None",
    }.items()
}
_PLACES = ("dim", "start", "end", "length", "step")


def arguments(node: Node, name: str) -> dict[str, Any] | None:
    """Those of a call, by the names of `SIGNATURES`; None if it is called in another way, or at a
    place in a tensor that only the call knows."""
    try:
        bound = SIGNATURES[name].bind(*node.args, **_renamed(node.kwargs))
    except TypeError:
        return None
    bound.apply_defaults()
    given = bound.arguments
    return None if any(isinstance(given.get(each), Node) for each in _PLACES) else given


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = {"self": "input", "axis": "dim", "x": "input", "A": "input", "ord": "p"}
    names |= {"split_size_or_sections": "split_size", "keepdims": "keepdim"}
    return {names.get(key, key).lstrip("_"): value for key, value in kwargs.items()}


def plain(args: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(each) if isinstance(each, list) else each for each in args)


def general(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    return Operation(name, plain(tuple(given.values())))


def along(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """With the dim counted from the end."""
    value, dim = value_of(given["input"]), given["dim"]
    if not isinstance(value, torch.Tensor) or not isinstance(dim, int):
        return None
    return general(node, name, {**given, "dim": dim - value.dim() if dim >= 0 else dim})
