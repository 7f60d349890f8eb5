"""Formulas of gradients: backward ops, bound to their forward op by the names in their schemas, and
Python functions that take (ctx, *grads).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from . import _runtime, lowering
from .lowering.lists import has_lists

if TYPE_CHECKING:
    from .op import Op

Formula = Callable[..., Any]


def quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


class BackwardOps:
    """Gradient by one backward op or several, which give the gradients of different arguments. A
    call runs the fewest of them that give what is needed, and keeps what these read.
    """

    def __init__(self, forward: Op, names: Sequence[str], saves: str | None) -> None:
        self._ops = [BackwardOp(forward, name) for name in names]
        for later, op in enumerate(self._ops):
            for other in self._ops[:later]:
                if set(op.gives) == set(other.gives):
                    raise _runtime.DeclarationError(
                        f"gradient of {forward.name}: {op.name} gives the gradients of "
                        f"{quoted(op.gives)}, as {other.name} does, and would never be chosen; "
                        "leave one of them out"
                    )
        self.written = tuple(
            arg["name"]
            for arg in forward.info["args"]
            if any(arg["name"] in op.written for op in self._ops)
        )
        self.gives = frozenset(itertools.chain.from_iterable(op.gives for op in self._ops))
        self._need_zeros = {name for op in self._ops for name in op.need_zeros}
        self._inputs = [arg["name"] for arg in forward.info["args"]]
        self._outputs = [output["name"] for output in forward.info["outputs"]]
        if saves is not None:
            self._check_saves(forward, saves)

    def _check_saves(self, forward: Op, saves: str) -> None:
        read = list(dict.fromkeys(name for op in self._ops for name in op.reads))
        listed = [name.strip() for name in saves.split(",") if name.strip()]
        if sorted(listed) != sorted(read):
            raise _runtime.DeclarationError(
                f"gradient of {forward.name}: saves={saves!r}, but "
                f"{', '.join(op.name for op in self._ops)} reads {', '.join(read) or 'nothing'}; "
                "leave `saves` out or list exactly what is read"
            )

    def _chosen(self, needed: set[str]) -> tuple[BackwardOp, ...]:
        """The fewest ops that give all gradients which are needed; of those, the ones that give the
        fewest others; of those, the first.
        """
        needed = needed & self.gives
        for count in range(len(self._ops) + 1):
            sufficient = [
                ops
                for ops in itertools.combinations(self._ops, count)
                if needed <= {name for op in ops for name in op.gives}
            ]
            if sufficient:
                return min(sufficient, key=lambda ops: sum(len(op.gives) for op in ops))
        raise AssertionError("all of them give everything that any of them gives")

    def save(self, ctx: Any, inputs: Mapping[str, Any], output: Any) -> None:
        outputs = (
            () if output is None else output if isinstance(output, (tuple, list)) else (output,)
        )
        values = {**inputs, **dict(zip(self._outputs, outputs))}
        needs = dict(zip(self._inputs, ctx.needs_input_grad))
        ctx.backward_ops = self._chosen({name for name, need in needs.items() if need})
        ctx.saved_names = list(dict.fromkeys(name for op in ctx.backward_ops for name in op.reads))
        ctx.save_for_backward(*(values[name] for name in ctx.saved_names))
        ctx.numbers = {name: values[name] for op in ctx.backward_ops for name in op.numbers}
        ctx.needs = needs
        differentiated = dict(zip(self._outputs, outputs))
        differentiated |= {name: inputs[name] for name in self.written}
        ctx.differentiated_like = {
            name: None if t is None else (tuple(t.shape), t.dtype, t.device)
            for name, t in differentiated.items()
        }

    def run(self, ctx: Any, grads: tuple[Any, ...]) -> Any:
        saved = {**dict(zip(ctx.saved_names, ctx.saved_tensors)), **ctx.numbers}
        given = {}
        for (name, like), grad in zip(ctx.differentiated_like.items(), grads):
            # None: the loss does not depend on the output
            if grad is None and like is not None and name in self._need_zeros:
                shape, dtype, device = like
                grad = torch.zeros(shape, dtype=dtype, device=device)
            given[name] = grad
        found: dict[str, Any] = {}
        for op in ctx.backward_ops:
            for name, grad in op.run(given, saved, ctx.needs).items():
                found.setdefault(name, grad)
        return tuple(found.get(name) if ctx.needs[name] else None for name in self._inputs)


class BackwardOp:
    """One backward op. Its arguments: `grad_<output>` is the gradient of an output,
    `grad_<argument>` that of the value which the forward op wrote to the argument, a bool
    `needs_grad_<argument>` tells whether that argument's gradient is needed, any other is an
    argument or output of the forward op. An optional gradient is None where the loss does not
    depend on the value, any other is zeros there. Its results are `grad_<argument>`, or, without
    names, the gradients of the first tensor arguments in order.
    """

    def __init__(self, forward: Op, name: str) -> None:
        backward = _runtime.describe(name)
        for info in (forward.info, backward):
            if has_lists(info):
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: {info['name']} takes a list of tensors, whose "
                    "items a backward op cannot name; give a function (ctx, *grads), which returns "
                    "a list of gradients for it"
                )
        self.name = name
        inputs = [arg["name"] for arg in forward.info["args"]]
        tensors = [arg["name"] for arg in forward.info["args"] if arg["torch_type"] == "Tensor"]
        outputs = [output["name"] for output in forward.info["outputs"]]
        written = [arg["name"] for arg in forward.info["args"] if arg["mutated"]]
        self._check_results(forward, backward)
        grads = {f"grad_{name}": name for name in outputs + written}
        needs = {f"needs_grad_{name}": name for name in tensors}
        own = inputs + outputs
        accumulated = lowering.accumulating.get(self.name)
        self._sources: list[tuple[str, str]] = []
        for arg in backward["args"]:
            name = arg["name"]
            if accumulated is not None and name == accumulated.argument:
                self._sources.append(("nothing", name))  # a compiled graph may give it one
            elif name in own:
                self._sources.append(("saved" if name in tensors + outputs else "number", name))
            elif name in grads:
                self._sources.append(("grad", grads[name]))
            elif name in needs and arg["torch_type"] == "bool":
                self._sources.append(("needs", needs[name]))
            else:
                accepted = [*grads, *own, *(f"bool {name}" for name in needs)]
                raise _runtime.DeclarationError(
                    f"gradient of {forward.name}: argument `{name}` of {self.name} is "
                    "neither a gradient of an output or written "
                    f"argument nor an argument or output of {forward.name}; accepted: "
                    f"{', '.join(accepted)}"
                )
        self.gives = self._bind_results(forward, backward, tensors)
        self.reads = [name for kind, name in self._sources if kind == "saved"]
        self.numbers = [name for kind, name in self._sources if kind == "number"]
        taken = [name for kind, name in self._sources if kind == "grad"]
        # of the values whose gradients it takes, those whose gradients are never None
        self.need_zeros = [
            grads[arg["name"]]
            for arg in backward["args"]
            if grads.get(arg["name"]) in taken and not arg["optional"]
        ]
        self.written = tuple(name for name in written if name in taken)
        self._keywords = [arg["name"] for arg in backward["args"] if arg["keyword_only"]]
        self._op = lowering.overload_of(self.name)

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
                f"gradient of {forward.name}: {backward['name']} writes to {quoted(written)}, "
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

    def run(
        self, grads: Mapping[str, Any], saved: Mapping[str, Any], needs: Mapping[str, bool]
    ) -> dict[str, Any]:
        """The gradients by argument."""
        values = {"grad": grads, "saved": saved, "number": saved, "needs": needs, "nothing": {}}
        given = [values[kind].get(name) for kind, name in self._sources]
        split = len(given) - len(self._keywords)
        results = self._op(*given[:split], **dict(zip(self._keywords, given[split:])))
        return dict(zip(self.gives, results if isinstance(results, (tuple, list)) else (results,)))


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
