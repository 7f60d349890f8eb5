"""Files that go with a C++ wrapper: images, host code, and the manifest that `opaq inspect` reads;
in a package under their base names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import uuid
from typing import Any

from opaq import _runtime

from . import MANIFEST
from .compat.inductor import inductor


def write_code(content: bytes, stem: str, suffix: str) -> tuple[str, str]:
    """Writes code into Inductor's cache folder, under a name that holds its digest, unless it is
    there and undamaged. Returns (path, SHA-256).
    """
    digest = hashlib.sha256(content).hexdigest()
    folder = os.path.join(inductor.cache_dir(), "opaq", digest[:2])
    path = os.path.join(folder, f"{re.sub(r'[^A-Za-z0-9_]+', '_', stem)}_{digest[:16]}{suffix}")
    if _damage(path, digest):
        _write(path, content)
    return path, digest


def check_code(path: str, sha256: str, op: str) -> None:
    """Raises OSError if the file is missing or damaged. Inductor then takes its cache entry of the
    wrapper for lost and compiles the graph again, which writes the file."""
    damage = _damage(path, sha256)
    if damage:
        raise OSError(f"{op}: the code {path} {damage}; compile the model again")


def _damage(path: str, sha256: str) -> str:
    """What is wrong with a file; "" if its content has this digest."""
    try:
        with open(path, "rb") as stream:
            found = hashlib.sha256(stream.read()).hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if found == sha256 else f"is damaged (SHA-256 {found}; expected {sha256})"


def attach(wrapper: Any, path: str) -> str:
    """Has AOTInductor package a file; returns the name by which the wrapper's C++ finds it."""
    if path not in wrapper.additional_files:
        wrapper.additional_files.append(path)
    return os.path.basename(path) if inductor.packaged() else path


class Manifest:
    """The list of the ops in one package. Its file is written again for each op, since a wrapper
    does not say which op is its last.
    """

    def __init__(self, wrapper: Any) -> None:
        self._path = os.path.join(
            inductor.cache_dir(), "opaq", f"manifest_{uuid.uuid4().hex}", MANIFEST
        )
        self._functions: dict[str, dict[str, Any]] = {}
        wrapper.additional_files.append(self._path)

    def add(self, node: str, function: str, facts: dict[str, Any]) -> None:
        entry = self._functions.setdefault(function, {"function": function, "nodes": [], **facts})
        entry["nodes"].append(node)
        _write(
            self._path,
            json.dumps({"format": 1, "ops": list(self._functions.values())}, indent=1).encode(),
        )


def _write(path: str, content: bytes) -> None:
    """Writes a file atomically: other processes may write the same one."""
    temporary = None
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        # A folder in the way can be moved: nothing else makes files of such names.
        if os.path.isdir(path) and not os.path.islink(path):
            os.replace(path, f"{temporary}.folder")
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise _runtime.MissingError(
            f"the code of a compiled graph cannot be written to {path}: {error.strerror}; set "
            "TORCHINDUCTOR_CACHE_DIR to a folder that this process "
            "can write to"
        ) from error
