"""Inductor's names for torch 2.11 to 2.14."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._C import _is_alias_of as shares_storage
from torch._functorch._aot_autograd import autograd_cache
from torch._functorch._aot_autograd.logging_utils import get_aot_graph_name
from torch._functorch._aot_autograd.schemas import OutputType
from torch._guards import TracingContext
from torch._higher_order_ops.auto_functionalize import (
    get_mutable_args,
    read_view_information_from_args,
)
from torch._inductor import codecache, config, dependencies, ir, lowering
from torch._inductor import compile_fx as inductor_compile
from torch._inductor.codecache import BypassFxGraphCache as CacheBypass
from torch._inductor.codegen.cpp_utils import cexpr
from torch._inductor.codegen.wrapper import SubgraphPythonWrapperCodegen, pexpr
from torch._inductor.fx_passes import post_grad
from torch._inductor.fx_passes.reinplace import graph_call_function as insert_call
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.virtualized import V
from torch._library.effects import EffectType
from torch._library.utils import get_layout_constraint_tag
from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq
from torch.utils._ordered_set import OrderedSet
from torch.utils._pytree import tree_leaves, tree_map

from .cpp_arrays import keep_arrays_apart
from .functional_names import free_argument_names
from .offsets import computed, is_view, lower_storage_offsets, replay_view, settle_views, viewed
from .writes import keep_dependencies

__all__ = [
    "lower_storage_offsets",
    "memory_of",
    "has_strides_of",
    "settle_views",
    "replay_view",
    "new_values",
    "outputs_that_are_inputs",
    "is_first_version",
    "compute_readers",
    "copies_into",
    "overwritten",
    "OrderedSet",
    "V",
    "WrittenValue",
    "as_strided",
    "CacheBypass",
    "before_body",
    "before_writes",
    "cache_dir",
    "called_by",
    "cexpr",
    "compile_fx",
    "effect_before",
    "constants_wrapper",
    "copy_into",
    "expressions",
    "fake_of",
    "fakes_of",
    "folds_constants",
    "functional_calls",
    "functional_copy",
    "graph_label",
    "has_row_major",
    "holder",
    "has_strides",
    "insert_call",
    "insert_copy",
    "ir",
    "is_root",
    "is_view",
    "free_argument_names",
    "keep_arrays_apart",
    "keep_dependencies",
    "known_at_most",
    "known_true",
    "leaves_by_argument",
    "live_values",
    "lay_out_as_traced",
    "lowering",
    "obey_partition_rule",
    "on_cache_key",
    "packaged",
    "pexpr",
    "place_in_memory",
    "prepend_python",
    "prints_two_wrappers",
    "register_lowering",
    "replace_value",
    "root_wrapper",
    "schema_text",
    "shares_storage",
    "size_hint",
    "stock_fallback",
    "storage_id",
    "traced_values",
    "tree_leaves",
    "tree_map",
    "use_layout_tag",
    "user_stream",
    "views_of_one",
    "with_leaves",
    "wrapper_language",
    "write_in_place",
    "written_values",
]


def register_lowering(overload: Any, lower: Callable[..., Any]) -> None:
    lowering.register_lowering(overload, type_promotion_kind=None)(lower)
    if any(argument.name == "out" for argument in overload._schema.arguments):
        lowering.lowerings[overload] = (
            # register_lowering's wrapper takes a keyword `out` for an out= overload and refuses it
            lower
        )
    lowering.add_needs_realized_inputs(overload)
    if not overload._schema.returns and not overload._schema.is_mutable:
        torch.fx.node.has_side_effect(overload)  # called for an effect that the graph cannot see


def called_by(node: Any) -> tuple[Any, Sequence[Any], dict[str, Any], Any]:
    """What a node calls: target, arguments, keyword arguments, results on fake tensors (None: not
    recorded). Arguments are as eager had them where that is recorded. A call of an op with ordered
    effects is wrapped: with_effects(token, op, *args) -> (token, *results)."""
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


def effect_before() -> Any:
    """The dependency of the node being lowered on the last one with ordered effects; None where it
    has no such effects, or is the first.

    Inductor's lowering of with_effects adds such dependencies by itself, but before 2.15 under
    names that its scheduler does not look up.
    """
    if V.graph.current_node.target is not torch.ops.higher_order.with_effects:
        return None
    last = V.graph.effectful_ops.get(EffectType.ORDERED)
    return last and dependencies.StarDep(last.get_name())


def stock_fallback(overload: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Inductor's own node for an op without lowering: a call through the dispatcher."""
    return lowering.fallback_handler(overload, add_to_fallback_set=False)(*args, **kwargs)


