"""One choice for equal calls in all processes of torch.distributed: that of the first to make it.

A process puts its choice into the key-value store by which the processes have found each other, and
waits for nobody: one that compiles or tunes alone goes on alone, and those that come to the same
call later take over its choice.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from . import _runtime
from .lowering import record
from .lowering.compat import pytorch

if TYPE_CHECKING:
    from .tuning import Tuned

NOTHING = "null"  # the answer of a process that has nothing stored, and does not measure

_repeated: Counter[str] = Counter()  # how often this process was told to measure again


class Question:
    """Which implementation serves the calls that `key` describes. again: earlier answers do not
    count; all processes must then ask again equally often.
    """

    def __init__(self, key: str, again: bool) -> None:
        _repeated[key] += again
        self._key = f"opaq {key} {_repeated[key]}"
        self._store = pytorch.rendezvous_store()

    def answer(self) -> str:
        """Of another process; "" if there is none yet."""
        return self._ask(lambda store: store.get(self._key) if store.check([self._key]) else b"")

    def agree(self, own: Tuned | None, replaces: str = "") -> str:
        """Makes `own` the answer of all, unless there is one already that is not `replaces`.
        Returns what is the answer.
        """
        mine = NOTHING if own is None else json.dumps(dataclasses.asdict(own))
        return self._ask(lambda store: store.compare_set(self._key, replaces, mine)) or mine

    def _ask(self, ask: Any) -> str:
        if self._store is None:
            return ""
        try:
            return ask(self._store).decode()
        except RuntimeError as error:  # its process has ended, or it cannot compare and set
            record.log.warning(
                "processes may choose different implementations: their store does not answer: %s",
                error,
            )
            self._store = None
            return ""


def read(answer: str, problem: _runtime.Problem) -> Tuned | None:
    """None for an implementation that does not fit this process's call."""
    from .tuning import Tuned

    found = json.loads(answer)
    if found is None or found["fastest"] not in problem["fits"]:
        return None
    return Tuned(**found)


def are_several() -> bool:
    return pytorch.rendezvous_store() is not None
