"""How a functional call of a writing op records the views that the op writes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._higher_order_ops import auto_functionalize
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

_original_slice = auto_functionalize.try_use_slice
_original_record = auto_functionalize.write_view_information_to_args


def record_slices() -> None:
    """Records a written view as a slice of its base only where the base begins at the start of its
    storage."""
    auto_functionalize.try_use_slice = _slice_of


def record_places() -> None:
    """Records the sizes, strides and offset that a written view has in its base in the functional
    graph, not those in eager's base."""
    auto_functionalize.write_view_information_to_args = _record_view_places


def _slice_of(base: torch.Tensor, view: torch.Tensor) -> Any:
    """(dim, start, end) of a view that an op writes to; None: it is recorded by sizes, strides and
    offset instead. torch (up to 2.15) computes slices as if `base` began at the start of its
    storage, so that wrong elements of a graph input `x[1:]` are written."""
    return (
        _original_slice(base, view) if statically_known_true(base.storage_offset() == 0) else None
    )


def _record_view_places(
    names: Sequence[str],
    types: Sequence[Any],
    kwargs: dict[str, Any],
    base_indices: Mapping[str, Any],
) -> None:
    """Adds to the arguments of a functional call which views of their bases an op writes to.

    A base that was written before is a new tensor in the functional graph: dense, and at the start
    of its storage. torch records the sizes, strides and offset that the view has in eager, where
    the base may be laid out differently.
    """
    views = {
        f"_{name}": kwargs[name] for name in names if isinstance(kwargs[name], FunctionalTensor)
    }
    for name in names:
        if isinstance(kwargs[name], (list, tuple)):
            views.update(
                {
                    f"_{name}_{i}": item
                    for i, item in enumerate(kwargs[name])
                    if isinstance(item, FunctionalTensor)
                }
            )
    # also brings the views up to date with their bases
    values = {prefix: view.from_functional() for prefix, view in views.items()}
    _original_record(names, types, kwargs, base_indices)
    for prefix, value in values.items():
        if f"{prefix}_storage_offset" in kwargs:
            kwargs.update(
                {
                    f"{prefix}_size": value.size(),
                    f"{prefix}_stride": value.stride(),
                    f"{prefix}_storage_offset": value.storage_offset(),
                }
            )
