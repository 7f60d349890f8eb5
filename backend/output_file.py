"""Files that commands write: one that cannot be written is refused before the work is done."""

from __future__ import annotations

import errno
import os


def check(path: str) -> None:
    """Raises OSError if write() cannot write there. Makes the folder."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not _is_stream(path):
        try:
            with open(_unfinished(path), "x"):
                pass
        except OSError as error:
            raise type(error)(error.errno, error.strerror, path) from None
        os.remove(_unfinished(path))


def write(text: str, path: str) -> None:
    """Writes the file as a whole: a failure leaves what was there. A device or a pipe, such as
    /dev/stdout, is written to."""
    written = path if _is_stream(path) else _unfinished(path)
    with open(written, "w", encoding="utf-8") as stream:
        stream.write(text)
    if written != path:
        os.replace(written, path)


def _unfinished(path: str) -> str:
    return f"{path}.{os.getpid()}.new"


def _is_stream(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path)
