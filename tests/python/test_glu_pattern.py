"""Gated activations and norms as models write them by hand: what is found, and near misses that are
not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import substituting
import torch
import torch.nn.functional as F

from opaq import extern_kernels
from opaq.lowering.substitute import apply

extern_kernels.load_patterns()
Tensor = torch.Tensor
NAMES = ["gelu_mul", "layer_norm", "rms_norm", "silu_mul", "softmax"]
EPS = 1e-6


def found_in(function: Any, *arguments: Any) -> list[Any]:
    """What is found, by name, with the reason where it is left; the changed graph, run eagerly,
    gives what the function gives."""
    torch.compiler.reset()
    with apply.collected() as found:
        result = torch.compile(function, backend=substituting.backend(*NAMES))(*arguments)
    torch.testing.assert_close(result, function(*arguments), equal_nan=True)
    return [each.pattern if each.applied else each.reason for each in found]


def tanh_form(gate: Tensor, slope: float = math.sqrt(2 / math.pi), cube: float = 0.044715) -> Any:
    return gate * 0.5 * (1.0 + torch.tanh(slope * (gate + cube * torch.pow(gate, 3.0))))


def erf_form(gate: Tensor, root: float = math.sqrt(2.0)) -> Any:
    return gate * 0.5 * (1.0 + torch.erf(gate / root))


def halves(function: Any, first: bool = False) -> Any:
    def of_halves(gate: Tensor, up: Tensor) -> Tensor:
        up, gate = torch.cat([up, gate], -1).chunk(2, -1)
        return up * function(gate) if first else function(gate) * up

    return of_halves


GATED = {
    "diffusers": ("gelu_mul", halves(F.gelu, True)),
    "gemma": ("gelu_mul", halves(lambda gate: F.gelu(gate, approximate="tanh"))),
    "a module": ("gelu_mul", halves(torch.nn.GELU("tanh"))),
    "gelu_new": ("gelu_mul", halves(tanh_form)),
    "gelu by erf": ("gelu_mul", halves(erf_form)),
    "a rounded number": ("gelu_mul", halves(lambda gate: tanh_form(gate, 0.7978845608), True)),
    "sigmoid last": ("silu_mul", lambda gate, up: gate * up * gate.sigmoid()),
    "expit": ("silu_mul", lambda gate, up: torch.special.expit(gate) * gate * up),
    "up divided": ("silu_mul", lambda gate, up: up * gate / (1 + torch.exp(-gate))),
}


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gated_activation_is_found(name: str, dtype: torch.dtype) -> None:
    pattern, function = GATED[name]
    gate, up = torch.randn(2, 4, 8, dtype=dtype)
    found = found_in(function, gate, up)
    if name == "a rounded number" and dtype == torch.float64:
        assert "0.7978845608 is not the number of gelu, 0.7978845608028654" in found
    else:
        assert pattern in found


NEAR = {
    "another slope": lambda gate, up: tanh_form(gate, 0.79) * up,
    "another cube": lambda gate, up: tanh_form(gate, cube=0.0447) * up,
    "another root": lambda gate, up: erf_form(gate, 1.4) * up,
    "gelu of another": lambda gate, up: 0.5 * up * (1 + torch.erf(gate / math.sqrt(2))) * up,
    "a quick gelu": lambda gate, up: gate * torch.sigmoid(1.702 * gate) * up,
    "of another sigmoid": lambda gate, up: gate * up * torch.sigmoid(up + 1),
    "a row of up": lambda gate, up: F.gelu(gate) * up[:1],
}


@pytest.mark.parametrize("name", NEAR)
def test_what_is_no_gated_activation_is_left(name: str) -> None:
    assert not set(NAMES) & set(found_in(NEAR[name], *torch.randn(2, 4, 8)))


def mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


NORMS = {
    "parts twice": (
        "layer_norm",
        lambda x, w, b: w * ((x - mean(x)) / torch.sqrt(mean((x - mean(x)) ** 2) + EPS)) + b,
    ),
    "weight times": (
        "layer_norm",
        lambda x, w, b: (
            w * (x - mean(x)) / torch.sqrt(torch.var(x, -1, correction=0, keepdim=True) + EPS) + b
        ),
    ),
    "weight first": ("rms_norm", lambda x, w, b: w * x * torch.rsqrt(mean(x * x) + EPS)),
    "weight first, divided": ("rms_norm", lambda x, w, b: w * x / (mean(x**2) + EPS) ** 0.5),
    "exponentials": (
        "softmax",
        lambda x, w, b: (
            torch.exp(x - x.amax(-1, True)) / torch.exp(x - x.amax(-1, True)).sum(-1, True)
        ),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_found(name: str) -> None:
    pattern, function = NORMS[name]
    x = torch.randn(4, 8)
    x[0], x[1] = 0, 1e15
    assert found_in(function, x, torch.randn(8), torch.randn(8)) == [pattern]


NO_NORMS = {
    "eps outside": lambda x, w, b: x / (torch.sqrt(mean(x * x)) + EPS) * w,
    "a sum": lambda x, w, b: x * torch.rsqrt((x * x).sum(-1, True) + EPS) * w,
    "an unbiased variance": lambda x, w, b: (
        (x - mean(x)) * torch.rsqrt(x.var(-1, keepdim=True) + EPS) * w + b
    ),
    "another mean": lambda x, w, b: (
        w * ((x - mean(x)) / torch.sqrt(mean((x - mean(x + 1)) ** 2) + EPS)) + b
    ),
    "another dim": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + EPS) * w,
    "exponentials of two": lambda x, w, b: (
        torch.exp(x - x.amax(-1, True)) / torch.exp(x - x.amin(-1, True)).sum(-1, True)
    ),
    "exponentials of columns": lambda x, w, b: (
        torch.exp(x - x.amax(-1, True)) / torch.exp(x - x.amax(-1, True)).sum(0, True)
    ),
}


@pytest.mark.parametrize("name", NO_NORMS)
def test_what_is_no_norm_is_left(name: str) -> None:
    found = found_in(NO_NORMS[name], torch.randn(4, 8), torch.randn(8), torch.randn(8))
    assert not set(NAMES) & set(found)


def test_a_norm_times_a_matrix_is_one_without_a_weight() -> None:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return x * torch.rsqrt(mean(x * x) + EPS) * w

    found = found_in(function, torch.randn(4, 8), torch.randn(4, 8), torch.randn(8))
    assert found == ["rms_norm"]


def test_a_part_that_is_computed_anew_after_a_write_is_another() -> None:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        x = x * 2
        apart = x - mean(x)
        x.mul_(3)
        return apart / torch.sqrt(mean((x - mean(x)) ** 2) + EPS) * w + b

    found = found_in(function, torch.randn(4, 8), torch.randn(8), torch.randn(8))
    assert "layer_norm" not in found
