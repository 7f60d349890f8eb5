"""Results whose sizes only the launch knows. It writes the first part of a result that has the
largest size, and how much that is to a count: an int64, which is a result of the launch too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from opaq import _runtime

if TYPE_CHECKING:
    from opaq._runtime import OpInfo


def are_read(info: OpInfo) -> bool:
    """Whether counts are read after a launch."""
    return len(info["results"]) > len(info["outputs"])


def names(info: OpInfo) -> list[str]:
    """Of the counts that are read after a launch."""
    return [result["name"] for result in info["results"][len(info["outputs"]) :]]


def with_sizes(whole: torch.Tensor, counted: Sequence[tuple[int, str]], counts: Any) -> Any:
    """The part of a result that was written; counts: by name."""
    sizes = list(whole.shape)
    for dim, name in counted:
        sizes[dim] = counts[name]
    return whole.as_strided(sizes, whole.stride())


def shortened(info: OpInfo, results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The op's results from those of a launch."""
    if not are_read(info):
        return list(results)
    outputs = len(info["outputs"])
    counts = {name: int(count) for name, count in zip(names(info), results[outputs:])}
    return [
        with_sizes(whole, output["counted"], counts)
        for whole, output in zip(results, info["outputs"])
    ]


def fill(info: OpInfo, places: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
    """Copies the op's results into those of a launch, whose sizes are the bounds."""
    counts: dict[str, int] = {}
    for output, place, result in zip(info["outputs"], places, results):
        for dim, name in output["counted"]:
            size = result.shape[dim]
            if counts.setdefault(name, size) != size or size > place.shape[dim]:
                raise _runtime.LaunchError(
                    f"{info['name']}: `{output['name']}` has {size} in dimension {dim}; expected "
                    f"the count `{name}`, "
                    + (
                        f"of which another result has {counts[name]}"
                        if counts[name] != size
                        else f"which is at most {place.shape[dim]}"
                    )
                )
        with_sizes(place, output["counted"], counts).copy_(result)
    for name, place in zip(names(info), places[len(info["outputs"]) :]):
        place.fill_(counts[name])
