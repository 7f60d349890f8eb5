"""One model under several contestants of `opaq bench model`, each in a process of its own: the
first calls, which are checked, then turns.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import measure, result
from .model_worker import FIRST_CALL, Worker, WorkerFailed
from .wanted import Wanted

Step = Callable[[str], None]  # shows what is done now
STEP, DEVICE_TIME = "time of a step", "time of its kernels"
# (key of a worker's facts, unit)
FACTS = {
    FIRST_CALL: ("first_call_s", "s"),
    "peak memory": ("peak_mib", "MiB"),
    "graphs": ("graphs", ""),
    "graph breaks": ("graph_breaks", ""),
    "recompiled graphs": ("recompiled", ""),
    "kernels in a step": ("kernels", ""),
    DEVICE_TIME: ("device_ms", "ms"),
    "host-bound": ("host_bound", "%"),
}


@dataclasses.dataclass
class Contest:
    """folder: for what the workers write. patience: seconds for a first call."""

    wanted: Wanted
    names: Sequence[str]  # of the contestants
    folder: str
    patience: float
    workers: dict[str, Worker] = dataclasses.field(default_factory=dict)  # those that work
    _facts: dict[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    _ranked: dict[str, Worker] = dataclasses.field(default_factory=dict)  # those that are right

    def start(self, cases: Sequence[str], step: Step) -> list[result.Record]:
        """Starts the processes; returns records of those that fail, one for each case."""
        lost = []
        for number, name in enumerate(self.names):
            step(f"{name}: start")
            try:
                self.workers[name] = Worker(
                    self.wanted, name, f"{self.folder}/{number}", self.patience
                )
            except WorkerFailed as error:
                lost += [_lost(case, name, error) for case in cases]
        return lost

    def first_calls(self, case: str, size: Mapping[str, int], step: Step) -> list[result.Record]:
        """Each is checked against the first contestant. One that fails leaves `workers`, one that
        is wrong is not timed; returns their records."""
        lost = []
        self._facts, self._ranked = {}, {}
        for name, worker in list(self.workers.items()):
            step(f"{name}: first call")
            expected = f"{self.folder}/expected_{case}.pt"
            try:
                facts = worker.first_call(size, expected, not self._ranked)
            except WorkerFailed as error:
                lost.append(_lost(case, name, error))
                self.workers.pop(name).close()
                continue
            self._facts[name] = facts
            if facts["mistake"]:
                lost.append(result.without_value(case, name, STEP, "ms", "wrong", facts["mistake"]))
            else:
                self._ranked[name] = worker
        return lost

    def turns(self, case: str, rounds: int, step: Step) -> list[result.Record]:
        """Times those whose first call was right; then their memory and kernels."""
        failed: dict[str, WorkerFailed] = {}

        def seconds_of(name: str) -> float:
            try:
                return math.nan if name in failed else self._ranked[name].seconds_of_step()
            except WorkerFailed as error:
                failed[name] = error
                return math.nan

        calls = {name: functools.partial(seconds_of, name) for name in self._ranked}
        turns = measure.in_turns(calls, rounds, step)
        for name in failed:
            del turns[name], self._ranked[name]
            self.workers.pop(name).close()
        notes = {name: str(self._facts[name]["unchecked"]) for name in self._ranked}
        in_ms = {name: [each * 1e3 for each in times] for name, times in turns.items()}
        records = result.of_rounds(
            case,
            STEP,
            "ms",
            in_ms,
            to=next(iter(self._ranked), ""),
            notes={name: note for name, note in notes.items() if note},
        )
        records += [_lost(case, name, error) for name, error in failed.items()]
        for name, worker in self._ranked.items():
            step(f"{name}: memory and kernels")
            found = dict(self._facts[name])
            try:
                found |= worker.facts_of_step()
            except WorkerFailed as error:  # its times stand
                step(f"{name}: memory and kernels are unknown: {error}")
            for metric, (key, unit) in FACTS.items():
                if (value := found.get(key)) is not None:
                    better = "less" if metric in (FIRST_CALL, "peak memory", DEVICE_TIME) else ""
                    records.append(result.Record(case, name, metric, unit, better, value))
        return records

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def _lost(case: str, name: str, error: WorkerFailed) -> result.Record:
    return result.without_value(case, name, STEP, "ms", "failed", str(error))
