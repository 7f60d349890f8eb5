"""Checks what Inductor reads from its cache folder: a damaged file is written again or removed.

Inductor itself loads pickles of compiled graphs and runs Python wrappers without a check; a changed
byte can change a value in a launch. Names of pickles are digests of their content; a wrapper is
compared with its source, which is in the pickle. Inductor's own C++ kernels (.so) have no digest
and are not checked.
"""

from __future__ import annotations

import os
from typing import Any

from torch._inductor import codecache
from torch._inductor.output_code import CompiledFxGraph

__all__ = ["heal_files"]


def heal_files() -> None:
    """Installs the check for all graphs of the process."""
    # the base class of FxGraphCache and AOTAutogradCache
    candidates = codecache.GuardedCache.iterate_over_candidates.__func__
    write_to_disk, write = CompiledFxGraph.write_to_disk, codecache.PyCodeCache.write.__func__

    def iterate_over_candidates(cls: Any, local: bool, remote_cache: Any, key: str) -> Any:
        local = local and _remove_damaged(cls._get_tmp_dir_for_key(key))
        yield from candidates(cls, local, remote_cache, key)

    def write_cached(self: Any) -> str:
        _rewrite_damaged(codecache.get_path(self.cache_key, "py")[2], self.source_code)
        return write_to_disk(self)

    def write_new(cls: Any, source_code: str, extra: str = "") -> tuple[str, str]:
        key, path = write(cls, source_code, extra)
        _rewrite_damaged(path, source_code)
        return key, path

    codecache.GuardedCache.iterate_over_candidates = classmethod(iterate_over_candidates)
    CompiledFxGraph.write_to_disk = write_cached
    codecache.PyCodeCache.write = classmethod(write_new)


def _remove_damaged(folder: str) -> bool:
    """Removes damaged pickles from the folder. False if some may be left, or there is no folder."""
    try:
        # names that start with a dot are files being written
        paths = [entry.path for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError:  # most often there is no such folder
        return False
    for path in paths:
        content = _content(path)
        if content is not None and codecache.sha256_hash(content) != os.path.basename(path):
            try:
                os.unlink(path)
            except FileNotFoundError:  # another process did
                continue
            except OSError:
                return False
    return True


def _rewrite_damaged(path: str, source: str) -> None:
    content = _content(path)
    # Inductor's digest of a source ignores white space at both ends
    if content is not None and content.strip() != source.strip().encode():
        codecache.write_atomic(path, source, make_dirs=True)


def _content(path: str) -> bytes | None:
    """None if the file cannot be read; Inductor then reports the error."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return None
