"""Cross-entropy of logits of any size: the loss and its gradients are those of PyTorch in float64,
and no less accurate than PyTorch in the logits' dtype.
"""

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import close, gradients
from test_cross_entropy_with_gradient import scale_of

from opaq.extern_kernels import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_op,
    cross_entropy_with_gradient,
    linear_cross_entropy,
)
from opaq.extern_kernels.cross_entropy.cross_entropy import (
    cross_entropy_backward_reference,
    cross_entropy_reference,
)
from opaq.extern_kernels.cross_entropy.with_gradient import cross_entropy_with_gradient_reference

SIZES = [1e2, 1e4, 1e6, 1e9, 1e10, 1e30, 1.6e38]
WIDTHS = [7, 1003, 40000]  # of one thread's packs, of a block's, of a cluster's


def rows_of_size(size, classes, dtype, device):
    """Logits, in rows: all as large or as small as `size`, one of them, any between, close to one
    another, and half of them masked; and targets, of which the last row's is ignored."""
    generator = torch.Generator().manual_seed(classes)
    random = torch.randn(3, classes, generator=generator, dtype=torch.float64)
    rows = torch.zeros(10, classes, dtype=torch.float64)
    rows[0], rows[1] = size, -size
    rows[2, 5], rows[3, 5] = size, size
    rows[4], rows[4, 5] = -size, size
    rows[5] = random[0].tanh() * size
    rows[6], rows[7] = random[1] * 3 + size, random[2] * 3 - size
    rows[8], rows[8, classes // 2 :] = random[2] * 3 - size, -torch.inf
    rows[9] = -size
    target = torch.arange(10) % min(classes, 3)
    target[2], target[4], target[9] = 5, 5, -100
    return rows.to(device, dtype), target.to(device)


def exact(logits, target, label_smoothing=0.0, z_loss=0.0, softcap=0.0):
    """(loss, lse), by PyTorch. The gradient of torch.logsumexp is taken from its rounded value, and
    wrong for large logits; that of log_softmax is right."""
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    largest = logits.argmax(1, keepdim=True)
    lse = (logits.gather(1, largest) - torch.log_softmax(logits, 1).gather(1, largest)).squeeze(1)
    loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    if z_loss:
        loss = loss + torch.where(target == -100, 0, z_loss * lse.square())
    return loss, lse


def check(logits, target, *extras):
    """The op, its gradient, and the op with its gradient."""
    outputs, (grad,) = gradients(
        lambda x, t: cross_entropy(x, t, -100, *extras), (logits, target), [0]
    )
    wide, (wide_grad,) = gradients(
        lambda x, t: exact(x, t, *extras), (logits.double(), target), [0]
    )
    for actual, expected in zip((*outputs, grad), (*wide, wide_grad)):
        close(actual, expected, scale=4)
    values = logits.double().requires_grad_()
    (wide_grad,) = torch.autograd.grad(exact(values, target, *extras)[0].sum() * 0.37, values)
    outputs = cross_entropy_with_gradient(logits, target, scale_of(logits), -100, *extras)
    for actual, expected in zip(outputs, (*wide, wide_grad)):
        close(actual, expected, scale=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", WIDTHS)
@pytest.mark.parametrize("size", SIZES)
def test_logits_of_any_size(size, classes, dtype, device):
    check(*rows_of_size(size, classes, dtype, device))


def test_rows_that_begin_at_any_element(device):
    for offset in range(9):
        logits, target = rows_of_size(1e10, 1003, torch.float32, device)
        memory = torch.empty(10 * 1004 + 8, device=device)
        moved = memory[offset:].as_strided(logits.shape, (1004, 1)).copy_(logits)
        check(moved, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_logits_at_the_ends_of_the_dtype(dtype, device):
    """Equal logits, such as those that are all masked by the lowest number."""
    ends = torch.finfo(dtype)
    for classes in WIDTHS:
        logits = torch.full((2, classes), ends.min, dtype=dtype, device=device)
        logits[1] = ends.max
        check(logits, torch.tensor([0, 1], device=device))


@pytest.mark.parametrize("extras", [(0.1, 0.0, 0.0), (0.0, 1e-2, 0.0), (0.2, 1e-3, 0.0)])
@pytest.mark.parametrize("size", [1e4, 1e10, 1e17])
def test_label_smoothing_and_z_loss(size, extras, device):
    logits, target = rows_of_size(size, 1003, torch.float32, device)
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9]  # with label smoothing, masked rows have infinite losses
    check(logits[kept], target[kept], *extras)


@pytest.mark.parametrize("size", [1e4, 1e10, 1e29])
def test_softcap(size, device):
    logits, target = rows_of_size(size, 1003, torch.float32, device)
    kept = [0, 1, 2, 3, 4, 9]  # of the others, tanh in float32 moves the differences
    check(logits[kept], target[kept], 0.0, 0.0, size)


@pytest.mark.parametrize("size", [1e3, 1e5])
def test_linear_cross_entropy(size, device):
    hidden = torch.tensor([[size], [-size], [size]], device=device)
    weight = torch.full((5000, 1), size, device=device)
    weight[17] = -size
    inputs = hidden, weight, torch.tensor([3, 17, -100], device=device)
    (loss,), grads = gradients(linear_cross_entropy, inputs, [0, 1])
    (wide,), wide_grads = gradients(
        lambda h, w, t: F.cross_entropy(h @ w.t(), t),
        (hidden.double(), weight.double(), inputs[2]),
        [0, 1],
    )
    close(loss, wide)
    for actual, expected in zip(grads, wide_grads):
        close(actual / size, expected / size)


@pytest.mark.parametrize("size", SIZES)
def test_the_references(size, device):
    logits, target = rows_of_size(size, 1003, torch.float32, device)
    wide = logits.double().requires_grad_()
    loss, lse = exact(wide, target)
    (grad,) = torch.autograd.grad(loss.sum(), wide)
    found, *kept = cross_entropy_reference(logits, target)
    close(found, loss.detach(), scale=2)
    close(kept[0], lse.detach())
    ones, zeros = torch.ones_like(found), torch.zeros_like(found)
    close(cross_entropy_backward_reference(ones, zeros, logits, target, *kept, -100), grad, scale=2)
    found, _, found_grad = cross_entropy_with_gradient_reference(logits, target, ones[:1])
    close(found, loss.detach(), scale=2)
    close(found_grad, grad, scale=2)


def test_infinite_logits_and_nan_are_as_in_pytorch(device):
    logits = torch.randn(4, 1003, device=device)
    logits[0, 7] = torch.inf
    logits[1, 7], logits[1, 8] = torch.inf, -torch.inf
    logits[2, 900] = torch.nan
    logits[3] = -torch.inf
    target = torch.tensor([3, 7, 4, 5], device=device)
    ones = torch.ones(4, device=device)
    loss, *kept = cross_entropy_op(logits, target)
    grad = cross_entropy_backward(ones, 0 * ones, logits, target, *kept, -100)
    other = cross_entropy_with_gradient(logits, target, ones[:1])
    values = logits.clone().requires_grad_()
    theirs = F.cross_entropy(values, target, reduction="none")
    (their_grad,) = torch.autograd.grad(theirs.sum(), values)
    assert theirs.isnan().all() and their_grad.isnan().all()
    for each in (loss, grad, other[0], other[2], cross_entropy_reference(logits, target)[0]):
        assert each.isnan().all()


@pytest.mark.parametrize("shift", [0.0, 1e2, -1e2, 1e4, -1e4, 1e6, -1e6, 3e7])
def test_errors_are_those_of_pytorch_or_of_roundings(shift, device):
    """In float32 against float64: the losses of rows, and the gradient of their sum, in a launch of
    its own and with the loss."""
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(64, 5000, generator=generator) * 3 + shift).to(device)
    target = torch.randint(5000, (64,), generator=generator).to(device)

    def found(function, values):
        values = values.clone().requires_grad_()
        loss = function(values, target)[0]
        return loss.detach().double(), torch.autograd.grad(loss.sum(), values)[0].double()

    wide, theirs = found(exact, logits.double()), found(_in_own_dtype, logits)
    ours = found(cross_entropy, logits)
    together = cross_entropy_with_gradient(logits, target, torch.ones(1, device=device))
    for actual, their, expected in zip(
        (*ours, together[0], together[2]), (*theirs, *theirs), (*wide, *wide)
    ):
        allowed = torch.maximum((their - expected).norm(), 2**-23 * expected.norm())
        assert (actual - expected).norm() <= allowed


def _in_own_dtype(logits, target):
    return (F.cross_entropy(logits, target, reduction="none"),)
