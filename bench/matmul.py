"""Matrix products by cuBLASLt: with the first algorithm that the library names and with the one
that opaq.tune finds, beside PyTorch's; and the host time of one more product in a graph.

Device times are of replays of a CUDA graph with 20 products on operands that rotate through more
memory than the L2 cache holds. With --max-autotune the contestants are graphs compiled by
Inductor's max-autotune and by backend="opaq" with the option tune; this takes long, and the GPUs
of the machine share the products.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

import opaq
from opaq import extern_kernels as kernels

from . import device, measure, result
from .command import Unavailable
from .matmul_cases import Case, aten_scaled, cases, random
from .table import Progress

TITLE = "Matrix products by cuBLASLt"
METRIC = "time of a product"
PARTS = ("products", "epilogues", "host")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=PARTS, help="one part; default: all")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="products that have it in a name"
    )
    parser.add_argument("--max-autotune", action="store_true")
    parser.add_argument("--share", nargs=3, help=argparse.SUPPRESS)  # of a worker


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    if arguments.device != "cuda":
        raise Unavailable("opaq bench matmul measures cuBLASLt, which needs a GPU; there is none")
    method = {"rounds": arguments.rounds, "products_in_a_graph": device.CALLS}
    with torch.no_grad():
        if arguments.share:
            path, share, of = arguments.share
            of_share(arguments, path, int(share), int(of))
        elif arguments.max_autotune:
            method["gpus"] = torch.cuda.device_count()
            of_max_autotune(arguments, progress)
        else:
            for part in [arguments.part] if arguments.part else PARTS:
                PART[part](arguments, progress)
    return method


def of_products(arguments: argparse.Namespace, progress: Progress) -> None:
    for case in chosen(arguments):
        progress.step(case.name)
        progress.record(*of_product(case, arguments.rounds))


def chosen(arguments: argparse.Namespace) -> list[Case]:
    return [case for case in cases() if arguments.only in case.name]


def of_product(case: Case, rounds: int) -> list[result.Record]:
    sets = device.operands(case.make)
    with precision(case):
        got, expected = ([call(*sets[0])] for call in (case.call, case.aten))
        if wrong := measure.mistake(got, measure.Expected(expected, exact(case, sets[0]))):
            return [
                result.without_value(case.name, "first algorithm", METRIC, "us", "wrong", wrong)
            ]
        timed = {
            "first algorithm": device.replay_us(case.call, sets),
            "aten": device.replay_us(case.aten, sets),
        }
        found = opaq.tune(case.op, *sets[0], *case.more)
        timed["searched"] = device.replay_us(case.call, sets)
        turns = measure.in_turns(timed, rounds)
    notes = {"searched": found.fastest}
    return result.of_rounds(case.name, METRIC, "us", turns, to="first algorithm", notes=notes)


def exact(case: Case, operands: device.Tensors) -> list[torch.Tensor] | None:
    """In float64; None of float8, of which PyTorch's own product is the measure."""
    if operands[0].dtype.itemsize < 2:
        return None
    return [case.aten(*(each.double() for each in operands))]


