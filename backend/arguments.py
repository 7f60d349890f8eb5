"""Items of an argument list that are more than an expression: `opaq.cast`."""

from __future__ import annotations

from dataclasses import dataclass
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
