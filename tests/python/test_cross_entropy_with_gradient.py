"""opaq.extern_kernels.cross_entropy_with_gradient, scale_gradient and the mean that uses them:
against float64 PyTorch, rows at any alignment, in place, compiled graphs, CUDA plans.
"""

from pathlib import Path

import pytest
import torch
from kernel_checks import ARCHS, DTYPES, close, compiled_agrees, compiles, cuda, plan, refuses
from test_cross_entropy import SHAPES, exact, make, rows_at_any_element

import opaq
from opaq import extern_kernels
from opaq.extern_kernels import (
    cross_entropy_mean,
    cross_entropy_mean_with_gradient,
    cross_entropy_with_gradient,
    cross_entropy_with_gradient_,
    scale_gradient,
    scale_gradient_,
)
from opaq.extern_kernels.cross_entropy.with_gradient import cross_entropy_with_gradient_reference

FOLDER = Path(extern_kernels.__file__).parent / "cross_entropy"


def scale_of(logits, value=0.37):
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.full((1,), value, dtype=dtype, device=logits.device)


def check(logits, target, ignore_index=-100, results=None):
    """results: of the call, if it was made already."""
    exact_logits = logits.double().detach().requires_grad_()
    wide_loss, wide_lse = exact(exact_logits, target, ignore_index)
    (wide_grad,) = torch.autograd.grad((wide_loss * 0.37).sum(), exact_logits)
    scale = scale_of(logits)
    loss, lse, grad = results or cross_entropy_with_gradient(logits, target, scale, ignore_index)
    close(loss, wide_loss.detach(), scale=2)
    close(lse, wide_lse.detach(), scale=2)
    assert (grad.dtype, grad.shape, grad.is_contiguous()) == (logits.dtype, logits.shape, True)
    close(grad, wide_grad, scale=2)
    assert (grad[target == ignore_index] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (600, 100), (3, 50257), (5, 10000), (3, 151936)])
def test_values(shape, dtype, device):
    check(*make(shape, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(24, 50), (5, 10000), (3, 151936)])
def test_in_the_place_of_the_logits(shape, dtype, device):
    logits, target = make(shape, dtype, device)
    given = target, scale_of(logits), -100, 0.1, 1e-4, 30.0
    expected = cross_entropy_with_gradient(logits, *given)
    place = logits.clone()
    results = *cross_entropy_with_gradient_(place, *given), place
    assert all(torch.equal(got, each) for got, each in zip(results, expected, strict=True))
    # a part of a larger tensor
    wide = torch.cat([logits, logits], 1)
    cross_entropy_with_gradient_(wide[:, : shape[1]], *given)
    close(wide[:, : shape[1]], expected[2].double(), scale=2)  # aligned otherwise
    assert torch.equal(wide[:, shape[1] :], logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 31, 257, 4099])
def test_rows_begin_at_any_element(classes, dtype, device):
    for logits, target in rows_at_any_element(5, classes, dtype, device):
        check(logits, target)


@pytest.mark.parametrize("ignore_index", [-100, 0, 3, -1])
def test_ignore_index(ignore_index, device):
    logits, target = make((40, 8), torch.float32, device, ignored=False)
    check(logits, target, ignore_index)


def test_special_rows(device):
    logits, target = make((6, 64), torch.float32, device, ignored=False)
    logits[0, 8:], target[0] = -torch.inf, 3
    logits[1], target[1] = torch.nan, -100
    target[2], target[3] = 64, -1
    logits[4] = (logits[4] * 8).round() + 1e4
    loss, lse, grad = cross_entropy_with_gradient(logits, target, scale_of(logits))
    kept = [0, 4, 5]
    check(logits[kept], target[kept], results=(loss[kept], lse[kept], grad[kept]))
    assert (grad[1] == 0).all() and loss[1] == 0
    assert grad[2:4].isnan().all() and loss[2:4].isnan().all()


def _in_place(device):
    """The op's kernel, which takes the memory of the gradient: that of the logits."""
    name = f"test_with_gradient_{device}::in_place"
    op = opaq.op(
        f"{name}(Tensor(a!) grad, Tensor x, Tensor t, Tensor s) -> (Tensor loss, Tensor lse)",
        outputs=dict.fromkeys(("loss", "lse"), opaq.tensor("x.size(0)", dtype="float32")),
    )
    rest = "x.size(1), grad.stride(0), x.stride(0), t.stride(0), -100, 0.0, 0.0, 0.0"
    if device == "cpu":
        op.cpu(
            source=opaq.file(FOLDER / "with_gradient.cpp"),
            entry="cross_entropy_with_gradient<{x.dtype}, 0>",
            args=f"loss, lse, 0, grad, x, t, s, x.size(0), {rest}",
        )
    else:
        op.cuda(
            source=opaq.file(FOLDER / "with_gradient.cu"),
            entry="cross_entropy_with_gradient<{x.dtype}, 512, 2, 0, false>",
            grid="2 * ceil_div(x.size(0), 2)",
            block=512,
            shared="4 * 512 * 16",
            args=f"loss, lse, 0, grad, x, t, s, x.size(0), 4, {rest}",
        )
    return op


@pytest.mark.parametrize("classes", [5, 1001, 40000])
def test_the_gradient_over_the_logits(classes, device):
    logits, target = make((7, classes), torch.float32, device)
    memory = logits.clone()
    loss, lse = _in_place(device)(memory, memory, target, scale_of(logits))
    check(logits, target, results=(loss, lse, memory))


