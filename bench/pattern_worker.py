"""A process that measures one place of a pattern, for the option tune="search": what Inductor makes
of a spelling, and of the replacement.

It reads {"path": ..., "module": ..., "pattern": ..., "spelling": ..., "training": ..., "arguments":
{...}} from stdin (`Place` in lowering/substitute/searched.py; path: where modules are looked for)
and writes a line of JSON: {"gain": ..., "ops": [names of the opaque ops that ran]}, or {"why": ...}
if nothing was measured.
"""

from __future__ import annotations

import importlib
import inspect
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from opaq.lowering.compat.pytorch import pytorch
from opaq.lowering.substitute.pattern import patterns
from opaq.op import find_op

from . import device, measure

ROUNDS = 9


def main() -> None:
    request = json.load(sys.stdin)
    try:
        answer = measured(request)
    except Exception as error:
        answer = {"why": f"measuring failed: {type(error).__name__}: {error}"[:300]}
    print(f"\n{json.dumps(answer)}", flush=True)


def measured(request: dict[str, Any]) -> dict[str, Any]:
    sys.path += [folder for folder in request["path"] if folder not in sys.path]
    importlib.import_module(request["module"])
    pattern = patterns[request["pattern"]]
    arguments = request["arguments"]
    tensors = {name: each for name, each in arguments.items() if isinstance(each, list)}
    on_gpu = any(each[3] == "cuda" for each in tensors.values())
    smallest = min((size for each in tensors.values() for size in each[1]), default=1)

    def operands() -> list[Any]:
        return [_made(each, smallest, name in pattern.positive) for name, each in tensors.items()]

    def call_of(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            known = {**arguments, **dict(zip(tensors, given, strict=True))}
            return function(*(known[name] for name in names))

        return call

    wanted = [number for number, each in enumerate(tensors.values()) if each[4]]
    around = _with_gradients if request["training"] and wanted else _without_gradients
    sets = device.operands(operands) if on_gpu else [operands()]
    ours = call_of(pattern.replacement, pattern.arguments)
    torch.manual_seed(0)  # before both: what draws has the same random numbers
    with pytorch.ops_that_run() as ran:
        results = measure.tensors_in(around(ours, wanted)(*sets[0]))
    ops = sorted(name for name in ran if find_op(name) is not None)
    # Spellings may hold sizes of their examples: another one stands for what it cannot compute.
    first, wrong = request["spelling"], ""
    for number in sorted(range(len(pattern.spellings)), key=lambda number: number != first):
        spelling = pattern.spellings[number]
        theirs = call_of(spelling, list(inspect.signature(spelling).parameters))
        try:
            torch.manual_seed(0)
            expected = measure.tensors_in(around(theirs, wanted)(*sets[0]))
            mistake = measure.mistake(results, measure.Expected(expected))
        except Exception as error:
            mistake = f"{type(error).__name__}: {error}"[:200]
        if not mistake:
            break
        wrong = wrong or mistake
    else:
        return {"why": f"no spelling gives the op's results: {wrong}"}
    timed = {
        name: device.call_us(around(torch.compile(function, dynamic=False), wanted), sets, on_gpu)
        for name, function in {"opaq": ours, "inductor": theirs}.items()
    }
    turns = measure.in_turns(timed, ROUNDS)
    ratios = [b / a for a, b in zip(turns["opaq"], turns["inductor"], strict=True)]
    return {"gain": round(statistics.median(ratios), 3), "ops": ops}


def _made(described: list[Any], smallest: int, positive: bool) -> torch.Tensor:
    """Random numbers; integers that index everything."""
    dtype, sizes, strides, on, requires_grad = described
    dtype = getattr(torch, dtype)
    count = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides))
    if 0 in sizes:
        count = 0
    if dtype == torch.bool:
        memory = torch.ones(count, dtype=dtype, device=on)
    elif dtype.is_floating_point:
        memory = torch.randn(count, device=on).to(dtype)
        memory = memory.abs() + torch.finfo(dtype).eps if positive else memory
    else:
        memory = torch.randint(0, max(1, smallest), (count,), dtype=dtype, device=on)
    return memory.as_strided(sizes, strides).requires_grad_(requires_grad)


def _without_gradients(function: Callable[..., Any], wanted: list[int]) -> Callable[..., Any]:
    return torch.no_grad()(function)


def _with_gradients(function: Callable[..., Any], wanted: list[int]) -> Callable[..., Any]:
    """The results, and the gradients of those that have one, each given the gradient 1."""

    @torch.enable_grad()
    def call(*given: Any) -> Any:
        results = measure.tensors_in(function(*given))
        with_gradient = [each for each in results if each.requires_grad]
        ones = [torch.ones_like(each) for each in with_gradient]
        found = torch.autograd.grad(with_gradient, [given[i] for i in wanted], ones)
        return *(each.detach() for each in results), *found

    return call


if __name__ == "__main__":
    main()
