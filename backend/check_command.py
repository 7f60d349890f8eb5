"""`opaq check FILE_OR_MODULE[:op]`: checks the ops that a file or module declares."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from . import DeclarationError, Error, code_check, example_arguments
from .op import Op, declared_ops


class WrongTarget(ValueError):
    """What the user named cannot be loaded, or has no such op: one line."""


def run(
    target: str,
    archs: Sequence[str],
    examples: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """{"target", "ok", "problem", "ops": [`CodeCheck.as_dict()`]} and, under "reports", the
    CodeChecks. "problem": the declaration that was refused while the file was loaded, or None.
    Raises WrongTarget.
    """
    place, _, name = _split(target)
    try:
        module = _load(place)
    except DeclarationError as error:
        problem = f"{_line_of(error, place)}{error}"
        return {"target": target, "ok": False, "problem": problem, "ops": [], "reports": []}
    ops = _ops_of(module, place, name)
    if examples:
        if len(ops) != 1:
            raise WrongTarget(
                f"--example: {place} declares {len(ops)} ops: {', '.join(op.name for op in ops)}; "
                f"name the one that the example is for, as in {place}:{ops[0].name}"
            )
        for text in examples:
            try:
                ops[0].example(*example_arguments.parse(text, ops[0].info))
            except (ValueError, Error) as error:
                raise WrongTarget(f"--example {text!r}: {error}") from error
    try:
        chosen = code_check.archs_of("opaq check", archs)
        reports = [code_check.check(op.name, op.examples, chosen, progress) for op in ops]
    except DeclarationError as error:
        raise WrongTarget(str(error)) from error
    return {
        "target": target,
        "ok": all(report.ok for report in reports),
        "problem": None,
        "ops": [report.as_dict() for report in reports],
        "reports": reports,
    }


def as_text(found: dict[str, Any]) -> str:
    if found["problem"]:
        return f"PROBLEM: {found['problem']}"
    return "\n\n".join(map(repr, found["reports"]))


def _split(target: str) -> tuple[str, str, str]:
    """The file or module, and the op's name, which may have colons itself: f.py:mylib::scale."""
    return (target, "", "") if os.path.exists(target) else target.partition(":")


def _load(place: str) -> ModuleType:
    """Imports it, with its folder or the working folder in front of the search path, as Python
    does. What it prints goes to stderr.
    """
    is_file = place.endswith(".py") or os.sep in place or os.path.exists(place)
    if is_file and not os.path.isfile(place):
        raise WrongTarget(
            f"{place}: there is no such file; give a Python file that declares ops, or the name of "
            "a module"
        )
    if is_file and not place.endswith(".py"):
        hint = f"; `opaq new {place}` prints a declaration for a kernel file"
        raise WrongTarget(
            f"{place}: not a Python file, which ends in .py{hint if _is_code(place) else ''}"
        )
    sys.path.insert(0, os.path.dirname(os.path.abspath(place)) if is_file else os.getcwd())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            if not is_file:
                return importlib.import_module(place)
            name = os.path.basename(place).removesuffix(".py")
            spec = importlib.util.spec_from_file_location(name, place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
            return module
    except (DeclarationError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name == place.partition(".")[0]:
            raise WrongTarget(
                f"{place}: there is no such module; give the name of a module that can be "
                "imported here, or the path of a Python file"
            ) from error
        what = str(error).strip().splitlines()
        raise WrongTarget(
            f"{_line_of(error, place)}loading it raised {type(error).__name__}"
            + (f": {what[0]}" if what else "")
        ) from error


def _is_code(place: str) -> bool:
    return place.endswith((".cu", ".cuh", ".cpp", ".cc", ".h"))


def _line_of(error: BaseException, place: str) -> str:
    """ "kernels.py, line 12: ": the last line of the user's own that led to the error."""
    ours = os.path.dirname(os.path.abspath(__file__))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = os.path.abspath(frame.filename)
        if os.path.exists(file) and not file.startswith((ours, os.path.dirname(os.__file__))):
            return f"{os.path.relpath(file)}, line {frame.lineno}: "
    return f"{place}: "


def _ops_of(module: ModuleType, place: str, name: str) -> list[Op]:
    ops = declared_ops()
    if not ops:
        raise WrongTarget(f"{place}: it declares no op with opaq.op(...)")
    if not name:
        return ops
    named = getattr(module, name, None)
    if isinstance(named, Op):
        return [named]
    found = [op for op in ops if name in (op.name, op.name.partition("::")[2])]
    if not found:
        known = ", ".join(op.name for op in ops)
        raise WrongTarget(f"{place}: no op is named {name!r}; it has {known}")
    return found
