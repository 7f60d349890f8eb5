"""What a declaration is made of: output rules and code from files."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Output:
    """Rule for one output, as texts in opaq's expression language; "" where not given."""

    like: str = ""
    shape: str = ""
    dtype: str = ""
    strides: str = ""
    device: str = ""


def like(argument: str, *, dtype: object = "", shape: object = "", strides: object = "") -> Output:
    """An output with the shape, dtype and device of `argument`, row-major; what is given replaces the argument's.

    like("x", dtype="float32") is x's shape in float32.
    """
    return Output(like=argument, shape=_text(shape), dtype=_dtype(dtype), strides=_text(strides))


def tensor(shape: object, *, dtype: object, strides: object = "", device: str = "") -> Output:
    """An output of the given shape and dtype; row-major unless `strides` (in elements) are given.

    shape: "x.size(0), 2 * y.size(-1)", or a sequence of ints and expressions; "x.shape[:-1]" is spliced.
    dtype: a torch.dtype, its name, or an expression such as "x.dtype".
    device: the argument whose device the output shares; the first tensor argument when not given.
    """
    return Output(shape=_text(shape), dtype=_dtype(dtype), strides=_text(strides), device=device)


class File(str):
    """Path of a file that holds code; made by `file`."""


def file(path: str | os.PathLike[str]) -> File:
    """Code from a file. A relative path is taken from the folder of the module that calls this."""
    path = os.fspath(path)
    if not os.path.isabs(path):
        caller = sys._getframe(1).f_globals.get("__file__")
        path = os.path.join(os.path.dirname(os.path.abspath(caller)) if caller else os.getcwd(), path)
    return File(os.path.normpath(path))


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "[]"  # the shape of a 0-d tensor
    return str(value)


def _dtype(value: object) -> str:
    return str(value).removeprefix("torch.")
