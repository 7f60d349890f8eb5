"""Norms whose steps models write in another way: shapes, writes, variances by moments, sums that
are rounded for others alone. Graphs run eagerly here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import substituting
import torch

from opaq import extern_kernels
from opaq.lowering.substitute import apply

extern_kernels.load_patterns()
Tensor = torch.Tensor
NAMES = ["add_rms_norm", "l2_norm", "layer_norm", "rms_norm"]
EPS = 1e-6


def compared(function: Callable[..., Any], *arguments: Tensor) -> list[str]:
    """The patterns that are replaced; results and gradients are compared with eager's, those of 16
    bits with those in float32."""
    torch.compiler.reset()
    with apply.collected() as found:
        compiled = torch.compile(function, backend=substituting.backend(*NAMES))
        ours = results_and_gradients(compiled, arguments)
    theirs = results_and_gradients(function, arguments)
    assert [each.dtype for each in ours] == [each.dtype for each in theirs]
    if arguments[0].dtype.itemsize == 2:
        exact = results_and_gradients(function, [each.float() for each in arguments])
        for our, their, wide in zip(ours, theirs, exact, strict=True):
            assert (our - wide).norm() <= 1.2 * (their - wide).norm() + 2**-9 * wide.norm()
    else:
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    return [each.pattern for each in found if each.applied]


def results_and_gradients(function: Any, arguments: Any) -> list[Tensor]:
    leaves = [each.detach().clone().requires_grad_() for each in arguments]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    gradients = torch.autograd.grad(sum(each.float().sin().sum() for each in results), leaves)
    return [*(each.detach() for each in results), *gradients]


def inputs(count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, dtype=dtype)
    x[1, 2] = 0
    return [x, *(torch.randn(12, dtype=dtype) for _ in range(count - 1))]


def written(x: Tensor, weight: Tensor) -> Tensor:
    mean = x.pow(2).mean(-1, keepdim=True)
    return (x * torch.rsqrt(mean.add_(EPS))).mul_(weight)


SCALED = {
    "unsqueezed at the end": lambda x: torch.rsqrt(x.pow(2).mean(-1) + EPS).unsqueeze(-1),
    "by None": lambda x: torch.rsqrt(EPS + (x * x).mean(-1).float()).to(x.dtype)[..., None],
    "of einsum": lambda x: (torch.einsum("...d,...d->...", x, x) / 12 + EPS).pow(-0.5)[..., None],
    "in numpy's words": lambda x: torch.rsqrt(x.pow(2).mean(axis=-1, keepdims=True) + EPS),
}


@pytest.mark.parametrize("way", SCALED)
def test_what_a_row_is_scaled_with(way: str) -> None:
    dtype = torch.float32 if way == "by None" else torch.float64
    of = SCALED[way]
    assert compared(lambda x, weight: x * of(x) * weight, *inputs(2, dtype)) == ["rms_norm"]
    assert compared(written, *inputs(2)) == ["rms_norm"]


@pytest.mark.parametrize(
    "of",
    [
        lambda x: torch.rsqrt(x.pow(2).mean(-1) + EPS).unsqueeze(1),  # of another dimension
        lambda x: torch.rsqrt(x.pow(2).mean(-1) + x.mean(-1).exp()).unsqueeze(-1),
        lambda x: torch.rsqrt(x.pow(2).mean(-1) + EPS).cumsum(-1).unsqueeze(-1),
    ],
)
def test_other_numbers_are_left(of: Any) -> None:
    x = torch.randn(4, 4, 4, dtype=torch.float64)
    assert compared(lambda x: x * of(x), x) == []


def by_moments(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = x.square().mean(-1, keepdim=True) - mean**2
    return (x - mean) * torch.rsqrt(variance + EPS) * weight + bias


def test_a_variance_by_moments() -> None:
    assert compared(by_moments, *inputs(3)) == ["layer_norm"]
    x, weight, bias = inputs(3, torch.float32)
    x = x * 0.1 + 30  # of which the difference of two means loses most digits
    torch.compiler.reset()
    compiled = torch.compile(by_moments, backend=substituting.backend("layer_norm"))
    exact = by_moments(x.double(), weight.double(), bias.double())
    ours, theirs = compiled(x, weight, bias) - exact, by_moments(x, weight, bias) - exact
    assert ours.norm() <= theirs.norm() / 10


@pytest.mark.parametrize(
    "variance",
    [
        lambda x: x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True),
        lambda x: x.square().mean(-1, keepdim=True) - x.mean(-2, keepdim=True) ** 2,
        lambda x: x.square().mean(-1, keepdim=True) - (x + 1).mean(-1, keepdim=True) ** 2,
        lambda x: x.mean(-1, keepdim=True) ** 2 - x.square().mean(-1, keepdim=True),
    ],
)
def test_other_differences_are_left(variance: Any) -> None:
    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(variance(x).abs() + EPS)

    assert compared(norm, torch.randn(4, 4, 4, dtype=torch.float64)) == []


def vllm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Its residual norm in PyTorch: what is normalized is the sum before it is rounded."""
    dtype = x.dtype
    x = x.to(torch.float32)
    x = x + residual.to(torch.float32)
    residual = x.to(dtype)
    variance = x.pow(2).mean(dim=-1, keepdim=True)
    x = x * torch.rsqrt(variance + EPS)
    return x.to(dtype) * weight, residual


