"""PyTorch's private names, for each torch minor: nothing else in this package uses them.

This part is cheap: it does not import Inductor. `compat.inductor` does, and is imported by the
modules that `lowering.activate()` loads.
"""

from __future__ import annotations

from . import library
from .autograd import forward_levels, register_autograd, returned_names, written_names
from .dispatcher import is_known, kernel_entries, pinned_kernel_entries
from .eager import (
    check_no_alias,
    count_mutations,
    empty_strided_cpu,
    empty_strided_cuda,
    local_state,
    returns_nothing,
    set_effects,
    state_addresses,
    sympy_functions,
    tensor_reader,
)
from .version import adapter_name

__all__ = [
    "adapter_name",
    "check_no_alias",
    "count_mutations",
    "empty_strided_cpu",
    "empty_strided_cuda",
    "forward_levels",
    "is_known",
    "kernel_entries",
    "library",
    "local_state",
    "pinned_kernel_entries",
    "register_autograd",
    "returned_names",
    "returns_nothing",
    "set_effects",
    "state_addresses",
    "sympy_functions",
    "tensor_reader",
    "written_names",
]
