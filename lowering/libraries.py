"""Tells installed libraries, which a digest identifies by name and version, from the user's own
modules, which it identifies by content.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import site
import sys
import sysconfig
import types

import torch

_PYTHON = f"python {sys.version}"


def library_of(module: types.ModuleType | str | None) -> str | None:
    """A text that identifies an installed library and its version; None for a user's module. Takes
    a module or its name.
    """
    name = module.__name__ if isinstance(module, types.ModuleType) else module
    if not isinstance(name, str) or name == "__main__":
        return None
    top = name.partition(".")[0]
    if top == "torch":
        return f"torch {torch.__version__} {torch.version.git_version}"
    if top == "opaq":
        return "opaq"  # cache_key.own_digest() holds its content
    if top in sys.builtin_module_names:
        return _PYTHON
    found = module if isinstance(module, types.ModuleType) else sys.modules.get(name)
    file = getattr(found, "__file__", None)
    if file is None:
        return _PYTHON if top in sys.stdlib_module_names else None
    return library_at(file)


@functools.lru_cache(maxsize=4096)
def library_at(file: str) -> str | None:
    """The same for a file."""
    path = os.path.realpath(file)
    for folder in _installed():
        if path.startswith(folder + os.sep):
            return _stamp(folder, path[len(folder) + 1 :].split(os.sep)[0])
    if any(path.startswith(folder + os.sep) for folder in _standard()):
        return _PYTHON
    return None


@functools.cache
def _standard() -> tuple[str, ...]:
    return tuple(os.path.realpath(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib"))


@functools.cache
def _installed() -> tuple[str, ...]:
    """Folders of installed packages, the deepest first; the standard library's folder often holds
    one of them.
    """
    folders = {
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *getattr(site, "getsitepackages", list)(),
    }
    folders.add(site.getusersitepackages())
    folders |= {
        path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")
    }
    return tuple(
        sorted({os.path.realpath(folder) for folder in folders if folder}, key=len, reverse=True)
    )


@functools.lru_cache(maxsize=256)
def _stamp(folder: str, top: str) -> str:
    """Identifies the code of an installed package by the sizes and times of its files: installing
    other code changes some of them.
    """
    root = pathlib.Path(folder, top)
    hash = hashlib.sha256()
    files = (
        sorted(path for path in root.rglob("*") if path.suffix in (".py", ".so"))
        if root.is_dir()
        else [root]
    )
    for path in files:
        try:
            facts = path.stat()
        except OSError:
            continue
        hash.update(
            f"{path.relative_to(folder)} {facts.st_size} {facts.st_mtime_ns}\n".encode(
                errors="surrogatepass"
            )
        )
    return f"{top} {hash.hexdigest()}"
