"""Items of an argument list that are more than an expression: `opaq.cast` and `opaq.struct`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

from . import validate
from .validate import File, refuse


@dataclass(frozen=True)
class Argument:
    """An item of `args`, as the text that the runtime parses."""

    text: str

    def __str__(self) -> str:
        return self.text


def cast(type: str, tensor: str) -> Argument:
    """In `args`: a tensor, passed as a pointer to another type than that of its dtype.

    type: the kernel's parameter, such as "const uint16_t*" for the bits of a float16 tensor. It
        must be the parameter's own type; without a cast, the parameter must point to the C++ type
        of the tensor's dtype, to void, to bytes or to a type of your own.
    tensor: the name of an argument or a result.

    `args='y, cast("const uint16_t*", weight)'` says the same in one text. Raises
    opaq.DeclarationError.
    """
    where = "opaq.cast(...)"
    written = validate.text(where, "type", type)
    if not written.strip() or '"' in written or "\\" in written:
        refuse(where, "type", type, 'the type of a pointer, such as "const uint16_t*"')
    return Argument(f'cast("{written.strip()}", {validate.text(where, "tensor", tensor)})')


def struct(type: str | EllipsisType = "", /, *rest: EllipsisType, **fields: object) -> Argument:
    """In `args`: a struct that the kernel takes by value, also as `const __grid_constant__`.

    type: its name, without namespaces and template arguments if you like; only to have it checked.
    rest: `...` where fields that are not given are zero. Without it, each must be given.
    fields: by their names in C++: an expression over arguments and results (of a tensor, its
        address), a number, opaq.cast(...), opaq.struct(...) or a dict for a struct, a list for an
        array ([1, 2], or [1, ...] where the other items are zero), and an int[] such as "x.shape"
        for an array of that length ("[*x.shape, ...]" for one that may be longer); a Tensor[] for
        an array of its addresses ("[*xs, ...]"), or of a value of each ("[x.numel() for x in xs]").
        A name that Python reserves is given as **{"in": "x"}.

    The layout of the struct is the compiler's own: when the kernel is compiled, every field is held
    against the struct's definition, and a wrong or missing one is an opaq.CompileError that says
    what there is. `args='y, struct("Params", x=x, n=x.numel())'` says the same in one text. Only
    for CUDA source: a binary does not tell layouts. Raises opaq.DeclarationError.
    """
    where = "opaq.struct(...)"
    if type is ...:
        type, rest = "", (..., *rest)
    name = validate.text(where, "type", type).strip()
    if '"' in name or "\\" in name:
        refuse(where, "type", type, 'the name of a struct, such as "Params"')
    if any(item is not ... for item in rest):
        refuse(where, "fields", rest[0], 'fields by name, as in opaq.struct("Params", x="x")')
    items = [f'"{name}"'] if name else []
    items += [f"{key}={_value(where, key, value)}" for key, value in fields.items()]
    return Argument(f"struct({', '.join(items + ['...'] * bool(rest))})")


def _value(where: str, name: str, value: Any) -> str:
    """The text of a field's value."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            refuse(where, name, value, "a dict of fields by name")
        return ", ".join(f"{key}={_value(where, key, item)}" for key, item in value.items()).join(
            ("struct(", ")")
        )
    if isinstance(value, (list, tuple)):
        items = ["..." if item is ... else _value(where, name, item) for item in value]
        return f"[{', '.join(items)}]"
    if isinstance(value, (bool, Argument)):
        return str(value)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str):
        return validate.text(where, name, value)
    refuse(where, name, value, "an expression, a number, a list, or a dict of fields")


def argument_list(where: str, value: Any) -> str:
    """An argument list as one text: a str, or a list of expressions, ints and Arguments."""
    items = value if isinstance(value, (list, tuple)) else (value,)
    if not all(
        isinstance(item, (str, int, Argument)) and not isinstance(item, bool | File)
        for item in items
    ):
        return validate.expressions(where, "args", value)  # refuses, or takes NumPy's ints
    return ", ".join(
        str(item) if isinstance(item, (int, Argument)) else validate.text(where, "args", item)
        for item in items
    )
