"""Requirements over symbolic sizes: the names that runtime/expr prints for sympy, evaluated to holds, fails or unknown.

Three-valued (Kleene) logic: what the shapes known at compile time do not decide is `UNKNOWN`, and the runtime decides it at each launch. No
guard is added to the graph. What is an error at a launch (a dimension out of range, a division by zero) is UNKNOWN too: it is raised there.
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
    __iter__ = None  # else Python would iterate by __getitem__, for ever

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
        names, expected, dense = self._names, 1, True
        for size, stride in zip(reversed(self._facts.sizes), reversed(self._facts.strides)):
            if stride != expected and size != 1:
                dense = names.And(dense, names.Or(names.Eq(stride, expected), names.Eq(size, 1)))
            expected = expected * size
        return True if dense is True else names.Or(dense, *(names.Eq(size, 0) for size in self._facts.sizes))


def _item(values: Sequence[Int], index: int) -> Int:
    return values[index] if -len(values) <= index < len(values) else UNKNOWN


class Names:
    """The functions that a printed requirement calls. `known_true(relation)` proves a sympy relation from what is known of the sizes."""

    def __init__(self, known_true: Callable[[Any], bool]) -> None:
        self._known_true = known_true

    def evaluate(self, text: str, values: Mapping[str, Any]) -> Truth:
        """The truth of a requirement printed by runtime/expr, over arguments by name: Facts, scalars, None."""
        return self.value(text, values)

    def value(self, text: str, values: Mapping[str, Any]) -> Any:
        """The value of any expression that runtime/expr printed for sympy; a sympy expression where it changes with a size, or UNKNOWN."""
        scope = {name: self._value(value) for name, value in values.items()}
        functions = {name: getattr(self, name) for name in _FUNCTIONS}
        try:
            return self._value(eval(_compiled(text), {**_CONSTANTS, **functions, **scope}))
        except (ArithmeticError, LookupError, TypeError, ValueError):  # an error of the launch
            return UNKNOWN

    def _value(self, value: Any) -> Any:
        if isinstance(value, Facts):
            return Tensor(value, self)
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            value = value.node.expr
        if isinstance(value, sympy.logic.boolalg.Boolean) and not isinstance(value, sympy.Expr):  # a symbol is both
            return self._decide(value)
        if isinstance(value, (list, tuple)):
            return tuple(self._value(item) for item in value)
        return ABSENT if value is None else value

    def Eq(self, a: Any, b: Any) -> Truth:
        if a is UNKNOWN or b is UNKNOWN:
            return UNKNOWN
        if isinstance(a, tuple) and isinstance(b, tuple):
            return len(a) == len(b) and self.And(*(self.Eq(x, y) for x, y in zip(a, b)))
        if isinstance(a, sympy.Expr) or isinstance(b, sympy.Expr):
            return True if a == b else self._decide(sympy.Eq(a, b))
        return a == b

    def Ne(self, a: Any, b: Any) -> Truth:
        return self.Not(self.Eq(a, b))

    def Lt(self, a: Int, b: Int) -> Truth:
        if a is UNKNOWN or b is UNKNOWN:
            return UNKNOWN
        if isinstance(a, sympy.Expr) or isinstance(b, sympy.Expr):
            return self._decide(sympy.Lt(a, b))
        return a < b

    def Le(self, a: Int, b: Int) -> Truth:
        return self.Not(self.Lt(b, a))

    def Gt(self, a: Int, b: Int) -> Truth:
        return self.Lt(b, a)

    def Ge(self, a: Int, b: Int) -> Truth:
        return self.Not(self.Lt(a, b))

    def And(self, *values: Truth) -> Truth:
        if any(value is False for value in values):
            return False
        return UNKNOWN if any(value is UNKNOWN for value in values) else True

    def Or(self, *values: Truth) -> Truth:
        if any(value is True for value in values):
            return True
        return UNKNOWN if any(value is UNKNOWN for value in values) else False

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

    def ToInt(self, value: Any) -> Int:
        return int(value) if isinstance(value, (int, float)) else UNKNOWN

    def _decide(self, relation: Any) -> Truth:
        if relation is sympy.true or relation is sympy.false:
            return relation is sympy.true
        if self._known_true(relation):
            return True
        return False if self._known_true(sympy.Not(relation)) else UNKNOWN


@functools.lru_cache(maxsize=4096)
def _compiled(text: str) -> CodeType:
    return compile(text, f"<requirement {text}>", "eval")


_FUNCTIONS = [name for name in vars(Names) if name[0].isupper()]
_CONSTANTS: dict[str, Any] = {
    "__builtins__": {},
    "torch": torch,
    "abs": abs,
    "len": lambda values: UNKNOWN if isinstance(values, Unknown) else len(values),
    "tuple": lambda values: UNKNOWN if isinstance(values, Unknown) else tuple(values),
}
