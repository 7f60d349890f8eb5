"""Matrix products by cuBLASLt: the device time of ours, with the first algorithm that the library
names and with the one that opaq.tune finds, of PyTorch's, and of Inductor's max-autotune
(--max-autotune, which takes long and writes a file of its own); and the host time of one more
product in a compiled graph.

Device times are of replays of a CUDA graph with 20 products on operands that rotate through more
memory than the L2 cache holds; contestants take turns, and ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import common
import torch

import opaq
from opaq import extern_kernels as kernels

PRODUCTS = 20  # in a graph
L2_BYTES = 256 << 20  # more than any device's


Tensors = list[torch.Tensor]


def operands(make: Callable[[], Tensors]) -> list[Tensors]:
    """As often as they fill the cache."""
    first = make()
    size = sum(tensor.numel() * tensor.element_size() for tensor in first)
    count = max(2, min(PRODUCTS, L2_BYTES // size + 1))
    return [first, *(make() for _ in range(count - 1))]


def random(*sizes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Callable[[], Tensors]:
    return lambda: [torch.randn(*size, device="cuda").to(dtype) for size in sizes]


def graph_of(call: Callable[..., Any], sets: list[Tensors]) -> torch.cuda.CUDAGraph:
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


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], Tensors]
    aten: Callable[..., Any]
    op: opaq.Op
    more: tuple[Any, ...] = ()  # arguments of the op after the tensors


def linear_tf32() -> opaq.Op:
    op = opaq.op(
        "opaq_bench::linear_tf32(Tensor x, Tensor weight) -> (Tensor y)",
        outputs=opaq.tensor("x.size(0), weight.size(0)", dtype="x.dtype"),
    )
    return op.cublaslt(a="x", b="weight.t()", d="y", compute="tf32", algorithms=8)


def aten_tf32(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return torch.nn.functional.linear(x, weight)
    finally:
        torch.set_float32_matmul_precision(before)


def aten_scaled(scale: torch.Tensor) -> Callable[..., torch.Tensor]:
    whole = torch.nn.functional.ScalingType.TensorWise
    return lambda x, w: torch.nn.functional.scaled_mm(x, w.t(), scale, whole, scale, whole)


def of_linear(m: int, n: int, k: int, dtype: torch.dtype) -> Case:
    name = f"linear {m}x{n}x{k} {str(dtype).removeprefix('torch.')}"
    make = random((m, k), (n, k), dtype=dtype)
    return Case(name, make, torch.nn.functional.linear, kernels.linear, (None,))


def cases() -> list[Case]:
    """Decode, prefill, training, batches, odd sizes: 200 products."""
    llama = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
    small = [(2304, 768), (768, 3072), (896, 4864), (5120, 1280)]
    odd = [(1000, 333), (513, 2050), (4608, 1152)]
    rows = [1, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 4096, 8192]
    found = [of_linear(m, n, k, torch.bfloat16) for n, k in [*llama, *small, *odd] for m in rows]
    found += [of_linear(m, 128256, 4096, torch.bfloat16) for m in (1, 8, 16, 64)]
    for dtype in (torch.float16, torch.float32):
        found += [of_linear(m, 4096, 4096, dtype) for m in (1, 16, 64, 512, 4096)]
    tf32 = linear_tf32()
    for m in (16, 64, 512, 4096):
        make = random((m, 4096), (4096, 4096), dtype=torch.float32)
        found.append(Case(f"linear {m}x4096x4096 tf32", make, aten_tf32, tf32))
    for n, k in [*llama, *small[:2]]:  # gradients
        for m in (1024, 4096, 8192):
            grad = random((m, n), (n, k))
            found.append(Case(f"grad_x {m}x{k}x{n}", grad, torch.mm, kernels.linear_grad_x))
            both = random((m, n), (m, k))
            found.append(
                Case(
                    f"grad_weight {n}x{k}x{m}",
                    both,
                    lambda grad, x: torch.mm(grad.t(), x),
                    kernels.linear_grad_weight,
                )
            )
    for batch, m, n, k in [
        (8, 64, 64, 64),
        (64, 128, 128, 64),
        (256, 1, 2048, 128),
        (32, 512, 512, 128),
        (16, 1024, 1024, 64),
        (4, 2048, 2048, 512),
        (128, 33, 65, 127),
    ]:
        make = random((batch, m, k), (batch, k, n))
        found.append(Case(f"bmm {batch} {m}x{n}x{k}", make, torch.bmm, kernels.bmm))
    one = torch.ones(1, device="cuda")
    for n, k in [(4096, 4096), (28672, 4096), (4096, 14336)]:
        for m in (16, 64, 4096):
            make = random((m, k), (n, k), dtype=torch.float8_e4m3fn)
            name = f"scaled_linear {m}x{n}x{k} float8"
            more = (one, one, None)
            found.append(Case(name, make, aten_scaled(one), kernels.scaled_linear, more))
    return found


def of_cases(rounds: int) -> dict[str, Any]:
    results = {}
    for case in cases():
        sets = operands(case.make)
        calls = {
            "first": lambda *args, case=case: case.op(*args, *case.more),
            "aten": case.aten,
            "searched": lambda *args, case=case: case.op(*args, *case.more),
        }
        wanted, got = (calls[name](*sets[0]).double() for name in ("aten", "first"))
        error = float((wanted - got).abs().max() / wanted.abs().max())
        if not error < 0.02:
            raise SystemExit(f"{case.name}: a relative error of {error}; nothing is ranked")
        tune = [*sets[0], *case.more]
        search = {"searched": lambda case=case, tune=tune: opaq.tune(case.op, *tune)}
        found = device_us(calls, sets, rounds, search)
        found["searched"]["chosen"] = opaq.tune(case.op, *tune).fastest
        results[case.name] = found
    return {"products": results, "speedups": speedups(results, "first")}


def speedups(results: dict[str, Any], over: str) -> dict[str, Any]:
    summary = {}
    for name in next(iter(results.values())):
        if name == over:
            continue
        ordered = sorted(each[name]["speedup"] for each in results.values())
        summary[f"{name}, over {over}"] = {
            "least": ordered[0],
            "p10": ordered[len(ordered) // 10],
            "median": statistics.median(ordered),
            "p90": ordered[len(ordered) * 9 // 10],
            "most": ordered[-1],
        }
    return summary


def of_max_autotune(rounds: int, folder: str) -> dict[str, Any]:
    """Compiled by Inductor with max-autotune and by backend="opaq" with the option tune. The GPUs
    that there are share the products; each product's contestants run on one of them. What is
    measured is kept in files of `folder` until all of it is: a run that was stopped goes on."""
    os.makedirs(folder, exist_ok=True)
    gpus = torch.cuda.device_count()
    shares = [os.path.join(folder, f"max_autotune_share{i}of{gpus}.json") for i in range(gpus)]
    workers = []
    for gpu, share in enumerate(shares):
        command = [sys.executable, __file__, "--rounds", str(rounds), "--share", share]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible(gpu)}
        workers.append(subprocess.Popen([*command, str(gpu), str(gpus)], env=environment))
    statuses = [worker.wait() for worker in workers]
    if any(statuses):
        raise SystemExit("a worker failed")
    found: dict[str, Any] = {}
    for share in shares:
        with open(share, encoding="utf-8") as stream:
            found |= json.load(stream)
        os.remove(share)
    results = {case.name: found[case.name] for case in cases()}
    return {"gpus": gpus, "products": results, "speedups": speedups(results, "max-autotune")}


def visible(gpu: int) -> str:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[gpu] if given else str(gpu)


def share_of_max_autotune(rounds: int, path: str, share: int, of: int) -> None:
    results: dict[str, Any] = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as stream:
            results = json.load(stream)
    for case in cases()[share::of]:
        if case.name in results:
            continue
        torch.compiler.reset()
        calls = {
            "max-autotune": torch.compile(
                case.aten, mode="max-autotune-no-cudagraphs", dynamic=False
            ),
            "aten": case.aten,
            "searched": torch.compile(
                lambda *args, case=case: case.op(*args, *case.more),
                backend="opaq",
                options={"tune": "search"},
                dynamic=False,
            ),
        }
        results[case.name] = device_us(calls, operands(case.make), rounds)
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(results, stream)


def of_epilogues(rounds: int) -> dict[str, Any]:
    """linear + bias + gelu of 4096 rows, 4096 to 16384, beside the bare product; and a float8
    result."""
    sets = operands(random((4096, 4096), (16384, 4096), (16384,)))

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
    scaled = aten_scaled(one)
    float8 = {
        "float8 result, torch (two launches)": lambda x, w: scaled(x, w).to(torch.float8_e4m3fn),
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
        chains = {}
        for name, product in products.items():
            for length in (10, 60):
                compiled = torch.compile(chain(product, length), fullgraph=True, options=options)
                compiled(x, weight)
                chains[name, length] = compiled
        us: dict[Any, list[float]] = {key: [] for key in chains}
        for _ in range(10):  # contestants take turns
            for key, compiled in chains.items():
                us[key].append(
                    common.host_us(
                        lambda run=compiled: run(x, weight),
                        per=1,
                        synchronize=torch.cuda.synchronize,
                        repeats=repeats,
                    )
                )
        added = {
            name: [(long - short) / 50 for short, long in zip(us[name, 10], us[name, 60])]
            for name in products
        }
        for name, times in added.items():
            found[f"{name}, {wrapper} wrapper"] = {"us": statistics.median(times)}
        found[f"aten.mm over opaq, {wrapper} wrapper"] = statistics.median(
            a / b for a, b in zip(added["aten.mm"], added["opaq"])
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(parents=[common.arguments()], description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--max-autotune", action="store_true")
    parser.add_argument("--share", nargs=3, help=argparse.SUPPRESS)  # of a worker
    given = parser.parse_args()
    with torch.no_grad():
        if given.share:
            path, share, of = given.share
            share_of_max_autotune(given.rounds, path, int(share), int(of))
            return
        if given.max_autotune:
            measured = of_max_autotune(given.rounds, given.output)
        else:
            measured = {
                "host": of_host(20),
                "epilogues": of_epilogues(given.rounds),
                **of_cases(given.rounds),
            }
    name = "matmul_max_autotune" if given.max_autotune else "matmul"
    common.save(name, measured, what=__doc__ or "")


if __name__ == "__main__":
    main()
