"""Inductor's names for torch 2.11 to 2.14."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._functorch._aot_autograd.logging_utils import get_aot_graph_name
from torch._inductor import codecache, config, ir, lowering
from torch._inductor import compile_fx as inductor_compile
from torch._inductor.codegen.cpp_utils import cexpr
from torch._inductor.codegen.wrapper import SubgraphPythonWrapperCodegen, pexpr
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.virtualized import V
from torch._library.utils import get_layout_constraint_tag
from torch.utils._ordered_set import OrderedSet
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "OrderedSet",
    "V",
    "cache_dir",
    "cexpr",
    "compile_fx",
    "constants_wrapper",
    "copy_into",
    "expressions",
    "fake_of",
    "folds_constants",
    "graph_label",
    "has_strides",
    "ir",
    "known_true",
    "lowering",
    "on_cache_key",
    "op_name",
    "packaged",
    "pexpr",
    "prints_two_wrappers",
    "register_lowering",
    "root_wrapper",
    "schema_defaults",
    "schema_text",
    "size_hint",
    "stock_fallback",
    "tree_leaves",
    "tree_map",
    "use_layout_tag",
    "user_stream",
    "wrapper_language",
]


def register_lowering(overload: Any, lower: Callable[..., Any]) -> None:
    lowering.register_lowering(overload, type_promotion_kind=None)(lower)
    if any(argument.name == "out" for argument in overload._schema.arguments):
        lowering.lowerings[overload] = lower  # register_lowering's wrapper takes a keyword `out` for an out= overload and refuses it
    lowering.add_needs_realized_inputs(overload)
    if not overload._schema.returns and not overload._schema.is_mutable:
        torch.fx.node.has_side_effect(overload)  # called for an effect that the graph cannot see


def op_name(target: Any) -> str | None:
    """ "mylib::rms_norm" for a call target that is an op or a packet of its overloads."""
    if isinstance(target, torch._ops.OpOverload):
        return target.name().split(".")[0]
    return target._qualified_op_name if isinstance(target, torch._ops.OpOverloadPacket) else None


def stock_fallback(overload: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Inductor's own node for an op without lowering: a call through the dispatcher."""
    return lowering.fallback_handler(overload, add_to_fallback_set=False)(*args, **kwargs)


def copy_into(target: Any, source: Any) -> None:
    V.graph.call_function(torch.ops.aten.copy_.default, (target, source), {})


def schema_defaults(overload: Any) -> dict[str, Any]:
    return {argument.name: argument.default_value for argument in overload._schema.arguments if argument.has_default_value()}


def schema_text(overload: Any) -> str:
    return str(overload._schema)


def use_layout_tag(overload: Any) -> None:
    """Lets Inductor lay out the arguments as the op's tag says, by default with eager's strides, and carry mutations back from copies."""
    constraint = lowering.tag_to_layout_constraint(get_layout_constraint_tag(overload, with_default=True))
    if constraint is not None:
        lowering.add_layout_constraint(overload, constraint)


def compile_fx(graph_module: Any, example_inputs: Sequence[Any], patches: dict[str, Any], settings: Callable[[], Any]) -> Any:
    """Inductor, with `patches` to its options, inside settings() each time it compiles: a backward graph is compiled after this returns."""

    def compile_inner(*args: Any, **kwargs: Any) -> Any:
        with settings():
            return inductor_compile.compile_fx_inner(*args, **kwargs)

    with settings():
        return inductor_compile.compile_fx(graph_module, example_inputs, inner_compile=compile_inner, config_patches=patches or None)


def expressions(values: Sequence[Any]) -> list[Any]:
    """Sizes or strides of a fake tensor as sympy expressions."""
    return ir.convert_shape_to_inductor(values)


def fake_of(value: Any) -> Any:
    """A fake tensor with the layout that an IR node has now."""
    return ir.ir_node_to_tensor(value)


def has_strides(value: Any, strides: Sequence[Any]) -> bool:
    """Whether a realised value's layout is fixed and spelled with exactly these strides. Cheap; False proves nothing."""
    if not ir.is_storage_and_layout(value):
        return False
    layout = value.get_layout()
    return isinstance(layout, ir.FixedLayout) and list(layout.stride) == list(strides)


def known_true(relation: Any) -> bool:
    return V.graph.sizevars.statically_known_true(relation)


def wrapper_language() -> str:
    """What the graph's wrapper is written in: "python"; "cpp", compiled for this process; "package", C++ of AOTInductor; "" for any other."""
    if getattr(V.graph, "fx_wrapper", False):
        return ""
    if V.graph.aot_mode:
        return "package"
    return "cpp" if V.graph.cpp_wrapper else "python"


def prints_two_wrappers() -> bool:
    """Whether each line of AOTInductor's wrapper goes into a second one too, which runs while compiling (2.15, on request)."""
    return bool(getattr(V.graph, "is_dual_wrapper_mode", False))


def _root_graph() -> Any:
    graph = V.graph
    while hasattr(graph, "parent"):  # a branch of torch.cond
        graph = graph.parent
    return graph


def folds_constants() -> bool:
    """Whether the graph computes the constants of another, when a package is loaded and when its weights change; the two are packaged together."""
    return _root_graph().is_const_graph


def constants_wrapper() -> Any:
    """The wrapper, printed before, of the graph that computes the constants of this one; None where nothing is folded."""
    constants = _root_graph().const_module
    return constants and constants.wrapper_code


def packaged() -> bool:
    """Whether AOTInductor's files will lie together in a .pt2, rather than where they are written now."""
    return bool(config.aot_inductor.package)


def size_hint(expression: Any) -> int:
    """A likely value of a symbolic size."""
    return int(V.graph.sizevars.optimization_hint(expression, fallback=8192))


def user_stream() -> str | None:
    """The C++ variable of the user's stream that the node being printed runs on; None: that on which the graph is called."""
    return None  # before 2.15 a C++ wrapper knows no others


def root_wrapper(wrapper: Any) -> Any:
    """The wrapper whose header is printed: subgraphs and graph partitions share their parent's."""
    return wrapper.get_root_graph() if isinstance(wrapper, SubgraphPythonWrapperCodegen) else wrapper


def graph_label() -> str:
    """The name by which torch's logs call the graph being compiled: "model__0_inference_0"."""
    return get_aot_graph_name()


def on_cache_key(details_of: Callable[[Any], Any]) -> None:
    """Adds `details_of(graph_module)` to what FxGraphCache and AOTAutogradCache hash of a graph; None adds nothing.

    Both keys are digests of an FxGraphHashDetails object's attributes (AOTAutograd's class derives from it).
    """
    original = codecache.FxGraphHashDetails.__init__

    def __init__(self: Any, gm: Any, *args: Any, **kwargs: Any) -> None:
        original(self, gm, *args, **kwargs)
        details = details_of(gm)
        if details is not None:
            self.opaq = details

    codecache.FxGraphHashDetails.__init__ = __init__
