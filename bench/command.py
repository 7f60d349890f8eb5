"""The command line of `opaq bench`."""

from __future__ import annotations

import argparse
import importlib
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Each is a module here with TITLE, add_arguments(parser) and run(arguments, progress), which adds
# records to `progress` and returns the method, facts by name. The first paragraph of its docstring
# says what is measured.
BENCHMARKS = {
    "model": "a model of yours under several backends of torch.compile",
    "models": "a set of unmodified models: training steps, decoding, experts",
    "boundary": "host time of one op, by way to add it and way to run it",
    "launch": "host time of one launch, step by step",
    "cold": "import, the first compile of a kernel, start from the disk cache",
    "compile": "compile time of graphs of 1 to 1000 nodes",
    "package": "what ops add to packages, and to the compile time of C++ wrappers",
    "memory": "peak memory of graphs that write to their arguments",
    "linear_loss": "a linear layer and its loss: time beside its matrix products, peak memory",
    "kernels": "the ops that opaq ships, beside eager, Inductor, max-autotune and a lower bound",
    "matmul": "matrix products by cuBLASLt, beside PyTorch's and max-autotune",
    "check": "what the contract check costs",
}
SHOW = "show"
TERMINATED = 143  # as shells report SIGTERM


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
        parser.add_argument("--output", metavar="PATH", help="write the result as JSON")
        _add_ways_to_show(parser)
    show = commands.add_parser(SHOW, help="a result that was written: as text, page, plot or table")
    show.add_argument("result", help="a file that --output wrote")
    show.add_argument("--svg", metavar="PATH", help="write a plot of one metric")
    show.add_argument("--markdown", action="store_true", help="print a table of one metric")
    show.add_argument("--metric", help="of --svg and --markdown; default: the first")
    show.add_argument(
        "--cases",
        type=lambda text: text.split(";"),
        metavar="CASE;...",
        help="of them; default: all",
    )
    _add_ways_to_show(show)


def _add_ways_to_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--html", metavar="PATH", help="write the result as a page")
    parser.add_argument("--compare", metavar="PATH", help="show what changed since a result")


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number, at least 1")
    return int(text)


def run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """The exit status: 1 if a contestant was wrong or failed. argv: as typed, after `opaq`."""
    from opaq import output_file

    from . import compare, result

    def old(benchmark: str) -> dict[str, Any] | None:
        return compare.load(arguments.compare, benchmark) if arguments.compare else None

    if arguments.benchmark == SHOW:
        made = compare.load(arguments.result)
        _show(made, old(made["benchmark"]), arguments)
        return 0
    before = old(arguments.benchmark)  # first: a mistake is told at once
    for path in filter(None, (arguments.output, arguments.html)):
        output_file.check(path)  # what was measured would be lost with it
    made = _measured(arguments, argv)
    if arguments.output:
        output_file.write(result.as_json(made), arguments.output)
    _show(made, before, arguments)
    return 1 if any(record["verdict"] in ("wrong", "failed") for record in made["records"]) else 0


def _measured(arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """The result. If the run is stopped, the records that there are go to --output."""
    import torch

    from opaq import output_file

    from . import result, table

    module = importlib.import_module(f"{__package__}.{arguments.benchmark}")
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif arguments.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("--device cuda: torch.cuda.is_available() is False here; use cpu")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    with table.Progress(sys.stderr) as progress:

        def made(method: Mapping[str, Any]) -> dict[str, Any]:
            return result.make(
                arguments.benchmark,
                module.TITLE,
                module.__doc__,
                shlex.join(["opaq", *argv]),
                method,
                [result.Record(**record) for record in progress.records],
            )

        try:
            return made(module.run(arguments, progress))
        except BaseException as stop:
            if arguments.output and progress.records:
                stopped = made({"stopped_by": type(stop).__name__})
                output_file.write(result.as_json(stopped), arguments.output)
            raise


def _show(
    made: Mapping[str, Any], old: Mapping[str, Any] | None, given: argparse.Namespace
) -> None:
    from opaq import output_file

    from . import compare, markdown, page, plot, result, table

    metric, cases = getattr(given, "metric", None), getattr(given, "cases", None)
    if given.html:
        output_file.write(page.html(made), given.html)
    try:
        if getattr(given, "svg", None):
            output_file.write(plot.plot(made, metric, cases), given.svg)
        if getattr(given, "markdown", False):
            print(markdown.table(made, metric, cases))
            return
    except ValueError as error:
        raise Unavailable(f"opaq bench show: {error}") from error
    print(result.as_json(made) if given.json else table.text(made))
    if old is not None:
        print(compare.text(old, made), file=sys.stderr if given.json else sys.stdout)
