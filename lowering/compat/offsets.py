"""Storage offsets in Inductor's lowerings, where Inductor gets them wrong: an op that writes to a
view would write to other memory (stock custom ops do).
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch._higher_order_ops import auto_functionalize
from torch._inductor import ir, lowering
from torch._inductor.fx_passes.reinplace import graph_call_function as insert_call
from torch._inductor.virtualized import V
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.passes.reinplace import _is_view_op

from opaq import _runtime


def lower_storage_offsets() -> None:
    """Makes Inductor lower storage offsets, and views that are given by one, as PyTorch means them.

    `sym_storage_offset`, up to torch 2.15: the offset as it was traced, as for sizes and strides;
    Inductor's own fallback takes 0. `as_strided`, torch 2.11: the offset counts from the start of
    the storage, but the pointer of a graph input is where the input begins. torch 2.15 subtracts
    the input's offset, and where no offset is given, takes that of the view.

    `try_use_slice`, up to torch 2.15: which slice of its base a written view is; see `_slice_of`.

    `write_view_information_to_args`, up to torch 2.15: where in its base a written view lies; see
    `_record_views`.
    """
    auto_functionalize.try_use_slice = _slice_of
    auto_functionalize.write_view_information_to_args = _record_views
    aten = torch.ops.aten
    lowering.register_lowering(aten.sym_storage_offset.default, type_promotion_kind=None)(
        _traced_offset
    )
    if (
        "storage_offset_relative_to_input_storage"
        not in inspect.signature(lowering.as_strided).parameters
    ):
        for view in (
            aten.as_strided.default,
            aten.as_strided_.default,
            aten.as_strided_copy.default,
        ):
            lowering.register_lowering(view, type_promotion_kind=None)(
                _from_the_start_of_the_input(lowering.lowerings[view])
            )


def _traced_offset(_: Any) -> Any:
    return _expression(V.graph.current_node.meta["val"])


def _from_the_start_of_the_input(lower: Callable[..., Any]) -> Callable[..., Any]:
    def lower_view(x: Any, size: Any, stride: Any, storage_offset: Any = None) -> Any:
        if storage_offset is None:
            layout = x.maybe_get_layout()
            return lower(x, size, stride, layout.offset if layout is not None else None)
        return lower(x, size, stride, sympy.expand(storage_offset - _offset_of_input(x)))

    return lower_view


def _offset_of_input(x: Any) -> Any:
    """Of the graph input that `x` is, or is a view of; 0 for what Inductor computes."""
    data = x.data
    while isinstance(data, (ir.BaseView, ir.StorageBox)):
        data = data.data
    if not isinstance(data, ir.InputBuffer):
        return 0
    placeholders = V.graph.current_node.graph.find_nodes(op="placeholder")
    fake = next(
        (
            node.meta["val"]
            for node in placeholders
            if V.graph.qualify_name(node.target) == data.get_name()
        ),
        None,
    )
    return 0 if fake is None else _expression(fake.storage_offset())


def _expression(offset: Any) -> Any:
    return offset.node.expr if isinstance(offset, torch.SymInt) else int(offset)


_original_slice = auto_functionalize.try_use_slice


def _slice_of(base: torch.Tensor, view: torch.Tensor) -> Any:
    """(dim, start, end) of a view that an op writes to; None: it is recorded by sizes, strides and
    offset instead. Upstream takes the storage's start for that of `base` (up to torch 2.15), so
    that of a graph input `x[1:]` other elements are written."""
    return (
        _original_slice(base, view) if statically_known_true(base.storage_offset() == 0) else None
    )


_original_record = auto_functionalize.write_view_information_to_args


def _record_views(
    names: Sequence[str],
    types: Sequence[Any],
    kwargs: dict[str, Any],
    base_indices: Mapping[str, Any],
) -> None:
    """Adds to the arguments of a functional call which views of their bases an op writes to.

    A base that was written before lies otherwise than the tensor whose value it is: densely, and
    from the start of a storage. Upstream records the sizes, strides and offset that the view has in
    eager, as if it were a view of that tensor.
    """
    views = {
        f"_{name}": kwargs[name] for name in names if isinstance(kwargs[name], FunctionalTensor)
    }
    for name in names:
        if isinstance(kwargs[name], (list, tuple)):
            views.update(
                {
                    f"_{name}_{i}": item
                    for i, item in enumerate(kwargs[name])
                    if isinstance(item, FunctionalTensor)
                }
            )
    values = {
        prefix: view.from_functional() for prefix, view in views.items()
    }  # brings the views up to date with their bases
    _original_record(names, types, kwargs, base_indices)
    for prefix, value in values.items():
        if f"{prefix}_storage_offset" in kwargs:
            kwargs.update(
                {
                    f"{prefix}_size": value.size(),
                    f"{prefix}_stride": value.stride(),
                    f"{prefix}_storage_offset": value.storage_offset(),
                }
            )


def replay_view(graph: Any, view: Any, value: Any, moved: Any) -> Any:
    """The view operation `view` of another value, which lies `moved` elements further into its
    storage than the one whose view it is.
    """
    args, kwargs = list(view.args[1:]), dict(view.kwargs)
    if view.target is torch.ops.aten.as_strided.default:
        if len(args) > 2 and args[2] is not None:
            args[2] = _plus(graph, args[2], moved)
        elif kwargs.get("storage_offset") is not None:
            kwargs["storage_offset"] = _plus(graph, kwargs["storage_offset"], moved)
    return insert_call(graph, view.target, value, *args, **kwargs)


def settle_views(
    graph: Any, call: Any, base: int, value: Any, eager: torch.Tensor, results: Sequence[Any]
) -> None:
    """Where a call of auto_functionalized_v2 gets `value` for its base of that index: records the
    sizes and strides that the written views of it had when they were traced, and where they begin
    in `value`, whose storage offset may be another than that of `eager`; and in `results`, the
    value after the write, and in views of those, where they begin."""
    traced, kwargs = call.meta["eager_input_vals"][1], dict(call.kwargs)
    begin = value.meta["val"].storage_offset()
    for prefix in (
        name.removesuffix("_base_index")
        for name, index in kwargs.items()
        if name.endswith("_base_index") and index == base
    ):
        for name in (f"{prefix}_size", f"{prefix}_stride"):
            if name in kwargs:
                kwargs[name] = type(kwargs[name])(
                    _as_traced(graph, now, then)
                    for now, then in zip(kwargs[name], traced.get(name, kwargs[name]))
                )
        name = f"{prefix}_storage_offset"
        if name in kwargs:
            offset = _as_traced(graph, kwargs[name], traced.get(name, kwargs[name]))
            kwargs[name] = _plus(graph, offset, begin - eager.storage_offset())
    call.kwargs = kwargs
    for result in results:
        moved = begin - result.meta["val"].storage_offset()
        if statically_known_true(moved == 0):
            continue
        lying = [result]
        for node in lying:  # grows
            lying += [user for user in node.users if is_view(user)]
            fake = node.meta["val"]
            if isinstance(fake, torch.Tensor):
                with V.fake_mode:
                    node.meta["val"] = fake.as_strided(
                        fake.shape, fake.stride(), fake.storage_offset() + moved
                    )


def _as_traced(graph: Any, now: Any, traced: Any) -> Any:
    """A size, stride or offset of a view, which was `traced` when the call was. `now`: the same in
    the graph; a node that asks a view for it tells another where a pass has put a value in the
    place of the view's base that lies otherwise."""
    if not isinstance(now, torch.fx.Node) or statically_known_true(now.meta["val"] == traced):
        return now
    return computed(graph, traced)


