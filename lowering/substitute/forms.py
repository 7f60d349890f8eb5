"""What a node computes, in one spelling: torch.mul(a, b), a * b, a.mul(b) and aten.mul.Tensor are
the same operation."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch.fx import Node

from ..compat import pytorch
from .operations import (
    CASTS,
    digits,
    function_name,
    is_opaque,
    is_tensor,
    may_write,
    op_name,
    value_of,
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """args: nodes, numbers, texts, None, and tuples of these, in the order of `_SIGNATURES`."""

    name: str
    args: tuple[Any, ...]


# The parameters of operations whose arguments may be given by keyword or left out.
_SIGNATURES = {
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
        "index_select": "input, dim, index",
        "index_put": "input, indices, values, accumulate=False",
        "scatter": "input, dim, index, src, reduce=None",
        "slice": "input, dim=0, start=None, end=None, step=1",
        "slice_scatter": "input, src, dim=0, start=None, end=None, step=1",
        "masked_fill": "input, mask, value",
        "where": "condition, input, other",
        "full_like": "input, fill_value, dtype=None",
        "argmax": "input, dim=None, keepdim=False",
        "exponential": "input, lambd=1, generator=None",
        "multinomial": "input, num_samples, replacement=False, generator=None",
    }.items()
}
COMMUTATIVE = {"add", "mul"}

_PLACES = ("dim", "start", "end", "length", "step")
_RESHAPES = ("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as")


def operation(node: Any) -> Operation | None:
    """None for what is not looked into: inputs, and unknown operations."""
    if not isinstance(node, Node):
        return None
    if not (name := function_name(node)):
        return _custom(node)
    if name == "getitem":
        return _item(node)
    if name in ("view", "reshape", "flatten") and tuple(node.args[1:]) in ((-1,), ((-1,),), ()):
        return None if node.kwargs else Operation("flattened", node.args[:1])
    if name in _RESHAPES and (found := _paired(node)) and found.args[1] == -1:
        return found
    if name in ("view", "reshape") and not node.kwargs:
        return _reshaped(node, name)
    if name not in _SIGNATURES:
        return None if node.kwargs else Operation(name, _plain(node.args))
    given = _arguments(node, name)
    return None if given is None else _SPECIAL.get(name, _general)(node, name, given)


def _reshaped(node: Node, name: str) -> Operation | None:
    """(input, all sizes but the first one, which follows from them), or of the input without a last
    dimension of size 1, as squeeze."""
    source, *sizes = node.args
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = list(sizes[0])
    elif len(sizes) == 1 and isinstance(value_of(sizes[0]), torch.Size):  # of another tensor
        sizes = list(value_of(sizes[0]))
    before, after = value_of(source), value_of(node)
    counted = is_tensor(source) and is_tensor(node) and len(sizes) == after.dim()
    if not counted or before.dtype != after.dtype:  # or the bits are read as another dtype
        return Operation(name, _plain(node.args))
    last = before.shape[-1] if before.dim() == after.dim() + 1 else None
    if isinstance(last, int) and last == 1 and before.shape[:-1] == after.shape:
        return Operation("squeeze", (source, -1))
    known = zip(sizes[1:], after.shape[1:])
    rest = (size if type(each) is type(size) is int else each for each, size in known)
    return Operation("view", (source, *rest))


def _custom(node: Node) -> Operation | None:
    """Of a custom op, by its own name."""
    if not is_opaque(node) or node.kwargs:
        return None
    return Operation(op_name(node), _plain(node.args))


def _arguments(node: Node, name: str) -> dict[str, Any] | None:
    """Those of a call, by the names of `_SIGNATURES`; None if it is called in another way, or at a
    place in a tensor that only the call knows."""
    try:
        bound = _SIGNATURES[name].bind(*node.args, **_renamed(node.kwargs))
    except TypeError:
        return None
    bound.apply_defaults()
    given = bound.arguments
    return None if any(isinstance(given.get(each), Node) for each in _PLACES) else given


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = {"self": "input", "axis": "dim", "x": "input", "split_size_or_sections": "split_size"}
    return {names.get(key, key).lstrip("_"): value for key, value in kwargs.items()}


def _plain(args: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(each) if isinstance(each, list) else each for each in args)


def _general(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    return Operation(name, _plain(tuple(given.values())))


def _arithmetic(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    left, right = given["input"], given["other"]
    if given.get("rounding_mode") == "floor":
        return Operation("floordiv", (left, right))
    if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
        return None
    if name == "mul" and left is right:
        return Operation("square", (left,))
    if name == "div" and isinstance(left, (int, float)) and left == 1:
        return Operation("reciprocal", (right,))
    return Operation(name, (left, right))


def _power(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    names = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
    exponent = given["exponent"]
    known = names.get(exponent) if isinstance(exponent, (int, float)) else None
    return Operation(known, (given["input"],)) if known else _general(node, name, given)


def _reduction(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, dims from the end, keepdim)."""
    value, dims = value_of(given["input"]), given["dim"]
    if not isinstance(value, torch.Tensor) or dims is None or not _wide_enough(given):
        return None
    dims = tuple(dims) if isinstance(dims, (list, tuple)) else (dims,)
    if not all(isinstance(dim, int) for dim in dims):
        return None
    from_end = tuple(sorted(dim - value.dim() if dim >= 0 else dim for dim in dims))
    return Operation(name, (given["input"], from_end, bool(given.get("keepdim", False))))


