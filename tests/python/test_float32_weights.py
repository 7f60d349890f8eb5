"""Norms of rows of 16 bits whose weights are in float32, as mixed precision keeps them: what models
write is found, and results and gradients are as accurate as eager's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import substituting
import torch
import torch.nn.functional as F
from kernel_checks import (
    NORM_LENGTHS,
    cuda,
    misfits,
    plan,
    serves_on_many_multiprocessors,
    serving,
)

from opaq import extern_kernels
from opaq.lowering.substitute import apply

extern_kernels.load_patterns()
Tensor = torch.Tensor
NAMES = ["add_rms_norm", "layer_norm", "rms_norm"]
EPS = 1e-6


def scaled(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    wide = x.float()
    y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return y if dtype is None else y.to(dtype)


def apart(x: Tensor) -> Tensor:
    wide = x.float()
    middle = wide - wide.mean(-1, keepdim=True)
    return middle * torch.rsqrt(middle.pow(2).mean(-1, keepdim=True) + EPS)


def after_a_sum(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    return (scaled(total) * weight).to(x.dtype), total


# how it is written: the patterns, the function
RMS: dict[str, tuple[list[str], Callable[..., Any]]] = {
    "rounded at the end": (["rms_norm"], lambda x, w: (scaled(x) * w).to(x.dtype)),
    "rounded twice": (["rms_norm"], lambda x, w: (w * scaled(x, x.dtype)).to(x.dtype)),
    "of PyTorch": (["rms_norm"], lambda x, w: F.rms_norm(x.float(), (64,), w, EPS).to(x.dtype)),
    "Gemma": (["rms_norm"], lambda x, w: (scaled(x) * (1.0 + w.float())).type_as(x)),
}
LAYER: dict[str, Callable[..., Any]] = {
    "open_clip": lambda x, w, b: F.layer_norm(x.to(w.dtype), (64,), w, b, EPS).to(x.dtype),
    "by hand": lambda x, w, b: (apart(x) * w + b).to(x.dtype),
}


def compared(function: Callable[..., Any], *arguments: Tensor) -> list[str]:
    """The patterns that are replaced; results and gradients are compared with those in float64."""
    torch.compiler.reset()
    with apply.collected() as found:
        compiled = torch.compile(function, backend=substituting.backend(*NAMES))
        ours = results_and_gradients(compiled, arguments)
    theirs = results_and_gradients(function, arguments)
    exact = results_and_gradients(function, [each.double() for each in arguments])
    assert [each.dtype for each in ours] == [each.dtype for each in theirs]
    for our, their, wide in zip(ours, theirs, exact, strict=True):
        assert (our - wide).norm() <= 1.2 * (their - wide).norm() + 2**-20 * wide.norm()
    return [each.pattern for each in found if each.applied]


def results_and_gradients(function: Any, arguments: Any) -> list[Tensor]:
    leaves = [each.detach().clone().requires_grad_() for each in arguments]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    gradients = torch.autograd.grad(sum(each.double().sum() for each in results), leaves)
    return [*(each.detach() for each in results), *gradients]


def inputs(rows: int, parameters: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        *(torch.randn(4, 6, 64).to(dtype) for _ in range(rows)),
        *(torch.randn(64) for _ in range(parameters)),
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", RMS)
def test_rms_norm(way: str, dtype: torch.dtype) -> None:
    names, function = RMS[way]
    assert compared(function, *inputs(1, 1, dtype)) == names


@pytest.mark.parametrize("way", LAYER)
def test_layer_norm(way: str) -> None:
    assert compared(LAYER[way], *inputs(1, 2, torch.bfloat16)) == ["layer_norm"]


def test_a_sum_before_it() -> None:
    assert compared(after_a_sum, *inputs(2, 1, torch.bfloat16)) == ["add_rms_norm"]


def test_a_bias_alone() -> None:
    x, _, bias = inputs(1, 2, torch.bfloat16)
    (y, *_), grad = extern_kernels.layer_norm(x, None, bias), torch.ones(4, 6, 64)
    expected = F.layer_norm(x.float(), (64,), None, bias)
    torch.testing.assert_close(y, expected.to(x.dtype))
    leaf = bias.clone().requires_grad_()
    extern_kernels.layer_norm(x, None, leaf)[0].backward(grad.to(x.dtype))
    assert leaf.grad.dtype == torch.float32
    torch.testing.assert_close(leaf.grad, torch.full((64,), 24.0))


def test_results_in_float32_are_left() -> None:
    """Promotion gives these where nothing is rounded: the op's are in the dtype of the rows."""
    wide = RMS["rounded at the end"][1]
    assert compared(lambda x, w: scaled(x) * w, *inputs(1, 1, torch.bfloat16)) == []
    assert compared(lambda x, w: wide(x, w).float(), *inputs(1, 1, torch.bfloat16)) == ["rms_norm"]
    # what is rounded before it is weighted is a norm without a weight
    llama = lambda x, w: w * scaled(x, x.dtype)  # noqa: E731
    assert compared(llama, *inputs(1, 1, torch.bfloat16)) == ["rms_norm"]


