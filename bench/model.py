"""A model of the user's under several backends of torch.compile: compile time, time of a step, peak
memory, graphs, kernels, and whether the results are right.

Each contestant runs in a process of its own with empty caches, so that neither compiled code nor
memory is shared; the processes take turns, one at a time. Results are compared with those of the
first contestant and, where the model can be converted, with the same in float64 or float32.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping
from typing import Any

from opaq.user_file import WrongTarget

from .contest import Contest
from .table import Progress
from .wanted import Wanted, sizes_of

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
    # but for the commas of a list among options
    names = [name.strip() for name in re.split(r",(?![^\[]*\])", arguments.backend)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise WrongTarget(f"--backend: {twice[0]!r} is named twice; name each contestant once")
    sizes = {_case(size): size for size in sizes_of(arguments.dynamic)}
    with tempfile.TemporaryDirectory(prefix="opaq_bench_") as folder:
        contest = Contest(wanted, names, folder, arguments.timeout)
        try:
            progress.record(*contest.start(list(sizes), progress.step))
            for case, size in sizes.items():
                step = progress.of(case) if size else progress.step
                lost = contest.first_calls(case, size, step)
                progress.record(*contest.turns(case, arguments.rounds, step), *lost)
        finally:
            contest.close()
    return {"rounds": arguments.rounds, "sizes": len(sizes), "train": arguments.train}


def _case(size: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in size.items()) or "step"
