"""Ops that shared libraries declare in C++, by <opaq/op.h>."""

from __future__ import annotations

import os
from typing import Any

import torch

from . import _runtime, validate
from .op import Op, find_op, op_of_library

_problems: list[str] = []  # that nobody has been told
_loading = 0  # calls of load_library, which adopt the ops themselves
_refused: set[str] = set()  # ops whose declarations Python has refused


def load_library(path: str | os.PathLike[str]) -> tuple[Op, ...]:
    """Loads a shared library that declares ops in C++, as torch.ops.load_library does, and returns
    its ops. Loading it again returns them again. Raises opaq.DeclarationError for a wrong
    declaration, with its place in the library's source, and OSError if it cannot be loaded.
    """
    path = validate.library("opaq.load_library(...)", path)
    global _loading
    _loading += 1
    try:
        torch.ops.load_library(path)
    finally:
        _loading -= 1
    adopt()
    real = os.path.realpath(path)
    names = [each["name"] for each in _runtime.library_ops() if each["library"] == real]
    return tuple(op for op in map(find_op, names) if op)


def get_op(name: str) -> Op:
    """The op of this name, "mylib::rms_norm", declared in Python or in a library that is loaded.
    Raises opaq.DeclarationError, with the nearest name, if there is none.
    """
    adopt()
    validate.text("opaq.get_op(...)", "name", name)
    found = find_op(name)
    if found is None:
        _runtime.describe(name)  # says which names there are
        raise _runtime.DeclarationError(f"{name} is declared, but not as an op of its own")
    return found


def adopt() -> None:
    """Gives the ops of loaded libraries what torch.compile and autograd need. Raises
    DeclarationError for declarations that the libraries got wrong.
    """
    problems = [*_problems, *_runtime.library_failures()]
    _problems.clear()
    made = []
    for each in _runtime.library_ops():
        if find_op(each["name"]) or each["name"] in _refused:
            continue
        try:
            made.append((_op_of(each), each))
        except _runtime.DeclarationError as error:
            problems.append(f"{each['place']}: {error}")
            _refused.add(each["name"])
    for op, each in made:  # which may name each other
        try:
            if each["reference"]:
                op.reference(_calling(each["reference"]))
            if each["backward"]:
                op.backward(each["backward"], saves=each["saves"] or None)
        except _runtime.DeclarationError as error:
            problems.append(f"{each['place']}: {error}")
    if problems:
        raise _runtime.DeclarationError("\n".join(problems))


def _op_of(each: _runtime.LibraryOp) -> Op:
    name, effects = each["name"], each["effects"] or None
    known = {tag: getattr(torch.Tag, tag) for tag in dir(torch.Tag) if not tag.startswith("_")}
    for tag in each["tags"]:
        if not isinstance(known.get(tag), torch.Tag):
            raise _runtime.DeclarationError(f"{name}: tags: torch.Tag has no {tag!r}")
    tags = validate.tags(name, [known[tag] for tag in each["tags"]])
    return op_of_library(name, effects, tags)


def _calling(name: str) -> Any:
    namespace, _, name = name.partition("::")
    name, _, overload = name.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name)
    return getattr(packet, overload or "default")


def start() -> None:
    """Adopts what is loaded already, and from now on what will be. Wrong declarations of libraries
    that are loaded already are raised after the import of opaq, which works without them.
    """
    try:
        adopt()
    except _runtime.DeclarationError as error:
        _problems.append(str(error))
    _runtime.on_library(lambda: None if _loading else adopt())
