"""What a node computes, in one spelling: torch.mul(a, b), a * b, a.mul(b) and aten.mul.Tensor are
the same operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from ..compat import pytorch
from . import parts
from .calls import SIGNATURES, Operation, along, arguments, general, plain
from .operations import CASTS, digits, function_name, is_opaque, is_tensor, op_name, value_of

COMMUTATIVE = {"add", "mul", "or"}


def operation(node: Any) -> Operation | None:
    """None for what is not looked into: inputs, unknown operations, and those of which only a call
    can tell what they are, since sizes depend on values."""
    try:
        return _operation(node)
    except Exception as error:
        if pytorch.is_data_dependent(error):
            return None
        raise


def _operation(node: Any) -> Operation | None:
    if not isinstance(node, Node):
        return None
    if not (name := function_name(node)):
        return _custom(node)
    if name == "getitem":
        return parts.item(node)
    if name in ("view", "reshape", "flatten") and tuple(node.args[1:]) in ((-1,), ((-1,),), ()):
        return None if node.kwargs else Operation("flattened", node.args[:1])
    if name in parts.RESHAPES and (found := parts.paired(node)) and found.args[1] == -1:
        return found
    if name in ("view", "reshape") and not node.kwargs:
        return _reshaped(node, name)
    if name in ("expand", "flatten") and not node.kwargs and (found := _sized(node, name)):
        return found
    if name in CASTS and (found := _as_floats(node)):
        return found
    if name in _FILLED:
        return _filled(node, name)
    if name not in SIGNATURES:
        return None if node.kwargs else Operation(name, plain(node.args))
    given = arguments(node, name)
    return None if given is None else _SPECIAL.get(name, general)(node, name, given)


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
        return Operation(name, plain(node.args))
    last = before.shape[-1] if before.dim() == after.dim() + 1 else None
    if isinstance(last, int) and last == 1 and before.shape[:-1] == after.shape:
        return Operation("squeeze", (source, -1))
    known = zip(sizes[1:], after.shape[1:])
    rest = (size if type(each) is type(size) is int else each for each, size in known)
    return Operation("view", (source, *rest))


def _sized(node: Node, name: str) -> Operation | None:
    """(input, all sizes but the first one, which is that of the input) of x.expand(...), and of
    x.flatten(1) as of x.view(...)."""
    source, *sizes = node.args
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = list(sizes[0])
    if not (is_tensor(source) and is_tensor(node)):
        return None
    before, after = value_of(source).shape, value_of(node).shape
    if name == "flatten":
        whole = sizes == [1] and len(after) == 2 and type(after[1]) is int
        return Operation("view", (source, after[1])) if whole else None
    if not before or len(before) != len(after) or not pytorch.surely_equal(before[:1], after[:1]):
        return None
    known = zip(sizes[1:], after[1:])
    rest = (size if type(each) is type(size) is int else each for each, size in known)
    return Operation("expand", (source, *rest))


def _as_floats(node: Node) -> Operation | None:
    """(input) of a cast of integers or truth values to a floating dtype."""
    source = node.args[0] if node.args else None
    if not (is_tensor(source) and is_tensor(node)):
        return None
    before, after = value_of(source), value_of(node)
    whole = not (before.is_floating_point() or before.is_complex())
    same = before.device == after.device and digits(after.dtype) > 0
    return Operation("floats", (source,)) if whole and same else None


# By name, the number that fills a new tensor, or place and name of the argument that is it.
_FILLED: dict[str, int | tuple[int, str]] = {
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), 0),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), 1),
    **dict.fromkeys(("full", "full_like"), (1, "fill_value")),
    "new_full": (2, "fill_value"),
    "fill": (1, "value"),
}


def _filled(node: Node, name: str) -> Operation | None:
    """(number), whatever gives the new tensor its shape."""
    number: Any = _FILLED[name]
    if isinstance(number, tuple):
        place, keyword = number
        number = node.args[place] if len(node.args) > place else node.kwargs.get(keyword)
    if number is None or is_tensor(number) or not is_tensor(node):
        return None
    if isinstance(number, (bool, int, float)):
        dtype = value_of(node).dtype
        kind = bool if dtype == torch.bool else float if dtype.is_floating_point else int
        number = kind(number)
    return Operation("filled", (number,))


def _custom(node: Node) -> Operation | None:
    """Of a custom op, by its own name."""
    if not is_opaque(node) or node.kwargs:
        return None
    return Operation(op_name(node), plain(node.args))


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
    return Operation(known, (given["input"],)) if known else general(node, name, given)


def _reduction(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, dims from the end, keepdim)."""
    value, dims = value_of(given["input"]), given["dim"]
    if not isinstance(value, torch.Tensor) or not _wide_enough(given):
        return None
    dims = range(value.dim()) if dims is None else dims
    dims = tuple(dims) if isinstance(dims, (list, tuple, range)) else (dims,)
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


