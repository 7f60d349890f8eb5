"""A model of the user's under several backends of torch.compile: compile time, time of a step, peak
memory, graphs, kernels, and whether the results are right.

Each contestant runs in a process of its own with empty caches, so that neither compiled code nor
memory is shared; the processes take turns, one at a time. Results are compared with those of the
first contestant and, where the model can be converted, with the same in float64.
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
from collections.abc import Mapping
from typing import Any

from opaq.user_file import WrongTarget

from . import measure, result
from .model_worker import FIRST_CALL, Worker, WorkerFailed
from .models import Wanted, sizes_of
from .table import Progress

TITLE = "A model under several backends"
BACKENDS = ("eager", "inductor", "max-autotune", "opaq")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="?",
        metavar="FILE_OR_MODULE:FUNCTION",
        help="a function that returns (model, arguments) or (model, arguments, keyword arguments); "
        "with --dynamic it takes the sizes: def make(B): ...",
    )
    parser.add_argument(
        "--hf",
        metavar="CLASS",
        help="instead: a model of transformers with random weights, such as LlamaForCausalLM",
    )
    parser.add_argument(
        "--config",
        default="",
        metavar="NAME=VALUE,...",
        help="of --hf: values of its configuration, such as hidden_size=512,num_hidden_layers=2",
    )
    parser.add_argument("--batch", type=int, default=2, help="of --hf: sequences; default: 2")
    parser.add_argument("--tokens", type=int, default=128, help="of --hf: of each; default: 128")
    parser.add_argument(
        "--backend",
        default=",".join(BACKENDS),
        metavar="NAME,...",
        help="contestants; the others are compared with the first. eager, max-autotune, "
        "reduce-overhead, any backend of torch.compile, with options as in "
        f"opaq:tune=search+strict=true; default: {','.join(BACKENDS)}",
    )
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument(
        "--dynamic",
        metavar="NAME=SIZE,...",
        help="measure at each of the sizes, in turn, with one compiled model: B=1,8,64",
    )
    parser.add_argument("--dtype", help="convert the model: bfloat16, float16, float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--timeout",
        type=float,
        default=1800,
        metavar="SECONDS",
        help="for a first call; a contestant that takes longer has failed; default: 1800",
    )


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    wanted = Wanted.of(arguments)
    names = [name.strip() for name in arguments.backend.split(",")]
    if twice := [name for name in names if names.count(name) > 1]:
        raise WrongTarget(f"--backend: {twice[0]!r} is named twice; name each contestant once")
    sizes = sizes_of(arguments.dynamic)
    with tempfile.TemporaryDirectory(prefix="opaq_bench_") as folder:
        workers: dict[str, Worker] = {}
        try:
            for number, name in enumerate(names):
                progress.step(f"{name}: start")
                try:
                    workers[name] = Worker(wanted, name, f"{folder}/{number}", arguments.timeout)
                except WorkerFailed as error:
                    progress.record(*_lost(sizes, name, error))
            for size in sizes:
                made = _of_size(size, workers, arguments.rounds, folder, progress)
                progress.record(*made)
        finally:
            for worker in workers.values():
                worker.close()
    return {"rounds": arguments.rounds, "sizes": len(sizes), "train": arguments.train}


def _of_size(
    size: Mapping[str, int],
    workers: dict[str, Worker],
    rounds: int,
    folder: str,
    progress: Progress,
) -> list[result.Record]:
    """The first calls, each checked against the first contestant; then turns. A worker that fails
    or is wrong leaves `workers`, or the ranks of this size."""
    case = _case(size)
    records: list[result.Record] = []
    first, ranked = "", {}
    facts: dict[str, Mapping[str, Any]] = {}
    for name, worker in list(workers.items()):
        progress.step(f"{name}: first call{f' of {case}' if size else ''}")
        try:
            facts[name] = worker.first_call(size, f"{folder}/expected_{case}.pt", not first)
        except WorkerFailed as error:
            records += _lost([size], name, error)
            workers.pop(name).close()
            continue
        if facts[name]["mistake"]:
            records.append(
                result.without_value(case, name, STEP, "ms", "wrong", facts[name]["mistake"])
            )
        else:
            first = first or name
            ranked[name] = worker
    failed: dict[str, WorkerFailed] = {}

    def seconds_of(name: str) -> float:
        try:
            return math.nan if name in failed else ranked[name].seconds_of_step()
        except WorkerFailed as error:
            failed[name] = error
            return math.nan

    turns = measure.in_turns(
        {name: functools.partial(seconds_of, name) for name in ranked},
        rounds,
        lambda step: progress.step(f"{case}, {step}" if size else step),
    )
    for name, error in failed.items():
        records += _lost([size], name, error)
        del turns[name], ranked[name]
        workers.pop(name).close()
    first = next(iter(ranked), "")
    notes = {name: str(facts[name]["unchecked"]) for name in ranked if facts[name]["unchecked"]}
    in_ms = {name: [each * 1e3 for each in times] for name, times in turns.items()}
    records = result.of_rounds(case, STEP, "ms", in_ms, to=first, notes=notes) + records
    for name, worker in ranked.items():
        progress.step(f"{name}: memory and kernels")
        found = dict(facts[name])
        try:
            found |= worker.facts_of_step()
        except WorkerFailed as error:  # its times stand
            progress.step(f"{name}: memory and kernels are unknown: {error}")
        for metric, (key, unit) in FACTS.items():
            if (value := found.get(key)) is not None:
                better = "less" if metric in (FIRST_CALL, "peak memory") else ""
                records.append(result.Record(case, name, metric, unit, better, value))
    return records


STEP = "time of a step"
# (key of a worker's facts, unit)
FACTS = {
    FIRST_CALL: ("first_call_s", "s"),
    "peak memory": ("peak_mib", "MiB"),
    "graphs": ("graphs", ""),
    "graph breaks": ("graph_breaks", ""),
    "recompiled graphs": ("recompiled", ""),
    "kernels in a step": ("kernels", ""),
    "host-bound": ("host_bound", "%"),
}


def _case(size: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in size.items()) or "step"


def _lost(sizes: Any, name: str, error: WorkerFailed) -> list[result.Record]:
    return [
        result.without_value(_case(size), name, STEP, "ms", "failed", str(error)) for size in sizes
    ]
