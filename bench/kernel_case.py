"""A call that `opaq bench kernels` measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from . import measure
from .device import Tensors

Call = Callable[..., Any]
Random = Callable[..., torch.Tensor]  # of a shape
Sizes = tuple[int, int]  # rows, columns
Size = TypeVar("Size")
Count = Callable[[int], int]  # fewer rows, to try the command


def all_sizes(shown: Sequence[Size], of_region: Sequence[Size], regions: bool) -> list[Size]:
    """The sizes that are shown, and those that only tell where patterns are used."""
    return [*shown, *(each for each in of_region if regions and each not in shown)]


def forward(function: Call) -> Call:
    return function


def as_they_are(operands: Tensors, results: Any) -> Any:
    return results


def unequal(random: Random, m: int, n: int) -> torch.Tensor:
    """No two values of a row are equal: torch.topk may take any of equal ones."""
    return random(m, n).argsort(1).to(random(1).dtype) / 16


@dataclasses.dataclass(frozen=True)
class Case:
    """op, plain: functions of the tensors that `make` gives, with the same results. call: makes of
    such a function, compiled or not, what is measured. pattern: that puts the op into models, if
    there is one; sizes: (rows, columns), as the pattern counts them; form: as the pattern has it;
    substituted: whether the op is measured as the pattern puts it into `plain`; dtype: of the
    pattern's first floating-point argument, "" for that of the random numbers that `make` is given;
    written: the positions of operands that a call writes whole, and returns after its other
    results; compared: makes of the operands and the results of a call what is compared; it is not
    measured."""

    name: str
    make: Callable[[], Tensors]
    op: Call
    plain: Call
    call: Callable[[Call], Call] = forward
    pattern: str = ""
    sizes: tuple[int, int] = (0, 0)
    form: str = ""
    substituted: bool = True
    dtype: str = ""
    written: tuple[int, ...] = ()
    compared: Callable[[Tensors, Any], Any] = as_they_are

    @property
    def training(self) -> bool:
        """Whether gradients are measured, too."""
        return self.call is not forward

    def bytes(self, operands: Tensors) -> int:
        """That the call must move at least: its operands and results, each once; a written operand
        is one of both."""
        results = measure.tensors_in(self.call(self.plain)(*operands))
        results = results[: len(results) - len(self.written)]
        return sum(
            each.numel() * each.element_size() for each in (*measure.tensors_in(operands), *results)
        )


def gradients(function: Call) -> Call:
    """Of the result with respect to the floating arguments, given the gradient of the result first;
    of several results, each that has a gradient has that one."""

    @torch.enable_grad()
    def call(grad: Any, *args: Any) -> Any:
        args = tuple(
            each.detach().requires_grad_() if each.is_floating_point() else each for each in args
        )
        result = function(*args)
        results = result if isinstance(result, tuple) else (result,)
        given = [each for each in results if each.requires_grad]
        wanted = [each for each in args if each.requires_grad]
        found = torch.autograd.grad(given, wanted, [grad] * len(given))
        return *(each.detach() for each in results), *found

    return call
