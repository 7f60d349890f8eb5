"""Functional calls of writing ops: auto_functionalized(op, arguments) -> (results, new values).
Inductor makes them writing calls again after it has chosen which arguments are copied first.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._functorch._aot_autograd.schemas import OutputType
from torch._guards import TracingContext
from torch._higher_order_ops.auto_functionalize import (
    get_mutable_args,
    read_view_information_from_args,
)
from torch._inductor.fx_passes import post_grad
from torch._inductor.virtualized import V
from torch.utils._pytree import tree_leaves

from .layouts import Layouts

_V1, _V2 = torch.ops.higher_order.auto_functionalized, torch.ops.higher_order.auto_functionalized_v2
_decompose = post_grad.decompose_auto_functionalized


@dataclasses.dataclass
class WrittenValue:
    """A tensor argument of a functional call to which the op writes, or of which it writes
    views."""

    place: tuple[str, int | None]  # keyword of the call, and index where the argument is a list
    copied: bool  # whether Inductor copies it before the write
    # the written views, given a fake tensor that stands for the value
    views: Callable[[torch.Tensor], list[torch.Tensor]]
    key: Any  # of the value in the call's list of copied values


class FunctionalCalls(Layouts):
    def before_writes(self, change: Callable[[Any], Callable[[], None] | None]) -> None:
        """Runs `change(graph)` on every graph after Inductor has chosen which written arguments are
        copied, before functional calls become writing ones again. If it returns a function, this is
        called after that."""
        original = post_grad.decompose_auto_functionalized

        def decompose_auto_functionalized(graph: Any) -> Any:
            after = change(graph)
            result = original(graph)
            if after is not None:
                after()
            return result

        post_grad.decompose_auto_functionalized = decompose_auto_functionalized

    def functional_copy(self, graph: Any, change: Callable[[Any], None]) -> Any:
        """A module with a copy of a graph, in which functional calls have become writing calls on
        copies of everything that they write. `change(copy)` runs before that."""
        copied = torch.fx.Graph()
        copied.output(copied.graph_copy(graph, {}))
        module = torch.fx.GraphModule(graph.owning_module or torch.nn.Module(), copied)
        for call in self.functional_calls(module.graph):
            call.meta.pop("only_clone_these_tensors", None)
            call.meta["only_clone_these_tensors"] = [
                value.key for value in self.written_values(call)
            ]
        change(module.graph)
        _decompose(module.graph)
        return module

    def is_first_version(self, call: Any) -> bool:
        """Whether a functional call is of the first version of auto_functionalized, which takes
        written arguments themselves; the second takes the tensors that they are views of."""
        return call.target is _V1

    def functional_calls(self, graph: Any) -> Iterator[Any]:
        for node in list(graph.nodes):
            if (
                node.op == "call_function"
                and node.target in (_V1, _V2)
                and isinstance(node.args[0], torch._ops.OpOverload)
            ):
                yield node

    def written_values(self, call: Any) -> list[WrittenValue]:
        copied = call.meta.get("only_clone_these_tensors")
        names, types = get_mutable_args(call.args[0])
        if call.target is _V1:
            places = [
                (name, index)
                for name in names
                for index in (
                    range(len(call.kwargs[name]))
                    if isinstance(call.kwargs[name], (list, tuple))
                    else [None]
                )
            ]
            return [
                WrittenValue(
                    place, copied is None or place[0] in copied, lambda fake: [fake], place[0]
                )
                for place in places
            ]
        bases = call.kwargs["_all_bases"]
        fakes = dict(torch.fx.map_arg(call.kwargs, lambda node: node.meta["val"]))
        infos = (
            tree_leaves(read_view_information_from_args(names, types, fakes, bases))
            if bases
            else []
        )

        def views_of(index: int) -> Callable[[torch.Tensor], list[torch.Tensor]]:
            def views(fake: torch.Tensor) -> list[torch.Tensor]:
                with V.fake_mode:
                    stand_ins = [fake if i == index else None for i in range(len(bases))]
                    return [
                        info.regenerate_view(stand_ins)
                        for info in infos
                        if info is not None and info.base_index == index
                    ]

            return views

        return [
            WrittenValue(("_all_bases", i), copied is None or i in copied, views_of(i), i)
            for i in range(len(bases))
        ]

    def write_in_place(self, call: Any, value: WrittenValue) -> None:
        """Records that a value need not be copied before the write."""
        copied = call.meta.get("only_clone_these_tensors")
        if copied is None:
            copied = [item.key for item in self.written_values(call)]
        call.meta["only_clone_these_tensors"] = [key for key in copied if key != value.key]
        value.copied = False

    def copies_into(self, node: Any, target: Any) -> bool:
        """Whether a graph's node copies into `target` in place, as at the end of a graph that
        writes to its inputs."""
        return node.target is torch.ops.aten.copy_.default and node.args[0] is target

    def memory_of(self, node: Any) -> Any:
        """The graph's node that owns the memory of `node`, found through views and calls that
        write in place."""
        while True:
            node = self.viewed(node)
            call = node.args[0] if node.target is operator.getitem else None
            if call is None or call.target not in (_V1, _V2):
                return node
            value = next(
                (
                    value
                    for value in self.written_values(call)
                    if not value.copied and node in self.new_values(call, value)
                ),
                None,
            )
            if value is None:
                return node
            name, index = value.place
            node = call.kwargs[name] if index is None else call.kwargs[name][index]

    def overwritten(self, call: Any, value: WrittenValue) -> bool:
        """Whether a new value that a call writes in place into a graph input is still used after
        the graph copies another value into that input.
        """
        name, index = value.place
        if call.target is _V1:
            return False  # other values than the last are not written in place
        if value.copied:
            return False
        root = self.memory_of(call.kwargs[name][index])
        copies = [
            user
            for user in root.users
            if self.copies_into(user, root)
            and call < user
            and self.memory_of(user.args[1]) is not root
        ]
        if not copies:
            return False
        used = self.new_values(call, value)
        for node in used:  # the list grows: views are appended
            used += [user for user in node.users if self.is_view(user)]
        return any(copy < user for copy in copies for node in used for user in node.users)

    def new_values(self, call: Any, value: WrittenValue) -> list[Any]:
        """The graph's nodes that stand for `value` after the call."""
        name, index = value.place
        names = (
            list(range(len(call.kwargs[name])))
            if call.target is _V2
            else get_mutable_args(call.args[0])[0]
        )
        position = max(len(call.args[0]._schema.returns), 1) + names.index(value.key)
        nodes = [
            user
            for user in call.users
            if user.target is operator.getitem and user.args[1] == position
        ]
        # Inductor replaces the new value by the argument that is written in place.
        if call.target is _V1 and index is None and not value.copied:
            nodes.append(call.kwargs[name])
        return nodes

    def keep_numbers_apart(self, graph: Any, call: Any) -> None:
        """Gives a functional call a node for each of its sizes, strides and offsets that had a
        value of its own in eager. Inductor makes one node of numbers that are equal in its graph;
        when it rewrites the call, it takes the eager value of one for that of all.
        """
        eager: dict[Any, str] = {}

        def own(node: Any, value: Any) -> Any:
            if isinstance(node, dict):
                return {key: own(item, value[key]) for key, item in node.items()}
            if isinstance(node, (list, tuple)):
                return type(node)(map(own, node, value))
            if not isinstance(node, torch.fx.Node) or not isinstance(value, (int, torch.SymInt)):
                return node
            if eager.setdefault(node, str(value)) == str(value):
                return node
            with graph.inserting_before(call):
                return self.insert_call(graph, operator.mul, node, 1)

        given = call.meta["eager_input_vals"]
        call.args, call.kwargs = own(tuple(call.args), given[0]), own(dict(call.kwargs), given[1])

    def outputs_that_are_inputs(self, graph: Any) -> set[int]:
        """Positions of the graph's outputs that in eager are graph inputs or views of them."""
        context = TracingContext.try_get()
        metadata = context.fw_metadata if context is not None else None
        backward = any(
            str(node.target).startswith("tangents") for node in graph.find_nodes(op="placeholder")
        )
        if metadata is None or backward:
            return set()
        kinds = (OutputType.is_input, OutputType.alias_of_input)
        first = metadata.num_mutated_inp_runtime_indices
        return {
            first + i for i, info in enumerate(metadata.output_info) if info.output_type in kinds
        }

    def insert_copy(self, graph: Any, node: Any, like: torch.Tensor) -> Any:
        """A copy of a graph's value with the strides of `like`, its tensor in eager; in the graph,
        the value may have other strides if a pass has removed a copy.
        """
        aten = torch.ops.aten
        if self.has_row_major(like):
            return self.insert_call(
                graph, aten.clone.default, node, memory_format=torch.contiguous_format
            )

        def asked(op: Any, values: Sequence[Any]) -> list[Any]:
            """Sizes or strides of `node`: ints, or nodes that compute them."""
            return [
                value if isinstance(value, int) else self.insert_call(graph, op, node, dim)
                for dim, value in enumerate(values)
            ]

        sizes, same = (
            asked(aten.sym_size.int, like.shape),
            self.has_strides_of(node.meta["val"], like),
        )
        strides = (
            asked(aten.sym_stride.int, like.stride())
            if same
            else [self.computed(graph, stride) for stride in like.stride()]
        )
        return self.insert_call(
            graph,
            aten.copy.default,
            self.insert_call(graph, aten.new_empty_strided.default, node, sizes, strides),
            node,
        )
