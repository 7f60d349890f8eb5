"""The kernels of an op for torch.vmap, which take the batch dimensions off, apply a rule, and put
those of the results on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch._functorch.autograd_function import VmapInfo
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._functorch.vmap import _add_batch_dim, _broadcast_to_and_flatten, unwrap_batched
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

# A call that excludes it goes to the next transform, or to the op itself.
_THIS_LEVEL = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)
# The key of every call under vmap, with and without batch dimensions.
_VMAP_MODE = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchVmapMode)


class Batch(NamedTuple):
    """A call under vmap. in_dims and keyword_dims are like args and kwargs, with the batch
    dimension of each tensor that has one, else None.
    """

    info: VmapInfo  # batch_size, randomness
    in_dims: tuple[Any, ...]
    args: tuple[Any, ...]
    keyword_dims: dict[str, Any]
    kwargs: dict[str, Any]


class Vmap:
    def register_vmap_kernels(
        self,
        library: torch.library.Library,
        overload: Any,
        rule: Callable[[Batch], Any],
        draws: Callable[[], bool],
    ) -> None:
        """Registers the kernels, which last as long as `library`. rule: returns (results, their
        batch dimensions), as torch.library.register_vmap says; called if an argument has a batch
        dimension, and in any case if draws(), that is, if the op draws random numbers.
        """

        def batched(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            level, batch, has_batch = _batch(args, kwargs)
            with torch._C._ExcludeDispatchKeyGuard(_THIS_LEVEL):
                if not has_batch and not draws():
                    return overload(*args, **kwargs)
                results, out_dims = rule(batch)
            return _wrapped(results, out_dims, level, overload)

        def any_call(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(_VMAP_MODE):
                if draws():
                    return batched(keyset, *args, **kwargs)
                return overload(*args, **kwargs)

        name = overload.name().split("::")[1].removesuffix(".default")
        library.impl(name, batched, "FuncTorchBatched", with_keyset=True)
        library.impl(name, any_call, "FuncTorchVmapMode", with_keyset=True)


def _batch(args: Any, kwargs: Any) -> tuple[int, Batch, bool]:
    """(level of the innermost vmap, call without its batch dimensions, whether it has any)."""
    interpreter = retrieve_current_functorch_interpreter()
    level = interpreter.level()
    (plain, named), (in_dims, keyword_dims) = unwrap_batched((args, kwargs), level)
    dims = tree_leaves((in_dims, keyword_dims), is_leaf=lambda dim: dim is None)
    info = VmapInfo(interpreter.batch_size(), interpreter.randomness())
    has_batch = any(dim is not None for dim in dims)
    return level, Batch(info, in_dims, plain, keyword_dims, named), has_batch


def _wrapped(results: Any, out_dims: Any, level: int, overload: Any) -> Any:
    flat, spec = tree_flatten(results)
    dims = _broadcast_to_and_flatten(out_dims, spec)
    if dims is None:
        raise ValueError(
            f"the vmap rule of {overload.name()} returned out_dims={out_dims!r}, which has not the "
            f"structure of its results ({spec}); give one int or None for each result"
        )
    wrapped = [
        value if dim is None or value is None else _add_batch_dim(value, dim, level)
        for value, dim in zip(flat, dims)
    ]
    return tree_unflatten(wrapped, spec)
