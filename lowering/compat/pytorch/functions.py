"""The functions and methods of PyTorch that graphs call."""

from __future__ import annotations

import operator
from typing import Any

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
