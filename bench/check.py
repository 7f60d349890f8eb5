"""What the contract check costs: the time of a launch and of a call with the check, relative to the
time without it.

    python bench/check.py               (on the CPU, one thread)

Each op runs as the launch object of a generated wrapper, in a compiled graph by itself, and between
other operations. Figures are processor time of the thread: the minimum of many, measured in turn
with the check off and on, so that other load matters little. With the check, a compiled call runs
the op, and the operations that it depends on, a second time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from common import save

import opaq
import opaq.extern_kernels as kernels
from opaq import _runtime

TWICE = (
    "void twice(float* y, const float* x, long n) { for (long i = 0; i < n; ++i) y[i] = 2 * x[i]; }"
)


def cpu_us(call: Callable[[], Any], repeats: int) -> float:
    """The minimum of the processor time of a call, in microseconds."""
    start = time.thread_time_ns()
    call()
    per = max(1, 100_000 // (time.thread_time_ns() - start + 1))
    times = []
    for _ in range(repeats):
        start = time.thread_time_ns()
        for _ in range(per):
            call()
        times.append((time.thread_time_ns() - start) / per / 1e3)
    return min(times)


def cost(off: Callable[[], Any], on: Callable[[], Any]) -> dict[str, float]:
    rounds = [[cpu_us(call, 25) for call in (off, on)] for _ in range(9)]
    best = [min(times) for times in zip(*rounds)]
    return {
        "off_us": round(best[0], 3),
        "on_us": round(best[1], 3),
        "ratio": round(best[1] / best[0], 2),
    }


def launches(op: opaq.Op, *args: Any) -> dict[str, float]:
    """The launch object of a node of `op`."""
    results = op(*args)
    results = [
        torch.empty_like(result)
        for result in (results if isinstance(results, tuple) else (results,))
    ]
    plain, checked = (
        _runtime.launcher(
            op.name, op.info["hash"], "cpu", "op0", "bench", False, "", "at launch", check
        )
        for check in (False, True)
    )
    return cost(
        functools.partial(plain, *args, *results), functools.partial(checked, *args, *results)
    )


def calls(function: Callable[..., Any], *args: Any) -> dict[str, float]:
    """A compiled graph."""
    torch.compiler.reset()
    off, on = (
        torch.compile(function, backend="opaq", options={"check": check})
        for check in ("", "contract")
    )
    off(*args)
    on(*args)
    return cost(functools.partial(off, *args), functools.partial(on, *args))


def main() -> None:
    torch.set_num_threads(1)
    twice = opaq.op("bench_check::twice(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    twice.cpu(source=TWICE, entry="twice", args="y, x, x.numel()")
    x, weight = torch.randn(512, 1024), torch.randn(1024)
    gate, up = torch.randn(512, 1024), torch.randn(512, 1024)
    logits, targets = torch.randn(512, 1000), torch.randint(1000, (512,))
    queries, keys = torch.randn(1, 8, 128, 64), torch.randn(1, 8, 128, 64)
    cos, sin = torch.randn(1, 128, 64), torch.randn(1, 128, 64)
    one, few, many = torch.randn(1), torch.randn(4096), torch.randn(1 << 20)
    measured = {
        "launch: rms_norm of 512 x 1024": launches(kernels.rms_norm, x, weight, 1e-6),
        "launch: silu_mul of 512 x 1024": launches(kernels.silu_mul, gate, up),
        "launch: cross_entropy of 512 x 1000": launches(
            kernels.cross_entropy, logits, targets, -100
        ),
        "launch: rope of 8 heads, 128 x 64": launches(kernels.rope, queries, keys, cos, sin),
        "launch: 1 float doubled": launches(twice, one),
        "launch: 4096 floats doubled": launches(twice, few),
        "launch: 1048576 floats doubled": launches(twice, many),
        "compiled: rms_norm of 512 x 1024": calls(lambda x: kernels.rms_norm(x, weight), x),
        "compiled: silu_mul of 512 x 1024": calls(
            lambda gate, up: kernels.silu_mul(gate, up), gate, up
        ),
        "compiled: cross_entropy of 512 x 1000": calls(
            lambda logits, targets: kernels.cross_entropy(logits, targets), logits, targets
        ),
        "compiled: rope of 8 heads, 128 x 64": calls(
            lambda q, k: kernels.rope(q, k, cos, sin), queries, keys
        ),
        "compiled: sin, rms_norm, cos of 512 x 1024": calls(
            lambda x: kernels.rms_norm(x.sin(), weight)[0].cos(), x
        ),
        "compiled: 1 float doubled": calls(lambda x: twice(x), one),
        "compiled: a chain of 20 doublings of 1 float": calls(
            lambda x: functools.reduce(lambda y, _: twice(y), range(20), x), one
        ),
    }
    save("check", measured, what="the contract check of launches, off and on")


if __name__ == "__main__":
    main()
