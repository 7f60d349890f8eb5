"""Functions that return an op's results: the reference, which is the op written in PyTorch, and
kernels of `register_kernel`. Their results are checked against the declaration, and C++ calls the
reference through the dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import _runtime
from .lowering import counts, lists

# The dispatcher's namespace in which runtime/torch finds the reference when no implementation fits.
NAMESPACE = "opaq_reference"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_references: dict[str, Returning] = {}  # by the name of the op


class Returning:
    """A function that returns the results of an op: called with its arguments, checked against the
    declaration. A result with other strides than the output rule's, or in the memory of an
    argument, is copied.

    largest: the op's output rules as a function of its arguments (make_largest). what: the
    function, for messages.
    """

    def __init__(
        self,
        info: _runtime.OpInfo,
        function: Callable[..., Any],
        largest: Callable[..., Any],
        what: str = "the reference",
    ) -> None:
        self._info, self._function, self._largest, self._what = info, function, largest, what

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The results as the dispatcher has them: a tensor, a tuple of several, or None."""
        info = self._info
        keyword_only = [arg["name"] for arg in info["args"] if arg["keyword_only"]]
        if keyword_only and len(args) == len(info["args"]):
            split = len(args) - len(keyword_only)
            args, kwargs = args[:split], {**dict(zip(keyword_only, args[split:])), **kwargs}
        try:
            results = self._function(*args, **kwargs)
        except Exception as error:
            add_note(error, f"raised by {self._what} of {info['name']}")
            raise
        if not info["outputs"]:
            return None
        results = tuple(results) if isinstance(results, (tuple, list)) else (results,)
        fitted = self._fitted(results, args, kwargs)
        return tuple(fitted) if len(fitted) > 1 else fitted[0]

    def fill(self, *values: Any) -> None:
        """Called with the arguments and then the results, which are filled."""
        arity = len(self._info["args"])
        results = self(*values[:arity])
        results = results if isinstance(results, tuple) else (results,)
        counts.fill(self._form(values[:arity], {}), values[arity:], results)

    def _form(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _runtime.OpInfo:
        return lists.form_of(self._info, args, kwargs)[0]

    def _fitted(
        self, results: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[torch.Tensor]:
        info, what = self._info, f"{self._what} of {self._info['name']}"
        with torch.device("meta"):
            expected = self._largest(
                *(_meta(value) for value in args),
                **{key: _meta(value) for key, value in kwargs.items()},
            )
        expected = expected if isinstance(expected, tuple) else (expected,)
        if len(results) != len(expected):
            raise _runtime.LaunchError(
                f"{what} returned {len(results)} results; its schema has {len(expected)}: "
                f"{info['schema']}"
            )
        fitted = []
        tensors = _tensors([*args, *kwargs.values()])
        inputs = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        outputs = self._form(args, kwargs)["outputs"]
        for output, result, rule in zip(outputs, results, expected):
            if not isinstance(result, torch.Tensor):
                raise _runtime.LaunchError(
                    f"{what} returned `{output['name']}` as {type(result).__name__}; expected a "
                    f"Tensor of {rule.dtype} {tuple(rule.shape)}"
                )
            if tensors and result.device != tensors[0].device:
                raise _runtime.LaunchError(
                    f"{what} returned `{output['name']}` on {result.device}; the arguments are on "
                    f"{tensors[0].device}: correct {self._what}"
                )
            if output["counted"] and result.dim() == rule.dim():
                sizes = {name: result.shape[dim] for dim, name in output["counted"]}
                if all(sizes[name] <= rule.shape[dim] for dim, name in output["counted"]):
                    rule = counts.with_sizes(rule, output["counted"], sizes)
            if tuple(result.shape) != tuple(rule.shape) or result.dtype != rule.dtype:
                raise _runtime.LaunchError(
                    f"{what} returned `{output['name']}` as {result.dtype} "
                    f"{tuple(result.shape)}; the output rule says {rule.dtype} "
                    f"{tuple(rule.shape)}: correct the rule or {self._what}"
                )
            if result.stride() != rule.stride() or result.untyped_storage().data_ptr() in inputs:
                result = torch.empty_strided(
                    rule.shape, rule.stride(), dtype=rule.dtype, device=result.device
                ).copy_(result)
            fitted.append(result)
        return fitted


def define_reference(reference: Returning, info: _runtime.OpInfo) -> Callable[..., None]:
    """Defines the dispatcher's op that calls the reference, and returns fallback(*args, *outputs),
    which fills the outputs.
    """
    name = info["name"]
    first = name not in _references
    _references[name] = reference
    if first:
        _, schema = _runtime.reference_kernel(name)
        define_for_dispatcher(
            _library, schema.partition("::")[2], lambda *args, **kw: _references[name](*args, **kw)
        )
    return reference.fill


def define_for_dispatcher(
    library: torch.library.Library, schema: str, function: Callable[..., Any]
) -> None:
    """Defines an op of the dispatcher that calls `function` on every device. What it raises is kept
    for the runtime: PyTorch's C interface, through which the runtime calls the op, loses it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            _runtime.note_python_error(error)
            raise

    library.define(schema)
    library.impl(schema.partition("(")[0], call, "CompositeExplicitAutograd")


def add_note(error: Exception, text: str) -> None:
    """As BaseException.add_note of Python 3.11: a line that is printed below the message."""
    notes = getattr(error, "__notes__", [])
    if text not in notes:
        error.__notes__ = [*notes, text]


def _meta(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_meta(item) for item in value]
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def _tensors(values: Any) -> list[torch.Tensor]:
    """The tensors among values and the items of lists."""
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in _tensors(value)]
    return [values] if isinstance(values, torch.Tensor) else []
