"""The kernel of an op for PyTorch's Autograd key: makes the op differentiable, or refuses a call
whose gradient would be wrong.

It makes its graph node as PyTorch's own operators do, at the level of the transform that calls it
(torch.func.grad, vjp, vmap of them), so that it composes with all transforms of reverse mode.
torch.func refuses the nodes that torch.library.register_autograd makes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils._pytree import tree_map

from .schemas import Schemas, argument_of_results

_LEVEL = 0  # of forward mode; PyTorch has no nested ones

_libraries: list[torch.library.Library] = []  # a registration lasts as long as its library


class Gradient(Protocol):
    """What the kernel must know of an op."""

    # arguments that the op writes to and whose new values are differentiated
    written: tuple[str, ...]

    def admit(self, values: Mapping[str, Any], tangents: list[str]) -> bool:
        """Called if an argument requires grad or has a tangent (forward mode). values: all
        arguments by name; tangents: names of those with a tangent. Returns whether to record the
        call; raises if its gradient would be wrong.
        """

    def save(self, ctx: Any, values: Mapping[str, Any], result: Any) -> None:
        """Keeps in `ctx` what `run` needs. Here and there, ctx.needs_input_grad is by argument."""

    def run(self, ctx: Any, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        """Gradients with respect to every argument of the schema, from those of the results and
        then of the written arguments.
        """

    def run_forward(self, values: tuple[Any, ...], tangents: tuple[Any, ...], result: Any) -> Any:
        """Tangents of the results from those of the arguments (forward mode)."""


class Autograd(Schemas):
    def base_of_view(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The tensor of which `tensor` is a view for autograd; None if it is no view."""
        return tensor._base if tensor._is_view() else None

    def forward_level(self) -> dict[str, Any]:
        """Where torch keeps the number of the innermost open level of forward-mode differentiation,
        -1 if none is open: a dict, and the key in it.
        """
        return {"forward_variables": vars(forward_ad), "forward_level": "_current_level"}

    def register_autograd(
        self, overload: Any, gradient: Callable[[], Gradient], owner: Any = None
    ) -> None:
        """Registers the kernel, replacing any other. `gradient` is called at each call of the op,
        so that its gradient may change. owner: the object that torch.library.custom_op made, with
        which the registration ends; None: it lasts until the process ends.
        """
        namespace, name = overload.name().split("::")
        library = torch.library.Library(namespace, "FRAGMENT") if owner is None else owner._lib
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Warning only once for all operators", category=UserWarning
            )
            library.impl(
                name.removesuffix(".default"),
                _kernel(overload, self.default_values(overload), gradient),
                "Autograd",
                with_keyset=True,
                allow_override=True,
            )
        if owner is None:
            _libraries.append(library)


