"""Matrix products by cuBLASLt on a GPU. Results are compared with PyTorch's in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import opaq
from opaq import extern_kernels as kernels

HALF = [torch.bfloat16, torch.float16]
FLOATS = [*HALF, torch.float32]
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-12}


def rand(*sizes: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*sizes, device="cuda", dtype=torch.float64) * scale).to(dtype)


def served(op: opaq.Op, *args: Any, **kwargs: Any) -> Any:
    """The result, which an implementation by cuBLASLt has given."""
    result = op(*args, **kwargs)
    why = op.explain(*args, *kwargs.values())
    assert any(line.startswith("cublaslt") and "chosen" in line for line in why.splitlines()), why
    return result


def gradients(function: Any, leaves: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    function(*leaves).backward(grad.to(leaves[0].dtype))
    return [leaf.grad for leaf in leaves]


def close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Within the dtype's tolerance of the largest value."""
    tolerance = TOLERANCE[dtype or got.dtype]
    error = (got.double() - expected.double()).abs().max() if got.numel() else 0
    most = expected.double().abs().max() if expected.numel() else 1
    assert got.shape == expected.shape and error <= tolerance * most, (float(error), float(most))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_linear_of_all_layouts(dtype: torch.dtype) -> None:
    for m, k, n in [(1, 64, 64), (7, 33, 65), (128, 256, 512), (3, 1, 8), (0, 16, 16), (5, 8, 0)]:
        x, weight = rand(m, k, dtype=dtype), rand(n, k, dtype=dtype)
        expected = torch.nn.functional.linear(x.double(), weight.double())
        close(kernels.linear(x, weight), expected)
        close(kernels.linear(x.t().contiguous().t(), weight.t().contiguous().t()), expected)
        wide = rand(m, k + 3, dtype=dtype)[:, 1 : k + 1].copy_(x)  # neither aligned nor contiguous
        close(kernels.linear(wide, weight), expected)
    x, weight = rand(2, 3, 4, 16, dtype=dtype), rand(8, 16, dtype=dtype)
    close(served(kernels.linear, x, weight), x.double() @ weight.double().t())
    none = rand(4, 0, dtype=dtype)
    close(kernels.linear(none, rand(8, 0, dtype=dtype)), torch.zeros(4, 8, device="cuda"))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_epilogues(dtype: torch.dtype) -> None:
    x, weight, bias = rand(40, 64, dtype=dtype), rand(96, 64, dtype=dtype), rand(96, dtype=dtype)
    h = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    close(served(kernels.linear, x, weight, bias), h)
    close(served(kernels.linear_relu, x, weight, bias), h.relu())
    gelu = torch.nn.functional.gelu(h, approximate="tanh")
    close(kernels.linear_gelu(x, weight, bias), gelu)
    y, kept = served(kernels.linear_gelu_h, x, weight, bias)
    close(y, gelu)
    close(kept, h)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["linear", "linear_relu", "linear_gelu"])
def test_gradients(name: str, dtype: torch.dtype) -> None:
    after: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "linear": lambda h: h,
        "linear_relu": torch.relu,
        "linear_gelu": lambda h: torch.nn.functional.gelu(h, approximate="tanh"),
    }
    leaves = [rand(6, 20, 64, dtype=dtype), rand(96, 64, dtype=dtype), rand(96, dtype=dtype)]
    grad = rand(6, 20, 96, dtype=dtype)

    expected = gradients(
        lambda x, w, b: after[name](torch.nn.functional.linear(x, w, b)),
        [leaf.double() for leaf in leaves],
        grad,
    )
    function = getattr(kernels, name)
    for each in (function, torch.compile(lambda *args: function(*args), fullgraph=True)):
        for got, want in zip(gradients(each, leaves, grad), expected):
            close(got, want)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_gradient_through_gelu_and_the_next_product_is_one_launch(dtype: torch.dtype) -> None:
    grad, weight, h = (rand(*sizes, dtype=dtype) for sizes in [(40, 32), (32, 96), (40, 96)])
    grad_h, grad_bias = served(kernels.gelu_grad, grad, weight, h)
    expected = torch.ops.aten.gelu_backward(
        grad.double() @ weight.double(), h.double(), approximate="tanh"
    )
    close(grad_h, expected)
    close(grad_bias, expected.sum(0))


def test_batches() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        a, b = rand(5, 24, 16, dtype=dtype), rand(5, 16, 40, dtype=dtype)
        expected = a.double() @ b.double()
        close(served(kernels.bmm, a, b), expected)
        close(served(kernels.bmm, a.mT.contiguous().mT, b.mT.contiguous().mT), expected)
        apart = rand(5, 2, 24, 16, dtype=dtype)[:, 0].copy_(a)
        close(served(kernels.bmm, apart, b), expected)


@pytest.mark.parametrize("rows", [False, True])
def test_float8(rows: bool) -> None:
    x, weight = (rand(*s, dtype=torch.float8_e4m3fn) for s in [(48, 64), (96, 64)])
    sizes = (48, 96) if rows else (1, 1)
    scales = [torch.rand(size, device="cuda") + 0.5 for size in sizes]
    bias = rand(96)
    expected = (x.double() * scales[0].reshape(-1, 1).double()) @ (
        weight.double() * scales[1].reshape(-1, 1).double()
    ).t() + bias.double()
    got = served(kernels.scaled_linear, x, weight, *scales, bias)
    assert got.dtype == torch.bfloat16
    close(got, expected)
    half = served(kernels.scaled_linear, x, weight, *scales, None, dtype=torch.float16)
    close(half, expected - bias.double())


