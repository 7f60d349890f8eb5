"""Examples of calls: arguments without memory, as the runtime takes them, and their texts."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .lowering.devices import device_name

if TYPE_CHECKING:
    from ._runtime import FakeArgument, OpInfo

_MOST_ALIGNED = 4096  # the largest alignment that expressions can see


def fake_argument(value: Any) -> Any:
    """A value as _runtime.plan and _runtime.compile take it: see `FakeArgument` in _runtime.pyi."""
    if isinstance(value, torch.Tensor):
        on_cuda = value.device.type == "cuda"  # else planned as on the CPU, meta tensors too
        address = value.data_ptr() if value.device.type != "meta" and value.numel() else 0
        return _described(value, value.device if on_cuda else torch.device("cpu"), address)
    return value


def example_argument(value: Any) -> Any:
    """As `fake_argument`, for an example that stands for tensors on any device: memory begins where
    an allocation would, whatever memory the example has.
    """
    if isinstance(value, torch.Tensor):
        return _described(value, torch.device("cpu"), value.storage_offset() * value.element_size())
    return value


def real_argument(value: FakeArgument) -> Any:
    """A value to call with for what fake_argument describes: tensors of random numbers (ints are 0,
    which is an index of everything).
    """
    if not isinstance(value, tuple):
        return value
    name, sizes, strides, device, _ = value
    dtype = getattr(torch, name)
    made = torch.empty_strided(tuple(sizes), tuple(strides), dtype=dtype, device=device)
    if not dtype.is_floating_point:
        return made.zero_()
    return made.copy_(torch.randn(tuple(sizes), device=device))


def on_device(
    example: Sequence[FakeArgument], info: OpInfo, device: str, row_major: Sequence[str]
) -> list[FakeArgument]:
    """The example with its tensors on a device, and these arguments row-major."""
    arguments: list[FakeArgument] = list(example)
    for i, (value, arg) in enumerate(zip(example, info["args"])):
        if isinstance(value, tuple) and arg["torch_type"] == "Tensor":
            dtype, sizes, strides, _, alignment = value
            if arg["name"] in row_major:
                strides = torch.empty(tuple(sizes), device="meta").stride()
            arguments[i] = (dtype, sizes, strides, device, alignment)
    return arguments


def as_text(example: Sequence[FakeArgument], info: OpInfo) -> str:
    """ "x bfloat16[8, 4096], eps 1e-06" """
    texts = []
    for value, arg in zip(example, info["args"]):
        if isinstance(value, tuple) and arg["torch_type"] == "Tensor":
            dtype, sizes, strides = value[:3]
            text = f"{dtype}[{', '.join(map(str, sizes))}]"
            if tuple(strides) != torch.empty(tuple(sizes), device="meta").stride():
                text += f" with strides ({', '.join(map(str, strides))})"
        else:
            text = repr(value).removeprefix("torch.")
        texts.append(f"{arg['name']} {text}")
    return ", ".join(texts) or "no arguments"


def parse(text: str, info: OpInfo) -> list[Any]:
    """Arguments from the text of a call's argument list: "bfloat16[8, 4096], bfloat16[4096],
    eps=1e-6". A tensor is its dtype and sizes, float32[()] without dimensions; a dtype alone is a
    dtype. Raises ValueError, which says what is wrong.
    """
    try:
        call = ast.parse(f"f({text}\n)", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"it is not written as the arguments of a call: {error.msg}") from error
    if not isinstance(call, ast.Call):
        raise ValueError("it is not written as the arguments of a call")
    names = [arg["name"] for arg in info["args"]]
    given = dict(zip(names, map(_value, call.args)))
    if len(call.args) > len(names):
        raise ValueError(f"it has {len(call.args)} arguments; the op takes {len(names)}")
    for keyword in call.keywords:
        if keyword.arg not in names:
            raise ValueError(f"the op has no argument {keyword.arg}; it has {', '.join(names)}")
        given[keyword.arg] = _value(keyword.value)
    values = []
    for arg in info["args"]:
        if arg["name"] not in given and arg["default"] is None:
            raise ValueError(f"argument {arg['name']} is missing")
        values.append(given.get(arg["name"], arg["default_value"]))
    return values


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Subscript):
        sizes = ast.literal_eval(node.slice)
        sizes = sizes if isinstance(sizes, tuple) else (sizes,)
        if all(isinstance(size, int) and size >= 0 for size in sizes):
            return torch.empty(sizes, dtype=_dtype(node.value), device="meta")
    elif isinstance(node, (ast.Name, ast.Attribute)):
        return _dtype(node)
    elif isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    else:
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError):
            pass
    raise ValueError(
        f"{ast.unparse(node)} is no argument; write a tensor as float32[8, 4096], a number, a "
        "text in quotes, a list of ints, a dtype, True, False or None"
    )


def _dtype(node: ast.expr) -> torch.dtype:
    name = ast.unparse(node)
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name} is no dtype; write a tensor as float32[8, 4096]")
    return found


def _described(value: torch.Tensor, device: torch.device, address: int) -> tuple[Any, ...]:
    alignment = _MOST_ALIGNED if address == 0 else address & -address
    return (
        str(value.dtype).removeprefix("torch."),
        tuple(value.shape),
        value.stride(),
        device_name(device),
        min(alignment, _MOST_ALIGNED),
    )
