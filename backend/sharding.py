"""How an op is computed on DTensors, whose parts are on several devices (`sharding` of opaq.op)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from . import _runtime, derived_sharding, validate
from .lowering import counts
from .lowering.compat import pytorch

if TYPE_CHECKING:
    from .op import Op

Sharding = str | Callable[..., Any] | None

ON_LOCAL_TENSORS = (
    "call it on local tensors, as with local_map of torch.distributed.tensor.experimental"
)
_RULES = ("pointwise", "rows")


def checked(where: str, rule: Any) -> Sharding:
    if rule is not None and rule not in _RULES and not callable(rule):
        expected = '"pointwise", "rows", a function (*args) that returns placements, or None'
        validate.refuse(where, "sharding", rule, expected)
    if rule is not None and not torch.distributed.is_available():
        raise _runtime.DeclarationError(
            f"{where}: sharding={rule!r}, but this torch was built without torch.distributed; "
            "leave sharding out"
        )
    return rule


def register(op: Op) -> None:
    """Tells DTensor the op's rule, once for each op; later calls use its newest rule."""
    pytorch.register_sharding(op.overload, lambda *call: _ways(op, *call))


def _ways(op: Op, mesh: Any, args: Any, kwargs: Any) -> tuple[list[Any], Callable[[Any], bool]]:
    rule = op.sharding
    if rule is None and torch.Tag.pointwise in op.overload.tags:
        rule = "pointwise"
    if rule is None:
        if reason := _why_not(op):
            raise NotImplementedError(reason)
        return derived_sharding.ways(op, mesh, args, kwargs)
    found = rule(*args, **kwargs) if callable(rule) else _placements(op, rule, args, kwargs)
    return found, lambda _: True


def _why_not(op: Op) -> str:
    """Why a call on DTensors has no meaning yet, and what to do; "" where the reference tells."""
    written = [f"`{arg['name']}`" for arg in op.info["args"] if arg["mutated"]]
    if written:
        return (
            f"{op.name} writes to arguments ({', '.join(written)}), which DTensor cannot follow; "
            f"{ON_LOCAL_TENSORS}"
        )
    if op.effects or torch.Tag.nondeterministic_seeded in op.overload.tags:
        why = "a call does more than compute its results (effects)"
    elif counts.are_read(op.info):
        why = f"the size `{counts.names(op.info)[0]}` is known only after a call"
    elif op.reference_function is None:
        why = "it has no reference to derive one from"
    else:
        return ""
    return (
        f"{op.name} has no sharding rule: {why}; declare one with opaq.op(..., sharding=...), or "
        f"{ON_LOCAL_TENSORS}"
    )


def _placements(op: Op, rule: str, args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    """All ways to split a call, each as (placements of the results, placements of the arguments).

    Dimensions are counted from the right, as in broadcasting. pointwise: all tensors are split
    along the same dimension; those that do not have it, or have it with size 1, are whole. rows:
    those of most dimensions are split along any but the last, the others (weights) are whole.
    """
    from torch.distributed.tensor import Replicate, Shard

    values = [*args, *kwargs.values()]
    ranks = [getattr(value, "ndim", None) for value in values]
    most = max((rank for rank in ranks if rank is not None), default=0)
    results = len(op.info["outputs"])

    def along(value: Any, rank: int | None, dim: int) -> Any:
        own = None if rank is None else dim - (most - rank)
        if own is None:
            return None
        splits = own >= 0 and value.shape[own] != 1 and (rule == "pointwise" or rank == most)
        return Shard(own) if splits else Replicate()

    whole = [None if rank is None else Replicate() for rank in ranks]
    found = [([Replicate()] * results, whole)]
    for dim in range(most if rule == "pointwise" else most - 1):
        placed = [along(value, rank, dim) for value, rank in zip(values, ranks)]
        found.append(([Shard(dim)] * results, placed))
    return found