@contextmanager
def precision(case: Case) -> Iterator[None]:
    """PyTorch's products in the precision of the case."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if case.tf32 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# ---- max-autotune --------------------------------------------------------------------------------


def of_max_autotune(arguments: argparse.Namespace, progress: Progress) -> None:
    """Each product's contestants run on one of the GPUs, in a process for each GPU. What is
    measured is kept beside --output until all of it is: a run that was stopped goes on."""
    folder = os.path.dirname(os.path.abspath(arguments.output)) if arguments.output else None
    with tempfile.TemporaryDirectory() as other:
        gpus = torch.cuda.device_count()
        paths = [os.path.join(folder or other, f"max_autotune_{gpu}.jsonl") for gpu in range(gpus)]
        workers = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "opaq",
                    "bench",
                    "matmul",
                    "--share",
                    path,
                    str(gpu),
                    str(gpus),
                ]
                + ["--rounds", str(arguments.rounds), "--only", arguments.only],
                env={**os.environ, "CUDA_VISIBLE_DEVICES": visible(gpu)},
                stdout=subprocess.DEVNULL,
            )
            for gpu, path in enumerate(paths)
        ]
        progress.step(f"{len(workers)} GPUs at work")
        statuses = [worker.wait() for worker in workers]
        found = {name: turns for path in paths for name, turns in measured(path).items()}
        lost = [case.name for case in chosen(arguments) if case.name not in found]
        if any(statuses) or lost:
            raise Unavailable(f"a worker failed; not measured: {', '.join(lost)}")
        for path in paths:
            os.remove(path)
    for case in chosen(arguments):
        progress.record(
            *result.of_rounds(case.name, METRIC, "us", found[case.name], to="max-autotune")
        )


def visible(gpu: int) -> str:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[gpu] if given else str(gpu)


def measured(path: str) -> dict[str, dict[str, list[float]]]:
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as stream:
        return dict(json.loads(line) for line in stream)


def of_share(arguments: argparse.Namespace, path: str, share: int, of: int) -> None:
    known = measured(path)
    for case in chosen(arguments)[share::of]:
        if case.name in known:
            continue
        torch.compiler.reset()
        calls = {
            "max-autotune": torch.compile(
                case.aten, mode="max-autotune-no-cudagraphs", dynamic=False
            ),
            "aten": case.aten,
            "opaq": torch.compile(
                lambda *args, op=case.op, more=case.more: op(*args, *more),
                backend="opaq",
                options={"tune": "search"},
                dynamic=False,
            ),
        }
        sets = device.operands(case.make)
        with precision(case):
            timed = {name: device.replay_us(call, sets) for name, call in calls.items()}
            turns = measure.in_turns(timed, arguments.rounds)
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps([case.name, turns]) + "\n")


# ---- epilogues and host time ---------------------------------------------------------------------


def of_epilogues(arguments: argparse.Namespace, progress: Progress) -> None:
    """4096 rows, 4096 to 16384, with bias and gelu, beside the bare product; a float8 result."""
    progress.step("epilogues")
    sets = device.operands(random((4096, 4096), (16384, 4096), (16384,)))

    def gelu(h: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(h, approximate="tanh")

    def plain(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return gelu(torch.nn.functional.linear(x, w, b))

    calls = {
        "bare product, aten": lambda x, w, b: torch.mm(x, w.t()),
        "opaq": lambda x, w, b: kernels.linear_gelu(x, w, b),
        "Inductor": torch.compile(plain),
        "eager": plain,
    }
    one = torch.ones(1, device="cuda")
    narrow = [[each.to(torch.float8_e4m3fn) for each in operands[:2]] for operands in sets]
    scaled = aten_scaled(one)
    float8 = {
        "torch, two launches": lambda x, w: scaled(x, w).to(torch.float8_e4m3fn),
        "opaq": lambda x, w: kernels.scaled_linear_float8(x, w, one, one, one),
    }
    rounds = arguments.rounds
    progress.record(*_compared("bias and gelu, 4096 x 4096 to 16384", calls, sets, rounds))
    progress.record(*_compared("float8 result, 4096 x 4096 to 16384", float8, narrow, rounds))


def _compared(
    case: str, calls: Mapping[str, Callable[..., Any]], sets: Any, rounds: int
) -> list[result.Record]:
    timed = {name: device.replay_us(call, sets) for name, call in calls.items()}
    turns = measure.in_turns(timed, rounds)
    return result.of_rounds(case, METRIC, "us", turns, to=next(iter(calls)))


def of_host(arguments: argparse.Namespace, progress: Progress) -> None:
    """One more product of 64 x 64 x 64 in a compiled graph, from chains of 10 and 60."""
    x, weight = (torch.randn(64, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def chain(product: Callable[..., Any], length: int) -> Callable[..., Any]:
        def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            for _ in range(length):
                x = product(x, weight)
            return x

        return run

    products = {
        "aten.mm": lambda x, w: torch.mm(x, w.t()),
        "opaq": lambda x, w: kernels.linear(x, w),
    }
    for wrapper, options in {"Python": {}, "C++": {"cpp_wrapper": True}}.items():
        progress.step(f"host time, {wrapper} wrapper")
        timed = {}
        for name, product in products.items():
            for length in (10, 60):
                compiled = torch.compile(chain(product, length), fullgraph=True, options=options)
                compiled(x, weight)
                timed[name, length] = lambda compiled=compiled: measure.host_us(
                    lambda: compiled(x, weight),
                    per=1,
                    synchronize=torch.cuda.synchronize,
                    repeats=20,
                )
        turns = measure.in_turns(timed, arguments.rounds)
        added = {
            name: [(long - short) / 50 for short, long in zip(turns[name, 10], turns[name, 60])]
            for name in products
        }
        case = f"one more product, {wrapper} wrapper"
        progress.record(*result.of_rounds(case, "host time", "us", added, to="aten.mm"))


PART = {"products": of_products, "epilogues": of_epilogues, "host": of_host}
