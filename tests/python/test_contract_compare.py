"""How the contract check compares two tensors: against PyTorch's own comparison in float64, for
every dtype and layout.
"""

from __future__ import annotations

import pytest
import torch

from opaq.lowering.contract.compare import (
    CLOSE,
    OTHER_SHAPE,
    SAME_BITS,
    SAME_LAYOUT,
    compare,
    index_of,
)

TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
    torch.complex64: 1e-4,
    torch.complex128: 1e-9,
    torch.float8_e4m3fn: 0.25,
    torch.float8_e5m2: 0.25,
    torch.float8_e4m3fnuz: 0.25,
    torch.float8_e5m2fnuz: 0.25,
}
SMALL = [dtype for dtype in TOLERANCES if dtype.itemsize <= 2]


def expected(got: torch.Tensor, wanted: torch.Tensor) -> int:
    """By PyTorch: the number of the first element that is not close."""
    tolerance = TOLERANCES[got.dtype]
    a, b = got.to(torch.float64).flatten(), wanted.to(torch.float64).flatten()
    size = b.abs()
    finite = size[size.isfinite()]
    scale = float(finite.max()) if finite.numel() else 0.0
    apart = (~torch.isclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)).nonzero()
    return int(apart[0]) if apart.numel() else CLOSE


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_every_bit_pattern_of_a_small_float(dtype: torch.dtype) -> None:
    bits = (
        torch.arange(256, dtype=torch.uint8)
        if dtype.itemsize == 1
        else torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    )
    values = bits.view(dtype)
    assert compare(values, values.clone()) in (SAME_LAYOUT, SAME_BITS)
    # Each value by itself, with one near it and one far away: the tolerance depends on all values.
    chosen = bits if dtype.itemsize == 1 else bits[:: 1 << 6]
    for pattern in chosen.tolist():
        one = torch.tensor([pattern], dtype=bits.dtype).view(dtype)
        for other in (pattern ^ 1, pattern ^ 4, pattern ^ (1 << (dtype.itemsize * 8 - 3))):
            two = torch.tensor([other], dtype=bits.dtype).view(dtype)
            assert compare(one, two) == expected(one, two), (one, two)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_floats_of_many_sizes_and_places(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    tolerance = TOLERANCES[dtype]
    for count in (1, 7, 2048, 5001):
        for _ in range(4):
            wanted = torch.randn(count, dtype=torch.float64)
            near = (
                wanted
                * (1 + 0.3 * tolerance * torch.randn(count, dtype=torch.float64).clamp(-1, 1))
            ).to(dtype)
            wanted = wanted.to(dtype)
            assert compare(near, wanted) < 0
            at = int(torch.randint(count, ()))
            for value in (float(near[at]) + 3, float("nan"), float("inf"), -float("inf")):
                far = near.clone()
                far[at] = value
                assert compare(far, wanted) == at == expected(far, wanted)
                assert compare(wanted, far) == expected(wanted, far)


def test_close_by_the_largest_element() -> None:
    wanted = torch.tensor([1000.0, 1e-3])
    assert compare(torch.tensor([1000.0, 2e-3]), wanted) == CLOSE
    assert compare(torch.tensor([1000.0, 0.2]), wanted) == 1


def test_infinity_nan_and_zero() -> None:
    nan, inf = float("nan"), float("inf")
    quiet = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert (
        compare(quiet, torch.tensor([nan])) == CLOSE
        and compare(quiet, torch.tensor([nan]), bits=True) == 0
    )
    assert compare(torch.tensor([inf, 1.0]), torch.tensor([inf, 1.00001])) == CLOSE
    assert compare(torch.tensor([1.0, 5.0]), torch.tensor([1.0, inf])) == 1
    assert compare(torch.tensor([inf]), torch.tensor([-inf])) == 0
    assert (
        compare(torch.tensor([-0.0]), torch.tensor([0.0])) == CLOSE
        and compare(torch.tensor([-0.0]), torch.tensor([0.0]), bits=True) == 0
    )


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str
)
def test_integers_to_the_bit(dtype: torch.dtype) -> None:
    wanted = torch.arange(60).reshape(3, 4, 5).remainder(2).to(dtype)
    got = wanted.clone()
    got[1, 2, 3] = not got[1, 2, 3]
    assert compare(got, wanted) == 33 and index_of(33, got.shape) == (1, 2, 3)
    assert compare(got.transpose(0, 2), wanted.transpose(0, 2).contiguous()) == 3 * 12 + 2 * 3 + 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex(dtype: torch.dtype) -> None:
    wanted = torch.randn(3, 5, dtype=dtype)
    got = wanted * (1 + 1e-12)
    assert compare(got, wanted) < 0
    got[1, 2] += 1j
    assert compare(got, wanted) == 7 and compare(got.t(), wanted.t()) == 2 * 3 + 1
    assert compare(wanted.conj(), wanted.conj().resolve_conj()) == SAME_BITS
    assert compare(wanted.conj().imag, (-wanted.imag).clone()) == SAME_BITS  # with the negative bit


def test_layouts() -> None:
    base = torch.randn(6, 8)
    for view in (
        base.t(),
        base[::2, 1::3],
        base[:, 2:3].expand(6, 4),
        base[3],
        base[3, 4],
        base[:0],
    ):
        dense = view.contiguous().clone()
        assert compare(view, dense) in (SAME_BITS, SAME_LAYOUT)
        if view.numel():
            dense.view(-1)[-1] += 1
            assert compare(view, dense) == view.numel() - 1 == compare(dense, view)
    aligned = torch.empty(1024)
    start = -aligned.data_ptr() // 4 % 64
    same, moved = aligned[start : start + 4].zero_(), aligned[start + 65 : start + 69].zero_()
    assert (
        compare(same, aligned[start + 64 : start + 68].zero_()) == SAME_LAYOUT
        and compare(same, moved) == SAME_BITS
    )
    assert compare(base, base.double()) == OTHER_SHAPE == compare(base, base[:5])
