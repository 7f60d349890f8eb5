"""Detours that models take, written as the operations in which patterns are spelled. The graph
means the same before and after. Spellings are rewritten, too, so that either may take a detour.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import NoneType
from typing import Any

import torch
from torch.fx import Graph, Node

from ..compat import pytorch
from . import forms, linear, means, operations, rewrite, rotations
from .operations import function_name, value_of

# Of a graph and a node: what stands for the node, put before it; the node where it was changed.
_Rule = Callable[[Graph, Node], Any]


def by_place(graph: Graph) -> bool:
    """Writes torch.reshape(input=x, ...) as torch.reshape(x, ...): the tensor that is looked at in
    another shape is the first argument of its node. Returns whether the graph changed."""
    changed = False
    for node in graph.nodes:
        names = ("input", "self", "tensor")
        name = next((each for each in names if each in node.kwargs), None)
        if name is not None and not node.args and function_name(node) in operations.VIEWS:
            node.args = (node.kwargs[name],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}
            changed = True
    return changed


def rewritten(graph: Graph) -> bool:
    """Changes the graph; returns whether it did."""
    changed = False
    for node in list(graph.nodes):
        rule = _RULES.get(function_name(node))
        if rule is None or not node.args or not operations.is_tensor(node):
            continue
        mark = node.prev
        try:
            with graph.inserting_before(node):
                made = rule(graph, node)
        except Exception as error:
            if not pytorch.is_data_dependent(error):
                raise
            rewrite.take_back(graph, mark, node)
            continue
        changed |= made is node
        if made is None or made is node:
            continue
        rewrite.complete(rewrite.between(mark, node), node)
        if not operations.alike(value_of(node), value_of(made)):
            rewrite.take_back(graph, mark, node)
            continue
        node.replace_all_uses_with(made)
        _erase(graph, node)
        changed = True
    return changed


def _erase(graph: Graph, node: Node) -> None:
    """With what nothing reads any more."""
    left = [node]
    while left:
        node = left.pop()
        sources = node.all_input_nodes
        graph.erase_node(node)
        left += [each for each in sources if not each.users and _may_go(each)]


def _may_go(node: Node) -> bool:
    """Not so the results of a call that gives several: patterns have all of them."""
    name = function_name(node)
    return operations.is_tensor(node.args[0]) if name == "getitem" else name in _LEFT


def _largest(graph: Graph, node: Node) -> Node | None:
    """x.max(dim)[0], of which the index is not read. (Gradients of equal values differ.)"""
    call, number = node.args
    found = forms.operation(call)
    if found is None or found.name != "max" or len(call.users) > 1:
        return None
    if number != 0 or value_of(node).requires_grad and not all(map(_gives_none, node.users)):
        return None
    source, dim, keepdim = found.args
    whole = isinstance(value_of(call), tuple) and type(dim) is int and type(keepdim) is bool
    return graph.call_function(torch.amax, (source, dim, keepdim)) if whole else None


def _gives_none(reader: Node) -> bool:
    """Whether what reads a tensor gives it no gradient: its shape alone is read, or what is chosen
    by it."""
    if function_name(reader) in ("topk", "sort"):
        return all(each.args[1:] == (1,) for each in reader.users)
    return function_name(reader) == "zeros_like"


def _same_shape(graph: Graph, node: Node) -> Any:
    """A view of the same shape, which is the tensor itself."""
    source, *sizes = node.args
    if node.kwargs or any(isinstance(size, torch.dtype) for size in sizes):
        return None
    if any(isinstance(size, Node) and type(value_of(size)) is int for size in sizes):
        return None  # of a spelling: any number
    if any(user.op == "output" for user in node.users):
        computed = isinstance(source, Node) and source.op.startswith("call")
        if not computed or len(source.users) > 1:
            return None  # the result is a tensor of its own
    return source if operations.is_tensor(source) else None


def _of_rows(graph: Graph, node: Node) -> Node | None:
    """log_softmax(x).view(-1, classes), as log_softmax(x.view(-1, classes)), where nothing else
    reads it."""
    given = node.args[0]
    found = forms.operation(given)
    if found is None or (found.name, *found.args[1:]) != ("log_softmax", (-1,)):
        return None
    before, after, source = value_of(given), value_of(node), found.args[0]
    whole = type(before.shape[-1]) is int and before.shape[-1:] == after.shape[-1:]
    alike = (before.dtype, before.stride()) == (value_of(source).dtype, value_of(source).stride())
    other = after.dtype == before.dtype and after.dim() != before.dim()
    if len(given.users) > 1 or not (whole and alike and other):
        return None
    if operations.written_between(given, node):
        return None
    view = graph.create_node(node.op, node.target, (source, *node.args[1:]), dict(node.kwargs))
    return graph.call_function(torch.log_softmax, (view, -1))


def _taken_along(graph: Graph, node: Node) -> Node | None:
    """torch.take_along_dim(x, index, dim) of as many rows, as x.gather(dim, index)."""
    given = forms.arguments(node, "take_along_dim")
    if given is None or type(given["dim"]) is not int:
        return None
    source, index = given["input"], given["indices"]
    sizes = [list(value_of(each).shape) for each in (source, index) if operations.is_tensor(each)]
    if len(sizes) < 2 or len(sizes[0]) != len(sizes[1]):
        return None
    for size in sizes:
        del size[given["dim"]]
    alike = pytorch.surely_equal(*sizes) and value_of(index).dtype == torch.int64
    return graph.call_method("gather", (source, given["dim"], index)) if alike else None


def _rows_of_classes(graph: Graph, node: Node) -> Node | None:
    """x.flatten(0, -2), as x.reshape(-1, classes)."""
    source, *dims = node.args
    if not operations.is_tensor(source) or node.kwargs or len(dims) != 2:
        return None
    shape = value_of(source).shape
    if len(shape) < 3 or dims[0] != 0 or dims[1] not in (-2, len(shape) - 2):
        return None
    return graph.call_method("reshape", (source, -1, shape[-1])) if type(shape[-1]) is int else None


def _squeezed(graph: Graph, node: Node) -> Node | None:
    """x[..., 0], x.select(-1, 0) and x.squeeze() of a last dimension of 1, as x.squeeze(-1)."""
    source, *rest = node.args
    shape = value_of(source).shape if operations.is_tensor(source) else ()
    if not shape or type(shape[-1]) is not int or shape[-1] != 1 or node.kwargs:
        return None
    indices = ((Ellipsis, 0), (*[slice(None)] * (len(shape) - 1), 0))
    written = {
        "getitem": rest == [indices[0]] or rest == [indices[1]],
        "select": rest in ([-1, 0], [len(shape) - 1, 0]),
        "squeeze": not rest,
    }
    return graph.call_method("squeeze", (source, -1)) if written[function_name(node)] else None


def _as_reduced(graph: Graph, node: Node) -> Node | None:
    """x.sum(dim, keepdim=True) with squeeze(dim), as x.sum(dim), where nothing else reads the
    sum."""
    view, given = forms.operation(node), node.args[0]
    if view is None or view.name != "squeeze" or len(given.users) > 1:
        return None
    reduced = forms.operation(given)
    if reduced is None or reduced.name not in _REDUCTIONS:
        return None
    if reduced.args[1:] != (view.args[1:], True) or operations.written_between(given, node):
        return None
    return graph.create_node(given.op, given.target, reduced.args[:2])


def _kept(graph: Graph, node: Node) -> Node | None:
    """f(x.sum(dim)).unsqueeze(dim), as f(x.sum(dim, keepdim=True)), for any number of functions of
    each element, where nothing else reads the sum and what they give."""
    view, inner = forms.operation(node), node.args[0]
    if view is None or view.name != "unsqueeze":
        return None
    functions = []
    while operations.is_tensor(inner) and len(inner.users) == 1:
        if (reduced := forms.operation(inner)) is not None and reduced.name in _REDUCTIONS:
            break
        known = function_name(inner) in _OF_EACH and not operations.may_write(inner)
        if not known or len(inner.all_input_nodes) != 1:
            return None
        functions.append(inner)
        inner = inner.all_input_nodes[0]
    else:
        return None
    if reduced.args[1:] != (view.args[1:], False) or operations.written_between(inner, node):
        return None
    made = graph.create_node(inner.op, inner.target, reduced.args[:2], {"keepdim": True})
    for each in reversed(functions):
        made = graph.node_copy(each, lambda _, made=made: made)
        del made.meta["example_value"]
    return made


def _of_all_rows(graph: Graph, node: Node) -> Node | None:
    """torch.stack([x[0].sum(-1), x[1].sum(-1), ...]) of all rows of x, as x.sum(-1)."""
    found = forms.operation(node)
    if found is None or found.args[1] != -value_of(node).dim():
        return None
    each = found.args[0]
    reduced = [forms.operation(one) for one in each]
    first = reduced[0]
    if first is None or first.name not in _REDUCTIONS:
        return None
    rows = [one.args[0] if one is not None else None for one in reduced]
    whole = _row(rows[0])[0]
    if not operations.is_tensor(whole) or value_of(whole).shape[0] != len(rows):
        return None
    for number, (one, row) in enumerate(zip(reduced, rows)):
        alike = one is not None and (one.name, one.args[1:]) == (first.name, first.args[1:])
        if not alike or len(each[number].users) > 1 or _row(row) != (whole, number):
            return None
    if operations.written_between(rows[0], node):
        return None
    target, (_, dims, keepdim) = each[0], first.args
    return graph.create_node(target.op, target.target, (whole, dims, keepdim))


def _row(node: Any) -> tuple[Any, Any]:
    """(x, number) of x[number] and of x.unbind()[number]."""
    if not operations.is_tensor(node) or function_name(node) != "getitem":
        return None, None
    source, number = node.args
    if isinstance(source, Node) and function_name(source) == "unbind":
        source = source.args[0] if len(source.args) == 1 and not source.kwargs else None
    return (source, number) if type(number) is int else (None, None)


def _negated_last(graph: Graph, node: Node) -> Node | None:
    """(-x).squeeze(dim), as -(x.squeeze(dim)), where nothing else reads -x."""
    source, *dims = node.args
    if not operations.is_tensor(source) or function_name(source) != "neg" or node.kwargs:
        return None
    if len(source.args) != 1 or len(source.users) > 1 or operations.written_between(source, node):
        return None
    return graph.call_function(torch.neg, (graph.call_method("squeeze", (source.args[0], *dims)),))


def _taken_by_its_own_choice(graph: Graph, node: Node) -> Node | None:
    """x.gather(dim, x.topk(k, dim)[1]), as x.topk(k, dim)[0], and the same of a sort."""
    found = forms.operation(node)
    chosen = forms.operation(found.args[2]) if found is not None else None
    if chosen is None or (chosen.name, chosen.args[1:]) != ("item", (1,)):
        return None
    call = chosen.args[0]
    of = forms.operation(call)
    if of is None or of.name not in ("topk", "sort"):
        return None
    dim = of.args[2 if of.name == "topk" else 1]
    if of.args[0] is not found.args[0] or dim != found.args[1]:
        return None
    if operations.written_between(call, node):
        return None
    if any(user.args[1:] != (1,) for user in call.users):
        return None  # they might be written to
    return graph.call_function(operator.getitem, (call, 0))


def _in_order(graph: Graph, node: Node) -> Node | None:
    """x.argsort(), as x.sort()[1]."""
    source, *places = node.args or (None,)
    given = {**dict(zip(("dim", "descending", "stable"), places)), **node.kwargs}
    known = operations.is_tensor(source) and set(given) <= {"dim", "descending", "stable"}
    if not known or not all(type(each) in (int, bool) for each in given.values()):
        return None
    call = graph.call_function(torch.sort, (source,), given)
    return graph.call_function(operator.getitem, (call, 1))


def _put_back(graph: Graph, node: Node) -> Any:
    """What a scatter puts back from the order of a sort into that of before, over any tensor, as it
    is over itself."""
    found = forms.operation(node)
    if found is None or found.name != "scatter" or value_of(node).requires_grad:
        return None
    base, dim, index, source = found.args
    order = forms.operation(index)
    if base is source or order is None or not operations.is_tensor(source):
        return None
    call = order.args[0] if (order.name, *order.args[1:]) == ("item", 1) else None
    sort = forms.operation(call)
    whole = value_of(index).shape == value_of(source).shape == value_of(node).shape
    if sort is None or sort.name != "sort" or sort.args[1] != dim or not whole:
        return None
    return graph.call_method("scatter", (source, dim, index, source))


def _joined(graph: Graph, node: Node) -> Node | None:
    """What is written to both halves of a tensor, as torch.cat, and what is written to every second
    column and to the others, as torch.stack(..., -1).flatten(-2)."""
    last = _write(node)
    first = _write(last[0]) if last is not None else None
    if last is None or first is None or operations.written_between(last[0], node):
        return None
    width = value_of(node).shape[-1]
    parts = {first[2:]: first[1], last[2:]: last[1]}
    if not isinstance(width, int) or width % 2:
        return None
    half = width // 2
    if parts.keys() == {(0, width, 2), (1, width, 2)}:
        both = [parts[0, width, 2], parts[1, width, 2]]
        return graph.call_method("flatten", (graph.call_function(torch.stack, (both, -1)), -2))
    if parts.keys() == {(0, half, 1), (half, width, 1)}:
        both = [parts[0, half, 1], parts[half, width, 1]]
        return graph.call_function(torch.cat, (both, -1))
    return None


def _write(node: Any) -> tuple[Any, ...] | None:
    """(input, values, start, end, step) of what is written to columns."""
    if not operations.is_tensor(node) or function_name(node) != "slice_scatter":
        return None
    given = forms.arguments(node, "slice_scatter")
    value = value_of(node)
    if given is None or given["dim"] not in (-1, value.dim() - 1):
        return None
    step = given["step"] or 1
    if not all(type(each) in (int, NoneType) for each in (given["start"], given["end"], step)):
        return None
    width = value.shape[-1]
    if not isinstance(width, int):
        return None
    start, end, _ = slice(given["start"], given["end"]).indices(width)
    return given["input"], given["src"], start, end, step


def _numbers_like(graph: Graph, node: Node) -> Any:
    """values / exponential numbers in a new tensor of the same shape, as in one like the values."""
    values, numbers = node.args if len(node.args) == 2 and not node.kwargs else (None, None)
    if not isinstance(numbers, Node) or function_name(numbers) != "exponential":
        return None
    new = numbers.args[0]
    if not operations.is_tensor(values) or not operations.is_tensor(new) or len(numbers.users) > 1:
        return None
    alike = operations.alike(value_of(values), value_of(new))
    if function_name(new) not in _NEW or not alike or values not in _before(numbers):
        return None
    with graph.inserting_before(numbers):
        like = graph.call_function(torch.empty_like, (values,))
    rewrite.complete([like], numbers)
    numbers.update_arg(0, like)
    return node


def _like_the_first(graph: Graph, node: Node) -> Any:
    """zeros_like(f(x)), as zeros_like(x), where these are alike."""
    source = node.args[0]
    while operations.is_tensor(source) and source.op.startswith("call") and source.args:
        before = source.args[0]
        if not operations.is_tensor(before):
            break
        if not operations.alike(value_of(before), value_of(source)):
            break
        source = before
    if source is node.args[0]:
        return None
    node.update_arg(0, source)
    return node


_NEW = ("empty", "new_empty", "zeros", "zeros_like", "new_zeros", "ones_like")
_REDUCTIONS = ("sum", "mean", "amax", "logsumexp")
_OF_EACH = {"add", "sub", "mul", "div", "pow", "sqrt", "rsqrt", "reciprocal", "clamp"}
_OF_EACH |= {"square", "log", "exp", "neg", *operations.CASTS}
# what nothing may read any more
_LEFT = ("max", "empty_like", "norm", "var_mean", "slice_scatter")
_LEFT += ("masked_fill", "squeeze", "log_softmax", "view", "reshape", "unflatten")
_LEFT += (*_NEW, *_REDUCTIONS, *_OF_EACH)


def _before(node: Node) -> set[Node]:
    found = set()
    while (node := node.prev).op != "root":
        found.add(node)
    return found


def _first_of(*rules: _Rule) -> _Rule:
    """The first rule that gives anything."""

    def rule(graph: Graph, node: Node) -> Any:
        return next((made for each in rules if (made := each(graph, node)) is not None), None)

    return rule


_RULES: dict[str, _Rule] = {
    "getitem": _first_of(_largest, means.of_both, _squeezed, _as_reduced, _kept),
    "select": _squeezed,
    "squeeze": _first_of(_squeezed, _as_reduced, _negated_last),
    "unsqueeze": _kept,
    "flatten": _first_of(_of_rows, _rows_of_classes),
    **dict.fromkeys(("view", "reshape"), _first_of(_of_rows, _same_shape)),
    "take_along_dim": _taken_along,
    "gather": _first_of(_taken_by_its_own_choice, linear.sign_outside),
    **dict.fromkeys(("sum", "mean"), linear.sign_outside),
    "add": _first_of(rotations.by_matrices, linear.of_two),
    "sub": _first_of(means.of_moments, linear.of_two),
    "argsort": _in_order,
    "scatter": _put_back,
    "slice_scatter": _joined,
    "stack": _of_all_rows,
    "div": _first_of(_numbers_like, means.of_sum),
    "mul": _first_of(means.of_sum, means.of_norm),
    **dict.fromkeys(("pow", "square"), means.of_norm),
    "einsum": means.of_einsum,
    **dict.fromkeys(operations.FILLED_LIKE, _like_the_first),
}