def copy_into(target: Any, source: Any) -> None:
    """Into the memory of `target`, so in its strides: the lowering of `copy_` may give it the
    memory of a copy of `source` instead, in other strides.
    """
    target.realize()
    holder(target).freeze_layout()
    ir.MutationLayoutSHOULDREMOVE.realize_into(source, target.data)


def schema_text(overload: Any) -> str:
    return str(overload._schema)


def leaves_by_argument(
    overload: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[tuple[str, int | None], Any]:
    """The values of a call by argument name, and index where the argument is a list."""
    leaves = {}
    for name, value in {
        **dict(zip((argument.name for argument in overload._schema.arguments), args)),
        **kwargs,
    }.items():
        items = enumerate(value) if isinstance(value, (list, tuple)) else [(None, value)]
        leaves.update({(name, index): item for index, item in items})
    return leaves


def with_leaves(
    overload: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    leaves: dict[tuple[str, int | None], Any],
) -> tuple[Any, Any]:
    """The arguments of a call, with some of its leaves (leaves_by_argument) replaced."""

    def replaced(name: str, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [leaves.get((name, index), item) for index, item in enumerate(value)]
        return leaves.get((name, None), value)

    names = [argument.name for argument in overload._schema.arguments]
    return tuple(replaced(name, value) for name, value in zip(names, args)), {
        name: replaced(name, value) for name, value in kwargs.items()
    }


def fakes_of(nodes: Any) -> Any:
    """The fake values of the graph's nodes among `nodes`, a nest of tuples, lists and dicts."""
    return torch.fx.map_arg(nodes, lambda node: node.meta.get("val"))


def traced_values(node: Any) -> list[Any]:
    """The values, tensors as fakes, that a node was given, where that is recorded, and returned
    when the graph was traced.
    """
    return tree_leaves((node.meta.get("eager_input_vals"), node.meta.get("val")))


def storage_id(fake: torch.Tensor) -> int:
    """The same for tensors that share memory."""
    return fake.untyped_storage()._cdata


def use_layout_tag(overload: Any) -> None:
    """Lets Inductor lay out the arguments as the op's tag says, by default with eager's strides,
    and carry mutations back from copies.
    """
    constraint = lowering.tag_to_layout_constraint(
        get_layout_constraint_tag(overload, with_default=True)
    )
    if constraint is not None:
        lowering.add_layout_constraint(overload, constraint)


def compile_fx(
    graph_module: Any,
    example_inputs: Sequence[Any],
    patches: dict[str, Any],
    settings: Callable[[], Any],
) -> Any:
    """Inductor, with `patches` to its options, inside settings() each time it compiles: a backward
    graph is compiled after this returns.
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


def expressions(values: Sequence[Any]) -> list[Any]:
    """Sizes or strides of a fake tensor as sympy expressions."""
    return ir.convert_shape_to_inductor(values)


def fake_of(value: Any) -> Any:
    """A fake tensor with the layout that an IR node has now."""
    return ir.ir_node_to_tensor(value)


def has_strides(value: Any, strides: Sequence[Any]) -> bool:
    """Whether a realised value's layout is fixed and spelled with exactly these strides. Cheap;
    False proves nothing.
    """
    if not ir.is_storage_and_layout(value):
        return False
    layout = value.get_layout()
    return isinstance(layout, ir.FixedLayout) and list(layout.stride) == list(strides)


def as_strided(value: Any, like: torch.Tensor, begin: Any) -> Any:
    """A view of a one-dimensional value with the sizes and strides of a fake tensor, and with its
    offset less `begin`.
    """
    geometry = (
        expressions(like.shape),
        expressions(like.stride()),
        expressions([like.storage_offset() - begin])[0],
    )
    return lowering.lowerings[torch.ops.aten.as_strided.default](value, *geometry)


def holder(value: Any) -> Any:
    """Inductor's StorageBox of a tensor, the same for all views of it; for another value, the
    value.
    """
    while isinstance(value, (ir.TensorBox, ir.BaseView)):
        value = value.data
    return value


def has_strides_of(fake: torch.Tensor, other: torch.Tensor) -> bool:
    return statically_known_true(sym_eq(fake.stride(), other.stride()))


def has_row_major(fake: torch.Tensor) -> bool:
    """Whether a fake tensor is known to be row-major; adds no guard."""
    expected: Any = 1
    for size, stride in zip(reversed(fake.shape), reversed(fake.stride())):
        if not statically_known_true(size == 1) and not statically_known_true(stride == expected):
            return False
        expected = expected * size
    return True


def live_values() -> list[tuple[Any, Any]]:
    """(the graph's node, its value) of those that nodes after the one being lowered take."""
    done = V.graph.user_to_last_uses.get(V.graph.current_node, ())
    return [(node, value) for node, value in V.graph.env.items() if node not in done]


def lay_out_as_traced(value: Any, node: Any) -> None:
    """Where Inductor has not yet decided how to lay out the tensor that `value`, the graph's
    `node`, is or is a view of: decides for the order of its strides in the graph, so that the view,
    too, has those."""
    value.realize()
    buffer, fake = (
        holder(value).data,
        viewed(node).meta.get("val") if isinstance(node, torch.fx.Node) else None,
    )
    if (
        isinstance(fake, torch.Tensor)
        and isinstance(buffer, ir.Buffer)
        and isinstance(buffer.layout, ir.FlexibleLayout)
    ):
        if list(buffer.get_size()) == list(expressions(fake.shape)):
            buffer.freeze_layout_with_stride_order(
                ir.get_stride_order([size_hint(stride) for stride in fake.stride()])
            )


def compute_readers(buffer: Any) -> None:
    """Before a write to a buffer: has Inductor compute what reads it and is not computed yet. Its
    own calls do so only after they are in the order of operations, so that the readers come behind
    them."""
    V.graph.mark_buffer_mutated(buffer.get_name())


def replace_value(node: Any, value: Any) -> None:
    """What nodes that are lowered from now on take for the value of `node`."""
    V.graph.env[node] = value


def views_of_one(a: Any, b: Any) -> bool:
    """Whether two nodes of the graph are tensors in one memory by what the graph says."""
    fakes = [node.meta.get("val") for node in (a, b)]
    if not all(isinstance(fake, torch.Tensor) for fake in fakes) or shares_storage(*fakes):
        return True
    return viewed(a) is viewed(b)


def place_in_memory(value: Any) -> Any:
    """The offset, in elements, of a realised value in a buffer that Inductor allocates; None where
    it lies in an argument or a constant of the graph.
    """
    layout = value.get_layout()
    name = value.get_name()
    if (
        name in V.graph.graph_inputs
        or name in V.graph.constants
        or isinstance(layout, ir.NonOwningLayout)
    ):
        return None
    offset = layout.offset
    return int(offset) if getattr(offset, "is_Integer", True) else offset


def known_true(relation: Any) -> bool:
    return V.graph.sizevars.statically_known_true(relation)


def known_at_most(a: Any, b: Any) -> bool:
    """Whether a <= b is known, over ints and SymInts anywhere, sympy expressions while a graph is
    lowered. Adds no guard.
    """
    relation = a <= b
    if isinstance(relation, (bool, torch.SymBool)):
        return statically_known_true(relation)
    return known_true(relation)


def obey_partition_rule(node: Any, qualname: str) -> None:
    """Keeps a node out of CUDA graphs where `custom_should_partition_ops` names its op. Inductor
    asks that only of its own fallback nodes; of any node it asks whether it binds unbacked sizes,
    and partitions the graph there."""
    if {qualname, f"{qualname}.default"} & set(config.custom_should_partition_ops):
        node.unbacked_bindings = True


def wrapper_language() -> str:
    """What the graph's wrapper is written in: "python"; "cpp", compiled for this process;
    "package", C++ of AOTInductor; "" for any other.
    """
    if getattr(V.graph, "fx_wrapper", False):
        return ""
    if V.graph.aot_mode:
        return "package"
    return "cpp" if V.graph.cpp_wrapper else "python"


def prints_two_wrappers() -> bool:
    """Whether each line of AOTInductor's wrapper goes into a second one too, which runs while
    compiling (2.15, on request).
    """
    return bool(getattr(V.graph, "is_dual_wrapper_mode", False))


def _root_graph() -> Any:
    graph = V.graph
    while hasattr(graph, "parent"):  # a branch of torch.cond
        graph = graph.parent
    return graph


def folds_constants() -> bool:
    """Whether the graph computes the constants of another, when a package is loaded and when its
    weights change; the two are packaged together.
    """
    return _root_graph().is_const_graph


def constants_wrapper() -> Any:
    """The wrapper, printed before, of the graph that computes the constants of this one; None where
    nothing is folded.
    """
    constants = _root_graph().const_module
    return constants and constants.wrapper_code


def packaged() -> bool:
    """Whether AOTInductor's files will lie together in a .pt2, rather than where they are written
    now.
    """
    return bool(config.aot_inductor.package)


def size_hint(value: Any) -> int:
    """A likely value of a size or stride: an int, a SymInt or, while nodes are lowered, a sympy
    expression.
    """
    if isinstance(value, torch.SymInt):
        hint = value.node.hint
        return _UNKNOWN_SIZE if hint is None else int(hint)
    return (
        value
        if isinstance(value, int)
        else int(V.graph.sizevars.optimization_hint(value, fallback=_UNKNOWN_SIZE))
    )


_UNKNOWN_SIZE = 8192


def user_stream() -> str | None:
    """The C++ variable of the user's stream that the node being printed runs on; None: that on
    which the graph is called.
    """
    return None  # before 2.15 a C++ wrapper knows no others


def is_root() -> bool:
    """Whether the graph being lowered is the one that is called, and no branch or body in it."""
    return not hasattr(V.graph, "parent")


def before_body(wrapper: Any, line: str) -> None:
    """Prints a line into a Python wrapper before those that run anything; the graph's inputs have
    names there.
    """
    wrapper.lines.insert(0, line)


def root_wrapper(wrapper: Any) -> Any:
    """The wrapper whose header is printed: subgraphs and graph partitions share their parent's."""
    return (
        wrapper.get_root_graph() if isinstance(wrapper, SubgraphPythonWrapperCodegen) else wrapper
    )


def prepend_python(wrapper: Any, position: int, line: str) -> None:
    """Puts a line of Python at the head of a C++ wrapper that is not packaged, whose text begins
    and ends in Python. position: its line there.
    """
    root_wrapper(wrapper).header._lines.insert(position, line)


def graph_label() -> str:
    """The name by which torch's logs call the graph being compiled: "model__0_inference_0"."""
    return get_aot_graph_name()


def on_cache_key(details_of: Callable[[Any, bool], Any], bypass: type[Exception]) -> None:
    """Adds `details_of(graph_module, traced)` to what FxGraphCache and AOTAutogradCache hash of a
    graph; None adds nothing. traced: the key is AOTAutogradCache's, of a graph that is yet to be
    traced through fakes and gradients. Where it raises `bypass`, the graph is kept in no cache.

    Both keys are digests of an FxGraphHashDetails object's attributes (AOTAutograd's class derives
    from it).
    """
    original = codecache.FxGraphHashDetails.__init__

    def __init__(self: Any, gm: Any, *args: Any, **kwargs: Any) -> None:
        original(self, gm, *args, **kwargs)
        traced = isinstance(self, autograd_cache.AOTAutogradCacheDetails)
        try:
            details = details_of(gm, traced)
        except bypass as error:
            raise (
                autograd_cache.BypassAOTAutogradCache if traced else codecache.BypassFxGraphCache
            )(str(error)) from error
        if details is not None:
            self.opaq = details

    codecache.FxGraphHashDetails.__init__ = __init__


# ---- calls that write, while they are functional: auto_functionalized(op, arguments) -> (results,
# new values)


def before_writes(change: Callable[[Any], Callable[[], None] | None]) -> None:
    """Runs `change(graph)` on every graph after Inductor chose which written arguments are copied,
    before functional calls become writing ones again.

    What it returns, if anything, is called after that."""
    original = post_grad.decompose_auto_functionalized

    def decompose_auto_functionalized(graph: Any) -> Any:
        after = change(graph)
        result = original(graph)
        if after is not None:
            after()
        return result

    post_grad.decompose_auto_functionalized = decompose_auto_functionalized


_decompose = post_grad.decompose_auto_functionalized


def functional_copy(graph: Any, change: Callable[[Any], None]) -> Any:
    """A module with a copy of a graph that holds functional calls, which become writing calls on
    copies of all that they write. `change(copy)` runs before that."""
    copied = torch.fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    module = torch.fx.GraphModule(graph.owning_module or torch.nn.Module(), copied)
    for call in functional_calls(module.graph):
        call.meta.pop("only_clone_these_tensors", None)
        call.meta["only_clone_these_tensors"] = [value.key for value in written_values(call)]
    change(module.graph)
    _decompose(module.graph)
    return module


_V1, _V2 = torch.ops.higher_order.auto_functionalized, torch.ops.higher_order.auto_functionalized_v2


def is_first_version(call: Any) -> bool:
    """Whether a functional call takes written arguments as they are, and not the tensors that they
    are views of.
    """
    return call.target is _V1


def functional_calls(graph: Any) -> Iterator[Any]:
    for node in list(graph.nodes):
        if (
            node.op == "call_function"
            and node.target in (_V1, _V2)
            and isinstance(node.args[0], torch._ops.OpOverload)
        ):
            yield node


@dataclasses.dataclass
class WrittenValue:
    """A tensor argument of a functional call to which the op writes, or of which it writes
    views."""

    place: tuple[str, int | None]  # keyword of the call, and index where the argument is a list
    copied: bool  # before the write
    views: Callable[
        [torch.Tensor], list[torch.Tensor]
    ]  # what is written, made of a fake tensor in the value's place
    key: Any  # in the call's record of what is copied


def written_values(call: Any) -> list[WrittenValue]:
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
            WrittenValue(place, copied is None or place[0] in copied, lambda fake: [fake], place[0])
            for place in places
        ]
    bases = call.kwargs["_all_bases"]
    fakes = dict(torch.fx.map_arg(call.kwargs, lambda node: node.meta["val"]))
    infos = (
        tree_leaves(read_view_information_from_args(names, types, fakes, bases)) if bases else []
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


def write_in_place(call: Any, value: WrittenValue) -> None:
    """Records that a value need not be copied before the write."""
    copied = call.meta.get("only_clone_these_tensors")
    if copied is None:
        copied = [item.key for item in written_values(call)]
    call.meta["only_clone_these_tensors"] = [key for key in copied if key != value.key]
    value.copied = False


def copies_into(node: Any, target: Any) -> bool:
    """Whether a graph's node copies into `target` in place, as at the end of a graph that writes to
    its inputs.
    """
    return node.target is torch.ops.aten.copy_.default and node.args[0] is target


def memory_of(node: Any) -> Any:
    """The graph's node in whose memory `node` lies: through views, and through calls that write in
    place.
    """
    while True:
        node = viewed(node)
        call = node.args[0] if node.target is operator.getitem else None
        if call is None or call.target not in (_V1, _V2):
            return node
        value = next(
            (
                value
                for value in written_values(call)
                if not value.copied and node in new_values(call, value)
            ),
            None,
        )
        if value is None:
            return node
        name, index = value.place
        node = call.kwargs[name] if index is None else call.kwargs[name][index]


def overwritten(call: Any, value: WrittenValue) -> bool:
    """Whether a new value that lies in a graph input's memory, written there in place, is still
    used when the graph copies another value into that input.
    """
    name, index = value.place
    if call.target is _V1:
        return False  # other values than the last are not written in place
    if value.copied:
        return False
    root = memory_of(call.kwargs[name][index])
    copies = [
        user
        for user in root.users
        if copies_into(user, root) and call < user and memory_of(user.args[1]) is not root
    ]
    if not copies:
        return False
    used = new_values(call, value)
    for node in used:  # grows by the views of what is in it
        used += [user for user in node.users if is_view(user)]
    return any(copy < user for copy in copies for node in used for user in node.users)


def new_values(call: Any, value: WrittenValue) -> list[Any]:
    """The graph's nodes that are, after the call, what it wrote into `value`."""
    name, index = value.place
    names = (
        list(range(len(call.kwargs[name])))
        if call.target is _V2
        else get_mutable_args(call.args[0])[0]
    )
    position = max(len(call.args[0]._schema.returns), 1) + names.index(value.key)
    nodes = [
        user for user in call.users if user.target is operator.getitem and user.args[1] == position
    ]
    if (
        call.target is _V1 and index is None and not value.copied
    ):  # Inductor has put what is written in place of the new value
        nodes.append(call.kwargs[name])
    return nodes


def outputs_that_are_inputs(graph: Any) -> set[int]:
    """Positions of the graph's outputs that are graph inputs, or views of them, in eager too."""
    context = TracingContext.try_get()
    metadata = context.fw_metadata if context is not None else None
    backward = any(
        str(node.target).startswith("tangents") for node in graph.find_nodes(op="placeholder")
    )
    if metadata is None or backward:
        return set()
    kinds = (OutputType.is_input, OutputType.alias_of_input)
    first = metadata.num_mutated_inp_runtime_indices
    return {first + i for i, info in enumerate(metadata.output_info) if info.output_type in kinds}


def insert_copy(graph: Any, node: Any, like: torch.Tensor) -> Any:
    """A copy of a graph's value, with the strides of `like`: the value's in eager, of which those
    in the graph may differ where a pass dropped a copy.
    """
    aten = torch.ops.aten
    if has_row_major(like):
        return insert_call(graph, aten.clone.default, node, memory_format=torch.contiguous_format)

    def asked(op: Any, values: Sequence[Any]) -> list[Any]:
        """Sizes or strides that `node` has."""
        return [
            value if isinstance(value, int) else insert_call(graph, op, node, dim)
            for dim, value in enumerate(values)
        ]

    sizes, same = asked(aten.sym_size.int, like.shape), has_strides_of(node.meta["val"], like)
    strides = (
        asked(aten.sym_stride.int, like.stride())
        if same
        else [computed(graph, stride) for stride in like.stride()]
    )
    return insert_call(
        graph,
        aten.copy.default,
        insert_call(graph, aten.new_empty_strided.default, node, sizes, strides),
        node,
    )
