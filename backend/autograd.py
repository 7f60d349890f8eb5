"""Gradients: a backward op binds to its forward by the names in its schema, or a Python function takes (ctx, *grads)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from . import _runtime, lowering

if TYPE_CHECKING:
    from .op import Op

Formula = Callable[..., Any]


def register(name: str, current: Callable[[], Op]) -> None:
    """Registers a gradient with PyTorch, once per name; which formula runs is decided at the call, so it may be given later."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any, keyword_only_inputs: dict[str, Any] | None = None) -> None:
        op = current()
        if op._formula is not None:
            op._formula.save(ctx, {**dict(zip(op._arg_names, inputs)), **(keyword_only_inputs or {})}, output)

    def backward(ctx: Any, *grads: Any) -> Any:
        op = current()
        if op._formula is None:
            raise _runtime.DeclarationError(
                f"{name} has no gradient, but one was asked for; declare it with .backward(...), or call the op under torch.no_grad()"
            )
        return op._formula.run(ctx, grads)

    if any(arg["keyword_only"] for arg in _runtime.describe(name)["args"]):
        torch.library.register_autograd(name, backward, setup_context=lambda ctx, inputs, keyword_only_inputs, output: setup_context(
            ctx, inputs, output, keyword_only_inputs))
    else:
        torch.library.register_autograd(name, backward, setup_context=lambda ctx, inputs, output: setup_context(ctx, inputs, output))


class ByName:
    """Gradient by a backward op: `grad_<output>` arguments are output gradients, other arguments are inputs or outputs of the forward;
    its results are `grad_<input>`, or, unnamed, the gradients of the tensor arguments in order."""

    def __init__(self, forward: Op, backward_name: str, saves: str | None) -> None:
        backward = _runtime.describe(backward_name)
        inputs = [arg["name"] for arg in forward.info["args"]]
        tensors = [arg["name"] for arg in forward.info["args"] if arg["torch_type"] == "Tensor"]
        outputs = [output["name"] for output in forward.info["outputs"]]
        accepted = [f"grad_{name}" for name in outputs] + inputs + outputs
        self._sources: list[tuple[str, Any]] = []
        for arg in backward["args"]:
            name = arg["name"]
            if name not in accepted:
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: argument `{name}` of {backward_name} is neither a gradient of an output nor an argument or "
                    f"output of {forward.name}; accepted: {', '.join(accepted)}"
                )
            if name.startswith("grad_") and name not in inputs + outputs:
                self._sources.append(("grad", outputs.index(name[5:])))
            else:
                self._sources.append(("saved" if name in tensors + outputs else "scalar", name))
        self._targets = self._bind_results(forward, backward, tensors)
        self._saved = [name for kind, name in self._sources if kind == "saved"]
        if saves is not None:
            listed = [name.strip() for name in saves.split(",") if name.strip()]
            if sorted(listed) != sorted(self._saved):
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: saves={saves!r}, but {backward_name} reads {', '.join(self._saved) or 'nothing'}; leave `saves` out "
                    f"or list exactly what is read"
                )
        self._inputs, self._outputs = inputs, outputs
        self._op = lowering.overload_of(backward_name)
        self._output_rules = forward.info["outputs"]

    @staticmethod
    def _bind_results(forward: Op, backward: _runtime.OpInfo, tensors: list[str]) -> list[str]:
        names = [output["name"] for output in backward["outputs"]]
        if all(name.startswith("out") for name in names) and not any(name.startswith("grad_") for name in names):
            targets = tensors[: len(names)]
            if len(names) > len(tensors):
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: {backward['name']} returns {len(names)} tensors, but {forward.name} has {len(tensors)} tensor arguments"
                )
            return targets
        for name in names:
            if name.removeprefix("grad_") not in tensors or not name.startswith("grad_"):
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: result `{name}` of {backward['name']} names no tensor argument; "
                    f"accepted: {', '.join('grad_' + tensor for tensor in tensors)}"
                )
        return [name.removeprefix("grad_") for name in names]

    def save(self, ctx: Any, inputs: dict[str, Any], output: Any) -> None:
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        values = {**inputs, **dict(zip(self._outputs, outputs))}
        ctx.save_for_backward(*(values[name] for name in self._saved))
        ctx.scalars = {name: values[name] for kind, name in self._sources if kind == "scalar"}
        ctx.output_like = [(tuple(t.shape), t.dtype, t.device) for t in outputs]

    def run(self, ctx: Any, grads: tuple[Any, ...]) -> Any:
        saved = dict(zip(self._saved, ctx.saved_tensors))
        values = []
        for kind, key in self._sources:
            if kind == "grad":
                grad = grads[key]
                if grad is None:  # the output took no part in the loss
                    shape, dtype, device = ctx.output_like[key]
                    grad = torch.zeros(shape, dtype=dtype, device=device)
                values.append(grad)
            else:
                values.append(saved[key] if kind == "saved" else ctx.scalars[key])
        results = self._op(*values)
        by_name = dict(zip(self._targets, results if isinstance(results, (tuple, list)) else (results,)))
        return tuple(by_name.get(name) for name in self._inputs)


class ByFunction:
    """Gradient by Python functions, as torch.library.register_autograd takes them."""

    def __init__(self, backward: Formula, setup_context: Formula | None) -> None:
        self._backward, self._setup = backward, setup_context

    def save(self, ctx: Any, inputs: dict[str, Any], output: Any) -> None:
        if self._setup is not None:
            self._setup(ctx, tuple(inputs.values()), output)

    def run(self, ctx: Any, grads: tuple[Any, ...]) -> Any:
        return self._backward(ctx, *grads)
