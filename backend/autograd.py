"""Gradients: a backward op binds to its forward by the names in its schema, or a Python function
takes (ctx, *grads).

Every op has a `Gradient`, which is asked at each call that may have to be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import _runtime, lowering
from .lowering.compat import pytorch
from .lowering.lists import has_lists

if TYPE_CHECKING:
    from .op import Op

Formula = Callable[..., Any]


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
        self._writes = pytorch.written_names(overload)
        self._returned = pytorch.returned_names(overload)
        self._returns = pytorch.result_count(overload)
        self._is_out = pytorch.is_out(overload)
        self.formula: BackwardOp | BackwardFunctions | None = None
        self.forward: Formula | None = None  # of forward mode
        self.constant = False  # whether no gradient flows through the op

    def set_backward_op(self, forward: Op, backward_name: str, saves: str | None) -> None:
        self.formula, self.constant = BackwardOp(forward, backward_name, saves), False

    def set_backward_functions(
        self, backward: Formula | None, setup_context: Formula | None, written: str | None
    ) -> None:
        """written: names of the written arguments whose new values are differentiated; None: those
        that the op returns, or all if it returns nothing.
        """
        if written is None:
            names = self._writes if not self._returns else self._returned
        else:
            names = tuple(name.strip() for name in written.split(",") if name.strip())
            unknown = [name for name in names if name not in self._writes]
            if unknown:
                raise _runtime.DeclarationError(
                    f"gradient of {self.name}: written={written!r}, but the op does not write "
                    f"to {_names(unknown)}; it writes to "
                    f"{_names(self._writes) or 'no argument'}"
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

    @property
    def written(self) -> tuple[str, ...]:
        return self.formula.written if self.formula is not None else ()

    def set_forward(self, forward: Formula) -> None:
        if self._writes:
            raise _runtime.DeclarationError(
                f"forward mode of {self.name}: it writes to {_names(self._writes)}; only an op "
                "that returns all its results has a forward-mode formula"
            )
        self.forward = forward

    def run_forward(self, values: tuple[Any, ...], tangents: tuple[Any, ...], result: Any) -> Any:
        if self.forward is None:
            raise _runtime.LaunchError(f"{self.name} has no forward-mode formula")
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
                f"{self.name} has no forward-mode formula, but {_names(tangents)} carried a "
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
                f"{self.name} is an out variant (torch.Tag.out), which has no gradient, but "
                f"{_names(needing)} requires grad; call it under torch.no_grad()"
            )
        for name in self._writes:
            if name in needing:
                self._check_written(name, values[name])
        if self.formula is None and not self.constant and needing:
            lost = [name for name in self._writes if _differentiable(values[name])]
            if lost:
                raise _runtime.LaunchError(
                    f"{self.name} writes values to {_names(lost)} that depend on "
                    f"{_names(needing)}, which requires grad, but it has no gradient; declare it "
                    f"with {self._declare}, say that none flows with "
                    f"{self._declare.replace('...', 'None')}, or call the op under torch.no_grad()"
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
                f"{self.name} writes to {_names(views)}, a view of another tensor, and has "
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
                f"{self.name} has no gradient, but one was asked for; declare it with "
                f"{self._declare}, or call the op under torch.no_grad()"
            )
        needs = ctx.needs_input_grad
        ctx.needs_input_grad = needs[: self._asked]
        found = self.formula.run(ctx, grads)
        found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        missing = self._arguments[len(found) :]
        extra = found[len(self._arguments) :]
        unanswered = [name for name, needed in zip(missing, needs[len(found) :]) if _any(needed)]
        if unanswered or any(grad is not None for grad in extra):
            raise _runtime.DeclarationError(
                f"the gradient formula of {self.name} returned {len(found)} "
                f"gradient{'s' * (len(found) != 1)}"
                f"{', ' * bool(found)}{', '.join(map(_kind, found))}; "
                "expected one "
                f"for each argument, in the order {', '.join(self._arguments)}: None where "
                "there is none"
            )
        for name, grad, needed in zip(self._arguments, found, needs):
            if isinstance(needed, list) and grad is not None:
                self._check_list(name, grad, len(needed))
        return (*found[: len(self._arguments)], *(None for _ in missing))

    def _check_list(self, name: str, grad: Any, length: int) -> None:
        if not isinstance(grad, (list, tuple)) or len(grad) != length:
            got = f"{len(grad)} gradients" if isinstance(grad, (list, tuple)) else _kind(grad)
            raise _runtime.DeclarationError(
                f"the gradient formula of {self.name} returned {got} for the list `{name}` of "
                f"{length} tensors; expected a list of {length}, None where there is no gradient"
            )


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _kind(grad: Any) -> str:
    return "None" if grad is None else f"a {type(grad).__name__}"


def _any(needed: Any) -> bool:
    return any(needed) if isinstance(needed, (list, tuple)) else bool(needed)


def _requires_grad(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_requires_grad(item) for item in value)
    return isinstance(value, torch.Tensor) and value.requires_grad


def _differentiable(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_differentiable(item) for item in value)
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


class BackwardOp:
    """Gradient by a backward op. Its arguments: `grad_<output>` is the gradient of an output,
    `grad_<argument>` that of the value which the forward op wrote to the argument, any other is an
    argument or output of the forward op. Its results are `grad_<argument>`, or, without names, the
    gradients of the first tensor arguments in order.
    """

    def __init__(self, forward: Op, backward_name: str, saves: str | None) -> None:
        backward = _runtime.describe(backward_name)
        for info in (forward.info, backward):
            if has_lists(info):
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: {info['name']} takes a list of tensors, whose "
                    "items a backward op cannot name; give a function (ctx, *grads), which returns "
                    "a list of gradients for it"
                )
        inputs = [arg["name"] for arg in forward.info["args"]]
        tensors = [arg["name"] for arg in forward.info["args"] if arg["torch_type"] == "Tensor"]
        outputs = [output["name"] for output in forward.info["outputs"]]
        written = [arg["name"] for arg in forward.info["args"] if arg["mutated"]]
        differentiable = outputs + written
        accepted = [f"grad_{name}" for name in differentiable] + inputs + outputs
        self._check_results(forward, backward)
        taken = [arg["name"] for arg in backward["args"]]
        self.written = tuple(
            name
            for name in written
            if f"grad_{name}" in taken and f"grad_{name}" not in inputs + outputs
        )
        differentiated = [*outputs, *self.written]
        self._sources: list[tuple[str, Any]] = []
        for arg in backward["args"]:
            name = arg["name"]
            if name not in accepted:
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: argument `{name}` of {backward_name} is "
                    "neither a gradient of an output or written "
                    f"argument nor an argument or output of {forward.name}; accepted: "
                    f"{', '.join(accepted)}"
                )
            if name.startswith("grad_") and name not in inputs + outputs:
                self._sources.append(("grad", differentiated.index(name[5:])))
            else:
                self._sources.append(("saved" if name in tensors + outputs else "scalar", name))
        self._targets = self._bind_results(forward, backward, tensors)
        self._saved = [name for kind, name in self._sources if kind == "saved"]
        if saves is not None:
            listed = [name.strip() for name in saves.split(",") if name.strip()]
            if sorted(listed) != sorted(self._saved):
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: saves={saves!r}, but {backward_name} reads "
                    f"{', '.join(self._saved) or 'nothing'}; leave `saves` out "
                    f"or list exactly what is read"
                )
        self._inputs, self._outputs = inputs, outputs
        self._op = lowering.overload_of(backward_name)
        self._output_rules = forward.info["outputs"]

    @staticmethod
    def _check_results(forward: Op, backward: _runtime.OpInfo) -> None:
        if not backward["outputs"]:
            raise _runtime.DeclarationError(
                f"gradient of {forward.name}: {backward['name']} returns nothing; its results "
                "must be the gradients"
            )
        written = [arg["name"] for arg in backward["args"] if arg["mutated"]]
        if written:
            raise _runtime.DeclarationError(
                f"gradient of {forward.name}: {backward['name']} writes to {_names(written)}, "
                f"which autograd or the caller of {forward.name} still holds; "
                f"a gradient op may only return results"
            )

    @staticmethod
    def _bind_results(forward: Op, backward: _runtime.OpInfo, tensors: list[str]) -> list[str]:
        names = [output["name"] for output in backward["outputs"]]
        if all(name.startswith("out") for name in names) and not any(
            name.startswith("grad_") for name in names
        ):
            targets = tensors[: len(names)]
            if len(names) > len(tensors):
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: {backward['name']} returns {len(names)} "
                    f"tensors, but {forward.name} has {len(tensors)} tensor arguments"
                )
            return targets
        for name in names:
            if name.removeprefix("grad_") not in tensors or not name.startswith("grad_"):
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: result `{name}` of {backward['name']} names "
                    "no tensor argument; "
                    f"accepted: {', '.join('grad_' + tensor for tensor in tensors)}"
                )
        return [name.removeprefix("grad_") for name in names]

    def save(self, ctx: Any, inputs: Mapping[str, Any], output: Any) -> None:
        outputs = (
            () if output is None else output if isinstance(output, (tuple, list)) else (output,)
        )
        values = {**inputs, **dict(zip(self._outputs, outputs))}
        ctx.save_for_backward(*(values[name] for name in self._saved))
        ctx.scalars = {name: values[name] for kind, name in self._sources if kind == "scalar"}
        differentiated = (*outputs, *(inputs[name] for name in self.written))
        ctx.differentiated_like = [
            None if t is None else (tuple(t.shape), t.dtype, t.device) for t in differentiated
        ]

    def run(self, ctx: Any, grads: tuple[Any, ...]) -> Any:
        saved = dict(zip(self._saved, ctx.saved_tensors))
        values = []
        for kind, key in self._sources:
            if kind == "grad":
                grad = grads[key]
                # None: the loss does not depend on the output
                if grad is None and ctx.differentiated_like[key] is not None:
                    shape, dtype, device = ctx.differentiated_like[key]
                    grad = torch.zeros(shape, dtype=dtype, device=device)
                values.append(grad)
            else:
                values.append(saved[key] if kind == "saved" else ctx.scalars[key])
        results = self._op(*values)
        by_name = dict(
            zip(self._targets, results if isinstance(results, (tuple, list)) else (results,))
        )
        return tuple(by_name.get(name) for name in self._inputs)


class BackwardFunctions:
    """Gradient by the Python functions that torch.library.register_autograd takes: backward(ctx,
    *grads), setup_context(ctx, inputs, output).
    """

    def __init__(
        self, backward: Formula, setup_context: Formula | None, written: tuple[str, ...]
    ) -> None:
        self._backward, self._setup, self.written = backward, setup_context, written

    def save(self, ctx: Any, inputs: Mapping[str, Any], output: Any) -> None:
        if self._setup is not None:
            self._setup(ctx, tuple(inputs.values()), output)

    def run(self, ctx: Any, grads: tuple[Any, ...]) -> Any:
        return self._backward(ctx, *grads)
