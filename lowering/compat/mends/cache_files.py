"""Holds what Inductor reads from its cache folder against what was written: a file that was damaged
since is written again or taken for lost.

Inductor itself reads pickles of compiled graphs and runs Python wrappers as it finds them; a
changed byte can be another value in a launch. The names of the pickles are digests of their
content, and of a wrapper its source is at hand. Inductor's own C++ kernels (.so) carry no digest.
"""

from __future__ import annotations

import os
from typing import Any

from torch._inductor import codecache
from torch._inductor.output_code import CompiledFxGraph

__all__ = ["heal_files"]


def heal_files() -> None:
    """From now on, for every graph of the process."""
    candidates = (
        codecache.GuardedCache.iterate_over_candidates.__func__
    )  # of FxGraphCache and AOTAutogradCache
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
    """Whether every pickle that is left in the folder is as it was written."""
    try:
        paths = [
            entry.path for entry in os.scandir(folder) if not entry.name.startswith(".")
        ]  # others are being written
    except OSError:  # there is none, mostly
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
    if (
        content is not None and content.strip() != source.strip().encode()
    ):  # Inductor names sources by what stands between their blanks
        codecache.write_atomic(path, source, make_dirs=True)


def _content(path: str) -> bytes | None:
    """None where there is no such file, or it cannot be read, which Inductor tells."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return None
