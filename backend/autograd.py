"""Gradients: when a call is recorded, which calls are refused, and what a formula must return.

Every op has a `Gradient`, which is asked at each call that may have to be recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import _runtime
from .formulas import BackwardFunctions, BackwardOps, Formula, quoted
from .lowering.compat import pytorch

if TYPE_CHECKING:
    from .op import Op


class Gradient:
    """The gradient of one op: a formula, or that no gradient flows through it (`constant`), or, as
    long as neither is declared, an error for each call that needs one.

    declare, declare_forward: the calls by which a user declares a formula, for messages.
    """

    def __init__(
        self,
        name: str,
        overload: Any,
        declare: str = ".backward(...)",
        declare_forward: str = ".jvp(...)",
    ) -> None:
        self.name, self._declare, self._declare_forward = name, declare, declare_forward
        self._arguments = pytorch.argument_names(overload)
        self._asked = len(self._arguments)
        if not pytorch.takes_keyword_tensors(overload):
            # as with torch.library, a formula is not asked about keyword-only numbers
            self._asked -= len(pytorch.keyword_only_names(overload))
        self._defaulted = pytorch.defaulted_names(overload)
        self._writes = pytorch.written_names(overload)
        self._returned = pytorch.returned_names(overload)
        self._returns = pytorch.result_count(overload)
        self._is_out = pytorch.is_out(overload)
        self._differentiable = pytorch.tensor_names(overload)
        self.formula: BackwardOps | BackwardFunctions | None = None
        self._non_differentiable: frozenset[str] = frozenset()
        self.forward: Formula | None = None  # of forward mode
        self.constant = False  # whether no gradient flows through the op

    def set_backward_ops(
        self, forward: Op, names: Sequence[str], saves: str | None, non_differentiable: str | None
    ) -> None:
        """names: of backward ops. non_differentiable: names of arguments to which no gradient
        flows, though they may require grad.
        """
        self._set_non_differentiable(non_differentiable)
        self.formula, self.constant = BackwardOps(forward, names, saves), False

    def set_backward_functions(
        self,
        backward: Formula | None,
        setup_context: Formula | None,
        written: str | None,
        non_differentiable: str | None = None,
    ) -> None:
        """written: names of the written arguments whose new values are differentiated; None: those
        that the op returns, or all if it returns nothing.
        """
        self._set_non_differentiable(non_differentiable)
        if written is None:
            names = self._writes if not self._returns else self._returned
        else:
            names = tuple(name.strip() for name in written.split(",") if name.strip())
            unknown = [name for name in names if name not in self._writes]
            if unknown:
                raise _runtime.DeclarationError(
                    f"gradient of {self.name}: written={written!r}, but the op does not write "
                    f"to {quoted(unknown)}; it writes to "
                    f"{quoted(self._writes) or 'no argument'}"
                )
        if backward is not None and not self._returns and not names:
            raise _runtime.DeclarationError(
                f"gradient of {self.name}: the op returns nothing and "
                f"{'writes to no argument' if written is None else 'written is empty'}, so "
                "there is "
                f"nothing to differentiate; say so with None in place of the formula"
            )
        self.formula, self.constant = (
            (None, True)
            if backward is None
            else (BackwardFunctions(backward, setup_context, names), False)
        )

    def _set_non_differentiable(self, names: str | None) -> None:
        listed = [name.strip() for name in (names or "").split(",") if name.strip()]
        unknown = [name for name in listed if name not in self._differentiable]
        if unknown:
            raise _runtime.DeclarationError(
                f"gradient of {self.name}: non_differentiable={names!r}, but {quoted(unknown)} is "
                f"no tensor argument; it has {quoted(self._differentiable) or 'none'}"
            )
        self._non_differentiable = frozenset(listed)

    @property
    def written(self) -> tuple[str, ...]:
        return self.formula.written if self.formula is not None else ()

    def set_forward(self, forward: Formula) -> None:
        if self._writes:
            raise _runtime.DeclarationError(
                f"forward mode of {self.name}: it writes to {quoted(self._writes)}; only an op "
                "that returns all its results has a forward-mode formula"
            )
        self.forward = forward

    def run_forward(self, values: tuple[Any, ...], tangents: tuple[Any, ...], result: Any) -> Any:
        assert self.forward is not None  # or `admit` has refused the tangents
        found = self.forward(values, tangents, result)
        found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        if len(found) != self._returns:
            raise _runtime.LaunchError(
                f"the forward-mode formula of {self.name} returned {len(found)} tangents; expected "
                f"{self._returns}, one for each result: None where there is none"
            )
        results = result if isinstance(result, tuple) else (result,)
        return tuple(
            torch.zeros_like(value) if tangent is None and _differentiable(value) else tangent
            for tangent, value in zip(found, results)
        )

    def admit(self, values: Mapping[str, Any], tangents: list[str]) -> bool:
        silent = self.constant and not any(name in self._writes for name in tangents)
        if tangents and self.forward is None and not silent:
            raise _runtime.LaunchError(
                f"{self.name} has no forward-mode formula, but {quoted(tangents)} carried a "
                "tangent (torch.func.jvp, jacfwd, hessian, linearize, "
                f"torch.autograd.forward_ad); declare one with {self._declare_forward}, use "
                "reverse mode (torch.func.vjp, jacrev), or "
                "call the op on values without tangents"
            )
        needing = (
            [name for name, value in values.items() if _requires_grad(value)]
            if torch.is_grad_enabled()
            else []
        )
        if self._is_out and needing:
            raise _runtime.LaunchError(
                f"{self.name} is an out variant (torch.Tag.out): functions with out=... arguments "
                f"don't support automatic differentiation, but {quoted(needing)} requires grad; "
                "call it under torch.no_grad()"
            )
        for name in self._writes:
            if name in needing:
                self._check_written(name, values[name])
        if self.formula is None and not self.constant and needing:
            lost = [name for name in self._writes if _differentiable(values[name])]
            if lost:
                raise _runtime.LaunchError(
                    f"{self.name} writes values to {quoted(lost)} that depend on "
                    f"{quoted(needing)}, which requires grad, but it has no gradient; declare it "
                    f"with {self._declare}, say that none flows with "
                    f"{self._declare.replace('...', 'None')}, or call the op under torch.no_grad()"
                )
        if isinstance(self.formula, BackwardOps):
            lost = self._missing(name for name in needing if name not in self.formula.gives)
            if lost:
                raise _runtime.LaunchError(
                    f"{self.name}: {quoted(lost)} requires grad, but the op's backward ops give "
                    f"no gradient for it; add one that does to {self._declare}, say that no "
                    f"gradient flows there with non_differentiable={', '.join(lost)!r}, or pass "
                    "it without (.detach())"
                )
        if len(set(self.written) - set(self._returned)) + self._returns > 1:
            self._check_views(values)
        if self.constant and (not tangents or self.forward is None):
            return False
        return self._returns + len(self.written) > 0

    def _check_written(self, name: str, value: Any) -> None:
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if not _requires_grad(tensor):
                continue
            base = pytorch.base_of_view(tensor)
            if tensor.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
                raise _runtime.LaunchError(
                    f"{self.name} writes to `{name}`: a "
                    f"{'' if base is None else 'view of a '}leaf Variable that requires "
                    "grad is being used in an "
                    f"in-place operation. Call the op under torch.no_grad(), or on a clone"
                )
        if name not in self.written:
            why = (
                "has no gradient"
                if self.formula is None
                else "its gradient formula does not differentiate what is written there"
            )
            todo = f"declare one that does with {self._declare} and `written`"
            raise _runtime.LaunchError(
                f"{self.name} writes to `{name}`, which requires grad, but {why}; {todo}, call "
                f"the op under torch.no_grad(), or on `{name}.detach()`"
            )

    def _check_views(self, values: Mapping[str, Any]) -> None:
        """PyTorch can rewrite the history of a view's base only for a node of one output."""
        views = [
            name
            for name in self.written
            if isinstance(values[name], torch.Tensor)
            and pytorch.base_of_view(values[name]) is not None
        ]
        if views:
            raise _runtime.LaunchError(
                f"{self.name} writes to {quoted(views)}, a view of another tensor, and has "
                "other results that are differentiated; PyTorch cannot record "
                "that: pass a tensor that is no view (a clone, copied back afterwards), or "
                "call the op under torch.no_grad()"
            )

    def save(self, ctx: Any, values: Mapping[str, Any], result: Any) -> None:
        if self.formula is not None:
            self.formula.save(ctx, values, result)

    def run(self, ctx: Any, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.formula is None:
            raise _runtime.DeclarationError(
                f"{self.name} has no autograd formula, but a gradient was asked for; declare it "
                f"with {self._declare}, or call the op under torch.no_grad()"
            )
        needs = ctx.needs_input_grad
        ctx.needs_input_grad = needs[: self._asked]
        found = self.formula.run(ctx, grads)
        found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        # As with torch.library, the last may be left out: arguments with defaults.
        left_out = list(zip(self._arguments, needs))[len(found) : self._asked]
        if found and all(name in self._defaulted and not need for name, need in left_out):
            found += (None,) * len(left_out)
        extra = found[self._asked :]
        if len(found) < self._asked or any(grad is not None for grad in extra):
            raise _runtime.DeclarationError(
                f"the gradient formula of {self.name} returned an incorrect number of gradients "
                f"(expected {self._asked}, got {len(found)}{': ' * bool(found)}"
                f"{', '.join(map(_kind, found))}); it returns one "
                f"for each argument, in the order {', '.join(self._arguments[: self._asked])}: "
                "None where the argument needs none"
            )
        for name, grad, needed in zip(self._arguments, found, needs):
            if isinstance(needed, list) and grad is not None:
                self._check_list(name, grad, len(needed))
        if not any(map(_is_incomplete, grads)):
            lost = self._missing(
                name
                for name, grad, needed in zip(self._arguments, found, needs)
                if _is_lost(grad, needed)
            )
            if lost:
                raise _runtime.DeclarationError(
                    f"the gradient formula of {self.name} returned None for {quoted(lost)}, which "
                    "requires grad; return its gradient (zeros are one), or say in "
                    f"{self._declare} that none flows there with "
                    f"non_differentiable={', '.join(lost)!r}"
                )
        return (*found[: self._asked], *(None for _ in self._arguments[self._asked :]))

    def _missing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self._non_differentiable]

    def _check_list(self, name: str, grad: Any, length: int) -> None:
        if not isinstance(grad, (list, tuple)) or len(grad) != length:
            got = f"{len(grad)} gradients" if isinstance(grad, (list, tuple)) else _kind(grad)
            raise _runtime.DeclarationError(
                f"the gradient formula of {self.name} returned {got} for the list `{name}` of "
                f"{length} tensors; expected a list of {length}, None where there is no gradient"
            )


def _kind(grad: Any) -> str:
    return "None" if grad is None else f"a {type(grad).__name__}"


def _is_incomplete(grad: Any) -> bool:
    """Whether a formula that materializes no gradients (ctx.set_materialize_grads) got None for a
    result, so that it may have none to give for what only that result depends on.
    """
    return any(map(_is_incomplete, grad)) if isinstance(grad, (list, tuple)) else grad is None


def _is_lost(grad: Any, needed: Any) -> bool:
    """Whether a gradient is missing that is needed."""
    if isinstance(needed, (list, tuple)):
        items = [None] * len(needed) if grad is None else grad
        return any(map(_is_lost, items, needed))
    return bool(needed) and grad is None


def _requires_grad(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_requires_grad(item) for item in value)
    return isinstance(value, torch.Tensor) and value.requires_grad


def _differentiable(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_differentiable(item) for item in value)
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
