"""The ways of running the chains of `opaq bench boundary`: x -> op(op(... op(x, y), y), y)."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import measure
from .boundary_peers import Op, Peer, cpp_module

REPEATS = {"cpu": 200, "cuda": 30}
WARMUPS = 5


@dataclass(frozen=True)
class Way:
    """takes: whether a contestant can be run in this way."""

    title: str
    takes: Callable[[Peer], bool]
    cuda_only: bool = False
    launches: bool = True  # each op by itself, so that a loop of launches is a lower bound


WAYS = {
    "eager": Way("eager", lambda peer: True),
    "python": Way("Python wrapper", lambda peer: peer.compiled),
    "cpp": Way("C++ wrapper", lambda peer: peer.in_cpp),
    "package-python": Way("package from Python", lambda peer: peer.in_cpp),
    "package-cpp": Way("package from C++", lambda peer: peer.in_cpp),
    "cuda-graph": Way("CUDA graph", lambda peer: peer.compiled, cuda_only=True, launches=False),
}
OPTIONS = {"python": {}, "cpp": {"cpp_wrapper": True}, "cuda-graph": {"triton.cudagraphs": True}}


@dataclass(frozen=True)
class Chain:
    """result: runs it once. us: measures microseconds of a run."""

    result: Callable[[], torch.Tensor]
    us: Callable[[], float]


def chain(way: str, op: Op, operands: Sequence[torch.Tensor], length: int, device: str) -> Chain:
    """Raises Absent if the way is missing here."""
    function = chain_of(op, len(operands), length)
    repeats = REPEATS[device]
    if way == "package-cpp":
        model = cpp_module(len(operands), device).Package
        with tempfile.TemporaryDirectory(prefix="opaq_bench_") as folder:
            loaded = model(package(function, operands, folder))
        inputs = list(operands)
        return Chain(lambda: loaded.run(inputs), lambda: loaded.us(inputs, repeats, WARMUPS))
    if way == "package-python":
        with tempfile.TemporaryDirectory(prefix="opaq_bench_") as folder:
            function = torch._inductor.aoti_load_package(package(function, operands, folder))
    elif way != "eager":
        function = torch.compile(function, fullgraph=True, options=OPTIONS[way])
    call = functools.partial(function, *operands)
    us = functools.partial(
        measure.host_us,
        call,
        per=1,
        synchronize=measure.synchronizer(device),
        repeats=repeats,
        warmups=WARMUPS,
    )
    return Chain(call, us)


_numbers = itertools.count()


def chain_of(op: Op, tensors: int, length: int) -> Callable[..., Any]:
    """A function with code of its own: torch.compile limits the number of graphs for the same
    code."""
    name = f"chain_{next(_numbers)}"
    names = ", ".join(f"t{i}" for i in range(tensors))
    lines = [f"def {name}({names}):", "    for _ in range(length):", f"        t0 = op({names})"]
    scope = {"op": op, "length": length}
    # code without a file gets a wrapper from torch.compile, which would be measured too
    exec(compile("\n".join([*lines, "    return t0"]), __file__, "exec"), scope)
    return scope[name]


def package(function: Callable[..., Any], operands: Sequence[torch.Tensor], folder: str) -> str:
    """The path of the chain as an AOTInductor package."""

    class Model(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return function(*tensors)

    return torch._inductor.aoti_compile_and_package(
        torch.export.export(Model(), tuple(operands)), package_path=f"{folder}/model.pt2"
    )
