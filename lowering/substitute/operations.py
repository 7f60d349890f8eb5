"""What the nodes of a graph compute, in one spelling: torch.mul(a, b), a * b, a.mul(b) and
aten.mul.Tensor are the same operation. For graphs of Dynamo, torch.export and torch.fx.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch.fx import Node

from ..compat import pytorch


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
        "sub": "input, other, alpha=1",
        "mul": "input, other",
        "div": "input, other, rounding_mode=None",
        "pow": "input, exponent",
        "mean": "input, dim=None, keepdim=False, dtype=None",
        "sum": "input, dim=None, keepdim=False, dtype=None",
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
        "chunk": "input, chunks, dim=0",
        "split": "input, split_size, dim=0",
        "narrow": "input, dim, start, length",
        "topk": "input, k, dim=-1, largest=True, sorted=True",
        "sort": "input, dim=-1, descending=False, stable=False",
        "histc": "input, bins=100, min=0, max=0",
        "cumsum": "input, dim, dtype=None",
        "gather": "input, dim, index, sparse_grad=False",
        "index_select": "input, dim, index",
        "index_put": "input, indices, values, accumulate=False",
        "scatter": "input, dim, index, src, reduce=None",
        "slice": "input, dim=0, start=None, end=None, step=1",
    }.items()
}
_SAME = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "negative": "neg",
    "subtract": "sub",
    "floor_divide": "floordiv",
    "concat": "cat",
    "concatenate": "cat",
    "split_with_sizes": "split",
    "special_log_softmax": "log_softmax",
    "special_softmax": "softmax",
}
COMMUTATIVE = {"add", "mul"}
_CASTS = {"to", "float", "half", "bfloat16", "double", "type", "type_as"}
_CASTS |= {"convert_element_type"}
_VIEWS = {"view", "reshape", "flatten", "unflatten", "transpose", "t", "mT", "permute", "expand"}
_VIEWS |= {"squeeze", "unsqueeze", "expand_as", "view_as", "slice", "narrow", "select", "chunk"}
_VIEWS |= {"split", "unbind", "movedim", "swapaxes", "alias", "getitem"}
# Inductor runs them as kernels of their own; what comes before and after is not computed in them.
_EXTERN = {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "sort"}
_EXTERN |= {"scaled_dot_product_attention", "topk", "conv1d", "conv2d", "conv3d", "scaled_mm"}
_EXTERN |= {"grouped_mm", "cumsum", "argsort", "multinomial", "histc"}
# Their results are laid out by the sizes alone; not so those of convolutions, attention and sorts.
_ROW_MAJOR = {"contiguous", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"}
_OF_STRIDES = {"view", "view_as", "as_strided", "stride", "data_ptr"}
# They write to memory, or they change how what comes after them runs.
_WRITING = {"batch_norm", "instance_norm", "embedding_renorm", "setitem", "setattr", "delitem"}
_WRITING |= {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior"}
_WRITING |= {"ixor", "ilshift", "irshift", "imatmul", "iconcat"}


def value_of(node: Any) -> Any:
    """The example of a node's value that was recorded when the graph was traced."""
    if not isinstance(node, Node):
        return node
    return node.meta["example_value"] if "example_value" in node.meta else node.meta.get("val")


