"""`opaq.custom_op`: torch.library.custom_op, with the Python function called directly from compiled
graphs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, Protocol, TypeVar, overload

import torch

from . import _runtime, autograd, call_site, lowering, validate
from .declaring import declaring
from .lowering.compat import pytorch
from .registrations import refuse_to_cast

# Kept, so that a program may set torch.library.custom_op to opaq's for libraries that it imports.
_torch_custom_op = torch.library.custom_op

_P = ParamSpec("_P")
_R = TypeVar("_R", covariant=True)
_Function = TypeVar("_Function", bound=Callable[..., Any])


class CustomOp(Protocol[_P, _R]):
    """What `opaq.custom_op` returns, for type checkers: called as the user's function, and with the
    methods of torch.library.CustomOpDef.
    """

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R: ...

    def register_fake(self, fn: _Function, /) -> _Function: ...

    def register_autograd(
        self,
        backward: Callable[..., Any] | None,
        /,
        *,
        setup_context: Callable[..., Any] | None = None,
        written: str | None = None,
        non_differentiable: str | None = None,
    ) -> None: ...

    def register_jvp(self, function: _Function) -> _Function: ...

    @overload
    def register_kernel(
        self, device_types: str | Iterable[str] | None, fn: _Function, /
    ) -> _Function: ...
    @overload
    def register_kernel(
        self, device_types: str | Iterable[str] | None, fn: None = None, /
    ) -> Callable[[_Function], _Function]: ...

    @overload
    def register_vmap(self, func: _Function) -> _Function: ...
    @overload
    def register_vmap(self, func: None = None) -> Callable[[_Function], _Function]: ...

    def register_autocast(self, device_type: str, cast_inputs: torch.dtype) -> Any: ...

    def register_torch_dispatch(
        self, torch_dispatch_class: Any, fn: Callable[..., Any] | None = None, /
    ) -> Any: ...

    def set_kernel_enabled(self, device_type: str, enabled: bool = True) -> Any: ...


@overload
def custom_op(
    name: str,
    fn: Callable[_P, _R],
    /,
    *,
    mutates_args: str | Iterable[str],
    device_types: str | Iterable[str] | None = None,
    schema: str | None = None,
    tags: Any = None,
) -> CustomOp[_P, _R]: ...
@overload
def custom_op(
    name: str,
    fn: None = None,
    /,
    *,
    mutates_args: str | Iterable[str],
    device_types: str | Iterable[str] | None = None,
    schema: str | None = None,
    tags: Any = None,
) -> Callable[[Callable[_P, _R]], CustomOp[_P, _R]]: ...
def custom_op(
    name: str,
    fn: Callable[..., Any] | None = None,
    /,
    *,
    mutates_args: str | Iterable[str],
    device_types: str | Iterable[str] | None = None,
    schema: str | None = None,
    tags: Any = None,
) -> Any:
    """Makes a Python function an op that torch.compile does not trace into, as
    torch.library.custom_op does, with the same parameters. A compiled graph calls the function
    directly, not through the dispatcher.

    The result has the methods of torch.library.custom_op's: register_fake, register_autograd,
    register_kernel, register_vmap. In addition, register_autograd serves functions that write to
    arguments (see `written` and `non_differentiable` of opaq.Op.backward) and takes None for "no
    gradient flows through it", register_jvp gives the forward-mode derivative (see opaq.Op.jvp),
    and a call that would lose a gradient or a tangent is an error. Raises opaq.DeclarationError.
    """
    where = f"opaq.custom_op({validate.text('opaq.custom_op(...)', 'name', name)!r})"
    if mutates_args != "unknown":
        # torch.library.custom_op takes names in any container; of a str it would take each letter
        mutates_args = _listed(mutates_args)
        validate.texts(where, "mutates_args", mutates_args)
    device_types = _listed(device_types)

    def make(function: Callable[..., Any]) -> Any:
        validate.function(where, "fn", function, "a Python function of the op's arguments")
        with declaring:
            return declare(function)

    def declare(function: Callable[..., Any]) -> Any:
        extra = {} if tags is None else {"tags": tags}
        eager, text = _checked(name, function), schema
        try:
            if text is None and eager is not function:  # whose annotations are the function's
                text = torch.library.infer_schema(function, mutates_args=mutates_args)
            made = _torch_custom_op(
                name,
                eager,
                mutates_args=mutates_args,
                device_types=device_types,
                schema=text,
                **extra,
            )
        except (TypeError, ValueError, RuntimeError) as error:
            raise _runtime.DeclarationError(f"{where}: {error}") from error
        lowering.python_functions[name] = lowering.PythonFunction(
            function, _device_set(device_types)
        )
        lowering.register(name)
        _differentiate(made, name)
        _runtime.watch(name, pytorch.pinned_kernel_entries(name))
        # A fake implementation runs before Inductor lowers a graph with the op.
        source = call_site.find().partition(", in ")[0]
        pytorch.before_fake(name, lowering.activate_when_compiling, source)
        if pytorch.result_count(lowering.overload_of(name)) == 0:
            made.register_fake(lambda *args, **kwargs: None)
        _narrow_by_kernels(made, name)
        return made

    return make if fn is None else make(fn)


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that eager calls; with OPAQ_CHECK=contract it checks that only the arguments in
    mutates_args are written.
    """
    if _runtime.settings()["check"] != "contract":
        return function
    from .lowering.contract import checked  # imports Inductor

    return checked.eager_function(name, function)


