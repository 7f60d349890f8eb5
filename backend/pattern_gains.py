"""Gains of patterns on this machine: measured by a process of its own (opaq.bench.pattern_worker),
and kept on disk, one JSON file for each place, beside the image cache.

A file that is malformed, of another environment or of ops that have changed since is a miss.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import subprocess
import sys
from typing import Any

from . import _runtime, tuning_store
from .lowering.substitute import searched
from .op import find_op

_FORMAT = 1
_PATIENCE = 600  # seconds for a measurement


class _Gains:
    def __init__(self) -> None:
        self._failed: dict[str, str] = {}  # why, by key: not tried again in this process

    def gain(self, place: searched.Place, search: bool) -> float | str:
        facts = _facts(place)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        folder = _runtime.settings()["cache_dir"]
        path = os.path.join(folder, "patterns", f"{key}.json") if folder else ""
        found = _read(path, facts)
        if found is not None:
            return found
        if not search:
            return ""
        if key not in self._failed:
            answer = _measured(place)
            if "gain" in answer:
                ops = {name: _hash(name) for name in answer["ops"]}
                content = {"format": _FORMAT, "facts": facts, "ops": ops, "gain": answer["gain"]}
                tuning_store.write(path, content)
                return float(answer["gain"])
            self._failed[key] = answer["why"]
        return self._failed[key]


def _facts(place: searched.Place) -> dict[str, Any]:
    """What a measurement is of."""
    pattern = place.pattern
    sources = [pattern.replacement, pattern.spellings[place.spelling]]
    return {
        "pattern": pattern.name,
        "sources": [_source(function) for function in sources],
        "training": place.training,
        "arguments": dict(place.arguments),
        "environment": tuning_store.environment(_runtime.cuda_driver()),
    }


def _source(function: Any) -> str:
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    except (OSError, TypeError):
        return repr(function)


def _hash(op: str) -> str:
    found = find_op(op)
    return "" if found is None else str(found.info["hash"])


def _read(path: str, facts: dict[str, Any]) -> float | None:
    try:
        with open(path, "rb") as stream:
            content = json.loads(stream.read().decode())
        if (content["format"], content["facts"]) != (_FORMAT, facts):
            return None
        if any(_hash(name) != hash for name, hash in content["ops"].items()):
            return None
        return float(content["gain"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _measured(place: searched.Place) -> dict[str, Any]:
    """{"gain": ..., "ops": [...]}, or {"why": ...}."""
    module = place.pattern.module
    if module == "__main__":
        return {"why": "a pattern is measured in a process of its own, which has to import it"}
    request = {
        "path": sys.path,
        "module": module,
        "pattern": place.pattern.name,
        "spelling": place.spelling,
        "training": place.training,
        "arguments": dict(place.arguments),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "opaq.bench.pattern_worker"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"why": f"measuring failed: {error}"}
    lines = done.stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
        return answer if "gain" in answer else {"why": str(answer["why"])}
    except (IndexError, ValueError, KeyError, TypeError):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"why": f"measuring failed: {last[0][:300]}"}


searched.installed = _Gains()
