"""What was measured, on disk: one JSON file for each op and environment, beside the image cache.

A file that is malformed, of another environment or of other implementations is a miss. Files are
written whole, under another name, and then renamed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import _runtime

if TYPE_CHECKING:
    from .tuning import Tuned

_FORMAT = 2
_LARGEST = 16 << 20  # bytes of a file that is read


@functools.cache
def _version() -> str:
    return importlib.metadata.version("opaq")


def environment(driver: str) -> dict[str, str]:
    """What a measurement depends on beside the op."""
    facts = {"opaq": _version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts |= {
            "device": properties.name,
            "multiprocessors": str(properties.multi_processor_count),
            "cuda": str(torch.version.cuda),
            "driver": driver,
            "cublaslt": _runtime.cublaslt_version(),
        }
    else:
        facts["device"] = "cpu"
    return facts


class Store:
    """The measurements of one op with its present implementations."""

    def __init__(self, op: str, hash: str, driver: str) -> None:
        self._op, self._hash = op, hash
        self._environment = environment(driver)
        digest = hashlib.sha256(json.dumps([op, hash, self._environment]).encode()).hexdigest()
        self._name = digest[:32]
        folder = _runtime.settings()["cache_dir"]
        self.path = os.path.join(folder, "tune", f"{self._name}.json") if folder else ""
        self._file: tuple[int, int] | None = None  # what `_choices` was read from
        self._choices: dict[str, dict[str, Any]] = {}
        self.agreed: set[tuple[str, str]] = set()  # forms and problems that this process asked for
        self.refresh()

    def refresh(self) -> None:
        """Reads the file if it has changed: another process may have written it."""
        try:
            found = os.stat(self.path)
            file = found.st_mtime_ns, found.st_ino
        except OSError:
            file = None
        if file is None or file != self._file:
            self._file, self._choices = file, self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        """By form and problem; {} for a file that is not one of ours."""
        try:
            with open(self.path, "rb") as stream:
                content = json.loads(stream.read(_LARGEST).decode())
            head = [content[key] for key in ("format", "op", "hash", "environment")]
            if head != [_FORMAT, self._op, self._hash, self._environment]:
                return {}
            choices = content["choices"]
            return {
                key: value
                for key, value in choices.items()
                if isinstance(value, dict) and isinstance(value.get("fastest"), str)
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def digest(self) -> str:
        """Of what was measured, for cache keys."""
        chosen = sorted((key, value["fastest"]) for key, value in self._choices.items())
        return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()

    def find(self, form: str, problem: _runtime.Problem) -> Tuned | None:
        from .tuning import Tuned

        kept = self._choices.get(_key(form, problem))
        if kept is None or kept["fastest"] not in problem["fits"]:
            return None
        us = kept.get("us")
        if not isinstance(us, Mapping) or not all(
            isinstance(value, (int, float)) for value in us.values()
        ):
            return None
        return Tuned(self._op, problem["text"], kept["fastest"], dict(us), stored=True)

    def key(self, form: str, problem: _runtime.Problem) -> str:
        """Of one problem, with its op and environment."""
        return f"{self._name} {_key(form, problem)}"

    def calls(self, form: str) -> list[list[Any]]:
        """The arguments of the calls that were measured, as FakeArgument but for tuples."""
        kept = (value.get("args") for key, value in self._choices.items() if _form(key) == form)
        return [args for args in kept if isinstance(args, list)]

    def keep(self, form: str, args: Sequence[Any], problem: _runtime.Problem, found: Tuned) -> None:
        self.refresh()
        self._choices[_key(form, problem)] = {
            "problem": problem["text"],
            "args": list(args),
            "fastest": found.fastest,
            "us": found.us,
        }
        content = {
            "format": _FORMAT,
            "op": self._op,
            "hash": self._hash,
            "environment": self._environment,
            "choices": self._choices,
        }
        write(self.path, content)

    def use(self, form: str, only_agreed: bool) -> None:
        """Has calls of the process use what was measured. only_agreed: not what is on disk alone,
        which other processes may not have.
        """
        chosen = {
            key.rpartition(" ")[2]: value["fastest"]
            for key, value in self._choices.items()
            if _form(key) == form
            and (not only_agreed or (form, key.rpartition(" ")[2]) in self.agreed)
        }
        _runtime.set_fastest(form, chosen)


def write(path: str, content: Mapping[str, Any]) -> None:
    """Nothing happens without a path, or where the disk refuses: it is measured again."""
    if not path:
        return
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder)  # readable by its owner alone
        with os.fdopen(handle, "w") as stream:
            json.dump(content, stream, indent=1, default=str)
        os.replace(temporary, path)
    except OSError:
        return


def _key(form: str, problem: _runtime.Problem) -> str:
    return f"{form} {problem['key']}"


def _form(key: str) -> str:
    return key.rpartition(" ")[0]


@functools.lru_cache(maxsize=1024)
def _stores(op: str, hash: str, driver: str, folder: str, device: int) -> Store:
    return Store(op, hash, driver)


def open_store(op: str, hash: str, driver: str) -> Store:
    """The store of an op, with what is on disk now."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else -1
    store = _stores(op, hash, driver, _runtime.settings()["cache_dir"] or "", device)
    store.refresh()
    return store
