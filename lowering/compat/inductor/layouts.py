"""Sizes, strides and memory of fake tensors and of Inductor's buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sympy
import torch
from torch._C import _is_alias_of
from torch._inductor import ir, lowering
from torch._inductor.sizevars import SizeVarAllocator
from torch._inductor.virtualized import V
from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq

from .views import Views

_UNKNOWN_SIZE = 8192


class Layouts(Views):
    # ---- numbers ---------------------------------------------------------------------------------

    def known_true(self, relation: Any) -> bool:
        """Whether a relation of sympy expressions is known to hold; adds no guard."""
        return V.graph.sizevars.statically_known_true(relation)

    def known_of(self, tensors: Iterable[torch.Tensor]) -> Callable[[Any], bool]:
        """The same of the sizes of fake tensors, before their graph is lowered."""
        numbers = (each for tensor in tensors for each in (*tensor.shape, *tensor.stride()))
        env = next((e.node.shape_env for e in numbers if isinstance(e, torch.SymInt)), None)
        known: Callable[[Any], bool] = SizeVarAllocator(env).statically_known_true
        return known

    def holds_now(self, relation: Any) -> bool:
        """Whether a relation of sizes holds for the call that is compiled for, and guard() can have
        the graph rely on it; adds no guard."""
        env = V.graph.sizevars.shape_env
        values = env.backed_var_to_val
        if env.frozen or not relation.free_symbols <= values.keys():
            return self.known_true(relation)
        return relation.xreplace(values) is sympy.true

    def guard(self, relation: Any) -> bool:
        """Whether a relation of sizes holds for the call that is compiled for; calls for which it
        does not hold as it does now are compiled anew. For relations whose sizes holds_now() knows.
        """
        return bool(V.graph.sizevars.shape_env.evaluate_expr(relation))

    def known_at_most(self, a: Any, b: Any) -> bool:
        """Whether a <= b is known to hold, for ints, SymInts and, while a graph is lowered, sympy
        expressions. Adds no guard.
        """
        relation = a <= b
        if isinstance(relation, (bool, torch.SymBool)):
            return statically_known_true(relation)
        return self.known_true(relation)

    def size_hint(self, value: Any) -> int:
        """A likely value of a size or stride: an int, a SymInt or, while nodes are lowered, a sympy
        expression.
        """
        if isinstance(value, torch.SymInt):
            hint = value.node.hint
            return _UNKNOWN_SIZE if hint is None else int(hint)
        if isinstance(value, int):
            return value
        return int(V.graph.sizevars.optimization_hint(value, fallback=_UNKNOWN_SIZE))

    def bounds(self, symbol: Any) -> tuple[int, float]:
        """(smallest, largest) value of a symbolic size; math.inf where it has no limit."""
        found = V.graph.sizevars.shape_env.bound_sympy(symbol)
        return max(0, int(found.lower)), int(found.upper) if found.upper.is_Integer else math.inf

    def expressions(self, values: Sequence[Any]) -> list[Any]:
        """Sizes or strides of a fake tensor as sympy expressions."""
        return ir.convert_shape_to_inductor(values)

    # ---- fake tensors ----------------------------------------------------------------------------

    def shares_storage(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        """Whether two tensors, fake or not, have the same storage."""
        return _is_alias_of(a, b)

    def has_strides_of(self, fake: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether two fake tensors are known to have the same strides; adds no guard."""
        return statically_known_true(sym_eq(fake.stride(), other.stride()))

    def has_shape_of(self, fake: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether two fake tensors are known to have the same shape; adds no guard."""
        return fake.dim() == other.dim() and statically_known_true(
            sym_eq(tuple(fake.shape), tuple(other.shape))
        )

    def has_row_major(self, fake: torch.Tensor, gaps: bool = False) -> bool:
        """Whether a fake tensor is known to be row-major; adds no guard. gaps: there may be some
        after each row."""
        expected: Any = 1
        for dim, (size, stride) in enumerate(zip(reversed(fake.shape), reversed(fake.stride()))):
            if gaps and dim == 1 and statically_known_true(stride >= expected):
                expected = stride
            if not statically_known_true(size == 1) and not statically_known_true(
                stride == expected
            ):
                return False
            expected = expected * size
        return True

    def views_of_one(self, a: Any, b: Any) -> bool:
        """Whether two nodes of the graph share memory according to the graph."""
        fakes = [node.meta.get("val") for node in (a, b)]
        if not all(isinstance(fake, torch.Tensor) for fake in fakes):
            return True
        return self.shares_storage(*fakes) or self.viewed(a) is self.viewed(b)

    # ---- buffers ---------------------------------------------------------------------------------

    def storage_box(self, value: Any) -> Any:
        """Inductor's StorageBox of a tensor, which is the same for all views of it; any other value
        itself.
        """
        while isinstance(value, (ir.TensorBox, ir.BaseView)):
            value = value.data
        return value

    def fake_of(self, value: Any) -> Any:
        """A fake tensor with the layout that an IR node has now."""
        with V.fake_mode:
            return ir.ir_node_to_tensor(value)

    def has_strides(self, value: Any, strides: Sequence[Any]) -> bool:
        """Whether a realised value has a fixed layout with exactly these expressions as strides.
        Cheap; strides may be equal though it says False.
        """
        if not ir.is_storage_and_layout(value):
            return False
        layout = value.get_layout()
        return isinstance(layout, ir.FixedLayout) and list(layout.stride) == list(strides)

    def padded_strides(self, value: Any, eager: torch.Tensor, choose: bool) -> list[Any] | None:
        """The strides with which a tensor can be passed on without a copy; None where there are
        none, or Inductor has yet to choose them. choose: let it do so now, with eager's strides or
        with these padded.
        """
        value.realize()
        view = value.data
        if isinstance(view, ir.BaseView) and not isinstance(view, ir.ReinterpretView):
            memory = view.unwrap_view()
            if not ir.is_storage_and_layout(memory) or isinstance(
                getattr(memory, "data", None), ir.ExternKernelAlloc
            ):
                return None
            try:
                value.data = ir.ExternKernel.convert_to_reinterpret_view(view)
            except NotImplementedError:
                return None
        if not ir.is_storage_and_layout(value):
            return None
        if choose and isinstance(value.get_layout(), ir.FlexibleLayout):
            ir.ExternKernel.require_exact_strides(
                value, self.expressions(eager.stride()), allow_padding=True
            )
        layout = value.get_layout()
        return self.expressions(layout.stride) if isinstance(layout, ir.FixedLayout) else None

    def as_strided(self, value: Any, like: torch.Tensor, begin: Any) -> Any:
        """A view of a one-dimensional value with the sizes and strides of a fake tensor, at that
        tensor's storage offset minus `begin`.
        """
        geometry = (
            self.expressions(like.shape),
            self.expressions(like.stride()),
            self.expressions([like.storage_offset() - begin])[0],
        )
        return lowering.lowerings[torch.ops.aten.as_strided.default](value, *geometry)

    def copy_into(self, target: Any, source: Any) -> None:
        """Copies into the memory of `target`, keeping its strides. (The lowering of `copy_` may
        give `target` new memory with other strides instead.)
        """
        target.realize()
        self.storage_box(target).freeze_layout()
        ir.MutationLayoutSHOULDREMOVE.realize_into(source, target.data)

    def lay_out_as_traced(self, value: Any, node: Any) -> None:
        """If Inductor has not yet chosen the layout of the buffer of `value`, the graph's `node`:
        chooses the order of strides that the buffer has in the traced graph, so that views of it
        have the traced strides too."""
        value.realize()
        buffer = self.storage_box(value).data
        fake = self.viewed(node).meta.get("val") if isinstance(node, torch.fx.Node) else None
        if (
            isinstance(fake, torch.Tensor)
            and isinstance(buffer, ir.Buffer)
            and isinstance(buffer.layout, ir.FlexibleLayout)
            and list(buffer.get_size()) == list(self.expressions(fake.shape))
        ):
            buffer.freeze_layout_with_stride_order(
                ir.get_stride_order([self.size_hint(stride) for stride in fake.stride()])
            )

    def place_in_memory(self, value: Any) -> Any:
        """The offset, in elements, of a realised value in a buffer that Inductor allocates; None if
        it is in an argument or a constant of the graph.
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
