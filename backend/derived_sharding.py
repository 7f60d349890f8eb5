"""The sharding of an op that declares none, from its reference.

A way to split a call is derived only if it is proven for the sizes at hand:

1. DTensor's rules of PyTorch's operators, one after the other along the reference, give a placement
   to each tensor that it computes, without communication in between.
2. The reference makes the same calls on the parts as on the whole, with the same numbers, and the
   tensors that it computes from the parts have the shapes of the parts by 1. So a mean over a split
   dimension, or a reference that multiplies by x.size(0), is not split along it.

Then what the op computes from the parts are the parts of its results, since it computes what its
reference does. What is not proven is computed whole by every process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .lowering.compat import pytorch

if TYPE_CHECKING:
    from .op import Op

_MOST = 256  # ways that are tried for one dimension of a mesh; those of the call itself are first

Way = tuple[list[Any], list[Any]]  # placements of the results, and of the tensors it is given


class _Tensor(NamedTuple):
    """A tensor of a call: its place among them, as DTensor counts."""

    place: int
    spec: Any


def ways(op: Op, mesh: Any, args: Any, kwargs: Any) -> tuple[list[Way], Callable[[Any], bool]]:
    """As a rule of pytorch.register_sharding."""
    from torch.distributed.tensor import Replicate

    specs: list[Any] = []

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        if hasattr(value, "tensor_meta"):
            specs.append(value)
            return _Tensor(len(specs) - 1, value)
        return int(value) if isinstance(value, torch.SymInt) else value

    positional, by_name = _bound(
        op, [plain(value) for value in args], {key: plain(value) for key, value in kwargs.items()}
    )
    tensors = list(_tensors([*positional, *by_name.values()]))
    reference = op.reference_function
    assert reference is not None

    def recorded(shapes: Sequence[tuple[int, ...]]) -> Any:
        rest = iter(shapes)

        def shaped(value: Any) -> Any:
            if isinstance(value, _Tensor):
                return pytorch.shaped(next(rest), value.spec.tensor_meta.dtype)
            return [shaped(each) for each in value] if isinstance(value, list) else value

        given = [shaped(value) for value in positional]
        return pytorch.recorded(
            reference, given, {key: shaped(value) for key, value in by_name.items()}
        )

    whole = (Replicate(),) * len(specs)
    found: dict[Any, list[Any]] = {whole: [Replicate()] * len(op.info["outputs"])}
    placed: dict[Any, list[Any]] = {}  # of each tensor that the reference computes
    try:
        total = recorded([tuple(int(size) for size in each.spec.shape) for each in tensors])
    except Exception:  # what it says about tensors without data is no error of the call
        return [(found[whole], list(whole))], lambda _: True
    for places in itertools.islice(itertools.product(*_options(specs)), _MOST):
        known = pytorch.placed(total, [places[each.place] for each in tensors])
        if known is not None and places != whole:
            placed[places] = known
            found[places] = [known[number] for number in total.results]

    steps = total.steps()
    proven: dict[Any, bool] = {}

    def proves(parts: tuple[tuple[int, ...], ...]) -> bool:
        if parts not in proven:
            try:
                part = recorded(parts[: len(tensors)])
                proven[parts] = part.steps() == steps and tuple(part.shapes()) == parts
            except Exception:  # the reference refuses the parts
                proven[parts] = False
        return proven[parts]

    def accepts(by_dimension: list[Any]) -> bool:
        split = [placed.get(places) for places in by_dimension]
        parts = _parts(tuple(total.shapes()), split, mesh)
        return not any(split) or all(proves(each) for each in parts)

    return [(results, list(places)) for places, results in found.items()], accepts


def _bound(op: Op, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """All arguments, as a reference takes them: those by keyword only by name."""
    positional, by_name = [], {}
    for i, arg in enumerate(pytorch.arguments(op.overload)):
        value = args[i] if i < len(args) else kwargs.get(arg.name, arg.default_value)
        if arg.kwarg_only:
            by_name[arg.name] = value
        else:
            positional.append(value)
    return positional, by_name


def _tensors(values: Any) -> Iterator[_Tensor]:
    for value in values:
        if isinstance(value, _Tensor):
            yield value
        elif isinstance(value, list):
            yield from _tensors(value)


def _options(specs: list[Any]) -> list[list[Any]]:
    """The placements to try for each tensor: its own, whole, and split along the dimensions that
    any of them is split along, counted from the left and from the right.
    """
    from torch.distributed.tensor import Replicate, Shard

    dims = set()
    for spec in specs:
        for place in spec.placements:
            if type(place) is Shard:
                dims |= {place.dim, place.dim - spec.ndim}
    options = []
    for spec in specs:
        own = [place for place in spec.placements if type(place) is Shard]
        split = [Shard(dim % spec.ndim) for dim in sorted(dims) if -spec.ndim <= dim < spec.ndim]
        options.append(list(dict.fromkeys([*own, Replicate(), *split])))
    return options


def _parts(
    shapes: tuple[tuple[int, ...], ...], split: list[list[Any] | None], mesh: Any
) -> set[tuple[tuple[int, ...], ...]]:
    """The shapes that the tensors have in some process, which has one part of those in which the
    mesh's dimensions split them, one after the other.
    """
    from torch.distributed.tensor import Shard

    found = {shapes}
    for dimension, places in enumerate(split):
        if places is None:
            continue
        count = mesh.size(dimension)
        found = {
            tuple(
                _part(shape, place.dim, count, i) if type(place) is Shard else shape
                for shape, place in zip(parts, places)
            )
            for parts in found
            for i in range(count)
        }
    return found


def _part(shape: tuple[int, ...], dim: int, count: int, i: int) -> tuple[int, ...]:
    """The i-th of `count`, as torch.chunk splits."""
    most = -(-shape[dim] // count)
    return (*shape[:dim], max(0, min(most, shape[dim] - most * i)), *shape[dim + 1 :])
