"""Whether a value of a compiled graph is the one of the traced graph. The runtime compares them
(runtime/check/compare.cpp), in the memory of the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from opaq import _runtime

# Results of `compare` if no element differs (see opaq._runtime.compare_tensors).
SAME_LAYOUT, SAME_BITS, CLOSE, OTHER_SHAPE = -1, -2, -3, -4


def compare(got: torch.Tensor, expected: torch.Tensor, *, bits: bool = False) -> int:
    """The number of the first element that differs, or one of the four above. bits: compare floats
    bit by bit, too.
    """
    found = _runtime.compare_tensors(got, expected, bits)
    if found is not None:
        return found
    if not bits and got.dtype == expected.dtype and torch.equal(got, expected):
        same_layout = (
            got.is_cuda
            and got.stride() == expected.stride()
            and (got.data_ptr() - expected.data_ptr()) % 256 == 0
        )
        return SAME_LAYOUT if same_layout else SAME_BITS
    got, expected = (value.detach().resolve_conj().resolve_neg().cpu() for value in (got, expected))
    found = _runtime.compare_tensors(got, expected, bits)
    assert found is not None
    return SAME_BITS if found == SAME_LAYOUT else found


def index_of(number: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """The index of the element that comes `number`th in row-major order."""
    index: list[int] = []
    for size in reversed(sizes):
        index.insert(0, number % size)
        number //= size
    return tuple(index)
