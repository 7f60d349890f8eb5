"""Norms whose mean of squares, or mean and variance, models write in another way. Graphs run
eagerly here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import substituting
import torch
import torch.nn.functional as F

from opaq import extern_kernels
from opaq.lowering.substitute import apply

extern_kernels.load_patterns()
Tensor = torch.Tensor
N, EPS = 12, 1e-5


def replaced(function: Callable[..., Any], *arguments: Tensor, dynamic: bool = False) -> list[str]:
    """The patterns that are replaced; results and gradients are compared with eager's."""
    torch.compiler.reset()
    backend = substituting.backend("rms_norm", "layer_norm")
    with apply.collected() as found:
        compiled = torch.compile(function, backend=backend, dynamic=dynamic)
        ours = results_and_gradients(compiled, arguments)
    theirs = results_and_gradients(function, arguments)
    tolerance = {} if arguments[0].dtype.itemsize > 2 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)
    return [each.pattern for each in found if each.applied]


def results_and_gradients(function: Any, arguments: Any) -> list[Tensor]:
    leaves = [each.detach().clone().requires_grad_() for each in arguments]
    result = function(*leaves)
    return [result.detach(), *torch.autograd.grad(result.sin().sum(), leaves)]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 4, N, dtype=dtype)
    x[1, 2] = 0  # where the gradient of a norm alone is not that of a root
    return x, torch.randn(N, dtype=dtype), torch.randn(N, dtype=dtype)


MEANS = {
    "sum": lambda x: x.pow(2).sum(-1, keepdim=True) / x.shape[-1],
    "sum of products": lambda x: (x * x).sum(dim=-1, keepdim=True) / float(N),
    "sum times inverse": lambda x: (1 / N) * x.square().sum(-1, keepdim=True),
    "sum unsqueezed": lambda x: ((x * x).sum(-1) / N).unsqueeze(-1),
    "norm": lambda x: x.norm(dim=-1, keepdim=True).pow(2) / N,
    "norm of two": lambda x: torch.norm(x, 2, -1, keepdim=True) ** 2 * (1 / N),
    "scaled norm": lambda x: (x.norm(2, dim=-1, keepdim=True) * N**-0.5) ** 2,
    "divided norm": lambda x: (torch.linalg.norm(x, dim=-1, keepdim=True) / N**0.5).square(),
    "vector norm": lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / N,
    "einsum": lambda x: (torch.einsum("...d,...d->...", x, x) / N)[..., None],
    "einsum of three": lambda x: (torch.einsum("b n d, b n d -> b n", [x, x]) / N)[..., None],
}


@pytest.mark.parametrize("way", MEANS)
def test_means_of_squares(way: str) -> None:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(MEANS[way](x) + EPS) * weight

    x, weight, _ = inputs()
    assert replaced(norm, x, weight) == ["rms_norm"]
    assert replaced(norm, x[:0], weight) == ["rms_norm"]


def test_the_number_of_values_may_be_a_size_of_the_call() -> None:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + EPS) * weight

    def of_rows(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / x.shape[1] + EPS) * weight

    x, weight, _ = inputs()
    assert replaced(norm, x, weight, dynamic=True) == ["rms_norm"]
    assert replaced(of_rows, x, weight, dynamic=True) == []


def test_what_is_no_mean_of_squares_is_left() -> None:
    others: dict[str, Callable[[Tensor], Tensor]] = {
        "another number": lambda x: x.pow(2).sum(-1, keepdim=True) / (N + 1),
        "another inverse": lambda x: x.pow(2).sum(-1, keepdim=True) * 0.0833,
        "n": lambda x: x.pow(2).sum(-1, keepdim=True) * N,
        "the inverse": lambda x: x.pow(2).sum(-1, keepdim=True) / (1 / N),
        "norm of one": lambda x: x.norm(1, dim=-1, keepdim=True) ** 2 / N,
        "norm of rows": lambda x: x.norm(dim=(1, 2), keepdim=True) ** 2 / N,
        "scaled by n": lambda x: (x.norm(dim=-1, keepdim=True) / N) ** 2,
        "einsum of others": lambda x: torch.einsum("bnd,bn->b", x, x.sum(-1))[:, None, None] / N,
        "einsum of rows": lambda x: torch.einsum("bnd,bnd->b", x, x)[:, None, None] / N,
    }
    x, weight, _ = inputs()
    for way, mean in others.items():

        def norm(x: Tensor, weight: Tensor, mean: Any = mean) -> Tensor:
            return x * torch.rsqrt(mean(x) + EPS) * weight

        assert replaced(norm, x, weight) == [], way


def test_an_eps_beside_the_norm_is_another_function() -> None:
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.norm(2, dim=-1, keepdim=True) * N**-0.5 + EPS) * weight

    assert replaced(norm, *inputs()[:2]) == []


