"""What torch.vmap does with an op that has no rule of its own: a pointwise op takes the batch as
one more dimension, any other is called once for each sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from . import _runtime
from .lowering import counts

if TYPE_CHECKING:
    from .op import Op


class BatchRule:
    """The rule of one op: a function that was given to `register_vmap`, else that above."""

    def __init__(self, op: Op) -> None:
        self._op = op
        self.function: Callable[..., Any] | None = None
        self._announced = False

    def __call__(self, batch: Any) -> Any:
        if self.function is not None:
            return self._by_function(batch)
        if torch.Tag.pointwise in self._op.tags and not self._op.effects and not self._written:
            return self._folded(batch)
        return self._looped(batch)

    @property
    def _written(self) -> list[str]:
        return [arg["name"] for arg in self._op.info["args"] if arg["mutated"]]

    def _by_function(self, batch: Any) -> Any:
        named = [name for name, dims in batch.keyword_dims.items() if _any(dims)]
        if named:
            raise _runtime.LaunchError(
                f"{self._op.name}: keyword-only arguments ({', '.join(named)}) have a batch "
                "dimension, which a rule of register_vmap is not told; make them positional"
            )
        found = self.function(batch.info, batch.in_dims, *batch.args, **batch.kwargs)
        if not isinstance(found, tuple) or len(found) != 2:
            raise _runtime.LaunchError(
                f"{self._op.name}: its vmap rule returned {type(found).__name__}; expected the "
                "tuple (results, out_dims)"
            )
        return found

    def _folded(self, batch: Any) -> Any:
        """The batch becomes dimension 0 of every tensor, and ranks are made equal behind it."""
        leaves = _leaves(
            [*batch.args, *batch.kwargs.values()], [*batch.in_dims, *batch.keyword_dims.values()]
        )
        rank = max(tensor.dim() - (dim is not None) for tensor, dim in leaves)

        def fold(value: torch.Tensor, dim: int | None) -> torch.Tensor:
            own = value.dim() - (dim is not None)
            moved = value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
            moved = moved.reshape(moved.shape[0], *[1] * (rank - own), *moved.shape[1:])
            return moved.expand(batch.info.batch_size, *moved.shape[1:])

        args, kwargs = _mapped(batch, fold)
        return self._op.overload(*args, **kwargs), 0

    def _looped(self, batch: Any) -> Any:
        if self._op.effects == "random":
            drawn_once = batch.info.randomness == "same" and not _any(
                [*batch.in_dims, *batch.keyword_dims.values()]
            )
            if drawn_once:
                return self._op.overload(*batch.args, **batch.kwargs), None
            self._check_randomness(batch)
        if counts.are_read(self._op.info):
            raise _runtime.LaunchError(
                f"{self._op.name} under torch.vmap: each sample has results of other sizes, which "
                "are known only when it has run; give a rule with .register_vmap(...), or call it "
                "for each sample"
            )
        self._announce(batch)
        self._check_written(batch)
        rows = []
        for sample in range(batch.info.batch_size):
            args, kwargs = _sample(batch, sample)
            rows.append(self._op.overload(*args, **kwargs))
        count = len(self._op.info["outputs"])
        if count == 0:
            return None, None
        if not rows:
            return self._of_no_samples(batch), 0
        if count == 1:
            return torch.stack(rows), 0
        return tuple(map(torch.stack, zip(*rows))), 0

    def _of_no_samples(self, batch: Any) -> Any:
        """A batch of 0: the results of one sample, made by the output rules, tell the shapes."""
        args, kwargs = _mapped(
            batch,
            lambda value, dim: (
                value
                if dim is None
                else value.new_empty([size for i, size in enumerate(value.shape) if i != dim])
            ),
        )
        like = self._op.fake(*args, **kwargs)
        if isinstance(like, tuple):
            return tuple(t.new_empty((0, *t.shape)) for t in like)
        return like.new_empty((0, *like.shape))

    def _check_written(self, batch: Any) -> None:
        names = [arg["name"] for arg in self._op.info["args"]]
        values = dict(zip(names, zip(batch.args, batch.in_dims)))
        values |= {name: (value, batch.keyword_dims[name]) for name, value in batch.kwargs.items()}
        shared = [
            name
            for name in self._written
            if any(dim is None for _, dim in _leaves(*values.get(name, (None, None))))
        ]
        if shared:
            raise _runtime.LaunchError(
                f"{self._op.name}: vmap is over other arguments, but not over "
                f"{', '.join(f'`{name}`' for name in shared)}, which the op writes: each sample "
                "would overwrite it; give it a batch dimension too (in_dims)"
            )

    def _check_randomness(self, batch: Any) -> None:
        if batch.info.randomness != "different":
            raise _runtime.LaunchError(
                f"{self._op.name} draws random numbers, under vmap with "
                f"randomness={batch.info.randomness!r}; call "
                'torch.vmap(..., randomness="different"), which draws for each sample'
            )

    def _announce(self, batch: Any) -> None:
        if not self._announced:
            self._announced = True
            warnings.warn(
                f"{self._op.name} has no rule for torch.vmap and is called once for each sample, "
                f"here {batch.info.batch_size} times; give one with .register_vmap(...), or, if "
                "the op is pointwise, declare it with tags=torch.Tag.pointwise",
                stacklevel=2,
            )


def _any(dims: Any) -> bool:
    return any(map(_any, dims)) if isinstance(dims, (list, tuple)) else dims is not None


def _sample(batch: Any, index: int) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of one sample."""
    return _mapped(batch, lambda value, dim: value if dim is None else value.select(dim, index))


def _leaves(values: Any, dims: Any) -> list[tuple[torch.Tensor, int | None]]:
    """Every tensor in an argument or a list of arguments, with its batch dimension."""
    if isinstance(values, (list, tuple)):
        pairs = zip(values, dims if isinstance(dims, (list, tuple)) else [dims] * len(values))
        return [leaf for value, dim in pairs for leaf in _leaves(value, dim)]
    return [(values, dims)] if isinstance(values, torch.Tensor) else []


def _mapped(
    batch: Any, change: Callable[[torch.Tensor, int | None], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call, with change(tensor, batch dimension) in place of each tensor."""

    def mapped(value: Any, dims: Any) -> Any:
        if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
            return [mapped(item, dim) for item, dim in zip(value, dims)]
        return change(value, dims) if isinstance(value, torch.Tensor) else value

    return [mapped(value, dims) for value, dims in zip(batch.args, batch.in_dims)], {
        name: mapped(value, batch.keyword_dims[name]) for name, value in batch.kwargs.items()
    }
