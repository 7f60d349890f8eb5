"""Requirements over symbolic sizes: the names that runtime/expr prints for sympy, evaluated to holds, fails or unknown.

Three-valued (Kleene) logic: what the shapes known at compile time do not decide is `UNKNOWN`, and the runtime decides it at each launch. No guard
is added to the graph. What is an error at a launch (a dimension out of range, a division by zero) is UNKNOWN too, so that it is raised there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any

import sympy
import torch

from .compat import sympy_functions


class Unknown:
    """A value that only the launch knows: everything computed from it is unknown."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _unknown(self, *_: Any) -> Unknown:
        return UNKNOWN

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = __abs__ = __getitem__ = _unknown
    __call__ = _unknown

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return UNKNOWN

    def __bool__(self) -> bool:
        raise TypeError("the truth of an unknown value; requirements must be printed with And, Or, Not and Where")

    def __repr__(self) -> str:
        return self._name


UNKNOWN = Unknown("UNKNOWN")
ABSENT = Unknown("ABSENT")  # an optional argument that was not given

Int = Any  # int, sympy.Expr or Unknown
Truth = Any  # bool or Unknown


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the compiler knows of a tensor argument: sizes and strides are ints or sympy expressions."""

    sizes: tuple[Int, ...]
    strides: tuple[Int, ...]
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        sizes, strides = (", ".join(map(str, values)) for values in (self.sizes, self.strides))
        return f"{str(self.dtype).removeprefix('torch.')}[{sizes}] strides [{strides}]"


class Tensor:
    """A tensor argument as expressions see it."""

    def __init__(self, facts: Facts, names: Names) -> None:
        self._facts, self._names = facts, names
        self.dtype = facts.dtype
        self.itemsize = facts.dtype.itemsize
        self.shape = facts.sizes
        self.alignment = self.data = UNKNOWN

    def size(self, dim: int) -> Int:
        return _item(self._facts.sizes, dim)

    def stride(self, dim: int) -> Int:
        return _item(self._facts.strides, dim)

    def dim(self) -> int:
        return len(self._facts.sizes)

    def numel(self) -> Int:
        return functools.reduce(lambda a, b: a * b, self._facts.sizes, 1)

    def is_contiguous(self) -> Truth:
        """Row-major and dense; sizes of 1 and empty tensors impose nothing."""
        names, expected, dense, empty = self._names, 1, True, False
        for size, stride in zip(reversed(self._facts.sizes), reversed(self._facts.strides)):
            dense = names.And(dense, names.Or(names.Eq(size, 1), names.Eq(stride, expected)))
            empty = names.Or(empty, names.Eq(size, 0))
            expected = expected * size
        return names.Or(dense, empty)


def _item(values: Sequence[Int], index: int) -> Int:
    return values[index] if -len(values) <= index < len(values) else UNKNOWN


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, sympy.Expr))


class Names:
    """The functions that a printed requirement calls. `known_true(relation)` proves a sympy relation from what the compiler knows of the sizes."""

    def __init__(self, known_true: Callable[[Any], bool]) -> None:
        self._known_true = known_true

    def evaluate(self, text: str, values: Mapping[str, Any]) -> Truth:
        """The truth of a requirement printed by runtime/expr, over arguments by name: Facts, scalars, None."""
        scope = {name: Tensor(value, self) if isinstance(value, Facts) else ABSENT if value is None else value for name, value in values.items()}
        return eval(_compiled(text), {**_CONSTANTS, **self._functions, **scope})

    @functools.cached_property
    def _functions(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in dir(type(self)) if name[0].isupper()}

    def Eq(self, a: Any, b: Any) -> Truth:
        if a is UNKNOWN or b is UNKNOWN:
            return UNKNOWN
        if not (_number(a) and _number(b)):
            return a == b
        return self._decide(sympy.Eq(a, b), sympy.Ne(a, b))

    def Ne(self, a: Any, b: Any) -> Truth:
        return self.Not(self.Eq(a, b))

    def Lt(self, a: Int, b: Int) -> Truth:
        if a is UNKNOWN or b is UNKNOWN:
            return UNKNOWN
        return self._decide(sympy.Lt(a, b), sympy.Ge(a, b))

    def Le(self, a: Int, b: Int) -> Truth:
        return self.Not(self.Lt(b, a))

    def Gt(self, a: Int, b: Int) -> Truth:
        return self.Lt(b, a)

    def Ge(self, a: Int, b: Int) -> Truth:
        return self.Not(self.Lt(a, b))

    def And(self, *values: Truth) -> Truth:
        if any(value is False for value in values):
            return False
        return UNKNOWN if any(value is UNKNOWN for value in values) else all(values)

    def Or(self, *values: Truth) -> Truth:
        if any(value is True for value in values):
            return True
        return UNKNOWN if any(value is UNKNOWN for value in values) else any(values)

    def Not(self, value: Truth) -> Truth:
        return UNKNOWN if value is UNKNOWN else not value

    def Where(self, condition: Truth, a: Any, b: Any) -> Any:
        if condition is UNKNOWN:
            return a if a is b else UNKNOWN
        return a if condition else b

    def Defined(self, value: Any) -> bool:
        return value is not ABSENT

    def Aligned(self, value: Any, alignment: int) -> Truth:
        """Addresses are known at the launch; a tensor's address is always a multiple of its element size."""
        return True if isinstance(value, Tensor) and value.itemsize % alignment == 0 else UNKNOWN

    def FloorDiv(self, a: Int, b: Int) -> Int:
        if a is UNKNOWN or b is UNKNOWN or b == 0:
            return UNKNOWN
        return a // b if isinstance(a, int) and isinstance(b, int) else sympy_functions().floor_div(a, b)

    def Mod(self, a: Int, b: Int) -> Int:
        if a is UNKNOWN or b is UNKNOWN or b == 0:
            return UNKNOWN
        return a % b if isinstance(a, int) and isinstance(b, int) else sympy_functions().mod(a, b)

    def CeilDiv(self, a: Int, b: Int) -> Int:
        return self.FloorDiv(a + b - 1, b)

    def Min(self, *values: Int) -> Int:
        return UNKNOWN if any(value is UNKNOWN for value in values) else functools.reduce(sympy_functions().minimum, values)

    def Max(self, *values: Int) -> Int:
        return UNKNOWN if any(value is UNKNOWN for value in values) else functools.reduce(sympy_functions().maximum, values)

    def NextPowerOf2(self, value: Int) -> Int:
        number = int(value) if isinstance(value, (int, sympy.Integer)) else None
        return UNKNOWN if number is None else 1 << max(number - 1, 0).bit_length()

    def _decide(self, holds: Any, fails: Any) -> Truth:
        if holds in (True, False):
            return bool(holds)
        if self._known_true(holds):
            return True
        return False if self._known_true(fails) else UNKNOWN


@functools.lru_cache(maxsize=4096)
def _compiled(text: str) -> CodeType:
    return compile(text, f"<requirement {text}>", "eval")


_CONSTANTS: dict[str, Any] = {
    "__builtins__": {},
    "torch": torch,
    "True": True,
    "False": False,
    "abs": abs,
    "len": len,
    "bool": bool,
    **{name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}
