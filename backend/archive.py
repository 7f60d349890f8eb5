"""Reads a zip file that may be damaged or hostile: reads only regular files, limits how much is
read, and reports every fault as Damaged.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from types import TracebackType

# Limit of one read, in bytes. zipfile reads the directory of the archive at once, so that this
# limits it to about 100,000 members.
MOST_AT_ONCE = 8 << 20
PIECE = 1 << 20  # members are read in pieces of this many bytes

# What zipfile and zlib raise, besides their own classes, where a file breaks the format's rules
# (RuntimeError: encryption, unknown methods).
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


class Damaged(ValueError):
    """The file, or a member of it, cannot be read; the message does not name it."""


class TooLarge(Damaged):
    """It is larger than the limit for what is read."""


class _Stream(io.BufferedReader):
    """Refuses large single reads, so that no number in the file can use up memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(
            MOST_AT_ONCE + 1 if size is None or size < 0 else min(size, MOST_AT_ONCE + 1)
        )
        if len(found) > MOST_AT_ONCE:
            raise TooLarge(f"its directory is larger than {MOST_AT_ONCE >> 20} MiB")
        return found


class Archive:
    """An open zip file. `names`: its members, no duplicates and no paths that leave the archive;
    `size`: of the file in bytes. Raises Damaged.
    """

    def __init__(self, path: str) -> None:
        try:
            self._zip = zipfile.ZipFile(_open_regular(path))
        except Damaged:
            raise
        except OSError as error:
            raise Damaged(error.strerror or str(error)) from error
        except _DAMAGE as error:
            raise Damaged(str(error) or type(error).__name__) from error
        self.size = os.fstat(self._zip.fp.fileno()).st_size
        self.names = self._zip.namelist()
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise Damaged(f"it holds {name!r} twice")
            if name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
                raise Damaged(f"its member {name!r} leads out of the archive")
            seen.add(name)

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stream = self._zip.fp
        self._zip.close()
        if stream is not None:
            stream.close()  # zipfile closes only files that it has opened

    def pieces(self, name: str, most: int) -> Iterator[bytes]:
        """The member's bytes in order. KeyError: there is no such member. TooLarge: it has more
        than `most` bytes, whatever size the archive gives for it.
        """
        entry = self._zip.getinfo(name)
        if entry.flag_bits & 1:
            raise Damaged("it is encrypted")
        # With the other methods, a few bytes may expand without limit.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Damaged(
                f"it is compressed by method {entry.compress_type}; expected stored or deflated"
            )
        if entry.file_size > most:
            raise TooLarge(f"it has {entry.file_size} bytes; at most {most} are read")
        left = most
        try:
            with self._zip.open(entry) as stream:
                while piece := stream.read(PIECE):
                    left -= len(piece)
                    if left < 0:
                        raise TooLarge(f"it has more than {most} bytes")
                    yield piece
        except Damaged:
            raise
        except _DAMAGE as error:
            raise Damaged(str(error) or type(error).__name__) from error

    def read(self, name: str, most: int) -> bytes:
        """The whole member; errors as of `pieces`."""
        return b"".join(self.pieces(name, most))


def _open_regular(path: str) -> _Stream:
    """Opens a regular file, without ever waiting. Checks before opening it that it is no pipe or
    device, and again afterwards, since it may have been replaced in between.
    """
    _refuse_irregular(os.stat(path).st_mode)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    stream = _Stream(io.FileIO(handle))
    try:
        _refuse_irregular(os.fstat(handle).st_mode)
    except Damaged:
        stream.close()
        raise
    return stream


def _refuse_irregular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    raise Damaged(
        f"it is {next((kind for test, kind in kinds if test(mode)), 'a device')}, not a file"
    )