def is_tensor(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(value_of(node), torch.Tensor)


def is_like(node: Any, example: torch.Tensor) -> bool:
    """Whether a value may stand for an example: a floating one of at least 16 bits for a floating
    one, an integer for an integer. Tensor subclasses may mean something else by what is done."""
    if not is_tensor(node) or not pytorch.is_plain(value := value_of(node)):
        return False
    if example.is_floating_point():
        return _digits(value.dtype) > 0
    return not (value.is_floating_point() or value.is_complex())


def function_name(node: Node) -> str:
    """ "mul" of torch.mul, operator.mul, Tensor.mul and aten.mul.Tensor; "" of anything else."""
    if node.op == "call_method":
        name = str(node.target)
    else:
        name = pytorch.function_name(node.target) if node.op == "call_function" else ""
    return _SAME.get(name, name)


def is_opaque(node: Node) -> bool:
    """A custom op, which Inductor runs as it is."""
    op = pytorch.op_name(node.target) if node.op == "call_function" else None
    return op is not None and op.split("::")[0] not in ("aten", "prims", "higher_order")


def may_write(node: Node) -> bool:
    """Whether a node may write to memory, or change how what follows runs (autocast, grad mode)."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    name = function_name(node)
    if is_opaque(node) or pytorch.is_overload(node.target):
        return not pytorch.has_schema(node.target) or pytorch.writes(node.target)
    if not name or node.kwargs.get("out") is not None:
        return True
    if name in _WRITING or name.startswith("__") and name.strip("_") in _WRITING:  # x.__iadd__(y)
        return True
    if name.endswith("_") and not name.endswith("__"):
        return True
    if name.startswith("_") and not name.startswith("__"):
        return True
    if _argument(node, "max_norm") is not None:  # of an embedding: it scales the rows that it reads
        return True
    return bool(_argument(node, "inplace"))


def transforms_entered(node: Node) -> int:
    """1 where a transform of torch.func (grad, jvp, ...) begins, -1 where one ends, else 0."""
    name = pytorch.function_name(node.target) if node.op == "call_function" else ""
    return name.endswith("increment_nesting") - name.endswith("decrement_nesting")


def _argument(node: Node, name: str) -> Any:
    """Of a call of a Python function, by name; None where it has no such parameter."""
    if name in node.kwargs:
        return node.kwargs[name]
    place = _place_of(node.target, name) if node.op == "call_function" else None
    return node.args[place] if place is not None and place < len(node.args) else None


@functools.cache
def _place_of(function: Callable[..., Any], name: str) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin function
        return None
    return names.index(name) if name in names else None


def source_of_cast(node: Any) -> Node | None:
    """What a node converts to another floating dtype, or copies, without moving it to another
    device."""
    if not isinstance(node, Node) or not is_tensor(node):
        return None
    name = function_name(node)
    if name == "contiguous":
        source = node.args[0]
    elif name in _CASTS:
        source = node.args[0] if node.args else None
    else:
        return None
    if not is_tensor(source):
        return None
    before, after = value_of(source), value_of(node)
    if before.device != after.device or before.shape != after.shape:
        return None
    if before.dtype == after.dtype:
        return source
    return source if _digits(before.dtype) and _digits(after.dtype) else None


def is_exact_cast(node: Node, source: Node) -> bool:
    """Whether a cast loses nothing."""
    return loses_nothing(value_of(source).dtype, value_of(node).dtype)


def loses_nothing(before: torch.dtype, after: torch.dtype) -> bool:
    """Whether the dtype `after` holds all values of `before`."""
    return before == after or _digits(after) > _digits(before) > 0


def _digits(dtype: torch.dtype) -> int:
    """0 for what is no floating dtype of at least 16 bits."""
    known = {torch.bfloat16: 1, torch.float16: 1, torch.float32: 2, torch.float64: 3}
    return known.get(dtype, 0)


def is_view(node: Any) -> bool:
    return isinstance(node, Node) and is_tensor(node) and function_name(node) in _VIEWS


def needs_strides(node: Node) -> bool:
    """Whether a node fails, or may do something else, where a tensor is laid out in another way."""
    return is_opaque(node) or function_name(node) in _OF_STRIDES


def readers(results: Iterable[Node], passed: Callable[[Node], bool]) -> Iterator[Node]:
    """What reads the results, and what reads those of the readers that are passed; each once."""
    seen = set(results)
    queue = list(seen)
    while queue:
        for reader in queue.pop().users:
            if reader not in seen:
                seen.add(reader)
                yield reader
                if passed(reader):
                    queue.append(reader)


def shows_through(node: Node) -> bool:
    """Whether a node has the values of its argument, in another shape or dtype."""
    return is_view(node) or source_of_cast(node) is not None


def keeps_strides(node: Node) -> bool:
    """Whether the strides of a result may depend on those of the argument."""
    return function_name(node) not in _ROW_MAJOR


def is_fused(node: Any) -> bool:
    """Whether Inductor may compute a node in one kernel with what comes before and after it."""
    while isinstance(node, Node) and node.op not in ("placeholder", "get_attr", "output"):
        if (source := source_of_cast(node)) is not None:
            node = source
        elif function_name(node) in _VIEWS:  # also those that give several parts
            node = node.args[0]
        else:
            return not is_kernel_of_its_own(node)
    return False


def is_kernel_of_its_own(node: Node) -> bool:
    return is_opaque(node) or function_name(node) in _EXTERN


def waits_for_others(
    reader: Node, results: Iterable[Node], comes_before: Callable[[Node, Node], bool]
) -> bool:
    """Whether what reads results depends on them also through something that Inductor runs as a
    kernel of its own, so that it cannot be computed in one kernel with them."""

    def near(node: Node) -> bool:
        return comes_before(node, reader)

    kernels = [
        each
        for each in readers(results, lambda node: near(node) and not is_kernel_of_its_own(node))
        if near(each) and is_kernel_of_its_own(each)
    ]
    return reader in readers(kernels, near)


_PLACES = ("dim", "start", "end", "length", "step")


def operation(node: Any) -> Operation | None:
    """None for what is not looked into: inputs, and unknown operations."""
    if not isinstance(node, Node) or not (name := function_name(node)):
        return None
    if name == "getitem":
        return _item(node)
    if name in ("view", "reshape", "flatten") and tuple(node.args[1:]) in ((-1,), ((-1,),), ()):
        return None if node.kwargs else Operation("flattened", node.args[:1])
    if name not in _SIGNATURES:
        return None if node.kwargs else Operation(name, _plain(node.args))
    given = _arguments(node, name)
    return None if given is None else _SPECIAL.get(name, _general)(node, name, given)


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
    return dtype is None or (_digits(dtype) >= _digits(value.dtype) > 0)


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


def _joined(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    value, dim = value_of(node), given["dim"]
    if not isinstance(value, torch.Tensor) or not isinstance(dim, int):
        return None
    return Operation(name, (tuple(given["tensors"]), dim - value.dim() if dim >= 0 else dim))


def _narrowed(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    start = given["start"]
    return _part(given["input"], given["dim"], start, start + given["length"])


def _sliced(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    if given["step"] not in (None, 1):
        return None
    return _part(given["input"], given["dim"], given["start"], given["end"])


def _part(source: Node, dim: Any, start: Any, stop: Any) -> Operation | None:
    """(input, dim from the end, where the part begins and ends, as fractions of the size)."""
    value = value_of(source)
    if not isinstance(value, torch.Tensor) or not isinstance(dim, int):
        return None
    dim = dim - value.dim() if dim >= 0 else dim
    size = value.shape[dim]
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
    index = index if isinstance(index, tuple) else (index,)
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
    if len(cut) == 1 and not new and cut[0][1].step in (None, 1):
        return _part(source, cut[0][0], cut[0][1].start, cut[0][1].stop)
    return None


def _item_of_call(source: Node, index: Any) -> Operation | None:
    name = function_name(source)
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
    """(input, dim from the end, whether descending), stable, which is always allowed."""
    given.pop("stable")
    return _along(node, name, given)


def _histogram(node: Node, name: str, given: dict[str, Any]) -> Operation | None:
    """Of integers as they are before a cast, which some devices need."""
    source = given["input"]
    if is_tensor(source) and function_name(source) in _CASTS | {"int", "long"}:
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


_SPECIAL: dict[str, Callable[[Node, str, dict[str, Any]], Operation | None]] = {
    **dict.fromkeys(("add", "sub", "mul", "div"), _arithmetic),
    "pow": _power,
    **dict.fromkeys(("mean", "sum"), _reduction),
    "var": _variance,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("silu", "relu"), _activation),
    **dict.fromkeys(("rms_norm", "layer_norm"), _normalization),
    **dict.fromkeys(("cross_entropy", "cross_entropy_loss", "nll_loss"), _loss),
    "embedding": _embedding,
    "unsqueeze": _unsqueezed,
    "cat": _joined,
    "narrow": _narrowed,
    "slice": _sliced,
    "index_select": _selected,
    "topk": _largest,
    "histc": _histogram,
    "sort": _sorted,
    **dict.fromkeys(("cumsum", "gather"), _along),
    **dict.fromkeys(("index_put", "scatter"), _put),
}
