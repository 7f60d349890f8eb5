"""`opaq.pattern`: what torch.compile(backend="opaq") replaces in unmodified models."""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import validate
from .lowering.compat.pytorch import pytorch
from .lowering.substitute.operations import value_of
from .lowering.substitute.pattern import KEEPS, READ_DTYPE, RESULT_DTYPE, patterns
from .lowering.substitute.pattern import Pattern as _Found
from .op import Op

Function = Callable[..., Any]


class Pattern:
    """What `opaq.pattern` returns; the decorator `spelling` adds a way in which models write it."""

    def __init__(self, found: _Found) -> None:
        self._found = found

    @property
    def name(self) -> str:
        return self._found.name

    @property
    def spellings(self) -> Sequence[Function]:
        return tuple(self._found.spellings)

    @property
    def examples(self) -> Mapping[str, Any]:
        return dict(self._found.examples)

    def spelling(self, function: Function | None = None, /, **fixed: Any) -> Any:
        """Adds a spelling: a function of PyTorch operations whose parameters are among those of the
        replacement, and which returns the same results, one tensor or a tuple.

        It is matched with what torch.compile traces of a model. How a product is written (a * b,
        torch.mul, a.mul), the order of its factors and which of them are multiplied first
        (not with exact or casts_matter), and casts between floating dtypes do not
        matter. Numbers must be the same, except those that are parameters. A tensor that one number
        fills may be made in any way, but where the spelling has zeros_like, ones_like or full_like
        of a tensor, it has the shape of that.

        fixed: what other parameters of the replacement are where this spelling is found, as in
        @pattern.spelling(interleaved=True); without it they have their defaults.

        Raises DeclarationError for parameters that the replacement does not have.
        """
        if function is None:
            return functools.partial(self.spelling, **fixed)
        known = self._found.arguments
        for name in (*inspect.signature(function).parameters, *fixed):
            if name not in known:
                validate.refuse(
                    f"opaq.pattern {self.name!r}",
                    "spelling",
                    name,
                    f"parameters of the replacement: {', '.join(known)}",
                )
        self._found.spellings.append(function)
        self._found.fixed[function] = fixed
        return function


