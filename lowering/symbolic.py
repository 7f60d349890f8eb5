"""Evaluates requirements over symbolic sizes: the functions of the expression language, whose
results are values, symbolic expressions, or unknown until the launch.

The logic is three-valued (Kleene), and no guard is added to the graph. A known result is always
that of the launch. What the shapes known at compile time do not decide is unknown, and so is what
may be an error at the launch (a division by zero, an overflow, a dimension out of range).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sympy
import torch

from opaq import _runtime

from .compat import pytorch
from .devices import device_name
from .functions import INT_MAX, Functions, compiled, identifiers

if TYPE_CHECKING:
    from opaq._runtime import FakeArgument


class Unknown:
    """A value that only the launch knows. fails: whether evaluating it there may raise an error, so
    that an `and` or `or` around it stays undecided.
    """

    def __init__(self, name: str, fails: bool) -> None:
        self._name, self.fails = name, fails

    def __bool__(self) -> bool:
        raise TypeError("the truth of an unknown value was asked for")

    def __repr__(self) -> str:
        return self._name


UNKNOWN = Unknown("UNKNOWN", False)
FAILING = Unknown("FAILING", True)
REFUSED = Unknown("REFUSED", True)  # false or an error: as a requirement, it does not hold

Int = Any  # int, sympy.Expr or Unknown
Truth = Any  # bool or Unknown

# A bound on sizes, and on products of sizes of one tensor (numbers of elements): no memory holds
# more elements. Only expanded tensors could exceed it.
_LARGEST_SIZE = 1 << 48


@dataclasses.dataclass(frozen=True)
class SymbolicTensor:
    """What the compiler knows of a tensor: sizes and strides are ints or sympy expressions."""

    sizes: tuple[Int, ...]
    strides: tuple[Int, ...]
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        sizes, strides = (", ".join(map(str, values)) for values in (self.sizes, self.strides))
        return f"{str(self.dtype).removeprefix('torch.')}[{sizes}] strides [{strides}]"


def fake_argument(value: Any, number: Callable[[Any], Any]) -> FakeArgument:
    """An argument of a call as the runtime takes it. number: gives a number for an int or a
    symbolic one; it may raise.
    """
    if isinstance(value, SymbolicTensor):
        sizes, strides = (
            [number(item) for item in items] for items in (value.sizes, value.strides)
        )
        dtype = str(value.dtype).removeprefix("torch.")
        return dtype, sizes, strides, device_name(value.device), 4096
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        value = value.node.expr
    if isinstance(value, sympy.Basic):
        return number(value)
    if isinstance(value, (list, tuple)):
        return [fake_argument(item, number) for item in value]
    return value


class SymbolicEvaluator(Functions):
    """Evaluates expressions over SymbolicTensors. known_true(relation): whether a sympy relation
    follows from what is known about sizes. archs: of the devices that may run the graph; by default
    the devices that tensors are on.
    """

    def __init__(self, known_true: Callable[[Any], bool], archs: Sequence[str] = ("",)) -> None:
        self._known_true = known_true
        self._archs = archs
        self._arch = ""
        self._sizes: set[Any] = set()  # symbols in sizes or strides of the arguments

    def evaluate(self, text: str, values: Mapping[str, Any]) -> Truth:
        """Whether a requirement printed by runtime/expr holds: True, False or UNKNOWN. values: the
        arguments by name (SymbolicTensors, scalars, None).
        """
        truths = []
        for arch in self._archs if "opaq.Fact(" in text else ("",):
            self._arch = arch
            truth = self.value(text, values)
            truths.append(
                False if truth is REFUSED else UNKNOWN if isinstance(truth, Unknown) else truth
            )
        return truths[0] if truths.count(truths[0]) == len(truths) else UNKNOWN

    def value(self, text: str, values: Mapping[str, Any]) -> Any:
        """The value of any printed expression: a sympy expression if it depends on symbolic sizes,
        an Unknown if only the launch knows it.
        """
        tensors = [value for value in values.values() if isinstance(value, SymbolicTensor)]
        self._sizes = {
            s
            for tensor in tensors
            for e in (*tensor.sizes, *tensor.strides)
            if isinstance(e, sympy.Expr)
            for s in e.free_symbols
        }
        scope = identifiers({name: self._argument(value) for name, value in values.items()})
        return eval(compiled(text), {**scope, "__builtins__": {}, "opaq": self})

    def _argument(self, value: Any) -> Any:
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            value = value.node.expr
        if isinstance(value, (list, tuple)):
            return tuple(self._argument(item) for item in value)
        if not isinstance(value, sympy.Basic):
            return value
        if isinstance(value, sympy.Integer):
            return int(value)
        if isinstance(value, sympy.Expr):  # a symbol is a Boolean too
            return value if value.is_integer else float(value) if value.is_Float else UNKNOWN
        return self._decide(value)

    # ---- deciding --------------------------------------------------------------------------------

    def _apply(
        self,
        name: str,
        *args: Any,
        symbolic: Callable[..., Any] = lambda *_: FAILING,
        may_fail: Callable[..., bool] = lambda *_: True,
    ) -> Any:
        """Applies a function: computes it if all arguments are known, calls `symbolic` if some are
        sympy expressions, and gives an Unknown if some are unknown.

        may_fail(*args): whether the function itself may fail on these unknown arguments."""
        if any(isinstance(arg, Unknown) for arg in args):
            fails = any(isinstance(arg, Unknown) and arg.fails for arg in args)
            return FAILING if fails or may_fail(*args) else UNKNOWN
        if any(isinstance(arg, sympy.Expr) for arg in args):
            return symbolic(*args)
        try:
            return getattr(super(), name)(*args)
        except _runtime.LaunchError:
            return FAILING

    def _decide(self, relation: Any) -> Truth:
        return (
            True
            if self._proves(relation)
            else False
            if self._proves(sympy.Not(relation))
            else UNKNOWN
        )

    def _proves(self, relation: Any) -> bool:
        if relation is sympy.true or relation is sympy.false:
            return relation is sympy.true
        return self._known_true(relation)

    def _int64(self, value: Any) -> Int:
        """`value` if it fits 64 bits whatever the sizes are, else FAILING."""
        if isinstance(value, (int, sympy.Integer)):
            return int(value) if -INT_MAX <= value <= INT_MAX else FAILING
        return value if value.is_Symbol or self._magnitude(value) <= INT_MAX else FAILING

    def _magnitude(self, value: Any) -> float:
        """An upper bound of the absolute value."""
        if value.is_Integer:
            return abs(int(value))
        if value.is_Symbol:
            return _LARGEST_SIZE if value in self._sizes else INT_MAX + 1
        if value.is_Add:
            return sum(map(self._magnitude, value.args))
        if value.is_Mul or value.is_Pow:
            factors = list(value.args) if value.is_Mul else [value]
            sizes = [
                f
                for f in factors
                if f.free_symbols and f.free_symbols <= self._sizes and (f.is_Symbol or f.is_Pow)
            ]
            bound = _LARGEST_SIZE if sizes else 1
            for factor in factors:
                if factor not in sizes:
                    bound *= float("inf") if factor.is_Pow else self._magnitude(factor)
            return bound
        functions = pytorch.sympy_functions()
        if isinstance(value, functions.floor_div):
            return self._magnitude(value.args[0])
        if isinstance(value, functions.remainders):
            return self._magnitude(value.args[1])
        if isinstance(value, (functions.minimum, functions.maximum)):
            return max(map(self._magnitude, value.args))
        return float("inf")

    def _positive(self, value: Any) -> bool:
        return value > 0 if isinstance(value, int) else self._proves(sympy.Gt(value, 0))

    # ---- arithmetic ------------------------------------------------------------------------------

    def Neg(self, a: Int) -> Int:
        return self._apply("Neg", a, symbolic=lambda a: self._int64(-a))

    def Abs(self, a: Int) -> Int:
        return self._apply(
            "Abs", a, symbolic=lambda a: self._int64(a) if self._proves(sympy.Ge(a, 0)) else FAILING
        )

    def Add(self, a: Int, b: Int) -> Int:
        return self._apply("Add", a, b, symbolic=lambda a, b: self._int64(a + b))

    def Sub(self, a: Int, b: Int) -> Int:
        return self._apply("Sub", a, b, symbolic=lambda a, b: self._int64(a - b))

    def Mul(self, a: Int, b: Int) -> Int:
        return self._apply("Mul", a, b, symbolic=lambda a, b: self._int64(a * b))

    def Div(self, a: Any, b: Any) -> Any:
        return self._apply("Div", a, b, may_fail=_divides_by_unknown)

    def FloorDiv(self, a: Int, b: Int) -> Int:
        return self._apply("FloorDiv", a, b, symbolic=self._quotient, may_fail=_divides_by_unknown)

    def CeilDiv(self, a: Int, b: Int) -> Int:
        def symbolic(a: Any, b: Any) -> Any:
            sum_ = self._int64(a + b - 1)
            return sum_ if isinstance(sum_, Unknown) else self._quotient(sum_, b)

        return self._apply("CeilDiv", a, b, symbolic=symbolic, may_fail=_divides_by_unknown)

    def ExactDiv(self, a: Int, b: Int) -> Int:
        def symbolic(a: Any, b: Any) -> Any:
            return self._quotient(a, b) if self.Eq(self.Mod(a, b), 0) is True else FAILING

        return self._apply("ExactDiv", a, b, symbolic=symbolic)

    def Mod(self, a: Int, b: Int) -> Int:
        def symbolic(a: Any, b: Any) -> Any:
            return (
                self._argument(pytorch.sympy_functions().mod(a, b))
                if self._positive(b)
                else FAILING
            )

        return self._apply("Mod", a, b, symbolic=symbolic, may_fail=_divides_by_unknown)

    def _quotient(self, a: Any, b: Any) -> Any:
        """a // b for a positive b: torch's FloorDiv ignores signs when it simplifies."""
        return (
            self._argument(pytorch.sympy_functions().floor_div(a, b))
            if self._positive(b)
            else FAILING
        )

    def NextPowerOf2(self, a: Int) -> Int:
        return self._apply("NextPowerOf2", a)

    def Min(self, a: Int, b: Int) -> Int:
        return self._apply(
            "Min",
            a,
            b,
            symbolic=lambda a, b: self._argument(pytorch.sympy_functions().minimum(a, b)),
            may_fail=_never,
        )

    def Max(self, a: Int, b: Int) -> Int:
        return self._apply(
            "Max",
            a,
            b,
            symbolic=lambda a, b: self._argument(pytorch.sympy_functions().maximum(a, b)),
            may_fail=_never,
        )

    def ToFloat(self, a: Any) -> Any:
        return self._apply("ToFloat", a, symbolic=lambda _: UNKNOWN, may_fail=_never)

    def Cast(self, to: str, a: Any) -> Any:
        def symbolic(to: str, a: Any) -> Any:
            if to == "bool":
                return self.Ne(a, 0)
            if to.startswith("float"):
                return UNKNOWN
            low = to.startswith("u") and not self._proves(sympy.Ge(a, 0))
            fits = to.endswith("64") or self._magnitude(a) < 1 << 31
            return a if fits and not low else FAILING

        return self._apply(
            "Cast", to, a, symbolic=symbolic, may_fail=lambda to, _: to not in ("bool", "float64")
        )

    # ---- truth -----------------------------------------------------------------------------------

    def Eq(self, a: Any, b: Any) -> Truth:
        if isinstance(a, tuple) and isinstance(b, tuple):
            if len(a) != len(b):
                return False
            items = [self.Eq(x, y) for x, y in zip(a, b)]
            return False if False in items else UNKNOWN if UNKNOWN in items else True
        return self._relation("Eq", sympy.Eq, a, b)

    def Ne(self, a: Any, b: Any) -> Truth:
        return self.Not(self.Eq(a, b))

    def Lt(self, a: Int, b: Int) -> Truth:
        return self._relation("Lt", sympy.Lt, a, b)

    def Le(self, a: Int, b: Int) -> Truth:
        return self._relation("Le", sympy.Le, a, b)

    def Gt(self, a: Int, b: Int) -> Truth:
        return self._relation("Gt", sympy.Gt, a, b)

    def Ge(self, a: Int, b: Int) -> Truth:
        return self._relation("Ge", sympy.Ge, a, b)

    def _relation(self, name: str, relation: Callable[..., Any], a: Any, b: Any) -> Truth:
        return self._apply(
            name, a, b, symbolic=lambda a, b: self._decide(relation(a, b)), may_fail=_never
        )

    def And(self, a: Truth, b: Callable[[], Truth]) -> Truth:
        if not isinstance(a, Unknown):
            return b() if a else False
        if a is REFUSED:
            return a
        second = b()
        if second is False or second is REFUSED:
            return REFUSED if a.fails or second is REFUSED else False
        return FAILING if a.fails or (isinstance(second, Unknown) and second.fails) else UNKNOWN

    def Or(self, a: Truth, b: Callable[[], Truth]) -> Truth:
        if not isinstance(a, Unknown):
            return True if a else b()
        second = b()
        if second is True and not a.fails:
            return True
        return FAILING if a.fails or (isinstance(second, Unknown) and second.fails) else UNKNOWN

    def Not(self, a: Truth) -> Truth:
        return not a if not isinstance(a, Unknown) else FAILING if a.fails else UNKNOWN

    def Where(self, condition: Truth, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        if not isinstance(condition, Unknown):
            return yes() if condition else no()
        fails = condition.fails or any(
            isinstance(value, Unknown) and value.fails for value in (yes(), no())
        )
        return FAILING if fails else UNKNOWN

    # ---- arguments -------------------------------------------------------------------------------

    def Value(self, argument: Any) -> Any:
        return FAILING if argument is None else argument

    def Numel(self, x: Any) -> Int:
        count = 1
        for size in () if isinstance(x, Unknown) else x.sizes:
            count = count * size
        return x if isinstance(x, Unknown) else count

    def Size(self, x: Any, dim: Int) -> Int:
        return x if isinstance(x, Unknown) else self.Item(x.sizes, dim)

    def Stride(self, x: Any, dim: Int) -> Int:
        return x if isinstance(x, Unknown) else self.Item(x.strides, dim)

    def Dim(self, x: Any) -> Any:
        return x if isinstance(x, Unknown) else len(x.sizes)

    def DType(self, x: Any) -> Any:
        return x if isinstance(x, Unknown) else x.dtype

    def ItemSize(self, x: Any) -> Any:
        return x if isinstance(x, Unknown) else x.dtype.itemsize

    def Shape(self, x: Any) -> Any:
        return x if isinstance(x, Unknown) else x.sizes

    def IsContiguous(self, x: Any) -> Truth:
        """Row-major and dense. Strides of dimensions of size 1, and of empty tensors, do not
        matter.
        """
        if isinstance(x, Unknown):
            return x
        empty = [self.Eq(size, 0) for size in x.sizes]
        if True in empty:
            return True
        expected, dense = 1, [True]
        for size, stride in zip(reversed(x.sizes), reversed(x.strides)):
            matches = self.Eq(stride, expected)
            dense.append(self.Or(matches, lambda size=size: self.Eq(size, 1)))
            expected = expected * size
        if False in dense:
            return UNKNOWN if UNKNOWN in empty else False
        return UNKNOWN if UNKNOWN in dense else True

    def Data(self, x: Any) -> Any:
        return x if isinstance(x, Unknown) else UNKNOWN

    def Alignment(self, x: Any) -> Any:
        return x if isinstance(x, Unknown) else UNKNOWN

    def Aligned(self, x: Any, alignment: Int) -> Truth:
        """Addresses are known at the launch. No address is a multiple of its element's size by
        itself: a tensor may view any bytes.
        """
        if (
            isinstance(x, Unknown)
            or isinstance(alignment, Unknown)
            or not self._positive(alignment)
        ):
            return FAILING
        return True if alignment == 1 else UNKNOWN

    def Fact(self, name: str, x: Any) -> Any:
        """Of the CUDA device that a tensor is on. Only rules of launches ask, never of outputs."""
        if isinstance(x, Unknown) or x.device.type != "cuda":
            return FAILING
        try:
            return _runtime.device_fact(name, x.device.index or 0, self._arch)
        except (_runtime.LaunchError, _runtime.MissingError):
            return UNKNOWN

    # ---- lists of ints ---------------------------------------------------------------------------

    def Item(self, values: Any, index: Int) -> Int:
        return self._apply("Item", values, index)

    def Slice(self, values: Any, low: Int, high: Int) -> Any:
        return self._apply("Slice", values, low, high)

    def Len(self, values: Any) -> Any:
        return self._apply("Len", values)


def _never(*_: Any) -> bool:
    return False


def _divides_by_unknown(_: Any, b: Any) -> bool:
    """Whether the divisor may be 0, or -1 (the smallest int divided by -1 overflows)."""
    return isinstance(b, (Unknown, sympy.Expr)) or b in (0, -1)