def _variance(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, dims from the end, keepdim, what the number of values is lessened by)."""
    unbiased, correction = given.pop("unbiased"), given.pop("correction")
    if isinstance(given["dim"], bool):  # var(unbiased), of all values
        return None
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    reduced = _reduction(node, name, given)
    return reduced and Operation(name, (*reduced.args, correction))


def _wide_enough(given: dict[str, Any]) -> bool:
    """Whether the argument `dtype` loses nothing."""
    dtype, value = given.get("dtype"), value_of(given["input"])
    return dtype is None or (digits(dtype) >= digits(value.dtype) > 0)


def _softmax(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    if isinstance(given["stacklevel"], torch.dtype):  # of the functions without that parameter
        given["dtype"] = given["stacklevel"]
    reduced = _reduction(node, name, given)
    return reduced and Operation(name, reduced.args[:2])


def _activation(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    return None if given.pop("inplace", False) else _general(node, name, given)


def _normalization(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    given.pop("cudnn", None)
    shape = given["normalized_shape"]
    given["normalized_shape"] = len(shape) if isinstance(shape, (list, tuple)) else 1
    return _general(node, name, given)


def _loss(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, target, weight, ignored index, reduction, label smoothing)."""
    if given.get("size_average") is not None or given.get("reduce") is not None:
        return None
    reduction = given["reduction"]
    if isinstance(reduction, int):  # of aten
        reduction = ("none", "mean", "sum")[reduction]
    names = ("input", "target", "weight", "ignore_index")
    smoothing = given.get("label_smoothing", 0.0)
    name = name.removesuffix("_loss") if name == "cross_entropy_loss" else name
    return Operation(name, (*(given[each] for each in names), reduction, smoothing))


