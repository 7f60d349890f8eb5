"""What the contract check costs: the time of a launch and of a call with the check, beside the time
without it, on the CPU with one thread.

Each op runs as the launch object of a generated wrapper, in a compiled graph by itself, and between
other operations. Figures are processor time of the thread: the minimum of many, measured in turn
with the check off and on, so that other load matters little. With the check, a compiled call runs
the op, and the operations that it depends on, a second time.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import torch

import opaq
import opaq.extern_kernels as kernels
from opaq import _runtime

from . import measure, result
from .table import Progress

TITLE = "The contract check"
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


Timed = dict[str, Callable[[], float]]  # a contestant of in_turns


def timed(off: Callable[[], Any], on: Callable[[], Any]) -> Timed:
    return {"off": lambda: cpu_us(off, 25), "on": lambda: cpu_us(on, 25)}


def launches(op: opaq.Op, *args: Any) -> Timed:
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
    return timed(
        functools.partial(plain, *args, *results), functools.partial(checked, *args, *results)
    )


def calls(function: Callable[..., Any], *args: Any) -> Timed:
    """A compiled graph."""
    torch.compiler.reset()
    off, on = (
        torch.compile(function, backend="opaq", options={"check": check})
        for check in ("", "contract")
    )
    off(*args)
    on(*args)
    return timed(functools.partial(off, *args), functools.partial(on, *args))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it")
    parser.set_defaults(rounds=9)


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for case, make in cases().items():
            if arguments.only not in case:
                continue
            progress.step(case)
            turns = measure.in_turns(make(), arguments.rounds)
            progress.record(*result.of_rounds(case, "processor time", "us", turns, to="off"))
        return {"rounds": arguments.rounds, "threads": 1}
    finally:
        torch.set_num_threads(threads)


def cases() -> dict[str, Callable[[], Timed]]:
    twice = opaq.op(
        "opaq_bench::twice(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), replace=True
    )
    twice.cpu(source=TWICE, entry="twice", args="y, x, x.numel()")
    x, weight = torch.randn(512, 1024), torch.randn(1024)
    gate, up = torch.randn(512, 1024), torch.randn(512, 1024)
    logits, targets = torch.randn(512, 1000), torch.randint(1000, (512,))
    queries, keys = torch.randn(1, 8, 128, 64), torch.randn(1, 8, 128, 64)
    cos, sin = torch.randn(1, 128, 64), torch.randn(1, 128, 64)
    one, few, many = torch.randn(1), torch.randn(4096), torch.randn(1 << 20)
    return {
        "launch: rms_norm of 512 x 1024": lambda: launches(kernels.rms_norm, x, weight, 1e-6),
        "launch: silu_mul of 512 x 1024": lambda: launches(kernels.silu_mul, gate, up),
        "launch: cross_entropy of 512 x 1000": lambda: launches(
            kernels.cross_entropy_op, logits, targets, -100, 0.0, 0.0, 0.0
        ),
        "launch: rope of 8 heads, 128 x 64": lambda: launches(
            kernels.rope, queries, keys, cos, sin
        ),
        "launch: 1 float doubled": lambda: launches(twice, one),
        "launch: 4096 floats doubled": lambda: launches(twice, few),
        "launch: 1048576 floats doubled": lambda: launches(twice, many),
        "compiled: rms_norm of 512 x 1024": lambda: calls(lambda x: kernels.rms_norm(x, weight), x),
        "compiled: silu_mul of 512 x 1024": lambda: calls(
            lambda gate, up: kernels.silu_mul(gate, up), gate, up
        ),
        "compiled: cross_entropy of 512 x 1000": lambda: calls(
            lambda logits, targets: kernels.cross_entropy(logits, targets), logits, targets
        ),
        "compiled: rope of 8 heads, 128 x 64": lambda: calls(
            lambda q, k: kernels.rope(q, k, cos, sin), queries, keys
        ),
        "compiled: sin, rms_norm, cos of 512 x 1024": lambda: calls(
            lambda x: kernels.rms_norm(x.sin(), weight)[0].cos(), x
        ),
        "compiled: 1 float doubled": lambda: calls(lambda x: twice(x), one),
        "compiled: a chain of 20 doublings of 1 float": lambda: calls(
            lambda x: functools.reduce(lambda y, _: twice(y), range(20), x), one
        ),
    }
