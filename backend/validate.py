"""Checks and converts the values that users give to a declaration: accepts every form with only one
possible meaning, and refuses others with the parameter's name.

`where` is what a message begins with, such as "mylib::rms_norm: .cuda(...)". Every function raises
DeclarationError, which says what was given and what is accepted.
"""

from __future__ import annotations

import itertools
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from . import _runtime


class File(str):
    """Path of a file that holds code; made by `opaq.file`."""


Binary = bytes | File | Sequence[bytes | File]  # a sequence is linked together


def refuse(where: str, parameter: str, value: object, expected: str) -> NoReturn:
    """Raises DeclarationError with the value, its type, and what is accepted."""
    given = repr(value)
    given = given if len(given) <= 80 else given[:77] + "..."
    kind = "" if value is None else f" ({type(value).__name__})"
    raise _runtime.DeclarationError(f"{where}: {parameter}: got {given}{kind}; expected {expected}")


# The name of a file in the place of code (which has other characters in it, such as parentheses):
# the user forgot opaq.file(...).
_FILE_NAME = re.compile(
    r"[^\n;{}]+\.(cu|cuh|c|cc|cpp|cxx|h|hpp|ptx|cubin|fatbin|ltoir|o|a)", re.IGNORECASE
)
# A path of another name: code that defines a function has one of these characters.
_NO_CODE = re.compile(r"[^\n(){};#]*\w[./]\w[^\n(){};#]*")

_MOST_COMBINATIONS = 128
ARCH = re.compile(r"(sm|compute)_\d{2,3}[af]?")


def text(where: str, parameter: str, value: Any) -> str:
    """A str, which must not be an opaq.file."""
    if isinstance(value, File):
        refuse(where, parameter, value, "text; a file is for source=, binary= and libraries")
    if not isinstance(value, str):
        refuse(where, parameter, value, "a str")
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(where, parameter, value, "text that UTF-8 can hold; leave out the lone surrogate")
    return value


def flag(where: str, parameter: str, value: Any) -> bool:
    if not isinstance(value, bool):
        refuse(where, parameter, value, "True or False")
    return value


def choice(where: str, parameter: str, value: Any, accepted: Sequence[str]) -> str:
    """One of a few words."""
    if value not in accepted:
        refuse(where, parameter, value, "one of " + ", ".join(f'"{item}"' for item in accepted))
    return str(value)


def number(where: str, parameter: str, value: Any) -> int:
    """An int that fits 32 bits."""
    taken = _integer(value)
    if taken is None or not -(1 << 31) <= taken < 1 << 31:
        refuse(where, parameter, value, "an int of 32 bits")
    return taken


def expressions(where: str, parameter: str, value: Any) -> str:
    """One expression or int, or a list of them, as the text that the runtime parses."""
    items = value if isinstance(value, (list, tuple)) else (value,)
    texts = []
    for item in items:
        taken = _integer(item)
        if taken is None and not isinstance(item, str):
            refuse(where, parameter, value, "an int, an expression (a str), or a list of them")
        texts.append(str(taken) if taken is not None else text(where, parameter, item))
    return ", ".join(texts)


def texts(where: str, parameter: str, value: Any) -> list[str]:
    """A list of texts. A single str is refused: texts may hold commas and spaces, so it is not
    clear where to split it.
    """
    return _several(
        where,
        parameter,
        value,
        "a list of str",
        lambda item: isinstance(item, str),
        lambda item: text(where, parameter, item),
    )


def conditions(where: str, parameter: str, value: Any) -> list[str]:
    """One condition, or several."""
    return (
        [text(where, parameter, value)]
        if isinstance(value, str)
        else texts(where, parameter, value)
    )


def combinations(where: str, value: Any) -> list[dict[str, str]]:
    """All combinations of values by name, as texts; one without any for None."""
    if value is None:
        return [{}]
    expected = 'integers by name, such as {"BLOCK": [128, 256]}'
    if not isinstance(value, Mapping) or not value:
        refuse(where, "tune", value, expected)
    for name, choices in value.items():
        if not isinstance(name, str) or not name.isidentifier():
            refuse(where, "tune", value, expected)
        if not isinstance(choices, (list, tuple)) or not choices:
            refuse(where, f"tune[{name!r}]", choices, "a list of integers")
        if any(_integer(choice) is None for choice in choices):
            refuse(where, f"tune[{name!r}]", choices, "a list of integers")
    made = [dict(zip(value, map(str, chosen))) for chosen in itertools.product(*value.values())]
    if len(made) > _MOST_COMBINATIONS:
        refuse(where, "tune", value, f"at most {_MOST_COMBINATIONS} combinations, not {len(made)}")
    return made


def folders(where: str, parameter: str, value: Any) -> list[str]:
    """Paths of folders."""
    return _several(
        where,
        parameter,
        value,
        "a list of folders (str or pathlib.Path)",
        _is_path,
        lambda item: text(where, parameter, os.fspath(item)),
    )


