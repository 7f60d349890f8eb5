"""Reads the byte code of a function: a digest of it, and the names by which it reaches other
objects.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any

_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}


@dataclasses.dataclass(frozen=True)
class CodeFacts:
    """Facts about a code object and those nested in it, without file names and line numbers."""

    digest: str
    globals: tuple[str, ...]  # read by name from the function's globals, or from the builtins
    # attributes, imported names, and strings that could be names of attributes
    names: frozenset[str]
    imports: tuple[tuple[str, int], ...]  # modules imported while the function runs: name, level


@functools.lru_cache(maxsize=4096)
def code_facts(code: types.CodeType) -> CodeFacts:
    loaded: dict[str, None] = {}
    names: set[str] = set()
    imports: dict[tuple[str, int], None] = {}
    hash = hashlib.sha256()
    for part in _parts(code, loaded, names, imports):
        content = part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass")
        hash.update(b"%d:" % len(content))
        hash.update(content)
    return CodeFacts(hash.hexdigest(), tuple(loaded), frozenset(names), tuple(imports))


def _parts(
    code: types.CodeType,
    loaded: dict[str, None],
    names: set[str],
    imports: dict[tuple[str, int], None],
) -> Iterator[str | bytes | int]:
    instructions = list(dis.get_instructions(code))
    for position, instruction in enumerate(instructions):
        if instruction.opname in _GLOBAL:
            loaded[instruction.argval] = None
        elif instruction.opname == "IMPORT_NAME":  # after the level and the names to import
            level = instructions[position - 2].argval
            imports[instruction.argval, level if isinstance(level, int) else 0] = None
    names.update(code.co_names)
    yield code.co_code
    yield from (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    yield getattr(code, "co_exceptiontable", b"")
    for group in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
        yield from (len(group), *group)
    yield len(code.co_consts)
    for constant in code.co_consts:
        yield from _constant(constant, loaded, names, imports)


def _constant(
    value: Any, loaded: dict[str, None], names: set[str], imports: dict[tuple[str, int], None]
) -> Iterator[str | bytes | int]:
    yield type(value).__name__
    if isinstance(value, types.CodeType):
        yield from _parts(value, loaded, names, imports)
    elif isinstance(value, tuple):
        yield len(value)
        for item in value:
            yield from _constant(item, loaded, names, imports)
    elif isinstance(value, frozenset):  # whose order changes from process to process
        yield from sorted(repr([type(item).__name__, item]) for item in value)
    else:
        if isinstance(value, str) and len(value) < 100:
            names.update(part for part in value.split(".") if part.isidentifier())
        yield value if isinstance(value, bytes) else repr(value)
