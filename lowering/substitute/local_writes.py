"""Writes to tensors that nothing else sees yet, as operations that give new tensors: models write
`weights /= weights.sum(-1, keepdim=True)` behind topk, `inverse[order] = arange(n)` into an empty
tensor, `out.add_(bias)` behind a product, `ascending[mask] = 0` behind a sort, `mask[..., -1:] = 0`
behind a comparison, `probabilities.div_(torch.empty_like(probabilities).exponential_())`. A pattern
looks through operations, not through writes. Nor may a result be written to that an op might keep,
as in `loss = F.cross_entropy(...)`, `loss += penalty`.

The graph means the same before and after; it is what PyTorch makes of it later.
"""

from __future__ import annotations

import operator
from types import NoneType
from typing import Any

import torch
from torch.fx import Graph, Node

from ..compat.pytorch import pytorch
from . import operations, rewrite
from .operations import function_name, value_of

_ARITHMETIC = {"itruediv": operator.truediv, "imul": operator.mul, "iadd": operator.add}
_ARITHMETIC |= {"isub": operator.sub}
_METHODS = {"div_": "div", "mul_": "mul", "add_": "add", "sub_": "sub"}
_METHODS |= {"scatter_": "scatter", "scatter_add_": "scatter_add"}
_METHODS |= {"masked_fill_": "masked_fill"}
_FUNCTIONS = {  # no methods
    "exponential_": torch.ops.aten.exponential.default,
    "fill_": torch.fill,
}
_WITH_OUT = {"cumsum"}
# They give new memory.
_NEW = {"empty", "empty_like", "new_empty", "zeros", "zeros_like", "new_zeros"}
_NEW |= {"ones", "ones_like", "new_ones", "full", "full_like", "new_full", "fill"}
_NEW |= {"lt", "le", "gt", "ge", "eq", "ne", "add", "sub", "mul", "div"}
_NEW |= {"masked_fill", "where", "index_put", "gather", "scatter", "slice_scatter"}
_NEW |= {"scatter_add", "pad"}
_NEW |= {"neg", "sum", "mean", "silu", "gelu", "cross_entropy", "nll_loss"}
_NEW |= {"layer_norm", "rms_norm", "embedding"}
_KEPT_FOR_GRADIENTS = {"softmax", "amax"}  # new memory too


def remove(graph: Graph) -> bool:
    """Changes the graph; returns whether it did."""
    writes = [node for node in graph.nodes if _is_known(node)]
    if not writes:
        return False
    parts = _parts(graph)
    sharing = operations.sharing(graph)
    place = {node: number for number, node in enumerate(graph.nodes)}
    done = [_replaced(graph, write, sharing, place, parts) for write in writes]
    return any(done)


def _is_known(node: Node) -> bool:
    name = function_name(node)
    if _has_out(node):
        return True
    written = node.op == "call_function" and name in _ARITHMETIC or name == "setitem"
    return written or node.op == "call_method" and (name in _METHODS or name in _FUNCTIONS)


def _has_out(node: Node) -> bool:
    return node.op == "call_function" and function_name(node) in _WITH_OUT and "out" in node.kwargs


def _parts(graph: Graph) -> dict[Node, int]:
    """Nodes with the same number have no node between them that may turn gradients on or off: a
    write without gradients leaves those of the values before it. Those inside of torch.func's
    transforms are left out."""
    parts, part = {}, 0
    transformed = operations.transformed(graph)
    for node in graph.nodes:
        if node not in transformed:
            parts[node] = part
        name = function_name(node)
        part += "grad_enabled" in name or "inference_mode" in name
    return parts


def _replaced(
    graph: Graph,
    write: Node,
    sharing: dict[int, set[Node]],
    place: dict[Node, int],
    parts: dict[Node, int],
) -> bool:
    target = write.kwargs["out"] if _has_out(write) else write.args[0]
    named = _has_out(write) or write.op == "call_method" and write.target in _METHODS
    if write.kwargs and not named or not isinstance(target, Node) or not _is_fresh(target):
        return False
    source = target.args[0] if function_name(target) == "getitem" else target
    if write not in parts or any(parts.get(each) != parts[write] for each in (target, source)):
        return False
    (memory,) = operations.memory(value_of(target))
    if source is not target and any(function_name(user) != "getitem" for user in source.users):
        return False
    # other views of it: earlier ones that nothing reads any more, and later ones of what it gives
    others = sharing[memory] - {target, source, write}
    earlier = [each for each in others if place[each] < place[write]]
    if any(place.get(user, -1) >= place[write] for each in earlier for user in each.users):
        return False
    if any(each.op in ("placeholder", "get_attr") for each in earlier):
        return False
    others -= set(earlier)
    if source is not target and any(source in each.args for each in others):
        return False
    mark = write.prev
    with graph.inserting_before(write):
        made = _functional(graph, write)
    if made is None:
        return False
    added = rewrite.between(mark, write)
    try:
        rewrite.complete(added, write)
    except (RuntimeError, TypeError, ValueError):
        rewrite.take_back(graph, mark, write)
        return False
    after = value_of(made)
    if not operations.alike(value_of(target), after):
        rewrite.take_back(graph, mark, write)
        return False
    place.update(dict.fromkeys(added, place[write]))
    parts.update(dict.fromkeys(added, parts[write]))
    later = {node for node in target.users if node not in added and place[node] > place[write]}
    target.replace_all_uses_with(made, lambda user: user in later)
    write.replace_all_uses_with(made)
    graph.erase_node(write)
    # what comes later and shared memory with the target, now shares that of the new tensor
    shared = sharing[memory]
    shared.discard(write)
    (new,) = operations.memory(after)
    views = sorted((node for node in shared if place[node] > place[write]), key=place.__getitem__)
    sharing[new] = {made, *views}
    for node in views:
        _see_new_memory(node)
    return True