def _listed(names: Any) -> Any:
    """A list of what may be read only once, a generator of names; a name, None and wrong values as
    they are.
    """
    if isinstance(names, Iterable) and not isinstance(names, str):
        return list(names)
    return names


def _device_set(device_types: str | Iterable[str] | None) -> frozenset[str] | None:
    if device_types is None:
        return None
    return frozenset([device_types] if isinstance(device_types, str) else device_types)


def _narrow_by_kernels(made: Any, name: str) -> None:
    """Makes made.register_kernel also remove its device types from those that the function serves:
    compiled graphs then call the dispatcher there.
    """
    register_kernel = made.register_kernel

    def register(
        device_types: str | Iterable[str] | None, fn: Callable[..., Any] | None = None, /
    ) -> Any:
        known = lowering.python_functions[name]
        device_types = _listed(device_types)
        taken = _device_set(device_types)
        left = (
            frozenset() if taken is None else (known.devices or frozenset(("cpu", "cuda"))) - taken
        )
        lowering.python_functions[name] = dataclasses.replace(known, devices=left)
        return register_kernel(device_types) if fn is None else register_kernel(device_types, fn)

    made.register_kernel = register


def _differentiate(made: Any, name: str) -> None:
    """Replaces torch's kernel for the Autograd key by opaq's."""
    overload = lowering.overload_of(name)
    gradient = autograd.Gradient(name, overload, "register_autograd(...)", "register_jvp(...)")
    pytorch.register_autograd(overload, lambda: gradient, made)
    lowering.formulas[name] = lambda: gradient
    keyword_only = pytorch.keyword_only_names(overload)

    def register(
        backward: Callable[..., Any] | None,
        /,
        *,
        setup_context: Callable[..., Any] | None = None,
        written: str | None = None,
        non_differentiable: str | None = None,
    ) -> None:
        if pytorch.is_out(overload):
            raise _runtime.DeclarationError(
                f"{name}: register_autograd(...): Out variants do not support autograd "
                "(torch.Tag.out); give a formula to the op that returns new results"
            )

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if setup_context is None:
                return
            split = len(inputs) - len(keyword_only)
            named = (
                {"keyword_only_inputs": dict(zip(keyword_only, inputs[split:]))}
                if keyword_only
                else {}
            )
            setup_context(ctx=ctx, inputs=inputs[:split], output=output, **named)

        gradient.set_backward_functions(backward, setup, written, non_differentiable)

    def register_jvp(function: Callable[..., Any]) -> Callable[..., Any]:
        where = f"{name}: register_jvp(...)"
        expected = "a function (inputs, tangents, output) that returns tangents"
        gradient.set_forward(validate.function(where, "function", function, expected))
        return function

    made.register_autograd, made.register_jvp = register, register_jvp
    register_autocast = made.register_autocast

    def checked_autocast(device_type: str, cast_inputs: torch.dtype) -> Any:
        refuse_to_cast(f"{name}: register_autocast(...)", pytorch.written_names(overload))
        return register_autocast(device_type, cast_inputs)

    made.register_autocast = checked_autocast
