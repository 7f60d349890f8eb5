"""opaq.extern_kernels.gelu_mul: values and gradients against float64 PyTorch, gates far from zero,
halves of one projection, compiled graphs, CUDA plans.
"""

import functools

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

from opaq.extern_kernels import gelu_mul, gelu_mul_backward
from opaq.extern_kernels.gelu_mul.gelu_mul import gelu_mul_backward_reference, gelu_mul_reference

FORMS = ["none", "tanh"]


def exact(gate, up, form):
    return torch.nn.functional.gelu(gate, approximate=form) * up


def check(gate, up, form):
    gated_agrees(
        functools.partial(gelu_mul, approximate=form),
        functools.partial(exact, form=form),
        gate,
        up,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (33, 5), (2, 3, 4, 8), (4, 0), (3, 5000)])
def test_values_and_gradients(shape, dtype, form, device):
    check(*gate_and_up(shape, dtype, device), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_that_are_not_row_major(dtype, form, device):
    h, _ = gate_and_up((2, 3, 64), dtype, device)
    check(*h.chunk(2, -1), form)
    check(*h[..., :62].chunk(2, -1), form)
    gate, up = gate_and_up((8, 12), dtype, device)
    check(gate.t(), up.reshape(12, 8), form)
    check(gate[:1].expand(8, 12), up, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_far_from_zero(dtype, form, device):
    """The error relative to each value is a few roundings, also where 1 + erf and 1 + tanh are 0;
    and the gradient of the tanh form is no nan where the square of a gate overflows."""
    gate = torch.cat([-torch.logspace(0, 0.9, 50, dtype=dtype), torch.linspace(0, 1, 9)])
    gate = torch.cat([gate, torch.tensor([9.0, 1e4, 1e19, -1e19, 1e30, -1e30])]).to(device, dtype)
    (y,), (grad, of_up) = gradients(
        lambda gate, up: gelu_mul(gate, up, form), (gate, torch.ones_like(gate)), [0, 1]
    )
    v = gate.double()
    if form == "tanh":
        scale = 2 * (2 / torch.pi) ** 0.5
        share = torch.sigmoid(scale * (v + 0.044715 * v**3))
    else:
        share = 0.5 * torch.special.erfc(-v * 0.5**0.5)
    close = functools.partial(torch.testing.assert_close, rtol=200 * torch.finfo(dtype).eps, atol=0)
    least = torch.finfo(dtype).tiny
    normal = (v * share).abs() > least
    close(y.double()[normal], (v * share)[normal])
    assert y[~normal].abs().max() <= least
    assert grad.isfinite().all() and of_up.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_infinity_and_nan_are_those_of_pytorch(form, device):
    gate = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0, 1.0], device=device).double()
    up = torch.tensor([2.0, 2.0, 2.0, torch.inf, torch.nan], device=device).double()
    expected = exact(gate, up, form)
    for dtype in (torch.float32, torch.float64):
        y = gelu_mul(gate.to(dtype), up.to(dtype), form)
        torch.testing.assert_close(y.double(), expected, equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
def test_the_references_mean_the_same(form, device):
    gate, up = gate_and_up((16, 64), torch.float32, device)
    torch.testing.assert_close(gelu_mul(gate, up, form), gelu_mul_reference(gate, up, form))
    args = (torch.randn_like(gate), gate, up, form)
    for actual, expected in zip(gelu_mul_backward(*args), gelu_mul_backward_reference(*args)):
        torch.testing.assert_close(actual, expected)


def test_what_is_refused(device, capfd):
    gate, up = gate_and_up((16, 64), torch.float32, device)
    message = "gelu_mul: gate is torch.float32 (16, 64), up is torch.float32 (64,); expected one"
    refuses(lambda: gelu_mul(gate, up[0]), message, capfd)
    message = "gelu_mul: approximate is 'erf'; expected 'none', for the form with erf, or 'tanh'"
    refuses(lambda: gelu_mul(gate, up, "erf"), message, capfd)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form, device):
    gate, up = gate_and_up((5, 32), torch.float32, device)
    torch.library.opcheck(gelu_mul, (gate.requires_grad_(), up.requires_grad_(), form))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 32), (9, 32), (33, 40)] if dynamic else [(6, 32)]
    compiled_agrees(
        gelu_mul,
        lambda g, u: gelu_mul(*(g * 2).chunk(2, -1), "tanh") + gelu_mul(g + 1, u)[:, ::2],
        [gate_and_up(shape, torch.float32, device) for shape in shapes],
        [0, 1],
        dynamic,
    )


def test_cuda_plan():
    whole = cuda((8192, 14336))
    chosen = plan(gelu_mul, whole, whole, "tanh")
    assert (chosen["implementation"], chosen["entry"]) == (
        "cuda:packs",
        "gelu_mul<__nv_bfloat16, 8, 1>",
    )
    half = cuda((4, 2048, 14336), strides=(2048 * 28672, 28672, 1))
    assert plan(gelu_mul, half, half, "none")["entry"] == "gelu_mul<__nv_bfloat16, 8, 0>"
    odd = cuda((3, 5), torch.float32)
    assert plan(gelu_mul, odd, odd, "none")["implementation"] == "cuda:elements"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", FORMS)
def test_cuda_sources_compile(form, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = cuda((64, 2048), dtype)
        compiles(gelu_mul, (x, x, form), arch, "cuda:packs")
        compiles(gelu_mul_backward, (x, x, x, form), arch, "cuda:elements")
