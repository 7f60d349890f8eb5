"""opaq.extern_kernels.cross_entropy_and_capped: against the composition of PyTorch in float64."""

import pytest
import torch
from kernel_checks import ARCHS, DTYPES, close, compiled_agrees, compiles, cuda, gradients, refuses
from test_cross_entropy import SHAPES, make, rows_at_any_element
from test_cross_entropy_extras import exact

from opaq.extern_kernels import (
    cross_entropy_and_capped,
    cross_entropy_and_capped_backward,
    cross_entropy_and_capped_op,
)
from opaq.extern_kernels.cross_entropy.capped import (
    cross_entropy_and_capped_backward_reference,
    cross_entropy_and_capped_reference,
)

# softcap, ignore_index, label_smoothing, z_loss
NUMBERS = [(30.0, -100, 0.0, 0.0), (2.5, -100, 0.2, 1e-2)]


def composition(logits, target, softcap, ignore_index, label_smoothing, z_loss):
    extras = label_smoothing, z_loss, softcap
    return *exact(logits, target, extras, ignore_index), softcap * torch.tanh(logits / softcap)


def check(logits, target, numbers):
    outputs, (grad,) = gradients(
        lambda x, t: cross_entropy_and_capped(x, t, *numbers), (logits, target), [0]
    )
    wide, (wide_grad,) = gradients(
        lambda x, t: composition(x, t, *numbers), (logits.double(), target), [0]
    )
    for actual, expected in zip(outputs, wide, strict=True):
        close(actual, expected, scale=2)
    assert outputs[2].dtype == logits.dtype and outputs[2].is_contiguous()
    close(grad, wide_grad, logits.dtype, scale=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, numbers, dtype, device):
    check(*make(shape, dtype, device), numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 7, 9, 257, 4099])
def test_rows_begin_at_any_element(classes, dtype, device):
    for number, (logits, target) in enumerate(rows_at_any_element(3, classes, dtype, device)):
        check(logits, target, NUMBERS[number % len(NUMBERS)])


@pytest.mark.parametrize("which", [[0], [1], [2], [0, 2]])
def test_gradients_of_some_results(which, device):
    logits, target = make((6, 40), torch.float32, device)

    def some(function):
        return lambda x, t: [function(x, t, *NUMBERS[1])[each] for each in which]

    _, (grad,) = gradients(some(cross_entropy_and_capped), (logits, target), [0])
    _, (wide,) = gradients(some(composition), (logits.double(), target), [0])
    close(grad, wide, torch.float32, scale=4)


def test_ignore_index(device):
    logits, target = make((40, 8), torch.float32, device, ignored=False)
    check(logits, target, (2.5, 3, 0.2, 1e-2))


def test_special_rows(device):
    logits, target = make((5, 64), torch.float32, device, ignored=False)
    logits[1], target[1] = torch.nan, -100
    target[2], logits[3] = 64, -torch.inf
    logits[4, 9] = torch.nan
    loss, _, capped = cross_entropy_and_capped(logits, target, 30.0)
    assert loss.isnan().tolist() == [False, False, True, False, True] and loss[1] == 0
    close(capped, 30 * torch.tanh(logits.double() / 30))


def test_the_references_mean_the_same(device):
    logits, target = make((12, 40), torch.float32, device)
    target[1] = 40
    for numbers in NUMBERS:
        call = logits, target, *numbers
        found = cross_entropy_and_capped_op(*call)
        pairs = list(zip(found, cross_entropy_and_capped_reference(*call), strict=True))
        for of_capped in (None, torch.randn_like(logits)):
            grads = torch.randn_like(found[0]), torch.randn_like(found[0]), of_capped
            call = *grads, logits, target, *found[1:3], *numbers
            pairs.append(
                (
                    cross_entropy_and_capped_backward(*call),
                    cross_entropy_and_capped_backward_reference(*call),
                )
            )
        for actual, wanted in pairs:
            torch.testing.assert_close(actual, wanted, equal_nan=True)


def test_gradients_of_both_results_are_rounded_once(device):
    logits, target = make((16, 3000), torch.bfloat16, device, ignored=False)
    of_capped = torch.linspace(-0.01, 0.01, logits.numel(), device=device).view_as(logits)
    of_capped = of_capped.bfloat16()

    def gradient(function, values):
        values = values.clone().requires_grad_()
        loss, _, capped = function(values, target, *NUMBERS[0])
        total = loss.sum() + (capped * of_capped.to(values.dtype)).sum()
        return torch.autograd.grad(total, values)[0]

    exact_one = gradient(composition, logits.double()).bfloat16()
    # all but those that float32 sums have moved across the middle of two numbers
    differ = gradient(cross_entropy_and_capped, logits) != exact_one
    assert differ.double().mean() < 0.01


@pytest.mark.parametrize("softcap", [0.0, -3.0])
def test_a_softcap_that_is_none_is_refused(softcap, device, capfd):
    logits, target = make((12, 40), torch.float32, device)
    message = (
        f"cross_entropy_and_capped: got softcap={softcap}; expected a number above 0: without a "
        "cap, call cross_entropy"
    )
    refuses(lambda: cross_entropy_and_capped(logits, target, softcap), message, capfd)


def test_opcheck(device):
    logits, target = make((5, 16), torch.float32, device)
    call = (logits.requires_grad_(), target, *NUMBERS[1])
    torch.library.opcheck(cross_entropy_and_capped_op, call)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    def function(x, t):
        loss, lse, capped = cross_entropy_and_capped(x * 2, t, *NUMBERS[1])
        return loss.sin(), lse, capped.cos()

    shapes = [(6, 48), (9, 48), (33, 48)] if dynamic else [(6, 48)]
    cases = [make(shape, torch.float32, device) for shape in shapes]
    compiled_agrees(cross_entropy_and_capped_op, function, cases, [0], dynamic)


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_sources_compile(arch):
    rows, target = cuda((64,), torch.float32), cuda((64,), torch.int64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = cuda((64, 4096), dtype)
        compiles(cross_entropy_and_capped_op, (logits, target, 30.0), arch, "cuda")
        last = logits, target, rows, rows, 30.0
        op = cross_entropy_and_capped_backward
        compiles(op, (rows, rows, None, *last), arch, "cuda")
        compiles(op, (rows, rows, logits, *last), arch, "cuda:added")
