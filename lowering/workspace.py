"""The workspace of a node: one buffer, planned by Inductor as results are, in which the runtime
lays out the scratch tensors of the implementation that serves a launch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sympy
import torch

from opaq import _runtime

from .compat import pytorch
from .compat.inductor import inductor, ir
from .symbolic import SymbolicEvaluator, Unknown

if TYPE_CHECKING:
    from opaq._runtime import ScratchInfo

    from .decision import Candidate


class _Sizes(SymbolicEvaluator):
    """What sizes are if computing them is no error. If it is one, the launch tells."""

    def _int64(self, value: Any) -> Any:
        return value


@dataclasses.dataclass(frozen=True)
class Workspace:
    sizes: tuple[Any, ...]  # ints and sympy expressions
    dtype: torch.dtype

    @property
    def bytes(self) -> Any:
        return _product((self.dtype.itemsize, *self.sizes))

    def buffer(self, device: torch.device) -> Any:
        """A new buffer of Inductor's. It has a dimension: Inductor would fill one without any."""
        sizes = list(self.sizes) or [1]
        strides = list(ir.FlexibleLayout.contiguous_strides(sizes))
        return inductor.empty_strided(sizes, strides, dtype=self.dtype, device=device)


def plan(candidates: Sequence[Candidate], values: Mapping[str, Any]) -> Workspace | None:
    """The workspace that serves whichever candidate a launch takes; None if none has scratch
    tensors, and if only the launch knows a size: it then allocates the memory. values: as for
    decide().
    """
    evaluator = _Sizes(inductor.known_true)
    planned = []
    for candidate in candidates:
        tensors = [
            _tensor(scratch, values, evaluator) for scratch in candidate.implementation["scratch"]
        ]
        if None in tensors:
            return None
        planned.append([tensor for tensor in tensors if tensor is not None])
    if not any(planned):
        return None
    if len(planned) == 1 and len(planned[0]) == 1:
        return planned[0][0]  # as the tensor that it is, so that other buffers can take its memory
    sizes = [_bytes(tensors) for tensors in planned if tensors]
    most = sizes[0]
    for size in sizes[1:]:
        most = _largest(most, size)
    return Workspace((most,), torch.uint8)


def _tensor(
    scratch: ScratchInfo, values: Mapping[str, Any], evaluator: SymbolicEvaluator
) -> Workspace | None:
    """A workspace of one scratch tensor; None if only the launch knows it."""
    sizes: list[Any] = []
    for item in scratch["shape"]:
        found = evaluator.value(item.removeprefix("*"), values)
        sizes += found if isinstance(found, tuple) else [found]
    dtype = evaluator.value(scratch["dtype"], values)
    if any(isinstance(value, Unknown) for value in (dtype, *sizes)):
        return None
    return Workspace(tuple(_largest(0, size) for size in sizes), dtype)  # a launch refuses less


def _bytes(tensors: Sequence[Workspace]) -> Any:
    """Room for tensors one after the other, each of them aligned."""
    total: Any = (len(tensors) - 1) * _runtime.SCRATCH_ALIGNMENT
    for tensor in tensors:
        total = total + tensor.bytes
    return total


def _product(values: Sequence[Any]) -> Any:
    product: Any = 1
    for value in values:
        product = product * value
    return product


def _largest(a: Any, b: Any) -> Any:
    if inductor.known_true(sympy.Ge(b, a)):
        return b
    if inductor.known_true(sympy.Ge(a, b)):
        return a
    return pytorch.sympy_functions().maximum(a, b)
