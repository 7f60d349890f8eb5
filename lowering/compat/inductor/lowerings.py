"""Lowerings: registering them, the node being lowered, and the compilation that calls them."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import _inductor as public
from torch._functorch._aot_autograd.logging_utils import get_aot_graph_name
from torch._inductor import compile_fx as inductor_compile
from torch._inductor import config, dependencies, ir, lowering
from torch._inductor.utils import get_op_names
from torch._inductor.virtualized import V
from torch._library.effects import EffectType
from torch._library.utils import get_layout_constraint_tag
from torch.fx.experimental.symbolic_shapes import resolve_unbacked_bindings
from torch.utils import _pytree as pytree
from torch.utils._pytree import tree_leaves

# The last node of each graph that draws random numbers, by the name of its first buffer.
_last_draws: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class Lowerings:
    def list_options(self) -> list[str]:
        """The names of Inductor's options."""
        return public.list_options()

    def list_mode_options(self, mode: str) -> dict[str, Any]:
        """The options that a mode of torch.compile ("max-autotune", ...) stands for."""
        return public.list_mode_options(mode)

    def compile_fx(
        self,
        graph_module: Any,
        example_inputs: Sequence[Any],
        patches: dict[str, Any],
        settings: Callable[[], Any],
    ) -> Any:
        """Compiles with Inductor, with `patches` to its options. Each compilation runs inside
        settings(); that of a backward graph comes after this function has returned.
        """

        def compile_inner(*args: Any, **kwargs: Any) -> Any:
            with settings():
                return inductor_compile.compile_fx_inner(*args, **kwargs)

        with settings():
            return inductor_compile.compile_fx(
                graph_module,
                example_inputs,
                inner_compile=compile_inner,
                config_patches=patches or None,
            )

    def compile_package(
        self,
        exported: Any,
        path: str,
        inductor_configs: dict[str, Any] | None,
        change: Callable[[torch.fx.GraphModule], None],
    ) -> str:
        """AOTInductor: compiles an exported program into the .pt2 file `path`, and returns that.
        change: is called with a copy of the program as a module, which it may change.
        """
        compile_fx_aot = inductor_compile.compile_fx_aot

        def compile_changed(module: Any, *args: Any, **kwargs: Any) -> Any:
            change(module)
            return compile_fx_aot(module, *args, **kwargs)

        with mock.patch.object(inductor_compile, "compile_fx_aot", compile_changed):
            return public.aoti_compile_and_package(
                exported, package_path=path, inductor_configs=inductor_configs
            )

    def graph_label(self) -> str:
        """The name of the graph being compiled in torch's logs: "model__0_inference_0"."""
        return get_aot_graph_name()

    def register_lowering(self, overload: Any, lower: Callable[..., Any]) -> None:
        """Has Inductor call `lower(*args, **kwargs)` for each call of the op in a graph."""
        lowering.register_lowering(overload, type_promotion_kind=None)(lower)
        if any(argument.name == "out" for argument in overload._schema.arguments):
            # register_lowering's wrapper takes a keyword `out` for an out= overload and refuses it
            lowering.lowerings[overload] = lower
        lowering.add_needs_realized_inputs(overload)
        if not overload._schema.returns and not overload._schema.is_mutable:
            torch.fx.node.has_side_effect(overload)  # called for an effect the graph cannot see

    def lowerings(self) -> dict[Any, Callable[..., Any]]:
        """The lowering of every op, by overload; may be changed."""
        return lowering.lowerings

    def use_layout_tag(self, overload: Any) -> None:
        """Has Inductor lay out the arguments as the op's tag says, by default with eager's strides,
        and copy back what is written to copies.
        """
        constraint = lowering.tag_to_layout_constraint(
            get_layout_constraint_tag(overload, with_default=True)
        )
        if constraint is not None:
            lowering.add_layout_constraint(overload, constraint)

    def stock_fallback(self, overload: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Inductor's own node for an op without lowering: a call through the dispatcher."""
        return lowering.fallback_handler(overload, add_to_fallback_set=False)(*args, **kwargs)

    def empty_strided(
        self, sizes: Sequence[Any], strides: Sequence[Any], dtype: torch.dtype, device: torch.device
    ) -> Any:
        """A new uninitialized buffer."""
        return lowering.empty_strided(sizes, strides, dtype=dtype, device=device)

    def strided_view(self, value: Any, sizes: Sequence[Any], strides: Sequence[Any]) -> Any:
        """A view of a buffer from its beginning."""
        return lowering.lowerings[torch.ops.aten.as_strided.default](value, sizes, strides, 0)

    # ---- the node being lowered ------------------------------------------------------------------

    def called_by(self, node: Any) -> tuple[Any, Sequence[Any], dict[str, Any], Any]:
        """What a node calls: target, arguments, keyword arguments, results on fake tensors (None:
        not recorded). Arguments are as eager had them where that is recorded. A call of an op with
        ordered effects is wrapped: with_effects(token, op, *args) -> (token, *results)."""
        args, kwargs = node.meta.get("eager_input_vals") or (node.args, node.kwargs)
        results = node.meta.get("val")
        if node.target is not torch.ops.higher_order.with_effects:
            return node.target, args, kwargs, results
        results = results and results[1:]
        return (
            node.args[1],
            args[2:],
            kwargs,
            results[0] if results is not None and len(results) == 1 else results,
        )

    def pads(self, device: torch.device) -> bool:
        """Whether Inductor gives longer rows to tensors on a device."""
        on_cpu = device.type != "cpu" or not config.disable_padding_cpu
        return config.comprehensive_padding and on_cpu

    def pads_result(self, number: int) -> bool:
        """Whether Inductor may pad the strides of a result of the node being lowered: none that the
        graph returns, for instance.
        """
        node = V.graph.current_node
        items = [
            user
            for user in node.users
            if user.target is operator.getitem and user.args[1] == number
        ]
        return config.comprehensive_padding and not any(
            each.meta.get("dislike_padding") for each in items or [node]
        )

    def sizes_defined(self) -> list[tuple[Any, int, int]]:
        """The symbols that the node being lowered has to define, each as a size of a result:
        (symbol, result, dimension)."""
        node = V.graph.current_node
        bindings = resolve_unbacked_bindings(
            V.graph.sizevars.shape_env, node.meta.get("unbacked_bindings")
        )
        found = []
        for symbol, path in (bindings or {}).items():
            numbers = [key.idx for key in path if isinstance(key, pytree.SequenceKey)]
            found.append((symbol, numbers[0] if len(numbers) > 1 else 0, numbers[-1]))
        return found

    def define_by_item(self, symbol: Any, value: Any) -> None:
        """Has the wrapper read a 0-d buffer, as `.item()` does, and give the value to a symbol."""
        node = ir.DynamicScalar(symbol, (), value)
        node.name = V.graph.register_buffer(node)
        V.graph.register_operation(node)

    def require(self, condition: Any, expected: str) -> None:
        """Has the wrapper raise RuntimeError("expected <expected>") where a relation of symbols
        does not hold. (A C++ wrapper writes `Expected` itself, and what the symbol is.)"""
        message = expected if V.graph.cpp_wrapper else f"expected {expected}"
        node = ir.AssertScalar(condition, message)
        node.name = V.graph.register_buffer(node)
        V.graph.register_operation(node)

    def effect_before(self) -> Any:
        """The dependency of the node being lowered on the last one with ordered effects; None where
        it has no such effects, or is the first.

        Inductor's lowering of with_effects adds such dependencies by itself, but before 2.15 under
        names that its scheduler does not look up.
        """
        if V.graph.current_node.target is not torch.ops.higher_order.with_effects:
            return None
        last = V.graph.effectful_ops.get(EffectType.ORDERED)
        return last and dependencies.StarDep(last.get_name())

    def draw_before(self) -> Any:
        """The dependency on the last node of this graph that was noted as drawing random numbers;
        None where there is none."""
        last = _last_draws.get(V.graph)
        return last and dependencies.StarDep(last)

    def note_draw(self, name: str) -> None:
        """name: that of a node's first buffer."""
        _last_draws[V.graph] = name

    def fakes_of(self, nodes: Any) -> Any:
        """`nodes`, nested tuples, lists and dicts, with each node replaced by its fake value."""
        return torch.fx.map_arg(nodes, lambda node: node.meta.get("val"))

    def traced_values(self, node: Any) -> list[Any]:
        """The arguments (if recorded) and results of a node when the graph was traced; tensors are
        fake.
        """
        return tree_leaves((node.meta.get("eager_input_vals"), node.meta.get("val")))

    def live_values(self) -> list[tuple[Any, Any]]:
        """(node, value) of each node whose value is used after the node being lowered."""
        done = V.graph.user_to_last_uses.get(V.graph.current_node, ())
        return [(node, value) for node, value in V.graph.env.items() if node not in done]

    def replace_value(self, node: Any, value: Any) -> None:
        """Nodes that are lowered from now on use `value` for `node`."""
        V.graph.env[node] = value

    def compute_readers(self, buffer: Any) -> None:
        """To be called before a write to a buffer: has Inductor compute first what reads the buffer
        and is not computed yet. Inductor's own calls do this too late, so that the readers come
        after the write."""
        V.graph.mark_buffer_mutated(buffer.get_name())

    def obey_partition_rule(self, node: Any, overload: Any) -> None:
        """Keeps a node out of CUDA graphs if `custom_should_partition_ops` names its op. Inductor
        applies this option only to its own fallback nodes, but it partitions the graph at any node
        that has unbacked sizes, so this claims some."""
        names = {overload._schema.name, *get_op_names(overload)}
        if names & set(config.custom_should_partition_ops):
            node.unbacked_bindings = True
