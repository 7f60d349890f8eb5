"""Peak memory of graphs that write to their arguments: a key-value cache, updated by every layer in
place, for ways to add the op that writes.

The figure is the most memory in use during a call less what its arguments take: on CUDA of
PyTorch's allocator; on the CPU of the process, which is coarse.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch

import opaq

from . import device, measure, result
from .table import Progress

TITLE = "Peak memory of graphs that write to their arguments"
METRIC = "memory beside the arguments"
BODY = "for (long i = 0; i < n; ++i) cache[at * n + i] = x[i];"
CUDA = """__global__ void write_row(float* cache, const float* x, long at, long n) {
  long i = blockIdx.x * 256L + threadIdx.x;
  if (i < n) cache[at * n + i] = x[i];
}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=24, help="default: 24")
    parser.add_argument("--tokens", type=int, default=4096, help="of the cache; default: 4096")
    parser.add_argument("--width", type=int, default=1024, help="of a token; default: 1024")


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    size = (arguments.layers, arguments.tokens, arguments.width)
    for case, whole in {
        "a view of one tensor for each layer": True,
        "a tensor a layer": False,
    }.items():
        for name, write in ways().items():
            progress.step(f"{case}: {name}")
            torch.compiler.reset()
            value, wrong = peak(write, size, whole, arguments.device)
            progress.record(
                result.without_value(case, name, METRIC, "MiB", "wrong", wrong)
                if wrong
                else result.Record(case, name, METRIC, "MiB", "less", value and round(value, 2))
            )
    cache_mib = 4 * size[0] * size[1] * size[2] / 2**20
    return {"layers": size[0], "cache_mib": cache_mib}


def peak(
    write: Callable[..., Any], size: tuple[int, int, int], whole: bool, where: str
) -> tuple[float | None, str]:
    """(MiB, why the result is wrong or "")."""
    layers, tokens, width = size
    shapes = [size] if whole else [size[1:]] * layers
    parts = [torch.zeros(shape, device=where) for shape in shapes]
    x = torch.ones(width, device=where)

    @torch.compile(fullgraph=True, dynamic=False)
    def step(x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        for layer in range(layers):
            write(parts[0][layer] if whole else parts[layer], x, 7)
            x = x + 1
        return x

    with torch.no_grad():
        step(x, *parts)
        synchronize = measure.synchronizer(where)
        synchronize()
        before = device.peak_mib(lambda: None, where)
        most = device.peak_mib(functools.partial(step, x, *parts), where)
    expected = [torch.zeros(tokens, width) for _ in range(layers)]
    for layer, each in enumerate(expected):
        each[7] = 1 + layer
    got = [part.cpu() for part in (parts[0].unbind() if whole else parts)]
    wrong = measure.mistake(got, measure.Expected(expected))
    return (None if most is None or before is None else max(0.0, most - before)), wrong


@functools.cache
def ways() -> dict[str, Callable[..., Any]]:
    """Functions that write x to the row `at` of cache."""
    op = opaq.op("opaq_bench::write_row(Tensor(a!) cache, Tensor x, int at) -> ()")
    source = f"void write_row(float* cache, const float* x, long at, long n) {{ {BODY} }}"
    op.cpu(source=source, entry="write_row", args="cache, x, at, x.numel()")
    op.cuda(
        source=CUDA,
        entry="write_row",
        grid="ceil_div(x.numel(), 256)",
        block=256,
        args="cache, x, at, x.numel()",
    )

    @torch.library.custom_op("opaq_bench::write_row_python", mutates_args=("cache",))
    def write_row(cache: torch.Tensor, x: torch.Tensor, at: int) -> None:
        cache[at].copy_(x)

    def plain(cache: torch.Tensor, x: torch.Tensor, at: int) -> None:
        cache[at] = x

    return {
        "opaq": lambda *args: op(*args),
        "torch.library.custom_op": write_row,
        "inductor": plain,
    }
