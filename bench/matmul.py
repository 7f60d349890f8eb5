"""Matrix products by cuBLASLt: the device time of ours, with the first algorithm that the library
names and with the one that opaq.tune finds, and of PyTorch's; and the host time of one more product
in a compiled graph.

Device times are of replays of a CUDA graph with 20 products on operands that rotate through more
memory than the L2 cache holds; contestants take turns, and ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import common
import torch

import opaq
from opaq import extern_kernels as kernels

PRODUCTS = 20  # in a graph
L2_BYTES = 256 << 20  # more than any device's


def operands(m: int, n: int, k: int, dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """(x, weight, bias), as often as they fill the cache."""
    size = torch.finfo(dtype).bits // 8 * (m * k + n * k + n)
    count = max(2, min(PRODUCTS, L2_BYTES // size + 1))
    return [
        [torch.randn(*s, device="cuda").to(dtype) for s in ((m, k), (n, k), (n,))]
        for _ in range(count)
    ]


def graph_of(call: Callable[..., Any], sets: list[list[torch.Tensor]]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for each in sets:
            call(*each)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(PRODUCTS):
            call(*sets[i % len(sets)])
    return graph


def device_us(
    calls: dict[str, Callable[..., Any]],
    sets: Any,
    rounds: int,
    prepare: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """For each contestant the median time of a product, and the median over rounds of the ratio
    of the first contestant's time to it. prepare: what is called before a contestant's graph is
    captured.
    """
    graphs = {}
    for name, call in calls.items():
        if prepare and name in prepare:
            prepare[name]()
        graphs[name] = graph_of(call, sets)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) * 1e3 / PRODUCTS)
    first = next(iter(times))
    return {
        name: {
            "us": statistics.median(found[2:]),
            "speedup": statistics.median(a / b for a, b in zip(times[first][2:], found[2:])),
        }
        for name, found in times.items()
    }


def shapes() -> list[tuple[int, int, int, torch.dtype]]:
    models = [(4096, 4096), (14336, 4096), (4096, 14336), (6144, 4096), (3072, 768), (1000, 333)]
    rows = [1, 4, 16, 64, 512, 4096]
    found = [(m, n, k, torch.bfloat16) for n, k in models for m in rows]
    found += [(m, 4096, 4096, dtype) for dtype in (torch.float16, torch.float32) for m in rows]
    return [*found, (16, 128256, 4096, torch.bfloat16)]


def of_shapes(rounds: int) -> dict[str, Any]:
    results = {}
    for m, n, k, dtype in shapes():
        sets = operands(m, n, k, dtype)
        calls = {
            "aten": lambda x, w, b: torch.nn.functional.linear(x, w),
            "opaq": lambda x, w, b: kernels.linear(x, w),
            "opaq, searched": lambda x, w, b: kernels.linear(x, w),
        }
        x, weight, _ = sets[0]
        search = {"opaq, searched": lambda x=x, w=weight: opaq.tune(kernels.linear, x, w, None)}
        found = device_us(calls, sets, rounds, search)
        found["opaq, searched"]["chosen"] = opaq.tune(kernels.linear, x, weight, None).fastest
        results[f"{m}x{n}x{k} {str(dtype).removeprefix('torch.')}"] = found
    summary = {}
    for name in ("opaq", "opaq, searched"):
        speedups = sorted(each[name]["speedup"] for each in results.values())
        summary[f"{name}, against aten"] = {
            "least": speedups[0],
            "median": statistics.median(speedups),
            "p90": speedups[len(speedups) * 9 // 10],
            "most": speedups[-1],
        }
    return {"shapes": results, **summary}


def of_epilogues(rounds: int) -> dict[str, Any]:
    """linear + bias + gelu of 4096 rows, 4096 to 16384, beside the bare product; and a float8
    result."""
    sets = operands(4096, 16384, 4096, torch.bfloat16)

    def gelu(h: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(h, approximate="tanh")

    inductor = torch.compile(lambda x, w, b: gelu(torch.nn.functional.linear(x, w, b)))
    calls = {
        "bare product (aten)": lambda x, w, b: torch.mm(x, w.t()),
        "bias and gelu, opaq": lambda x, w, b: kernels.linear_gelu(x, w, b),
        "bias and gelu, Inductor": inductor,
        "bias and gelu, eager": lambda x, w, b: gelu(torch.nn.functional.linear(x, w, b)),
    }
    one = torch.ones(1, device="cuda")
    narrow = [[t.to(torch.float8_e4m3fn) for t in each[:2]] for each in sets]

    def twice(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        whole = torch.nn.functional.ScalingType.TensorWise
        wide = torch.nn.functional.scaled_mm(x, w.t(), one, whole, one, whole)
        return wide.to(torch.float8_e4m3fn)

    float8 = {
        "float8 result, torch (two launches)": twice,
        "float8 result, opaq": lambda x, w: kernels.scaled_linear_float8(x, w, one, one, one),
    }
    return {**device_us(calls, sets, rounds), **device_us(float8, narrow, rounds)}


def of_host(repeats: int) -> dict[str, Any]:
    """One more product in a compiled graph, from chains of 10 and 60."""
    x = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)

    def chain(product: Callable[..., torch.Tensor], length: int) -> Callable[..., torch.Tensor]:
        def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            for _ in range(length):
                x = product(x, weight)
            return x

        return run

    products = {
        "aten.mm": lambda x, w: torch.mm(x, w.t()),
        "opaq": lambda x, w: kernels.linear(x, w),
    }
    found: dict[str, Any] = {}
    for wrapper, options in {"Python": {}, "C++": {"cpp_wrapper": True}}.items():
        for name, product in products.items():
            us = []
            for length in (10, 60):
                torch.compiler.reset()
                compiled = torch.compile(chain(product, length), fullgraph=True, options=options)
                us.append(
                    common.host_us(
                        lambda run=compiled: run(x, weight),
                        per=1,
                        synchronize=torch.cuda.synchronize,
                        repeats=repeats,
                    )
                )
            found[f"{name}, {wrapper} wrapper"] = {"us": (us[1] - us[0]) / 50}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(parents=[common.arguments()], description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    with torch.no_grad():
        measured = {
            "host": of_host(200),
            "epilogues": of_epilogues(given.rounds),
            **of_shapes(given.rounds),
        }
    common.save("matmul", measured, what=__doc__ or "")


if __name__ == "__main__":
    main()
