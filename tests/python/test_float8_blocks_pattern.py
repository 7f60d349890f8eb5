"""A norm, or an activation, with a float8 result and a scale for each 128 values, as models write
them, by our ops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_sampling_pattern import found_in

Tensor = torch.Tensor
NAMES = ["rms_norm_float8", "silu_mul_float8"]


def deep_gemm(x: Tensor) -> tuple[Tensor, Tensor]:
    m, n = x.shape
    x_view = x.view(m, -1, 128)
    x_amax = x_view.abs().float().amax(dim=2).view(m, -1).clamp(1e-4)
    y = (x_view * (448.0 / x_amax.unsqueeze(2))).to(torch.float8_e4m3fn).view(m, n)
    return y, (x_amax / 448.0).view(m, -1)


def vllm(x: Tensor) -> tuple[Tensor, Tensor]:
    """QuantFP8.forward_native"""
    orig_shape, hidden_dim = x.shape, x.shape[-1]
    num_groups = (hidden_dim + 127) // 128
    x_grouped = x.view(-1, num_groups, 128)
    absmax = x_grouped.abs().max(dim=-1, keepdim=True)[0].float()
    scales = (absmax / 448.0).clamp(min=1.0 / (448.0 * 512.0))
    x_quant = (x_grouped / scales).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    x_quant = x_quant.view(-1, hidden_dim).view(orig_shape)
    scales = scales.squeeze(-1)
    return x_quant, scales.reshape(orig_shape[:-1] + (num_groups,))


def vllm_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """native_per_token_group_quant_fp8, of its tests"""
    finfo = torch.finfo(torch.float8_e4m3fn)
    x_ = x.reshape(x.numel() // 128, 128)
    amax = x_.abs().max(dim=-1, keepdim=True)[0].clamp(min=1e-10).to(torch.float32)
    x_s = amax / finfo.max
    x_q = (x_ / x_s).clamp(min=finfo.min, max=finfo.max).to(torch.float8_e4m3fn)
    return x_q.reshape(x.shape), x_s.reshape(x.shape[:-1] + (x.shape[-1] // 128,))


def by_hand(x: Tensor) -> tuple[Tensor, Tensor]:
    blocks = x.reshape(x.shape[0], x.shape[1] // 128, 128)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 448.0
    y = torch.clamp(blocks / scale, -448.0, 448.0).to(torch.float8_e4m3fn)
    return y.reshape(x.shape), scale.squeeze(2)


def norm(x: Tensor) -> Tensor:
    weight = torch.linspace(0.5, 2, x.shape[-1])
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def activation(x: Tensor) -> Tensor:
    return F.silu(x) * (x + 1)


MADE = [deep_gemm, vllm, vllm_groups, by_hand]


def agree(results: Any, expected: Any) -> None:
    for one, other in zip(results, expected, strict=True):
        assert one.dtype == other.dtype and one.stride() == other.stride()
    (y, scale), (expected_y, expected_scale) = results, expected
    torch.testing.assert_close(scale, expected_scale, equal_nan=True)
    # a value between two of float8 may be rounded to either, by an error of float32
    different = y.view(torch.uint8) != expected_y.view(torch.uint8)
    assert different.float().mean() < 0.01
    torch.testing.assert_close(y.float(), expected_y.float(), rtol=0.13, atol=2**-8, equal_nan=True)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("name, function", [*zip(NAMES, [norm, activation])])
def test_blocks_as_models_write_them(name: str, function: Any, made: Any, dynamic: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 384) * 10 ** torch.linspace(-3, 2, 384)

    def whole(x: Tensor) -> Any:
        return made(function(x))

    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    results, found = found_in(whole, NAMES, x)
    assert [(each.pattern, each.applied) for each in found] == [(name, True)], found
    agree(results, whole(x))


def test_blocks_of_zeros_and_of_what_is_no_number() -> None:
    x = torch.randn(3, 256)
    x[0, :128], x[1, 3], x[2] = 0, torch.nan, 0
    results, found = found_in(lambda x: vllm(activation(x)), NAMES, x)
    assert [each.applied for each in found] == [True], found
    agree(results, vllm(activation(x)))


def of_64(x: Tensor) -> tuple[Tensor, Tensor]:
    blocks = x.view(x.shape[0], -1, 64)
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448.0
    y = (blocks / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return y.view(x.shape), scale.squeeze(-1)


def across_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each of its blocks lies in two rows."""
    blocks = x.view(-1, 3, 128)
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448.0
    y = (blocks / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return y.view(x.shape), scale.squeeze(-1)


@pytest.mark.parametrize(
    "made, reason",
    [
        (of_64, "a scale is that of 64 values, not of 128"),
        (across_rows, "gate has rows of 192 values, which are not those of the blocks"),
    ],
)
def test_other_blocks_are_left(made: Any, reason: str) -> None:
    x = torch.randn(4, 192)
    results, found = found_in(lambda x: made(activation(x)), NAMES, x)
    assert [(each.applied, each.reason) for each in found] == [(False, reason)]
    agree(results, made(activation(x)))


def test_a_view_of_the_same_shape_stays_a_tensor_of_its_own() -> None:
    x = torch.randn(4, 8)
    (first, second, y), found = found_in(
        lambda x: (x.view(4, 8), x.reshape(x.shape), F.silu(x.view(-1, 8)) * x), ["silu_mul"], x
    )
    assert [each.applied for each in found] == [True]
    assert first is not x and second is not first and first.data_ptr() == x.data_ptr()
    torch.testing.assert_close(y, F.silu(x) * x)
