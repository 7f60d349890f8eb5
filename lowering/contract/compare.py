"""When a value of a compiled graph is the value that was traced. Integers and bools to the bit; floats up to what another order of arithmetic does."""

from __future__ import annotations

import torch

# Of the largest finite element: Inductor fuses arithmetic, in higher precision than eager has between its ops, and a dropped copy is wrong by far more.
_TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
    torch.complex64: 1e-4,
    torch.complex128: 1e-9,
}
_COARSE = 0.25  # floats of 8 bits


def identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same sizes and, but for NaN, the same values."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def first_difference(got: torch.Tensor, expected: torch.Tensor) -> tuple[int, ...] | None:
    """The index of the first element that differs; () for 0-d tensors, None where all are the same."""
    if identical(got, expected) or got.numel() == 0:
        return None
    differs = _differs(got.detach(), expected.detach())
    if not bool(differs.any()):
        return None
    return tuple(int(i) for i in differs.nonzero()[0]) if got.dim() else ()


def _differs(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    if not (got.is_floating_point() or got.is_complex()):
        return got != expected
    tolerance = _TOLERANCES.get(got.dtype, _COARSE)
    wide = torch.complex128 if got.is_complex() else torch.float64
    got, expected = got.to(wide), expected.to(wide)
    size = expected.abs()
    finite = size[torch.isfinite(size)]
    scale = float(finite.max()) if finite.numel() else 0.0
    return ~torch.isclose(got, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
