"""The command line of `opaq bench`."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence

# Each is a module here with TITLE, add_arguments(parser) and run(arguments, progress), which gives
# (records, method). The first paragraph of its docstring says what is measured.
BENCHMARKS = {
    "model": "a model of yours under several backends of torch.compile",
    "boundary": "host time of one op, by way to add it and way to run it",
    "launch": "host time of one launch, step by step",
    "cold": "import, the first compile of a kernel, start from the disk cache",
    "compile": "compile time of graphs of 1 to 1000 nodes",
    "package": "what ops add to packages, and to the compile time of C++ wrappers",
    "memory": "peak memory of graphs that write to their arguments",
    "kernels": "the ops that opaq ships, beside eager, Inductor, max-autotune and a copy",
    "matmul": "matrix products by cuBLASLt, beside PyTorch's and max-autotune",
    "check": "what the contract check costs",
}


class Unavailable(Exception):
    """What a benchmark needs is missing here: one line."""


def add_parsers(bench: argparse.ArgumentParser, named: Sequence[str]) -> None:
    """The parsers of the benchmarks: with the arguments of the one that is named, if one is."""
    commands = bench.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, meaning in BENCHMARKS.items():
        if [name] != list(named):
            commands.add_parser(name, help=meaning)
            continue
        module = importlib.import_module(f"{__package__}.{name}")
        parser = commands.add_parser(
            name,
            help=meaning,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parser)
        parser.add_argument(
            "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU"
        )
        parser.add_argument("--rounds", type=_rounds, default=15, help="of turns; default: 15")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
        parser.add_argument("--output", metavar="PATH", help="write the result as JSON")
        parser.add_argument("--html", metavar="PATH", help="write the result as a page")
        parser.add_argument("--compare", metavar="PATH", help="show what changed since a result")


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number, at least 1")
    return int(text)


def run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """The exit status: 1 if a contestant was wrong or failed. argv: as typed, after `opaq`."""
    import torch

    from . import compare, page, result, table

    module = importlib.import_module(f"{__package__}.{arguments.benchmark}")
    old = compare.load(arguments.compare, arguments.benchmark) if arguments.compare else None
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif arguments.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("--device cuda: torch.cuda.is_available() is False here; use cpu")
    with table.Progress(sys.stderr) as progress:
        records, method = module.run(arguments, progress)
    made = result.make(
        arguments.benchmark,
        module.TITLE,
        module.__doc__,
        shlex.join(["opaq", *argv]),
        method,
        records,
    )
    if arguments.output:
        result.save(made, arguments.output)
    if arguments.html:
        with open(arguments.html, "w", encoding="utf-8") as stream:
            stream.write(page.html(made))
    print(result.as_json(made) if arguments.json else table.text(made))
    if old is not None:
        print(compare.text(old, made), file=sys.stderr if arguments.json else sys.stdout)
    lost = {"wrong", "failed"}
    return 1 if any(record["verdict"] in lost for record in made["records"]) else 0
