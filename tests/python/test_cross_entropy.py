"""opaq.extern_kernels.cross_entropy: against float64 PyTorch, ignored and invalid targets, masked
logits, layouts, compiled graphs, CUDA plans.
"""

import pytest
import torch
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

from opaq.extern_kernels import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_mean,
    cross_entropy_op,
)
from opaq.extern_kernels.cross_entropy.cross_entropy import (
    cross_entropy_backward_reference,
    cross_entropy_reference,
)

SHAPES = [(1, 1), (5, 7), (70, 256), (3, 1000), (4, 33000), (0, 16), (9, 2), (2, 8192)]


def exact(logits, target, ignore_index=-100):
    logits = logits.double()
    loss = torch.nn.functional.cross_entropy(
        logits, target, ignore_index=ignore_index, reduction="none"
    )
    return loss, torch.logsumexp(logits, 1)


def make(shape, dtype, device, ignored=True):
    generator = torch.Generator().manual_seed(shape[1])
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).to(device, dtype)
    target = torch.randint(0, shape[1], shape[:1], generator=generator).to(device)
    if ignored:
        target[::3] = -100
    return logits, target


def check(logits, target, ignore_index=-100):
    outputs, (grad,) = gradients(
        lambda x, t: cross_entropy(x, t, ignore_index), (logits, target), [0]
    )
    wide, (wide_grad,) = gradients(
        lambda x, t: exact(x, t, ignore_index), (logits.double(), target), [0]
    )
    for actual, expected in zip(outputs, wide):
        assert actual.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
        close(actual, expected, scale=2)
    assert (grad.dtype, grad.shape) == (logits.dtype, logits.shape)
    close(grad, wide_grad, scale=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, dtype, device):
    check(*make(shape, dtype, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs(dtype, device):
    logits, target = make((12, 96), dtype, device)
    check(logits[::2], target[::2])
    check(logits[:, 8:72], target.clamp(max=63))
    check(logits[:, 3:70], target.clamp(max=66))
    check(logits.t(), make((96, 12), dtype, device)[1])
    check(logits[:, ::2], target.clamp(max=47))
    check(logits[:1].expand(12, 96), target)


def rows_at_any_element(rows, classes, dtype, device):
    """Logits that begin at each element of a pack, one row right after the other and with an
    element between them; and targets."""
    flat, _ = make((1, rows * (classes + 1) + 8), dtype, device)
    _, target = make((rows, classes), dtype, device)
    for offset in range(9):
        begin = flat[0, offset:]
        yield begin[: rows * classes].view(rows, classes), target
        yield begin.as_strided((rows, classes), (classes + 1, 1)), target


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 31, 257, 4099])
def test_rows_begin_at_any_element(classes, dtype, device):
    for logits, target in rows_at_any_element(3, classes, dtype, device):
        check(logits, target)


@pytest.mark.parametrize("ignore_index", [-100, 0, 3, -1])
def test_ignore_index(ignore_index, device):
    logits, target = make((40, 8), torch.float32, device, ignored=False)
    check(logits, target, ignore_index)


def test_masked_logits(device):
    logits, target = make((6, 64), torch.float32, device, ignored=False)
    logits[:, 32:] = -torch.inf
    logits[0, :32] = -torch.inf
    logits[0, 5], target[0] = 1.5, 5
    target.clamp_(max=31)
    check(logits, target)


def test_a_row_without_any_class_left_is_nan(device):
    logits, target = make((2, 64), torch.float32, device, ignored=False)
    logits[0] = -torch.inf
    loss, lse = cross_entropy(logits, target)
    assert loss[0].isnan() and lse[0] == -torch.inf and loss[1].isfinite()


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_neither_overflow_nor_cancel(shift, device):
    logits, target = make((8, 100), torch.float32, device)
    logits = (logits * 8).round() + shift  # exact in float32
    loss, lse = cross_entropy(logits, target)
    close(loss, exact(logits, target)[0])
    close(lse, exact(logits, target)[1])


def test_a_target_outside_the_classes_is_nan_and_only_there(device):
    logits, target = make((4, 10), torch.float32, device, ignored=False)
    target[1], target[2] = 10, -1
    (loss, lse), (grad,) = gradients(cross_entropy, (logits, target), [0])
    assert loss.isnan().tolist() == [False, True, True, False] and lse.isfinite().all()
    assert grad.isnan().any(1).tolist() == [False, True, True, False]


