"""Every pattern: where one of its arguments has a dimension of size 1, one less or one more, its
spellings give what eager PyTorch gives, which may broadcast; whether an op is put there or not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_patterns import call, values
from torch.fx import GraphModule

from opaq.lowering.substitute import apply
from opaq.lowering.substitute.pattern import patterns
from opaq.lowering.substitute.spelling import graph_of


def others(value: Any) -> Iterator[Any]:
    """A tensor with other sizes; 1 for a number of classes, groups, ..."""
    if isinstance(value, torch.Tensor):
        for dim in range(value.dim()):
            yield value.narrow(dim, 0, 1).clone()
        yield value[None]
        yield torch.stack([value] * 3)
        if value.dim():
            yield value[0].clone()
            yield value.flatten()[0].clone()
    elif type(value) is int and value > 1:
        yield 1


def of_tensors(spelling: Any, known: dict[str, Any]) -> tuple[Any, list[torch.Tensor]]:
    """(the spelling as a function of its tensors alone, these)"""
    names = list(inspect.signature(spelling).parameters)
    tensors = [name for name in names if isinstance(known[name], torch.Tensor)]
    listed = ", ".join(tensors)
    every = ", ".join(name if name in tensors else f"known[{name!r}]" for name in names)
    function = eval(f"lambda {listed}: spelling({every})", {"spelling": spelling, "known": known})
    return function, [known[name] for name in tensors]


def results_with_ops(
    spelling: Any, known: dict[str, Any], pattern: str
) -> tuple[list[torch.Tensor], bool]:
    """(what the graph gives after the search for the pattern, whether an op is in it)"""
    function, tensors = of_tensors(spelling, known)
    module = GraphModule({}, graph_of(function, tensors))
    with apply.collected() as found:
        apply.apply(module, [pattern])
    torch.manual_seed(1)
    results = module(*tensors)
    several = isinstance(results, (tuple, list))
    return list(results) if several else [results], any(each.applied for each in found)


@pytest.mark.parametrize(
    "pattern",
    # `sample` draws other random numbers.
    [pytest.param(each, id=name) for name, each in patterns.items() if name != "sample"],
)
def test_sizes_that_may_broadcast(pattern: Any) -> None:
    known = values(pattern, torch.float32)
    for number, spelling in enumerate(pattern.spellings):
        assert results_with_ops(spelling, known, pattern.name)[1], number
        for name in inspect.signature(spelling).parameters:
            for other in others(known[name]):
                given = {**known, name: other}
                torch.manual_seed(1)
                try:
                    expected_results = call(spelling, given)
                except Exception:
                    continue  # the sizes do not go together
                results, _ = results_with_ops(spelling, given, pattern.name)
                for result, expected in zip(results, expected_results, strict=True):
                    if result.dtype == torch.float8_e4m3fn:
                        result, expected = result.float(), expected.float()
                    where = f"spelling {number}, {name} is {other}"
                    torch.testing.assert_close(
                        result, expected, equal_nan=True, msg=f"{where}: {result}, not {expected}"
                    )
