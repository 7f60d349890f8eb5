"""The options of backend="opaq": those of lowering/options.py; Inductor's own pass through."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import _runtime, lowering, validate


@dataclass(frozen=True)
class Option:
    name: str
    type: type
    default: Any
    meaning: str
    accepted: tuple[Any, ...] = ()  # its values, where they are few


def _from_field(field: dataclasses.Field[Any]) -> Option:
    default = getattr(lowering.options.DEFAULT, field.name)
    if isinstance(default, tuple):
        default = list(default)  # as users write it
    return Option(field.name, type(default), default, **field.metadata)


OPTIONS = [_from_field(field) for field in dataclasses.fields(lowering.options.Options)]


def split(
    options: dict[str, Any], inductor_options: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(our options with defaults filled in, Inductor's). DeclarationError: an unknown key or a
    value of the wrong type.
    """
    table = {option.name: option for option in OPTIONS}
    ours = {option.name: option.default for option in OPTIONS}
    theirs = {}
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        validate.refuse(
            'torch.compile(backend="opaq")', "options", options, "a dict of options by name"
        )
    for key, value in options.items():
        if key in table:
            expected = table[key].type
            values = table[key].accepted
            if expected is list and isinstance(value, str) and value in values:
                value = [value]
            if (
                not isinstance(value, expected)
                or (expected is list and not all(isinstance(item, str) for item in value))
                or (expected is str and values and value not in values)
            ):
                accepted = {bool: "True or False", list: "a list of str"}.get(
                    expected, expected.__name__
                )
                if values:
                    listed = " or ".join(f'"{item}"' for item in values)
                    accepted = f"{listed} or {accepted}" if expected is list else listed
                raise _runtime.DeclarationError(
                    f'option "{key}" of backend="opaq": got {value!r}; expected {accepted} '
                    f"({table[key].meaning})"
                )
            if key == "prefer":
                for item in value:
                    _check_preference(item)
            ours[key] = value
        elif key.replace("-", "_") in inductor_options:
            theirs[key] = value
        else:
            hint = _hint(key, [*table, *inductor_options])
            listed = "\n".join(
                f"  {option.name} ({option.type.__name__}, default {option.default}): "
                f"{option.meaning}"
                for option in OPTIONS
            )
            raise _runtime.DeclarationError(
                f'backend="opaq" has no option "{key}"{hint} Its options:\n{listed}\nand every '
                "option of Inductor (torch._inductor.list_options())."
            )
    return ours, theirs


def _hint(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{nearest[0]}"?' if nearest else "."


def check_patterns(names: list[str]) -> None:
    """Raises DeclarationError unless the option "substitute" names patterns that are declared."""
    from .lowering.substitute.pattern import patterns

    if names == ["none"]:
        return
    for name in names:
        if name == "none":
            raise _runtime.DeclarationError(
                f'option "substitute" of backend="opaq": got {names!r}; "none" stands alone: '
                'give ["none"], or names of patterns'
            )
        if name != "all" and name not in patterns:
            raise _runtime.DeclarationError(
                f'option "substitute" of backend="opaq": got {name!r}{_hint(name, patterns)} '
                f'Expected "all", "none" or some of {", ".join(sorted(patterns))}'
            )


def _check_preference(item: str) -> None:
    """Raises DeclarationError unless it is "op=implementation,implementation"."""
    from .tuning import check_names  # which needs this package

    op, names = lowering.options.preference(item)
    where = f'option "prefer" of backend="opaq", {item!r}'
    if not names:
        raise _runtime.DeclarationError(
            f'{where}: expected an op and its implementations, "mylib::op=cublaslt,cuda"'
        )
    check_names(where, op, names)
