"""A linear layer and the mean cross-entropy of its outputs, with the gradients of both inputs: the
time, beside that of its three matrix products alone, and the peak memory. By default with the sizes
of a language model of 8 B parameters, in bfloat16 on a GPU.

The products take gradients of the logits as they are: a GPU is slower where its power limit holds
it, and power depends on the values. Memory is the most that is in use during a call, less what the
inputs take; the gradients of the inputs, which every contestant returns, are part of it.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from . import device, measure, result
from .table import Progress

TITLE = "A linear layer and its cross-entropy"
ASKED = {"substitute": ["all", "linear_cross_entropy"]}
PRODUCTS = "its three matrix products"
_CALLS = 8  # of a turn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=4096, help="default: 4096")
    parser.add_argument("--width", type=int, default=4096, help="of a token; default: 4096")
    parser.add_argument("--classes", type=int, default=128256, help="default: 128256")


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    on_gpu = arguments.device.startswith("cuda")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    size = (arguments.tokens, arguments.width, arguments.classes)
    case = " x ".join(map(str, size))
    given = inputs(*size, dtype, arguments.device)
    timed: dict[str, Callable[[], float]] = {}
    expected = None
    for name, call in contestants(given).items():
        progress.step(name)
        results = call()
        if name != PRODUCTS:
            got = [each.detach() for each in results]
            wrong = measure.mistake(got, measure.Expected(expected)) if expected else ""
            expected = expected or got
            if wrong:
                for metric, unit in (("time", "ms"), ("memory", "MiB")):
                    progress.record(result.without_value(case, name, metric, unit, "wrong", wrong))
                continue
            del got
        del results
        before = device.peak_mib(lambda: None, arguments.device)
        most = device.peak_mib(call, arguments.device)
        if name != PRODUCTS and most is not None and before is not None:
            memory = result.Record(case, name, "memory", "MiB", "less", round(most - before))
            progress.record(memory)
        timed[name] = functools.partial(_milliseconds, call, on_gpu)
    turns = measure.in_turns(timed, arguments.rounds, progress.step)
    progress.record(*result.of_rounds(case, "time", "ms", turns, to=PRODUCTS))
    return {"rounds": arguments.rounds, "dtype": str(dtype).removeprefix("torch.")}


def inputs(
    tokens: int, width: int, classes: int, dtype: torch.dtype, where: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=where, dtype=dtype, requires_grad=True)
    weight = torch.randn(classes, width, device=where, dtype=dtype) * width**-0.5
    return hidden, weight.requires_grad_(), torch.randint(0, classes, (tokens,), device=where)


def contestants(
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> dict[str, Callable[[], Any]]:
    """The first is what the others' results are compared with."""
    hidden, weight, target = given

    def loss(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(hidden, weight), target)

    logits = F.linear(hidden, weight).detach().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, target), logits)
    del logits

    @torch.no_grad()
    def products() -> None:
        _ = hidden @ weight.t(), grad @ weight, grad.t() @ hidden

    def with_gradients(function: Callable[..., Any]) -> Callable[[], Any]:
        def call() -> tuple[torch.Tensor, ...]:
            found = function(hidden, weight, target)
            return found, *torch.autograd.grad(found, (hidden, weight))

        return call

    losses = {
        "eager": loss,
        "inductor": torch.compile(loss),
        "opaq": torch.compile(loss, backend="opaq"),
        "opaq, linear_cross_entropy by name": torch.compile(loss, backend="opaq", options=ASKED),
    }
    if hasattr(F, "linear_cross_entropy"):  # torch 2.15
        for name, chosen in {
            "F.linear_cross_entropy": {},
            "F.linear_cross_entropy, 1024 rows": {
                "batch_chunk_size": 1024,
                "chunking_method": None,
            },
        }.items():
            options = torch.nn.LinearCrossEntropyOptions(**chosen)
            losses[name] = functools.partial(F.linear_cross_entropy, options=options)
    found = {name: with_gradients(each) for name, each in losses.items()}
    return {**found, PRODUCTS: products}


def _milliseconds(call: Callable[[], Any], on_gpu: bool) -> float:
    if not on_gpu:
        return measure.host_us(call, per=1, synchronize=lambda: None, repeats=3, warmups=1) / 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()  # after the other contestant's
    start.record()
    for _ in range(_CALLS):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / _CALLS
