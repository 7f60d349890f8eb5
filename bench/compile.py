"""Compile time of graphs of 1 to 1000 nodes: of opaque ops, of the same op as
torch.library.custom_op, and of an operation of PyTorch that Inductor fuses.

Each compile is the first in a process that has compiled another graph, with no caches.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.compiler.config

import opaq

from . import lists, measure, result
from .table import Progress

TITLE = "Compile time of graphs with opaque ops"
LENGTHS = [1, 10, 100, 300, 1000]
WITHOUT = "without opaque ops"  # which Inductor fuses


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nodes",
        type=lists.numbers(1, 100_000),
        default=LENGTHS,
        metavar="N,...",
        help=f"default: {','.join(map(str, LENGTHS))}",
    )
    parser.set_defaults(rounds=3)


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    x = torch.rand(64, device=arguments.device)
    compile_seconds(ways()[WITHOUT], 2, x)  # loads Inductor
    for length in arguments.nodes:
        case = f"{length} nodes" if length > 1 else "1 node"
        timed = {
            (name, nodes): functools.partial(compile_seconds, way, nodes, x)
            for name, way in ways().items()
            for nodes in sorted({1, length})
        }
        turns = measure.in_turns(timed, arguments.rounds, progress.of(case))
        whole = {name: turns[name, length] for name in ways()}
        progress.record(*result.of_rounds(case, "compile time", "s", whole, to=WITHOUT))
        if length > 1:
            per_node = {
                name: [
                    (long - short) * 1e3 / (length - 1)
                    for long, short in zip(turns[name, length], turns[name, 1])
                ]
                for name in ways()
            }
            progress.record(*result.of_rounds(case, "one more node", "ms", per_node))
    return {"rounds": arguments.rounds}


def compile_seconds(op: Callable[..., Any], length: int, x: torch.Tensor) -> float:
    def chain(x: torch.Tensor) -> torch.Tensor:
        for _ in range(length):
            x = op(x, 0.5)
        return x

    torch.compiler.reset()
    with torch.no_grad(), torch.compiler.config.patch(force_disable_caches=True):
        compiled = torch.compile(chain, fullgraph=True)
        start = time.perf_counter()
        got = compiled(x)
        measure.synchronizer(str(x.device))()
        seconds = time.perf_counter() - start
    if wrong := measure.mistake([got], measure.Expected([chain(x)])):
        raise AssertionError(f"a compiled chain is wrong: {wrong}")
    return seconds


@functools.cache
def ways() -> dict[str, Callable[..., Any]]:
    op = opaq.op("opaq_bench::scale(Tensor x, float by) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="void scale(const float* x, double by, float* out, long n) { "
        "for (long i = 0; i < n; ++i) out[i] = x[i] * by; }",
        entry="scale",
        args="x, by, out, x.numel()",
    )
    op.cuda(
        source="__global__ void scale(const float* x, float by, float* out, int n) { "
        "if (threadIdx.x < n) out[threadIdx.x] = x[threadIdx.x] * by; }",
        entry="scale",
        grid="1",
        block=64,
        args="x, by, out, x.numel()",
        requires=["x.numel() <= 64"],
    )

    @torch.library.custom_op("opaq_bench::scale_python", mutates_args=())
    def scale(x: torch.Tensor, by: float) -> torch.Tensor:
        return x * by

    scale.register_fake(lambda x, by: torch.empty_like(x))
    return {
        "opaq": lambda x, by: op(x, by),
        "torch.library.custom_op": scale,
        WITHOUT: lambda x, by: x * by,
    }
