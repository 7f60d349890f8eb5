"""Copies made before a write, and memory that arguments share, on a GPU: Python wrapper, CUDA
graphs, C++ wrapper, package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from copy_programs import PROGRAMS, check, example_inputs, packaged, reverse_into

import opaq

# One thread, which reads and writes in the same order as the loop in PyTorch.
REVERSE = """extern "C" __global__ void reverse(
    const volatile float* s, long long ss, volatile float* d, long long ds, long long n) {
  for (long long i = 0; i < n; ++i) { d[(n - 1 - i) * ds] = s[i * ss]; }
}"""


def reverse_op(name: str) -> Callable[..., Any]:
    op = opaq.op(f"{name}(Tensor src, Tensor(a!) dst) -> ()")
    return op.cuda(
        source=REVERSE,
        entry="reverse",
        args="src, src.stride(0), dst, dst.stride(0), src.numel()",
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"triton.cudagraphs": True},
        {"cpp_wrapper": True},
        {"enable_auto_functionalized_v2": False},
    ],
    ids=["python", "graphs", "cpp", "v1"],
)
def test_every_program_agrees_with_eager(unique: str, options: dict[str, Any]) -> None:
    op = reverse_op(unique)

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        made = torch.compile(function, fullgraph=True, options=options)

        def call(*inputs: torch.Tensor) -> Any:
            if "triton.cudagraphs" in options:
                for _ in range(2):  # warm up, then record; the call below replays
                    made(*(t.clone() for t in inputs))
            return made(*inputs)

        return call

    check(op, reverse_into, PROGRAMS, compiled, "cuda")


def test_in_a_package(unique: str, tmp_path: Any) -> None:
    check(
        reverse_op(unique),
        reverse_into,
        PROGRAMS,
        lambda f: packaged(f, example_inputs(PROGRAMS, "cuda"), tmp_path / "model.pt2"),
        "cuda",
    )
