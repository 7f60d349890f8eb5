"""Kernels whose bulk copies fill a ring in shared memory again and again: the same bits each time.

A copy that came before a read was done gave other bits in one of 15,000 to 150,000 launches, where
the memory is busy; so there are as many launches here as fit into a few seconds.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

import opaq
from opaq.extern_kernels.layer_norm.layer_norm import layer_norm, layer_norm_backward
from opaq.extern_kernels.rms_norm.add_rms_norm import add_rms_norm
from opaq.extern_kernels.rms_norm.rms_norm import rms_norm, rms_norm_backward
from opaq.extern_kernels.scan.cumsum import cumsum

SECONDS = 4


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def _gradient(norm: opaq.Op, rows: int, length: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments of the gradient of a norm with a weight in float32."""
    grad_y, x = _random(rows, length, dtype=dtype), _random(rows, length, dtype=dtype)
    weight = _random(length, dtype=torch.float32)
    if norm is rms_norm:
        return grad_y, None, x, weight, rms_norm(x, weight)[1], None, 0.0, True
    return grad_y, None, None, x, weight, *layer_norm(x, weight, None)[1:], True


# What has a ring, the op, and its arguments.
CASES = {
    "rms_norm": ("cuda:pipelined", rms_norm, lambda: (_random(131, 65528), _random(65528))),
    "add_rms_norm": (
        "cuda:pipelined",
        add_rms_norm,
        lambda: (_random(128, 65536), _random(128, 65536), _random(65536)),
    ),
    "layer_norm": (
        "cuda:pipelined",
        layer_norm,
        lambda: (_random(2048, 65536), _random(65536), _random(65536)),
    ),
    "rms_norm gradient": (
        "cuda:one-row",
        rms_norm_backward,
        lambda: _gradient(rms_norm, 512, 131072, torch.bfloat16),
    ),
    "rms_norm gradient, rows read twice": (
        "cuda:twice-96kb",
        rms_norm_backward,
        lambda: _gradient(rms_norm, 512, 131072, torch.float32),
    ),
    "layer_norm gradient": (
        "cuda:one-row",
        layer_norm_backward,
        lambda: _gradient(layer_norm, 512, 65536, torch.bfloat16),
    ),
    "cumsum": ("cuda:ring", cumsum, lambda: (_random(1, 1 << 25, dtype=torch.float32),)),
}


def _bits(results: Any) -> list[torch.Tensor]:
    tensors = [results] if isinstance(results, torch.Tensor) else results
    return [each.view(torch.int16 if each.itemsize == 2 else torch.int32) for each in tensors]


@pytest.mark.parametrize("name", CASES)
def test_a_copy_comes_after_all_reads_of_what_it_replaces(name):
    way, op, make = CASES[name]
    with opaq.prefer(op, [way]):
        _check(op, make)


def _check(op: opaq.Op, make: Any) -> None:
    inputs = [make() for _ in range(2)]  # by turns, so that what was there before is something else
    first = [[each.clone() for each in _bits(op(*of_turn))] for of_turn in inputs]
    size = sum(each.numel() * each.itemsize for each in first[0])
    launches = max(4, min(40, (1 << 29) // size)) // 2 * 2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [_bits(op(*inputs[i % 2])) for i in range(launches)]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        graph.replay()
        wrong = [
            (actual != expected).sum()
            for i, of_launch in enumerate(results)
            for actual, expected in zip(of_launch, first[i % 2])
        ]
        assert torch.stack(wrong).sum() == 0