@pytest.mark.parametrize("parts", [False, True])
def test_float8_with_scales_of_128_values(parts: bool) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("cuBLASLt takes them on devices from 9.0 on")
    x, weight = (rand(*s, dtype=torch.float8_e4m3fn) for s in [(96, 384), (256, 384)])
    x_scale = (torch.rand(3, 96, device="cuda") + 0.5).t()
    if parts:
        weight_scale = (torch.rand(3, 256, device="cuda") + 0.5).t()
    else:
        weight_scale = (torch.rand(2, 4, device="cuda") + 0.5)[:, :3]
    wide = weight_scale.repeat_interleave(128, 1)
    wide = wide if parts else wide.repeat_interleave(128, 0)
    expected = (x.double() * x_scale.repeat_interleave(128, 1).double()) @ (
        weight.double() * wide.double()
    ).t()
    close(served(kernels.scaled_linear, x, weight, x_scale, weight_scale), expected)


def test_the_gradient_of_two_layers() -> None:
    leaves = [rand(40, 64), rand(96, 64), rand(96), rand(32, 96), rand(32)]
    grad = rand(40, 32)

    def plain(x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> torch.Tensor:
        h = torch.nn.functional.linear(x, w1, b1)
        return torch.nn.functional.linear(torch.nn.functional.gelu(h, approximate="tanh"), w2, b2)

    expected = gradients(plain, [leaf.double() for leaf in leaves], grad)
    for each in (kernels.mlp_gelu, torch.compile(kernels.mlp_gelu, fullgraph=True)):
        for got, want in zip(gradients(each, leaves, grad), expected):
            close(got, want)


def test_a_float8_result_is_one_launch() -> None:
    x, weight = (rand(*s, dtype=torch.float8_e4m3fn) for s in [(48, 64), (96, 64)])
    one, by = torch.ones(1, device="cuda"), torch.full((1,), 0.125, device="cuda")
    got = served(kernels.scaled_linear_float8, x, weight, one, one, by)
    expected = (x.float() @ weight.float().t() * 0.125).to(torch.float8_e4m3fn)
    torch.testing.assert_close(got.float(), expected.float(), rtol=0.13, atol=1e-2)


def mlp(x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    return kernels.linear(kernels.linear_gelu(x * 2, w1, b1), w2) + 1


def of_mlp(*args: torch.Tensor) -> torch.Tensor:
    x, w1, b1, w2 = (arg.double() for arg in args)
    h = torch.nn.functional.linear(x * 2, w1, b1)
    return torch.nn.functional.gelu(h, approximate="tanh") @ w2.t() + 1


def mlp_arguments(rows: int = 40) -> list[torch.Tensor]:
    return [rand(rows, 64), rand(96, 64), rand(96), rand(32, 96)]


@pytest.mark.parametrize(
    "options",
    [{}, {"cpp_wrapper": True}, {"triton.cudagraphs": True}],
    ids=str,
)
def test_compiled(options: dict[str, Any]) -> None:
    compiled = torch.compile(mlp, fullgraph=True, options=options)
    for _ in range(3):
        args = mlp_arguments()
        close(compiled(*args), of_mlp(*args))


def test_compiled_for_all_sizes() -> None:
    compiled = torch.compile(mlp, fullgraph=True, dynamic=True, options={"cpp_wrapper": True})
    for rows in (3, 40, 257, 3):
        args = mlp_arguments(rows)
        close(compiled(*args), of_mlp(*args))


def test_package(tmp_path: Any) -> None:
    class Model(torch.nn.Module):
        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            return mlp(*args)

    args = mlp_arguments()
    path = opaq.package(torch.export.export(Model(), tuple(args)), tmp_path / "model.pt2")
    run = torch._inductor.aoti_load_package(str(path))
    others = mlp_arguments()
    close(run(*others), of_mlp(*others))


def test_capture_and_streams() -> None:
    args = mlp_arguments(64)
    mlp(*args)
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph(), stream=torch.cuda.Stream()):
        captured = mlp(*args)
    for arg in args:
        arg.copy_(rand(*arg.shape))
    graph.replay()
    close(captured, of_mlp(*args))
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    torch.cuda.synchronize()
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(mlp(*args))
    torch.cuda.synchronize()
    for result in results:
        close(result, of_mlp(*args))


def test_what_it_cannot_do_is_told() -> None:
    op = opaq.op(
        "opaq_test::float8_by_columns(Tensor x, Tensor w) -> (Tensor y)",
        outputs=opaq.tensor("x.size(0), w.size(1)", dtype="bfloat16"),
    )
    op.cublaslt(a="x", b="w", d="y")
    x, w = (rand(32, 32, dtype=torch.float8_e4m3fn) for _ in range(2))
    with pytest.raises(opaq.LaunchError, match="cuBLASLt has no algorithm for it .* float8 where"):
        op(x, w)


def test_opcheck() -> None:
    x, weight = (rand(*sizes, dtype=torch.float32) for sizes in [(8, 16), (24, 16)])
    opaq.opcheck(kernels.linear, x, weight)


def test_more_elements_than_32_bits_count() -> None:
    rows, k = (1 << 16) + 8, 1 << 15
    x = torch.zeros(rows, k, device="cuda", dtype=torch.bfloat16)
    x[-8:] = rand(8, k)
    weight = rand(16, k)
    got = served(kernels.linear, x, weight)
    close(got[-8:], x[-8:].double() @ weight.double().t())
    assert not got[:-8].any()