def test_the_same_bits_every_time(device):
    logits, target = make((50, 5001), torch.bfloat16, device)
    first = cross_entropy_with_gradient(logits, target, scale_of(logits))
    for _ in range(3):
        again = cross_entropy_with_gradient(logits, target, scale_of(logits))
        assert all(torch.equal(one, other) for one, other in zip(first, again))


def test_the_reference_means_the_same(device):
    logits, target = make((12, 40), torch.float32, device)
    target[1] = 40
    args = (logits, target, scale_of(logits))
    expected = cross_entropy_with_gradient_reference(*args)
    for actual, wanted in zip(cross_entropy_with_gradient(*args), expected):
        torch.testing.assert_close(actual, wanted, equal_nan=True)


def test_a_scale_for_each_row_is_refused(device, capfd):
    logits, target = make((12, 40), torch.float32, device)
    message = "cross_entropy_with_gradient: scale has shape (12,); expected one element"
    scale = torch.ones(12, device=device)
    refuses(lambda: cross_entropy_with_gradient(logits, target, scale), message, capfd)


def test_loss_and_lse_are_differentiable(device):
    logits, target = make((12, 40), torch.float32, device)
    logits.requires_grad_()
    loss, lse, grad = cross_entropy_with_gradient(logits, target, scale_of(logits))
    assert not grad.requires_grad
    (actual,) = torch.autograd.grad(loss.sum() + lse.square().sum(), logits)
    wide = logits.detach().double().requires_grad_()
    wide_loss, wide_lse = exact(wide, target)
    (expected,) = torch.autograd.grad(wide_loss.sum() + wide_lse.square().sum(), wide)
    close(actual, expected, scale=4)


def test_opcheck(device):
    logits, target = make((5, 16), torch.float32, device)
    scale = scale_of(logits)
    torch.library.opcheck(cross_entropy_with_gradient, (logits.requires_grad_(), target, scale))
    grad = torch.randn(5, 16, device=device)
    torch.library.opcheck(scale_gradient, (grad.clone().requires_grad_(), scale.requires_grad_()))
    torch.library.opcheck(scale_gradient_, (grad, scale.detach()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 5000, 100003])
def test_scale_gradient(count, dtype, device):
    whole, _ = make((1, count + 1), dtype, device)
    for grad in (whole[0, :count], whole[0, 1:]):
        for value in (0.3, 1.0):
            factor = scale_of(grad, value)
            close(scale_gradient(grad, factor), grad.double() * factor.double())
            written = grad.clone()
            scale_gradient_(written, factor.reshape(()))
            close(written, grad.double() * factor.double())


def test_a_factor_for_each_element_is_refused(device, capfd):
    grad = torch.ones(3, device=device)
    for op in (scale_gradient, scale_gradient_):
        refuses(
            lambda op=op: op(grad, torch.ones(3, device=device)),
            "factor has shape (3,); expected one element: multiply by other tensors with *",
            capfd,
        )


def test_a_second_backward_pass_gives_the_same(device):
    logits, target = make((30, 50), torch.float32, device)
    logits.requires_grad_()
    loss = cross_entropy_mean(logits, target)
    (first,) = torch.autograd.grad(loss * 3, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss * 5, logits)
    torch.testing.assert_close(first / 3, second / 5)
    wide = logits.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(wide, target), wide)
    close(second / 5, expected)


def test_the_mean_of_no_row_is_nan_and_its_gradient_zero(device):
    logits, target = make((4, 8), torch.float32, device)
    logits.requires_grad_()
    loss = cross_entropy_mean(logits, torch.full_like(target, -100))
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isnan() and (grad == 0).all()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 48), (9, 48), (33, 48)] if dynamic else [(6, 48)]
    cases = [make(shape, torch.float32, device) for shape in shapes]
    compiled_agrees(
        cross_entropy_mean_with_gradient,
        lambda x, t: cross_entropy_mean(x * 2, t).sin(),
        cases,
        [0],
        dynamic,
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid", "block"),
    [
        ((8192, 128256), torch.bfloat16, "__nv_bfloat16, 512, 2", 8192, 512),
        ((8192, 128256), torch.float32, "float, 512, 4", 16384, 512),
        ((16384, 50257), torch.bfloat16, "__nv_bfloat16, 416, 1", 16384, 416),
        ((8192, 32000), torch.bfloat16, "__nv_bfloat16, 256, 1", 8192, 256),
        ((4096, 151936), torch.bfloat16, "__nv_bfloat16, 320, 4", 8192, 320),
        ((32768, 10000), torch.bfloat16, "__nv_bfloat16, 128, 1", 16384, 128),
        ((100, 1000), torch.float16, "__half, 32, 1", 100, 32),
    ],
)
def test_cuda_plan(shape, dtype, entry, grid, block):
    facts = cuda(shape, dtype), cuda(shape[:1], torch.int64), cuda((1,), torch.float32), -100
    chosen = plan(cross_entropy_with_gradient, *facts)
    assert chosen["entry"] == f"cross_entropy_with_gradient<{entry}, 0, false>"
    assert (list(chosen["grid"]), list(chosen["block"])) == ([grid, 1, 1], [block, 1, 1])
    assert chosen["shared"] <= 96 * 1024, "a block of every device since sm_80 has that much"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_sources_compile(dtype, arch):
    one = cuda((1,), torch.float32)
    for classes in (100, 4096, 128256):
        facts = cuda((64, classes), dtype), cuda((64,), torch.int64), one, -100
        compiles(cross_entropy_with_gradient, facts, arch, "cuda")
    for op in (scale_gradient, scale_gradient_):
        for implementation in ("cuda:packs", "cuda:elements"):
            compiles(op, (cuda((64, 4096), dtype), one), arch, implementation)
