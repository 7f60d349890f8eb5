"""Host time of one op in a chain, for opaq and other ways to add the same kernel, beside a C++ loop
that does nothing but launch it.

The kernel computes a * b + a and does almost nothing: of 16 floats on the CPU, of 4096 on CUDA. An
op allocates its output, or Inductor does where the kernel is a node of its own. Contestants are
checked against PyTorch before they are timed.

added op         what one more op costs: the time of a chain less that of a chain of one op, divided
                 by the number of ops more
op in a chain    with its part of what a call costs once, whatever is in it
call of one op   all of what a call costs once, and one op
raw loop         a lower bound: launches from C++ into one output, on CUDA with cuLaunchKernel, on
                 the CPU through a pointer to the function
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import lists, measure, result
from .boundary_kernel import Absent, Kernel
from .boundary_peers import CPP, PEERS
from .boundary_ways import REPEATS, WARMUPS, WAYS, Chain, chain
from .command import Unavailable
from .table import Progress

TITLE = "Host time of one op"
FLOOR = "raw loop"
ADDED, IN_CHAIN, CALL = "added op", "op in a chain", "call of one op"
AGAINST_CPP = "added op, against a C++ op"
Rounds = Mapping[str, Sequence[float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chain",
        type=lists.numbers(1, 10_000),
        default=[50],
        metavar="LENGTH,...",
        help="ops in a chain; default: 50",
    )
    parser.add_argument(
        "--tensors",
        type=lists.numbers(1, 16),
        default=[2],
        metavar="COUNT,...",
        help="tensors that the op takes, 1 to 16; default: 2",
    )
    parser.add_argument(
        "--ways",
        type=lists.names(WAYS),
        metavar="WAY,...",
        help=f"of running a chain; default: all that the device has; {', '.join(WAYS)}",
    )
    parser.add_argument(
        "--only",
        type=lists.names(PEERS),
        default=list(PEERS),
        metavar="NAME,...",
        help=f"contestants; default: all; {', '.join(PEERS)}",
    )


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    device = arguments.device
    ways = arguments.ways or [
        name for name, way in WAYS.items() if device == "cuda" or not way.cuda_only
    ]
    for name in ways:
        if WAYS[name].cuda_only and device != "cuda":
            raise Unavailable(f"--ways {name} needs --device cuda; this runs on the {device}")
    with torch.no_grad():
        for tensors in arguments.tensors:
            turn = _Turn(Kernel(tensors, device), arguments, progress)
            for way in ways:
                progress.record(*turn.of_way(way))
    return {
        "rounds": arguments.rounds,
        "chain": arguments.chain,
        "tensors": arguments.tensors,
        "calls_in_a_round": REPEATS[device],
        "warmups_in_a_round": WARMUPS,
    }


class _Turn:
    """The contestants with the kernel of one number of tensors."""

    def __init__(self, kernel: Kernel, arguments: argparse.Namespace, progress: Progress) -> None:
        self._kernel, self._arguments, self._progress = kernel, arguments, progress
        self._operands = kernel.operands()
        self._of_kernel = "" if kernel.tensors == 2 else f", tensors: {kernel.tensors}"
        self._lost: dict[str, tuple[str, str]] = {}  # title: verdict and why
        self._ops: dict[str, Callable[..., torch.Tensor]] = {}
        self._floor: Callable[[], float] | None = None
        progress.step(f"{FLOOR}: compile")
        try:
            self._floor = kernel.floor_us(measure.synchronizer(kernel.device))
        except Exception as error:
            self._lost[FLOOR] = _why(error)
        for name in arguments.only:
            peer = PEERS[name]
            progress.step(f"{peer.title}: declare and compile the kernel")
            try:
                self._ops[name] = peer.make(kernel)
            except Exception as error:
                self._lost[peer.title] = _why(error)

    def of_way(self, way: str) -> list[result.Record]:
        lengths = sorted({1, *self._arguments.chain})
        lost, chains = dict(self._lost), {}
        names = [name for name in self._arguments.only if WAYS[way].takes(PEERS[name])]
        for name in names:
            title = PEERS[name].title
            if title not in lost:
                self._progress.step(f"{WAYS[way].title}, {title}: compile and check")
                try:
                    made = {length: self._chain(way, name, length) for length in lengths}
                except _Wrong as error:
                    lost[title] = ("wrong", str(error))
                except Exception as error:
                    lost[title] = _why(error)
                else:
                    chains[title] = made
        turns = {(title, n): each.us for title, made in chains.items() for n, each in made.items()}
        if self._floor is not None and WAYS[way].launches:
            turns[FLOOR, 1] = self._floor
        found = measure.in_turns(
            turns,
            self._arguments.rounds,
            self._progress.of(f"{WAYS[way].title}{self._of_kernel}"),
        )
        wanted = [FLOOR, *(PEERS[name].title for name in names)]
        missing = {title: lost[title] for title in wanted if title in lost}
        return self._records(WAYS[way].title, list(chains), found, missing)

    def _chain(self, way: str, name: str, length: int) -> Chain:
        """Raises _Wrong if its result is."""
        made = chain(way, self._ops[name], self._operands, length, self._kernel.device)
        expected, exact = self._operands[0], self._operands[0].double()
        rest = self._operands[1:]
        for _ in range(length):
            expected = self._kernel.reference(expected, *rest)
            exact = self._kernel.reference(exact, *(each.double() for each in rest))
        mistake = measure.mistake([made.result()], measure.Expected([expected], [exact]))
        if mistake:
            raise _Wrong(f"chain of {length}: {mistake}")
        return made

    def _records(
        self,
        way: str,
        titles: Sequence[str],
        found: Mapping[tuple[str, int], Sequence[float]],
        lost: Mapping[str, tuple[str, str]],
    ) -> list[result.Record]:
        """Of the rounds of all chains, in microseconds of a run."""
        floor = found.get((FLOOR, 1))
        to = FLOOR if floor is not None else ""

        def of(case: str, metric: str, rounds: Rounds) -> list[result.Record]:
            with_floor = {FLOOR: floor, **rounds} if floor is not None else rounds
            return result.of_rounds(case, metric, "us", with_floor, to=to, floor=to)

        def without_value(case: str, metric: str) -> list[result.Record]:
            return [
                result.without_value(case, title, metric, "us", *why) for title, why in lost.items()
            ]

        records: list[result.Record] = []
        one = {title: found[title, 1] for title in titles}
        for length in self._arguments.chain:
            if length == 1:
                continue
            case = f"{way}, chain of {length}{self._of_kernel}"
            whole = {title: found[title, length] for title in titles}
            added = {
                title: [(us - call) / (length - 1) for us, call in zip(whole[title], one[title])]
                for title in titles
            }
            records += of(case, ADDED, added) + without_value(case, ADDED)
            if PEERS[CPP].title in added and len(added) > 1:
                cpp = PEERS[CPP].title
                records += result.of_rounds(case, AGAINST_CPP, "us", added, to=cpp)
            in_chain = {title: [us / length for us in whole[title]] for title in titles}
            records += of(case, IN_CHAIN, in_chain)
        case = f"{way}{self._of_kernel}"
        records += of(case, CALL, one)
        return records if max(self._arguments.chain) > 1 else records + without_value(case, CALL)


class _Wrong(Exception):
    """How a contestant's result differs."""


def _why(error: Exception) -> tuple[str, str]:
    """The verdict on a contestant that raised this, and the reason."""
    if isinstance(error, Absent):
        return "absent", str(error)
    lines = str(error).strip().splitlines() or [""]
    return "failed", f"{type(error).__name__}: {lines[0][:200]}"
