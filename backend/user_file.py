"""Loads the Python file or module that a command names: "kernels.py", "package.module:name"."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from . import DeclarationError


class WrongTarget(ValueError):
    """What the user named cannot be loaded, or is not what the command needs: one line."""


def split(target: str) -> tuple[str, str]:
    """(file or module, what is named in it), which may have colons itself: f.py:mylib::scale."""
    place, _, name = (target, "", "") if os.path.exists(target) else target.partition(":")
    return place, name


MODEL = "that returns (model, args) or (model, args, kwargs)"


def model_of(target: str, made: Any) -> tuple[Any, Sequence[Any], Mapping[str, Any]]:
    """(model, args, kwargs) of what a function returned. Raises WrongTarget."""
    if not (
        isinstance(made, (tuple, list))
        and len(made) in (2, 3)
        and callable(made[0])
        and isinstance(made[1], (tuple, list))
        and isinstance((*made, {})[2], Mapping)
    ):
        got = type(made).__name__
        if isinstance(made, (tuple, list)):
            got = f"({', '.join(type(item).__name__ for item in made)})"
        raise WrongTarget(
            f"{target}: it returned {got}; expected (model, args) or (model, args, kwargs): a "
            "module or function, a tuple, and a dict"
        )
    return (*made, {})[:3]


def function_in(target: str, what: str) -> Any:
    """The function that "FILE_OR_MODULE:name" names. what: which function it is, for errors: "that
    returns a model and its arguments". Raises WrongTarget.
    """
    place, name = split(target)
    if not name:
        raise WrongTarget(
            f"{target}: it names no function; give FILE_OR_MODULE:name, a function {what}"
        )
    try:
        module = load(place, f"with a function {what}")
    except DeclarationError as error:
        raise WrongTarget(f"{line_of(error, place)}{error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise WrongTarget(
            f"{place}: it has no function {name!r}; expected one {what}"
            + (f" (it has {', '.join(known)})" if known else "")
        )
    return function


def load(place: str, what: str) -> ModuleType:
    """Imports it, with its folder or the working folder in front of the search path, as Python
    does. What it prints goes to stderr. what: in errors, which file: "that declares ops". Raises
    WrongTarget, and DeclarationError as it comes.
    """
    is_file = place.endswith(".py") or os.sep in place or os.path.exists(place)
    if is_file and not os.path.isfile(place):
        raise WrongTarget(
            f"{place}: there is no such file; give a Python file {what}, or the name of a module"
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
            f"{line_of(error, place)}loading it raised {type(error).__name__}"
            + (f": {what[0]}" if what else "")
        ) from error


def _is_code(place: str) -> bool:
    return place.endswith((".cu", ".cuh", ".cpp", ".cc", ".h"))


def line_of(error: BaseException, place: str) -> str:
    """ "kernels.py, line 12: ": the last line of the user's own that led to the error."""
    ours = os.path.dirname(os.path.abspath(__file__))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = os.path.abspath(frame.filename)
        if os.path.exists(file) and not file.startswith((ours, os.path.dirname(os.__file__))):
            return f"{os.path.relpath(file)}, line {frame.lineno}: "
    return f"{place}: "