def _see_new_memory(node: Node) -> None:
    """Gives what shares memory with its argument an example that does so, too."""
    before = value_of(node)
    if operations.may_write(node):
        after = value_of(node.args[0]) if node.args else None
    else:
        try:
            after = rewrite.evaluated(node)
        except (RuntimeError, TypeError, ValueError):
            return
    if not isinstance(before, torch.Tensor):
        if isinstance(before, (tuple, list)):
            node.meta["example_value"] = after
    elif isinstance(after, torch.Tensor) and operations.alike(before, after):
        kept = after.requires_grad == before.requires_grad
        node.meta["example_value"] = after if kept else after.detach()


def _is_fresh(target: Node) -> bool:
    """Whether a tensor is memory of its own, which nothing has kept for a gradient."""
    value = value_of(target)
    if not isinstance(value, torch.Tensor) or not pytorch.is_plain(value):
        return False
    if operations.may_write(target):  # silu(x, inplace=True) is x
        return False
    if value.layout != torch.strided:
        return False
    if function_name(target) == "getitem":
        call = target.args[0]
        return isinstance(call, Node) and function_name(call) in ("topk", "sort")
    name, source = function_name(target), target.args[0] if target.args else None
    if name in operations.CASTS and operations.is_tensor(source):
        if operations.memory_of(target).isdisjoint(operations.memory_of(source)):
            return True
        return set(source.users) == {target} and _is_fresh(source)
    if operations.rearranges(target) and set(source.users) == {target}:
        return _is_fresh(source)
    if name in _KEPT_FOR_GRADIENTS:
        return not value.requires_grad
    return name in _NEW or operations.is_kernel_of_its_own(target)


def _functional(graph: Graph, write: Node) -> Node | None:
    if _has_out(write):
        kwargs = {key: value for key, value in write.kwargs.items() if key != "out"}
        return graph.call_function(write.target, write.args, kwargs)
    name, (target, *others) = function_name(write), write.args
    if name in _ARITHMETIC:
        return graph.call_function(_ARITHMETIC[name], write.args)
    if name in _FUNCTIONS:
        return graph.call_function(_FUNCTIONS[name], write.args)
    if name != "setitem":
        return graph.call_method(_METHODS[name], write.args, write.kwargs)
    index, values = others
    if operations.is_tensor(index):
        return _at_places(graph, target, index, values)
    return _in_part(graph, target, index, values)


def _at_places(graph: Graph, target: Node, index: Node, values: Any) -> Node | None:
    """target[index] = values, for numbers of rows or a mask."""
    dtype = value_of(index).dtype
    if dtype in (torch.int64, torch.int32) and operations.is_tensor(values):
        return graph.call_function(torch.index_put, (target, (index,), values))
    alike = value_of(index).shape == value_of(target).shape
    if dtype == torch.bool and alike and isinstance(values, (bool, int, float)):
        return graph.call_method("masked_fill", (target, index, values))
    return None


def _in_part(graph: Graph, target: Node, index: Any, number: Any) -> Node | None:
    """target[..., a:b] = number, or values of the same shape, target[..., a::2] = such values;
    target[..., -1] = number."""
    index = index if isinstance(index, tuple) else (index,)
    last, value = index[-1], value_of(target)
    if index[:-1] != (Ellipsis,) and index[:-1] != (slice(None),) * (value.dim() - 1):
        return None
    if type(last) is int and last in (0, -1) and not operations.is_tensor(number):
        last = slice(last, None if last else 1)
    if not isinstance(last, slice):
        return None
    bounds, step = (last.start, last.stop), 1 if last.step is None else last.step
    if not all(isinstance(each, (int, NoneType)) for each in bounds):
        return None
    if operations.is_tensor(number) and step in (1, 2):
        values, part = value_of(number), value[..., last]
        if (values.shape, values.dtype) != (part.shape, part.dtype):
            return None
        return graph.call_function(torch.slice_scatter, (target, number, -1, *bounds, step))
    if step != 1:
        return None
    if not isinstance(number, (bool, int, float)):
        return None
    number = bool(number) if value.dtype == torch.bool else number
    part = graph.call_function(operator.getitem, (target, (Ellipsis, last)))
    filled = graph.call_function(torch.full_like, (part, number))
    return graph.call_function(torch.slice_scatter, (target, filled, -1, *bounds))