def _kernel(
    overload: Any, defaults: list[Any], gradient: Callable[[], Gradient]
) -> Callable[..., Any]:
    arguments = [
        (arg.name, arg.kwarg_only, default)
        for arg, default in zip(overload._schema.arguments, defaults)
    ]
    node = _node(overload, arguments)

    def autograd(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        reverse = torch.is_grad_enabled() and torch._C._any_requires_grad(*args, **kwargs)
        forward = _may_have_tangents()
        below = keyset & torch._C._after_autograd_keyset
        if reverse or forward:
            values = {
                argument: args[i] if i < len(args) else kwargs.get(argument, default)
                for i, (argument, _, default) in enumerate(arguments)
            }
            tangents = _with_tangents(values) if forward else []
            if (reverse or tangents) and gradient().admit(values, tangents):
                return _record(node, _Call(gradient(), below, bool(tangents)), values)
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(below, *args, **kwargs)

    return autograd


class _Call:
    """One recorded call: passed to the node as an argument beside the tensors."""

    def __init__(self, gradient: Gradient, below: Any, forward_mode: bool) -> None:
        self.gradient, self.below, self.forward_mode = gradient, below, forward_mode
        self.primal: tuple[tuple[Any, ...], Any] = ((), None)  # of forward mode: arguments, result
        self.inputs: list[int] = []  # how the arguments were flattened
        self.results: list[int] = []
        self.single = False  # one result that is not in a tuple
        # for each differentiated written argument that is not a result too: whether it was given
        self.written: list[bool] = []


def _record(node: Any, call: _Call, values: dict[str, Any]) -> Any:
    flat, call.inputs = _flatten(values.values())
    transformed = torch._C._are_functorch_transforms_active()
    with enable_single_level_autograd_function() if transformed else contextlib.nullcontext():
        outputs = node.apply(call, *flat)
    results = _unflatten(outputs if isinstance(outputs, tuple) else (outputs,), call.results)
    return results[0] if call.single else tuple(results) if results else None


def _node(overload: Any, arguments: list[tuple[str, bool, Any]]) -> Any:
    names = [name for name, _, _ in arguments]
    returned = argument_of_results(overload)
    positional = sum(not keyword_only for _, keyword_only, _ in arguments)

    def forward(ctx: Any, call: _Call, *flat: Any) -> Any:
        values = _unflatten(flat, call.inputs)
        with torch._C._AutoDispatchBelowAutograd(), _outer_transforms():
            result = overload.redispatch(
                call.below,
                *values[:positional],
                **dict(zip(names[positional:], values[positional:])),
            )
        ctx.opaq_call = call
        with torch._C._AutoDispatchBelowAutograd(), _needs_by_argument(ctx, call):
            call.gradient.save(ctx, dict(zip(names, values)), result)
        if call.forward_mode:
            call.primal = (tuple(values), result)
        call.single = result is not None and not isinstance(result, tuple)
        parts = () if result is None else (result,) if call.single else result
        named = dict(zip(names, values))
        leaves, call.results = _flatten(
            part if name is None else named[name] for part, name in zip(parts, returned)
        )
        written = [named[name] for name in names if name in call.gradient.written]
        ctx.mark_dirty(*(value for value in written if value is not None))
        beside = [
            named[name] for name in names if name in call.gradient.written and name not in returned
        ]
        call.written = [value is not None for value in beside]
        return (*leaves, *(value for value in beside if value is not None))

    def backward(ctx: Any, *grads: Any) -> Any:
        call = ctx.opaq_call
        results = _unflatten(grads, call.results)
        given = iter(grads[_count(call.results) :])
        with _needs_by_argument(ctx, call):
            found = call.gradient.run(
                ctx, (*results, *(next(given) if present else None for present in call.written))
            )
        spread: list[Any] = [None]
        for grad, count in zip(found, call.inputs):
            spread.extend([grad] if count < 0 else [None] * count if grad is None else grad)
        return tuple(spread)

    def jvp(ctx: Any, _: None, *tangents: Any) -> Any:
        call = ctx.opaq_call
        values, result = call.primal
        # PyTorch runs this with forward mode off, which would lose an outer jvp's tangents.
        with forward_ad._set_fwd_grad_enabled(True):
            found = call.gradient.run_forward(
                tuple(tree_map(_primal, value) for value in values),
                tuple(_unflatten(tangents, call.inputs)),
                tree_map(_primal, result),
            )
        leaves, _ = _flatten(found if isinstance(found, tuple) else (found,))
        return tuple(leaves) if len(leaves) != 1 else leaves[0]

    members = {
        "forward": staticmethod(forward),
        "backward": staticmethod(backward),
        "jvp": staticmethod(jvp),
        "_compiled_autograd_key": staticmethod(lambda ctx: (ctx._autograd_function_id,)),
    }
    return type(f"{overload._namespace}_{overload._opname}", (_SingleLevelFunction,), members)


@contextlib.contextmanager
def _needs_by_argument(ctx: Any, call: _Call) -> Iterator[None]:
    """ctx.needs_input_grad has an item for each argument of the op, a list for a list."""
    needed = ctx.needs_input_grad
    ctx.needs_input_grad = tuple(_unflatten(needed[1:], call.inputs))
    try:
        yield
    finally:
        ctx.needs_input_grad = needed


@contextlib.contextmanager
def _outer_transforms() -> Iterator[None]:
    """A node's forward runs with gradients off. This turns them on for the outer transforms of
    torch.func, which differentiate the same call too.
    """
    if not torch._C._are_functorch_transforms_active():
        yield
        return
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def _flatten(parts: Iterable[Any]) -> tuple[list[Any], list[int]]:
    """(the parts, with lists of tensors replaced by their items; for each part the length of its
    list, or -1 if it is none).
    """
    flat: list[Any] = []
    counts: list[int] = []
    for part in parts:
        spread = isinstance(part, (list, tuple)) and any(
            isinstance(item, torch.Tensor) for item in part
        )
        flat.extend(part if spread else [part])
        counts.append(len(part) if spread else -1)
    return flat, counts


def _unflatten(flat: Sequence[Any], counts: list[int]) -> list[Any]:
    parts: list[Any] = []
    at = 0
    for count in counts:
        parts.append(flat[at] if count < 0 else list(flat[at : at + count]))
        at += abs(count)
    return parts


def _count(counts: list[int]) -> int:
    return sum(abs(count) for count in counts)


def _may_have_tangents() -> bool:
    """Whether arguments may have tangents. A graph of Dynamo's enters and leaves levels of forward
    mode without changing _current_level, so that calls which are traced may have them at any time.
    """
    if not torch._C._is_fwd_grad_enabled():
        return False
    return (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _primal(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch._VF._unpack_dual(value, level=_LEVEL).primal


def _with_tangents(values: dict[str, Any]) -> list[str]:
    """The names of the arguments that have a tangent."""
    with torch._C._DisableTorchDispatch():  # looking is no step of a traced program
        return [name for name, value in values.items() if _has_tangent(value)]


def _has_tangent(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_has_tangent(item) for item in value)
    return (
        isinstance(value, torch.Tensor)
        and torch._VF._unpack_dual(value, level=_LEVEL).tangent is not None
    )
