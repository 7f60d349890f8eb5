"""Views in a graph, and operations that are inserted into a graph."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._inductor.fx_passes.reinplace import graph_call_function
from torch._inductor.virtualized import V
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.passes.reinplace import _is_view_op

from opaq import _runtime


class Views:
    def insert_call(self, graph: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        """A new node that calls `target`, at the graph's insertion point, with its fake value."""
        return graph_call_function(graph, target, *args, **kwargs)

    def is_view(self, node: Any) -> bool:
        """Whether a graph's node is a view of its first argument, or one of several such views."""
        if node.op == "call_function" and node.target is operator.getitem:
            return isinstance(node.args[0], torch.fx.Node) and self.is_view(node.args[0])
        return node.op == "call_function" and bool(_is_view_op(node.target))

    def is_reshape(self, node: Any) -> bool:
        """Whether a graph's node has the elements of its first argument in the same order."""
        aten = torch.ops.aten
        return node.target in (aten.view.default, aten._unsafe_view.default, aten.reshape.default)

    def viewed(self, node: Any) -> Any:
        """The node that a graph's node is a view of, through all views; itself if it is no view."""
        while self.is_view(node):
            node = node.args[0]
        return node

    def replay_view(self, graph: Any, view: Any, value: Any, moved: Any) -> Any:
        """Applies the view operation of the node `view` to another value, whose storage offset is
        larger by `moved` elements than that of the node's own argument.
        """
        args, kwargs = list(view.args[1:]), dict(view.kwargs)
        if view.target is torch.ops.aten.as_strided.default:
            if len(args) > 2 and args[2] is not None:
                args[2] = self._plus(graph, args[2], moved)
            elif kwargs.get("storage_offset") is not None:
                kwargs["storage_offset"] = self._plus(graph, kwargs["storage_offset"], moved)
        return self.insert_call(graph, view.target, value, *args, **kwargs)

    def correct_views(
        self,
        graph: Any,
        call: Any,
        base: int,
        value: Any,
        eager: torch.Tensor,
        results: Sequence[Any],
    ) -> None:
        """Corrects what a call of auto_functionalized_v2 records, if it gets `value` for its base
        with this index: the written views get their traced sizes and strides, and offsets into
        `value`, whose storage offset may differ from that of `eager`. Corrects the storage offsets
        of `results` (the nodes for the value after the write) and of their views, too.
        """
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
                        self._as_traced(graph, now, then)
                        for now, then in zip(kwargs[name], traced.get(name, kwargs[name]))
                    )
            name = f"{prefix}_storage_offset"
            if name in kwargs:
                offset = self._as_traced(graph, kwargs[name], traced.get(name, kwargs[name]))
                kwargs[name] = self._plus(graph, offset, begin - eager.storage_offset())
        call.kwargs = kwargs
        for result in results:
            moved = begin - result.meta["val"].storage_offset()
            if statically_known_true(moved == 0):
                continue
            lying = [result]
            for node in lying:  # grows
                lying += [user for user in node.users if self.is_view(user)]
                fake = node.meta["val"]
                if isinstance(fake, torch.Tensor):
                    with V.fake_mode:
                        node.meta["val"] = fake.as_strided(
                            fake.shape, fake.stride(), fake.storage_offset() + moved
                        )

    def computed(self, graph: Any, value: Any) -> Any:
        """An int or SymInt as an int, or as a node that computes it from the graph's inputs.

        Raises LaunchError if it cannot be computed from them."""
        if not isinstance(value, torch.SymInt):
            return value
        given = (
            node
            for node in graph.find_nodes(op="placeholder")
            if isinstance(node.meta.get("val"), torch.SymInt)
        )
        return self._computed(
            graph,
            value.node.shape_env.simplify(value.node.expr),
            {node.meta["val"].node.expr: node for node in given},
        )

    def _as_traced(self, graph: Any, now: Any, traced: Any) -> Any:
        """A size, stride or offset of a view, as it was when the call was traced (`traced`). `now`:
        the same in the graph. If it is a node that asks a view, its value is another after a pass
        has replaced the view's base by a value with other strides; then it is computed anew."""
        if not isinstance(now, torch.fx.Node) or statically_known_true(now.meta["val"] == traced):
            return now
        return self.computed(graph, traced)

    def _plus(self, graph: Any, offset: Any, moved: Any) -> Any:
        """The sum of an offset in the graph (an int, or a node) and an int or SymInt: an int, or a
        node.
        """
        if statically_known_true(moved == 0):
            return offset
        return self.computed(
            graph, (offset.meta["val"] if isinstance(offset, torch.fx.Node) else offset) + moved
        )

    def _computed(self, graph: Any, expression: Any, known: Mapping[Any, Any]) -> Any:
        """A symbolic expression as a node that computes it from the graph's inputs, or an int."""
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
            lambda a, b: self.insert_call(graph, operation, a, b),
            (self._computed(graph, each, known) for each in expression.args),
        )
