"""Files that go with a C++ wrapper: images, host code, and the manifest that `opaq inspect` reads; in a package under their base names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import uuid
from typing import Any

from . import MANIFEST
from .compat.inductor import cache_dir, packaged


def write_code(content: bytes, stem: str, suffix: str) -> tuple[str, str]:
    """(path, SHA-256). Named by content, and written once."""
    digest = hashlib.sha256(content).hexdigest()
    folder = os.path.join(cache_dir(), "opaq", digest[:2])
    path = os.path.join(folder, f"{re.sub(r'[^A-Za-z0-9_]+', '_', stem)}_{digest[:16]}{suffix}")
    if not os.path.exists(path):
        _write(path, content)
    return path, digest


def attach(wrapper: Any, path: str) -> str:
    """Adds a file to what AOTInductor packages; the name by which the wrapper's C++ finds it."""
    if path not in wrapper.additional_files:
        wrapper.additional_files.append(path)
    return os.path.basename(path) if packaged() else path


class Manifest:
    """Of one package: rewritten with each op, since a wrapper does not say which op is its last."""

    def __init__(self, wrapper: Any) -> None:
        self._path = os.path.join(cache_dir(), "opaq", f"manifest_{uuid.uuid4().hex}", MANIFEST)
        self._functions: dict[str, dict[str, Any]] = {}
        wrapper.additional_files.append(self._path)

    def add(self, node: str, function: str, facts: dict[str, Any]) -> None:
        entry = self._functions.setdefault(function, {"function": function, "nodes": [], **facts})
        entry["nodes"].append(node)
        _write(self._path, json.dumps({"format": 1, "ops": list(self._functions.values())}, indent=1).encode())


def _write(path: str, content: bytes) -> None:
    """Whole or not at all: other processes write the same file."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    os.replace(temporary, path)