def test_they_are_a_form_of_their_own() -> None:
    """Measurements of weights of the rows' dtype say nothing about them."""
    x, weight = inputs(1, 1, torch.bfloat16)
    torch.compiler.reset()
    with apply.collected() as found:
        torch.compile(RMS["rounded at the end"][1], backend=substituting.backend("all"))(x, weight)
    reasons = [each.reason for each in found]
    text = "it was not measured for 24 x 64 values on cpu (float32 weights)"
    assert any(each.startswith(text) for each in reasons), reasons


@pytest.mark.parametrize("length", NORM_LENGTHS)
def test_cuda_plans(length: int) -> None:
    """Kernels of two dtypes; of two other dtypes, and for weights that differ, there are none."""
    half, wide = torch.bfloat16, torch.float32
    x, rows = cuda((64, length), half), cuda((64,), wide)
    w, narrow, other = (cuda((length,), each) for each in (wide, half, torch.float16))
    kernels = extern_kernels
    for op, arguments in [
        (kernels.rms_norm, [x, w]),
        (kernels.add_rms_norm, [x, x, w]),
        (kernels.rms_norm_backward, [x, rows, x, w, rows]),
        (kernels.layer_norm, [x, w, w]),
        (kernels.layer_norm, [x, w, None]),
        (kernels.layer_norm, [x, None, w]),
        (kernels.layer_norm_backward, [x, rows, rows, x, w, rows, rows]),
    ]:
        assert "<__nv_bfloat16, float" in plan(op, *arguments)["entry"]
        refused = [other if each is w else each for each in arguments]
        assert plan(op, *refused)["implementation"] == "reference"
    assert plan(kernels.layer_norm, x, w, narrow)["implementation"] == "reference"


@pytest.mark.parametrize("packs", [2049, 8192, 16384, 32768])
def test_gradients_of_wide_rows_have_kernels_of_two_dtypes(packs: int) -> None:
    rows, w = cuda((512,), torch.float32), cuda((8 * packs,), torch.float32)
    x, added = (cuda((512, 8 * packs), torch.bfloat16) for _ in range(2))
    for op, arguments in [
        (extern_kernels.rms_norm_backward, [x, rows, x, w, rows]),
        (extern_kernels.rms_norm_backward, [x, rows, x, w, rows, added]),
        (extern_kernels.layer_norm_backward, [x, rows, rows, x, w, rows, rows]),
    ]:
        assert "_pipelined<__nv_bfloat16, float" in plan(op, *arguments)["entry"]


@pytest.mark.parametrize(
    ("shape", "dtype", "weights", "way"),
    [
        ((64, 32776), torch.bfloat16, torch.float32, "<__nv_bfloat16, float, 288, 8, 2, 11>"),
        ((512, 65536), torch.float16, torch.float32, "<__half, float, 512, 8, 2, 6>"),
        ((512, 65536), torch.float32, torch.float32, "<float, float, 512, 16, 2, 7>"),
        ((512, 65536), torch.bfloat16, torch.bfloat16, ""),
        ((512, 65544), torch.bfloat16, torch.float32, ""),
        ((4096, 65536), torch.bfloat16, torch.float32, ""),
        ((4096, 65536), torch.float32, torch.float32, ""),
        ((512, 32768), torch.float32, torch.float32, ""),
    ],
)
def test_few_wide_rows_of_layer_norm_backward_are_taken_two_at_a_time(
    shape: tuple[int, int], dtype: torch.dtype, weights: torch.dtype, way: str
) -> None:
    """By clusters of 8 or 16 blocks, of which 15 or 7 are resident; each has a block of rows."""
    op, rows = extern_kernels.layer_norm_backward, cuda(shape[:1], torch.float32)
    x = cuda(shape, dtype)
    facts = (x, rows, rows, x, cuda(shape[-1:], weights), rows, rows)
    if not way:
        assert len(misfits(op, facts, "sm_90a", "cuda:two-rows")) > 1
        return
    entry = serves_on_many_multiprocessors(op, facts, "cuda:two-rows")
    assert entry == f"layer_norm_backward_pipelined{way}"
    launch = serving(op, facts, "sm_90a")[1]
    assert launch["grid"][0] == (56 if dtype == torch.float32 else 8 * 15)
