"""Writes into large tensors copy nothing: the peak of memory while a compiled graph runs stays far
below the size of what it writes to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import opaq

SOURCE = """
__global__ void append(float* cache, const float* value, long position, int width) {
  cache[position * width + threadIdx.x] = value[threadIdx.x];
}"""
ROWS, WIDTH, LAYERS = 1 << 18, 128, 4  # 128 MiB a layer
LAYER_BYTES = ROWS * WIDTH * 4
WAYS: dict[str, dict[str, Any]] = {
    "inductor": {},
    "opaq": {"backend": "opaq", "options": {"strict": True}},
    "cpp": {"options": {"cpp_wrapper": True}},
}


def append_op(name: str, cache: str) -> opaq.Op:
    op = opaq.op(f"{name}({cache}, Tensor value, SymInt position) -> ()")
    return op.cuda(
        source=SOURCE, entry="append", grid=1, block=WIDTH, args="cache, value, position, 128"
    )


def peak_bytes(call: Callable[[], Any]) -> int:
    """Beyond what is allocated when the call begins; after a first one, which compiles."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cache", ["Tensor(a!) cache", "Tensor(a!)? cache"])
def test_a_cache(unique: str, way: str, cache: str) -> None:
    """Rows are written into views of layers of one tensor, and then read."""
    op = append_op(unique, cache)

    def step(cache: torch.Tensor, value: torch.Tensor, position: int) -> torch.Tensor:
        total = value
        for layer in range(LAYERS):
            op(cache[layer], total, position)
            total = cache[layer, : position + 1].sum(0)
        return total

    compiled = torch.compile(step, fullgraph=True, dynamic=True, **WAYS[way])
    caches = torch.zeros(LAYERS, ROWS, WIDTH, device="cuda")
    value = torch.randn(WIDTH, device="cuda")
    used = peak_bytes(lambda: compiled(caches, value, 3))
    assert used < LAYER_BYTES // 16, used
    expected = torch.zeros(LAYERS, 4, WIDTH, device="cuda")
    expected[:, 3] = value
    assert torch.equal(caches[:, :4], expected) and not caches[:, 4:].any()


@pytest.mark.parametrize("way", WAYS)
def test_a_list_of_caches(unique: str, way: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!)[] caches, Tensor value, SymInt position) -> ()")
    op.cuda(
        source="struct Caches { float* at[4]; };"
        "__global__ void append(const Caches caches, const float* value, long position, int width)"
        "{ caches.at[blockIdx.x][position * width + threadIdx.x] = value[threadIdx.x]; }",
        entry="append",
        grid="len(caches)",
        block=WIDTH,
        args=[opaq.struct("Caches", at="[*caches, ...]"), "value", "position", "128"],
    )

    def step(caches: torch.Tensor, value: torch.Tensor, position: int) -> torch.Tensor:
        op([caches[layer] for layer in range(LAYERS)], value * 2, position)
        return caches[:, position].sum(0)

    compiled = torch.compile(step, fullgraph=True, **WAYS[way])
    caches = torch.zeros(LAYERS, ROWS, WIDTH, device="cuda")
    value = torch.randn(WIDTH, device="cuda")
    used = peak_bytes(lambda: compiled(caches, value, 5))
    assert used < LAYER_BYTES // 16, used
    torch.testing.assert_close(compiled(caches, value, 5), value * 2 * LAYERS)
    assert not caches[:, :5].any() and not caches[:, 6:].any()


@pytest.mark.parametrize("way", WAYS)
def test_overlapping_views(unique: str, way: str) -> None:
    """A write through one view is read through another that begins elsewhere."""
    op = append_op(unique, "Tensor(a!) cache")

    def step(memory: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        op(memory[2:], value, 1)
        op(memory[1:-1], value + 1, 3)
        return memory[3] + memory[4]

    compiled = torch.compile(step, fullgraph=True, **WAYS[way])
    memory = torch.zeros(ROWS, WIDTH, device="cuda")
    value = torch.randn(WIDTH, device="cuda")
    used = peak_bytes(lambda: compiled(memory, value))
    assert used < LAYER_BYTES // 16, used
    torch.testing.assert_close(compiled(memory, value), 2 * value + 1)
