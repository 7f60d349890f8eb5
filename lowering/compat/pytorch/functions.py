"""The functions and methods of PyTorch that graphs call."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from .schemas import Schemas

# Private names of operations that have a public one, or that should have one.
_PUBLIC = {
    "_grouped_mm": "grouped_mm",
    "_log_api_usage_once": "log_api_usage_once",
    "_scaled_mm": "scaled_mm",
    "_softmax": "softmax",
    "_to_copy": "to",
    "_unsafe_view": "view",
}


class Functions(Schemas):
    def is_plain(self, tensor: torch.Tensor) -> bool:
        """Whether it is no tensor of a subclass; a fake one stands for a plain one."""
        return type(tensor) in (torch.Tensor, torch.nn.Parameter, FakeTensor)

    def surely_equal(self, one: Sequence[Any], other: Sequence[Any]) -> bool:
        """Whether sizes are equal in every call of a graph."""
        # Here, since it loads SymPy, which takes longer than all of opaq to import.
        from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq

        return len(one) == len(other) and statically_known_true(sym_eq(tuple(one), tuple(other)))

    def is_data_dependent(self, error: Exception) -> bool:
        """Whether an error says that a size or a number was asked for which is known only when the
        graph runs."""
        from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

        return isinstance(error, GuardOnDataDependentSymNode)

    def memory_of(self, tensor: torch.Tensor) -> int | None:
        """A number that tensors have in common which are views of the same memory; None of a value
        inside of torch.func's transforms."""
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return None
        return tensor.untyped_storage()._cdata

    def function_name(self, target: Any) -> str:
        """ "mul" of torch.mul, operator.mul and aten.mul.Tensor; "" of a function that is not
        PyTorch's."""
        op = self.op_name(target)
        if op is not None:
            namespace, name = op.split("::", 1)
            name = name.split(".")[0] if namespace in ("aten", "prims") else ""
        else:
            name = getattr(target, "__name__", "")
            module = getattr(target, "__module__", None) or ""
            if module.split(".")[0] != "torch" and getattr(operator, name, None) is not target:
                return ""
        return _PUBLIC.get(name, name)
