"""Label smoothing, z-loss and softcap of opaq.extern_kernels.cross_entropy, of the op that gives a
gradient with the loss, and of the mean: against the composition of PyTorch in float64.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import (
    ARCHS,
    DTYPES,
    close,
    compiled_agrees,
    compiles,
    cuda,
    gradients,
    plan,
    refuses,
)
from test_cross_entropy import SHAPES, make, rows_at_any_element
from test_cross_entropy_with_gradient import scale_of

from opaq.extern_kernels import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_mean,
    cross_entropy_mean_with_gradient,
    cross_entropy_op,
    cross_entropy_with_gradient,
)
from opaq.extern_kernels.cross_entropy.cross_entropy import (
    capped,
    cross_entropy_backward_reference,
    cross_entropy_reference,
)
from opaq.extern_kernels.cross_entropy.with_gradient import cross_entropy_with_gradient_reference

# label_smoothing, z_loss, softcap
EXTRAS = [(0.1, 0.0, 0.0), (0.0, 1e-2, 0.0), (0.0, 0.0, 30.0), (0.2, 1e-2, 2.5), (1.0, 0.0, 0.0)]


def exact(logits, target, extras, ignore_index=-100):
    """(loss, lse), by PyTorch."""
    label_smoothing, z_loss, softcap = extras
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(
        logits,
        target,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    lse = torch.logsumexp(logits, 1)
    if z_loss:
        loss = loss + torch.where(target == ignore_index, 0, z_loss * lse.square())
    return loss, lse


def check(logits, target, extras, ignore_index=-100):
    outputs, (grad,) = gradients(
        lambda x, t: cross_entropy(x, t, ignore_index, *extras), (logits, target), [0]
    )
    wide, (wide_grad,) = gradients(
        lambda x, t: exact(x, t, extras, ignore_index), (logits.double(), target), [0]
    )
    for actual, expected in zip(outputs, wide):
        close(actual, expected, scale=2)
    assert (grad.dtype, grad.shape) == (logits.dtype, logits.shape)
    close(grad, wide_grad, scale=4)


def check_with_gradient(logits, target, extras, ignore_index=-100):
    exact_logits = logits.double().detach().requires_grad_()
    wide_loss, wide_lse = exact(exact_logits, target, extras, ignore_index)
    (wide_grad,) = torch.autograd.grad((wide_loss * 0.37).sum(), exact_logits)
    loss, lse, grad = cross_entropy_with_gradient(
        logits, target, scale_of(logits), ignore_index, *extras
    )
    close(loss, wide_loss.detach(), scale=2)
    close(lse, wide_lse.detach(), scale=2)
    close(grad, wide_grad, scale=2)
    assert (grad[target == ignore_index] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, extras, dtype, device):
    logits, target = make(shape, dtype, device)
    check(logits, target, extras)
    check_with_gradient(logits, target, extras)


@pytest.mark.parametrize("extras", EXTRAS[2:4])
@pytest.mark.parametrize("shape", [(600, 100), (3, 50257), (2, 140000)])
def test_wide_rows_and_many(shape, extras, device):
    for dtype in (torch.float32, torch.bfloat16):
        check_with_gradient(*make(shape, dtype, device), extras)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 7, 9, 257, 4099])
def test_rows_begin_at_any_element(classes, dtype, device):
    for number, (logits, target) in enumerate(rows_at_any_element(3, classes, dtype, device)):
        extras = EXTRAS[number % len(EXTRAS)]
        check(logits, target, extras)
        check_with_gradient(logits, target, extras)


@pytest.mark.parametrize("ignore_index", [-100, 0, 3])
def test_ignore_index(ignore_index, device):
    logits, target = make((40, 8), torch.float32, device, ignored=False)
    check(logits, target, EXTRAS[3], ignore_index)
    check_with_gradient(logits, target, EXTRAS[3], ignore_index)


@pytest.mark.parametrize("extras", EXTRAS[1:4])
def test_masked_logits(extras, device):
    """With a z-loss or a softcap the loss is finite; a capped class at -inf still counts."""
    logits, target = make((6, 64), torch.float32, device, ignored=False)
    logits[:, 32:] = -torch.inf
    target.clamp_(max=31)
    extras = (0.0, *extras[1:]) if not extras[2] else extras
    check(logits, target, extras)
    check_with_gradient(logits, target, extras)


def test_masked_logits_that_are_smoothed_are_infinite(device):
    """As in PyTorch: a class of probability 0 is to be predicted."""
    logits, target = make((6, 64), torch.float32, device, ignored=False)
    logits[:, 5], target[:] = -torch.inf, 7
    target[3] = 5
    for function in (cross_entropy, cross_entropy_reference):
        assert (function(logits, target, -100, 0.1)[0] == torch.inf).all()
    assert (exact(logits, target, (0.1, 0, 0))[0] == torch.inf).all()


@pytest.mark.parametrize("extras", EXTRAS)
def test_special_rows(extras, device):
    logits, target = make((6, 64), torch.float32, device, ignored=False)
    logits[1], target[1] = torch.nan, -100
    target[2], target[3] = 64, -1
    logits[4], logits[5, 9] = -torch.inf, torch.nan
    call = (logits, target, scale_of(logits), -100, *extras)
    loss, _, grad = cross_entropy_with_gradient(*call)
    nan = [False, False, True, True, not extras[2], True]
    assert loss.isnan().tolist() == nan and loss[1] == 0
    assert grad.isnan().all(1).tolist() == nan and (grad[1] == 0).all()
    loss, *lse = cross_entropy_op(logits, target, -100, *extras)
    assert loss.isnan().tolist() == nan and loss[1] == 0
    ones = torch.ones_like(loss)
    grad = cross_entropy_backward(
        ones, ones, logits, target, *lse, -100, label_smoothing=extras[0], z_loss=extras[1]
    )
    assert grad[2:4].isnan().all() and grad[0].isfinite().all()


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_neither_overflow_nor_cancel(shift, device):
    logits, target = make((8, 100), torch.float32, device)
    logits = (logits * 8).round() + shift  # exact in float32
    for extras in (EXTRAS[0], EXTRAS[4]):
        close(
            cross_entropy(logits, target, -100, *extras)[0],
            exact(logits.double(), target, extras)[0],
        )


@pytest.mark.parametrize("extras", EXTRAS)
def test_errors_are_those_of_pytorch_or_of_roundings(extras, device):
    """In float32 against float64: the loss of each row, and the gradient of their sum."""
    logits, target = make((64, 5000), torch.float32, device, ignored=False)
    logits = logits.detach()

    def found(function, values):
        values = values.clone().requires_grad_()
        loss = function(values)[0]
        return loss.detach().double(), torch.autograd.grad(loss.sum(), values)[0].double()

    def error(got, expected):
        return (got - expected).norm()

    wide_loss, wide = found(lambda x: exact(x, target, extras), logits.double())
    loss, grad = found(lambda x: cross_entropy(x, target, -100, *extras), logits)
    their_loss, theirs = found(lambda x: exact(x, target, extras), logits)
    assert error(loss, wide_loss) <= torch.maximum(
        error(their_loss, wide_loss), 2**-23 * wide_loss.norm()
    )
    # ex2.approx is right to 2 units in the last place, which are 1.5 * 2^-23 of a number on average
    probabilities = torch.softmax(capped(logits.double(), extras[2]), 1)
    allowed = 2**-23 * (wide.norm() + 1.5 * probabilities.norm())
    assert error(grad, wide) <= torch.maximum(error(theirs, wide), allowed)


@pytest.mark.parametrize("extras", EXTRAS)
def test_the_mean_is_pytorchs(extras, device):
    logits, target = make((30, 50), torch.float32, device)
    counted = (target != -100).sum()
    (wide,), (wide_grad,) = gradients(
        lambda x, t: exact(x, t, extras)[0].sum() / counted, (logits.double(), target), [0]
    )
    (loss,), (grad,) = gradients(
        lambda x, t: cross_entropy_mean(x, t, -100, *extras), (logits, target), [0]
    )
    close(loss, wide)
    close(grad, wide_grad, torch.float32)
    with torch.no_grad():
        close(cross_entropy_mean(logits, target, -100, *extras), wide)


def test_the_references_mean_the_same(device):
    logits, target = make((12, 40), torch.float32, device)
    target[1] = 40
    for extras in EXTRAS:
        loss, *lse = cross_entropy_op(logits, target, -100, *extras)
        pairs = list(zip((loss, *lse), cross_entropy_reference(logits, target, -100, *extras)))
        args = (torch.randn_like(loss), torch.randn_like(loss), logits, target, *lse, -100)
        for added in (None, torch.randn_like(logits)):
            call = (*args, added, *extras)
            pairs.append((cross_entropy_backward(*call), cross_entropy_backward_reference(*call)))
        call = (logits, target, scale_of(logits), -100, *extras)
        expected = cross_entropy_with_gradient_reference(*call)
        pairs += zip(cross_entropy_with_gradient(*call), expected)
        for actual, wanted in pairs:
            torch.testing.assert_close(actual, wanted, equal_nan=True)


def test_loss_and_lse_with_a_gradient_are_differentiable(device):
    logits, target = make((12, 40), torch.float32, device)
    extras = EXTRAS[3]
    logits.requires_grad_()
    loss, lse, _ = cross_entropy_with_gradient(logits, target, scale_of(logits), -100, *extras)
    (actual,) = torch.autograd.grad(loss.sum() + lse.square().sum(), logits)
    wide = logits.detach().double().requires_grad_()
    wide_loss, wide_lse = exact(wide, target, extras)
    (expected,) = torch.autograd.grad(wide_loss.sum() + wide_lse.square().sum(), wide)
    close(actual, expected, scale=4)


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ((1.5, 0.0, 0.0), "got label_smoothing=1.5; expected a number from 0 to 1"),
        ((-0.1, 0.0, 0.0), "got label_smoothing=-0.1; expected a number from 0 to 1"),
        ((0.0, -1e-4, 0.0), "got z_loss=-0.0001; expected a number of at least 0"),
        ((0.0, 0.0, -3.0), "got softcap=-3.0; expected a number of at least 0; 0: no softcap"),
        ((0.0, 0.0, math.inf), "got softcap=inf; expected a number of at least 0"),
        ((math.nan, 0.0, 0.0), "got label_smoothing=nan; expected a number from 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(extras, message, device, capfd):
    logits, target = make((12, 40), torch.float32, device)
    message = f"cross_entropy: {message}"
    refuses(lambda: cross_entropy(logits, target, -100, *extras), message, capfd)
    refuses(
        lambda: cross_entropy_with_gradient(logits, target, scale_of(logits), -100, *extras),
        message,
        capfd,
    )


def test_opcheck(device):
    logits, target = make((5, 16), torch.float32, device)
    extras = dict(zip(("label_smoothing", "z_loss", "softcap"), EXTRAS[3]))
    torch.library.opcheck(cross_entropy_op, (logits.requires_grad_(), target), extras)
    call = (logits, target, scale_of(logits))
    torch.library.opcheck(cross_entropy_with_gradient, call, extras)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 48), (9, 48), (33, 48)] if dynamic else [(6, 48)]
    cases = [make(shape, torch.float32, device) for shape in shapes]
    compiled_agrees(
        cross_entropy_op,
        lambda x, t: cross_entropy(x * 2, t, -100, *EXTRAS[3])[0].sin(),
        cases,
        [0],
        dynamic,
    )
    compiled_agrees(
        cross_entropy_mean_with_gradient,
        lambda x, t: cross_entropy_mean(x * 2, t, -100, *EXTRAS[3]).sin(),
        cases,
        [0],
        dynamic,
    )


def test_plain_cross_entropy_has_kernels_of_its_own():
    logits, target = cuda((64, 4096), torch.bfloat16), cuda((64,), torch.int64)
    for extras, kind in [((0.0, 0.0, 0.0), 0), ((0.1, 0.0, 0.0), 1), ((0.1, 1e-4, 30.0), 2)]:
        entry = plan(cross_entropy_op, logits, target, -100, *extras)["entry"]
        assert entry == f"cross_entropy<__nv_bfloat16, 128, {kind}, false>"
        one = cuda((1,), torch.float32)
        entry = plan(cross_entropy_with_gradient, logits, target, one, -100, *extras)["entry"]
        assert entry == f"cross_entropy_with_gradient<__nv_bfloat16, 64, 1, {kind}, false>"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("extras", [EXTRAS[0], EXTRAS[3]])
def test_cuda_sources_compile(extras, arch):
    rows, target = cuda((64,), torch.float32), cuda((64,), torch.int64)
    one = cuda((1,), torch.float32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = cuda((64, 4096), dtype)
        compiles(cross_entropy_op, (logits, target, -100, *extras), arch, "cuda")
        backward = rows, rows, logits, target, rows, rows, -100
        compiles(cross_entropy_backward, (*backward, None, *extras), arch, "cuda")
        compiles(cross_entropy_backward, (*backward, logits, *extras), arch, "cuda:added")
        call = logits, target, one, -100, *extras
        compiles(cross_entropy_with_gradient, call, arch, "cuda")