def is_view(node: Any) -> bool:
    """Whether a graph's node is a view of its first argument, or one of several such views."""
    if node.op == "call_function" and node.target is operator.getitem:
        return isinstance(node.args[0], torch.fx.Node) and is_view(node.args[0])
    return node.op == "call_function" and bool(_is_view_op(node.target))


def viewed(node: Any) -> Any:
    """What a graph's node is a view of, through all views; the node itself where it is none."""
    while is_view(node):
        node = node.args[0]
    return node


def _plus(graph: Any, offset: Any, moved: Any) -> Any:
    """The sum of an offset in the graph (an int, or a node) and an int or SymInt: an int, or a
    node.
    """
    if statically_known_true(moved == 0):
        return offset
    return computed(
        graph, (offset.meta["val"] if isinstance(offset, torch.fx.Node) else offset) + moved
    )


def computed(graph: Any, value: Any) -> Any:
    """An int or SymInt as an int, or as a node that computes it of the graph's inputs.

    LaunchError: it cannot be computed of those."""
    if not isinstance(value, torch.SymInt):
        return value
    given = (
        node
        for node in graph.find_nodes(op="placeholder")
        if isinstance(node.meta.get("val"), torch.SymInt)
    )
    return _computed(
        graph,
        value.node.shape_env.simplify(value.node.expr),
        {node.meta["val"].node.expr: node for node in given},
    )


def _computed(graph: Any, expression: Any, known: Mapping[Any, Any]) -> Any:
    """A symbolic expression as a node that computes it of the graph's inputs, or an int."""
    if expression in known:
        return known[expression]
    if expression.is_Integer:
        return int(expression)
    operation = {
        "Add": operator.add,
        "Mul": operator.mul,
        "Pow": operator.pow,
        "Max": torch.sym_max,
        "Min": torch.sym_min,
    }.get(type(expression).__name__)
    if operation is None:
        raise _runtime.LaunchError(
            f"a view that lies by {expression} in its storage cannot be written to in a "
            "compiled graph; pass a copy of it: .clone()"
        )
    return functools.reduce(
        lambda a, b: insert_call(graph, operation, a, b),
        (_computed(graph, each, known) for each in expression.args),
    )
