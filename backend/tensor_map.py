"""`opaq.tensor_map`: a TMA descriptor in an argument list."""

from __future__ import annotations

from collections.abc import Sequence

from . import validate
from .arguments import Argument

_Item = str | int
_Items = _Item | Sequence[_Item]


def tensor_map(
    tensor: str,
    box: _Items,
    *,
    shape: _Items | None = None,
    strides: _Items | None = None,
    element_strides: _Items | None = None,
    swizzle: str = "none",
    interleave: str = "none",
    l2_promotion: str = "none",
    oob_fill: str = "zeros",
    type: str | None = None,
) -> Argument:
    """In `args`: a tensor map (TMA descriptor) of a tensor, for a kernel's parameter
    `const __grid_constant__ CUtensorMap`, or for such a field of a struct.

    tensor: the name of an argument, a result or a scratch tensor. It may have any dtype but complex
        ones; an absent optional tensor gives a map of zeros.
    box: the tile that one copy moves: a number of elements for each dimension, 1 to 256, in the
        order of the tensor's sizes, the innermost last. (CUDA's own functions and the coordinates
        in the kernel count dimensions from the innermost.)
    shape, strides: the sizes and the strides in elements to map the tensor with, where these are
        not its own; `shape=["x.numel() // x.size(-1)", "x.size(-1)"]` makes it two-dimensional.
        Without strides, a shape is row-major.
    element_strides: the step between elements of a tile along each dimension, 1 to 8.
    swizzle: "none", "32B", "64B", "128B", "128B_atom_32B", "128B_atom_32B_flip_8B" or
        "128B_atom_64B".
    interleave: "none", "16B" or "32B".
    l2_promotion: "none", "64B", "128B" or "256B".
    oob_fill: what is read outside of the tensor: "zeros", or "nan" for floating-point types.
    type: for float32 tensors "tfloat32", "float32_ftz" or "tfloat32_ftz". By default the type is
        that of the tensor's dtype; dtypes of one byte are copied as uint8.

    Items of lists are ints or expressions; one alone stands for a list of one. The map is encoded
    when the op is launched, and again only when the tensor's address or one of these numbers
    changes. What CUDA asks of a map is checked before: 1 to 5 dimensions, an address and strides
    that are multiples of 16 bytes, an innermost stride of 1. A map reads the tensor's strides, but
    is no reason to pass it as it is: unless an expression reads them
    (`requires="x.stride(-1) == 1"`), the kernel gets it row-major, as for any other argument.

    `args='y, tensor_map(x, box=[64, 64], swizzle="128B")'` says the same in one text. Raises
    opaq.DeclarationError.
    """
    where = "opaq.tensor_map(...)"
    items = [validate.text(where, "tensor", tensor).strip()]
    lists = {"box": box, "shape": shape, "strides": strides, "element_strides": element_strides}
    for name, value in lists.items():
        if value is not None:
            items.append(f"{name}=[{validate.expressions(where, name, value)}]")
    modes = {
        "swizzle": swizzle,
        "interleave": interleave,
        "l2_promotion": l2_promotion,
        "oob_fill": oob_fill,
        "type": type,
    }
    for name, mode in modes.items():
        if mode is None:
            continue
        written = validate.text(where, name, mode)
        if '"' in written or "\\" in written:
            validate.refuse(where, name, mode, 'the name of a mode, such as "128B"')
        items.append(f'{name}="{written}"')
    return Argument(f"tensor_map({', '.join(items)})")