# ---- a norm, or a root of a mean, that is not below a tiny number --------------------------------

BOUNDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normalize": lambda x, weight: F.normalize(x, dim=-1) * N**0.5 * weight,
    "weight first": lambda x, weight: N**0.5 * weight * F.normalize(x, p=2, dim=x.dim() - 1),
    "an offset": lambda x, weight: F.normalize(x, dim=-1) * N**0.5 * (weight + 1),
    "no weight": lambda x, weight: (F.normalize(x, dim=-1) * N**0.5) + weight,
    "a root": lambda x, weight: x / (N**-0.5 * x.norm(2, -1, True)).clamp(min=1e-8) * weight,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("way", BOUNDED)
def test_norms_that_are_bounded(way: str, dtype: torch.dtype) -> None:
    x, weight, _ = inputs(dtype)
    if dtype == torch.float64:  # eager's gradients lose digits there
        x[0, 1] *= 1e-4
    assert replaced(BOUNDED[way], x, weight) == ["rms_norm"]


def test_bounded_norms_after_a_sum() -> None:
    def after(x: Tensor, residual: Tensor, weight: Tensor, way: str) -> Tensor:
        total = x + residual
        return BOUNDED[way](total, weight) * total

    x, weight, _ = inputs()
    for way in ("normalize", "an offset", "a root"):
        compiled = torch.compile(after, backend=substituting.backend("add_rms_norm"))
        with apply.collected() as found:
            result = compiled(x, x * 2, weight, way)
        assert [each.applied for each in found] == [True], way
        torch.testing.assert_close(result, after(x, x * 2, weight, way))


@pytest.mark.parametrize(
    "norm, reason",
    [
        (lambda x: F.normalize(x, dim=-1) * 3.0, "the scale is not the root of the size of a row"),
        (
            lambda x: F.normalize(x, dim=-1, eps=1e-3) * N**0.5,
            "the least norm is not from 1e-14 to 1e-8",
        ),
        (lambda x: x / (x.norm(dim=-1, keepdim=True) / N).clamp(min=1e-8), None),
        (lambda x: F.normalize(x, dim=1) * N**0.5, None),
        (lambda x: F.normalize(x, p=1, dim=-1) * N**0.5, None),
        (lambda x: x / (x.norm(dim=-1, keepdim=True) * N**-0.5).clamp(max=1e-8), None),
    ],
)
def test_bounded_norms_that_are_left(norm: Any, reason: str | None) -> None:
    x = inputs()[0]
    with apply.collected() as found:
        torch.compiler.reset()
        result = torch.compile(norm, backend=substituting.backend("rms_norm"))(x)
    torch.testing.assert_close(result, norm(x), equal_nan=True)
    assert [each.reason for each in found] == ([] if reason is None else [reason])


@pytest.mark.parametrize("keywords", [{"unbiased": False}, {"correction": 0}])
def test_mean_and_variance_together(keywords: Any) -> None:
    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, keepdim=True, **keywords)
        return (x - mean) * torch.rsqrt(variance + EPS) * weight + bias

    assert replaced(norm, *inputs()) == ["layer_norm"]


def test_another_variance_is_left() -> None:
    def unbiased(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + EPS) * weight + bias

    def exchanged(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mean, variance = torch.var_mean(x, -1, keepdim=True, correction=0)
        return (x - mean) * torch.rsqrt(variance * variance + EPS) * weight + bias

    for function in (unbiased, exchanged):
        assert replaced(function, *inputs()) == []


@torch.no_grad()
def test_what_is_written_to_between_keeps_its_place() -> None:
    def of_sum(x: Tensor, weight: Tensor) -> Tensor:
        x = x + 0
        total = x.square().sum(-1, keepdim=True)
        x.mul_(2)
        return total / N * x

    def of_norm(x: Tensor, weight: Tensor) -> Tensor:
        x = x + 0
        norm = x.norm(dim=-1, keepdim=True)
        x.mul_(2)
        return norm**2 * x

    x, weight, _ = inputs()
    for function in (of_sum, of_norm):
        compiled = torch.compile(function, backend=substituting.backend("rms_norm"))
        torch.testing.assert_close(compiled(x, weight), function(x, weight))


def test_half_the_digits_are_added_up_in_float32() -> None:
    def einsum(x: Tensor) -> Tensor:
        return torch.einsum("nd,nd->n", x, x)

    def norm(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=-1) ** 2

    x = torch.full((2, 4096), 1e-4, dtype=torch.float16)  # whose square is no such number
    for function in (einsum, norm):
        compiled = torch.compile(function, backend=substituting.backend("rms_norm"))
        torch.testing.assert_close(compiled(x), function(x), rtol=2e-3, atol=0)
