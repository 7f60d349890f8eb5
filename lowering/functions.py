"""The functions of the expression language for numbers and tensors in Python, under the names that
runtime/expr prints. They compute what the evaluator in C++ computes.

Errors are LaunchError, as there. Symbolic sizes stay symbolic where PyTorch allows it, and are not
checked for overflow, since no size is that large. lowering/symbolic.py evaluates expressions whose
sizes are known only at the launch.
"""

from __future__ import annotations

import functools
import math
import operator
import struct
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import torch

from opaq import _runtime

INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1
_RANGES = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "int64": (INT_MIN, INT_MAX),
    "uint64": (0, INT_MAX),
}
_LARGEST_ALIGNMENT = 4096


class Functions:
    """The object that printed expressions call `opaq`. It has no state."""

    def evaluate(self, text: str, values: Mapping[str, Any]) -> Any:
        """The value of an expression that runtime/expr printed, over arguments by name."""
        return eval(compiled(text), {**identifiers(values), "__builtins__": {}, "opaq": self})

    torch = torch  # expressions write dtypes as opaq.torch.float32

    # ---- arithmetic: two ints or two floats ------------------------------------------------------

    def Neg(self, a: Any) -> Any:
        return _int64(-a, f"-({a})")

    def Abs(self, a: Any) -> Any:
        return _int64(abs(a), f"abs({a})")

    def Add(self, a: Any, b: Any) -> Any:
        return _int64(a + b, f"{a} + {b}")

    def Sub(self, a: Any, b: Any) -> Any:
        return _int64(a - b, f"{a} - {b}")

    def Mul(self, a: Any, b: Any) -> Any:
        return _int64(a * b, f"{a} * {b}")

    def Div(self, a: float, b: float) -> float:
        return a / _divisor(f"{a} / {b}", b)

    def ExactDiv(self, a: Any, b: Any) -> Any:
        text = f"{a} / {b}"
        if a % _divisor(text, b) != 0:
            _fail(
                f"{text} is no whole number, and an int is needed here; write // to round down, "
                "or ceil_div(a, b) to round up"
            )
        return _int64(a // b, text)

    def FloorDiv(self, a: Any, b: Any) -> Any:
        return _int64(a // _divisor(f"{a} // {b}", b), f"{a} // {b}")

    def CeilDiv(self, a: Any, b: Any) -> Any:
        text = f"ceil_div({a}, {b})"
        return _int64(-(-a // _divisor(text, b)), text)

    def Mod(self, a: Any, b: Any) -> Any:
        return a % _divisor(f"{a} % {b}", b)

    def NextPowerOf2(self, a: Any) -> int:
        return _int64(1 << max(int(a) - 1, 0).bit_length(), f"next_power_of_2({a})")

    def Min(self, a: Any, b: Any) -> Any:
        """The first if they are equal or one is NaN."""
        return (
            torch.sym_min(a, b)
            if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt)
            else b
            if b < a
            else a
        )

    def Max(self, a: Any, b: Any) -> Any:
        return (
            torch.sym_max(a, b)
            if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt)
            else b
            if a < b
            else a
        )

    # ---- conversions -----------------------------------------------------------------------------

    def ToFloat(self, a: Any) -> float:
        return float(a)

    def Cast(self, to: str, a: Any) -> Any:
        if to == "bool":
            return a != 0
        if to == "float64":
            return float(a)
        if to == "float32":
            try:
                return struct.unpack("<f", struct.pack("<f", float(a)))[0]
            except OverflowError:
                _fail(f"{a} does not fit float32")
        value = int(a) if isinstance(a, bool) else a
        if isinstance(value, float):
            if not (float(INT_MIN) <= value < -float(INT_MIN)) or value != math.trunc(value):
                _fail(f"{a} does not fit int64")
            value = int(value)
        low, high = _RANGES[to]
        if to != "int64" and not low <= value <= high:
            _fail(f"{value} does not fit {to}")
        return value

    # ---- truth -----------------------------------------------------------------------------------

    Lt, Le, Gt, Ge = (staticmethod(f) for f in (operator.lt, operator.le, operator.gt, operator.ge))

    def Eq(self, a: Any, b: Any) -> Any:
        # a torch.Size equals no list
        return tuple(a) == tuple(b) if isinstance(a, (list, tuple)) else a == b

    def Ne(self, a: Any, b: Any) -> Any:
        return tuple(a) != tuple(b) if isinstance(a, (list, tuple)) else a != b

    def And(self, a: Any, b: Callable[[], Any]) -> Any:
        return a and b()

    def Or(self, a: Any, b: Callable[[], Any]) -> Any:
        return a or b()

    def Not(self, a: Any) -> Any:
        return not a

    def Where(self, condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        return yes() if condition else no()

    # ---- arguments -------------------------------------------------------------------------------

    def Defined(self, argument: Any) -> bool:
        return argument is not None

    def Value(self, argument: Any) -> Any:
        """The value of an optional argument, which must not be None."""
        if argument is None:
            _fail(
                "an optional argument is None, and a value is needed; guard it: <value> if "
                "defined(<argument>) else <other>"
            )
        return argument

    def Numel(self, x: Any) -> Any:
        return x.numel()

    def Size(self, x: Any, dim: Any) -> Any:
        return x.size(_position(dim, x.dim(), "dimension"))

    def Stride(self, x: Any, dim: Any) -> Any:
        return x.stride(_position(dim, x.dim(), "dimension"))

    def Dim(self, x: Any) -> int:
        return x.dim()

    def DType(self, x: Any) -> torch.dtype:
        return x.dtype

    def ItemSize(self, x: Any) -> int:
        return x.dtype.itemsize

    def Shape(self, x: Any) -> Any:
        return x.shape

    def IsContiguous(self, x: Any) -> Any:
        return x.is_contiguous()

    def Data(self, x: Any) -> int:
        return x.data_ptr()

    def Alignment(self, x: Any) -> int:
        address = x.data_ptr()
        return min(address & -address, _LARGEST_ALIGNMENT) if address else _LARGEST_ALIGNMENT

    def Aligned(self, x: Any, alignment: Any) -> bool:
        if alignment < 1:
            _fail(f"alignment of {alignment} bytes; expected 1 or more")
        return x.data_ptr() % alignment == 0

    # ---- lists of ints ---------------------------------------------------------------------------

    def Item(self, values: Any, index: Any) -> Any:
        return values[_position(index, len(values), "index")]

    def Slice(self, values: Any, low: Any, high: Any) -> Any:
        return values[low if low is None else int(low) : high if high is None else int(high)]

    def Len(self, values: Any) -> int:
        return len(values)

    # ---- devices: only output rules need one, of fake tensors too --------------------------------

    def Device(self, named: Any, *tensors: Any) -> torch.device:
        """The device of results: the named one, or that of the first tensor, or the CPU."""
        of_tensors = [tensor.device for tensor in tensors if tensor is not None]
        if named is None:
            return of_tensors[0] if of_tensors else torch.device("cpu")
        device = torch.device(named)
        same_type = of_tensors and device.index is None and of_tensors[0].type == device.type
        return of_tensors[0] if same_type else device


functions = Functions()


def identifiers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the identifiers that printed expressions have for the names of arguments."""
    return {identifier(name): value for name, value in values.items()}


@functools.lru_cache(maxsize=4096)
def identifier(name: str) -> str:
    return _runtime.python_identifier(name)


@functools.lru_cache(maxsize=4096)
def compiled(text: str) -> CodeType:
    return compile(text, f"<opaq: {text}>", "eval")


def _fail(message: str) -> Any:
    raise _runtime.LaunchError(message)


def _int64(value: Any, text: str) -> Any:
    if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        _fail(f"{text} overflows a 64-bit integer")
    return value


def _divisor(text: str, value: Any) -> Any:
    if value == 0:
        _fail(f"division by zero: {text}")
    return value


def _position(index: Any, length: int, what: str) -> int:
    if not -length <= index < length:
        _fail(
            f"{what} {index} is out of range: expected {-length} to {length - 1}"
            if length
            else f"{what} {index} is out of range: there are none"
        )
    return int(index)