def test_the_mean_is_pytorchs(device):
    logits, target = make((30, 50), torch.float32, device)
    (loss,), (grad,) = gradients(cross_entropy_mean, (logits, target), [0])
    (wide,), (wide_grad,) = gradients(
        lambda x, t: torch.nn.functional.cross_entropy(x, t), (logits.double(), target), [0]
    )
    close(loss, wide)
    close(grad, wide_grad, torch.float32)
    assert cross_entropy_mean(logits, torch.full_like(target, -100)).isnan()


def test_a_z_loss_has_a_gradient(device):
    logits, target = make((12, 40), torch.float32, device)

    def z_loss(function):
        def total(x, t):
            loss, lse = function(x, t)
            return loss.sum() + 0.1 * lse.square().sum()

        return total

    (loss,), (grad,) = gradients(z_loss(cross_entropy), (logits, target), [0])
    (wide,), (wide_grad,) = gradients(z_loss(exact), (logits.double(), target), [0])
    close(loss, wide)
    close(grad, wide_grad, scale=4)


def test_the_references_mean_the_same(device):
    logits, target = make((12, 40), torch.float32, device)
    target[1] = 40
    loss, *lse = cross_entropy_op(logits, target)
    for actual, expected in zip((loss, *lse), cross_entropy_reference(logits, target)):
        torch.testing.assert_close(actual, expected, equal_nan=True)
    args = (torch.randn_like(loss), torch.randn_like(loss), logits, target, *lse, -100)
    torch.testing.assert_close(
        cross_entropy_backward(*args), cross_entropy_backward_reference(*args), equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 7, 8, 257, 4099])
def test_another_gradient_is_added(classes, dtype, device):
    """Rounded once; rows of each tensor may begin at any element."""
    flat = torch.randn(3 * classes + 8, device=device).to(dtype)
    for logits, target in rows_at_any_element(3, classes, dtype, device):
        loss, *lse = cross_entropy_op(logits, target)
        grads = torch.randn_like(loss), torch.randn_like(loss)
        for offset in (0, 1, 8):
            added = flat[offset : offset + 3 * classes].view(3, classes)
            got = cross_entropy_backward(*grads, logits, target, *lse, -100, added)
            wide = [each.double() for each in (*grads, logits)]
            expected = cross_entropy_backward_reference(
                *wide, target, *map(torch.Tensor.double, lse), -100, added.double()
            )
            close(got, expected, scale=4)


def test_logits_of_three_dimensions_are_refused(device, capfd):
    logits, target = make((12, 40), torch.float32, device)
    message = (
        "cross_entropy: logits have shape (3, 4, 40) and target (12,); expected [N, V] and [N]"
    )
    refuses(lambda: cross_entropy(logits.view(3, 4, 40), target), message, capfd)


def test_opcheck(device):
    logits, target = make((5, 16), torch.float32, device)
    torch.library.opcheck(cross_entropy_op, (logits.requires_grad_(), target))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 48), (9, 48), (33, 48)] if dynamic else [(6, 48)]
    cases = [make(shape, torch.float32, device) for shape in shapes]
    compiled_agrees(
        cross_entropy_op, lambda x, t: cross_entropy(x * 2, t)[0].sin(), cases, [0], dynamic
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "strides", "entry", "block"),
    [
        ((8192, 128256), torch.bfloat16, None, "cross_entropy<__nv_bfloat16, 512, 0, false>", 512),
        ((1024, 256), torch.float32, None, "cross_entropy<float, 32, 0, false>", 32),
        ((1024, 50257), torch.bfloat16, None, "cross_entropy<__nv_bfloat16, 512, 0, false>", 512),
        ((1024, 2048), torch.float16, (2053, 1), "cross_entropy<__half, 64, 0, false>", 64),
        ((1024, 3), torch.float16, None, "cross_entropy<__half, 32, 0, false>", 32),
    ],
)
def test_cuda_plan(shape, dtype, strides, entry, block):
    chosen = plan(cross_entropy_op, cuda(shape, dtype, strides), cuda(shape[:1], torch.int64), -100)
    assert chosen["entry"] == entry
    assert (list(chosen["grid"]), list(chosen["block"])) == ([shape[0], 1, 1], [block, 1, 1])


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_sources_compile(arch):
    rows, target = cuda((64,), torch.float32), cuda((64,), torch.int64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = cuda((64, 4096), dtype)
        compiles(cross_entropy_op, (logits, target, -100), arch, "cuda")
        backward = rows, rows, logits, target, rows, rows, -100
        compiles(cross_entropy_backward, (*backward, None), arch, "cuda")
        compiles(cross_entropy_backward, (*backward, logits), arch, "cuda:added")
