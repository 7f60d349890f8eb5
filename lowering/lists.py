"""Ops with lists (of tensors, floats, bools or strings). A call of one is a call of the op's form
for lists of these lengths, "mylib::f[3]": to the runtime an op of its own, of which each item of a
list is an argument. PyTorch knows the op with the lists alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opaq import _runtime

if TYPE_CHECKING:
    from opaq._runtime import OpInfo


def has_lists(info: OpInfo) -> bool:
    return any(arg["list"] for arg in info["args"])


def declared_name(op: str) -> str:
    """The op of which `op` is a form: "mylib::f" of "mylib::f[3]"."""
    return op.partition("[")[0]


def form_of(
    info: OpInfo, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[OpInfo, list[Any]]:
    """(the op's form for a call, the form's arguments in order, defaults filled in). Of an op
    without lists, the form is the op itself. Raises LaunchError for a list that is none, or that
    the declaration does not fit.
    """
    given = {**dict(zip((arg["name"] for arg in info["args"]), args)), **kwargs}
    values = [given.get(arg["name"], arg["default_value"]) for arg in info["args"]]
    if not has_lists(info):
        return info, values
    lengths, flat = [], []
    for arg, value in zip(info["args"], values):
        if not arg["list"]:
            flat.append(value)
            continue
        if not isinstance(value, (list, tuple)):
            raise _runtime.LaunchError(
                f"{info['name']}: argument `{arg['name']}` is a {type(value).__name__}; expected a "
                f"list: {arg['torch_type']}"
            )
        lengths.append(len(value))
        flat.extend(value)
    return _runtime.describe(_runtime.form(info["name"], lengths)), flat


def flat_names(form: OpInfo, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names of the declared op's arguments, as values by those of the form's."""
    lists = {name for name, _ in form["lists"]}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in lists:
            flat.update({f"{name}_{i}": item for i, item in enumerate(value)})
        else:
            flat[name] = value
    return flat


def grouped(declared: OpInfo, form: OpInfo, values: Sequence[Any]) -> list[Any]:
    """The arguments of the declared op from those of its form, and what comes after them."""
    sizes, at = dict(form["lists"]), 0
    arguments: list[Any] = []
    for arg in declared["args"]:
        size = sizes.get(arg["name"])
        arguments.append(values[at] if size is None else list(values[at : at + size]))
        at += 1 if size is None else size
    return [*arguments, *values[at:]]


def as_called(info: OpInfo, values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """(positional, keyword) arguments, from all of them in schema order."""
    pairs = list(zip(info["args"], values))
    return [value for arg, value in pairs if not arg["keyword_only"]], {
        arg["name"]: value for arg, value in pairs if arg["keyword_only"]
    }
