"""Parts of tensors and pairs of their columns, however they are written: x[..., :4], narrow, chunk,
split; x[..., ::2], unflatten and unbind."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch.fx import Node

from ..compat import pytorch
from .calls import Operation, along, arguments
from .operations import function_name, is_tensor, may_write, value_of

RESHAPES = ("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as")


def paired(node: Node) -> Operation | None:
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
    for dim, other in ((-1, -2), (-2, -1)):
        if type(split[other]) is int and split[other] == 1:
            continue  # a new dimension of size 1
        if isinstance(split[dim], int) and split[dim] == 2:
            return Operation(name, (source, dim))
    return None


def at(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    source, index = given["input"], given["index"]
    one = _one_of_two(source, given["dim"], index) if is_tensor(source) else None
    return one or along(node, name, given)


def _one_of_two(source: Node, dim: Any, index: Any) -> Operation | None:
    """An element of a dimension of two, into which the last dimension of a tensor was split: every
    second column of that tensor, or a half of it."""
    value = value_of(source)
    if not isinstance(dim, int) or not isinstance(index, int) or isinstance(index, bool):
        return None
    dim = dim - value.dim() if dim >= 0 else dim
    if function_name(source) not in RESHAPES or not -2 <= index < 2:
        return None
    split = paired(source)
    if split is None or split.name != "paired" or split.args[1] != dim:
        return None
    whole, index = split.args[0], index % 2
    if dim == -1:
        return Operation("every", (whole, -1, index, 2))
    return Operation("part", (whole, -1, Fraction(index, 2), Fraction(index + 1, 2)))


def narrowed(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    start = given["start"]
    return _part(given["input"], given["dim"], start, start + given["length"])


def sliced(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
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
    if start in (None, 0) and isinstance(size, int) and size > 2 and stop == size - 1:
        return Operation("all_but_last", (source, dim))
    start, stop = 0 if start is None else start, size if stop is None else stop
    if not all(isinstance(each, int) for each in (start, stop, size)) or size == 0:
        return None
    start, stop = (max(0, min(size, each + size if each < 0 else each)) for each in (start, stop))
    return Operation("part", (source, dim, Fraction(start, size), Fraction(stop, size)))


def item(node: Node) -> Operation | None:
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
    if (one := _one_by_index(source, index)) is not None:
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


def _one_by_index(source: Node, index: tuple[Any, ...]) -> Operation | None:
    """x[..., 0], x[..., 0, :]: one of two, or (input, dim from the end, index) of "select"."""
    if sum(type(each) is int for each in index) != 1:
        return None
    at = next(place for place, each in enumerate(index) if type(each) is int)
    others = (*index[:at], *index[at + 1 :])
    if not all(each is Ellipsis or each == slice(None) for each in others):
        return None
    dim = at - len(index) if Ellipsis in index[:at] else at
    if (one := _one_of_two(source, dim, index[at])) is not None:
        return one
    dims = value_of(source).dim()
    return Operation("select", (source, dim - dims if dim >= 0 else dim, index[at]))


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
        given, parts = arguments(source, name), value_of(source)
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


def selected(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    source, index = given["input"], given["index"]
    if given["dim"] != 0 or not is_tensor(index) or value_of(index).dim() != 1:
        return None
    return _rows(source, index)
