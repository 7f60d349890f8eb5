"""Private names that need no Inductor; spelled alike by every torch that opaq supports."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch._C import _len_torch_dispatch_stack as dispatch_mode_depth
from torch._C import _len_torch_function_stack as function_mode_depth
from torch._C._autograd import _profiler_enabled as profiler_enabled
from torch._C._dynamo.guards import _empty_strided_cpu as empty_strided_cpu
from torch._C._dynamo.guards import _empty_strided_cuda as empty_strided_cuda
from torch._library.utils import _c_check_aliasing_constraint as check_no_alias

__all__ = [
    "check_no_alias",
    "count_mutations",
    "dispatch_mode_depth",
    "empty_strided_cpu",
    "empty_strided_cuda",
    "function_mode_depth",
    "profiler_enabled",
    "returns_nothing",
    "sympy_functions",
]

_libraries: list[torch.library.Library] = []  # a registration lasts as long as its library


def returns_nothing(overload: Any) -> bool:
    return not overload._schema.returns


def count_mutations(overload: Any, positions: Sequence[int]) -> None:
    """Makes calls through the dispatcher raise the version of the arguments the op writes to, so that autograd notices stale saved values."""
    names = [argument.name for argument in overload._schema.arguments]

    def raise_versions(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        for position in positions:
            value = args[position] if position < len(args) else kwargs.get(names[position])
            if isinstance(value, torch.Tensor):
                torch.autograd.graph.increment_version(value)
        return overload.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)

    namespace, name = overload.name().split("::")
    library = torch.library.Library(namespace, "FRAGMENT")
    library.impl(name.split(".")[0], raise_versions, "ADInplaceOrView", with_keyset=True)
    _libraries.append(library)


@functools.cache
def sympy_functions() -> types.SimpleNamespace:
    """floor_div, mod (Python's sign rule), minimum, maximum over ints and sympy expressions, in the forms that the shape prover knows."""
    from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

    def mod(a: Any, b: Any) -> Any:
        nonnegative = all(value >= 0 if isinstance(value, int) else value.is_nonnegative for value in (a, b))
        return (Mod if nonnegative else PythonMod)(a, b)

    return types.SimpleNamespace(floor_div=FloorDiv, mod=mod, minimum=Min, maximum=Max)