def llama(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Its sum is rounded before it is normalized in float32."""
    total = x + residual
    wide = total.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype), total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sum_is_normalized_as_it_is_rounded_or_before(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual, weight = torch.randn(64, 256), torch.randn(64, 256), torch.randn(256).to(dtype)
    x, residual = (1000 * x).to(dtype), (residual - 1000 * x).to(dtype)  # they cancel

    def exact(unrounded: bool) -> Tensor:
        total = x.double() + residual.double()
        total = total if unrounded else total.to(dtype).double()
        return total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + EPS) * weight.double()

    def rounded(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = (x.float() + residual.float()).to(dtype)
        wide = total.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS) * weight
        return wide.to(dtype), total

    for function, unrounded, name in (
        (vllm, True, "add_rms_norm"),
        (llama, False, "add_rms_norm"),
        (rounded, False, "rms_norm"),
    ):
        torch.compiler.reset()
        compiled = torch.compile(function, backend=substituting.backend(*NAMES))
        with apply.collected() as found:
            y, total = compiled(x, residual, weight)
        assert [each.pattern for each in found if each.applied] == [name]
        assert torch.equal(total, x + residual)
        wanted = exact(unrounded)
        assert (y - wanted).norm() < 0.6 * torch.finfo(dtype).eps * wanted.norm()
        assert y.dtype == dtype


def test_a_sum_that_is_rounded_for_others_alone() -> None:
    x, weight = inputs(2, torch.float32)
    assert compared(vllm, x, torch.ones_like(x), weight) == ["add_rms_norm"]
    x, weight = inputs(2, torch.bfloat16)  # add_rms_norm has no gradient of it
    assert compared(vllm, x, torch.ones_like(x), weight) == ["rms_norm"]
    assert compared(llama, x, torch.ones_like(x), weight) == ["add_rms_norm"]

    def wide(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        total = x.float() + residual.float()
        y = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + EPS)
        return y.to(x.dtype) * weight, total.to(x.dtype), total * 2

    def wide_view(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        total = (x.float() + residual.float()).view(-1, 12)
        y = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + EPS)
        return y.to(x.dtype) * weight, total * 2

    x, weight = inputs(2, torch.bfloat16)
    for function in (wide, wide_view):
        assert "add_rms_norm" not in compared(function, x, torch.ones_like(x), weight)


def test_a_product_with_one_is_passed_over() -> None:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt((1.0 * x).pow(2).mean(-1, keepdim=True) + EPS) * (weight * 1.0)

    def before_a_write(x: Tensor, weight: Tensor) -> Tensor:
        y = x * 2
        squares = (y * 1.0).pow(2).mean(-1, keepdim=True)
        y = y.add_(1) * 1.0
        return y * torch.rsqrt(squares + EPS) * weight

    assert compared(norm, *inputs(2)) == ["rms_norm"]
    assert compared(before_a_write, *inputs(2)) == []
