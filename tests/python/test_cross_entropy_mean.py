"""opaq.extern_kernels.cross_entropy_mean_with_gradient: against float64 PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import ARCHS, DTYPES, close, compiles, cuda, plan, refuses
from test_cross_entropy import make
from test_cross_entropy_extras import EXTRAS
from test_cross_entropy_extras import exact as losses_and_sums

from opaq.extern_kernels import cross_entropy_mean
from opaq.extern_kernels import cross_entropy_mean_with_gradient as op
from opaq.extern_kernels.cross_entropy.mean import cross_entropy_mean_with_gradient_reference

PLAIN = (0.0, 0.0, 0.0)


def exact(logits, target, extras=PLAIN, ignore_index=-100):
    wide = logits.detach().double().requires_grad_()
    losses, _ = losses_and_sums(wide, target, extras, ignore_index)
    loss = losses.sum() / (target != ignore_index).sum()
    return loss.detach(), *torch.autograd.grad(loss, wide)


def check(logits, target, extras=PLAIN, ignore_index=-100):
    loss, grad = op(logits, target, ignore_index, *extras)
    wide_loss, wide_grad = exact(logits, target, extras, ignore_index)
    assert (loss.shape, loss.dtype) == ((), torch.promote_types(logits.dtype, torch.float32))
    assert (grad.dtype, grad.shape, grad.is_contiguous()) == (logits.dtype, logits.shape, True)
    close(loss, wide_loss, scale=2)
    close(grad, wide_grad, scale=2)
    for each, wanted in zip((loss, grad), op(logits, target, ignore_index, *extras)):
        assert torch.equal(each, wanted), "it adds in a fixed order"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (30, 4096), (9000, 24), (3, 50257)])
def test_values(shape, dtype, device):
    check(*make(shape, dtype, device, ignored=shape[0] > 1))


@pytest.mark.parametrize("extras", EXTRAS)
def test_label_smoothing_z_loss_and_softcap(extras, device):
    check(*make((30, 50), torch.float32, device), extras)


def test_ignored_rows_and_targets_with_a_stride(device):
    logits, _ = make((40, 9), torch.float32, device)
    targets = torch.randint(0, 9, (40, 3), device=device)[:, 1]
    check(logits, targets, ignore_index=3)
    loss, grad = op(logits, torch.full_like(targets, 3), 3)
    assert loss.isnan() and (grad == 0).all()


def test_gradients_of_gradients(device):
    logits, target = make((30, 9), torch.float64, device)
    logits.requires_grad_()
    found = []
    for loss in (cross_entropy_mean(logits, target), F.cross_entropy(logits, target)):
        (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
        found += torch.autograd.grad(loss + grad.square().sum(), logits)
    torch.testing.assert_close(*found)


def test_no_rows(device):
    logits = torch.zeros(0, 5, device=device)
    target = torch.zeros(0, dtype=torch.int64, device=device)
    loss, grad = op(logits, target)
    assert loss.isnan() and grad.shape == (0, 5)
    assert F.cross_entropy(logits, target).isnan()


def test_a_target_outside_the_classes_is_nan(device):
    logits, target = make((6, 10), torch.float32, device, ignored=False)
    target[1] = 10
    loss, grad = op(logits, target)
    assert loss.isnan() and grad.isnan().any(1).tolist() == [False, True] + [False] * 4


def test_the_reference_means_the_same(device):
    logits, target = make((12, 40), torch.float32, device)
    for extras in (PLAIN, *EXTRAS):
        expected = cross_entropy_mean_with_gradient_reference(logits, target, -100, *extras)
        for actual, wanted in zip(op(logits, target, -100, *extras), expected):
            torch.testing.assert_close(actual, wanted)


def test_the_loss_is_differentiable(device):
    logits, target = make((12, 40), torch.float32, device)
    loss, grad = op(logits.requires_grad_(), target)
    assert not grad.requires_grad
    (found,) = torch.autograd.grad(loss * 3, logits)
    close(found, exact(logits, target)[1] * 3)


def test_wrong_calls_are_refused(device, capfd):
    logits, target = make((4, 8), torch.float32, device)
    refuses(lambda: op(logits, target[:3]), "expected [N, V] and [N]", capfd)
    message = "got label_smoothing=2.0; expected a number from 0 to 1"
    refuses(lambda: op(logits, target, -100, 2), message, capfd)


def test_opcheck(device):
    logits, target = make((5, 16), torch.float32, device)
    torch.library.opcheck(op, (logits.requires_grad_(), target))


def test_cuda_plan():
    facts = cuda((8192, 32000), torch.bfloat16), cuda((8192,), torch.int64), -100
    chosen = plan(op, *facts)
    assert [step["entry"] for step in chosen["steps"]] == [
        "count_rows",
        "cross_entropy_with_gradient<__nv_bfloat16, 256, 1, 0, false>",
        "mean_of_losses",
    ]
    assert [list(step["grid"]) for step in chosen["steps"]] == [[1, 1, 1], [8192, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_sources_compile(arch):
    facts = cuda((64, 4096), torch.bfloat16), cuda((64,), torch.int64), -100
    compiles(op, facts, arch, "cuda")
