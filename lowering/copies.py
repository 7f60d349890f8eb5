"""Makes arguments of a writing op share memory exactly as in the traced graph, whatever Inductor's
passes have done to the graph.

AOTAutograd turns a call that writes into a functional one: auto_functionalized(op, arguments)
returns the new values. Inductor later decides which written arguments may be written in place and
copies the others. In between, its passes remove copies that look redundant in a functional graph
(`clone`, `x * 1`, `x + 0`, casts to another dtype and back), so that two arguments which were
different tensors may now be one value. And if a written argument is copied, arguments that shared
its memory in eager still read the original.

`restore_sharing` runs after these decisions, just before the calls become writing ones again, and
compares each call with what was traced:

    distinct in eager, the same memory now    the argument that is only read is copied first
    the same memory in eager, apart now       the written value is copied here, and every argument
                                              that shared it becomes a view of the copy

Values whose memory cannot overlap are not changed, so a cache that is written in place is never
copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator
from typing import Any

import torch.fx

from opaq import _runtime

from .compat import pytorch
from .compat.inductor import WrittenValue, inductor

# An argument of a functional call: its keyword, and an index if the argument is a list.
Place = tuple[str, int | None]


@dataclasses.dataclass
class _Tensor:
    """One tensor argument of a functional call."""

    place: Place
    node: torch.fx.Node
    eager: torch.Tensor  # the fake tensor that was traced: it tells which arguments shared memory

    @property
    def now(self) -> torch.Tensor:
        return self.node.meta["val"]


@dataclasses.dataclass
class _Written(_Tensor):
    """A value that the op writes to, or the tensor whose views it writes to."""

    written: WrittenValue

    @property
    def copied(self) -> bool:
        """Whether Inductor copies it before the write."""
        return self.written.copied


def install(registered: Container[str]) -> None:
    inductor.before_writes(lambda graph: restore_sharing(graph, registered))


def restore_sharing(graph: torch.fx.Graph, registered: Container[str]) -> None:
    for node in inductor.functional_calls(graph):
        if pytorch.op_name(node.args[0]) in registered and "eager_input_vals" in node.meta:
            _restore(graph, node)
            inductor.keep_numbers_apart(graph, node)


def _restore(graph: torch.fx.Graph, call: torch.fx.Node) -> None:
    reads, written = _arguments(call)
    with graph.inserting_before(call):
        for index, base in enumerate(written):
            sharing = [
                tensor
                for tensor in (*reads, *written[index + 1 :])
                if _shares(tensor.eager, base.eager)
            ]
            copied = base.copied or _laid_out_anew(call, base)
            apart = [
                tensor
                for tensor in sharing
                if copied or _copied(tensor) or not _shares(tensor.now, base.now)
            ]
            apart = [
                tensor
                for tensor in apart
                if _overlap(_views(tensor, "eager"), _views(base, "eager"))
            ]
            _keep_old_value(graph, call, base)
            _refuse_confused(call, base, written[index + 1 :])
            if inductor.overwritten(call, base.written):
                _copy(graph, call, [base, *sharing])
            elif apart:
                _join(graph, call, [base, *sharing])
            elif copied:
                # Inductor's own copies fail for some views and symbolic sizes
                _copy(graph, call, [base])
        for base in written:
            _keep_results_apart(graph, call, base)
            for tensor in reads:
                distinct = not _shares(tensor.eager, base.eager)
                if (
                    distinct
                    and not base.copied
                    and _shares(tensor.now, base.now)
                    and _overlap(_views(tensor, "now"), _views(base, "now"))
                ):
                    tensor.node = inductor.insert_call(
                        graph, torch.ops.aten.clone.default, tensor.node
                    )
                    _replace(call, tensor)
            if not inductor.is_first_version(call):
                results = inductor.new_values(call, base.written)
                inductor.correct_views(
                    graph, call, base.written.key, base.node, base.eager, results
                )


def _keep_old_value(graph: torch.fx.Graph, call: torch.fx.Node, base: _Written) -> None:
    """If a graph input is written: copies its views from before the write that are used after it.
    They were copies in eager, which a pass has removed.
    """
    root = inductor.memory_of(base.node)
    write = (
        call
        if not base.copied
        else next(
            (user for user in root.users if call < user and inductor.copies_into(user, root)), None
        )
    )
    if root.op not in ("placeholder", "get_attr") or write is None:
        return
    views = [root]
    for view in views:  # grows
        views += [user for user in view.users if inductor.is_view(user) and user < write]
        late = [user for user in view.users if write < user]
        into_itself = [
            user for user in late if inductor.copies_into(user, view) and user.args[1] is view
        ]
        reading = (
            []
            if view is base.node
            else [user for user in late if not inductor.copies_into(user, view)]
        )
        if (reading or into_itself) and _overlap([view.meta["val"]], [base.now]):
            with graph.inserting_before(write):
                copy = inductor.insert_call(graph, torch.ops.aten.clone.default, view)
            for user in reading:
                user.replace_input_with(view, copy)
            for user in into_itself:
                user.args = (view, copy, *user.args[2:])


def _keep_results_apart(graph: torch.fx.Graph, call: torch.fx.Node, base: _Written) -> None:
    """If a graph input is written in place and the graph returns the new value as another tensor:
    copies it for that. A pass has removed the copy that eager made.
    """
    if base.copied or inductor.memory_of(base.node).op not in ("placeholder", "get_attr"):
        return
    values = inductor.new_values(call, base.written)
    for value in values:  # grows
        values += [user for user in value.users if inductor.is_view(user) and call < user]
    output = graph.output_node()
    returned = (
        list(output.args[0]) if isinstance(output.args[0], (list, tuple)) else [output.args[0]]
    )
    inputs = inductor.outputs_that_are_inputs(graph)
    for index, value in enumerate(returned):
        if value in values and index not in inputs:
            with graph.inserting_before(output):
                returned[index] = inductor.insert_call(graph, torch.ops.aten.clone.default, value)
    output.args = (tuple(returned) if isinstance(output.args[0], (list, tuple)) else returned[0],)


def _refuse_confused(call: torch.fx.Node, base: _Written, others: list[_Written]) -> None:
    """Refuses calls that the first version of auto_functionalized would get wrong: Inductor takes
    any new value of such a call for that of the graph input which it writes in place.
    """
    root = inductor.memory_of(base.node)
    if inductor.is_first_version(call) and root.op in ("placeholder", "get_attr"):
        for other in others:
            if _shares(other.now, base.now) and not _shares(other.eager, base.eager):
                raise _runtime.LaunchError(
                    f"{pytorch.op_name(call.args[0])}: it writes to `{base.place[0]}` and "
                    f"`{other.place[0]}`, a graph input and a copy of it; with Inductor's "
                    "option "
                    "enable_auto_functionalized_v2=False this cannot be compiled correctly: "
                    "leave the option at True"
                )


def _join(graph: torch.fx.Graph, call: torch.fx.Node, group: list[_Tensor]) -> None:
    """Puts tensors into one memory: that of a tensor that is written in place if all lie there,
    else a copy.
    """
    written = [tensor for tensor in group if isinstance(tensor, _Written)]
    together = all(_shares(tensor.now, group[0].now) for tensor in group)
    if (
        together
        and not all(map(_copied, written))
        and not any(_laid_out_anew(call, tensor) for tensor in written)
    ):
        for tensor in written:
            inductor.write_in_place(call, tensor.written)
    else:
        _copy(graph, call, group)


def _laid_out_anew(call: torch.fx.Node, base: _Written) -> bool:
    """Whether a pass has replaced a written tensor by one with other strides. The call describes
    the written views of it by the strides in eager, which would then be wrong.
    """
    return not inductor.is_first_version(call) and not inductor.has_strides_of(base.now, base.eager)


def _copy(graph: torch.fx.Graph, call: torch.fx.Node, group: list[_Tensor]) -> None:
    """Copies the memory of tensors that share it, and makes them views of the copy."""
    nodes = [tensor.node for tensor in group]
    root = next(
        (
            node
            for node in _ancestors(nodes[0])
            if all(_chain(other, node) is not None for other in nodes)
        ),
        nodes[0],
    )
    copy = inductor.insert_copy(
        graph, root, group[0].eager if root is group[0].node else root.meta["val"]
    )
    moved = copy.meta["val"].storage_offset() - root.meta["val"].storage_offset()
    for tensor in group:
        chain = _chain(tensor.node, root)
        if chain is None:
            raise _runtime.LaunchError(
                f"{pytorch.op_name(call.args[0])}: argument "
                f"`{tensor.place[0].removeprefix('_')}` shares memory with an argument that "
                "the op writes to, in a way "
                f"that cannot be kept in a compiled graph ({tensor.node.name} is not a view of "
                f"{root.name} there); pass a copy of it: .clone()"
            )
        tensor.node = copy
        for view in chain:
            tensor.node = inductor.replay_view(graph, view, tensor.node, moved)
        _replace(call, tensor)
        if isinstance(tensor, _Written):
            inductor.write_in_place(call, tensor.written)


def _ancestors(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """`node`, the node that it is a view of, and so on."""
    yield node
    while inductor.is_view(node):
        node = node.args[0]
        yield node


def _chain(node: torch.fx.Node, base: torch.fx.Node) -> list[torch.fx.Node] | None:
    """The view operations that make `node` from `base`, in order; None if it is no view of it."""
    chain: list[torch.fx.Node] = []
    for ancestor in _ancestors(node):
        if ancestor is base:
            return chain
        chain.insert(0, ancestor)
    return None


# ---- the arguments of a functional call ----------------------------------------------------------


def _arguments(call: torch.fx.Node) -> tuple[list[_Tensor], list[_Written]]:
    """(read only, written)"""
    eager = call.meta["eager_input_vals"][1]
    places = {
        place: _Tensor(place, node, value) for place, node, value in _tensors(call.kwargs, eager)
    }
    written = [
        _Written(value.place, places[value.place].node, places[value.place].eager, value)
        for value in inductor.written_values(call)
        if value.place in places
    ]
    taken = {tensor.place for tensor in written}
    return [tensor for place, tensor in places.items() if place not in taken], written


def _tensors(now: Any, eager: Any) -> Iterator[tuple[Place, torch.fx.Node, torch.Tensor]]:
    for name, value in now.items():
        items = enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
        for index, item in items:
            if isinstance(item, torch.fx.Node) and isinstance(item.meta.get("val"), torch.Tensor):
                traced = eager[name] if index is None else eager[name][index]
                yield (
                    (name, index),
                    item,
                    traced if isinstance(traced, torch.Tensor) else item.meta["val"],
                )


def _replace(call: torch.fx.Node, tensor: _Tensor) -> None:
    name, index = tensor.place
    value: Any = tensor.node
    if index is not None:
        value = [tensor.node if i == index else item for i, item in enumerate(call.kwargs[name])]
    call.kwargs = {**call.kwargs, name: value}


# ---- memory --------------------------------------------------------------------------------------


def _shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    return inductor.shares_storage(a, b)


def _copied(tensor: _Tensor) -> bool:
    return isinstance(tensor, _Written) and tensor.copied


def _views(tensor: _Tensor, when: str) -> list[torch.Tensor]:
    """What the op reads or writes of an argument, as fake tensors. when: "eager" (as traced) or
    "now".
    """
    value = getattr(tensor, when)
    return tensor.written.views(value) if isinstance(tensor, _Written) else [value]


def _overlap(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return any(may_overlap(extent_of(a), extent_of(b)) for a in some for b in others)


def extent_of(tensor: torch.Tensor) -> tuple[Any, Any]:
    return extent(tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype.itemsize)


def extent(sizes: Any, strides: Any, offset: Any, itemsize: int) -> tuple[Any, Any]:
    """(first byte, past the last byte) in the storage. Strides and offset are in elements: ints,
    SymInts or sympy expressions. PyTorch has no negative strides.
    """
    return offset * itemsize, (
        offset + sum((size - 1) * stride for size, stride in zip(sizes, strides)) + 1
    ) * itemsize


def may_overlap(a: tuple[Any, Any], b: tuple[Any, Any]) -> bool:
    """Whether two extents of one storage are not known to be disjoint."""
    return not (inductor.known_at_most(a[1], b[0]) or inductor.known_at_most(b[1], a[0]))