def _embedding(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(index, weight, number of the row that gets no gradient, or -1)."""
    index, weight, padding = given["input"], given["weight"], given["padding_idx"]
    # aten has other parameters: weight, indices, padding_idx=-1, scale_grad_by_freq, sparse, of
    # which the last two lie at the places of max_norm and norm_type.
    of_aten = is_tensor(index) and value_of(index).is_floating_point()
    unset = (None, False) if of_aten else (None,)
    at_place = not any(given["max_norm"] is each for each in unset)
    if at_place or given["norm_type"] is True or given["scale_grad_by_freq"] or given["sparse"]:
        return None
    if of_aten:
        index, weight = weight, index
    elif isinstance(padding, int) and padding < 0:  # counted from the end
        rows = value_of(weight).shape[0] if is_tensor(weight) else None
        if not isinstance(rows, int):
            return None
        padding += rows
    return Operation(name, (index, weight, -1 if padding is None else padding))


def _unsqueezed(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        return None
    dim = given["dim"]
    return Operation(name, (given["input"], dim - value.dim() if dim >= 0 else dim))


def _squeezed(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    return _along(node, name, given) if isinstance(given["dim"], int) else None


def _joined(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    value, dim = value_of(node), given["dim"]
    if not isinstance(value, torch.Tensor) or not isinstance(dim, int):
        return None
    return Operation(name, (tuple(given["tensors"]), dim - value.dim() if dim >= 0 else dim))


def _paired(node: Node) -> Operation | None:
    """(input, dim) of "paired", which splits the last dimension in two, of which the one at `dim`
    has two elements, and of "merged", which does the reverse."""
    source = node.args[0]
    if not (is_tensor(source) and is_tensor(node)):
        return None
    before, after = value_of(source).shape, value_of(node).shape
    if len(after) == len(before) + 1:
        name, split, whole = "paired", after, before
    elif len(before) == len(after) + 1:
        name, split, whole = "merged", before, after
    else:
        return None
    if not pytorch.surely_equal(whole[:-1], split[:-2]):
        return None
    for dim in (-1, -2):
        if isinstance(split[dim], int) and split[dim] == 2:
            return Operation(name, (source, dim))
    return None


def _at(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    source, index = given["input"], given["index"]
    one = _one_of_two(source, given["dim"], index) if is_tensor(source) else None
    return one or _along(node, name, given)


def _one_of_two(source: Node, dim: Any, index: Any) -> Operation | None:
    """An element of a dimension of two, into which the last dimension of a tensor was split: every
    second column of that tensor, or a half of it."""
    value = value_of(source)
    if not isinstance(dim, int) or not isinstance(index, int) or isinstance(index, bool):
        return None
    dim = dim - value.dim() if dim >= 0 else dim
    if function_name(source) not in _RESHAPES or not -2 <= index < 2:
        return None
    split = _paired(source)
    if split is None or split.name != "paired" or split.args[1] != dim:
        return None
    whole, index = split.args[0], index % 2
    if dim == -1:
        return Operation("every", (whole, -1, index, 2))
    return Operation("part", (whole, -1, Fraction(index, 2), Fraction(index + 1, 2)))


def _narrowed(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    start = given["start"]
    return _part(given["input"], given["dim"], start, start + given["length"])


def _sliced(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    places = given["start"], given["end"]
    if given["step"] not in (None, 1):
        return _every(given["input"], given["dim"], *places, given["step"])
    return _part(given["input"], given["dim"], *places)


def _every(source: Node, dim: Any, start: Any, stop: Any, step: Any) -> Operation | None:
    """(input, dim from the end, the first, the step) of elements up to the end."""
    value = value_of(source)
    if not isinstance(value, torch.Tensor) or not isinstance(dim, int):
        return None
    start, size = start or 0, value.shape[dim]
    if not all(isinstance(each, int) for each in (start, step, size)) or not 0 <= start < step:
        return None
    if stop is not None and not (isinstance(stop, int) and stop >= size):
        return None
    return Operation("every", (source, dim - value.dim() if dim >= 0 else dim, start, step))


def _part(source: Node, dim: Any, start: Any, stop: Any) -> Operation | None:
    """(input, dim from the end, where the part begins and ends, as fractions of the size); of the
    last element, and of the first one of several, without these."""
    value = value_of(source)
    if not isinstance(value, torch.Tensor) or not isinstance(dim, int):
        return None
    dim = dim - value.dim() if dim >= 0 else dim
    if (start, stop) == (-1, None):
        return Operation("last", (source, dim))
    size = value.shape[dim]
    if start in (None, 0) and stop == 1 and not (isinstance(size, int) and size <= 2):
        return Operation("first", (source, dim))
    if start in (None, 0) and stop == -1 and not (isinstance(size, int) and size <= 2):
        return Operation("all_but_last", (source, dim))
    start, stop = 0 if start is None else start, size if stop is None else stop
    if not all(isinstance(each, int) for each in (start, stop, size)) or size == 0:
        return None
    start, stop = (max(0, min(size, each + size if each < 0 else each)) for each in (start, stop))
    return Operation("part", (source, dim, Fraction(start, size), Fraction(stop, size)))


def _item(node: Node) -> Operation | None:
    """x[...], or one result of a call."""
    source, index = node.args
    value = value_of(source)
    if isinstance(index, (tuple, list)) and len(index) == 1:
        index = index[0]
    if is_tensor(source) and is_tensor(index):
        return _rows(source, index)
    if not isinstance(source, Node) or isinstance(index, Node):
        return None
    if not isinstance(value, torch.Tensor):
        return _item_of_call(source, index)
    index = _with_last(index if isinstance(index, tuple) else (index,))
    if len(index) == 2 and all(is_tensor(each) for each in index):
        return _one_of_each_row(source, *index)
    if (one := _one_of_two_by_index(source, index)) is not None:
        return one
    if not all(each is None or each is Ellipsis or isinstance(each, slice) for each in index):
        return None
    used = sum(isinstance(each, slice) for each in index)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (value.dim() - used), *index[at + 1 :])
    else:
        index = (*index, *[slice(None)] * (value.dim() - used))
    new = [at for at, each in enumerate(index) if each is None]
    cut = [
        (at, each)
        for at, each in enumerate(each for each in index if each is not None)
        if each != slice(None)
    ]
    if len(new) == 1 and not cut:
        return Operation("unsqueeze", (source, new[0] - len(index)))
    if len(cut) == 1 and not new:
        dim, taken = cut[0]
        if taken.step in (None, 1):
            return _part(source, dim, taken.start, taken.stop)
        return _every(source, dim, taken.start, taken.stop, taken.step)
    return None


def _one_of_two_by_index(source: Node, index: tuple[Any, ...]) -> Operation | None:
    """x[..., 0], x[..., 0, :]."""
    if sum(type(each) is int for each in index) != 1:
        return None
    at = next(place for place, each in enumerate(index) if type(each) is int)
    others = (*index[:at], *index[at + 1 :])
    if not all(each is Ellipsis or each == slice(None) for each in others):
        return None
    dim = at - len(index) if Ellipsis in index[:at] else at
    return _one_of_two(source, dim, index[at])


def _with_last(index: tuple[Any, ...]) -> tuple[Any, ...]:
    """x[..., -1, None] and x[..., [-1]] as x[..., -1:]."""
    if index[-2:] == (-1, None) or index[-1:] == ([-1],):
        kept = index[:-2] if index[-1] is None else index[:-1]
        return (*kept, slice(-1, None))
    return index


def _item_of_call(source: Node, index: Any) -> Operation | None:
    name = function_name(source)
    if name == "unbind" and is_tensor(source.args[0]):
        dim = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)
        if (one := _one_of_two(source.args[0], dim, index)) is not None:
            return one
    if name in ("chunk", "split"):
        given, parts = _arguments(source, name), value_of(source)
        if given is None:
            return None
        tensor, dim = given["input"], given["dim"]
        if not is_tensor(tensor) or not isinstance(parts, (tuple, list)):
            return None
        sizes = [part.shape[dim] for part in parts]
        if not all(isinstance(size, int) for size in sizes):
            return None
        return _part(tensor, dim, sum(sizes[:index]), sum(sizes[: index + 1]))
    return Operation("item", (source, index))


def _one_of_each_row(source: Node, rows: Node, columns: Node) -> Operation | None:
    """(input, numbers of columns) of x[arange(len(x)), columns]."""
    size = value_of(source).shape[:1]
    if function_name(rows) != "arange" or len(rows.args) != 1 or any(map(may_write, rows.users)):
        return None
    if (value_of(source).dim(), value_of(columns).dim()) != (2, 1) or not _rows(source, columns):
        return None
    whole = pytorch.surely_equal((value_of(rows.args[0]),), size)
    return Operation("one_of_each_row", (source, columns)) if whole else None


def _rows(source: Node, index: Node) -> Operation | None:
    """source[index], for numbers of rows."""
    whole = value_of(index).dtype in (torch.int64, torch.int32)
    return Operation("rows", (source, index)) if whole else None


def _selected(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    source, index = given["input"], given["index"]
    if given["dim"] != 0 or not is_tensor(index) or value_of(index).dim() != 1:
        return None
    return _rows(source, index)


def _largest(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, k, dim from the end, whether the largest), in order, which is always allowed."""
    given.pop("sorted")
    return _along(node, name, given)


def _sorted(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, dim from the end, whether descending). An ascending order is taken to be stable,
    which is always allowed; a descending one that must be stable is another operation."""
    stable = given.pop("stable")
    return None if stable and given["descending"] else _along(node, name, given)


def _histogram(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """Of integers as they are before a cast, which some devices need."""
    source = given["input"]
    if is_tensor(source) and function_name(source) in CASTS | {"int", "long"}:
        before = source.args[0]
        if is_tensor(before) and not value_of(before).dtype.is_floating_point:
            given["input"] = before
    return _general(node, name, given)


def _along(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """With the dim counted from the end."""
    value, dim = value_of(given["input"]), given["dim"]
    if not isinstance(value, torch.Tensor) or not isinstance(dim, int):
        return None
    return _general(node, name, {**given, "dim": dim - value.dim() if dim >= 0 else dim})


def _put(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """The inverse of a permutation, as models write it: empty[order] = arange(len(order))."""
    index = given.get("indices", given.get("index"))
    index = index[0] if isinstance(index, (tuple, list)) and len(index) == 1 else index
    source = given["values"] if name == "index_put" else given["src"]
    if name == "scatter" and (given["dim"] not in (0, -1) or given["reduce"] is not None):
        return None
    if given.get("accumulate") or not (is_tensor(index) and is_tensor(source)):
        return None
    if value_of(index).dim() != 1 or value_of(index).shape != value_of(node).shape:
        return None
    if function_name(given["input"]) not in ("empty", "empty_like", "new_empty"):
        return None
    if function_name(source) != "arange" or value_of(source).shape != value_of(index).shape:
        return None
    known = len(source.args) == 1 and value_of(index).dtype == torch.int64
    return Operation("inverted", (index,)) if known else None


def _scattered(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, dim from the end, index, source); of one dimension, what `_put` finds."""
    if is_tensor(node) and value_of(node).dim() == 1:
        return _put(node, name, given)
    return None if given.pop("reduce") is not None else _along(node, name, given)


def _written_part(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, the part's new values, dim from the end, start, end)."""
    if given.pop("step") not in (None, 1):
        return None
    return _along(node, name, {**given, "start": given["start"] or 0})


def _chosen(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """where(mask, number, x), which is x.masked_fill(mask, number)."""
    mask, number, source = given.values()
    if isinstance(number, (int, float)) and is_tensor(source) and is_tensor(node):
        if value_of(source).shape == value_of(node).shape:
            return Operation("masked_fill", (source, mask, number))
    return _general(node, name, given)


def _compared(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """a > b as b < a."""
    left, right = given["input"], given["other"]
    return Operation({"gt": "lt", "ge": "le"}[name], (right, left))


_SPECIAL: dict[str, Callable[[Node, str, dict[str, Any]], Operation | None]] = {
    **dict.fromkeys(("add", "sub", "mul", "div"), _arithmetic),
    "pow": _power,
    **dict.fromkeys(("mean", "sum", "amax", "logsumexp"), _reduction),
    "var": _variance,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("silu", "relu"), _activation),
    **dict.fromkeys(("rms_norm", "layer_norm"), _normalization),
    **dict.fromkeys(("cross_entropy", "cross_entropy_loss", "nll_loss"), _loss),
    "embedding": _embedding,
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    **dict.fromkeys(("cat", "stack"), _joined),
    "select": _at,
    "narrow": _narrowed,
    "slice_scatter": _written_part,
    "where": _chosen,
    **dict.fromkeys(("gt", "ge"), _compared),
    "slice": _sliced,
    "index_select": _selected,
    "topk": _largest,
    "histc": _histogram,
    **dict.fromkeys(("sort", "argsort"), _sorted),
    **dict.fromkeys(("cumsum", "gather", "argmax", "max"), _along),
    "index_put": _put,
    "scatter": _scattered,
}
