"""The shipped matrix products on the CPU, where their references run, and which implementation
serves which layout on a GPU. tests/gpu compares what cuBLASLt computes.
"""

from __future__ import annotations

from typing import Any

import fake_cuda
import pytest
import torch

import opaq
from opaq import _runtime, lowering
from opaq import extern_kernels as kernels


def gelu(h: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(h, approximate="tanh")


def plain_mlp(x: Any, w1: Any, b1: Any, w2: Any, b2: Any = None) -> torch.Tensor:
    return torch.nn.functional.linear(gelu(torch.nn.functional.linear(x, w1, b1)), w2, b2)


LINEAR = torch.nn.functional.linear
CASES: dict[str, tuple[Any, Any, list[tuple[int, ...]]]] = {
    "linear": (kernels.linear, LINEAR, [(2, 3, 5), (4, 5), (4,)]),
    "linear without bias": (kernels.linear, LINEAR, [(3, 5), (4, 5)]),
    "linear_relu": (kernels.linear_relu, lambda *a: LINEAR(*a).relu(), [(3, 5), (4, 5), (4,)]),
    "linear_gelu": (kernels.linear_gelu, lambda *a: gelu(LINEAR(*a)), [(3, 5), (8, 5), (8,)]),
    "bmm": (kernels.bmm, torch.bmm, [(2, 3, 5), (2, 5, 4)]),
    "mlp_gelu": (kernels.mlp_gelu, plain_mlp, [(2, 3, 5), (8, 5), (8,), (6, 8), (6,)]),
}


@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients(case: str) -> None:
    function, plain, sizes = CASES[case]
    args = [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes]
    torch.testing.assert_close(function(*args), plain(*args))
    assert torch.autograd.gradcheck(function, args)
    half = [arg.detach().bfloat16() for arg in args]
    wide = plain(*(arg.double() for arg in half))
    # of the whole result: terms of both signs leave some elements with few correct digits
    assert (function(*half).double() - wide).norm() <= 2e-2 * wide.norm()


def test_gradients_of_two_layers_are_taken_where_they_are_needed() -> None:
    sizes = CASES["mlp_gelu"][2]
    for needed in range(5):
        args = [torch.randn(*size, requires_grad=i == needed) for i, size in enumerate(sizes)]
        (got,) = torch.autograd.grad(kernels.mlp_gelu(*args).sum(), args[needed])
        (expected,) = torch.autograd.grad(plain_mlp(*args).sum(), args[needed])
        torch.testing.assert_close(got, expected)
    compiled = torch.compile(kernels.mlp_gelu, fullgraph=True, backend="opaq")
    args = [torch.randn(*size, requires_grad=True) for size in sizes]
    got = torch.autograd.grad(compiled(*args).sum(), args)
    for mine, expected in zip(got, torch.autograd.grad(plain_mlp(*args).sum(), args)):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("name", ["linear", "linear_relu", "linear_gelu_h", "gelu_grad", "bmm"])
def test_opcheck(name: str) -> None:
    args = {"gelu_grad": [(3, 4), (4, 8), (3, 8)], "bmm": [(2, 3, 5), (2, 5, 4)]}.get(
        name, [(3, 5), (8, 5), (8,)]
    )
    grad = name != "gelu_grad"
    torch.library.opcheck(
        getattr(kernels, name), [torch.randn(*size, requires_grad=grad) for size in args]
    )


# ---- float8 --------------------------------------------------------------------------------------

M, N, K = 8, 256, 384


def scales(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    part = torch.rand(3, M).t() + 0.5
    return {
        "one": lambda: (torch.rand(1) + 0.5, torch.rand(1) + 0.5),
        "row": lambda: (torch.rand(M, 1) + 0.5, torch.rand(N, 1) + 0.5),
        "block": lambda: (part, (torch.rand(2, 4) + 0.5)[:, :3]),
        "part": lambda: (part, torch.rand(3, N).t() + 0.5),
    }[kind]()


def factor(tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """tensor * scale, element by element."""
    result = tensor.double()
    for i in range(tensor.size(0)):
        for k in range(0, K, 128):
            if scale.numel() == 1:
                by = scale[0]
            else:
                row = i * scale.size(0) // tensor.size(0)
                by = scale[row, k * scale.size(1) // K]
            result[i, k : k + 128] *= by.double()
    return result


SERVED = {
    "one": "cublaslt:algorithm=0",
    "row": "cublaslt:rows",
    "block": "cublaslt:blocks",
    "part": "cublaslt:parts",
}


@pytest.mark.parametrize("kind", ["one", "row", "block", "part"])
def test_scales_of_float8(kind: str) -> None:
    x, weight = (torch.randn(*size).to(torch.float8_e4m3fn) for size in ((M, K), (N, K)))
    by = scales(kind)
    expected = factor(x, by[0]) @ factor(weight, by[1]).t()
    got = kernels.scaled_linear(x, weight, *by, None)
    torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=1e-1)
    first, *others = _fits(kernels.scaled_linear, x, weight, *by)
    assert first == SERVED[kind]
    assert all(other.startswith("cublaslt:algorithm=") for other in others)


def test_scales_of_other_layouts_are_left_to_the_reference() -> None:
    x, weight = (torch.randn(*size).to(torch.float8_e4m3fn) for size in ((M, K), (N, K)))
    part, block = scales("block")
    for by in ((part.contiguous(), block), (part, block.contiguous())):
        assert _fits(kernels.scaled_linear, x, weight, *by) == []
        torch.testing.assert_close(
            kernels.scaled_linear(x, weight, *by, None),
            kernels.scaled_linear(x, weight, part, block, None),
        )


def test_dtypes_that_the_library_does_not_take_are_refused_when_a_graph_is_lowered(
    unique: str,
) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, Tensor w) -> (Tensor y)",
        outputs=opaq.tensor("x.size(0), w.size(1)", dtype="x.dtype"),
    )
    op.cublaslt(a="x", b="w", d="y")
    expected = r"no implementation fits.*\n.*cublaslt: .*x.dtype == bfloat16 or .* does not hold"
    for dtypes in ((torch.int64, torch.int64), (torch.float16, torch.bfloat16)):
        with (
            lowering.options.use(strict=True),
            pytest.raises(RuntimeError, match=expected),
        ):
            fake_cuda.wrapper_source(
                lambda *args, dtypes=dtypes: op(*(a.to(d) for a, d in zip(args, dtypes))),
                (4, 8),
                (8, 16),
                mixed=True,
            )
    narrow = (torch.float8_e4m3fn, torch.float8_e5m2)
    for dtypes in ((torch.int8, torch.int8), (torch.float16, torch.float16), narrow):
        args = [torch.empty(s, dtype=d) for s, d in zip(((4, 8), (8, 16)), dtypes)]
        assert _fits(op, *args) == ["cublaslt"]


def _fits(op: opaq.Op, *args: torch.Tensor) -> list[str]:
    """The implementations that would serve the arguments on a GPU."""
    fakes = [
        (str(a.dtype).removeprefix("torch."), list(a.shape), list(a.stride()), "cuda:0", 256)
        for a in args
    ]
    return _runtime.problem(op.name, fakes)["fits"]