def _norm(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, dim from the end, keepdim) of the root of the sum of squares along one dimension."""
    dims = given["dim"]
    one = type(dims) is int or isinstance(dims, (tuple, list)) and len(dims) == 1
    known = given["p"] is None or given["p"] == "fro" or given["p"] == 2
    return _reduction(node, name, given) if one and known else None


def _normalized(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, dim from the end, least norm) of F.normalize by the root of the sum of squares."""
    if given["p"] != 2 or given["out"] is not None or type(given["dim"]) is not int:
        return None
    dims, least = _reduction(node, name, given), given["eps"]
    return dims and Operation(name, (*dims.args[:2], least))


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
    return None if given.pop("inplace", False) else general(node, name, given)


def _normalization(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    given.pop("cudnn", None)
    shape = given["normalized_shape"]
    given["normalized_shape"] = len(shape) if isinstance(shape, (list, tuple)) else 1
    if name == "rms_norm" and given["eps"] is None and is_tensor(given["input"]):
        wide = value_of(given["input"]).dtype == torch.float64
        given["eps"] = torch.finfo(torch.float64 if wide else torch.float32).eps  # as PyTorch does
    return general(node, name, given)


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
    return along(node, name, given) if isinstance(given["dim"], int) else None


def _joined(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    value, dim = value_of(node), given["dim"]
    if not isinstance(value, torch.Tensor) or not isinstance(dim, int):
        return None
    return Operation(name, (tuple(given["tensors"]), dim - value.dim() if dim >= 0 else dim))


def _largest(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, k, dim from the end, whether the largest), in order, which is always allowed."""
    given.pop("sorted")
    return along(node, name, given)


def _sorted(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, dim from the end, whether descending). An ascending order is taken to be stable,
    which is always allowed; a descending one that must be stable is another operation."""
    stable = given.pop("stable")
    return None if stable and given["descending"] else along(node, name, given)


def _histogram(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """Of integers as they are before a cast, which some devices need."""
    source = given["input"]
    if is_tensor(source) and function_name(source) in CASTS | {"int", "long"}:
        before = source.args[0]
        if is_tensor(before) and not value_of(before).dtype.is_floating_point:
            given["input"] = before
    return general(node, name, given)


def _put(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """The inverse of a permutation, as models write it: empty[order] = arange(len(order))."""
    index = given.get("indices", given.get("index"))
    index = index[0] if isinstance(index, (tuple, list)) and len(index) == 1 else index
    source = given["values"] if name == "index_put" else given["src"]
    if name == "scatter" and (given["dim"] not in (0, -1) or given["reduce"] is not None):
        return None
    if given.get("accumulate") or not (is_tensor(index) and is_tensor(source)):
        return None
    if value_of(index).dim() == 1 and value_of(node).dim() > 1 and name == "index_put":
        return _rows_put(node, index, source, given["input"])
    if value_of(index).dim() != 1 or value_of(index).shape != value_of(node).shape:
        return None
    if function_name(given["input"]) not in ("empty", "empty_like", "new_empty"):
        return None
    if function_name(source) != "arange" or value_of(source).shape != value_of(index).shape:
        return None
    known = len(source.args) == 1 and value_of(index).dtype == torch.int64
    return Operation("inverted", (index,)) if known else None


def _rows_put(node: Node, index: Node, source: Node, new: Node) -> Operation | None:
    """(order, rows) of new[order] = rows: the rows as they were before they were put in order. All
    of a new tensor is written: the order is one, or what is read would be anything."""
    value = value_of(node)
    sizes = (value_of(index).shape[0], *value.shape[1:])
    if not pytorch.surely_equal(sizes, value.shape) or value_of(source).shape != value.shape:
        return None
    of_zeros = function_name(new) in ("zeros", "zeros_like", "new_zeros") and _is_order(index)
    known = of_zeros or function_name(new) in ("empty", "empty_like", "new_empty")
    return Operation("rows_put", (index, source)) if known else None


def _is_order(node: Node) -> bool:
    """Whether it is the order of a sort."""
    found = operation(node)
    if found is None or (found.name, *found.args[1:]) != ("item", 1):
        return False
    return function_name(found.args[0]) == "sort"


def _scattered(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, dim from the end, index, source), or what `_put` finds."""
    if is_tensor(node) and value_of(node).dim() == 1:
        if (found := _put(node, name, given)) is not None:
            return found
    if _is_mask_of_one(node, given["input"]):
        return None
    return None if given.pop("reduce") is not None else along(node, name, given)


def _is_mask_of_one(node: Node, new: Any) -> bool:
    """Whether truth values are put among new, false ones that have only one column: they are read
    as a mask of all columns of another tensor, while a pattern's mask has that tensor's shape."""
    if not is_tensor(node) or value_of(node).dtype != torch.bool or value_of(node).dim() < 2:
        return False
    one = pytorch.surely_equal(value_of(node).shape[-1:], (1,))
    return one and operation(new) == Operation("filled", (False,))


_COUNTED = (torch.int64, torch.int32, torch.float32, torch.float64)


def _added_up(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, dim from the end, index, source) of sums that have as many rows as the index, more
    than one column, and a dtype that has every number of tokens."""
    if not all(map(is_tensor, (given["input"], given["index"], given["src"]))):
        return None
    sums, index = value_of(given["input"]).shape, value_of(given["index"]).shape
    rows = len(sums) == len(index) and pytorch.surely_equal(sums[:-1], index[:-1])
    wide = rows and isinstance(sums[-1], int) and sums[-1] > 1
    exact = value_of(given["input"]).dtype in _COUNTED
    return along(node, name, given) if wide and exact else None


def _padded(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, numbers of zeros before and behind each dimension, from the last one on)."""
    zeros = given["mode"] == "constant" and given["value"] in (None, 0)
    return Operation(name, (given["input"], tuple(given["pad"]))) if zeros else None


def _written_part(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """(input, the part's new values, dim from the end, start, end)."""
    if given.pop("step") not in (None, 1):
        return None
    return along(node, name, {**given, "start": given["start"] or 0})


def _chosen(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """where(mask, number, x), which is x.masked_fill(mask, number), and where(mask, x, number); the
    number may fill a tensor like x."""
    mask, number, source = given.values()
    number, source = _number_of(number, source, node), _number_of(source, number, node)
    given = {"condition": mask, "input": number, "other": source}
    if isinstance(number, (int, float)) and is_tensor(source) and is_tensor(node):
        if value_of(source).shape == value_of(node).shape:
            return Operation("masked_fill", (source, mask, number))
    return general(node, name, given)


def _number_of(value: Any, other: Any, chosen: Node) -> Any:
    """The number that fills a tensor like the other one, which gives the result its shape."""
    if not all(map(is_tensor, (value, other, chosen))):
        return value
    found, result = operation(value), value_of(chosen)
    if found is None or found.name != "filled" or value_of(value).dtype != result.dtype:
        return value
    whole = value_of(other).shape == result.shape and value_of(other).dtype == result.dtype
    return found.args[0] if whole and isinstance(found.args[0], (int, float)) else value


def _compared(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """a > b as b < a."""
    left, right = given["input"], given["other"]
    return Operation({"gt": "lt", "ge": "le"}[name], (right, left))


_SPECIAL: dict[str, Callable[[Node, str, dict[str, Any]], Operation | None]] = {
    **dict.fromkeys(("add", "sub", "mul", "div"), _arithmetic),
    "pow": _power,
    **dict.fromkeys(("mean", "sum", "amax", "logsumexp"), _reduction),
    **dict.fromkeys(("var", "var_mean"), _variance),
    "norm": _norm,
    "normalize": _normalized,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("silu", "relu"), _activation),
    **dict.fromkeys(("rms_norm", "layer_norm"), _normalization),
    **dict.fromkeys(("cross_entropy", "cross_entropy_loss", "nll_loss"), _loss),
    "embedding": _embedding,
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    **dict.fromkeys(("cat", "stack"), _joined),
    "select": parts.at,
    "narrow": parts.narrowed,
    "slice_scatter": _written_part,
    "where": _chosen,
    **dict.fromkeys(("gt", "ge"), _compared),
    "slice": parts.sliced,
    "index_select": parts.selected,
    "topk": _largest,
    "histc": _histogram,
    **dict.fromkeys(("sort", "argsort"), _sorted),
    **dict.fromkeys(("cumsum", "gather", "argmax", "max"), along),
    "index_put": _put,
    "scatter": _scattered,
    "scatter_add": _added_up,
    "pad": _padded,
}