def names(where: str, parameter: str, value: Any) -> str:
    """Names in one str, separated by commas, or in a list."""
    return (
        text(where, parameter, value)
        if isinstance(value, str)
        else ", ".join(texts(where, parameter, value))
    )


def tags(where: str, value: Any) -> tuple[torch.Tag, ...]:
    """Tags of torch.Tag, each once, in the order of their names."""
    given = [value] if isinstance(value, torch.Tag) else value
    if not isinstance(given, (list, tuple, set)) or not all(
        isinstance(tag, torch.Tag) for tag in given
    ):
        refuse(where, "tags", value, "torch.Tag.cudagraph_unsafe or another torch.Tag, or several")
    if torch.Tag.nondeterministic_seeded in given:
        raise _runtime.DeclarationError(
            f'{where}: tags has nondeterministic_seeded; write effects="random", which sets it'
        )
    return tuple(sorted(set(given) - {torch.Tag.pt2_compliant_tag}, key=str))


def function(where: str, parameter: str, value: Any, expected: str) -> Callable[..., Any]:
    if not callable(value):
        refuse(where, parameter, value, expected)
    return value


def source(where: str, value: Any) -> str | File:
    """Code as text, or the file that holds it."""
    if isinstance(value, File):
        return value
    if _is_path(value) and (
        not isinstance(value, str)
        or _FILE_NAME.fullmatch(value.strip())
        or _NO_CODE.fullmatch(value.strip())
    ):
        refuse(
            where,
            "source",
            value,
            f"code as text, or a file; write source=opaq.file({os.fspath(value)!r})",
        )
    return text(where, "source", value)


def binary(where: str, value: Any) -> bytes | File:
    """A cubin, fatbin, PTX or LTO-IR, or the file that holds it."""
    if isinstance(value, File):
        return value
    if _is_path(value) and (not isinstance(value, str) or _FILE_NAME.fullmatch(value.strip())):
        refuse(
            where,
            "binary",
            value,
            f"bytes, or a file; write binary=opaq.file({os.fspath(value)!r})",
        )
    if not isinstance(value, (bytes, bytearray, memoryview)):
        expected = "the bytes of a cubin, fatbin, PTX or LTO-IR, or opaq.file(path)"
        refuse(where, "binary", value, expected)
    return bytes(value)


def binaries(where: str, value: Sequence[Any]) -> list[bytes | File]:
    """Binaries that are linked together."""
    if not value:
        refuse(where, "binary", value, "what is linked together, such as [opaq.file(path), ...]")
    return [binary(f"{where}: binary[{i}]", item) for i, item in enumerate(value)]


def images(
    where: str, value: Mapping[Any, Any]
) -> list[tuple[str, bytes | File | list[bytes | File]]]:
    """Binaries by target, as {"sm_90a": opaq.file("k90.cubin")}; lists are linked together."""
    if not value:
        refuse(where, "binary", value, 'images by target, such as {"sm_90a": opaq.file(path)}')

    def image(arch: object, given: Any) -> bytes | File | list[bytes | File]:
        place = f"{where}: binary[{arch!r}]"
        return binaries(place, given) if isinstance(given, (list, tuple)) else binary(place, given)

    return [(text(where, "binary", arch), image(arch, given)) for arch, given in value.items()]


def library(where: str, value: Any, parameter: str = "path") -> str:
    """Path of a shared library. The loader searches for a name without a folder."""
    if not _is_path(value):
        refuse(where, parameter, value, "the path of a shared library (str or pathlib.Path)")
    path = text(where, parameter, str(os.fspath(value)))
    if not path:
        refuse(where, parameter, value, "the path of a shared library (str or pathlib.Path)")
    return os.path.abspath(path) if os.path.dirname(path) else path


def device_type(where: str, value: Any) -> str:
    """The type of the devices that an implementation runs on, without an index."""
    if value not in ("cuda", "cpu"):
        refuse(where, "device", value, '"cuda" or "cpu"')
    return str(value)


def _several(
    where: str,
    parameter: str,
    value: Any,
    expected: str,
    fits: Callable[[Any], bool],
    take: Callable[[Any], str],
) -> list[str]:
    if fits(value):
        refuse(where, parameter, value, f"{expected}; write {parameter}=[{os.fspath(value)!r}]")
    if not isinstance(value, Iterable) or isinstance(value, (bytes, dict)):
        refuse(where, parameter, value, expected)
    items = list(value)
    if not all(fits(item) for item in items):
        refuse(where, parameter, value, expected)
    return [take(item) for item in items]


def _is_path(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)
    )


def _integer(value: Any) -> int | None:
    """The value of an int, NumPy's included; None for anything else, such as a bool or a tensor."""
    if isinstance(value, bool) or type(value).__module__.partition(".")[0] == "torch":
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
