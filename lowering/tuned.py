"""The implementations that were measured to be the fastest for a node (the option `tune`).

If the sizes of a call depend on one number that only the launch knows, such as the batch, several
values of it are looked up or measured, and launches choose by ranges around these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import sympy
import torch

from . import options, tuner
from .symbolic import SymbolicTensor, fake_argument

if TYPE_CHECKING:
    from opaq._runtime import FakeArgument, MeasuredSizes, OpInfo

_MEASURED = tuple(4**k for k in range(1, 8))  # values of an unknown size that are measured
_MOST_BYTES = 1 << 30  # of tensors that a measured call takes


class Sizes(Protocol):
    """What the compiler knows of symbols (`inductor` in lowering/compat)."""

    def bounds(self, symbol: Any) -> tuple[int, float]: ...
    def size_hint(self, value: Any) -> int: ...


@dataclasses.dataclass(frozen=True)
class Measured:
    """Which implementation the launches of a node try before the others, and why."""

    implementation: str = ""  # "" where nothing was measured; with ranges: beyond the last
    why: str = ""
    # With ranges: the argument, and its dimension (-1 for an int), whose size they are of.
    size: tuple[str, int] = ("", -1)
    ranges: tuple[tuple[int, str], ...] = ()  # (largest size, implementation)

    @property
    def for_runtime(self) -> MeasuredSizes:
        return self.size, self.ranges, self.implementation


NOTHING_MEASURED = Measured()


def fastest(op: str, info: OpInfo, known: Mapping[str, Any], sizes: Sizes) -> Measured:
    """For a call of the op's form `info`; known: its arguments, SymbolicTensor for tensors."""
    mode = options.current().tune
    if mode == "off" or tuner.installed is None:
        return NOTHING_MEASURED
    args = {arg["name"]: known[arg["name"]] for arg in info["args"]}
    symbols = sorted(set().union(*map(_symbols, args.values())), key=str)
    if len(symbols) > 1:
        return NOTHING_MEASURED
    if symbols:
        return _by_size(op, info["name"], args, symbols[0], sizes, mode == "search")
    found = tuner.installed.fastest(op, info["name"], _with(args, {}), mode == "search")
    return Measured(found.implementation, str(found)) if found else NOTHING_MEASURED


def digest(op: str) -> str:
    if options.current().tune == "off" or tuner.installed is None:
        return ""
    return tuner.installed.digest(op)


# ---- a size that only the launch knows -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Size:
    """A size, or an int argument, that grows with the unknown number: slope * number + offset."""

    position: int  # of the argument
    argument: str
    dim: int  # -1 for an int
    slope: int
    offset: int

    def at(self, number: int) -> int:
        return self.slope * number + self.offset

    def number(self, args: Sequence[Any]) -> int | None:
        """The number with which a measured call has this size."""
        try:
            value = args[self.position] if self.dim < 0 else args[self.position][1][self.dim]
            number, rest = divmod(value - self.offset, self.slope)
        except (IndexError, KeyError, TypeError):
            return None
        return None if rest else number

    def __str__(self) -> str:
        return self.argument if self.dim < 0 else f"{self.argument}.size({self.dim})"


def _by_size(
    op: str,
    form: str,
    args: Mapping[str, Any],
    symbol: sympy.Symbol,
    sizes: Sizes,
    search: bool,
) -> Measured:
    """By ranges of the number that the symbol stands for."""
    assert tuner.installed is not None
    size = _size_of(args, symbol)
    if size is None:
        return NOTHING_MEASURED
    low, high = sizes.bounds(symbol)
    numbers = {size.number(call) for call in tuner.installed.known(op, form)}
    if search:
        numbers |= {*_MEASURED, sizes.size_hint(symbol)}
    found: dict[int, tuner.Fastest] = {}
    for number in sorted(n for n in numbers if n is not None and low <= n <= high):
        call = _with(args, {symbol: number})
        each = tuner.installed.fastest(op, form, call, search and _bytes(call) <= _MOST_BYTES)
        if each is not None:
            found[number] = each
    if not found:
        return NOTHING_MEASURED
    ends = [*(math.isqrt(a * b) for a, b in zip(found, list(found)[1:])), 0]
    ranges: list[tuple[int, tuner.Fastest]] = []
    for end, each in zip(ends, found.values()):
        if ranges and ranges[-1][1].implementation == each.implementation:
            ranges.pop()
        ranges.append((size.at(end), each))
    *before, (_, last) = ranges
    if not before:
        return Measured(last.implementation, f"{last}, at {size} = {size.at(list(found)[-1])}")
    texts = [f"{each.implementation} up to {end}" for end, each in before]
    return Measured(
        last.implementation,
        f"measured by {size}: {', '.join(texts)}, {last.implementation} beyond",
        (size.argument, size.dim),
        tuple((end, each.implementation) for end, each in before),
    )


def _size_of(args: Mapping[str, Any], symbol: sympy.Symbol) -> _Size | None:
    for position, (name, value) in enumerate(args.items()):
        sizes = value.sizes if isinstance(value, SymbolicTensor) else [_expression(value)]
        for i, item in enumerate(sizes):
            if not isinstance(item, sympy.Expr) or item.free_symbols != {symbol}:
                continue
            offset = item.subs(symbol, 0)
            slope = item.subs(symbol, 1) - offset
            if slope.is_Integer and slope > 0 and sympy.expand(slope * symbol + offset - item) == 0:
                dim = i if isinstance(value, SymbolicTensor) else -1
                return _Size(position, name, dim, int(slope), int(offset))
    return None


def _expression(value: Any) -> Any:
    return value.node.expr if isinstance(value, (torch.SymInt, torch.SymFloat)) else value


def _symbols(value: Any) -> set[sympy.Symbol]:
    """Those that an argument depends on."""
    if isinstance(value, SymbolicTensor):
        value = (*value.sizes, *value.strides)
    if isinstance(value, (list, tuple)):
        return set().union(*map(_symbols, value))
    if isinstance(value, torch.SymBool):
        return set(value.node.expr.free_symbols)
    value = _expression(value)
    return set(value.free_symbols) if isinstance(value, sympy.Basic) else set()


def _with(args: Mapping[str, Any], numbers: Mapping[sympy.Symbol, int]) -> list[FakeArgument]:
    """The arguments with numbers in the place of symbols."""

    def number(value: Any) -> Any:
        if not isinstance(value, sympy.Basic):
            return value
        value = value.subs(numbers)
        return bool(value) if value.is_Boolean else int(value) if value.is_Integer else float(value)

    return [fake_argument(value, number) for value in args.values()]


def _bytes(call: Sequence[FakeArgument]) -> int:
    tensors = (value for value in call if isinstance(value, tuple))
    return sum(math.prod(sizes) * getattr(torch, dtype).itemsize for dtype, sizes, *_ in tensors)
