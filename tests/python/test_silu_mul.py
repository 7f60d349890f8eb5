"""opaq.extern_kernels.silu_mul: values and gradients against float64 PyTorch, halves of one
projection, compiled graphs, CUDA plans.
"""

import pytest
import torch
from kernel_checks import (
    ARCHS,
    DTYPES,
    compiled_agrees,
    compiles,
    cuda,
    gate_and_up,
    gated_agrees,
    gradients,
    plan,
    refuses,
)

from opaq.extern_kernels import silu_mul, silu_mul_backward
from opaq.extern_kernels.silu_mul.silu_mul import silu_mul_backward_reference, silu_mul_reference

SHAPES = [(), (1,), (7,), (33, 5), (16, 64), (2, 3, 4, 8), (0,), (4, 0), (3, 5000)]


def exact(gate, up):
    return torch.nn.functional.silu(gate.double()) * up.double()


def check(gate, up):
    gated_agrees(silu_mul, exact, gate, up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, dtype, device):
    check(*gate_and_up(shape, dtype, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 64), (2, 3, 64), (2, 3, 66), (2, 2, 3, 64)])
def test_halves_of_one_projection(shape, dtype, device):
    h, _ = gate_and_up(shape, dtype, device)
    check(*h.chunk(2, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs(dtype, device):
    gate, up = gate_and_up((8, 12), dtype, device)
    check(gate.t(), up.t())
    check(gate.t(), up.reshape(12, 8))
    check(gate[:, ::3], up[:, 1::3])
    check(gate.flatten()[1:33].view(4, 8), up.flatten()[2:34].view(4, 8))
    check(gate[:1].expand(8, 12), up)


def test_large_gates_saturate(device):
    gate = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], device=device)
    up = torch.full_like(gate, 2.0)
    y, grads = gradients(silu_mul, (gate, up), [0, 1])
    torch.testing.assert_close(y[0], torch.tensor([0.0, 0.0, 0.0, 200.0, 2e4], device=device))
    assert all(grad.isfinite().all() for grad in grads)


def test_the_references_mean_the_same(device):
    gate, up = gate_and_up((16, 64), torch.float32, device)
    torch.testing.assert_close(silu_mul(gate, up), silu_mul_reference(gate, up))
    args = (torch.randn_like(gate), gate, up)
    for actual, expected in zip(silu_mul_backward(*args), silu_mul_backward_reference(*args)):
        torch.testing.assert_close(actual, expected)


def test_another_shape_is_refused(device, capfd):
    gate, up = gate_and_up((16, 64), torch.float32, device)
    message = (
        "silu_mul: gate is torch.float32 (16, 64), up is torch.float32 (64,); expected "
        "one shape and one dtype"
    )
    refuses(lambda: silu_mul(gate, up[0]), message, capfd)
    message = "up is torch.float64 (16, 64); expected one shape and one dtype: broadcast or cast"
    refuses(lambda: silu_mul(gate, up.double()), message, capfd)


def test_opcheck(device):
    gate, up = gate_and_up((5, 32), torch.float32, device)
    torch.library.opcheck(silu_mul, (gate.requires_grad_(), up.requires_grad_()))
    torch.library.opcheck(silu_mul, (gate.detach().t(), up.detach().t()))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 32), (9, 32), (33, 40)] if dynamic else [(6, 32)]
    compiled_agrees(
        silu_mul,
        lambda g, u: silu_mul(g + 1, u).cos(),
        [gate_and_up(shape, torch.float32, device) for shape in shapes],
        [0, 1],
        dynamic,
    )


def test_compiled_halves(device):
    compiled_agrees(
        silu_mul,
        lambda h: silu_mul(*(h * 2).chunk(2, -1)),
        [gate_and_up((2, 6, 64), torch.float32, device)[:1]],
        [0],
        False,
    )


def test_cuda_plan():
    whole = cuda((8192, 14336))
    chosen = plan(silu_mul, whole, whole)
    assert (chosen["implementation"], chosen["entry"]) == (
        "cuda:packs",
        "silu_mul<__nv_bfloat16, 8>",
    )
    assert list(chosen["grid"]) == [8192 * 14336 // (256 * 8), 1, 1]
    half = cuda((4, 2048, 14336), strides=(2048 * 28672, 28672, 1))
    chosen = plan(silu_mul, half, half)
    assert (chosen["implementation"], list(chosen["grid"])) == ("cuda:rows", [7, 8192, 1])
    odd = cuda((3, 5), torch.float32)
    assert plan(silu_mul, odd, odd)["implementation"] == "cuda:elements"
    shifted = cuda((3, 8), torch.float32, alignment=4)
    assert plan(silu_mul, shifted, shifted)["implementation"] == "cuda:elements"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("implementation", ["cuda:packs", "cuda:rows", "cuda:elements"])
def test_cuda_sources_compile(implementation, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = cuda((64, 2048), dtype)
        compiles(silu_mul, (x, x), arch, implementation)
        compiles(silu_mul_backward, (x, x, x), arch, implementation)
