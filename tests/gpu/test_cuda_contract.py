"""The contract check on a GPU: a test for each violation by a kernel, right programs, and CUDA
graphs, which the check refuses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import opaq

CHECK = {"check": "contract"}

SOURCE = """
#define AT long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x
extern "C" __global__ void twice(float* y, const float* x, long long n) { AT;
    if (i < n) y[i] = 2 * x[i]; }
extern "C" __global__ void scribbles(float* y, float* x, long long n) { AT;
    if (i < n) y[i] = 2 * x[i]; if (i == 1) x[1] = 7; }
extern "C" __global__ void stops_early(float* y, const float* x, long long n) { AT;
    if (i < n - 1) y[i] = 2 * x[i]; }
extern "C" __global__ void runs_over(float* y, const float* x, long long n) { AT;
    if (i <= n) y[i] = 2; }
extern "C" __global__ void doubles(float* x, long long n) { AT; if (i < n) x[i] *= 2; }
"""


def made(name: str, entry: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    return op.cuda(
        source=SOURCE,
        entry=entry,
        grid="ceil_div(x.numel() + 1, 256)",
        block=256,
        args="y, x, x.numel()",
    )


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (
            "scribbles",
            (
                "argument `x` is not declared as written, but implementation `cuda` changed it: "
                "x[0, 1] had the bytes 00 00 00 40"
            ),
        ),
        (
            "stops_early",
            "left an element of result `y` (1024 elements) unwritten, the first at y[31, 31]",
        ),
        (
            "runs_over",
            "implementation `cuda` wrote outside result `y`, 0 bytes past its last element",
        ),
    ],
)
def test_violations(unique: str, entry: str, text: str) -> None:
    op = made(unique, entry)
    with pytest.raises(opaq.ContractError) as caught:
        torch.compile(lambda x: op(x + 1), backend="opaq", options=CHECK)(
            torch.ones(32, 32, device="cuda")
        )
    assert text in str(caught.value) and f"{unique} (node op" in str(caught.value)


def test_right_programs(unique: str) -> None:
    twice = made(unique, "twice")
    doubles = opaq.op(f"{unique}_doubles(Tensor(a!) x) -> ()")
    doubles.cuda(
        source=SOURCE,
        entry="doubles",
        grid="ceil_div(x.numel(), 256)",
        block=256,
        args="x, x.numel()",
    )

    def program(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        doubles(y[1:])
        return twice(y.t().contiguous()) + 1

    x = torch.randn(64, 33, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    torch.testing.assert_close(torch.compile(program, backend="opaq", options=CHECK)(x), program(x))
    with torch.cuda.stream(side):
        got = torch.compile(program, backend="opaq", options=CHECK)(x)
    side.synchronize()
    torch.testing.assert_close(got, program(x))


def test_capture_is_refused(unique: str) -> None:
    op = made(unique, "twice")
    run: Any = torch.compile(lambda x: op(x), backend="opaq", options=CHECK)
    x = torch.ones(8, device="cuda")
    run(x)
    with (
        pytest.raises(Exception, match="a CUDA graph cannot capture|capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        run(x)
