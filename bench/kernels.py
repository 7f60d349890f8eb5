"""The ops that opaq ships, beside eager PyTorch, Inductor and its max-autotune, and PyTorch's
negation of float32 values that reads and writes as many bytes in all as the op must move.

On a GPU the time is that of replays of a CUDA graph with 20 calls, on operands that rotate through
more memory than the L2 cache holds, and an op that a pattern puts into models is there by its
pattern. On the CPU it is the time of a call, from cache. The floor is measured in the same way; an
op that reads more than it writes may be faster.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from opaq.lowering.substitute import apply, measured
from opaq.lowering.substitute.pattern import patterns
from opaq.user_file import WrongTarget

from . import device, lists, machine, measure, result
from .kernel_case import Call, Case
from .kernel_cases import cases
from .table import Progress

TITLE = "Shipped ops beside PyTorch, Inductor and a copy"
METRIC = "time of a call"
FLOOR = "negation of as many bytes"
Turns = Mapping[str, Sequence[float]]
CONTESTANTS = ("opaq", "eager", "inductor", "max-autotune")
DTYPES = ("bfloat16", "float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", default="", metavar="TEXT;...", help="cases whose name contains one of them"
    )
    parser.add_argument(
        "--contestants",
        type=lists.names(CONTESTANTS),
        default=list(CONTESTANTS),
        metavar="NAME,...",
        help=f"of {', '.join(CONTESTANTS)}; default: all",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="write what was measured beside the patterns that put these ops into models; more "
        "sizes are measured, between which those of models are",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="",
        help="of the operands that may have any; default: bfloat16, on the CPU float32",
    )
    parser.add_argument("--small", action="store_true", help="few rows: to try the command")


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    names = arguments.contestants
    if arguments.update and (arguments.device != "cuda" or arguments.small):
        raise WrongTarget("--update: expected a GPU and all rows")
    if arguments.update and (missing := {"opaq", "inductor"} - set(names)):
        raise WrongTarget(f"--update: expected {missing.pop()!r} among the contestants")
    rows = 0.001 if arguments.small else 1.0
    every = cases(arguments.device, rows, arguments.update, arguments.dtype)
    texts = arguments.only.split(";")
    chosen = [case for case in every if any(text in case.name for text in texts)]
    if not chosen:
        known = ", ".join(case.name for case in every)
        raise WrongTarget(f"--only: no case has {arguments.only!r} in its name; there are {known}")
    written = _facts() if arguments.update else {}
    for case in chosen:
        with torch.no_grad():
            records, turns = _of_case(case, names, arguments, progress)
        progress.record(*records)
        if arguments.update and case.pattern and (gain := _gain(turns)) is not None:
            _update(case, gain, written)
    facts = {"rounds": arguments.rounds, "l2_flushed": arguments.device == "cuda"}
    return facts | ({"dtype": arguments.dtype} if arguments.dtype else {})


def _of_case(
    case: Case, names: list[str], arguments: argparse.Namespace, progress: Progress
) -> tuple[list[result.Record], Turns]:
    """The records, and the times of each round by contestant."""
    torch.compiler.reset()
    on_gpu = arguments.device == "cuda"
    is_in_model = on_gpu and bool(case.pattern) and case.substituted
    sets = device.operands(case.make) if on_gpu else [case.make()]
    autotuned = torch.compile(case.plain, dynamic=False, mode="max-autotune-no-cudagraphs")
    calls = {
        "opaq": case.call(_substituted(case) if is_in_model else case.op),
        "eager": case.call(case.plain),
        "inductor": case.call(torch.compile(case.plain, dynamic=False)),
        "max-autotune": case.call(autotuned),
    }
    plain = calls["eager"]
    expected = measure.Expected(
        _results(case, plain, sets[0]), _results(case, plain, _wide(sets[0]))
    )
    timed: dict[str, Callable[[], float]] = {}
    lost = []
    for name in names:
        progress.step(f"{case.name}: {name}")
        try:
            if wrong := measure.mistake(_results(case, calls[name], sets[0]), expected):
                lost.append(result.without_value(case.name, name, METRIC, "us", "wrong", wrong))
                continue
            timed[name] = device.call_us(calls[name], sets, on_gpu)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:300]
            lost.append(result.without_value(case.name, name, METRIC, "us", "failed", why))
    bytes_moved = case.bytes(sets[0])

    # half of them are read, half written
    def buffers() -> device.Tensors:
        half = max(1, bytes_moved // 8)
        return [torch.zeros(half, device=arguments.device) for _ in range(2)]

    copies = device.operands(buffers) if on_gpu else [buffers()]
    timed[FLOOR] = device.call_us(lambda a, b: torch.neg(a, out=b), copies, on_gpu)
    turns = measure.in_turns(timed, arguments.rounds, progress.of(case.name))
    baseline = next((name for name in names if name in timed), "")
    records = result.of_rounds(case.name, METRIC, "us", turns, to=baseline, floor=FLOOR)
    return [*records, *lost], turns


def _substituted(case: Case) -> Call:
    """What the op's pattern makes of its meaning in PyTorch, as in a model; the op where only what
    is around it in a model makes that a place of the pattern."""
    options = {"substitute": [case.pattern]}
    compiled = torch.compile(case.plain, dynamic=False, backend="opaq", options=options)
    chosen: Call | None = None

    def call(*args: Any) -> Any:
        nonlocal chosen
        if chosen is None:
            with apply.collected() as found:
                compiled(*args)
            chosen = compiled if any(each.applied for each in found) else case.op
        return chosen(*args)

    return call


def _gain(turns: Turns) -> float | None:
    """How many times as fast the op is as the best that Inductor makes, or as eager PyTorch where
    Inductor makes nothing; 0 if it is wrong; None if there is nothing to compare with."""
    theirs = [turns[name] for name in ("inductor", "max-autotune") if name in turns]
    theirs = theirs or [turns[name] for name in ("eager",) if name in turns]
    if not theirs:
        return None
    if "opaq" not in turns:
        return 0.0
    return statistics.median(
        min(times) / ours for ours, times in zip(turns["opaq"], zip(*theirs, strict=True))
    )


def _facts() -> dict[str, Any]:
    """Of the measurements: what is written with them."""
    known = machine.facts()
    facts = {"command": "opaq bench kernels --update", "date": datetime.date.today().isoformat()}
    return facts | {name: known[name] for name in ("device", "driver", "cuda", "torch")}


def _update(case: Case, gain: float, facts: dict[str, Any]) -> None:
    """Writes a measurement beside the pattern."""
    file = patterns[case.pattern].measurements
    assert file is not None, case.pattern
    major, minor = torch.cuda.get_device_capability()
    point = measured.Point(
        f"sm_{major}{minor}", case.dtype, case.training, *case.sizes, round(gain, 3), case.form
    )
    measured.write(file, [point], facts)


def _results(case: Case, call: Callable[..., Any], operands: device.Tensors) -> list[torch.Tensor]:
    for i in case.written:
        operands[i].zero_()  # what another call wrote is none of this one's results
    found = case.compared(operands, call(*operands))
    return [measure.sampled(each).clone() for each in measure.tensors_in(found)]


def _wide(operands: device.Tensors) -> device.Tensors:
    return [
        each.double() if isinstance(each, torch.Tensor) and each.is_floating_point() else each
        for each in operands
    ]