def pattern(
    name: str,
    replacement: Function,
    examples: Mapping[str, Any],
    *,
    when: Callable[[Mapping[str, Any]], str] = lambda arguments: "",
    streamed: Sequence[str] = (),
    nonzero: Sequence[str] = (),
    sizes: Callable[[Mapping[str, Any]], tuple[Any, Any]] | None = None,
    form: Callable[[Mapping[str, Any]], str] = lambda arguments: "",
    measurements: str | os.PathLike[str] | None = None,
    alone: bool = False,
    exact: bool = False,
    by_name: str = "",
    casts_matter: bool = False,
    rounds_products: bool = False,
    positive: Sequence[str] = (),
    saves: Callable[[Mapping[str, Any], bool], Any] = lambda arguments, training: 0,
) -> Pattern:
    """Declares a pattern: a part of unmodified models that torch.compile(backend="opaq") replaces.

    name: by which options={"substitute": [name]} asks for it. replacement: the function of the same
    arguments that computes it with opaque ops. examples: an example of each argument, by name: a
    small tensor, or a number for a parameter that may be any number. A parameter `keeps_<argument>`
    of the replacement, whose default is "", needs none: where there is a backward pass, and the
    argument has at least 32 MB, it tells that the argument is "given" to the graph or "returned" by
    it, so that keeping it until then takes no memory that would be free otherwise. Nor does
    `result_dtype`, which is told the dtype of the first result, such as "float32": casts before the
    pattern are passed over, so the arguments may have fewer bits. `read_dtype` is told the dtype of
    the last result where the others are computed from it: a result of 16 bits may be rounded for
    what comes after the pattern alone.

    when(arguments): "" where the replacement serves these arguments (tensors without values, and
    numbers, by name), else why it does not. streamed: the large arguments; where Inductor computes
    one of them, or what reads the result, in the same kernel as the pattern, the graph is left
    alone. nonzero: numbers that are not 0 where the pattern is: with 0 the place is that of another
    pattern. sizes(arguments): (rows, columns), by which `measurements`, a JSON file that
    `opaq bench kernels --update` writes, tells how much faster the replacement is. form(arguments):
    a few words, where calls of equal sizes differ in speed; each form has measurements of its own.
    Without measurements the pattern is used only where it is asked for by name. alone: what is
    before and after the pattern does not matter, since even without it Inductor runs kernels of
    their own (a sort, topk).
    exact: the graph is left alone where its results have other dtypes than the replacement's.
    by_name: why the pattern is used only where it is asked for by name, such as "it would draw
    other random numbers". casts_matter: casts are not passed over, since what is computed, such as
    random numbers, depends on the dtypes of arguments. rounds_products: the replacement rounds
    matrix products to the dtype of its arguments; where the graph has other dtypes, as under
    autocast, it is left alone. positive: tensors whose values are above 0, also those that
    tune="search" measures with. saves(arguments, training): how many bytes less are moved with the
    op than by a kernel of Inductor that computes what is before or after the pattern too: above 0,
    the graph is not left to that. training: with a gradient.

    Raises DeclarationError for a name that is taken and for arguments of wrong types.
    """
    where, frame = f"opaq.pattern {name!r}", inspect.currentframe()
    caller = frame.f_back if frame else None
    validate.text("opaq.pattern", "name", name)
    if name in patterns:
        validate.refuse("opaq.pattern", "name", name, "a name that no other pattern has")
    if not callable(replacement):
        validate.refuse(where, "replacement", replacement, "a function")
    parameters = inspect.signature(replacement).parameters
    told = {READ_DTYPE, RESULT_DTYPE, *(f"{KEEPS}{each}" for each in parameters)}
    for missing in [each for each in parameters if each not in examples and each not in told]:
        validate.refuse(where, "examples", sorted(examples), f"an example of {missing}")
    for option, names in (("streamed", streamed), ("nonzero", nonzero), ("positive", positive)):
        for each in names:
            if each not in parameters:
                validate.refuse(where, option, each, f"some of {', '.join(parameters)}")
    if measurements is not None and sizes is None:
        validate.refuse(where, "sizes", sizes, "a function, since measurements are looked up by it")
    found = _Found(
        name,
        replacement,
        dict(examples),
        when,
        tuple(streamed),
        tuple(nonzero),
        sizes or (lambda arguments: (0, 0)),
        form,
        Path(measurements) if measurements is not None else None,
        alone,
        exact,
        by_name,
        casts_matter,
        rounds_products,
        tuple(positive),
        saves,
        caller.f_globals.get("__name__", "__main__") if caller else "__main__",
    )
    patterns[name] = found
    return Pattern(found)


def result_of(value: Any, op: Op, number: int) -> Any:
    """For replacements: the call of `op`, whose results are [0], [1], ..., if the argument `value`
    is its result `number` in the graph; else None. So a replacement can take another result of the
    same call.
    """
    node = getattr(value, "node", None)
    if node is None or node.target is not operator.getitem or node.args[1] != number:
        return None
    call = node.args[0]
    if call.op != "call_function" or pytorch.op_name(call.target) != op.name:
        return None
    return torch.fx.Proxy(call, value.tracer)


def example_of(value: Any) -> Any:
    """For replacements: an argument with its sizes and dtype, in a graph or not."""
    node = getattr(value, "node", None)
    return value if node is None else value_of(node)


def dtype_of(value: Any) -> torch.dtype:
    """For replacements: the dtype of an argument, in a graph or not."""
    dtype: torch.dtype = example_of(value).dtype
    return dtype


def rows_and_columns(tensor: torch.Tensor) -> tuple[Any, Any]:
    """Of a tensor whose last dimension is a row."""
    columns = tensor.shape[-1]
    rows: Any = 1
    for size in tensor.shape[:-1]:
        rows = rows * size
    return rows, columns
