"""opaq.extern_kernels.cross_entropy_mean_kept: against float64 PyTorch, rows that begin at any
element, what its backward pass leaves as it is, and models that return their logits.
"""

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import ARCHS, DTYPES, close, compiles, cuda, plan, refuses
from test_cross_entropy import make, rows_at_any_element
from test_cross_entropy_extras import EXTRAS
from test_cross_entropy_mean import PLAIN, exact
from torch._inductor.utils import run_and_get_code, run_fw_bw_and_get_code

from opaq.extern_kernels import cross_entropy_mean_kept as op
from opaq.extern_kernels import cross_entropy_mean_kept_backward as backward
from opaq.lowering.substitute import apply


def check(logits, target, extras=PLAIN, ignore_index=-100):
    wide_loss, wide_grad = exact(logits, target, extras, ignore_index)
    for aligned_rows in (False, True):
        loss, *sums, kept = op(logits, target, aligned_rows, ignore_index, *extras)
        assert (loss.shape, loss.dtype) == ((), torch.promote_types(logits.dtype, torch.float32))
        assert (kept.dtype, kept.shape, kept.stride(1)) == (logits.dtype, logits.shape, 1)
        columns = logits.size(1)
        if aligned_rows and columns * logits.itemsize % 16:
            expected = -(-columns * logits.itemsize // 128) * 128 // logits.itemsize
        else:
            expected = columns
        assert logits.size(0) < 2 or kept.stride(0) == expected
        close(loss, wide_loss, scale=2)
        close(kept, wide_grad, scale=2)
        for factor in (1.0, -0.37):
            grad_loss = torch.full_like(loss, factor)
            grad = backward(grad_loss, kept, logits, target, *sums, None, ignore_index, *extras)
            assert grad.stride() == kept.stride()
            close(grad, wide_grad * factor, scale=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (30, 4096), (2500, 25), (3, 50257), (4, 30522)])
def test_values(shape, dtype, device):
    check(*make(shape, dtype, device, ignored=shape[0] > 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 7, 8, 9, 257, 263, 4099, 40001])
def test_rows_begin_at_any_element(classes, dtype, device):
    for logits, target in rows_at_any_element(5, classes, dtype, device):
        check(logits, target)


@pytest.mark.parametrize("extras", EXTRAS)
def test_label_smoothing_z_loss_and_softcap(extras, device):
    check(*make((30, 53), torch.float32, device), extras)


def test_ignored_rows_and_targets_with_a_stride(device):
    logits, _ = make((40, 9), torch.float32, device)
    targets = torch.randint(0, 9, (40, 3), device=device)[:, 1]
    check(logits, targets, ignore_index=3)
    *_, counted, _ = op(logits, targets, False, 3)
    assert counted == (targets != 3).sum()
    loss, *_, counted, kept = op(logits, torch.full_like(targets, 3), False, 3)
    assert loss.isnan() and counted == 0 and (kept == 0).all()


def test_another_gradient_is_added_and_rounded_once(device):
    logits, target = make((12, 1031), torch.bfloat16, device)
    loss, *sums, kept = op(logits, target, True)
    _, wide = exact(logits, target)
    for offset in (0, 1):  # with rows aligned as those of the logits, and otherwise
        flat = torch.randn(12 * 1031 + 1, device=device).to(logits.dtype) / 100
        added = flat[offset : offset + 12 * 1031].view(12, 1031)
        grad = backward(torch.ones_like(loss), kept, logits, target, *sums, added)
        different = (grad != (wide + added.double()).to(grad.dtype)).double().mean()
        assert different < 0.01  # 0.1 where it is rounded twice


@pytest.mark.parametrize("rows", [6, 2500])  # more than blocks, too
def test_what_was_kept_is_left_as_it_is_where_nothing_is_left_to_do(rows, device):
    """In its memory, which compiled graphs give: shown by something else in place of it."""
    logits, target = make((rows, 33), torch.float32, device, ignored=False)
    loss, *sums, _ = op(logits, target)
    _, exact_grad = exact(logits, target)
    added = torch.zeros_like(logits)
    added[2, 32], added[3, 0], added[4] = 0.5, -torch.inf, -0.0

    def program(grad_loss, something, added):
        return backward(grad_loss, something + 7, logits, target, *sums, added)

    compiled = torch.compile(program, fullgraph=True)
    for factor, given, computed in [
        (1.0, None, []),
        (1.0, added, [2, 3]),
        (2.0, None, range(rows)),
        (2.0, added, range(rows)),
    ]:
        grad = compiled(torch.full_like(loss, factor), torch.zeros_like(logits), given)
        expected = torch.full_like(exact_grad, 7)
        for row in computed:
            expected[row] = factor * exact_grad[row] + (0 if given is None else given[row])
        close(grad, expected, scale=4)


def test_the_loss_is_differentiable(device):
    logits, target = make((12, 43), torch.float32, device)
    loss, *others = op(logits.requires_grad_(), target, True)
    assert not any(each.requires_grad for each in others)
    for factor in (1, 3):
        (found,) = torch.autograd.grad(loss * factor, logits, retain_graph=True)
        close(found, exact(logits, target)[1] * factor)


def test_wrong_calls_are_refused(device, capfd):
    logits, target = make((4, 8), torch.float32, device)
    refuses(lambda: op(logits, target[:3]), "expected [N, V] and [N]", capfd)
    loss, *sums, kept = op(logits, target)
    message = "expected one element each, and the shape of the logits, (4, 8)"
    refuses(lambda: backward(loss, kept[:3], logits, target, *sums), message, capfd)
    refuses(lambda: backward(sums[0], kept, logits, target, *sums), message, capfd)
    refuses(lambda: backward(loss, kept, logits, target, *sums[:2], sums[0]), message, capfd)


def test_opcheck(device):
    logits, target = make((5, 17), torch.float32, device)
    for aligned_rows in (False, True):
        torch.library.opcheck(op, (logits.detach().requires_grad_(), target, aligned_rows))


def test_cuda_plan():
    target = cuda((8192,), torch.int64)
    for aligned_rows, anywhere in ((False, "false"), (True, "true")):
        chosen = plan(op, cuda((8192, 50257), torch.bfloat16), target, aligned_rows)
        assert [step["entry"] for step in chosen["steps"]] == [
            "count_rows",
            f"cross_entropy_with_gradient<__nv_bfloat16, 416, 1, 0, {anywhere}>",
            "mean_of_losses",
        ]


@pytest.mark.parametrize("rows, grid", [(8192, 1024), (1024, 1024), (7, 7)])
def test_cuda_plan_of_the_backward_pass(rows, grid):
    """Few blocks take the rows one after the other, since nothing is left to do as a rule."""
    logits, target = cuda((rows, 4096), torch.bfloat16), cuda((rows,), torch.int64)
    one, of_rows = cuda((), torch.float32), cuda((rows,), torch.float32)
    given = one, logits, logits, target, of_rows, of_rows, one
    for added, entry, blocks in (
        (None, "cross_entropy_backward<__nv_bfloat16, 128, 0, kNothing, true>", grid),
        (logits, "cross_entropy_backward<__nv_bfloat16, 128, 0, kOfLogits, true>", rows),
    ):
        (step,) = plan(backward, *given, added)["steps"]
        assert (step["entry"], step["grid"]) == (entry, [blocks, 1, 1])


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_sources_compile(arch):
    logits, target = cuda((64, 4099), torch.bfloat16), cuda((64,), torch.int64)
    compiles(op, (logits, target, True), arch, "cuda")
    one, rows = cuda((), torch.float32), cuda((64,), torch.float32)
    given = one, logits, logits, target, rows, rows, one
    compiles(backward, (*given, None), arch, "cuda")
    compiles(backward, (*given, logits), arch, "cuda:added")


# ---- in models -----------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Small logits stand for large ones."""
    monkeypatch.setattr(apply, "LARGE", 0)


class Head(torch.nn.Module):
    """transformers: the logits are returned beside the loss."""

    def __init__(self, classes: int, smoothing: float = 0.0) -> None:
        super().__init__()
        self.head = torch.nn.Linear(8, classes)
        self.smoothing = smoothing

    def forward(self, x, target, returned=True):
        logits = self.head(x)
        rows = logits.float().view(-1, logits.shape[-1])
        loss = F.cross_entropy(rows, target.flatten(), label_smoothing=self.smoothing)
        return (loss, logits) if returned else loss


def agrees(compiled, model, x, target, total) -> list[str]:
    """Checks gradients; returns the generated code. total: what is differentiated, of the model's
    results."""
    _, codes = run_fw_bw_and_get_code(lambda: total(*compiled(x, target)))
    found = [each.grad for each in (*model.parameters(), x)]
    expected = torch.autograd.grad(total(*model(x, target)), [*model.parameters(), x])
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-5)
    for each in (*model.parameters(), x):
        each.grad = None
    return codes


TOTALS = {
    "the loss": lambda loss, logits: loss,
    "a part of it": lambda loss, logits: loss / 3,
    "and the logits": lambda loss, logits: loss + (logits[:, :1] ** 2).sum(),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [4096, 4102])
def test_the_gradient_is_computed_with_the_loss(classes, smoothing, small, device):
    model = Head(classes, smoothing).to(device)
    x = torch.randn(2, 3, 8, device=device, requires_grad=True)
    target = torch.randint(classes, (2, 3), device=device)
    name = "cross_entropy_label_smoothing" if smoothing else "cross_entropy"
    options = {"substitute": [name]}
    compiled = torch.compile(model, backend="opaq", options=options, fullgraph=True)
    for total in TOTALS.values():
        forward, back = agrees(compiled, model, x, target, total)
        assert "cross_entropy_mean_kept" in forward
        assert "grad_logits is written over kept" in back
        assert "tangents_2, (6, " in back  # a gradient of the logits, which the op adds


@pytest.mark.parametrize("classes, returned", [(4096, False), (4088, True)])
def test_logits_that_are_not_returned_or_of_few_classes_are_not_kept(classes, returned, small):
    model, x, target = Head(classes), torch.randn(2, 3, 8), torch.randint(classes, (2, 3))
    options = {"substitute": ["cross_entropy"]}
    compiled = torch.compile(model, backend="opaq", options=options)

    def loss():
        results = compiled(x, target, returned)
        return results[0] if returned else results

    _, codes = run_fw_bw_and_get_code(loss)
    assert "cross_entropy_mean_kept" not in "".join(codes)
    assert ("grad_logits is written over logits" in codes[1]) == (not returned)


def test_logits_that_a_graph_gets(small, device):
    """Their gradient is returned to another graph, without gaps."""
    logits, target = make((6, 4102), torch.bfloat16, device)
    options = {"substitute": ["cross_entropy"]}
    compiled = torch.compile(
        lambda x, t: F.cross_entropy(x.float(), t), backend="opaq", options=options
    )
    _, (forward, back) = run_fw_bw_and_get_code(lambda: compiled(logits.requires_grad_(), target))
    assert "cross_entropy_mean_kept" in forward
    assert "grad_logits is written over kept" in back
    assert logits.grad.is_contiguous()
    close(logits.grad, exact(logits, target)[1], scale=2)


def test_classes_in_the_second_dimension(small):
    logits, target = torch.randn(2, 3, 4096, requires_grad=True), torch.randint(4096, (2, 3))

    def program(x, t):
        y = x * 2
        return F.cross_entropy(y.transpose(1, 2), t), y

    options = {"substitute": ["cross_entropy"]}
    compiled = torch.compile(program, backend="opaq", options=options)
    _, (forward, _) = run_fw_bw_and_get_code(lambda: compiled(logits, target)[0])
    assert "cross_entropy_mean_kept" in forward
    torch.testing.assert_close(
        logits.grad, torch.autograd.grad(program(logits, target)[0], logits)[0]
    )


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_other_reductions_are_computed_in_two_launches(reduction, small):
    def program(x, t):
        return F.cross_entropy(x, t, reduction=reduction).sum()

    x, target = torch.randn(6, 4096, requires_grad=True), torch.randint(4096, (6,))
    with apply.collected() as found:
        compiled = torch.compile(program, backend="opaq", options={"substitute": ["cross_entropy"]})
        _, codes = run_fw_bw_and_get_code(lambda: compiled(x, target))
    assert [each.applied for each in found] == [True]
    assert "cross_entropy_mean_kept" not in "".join(codes)
    torch.testing.assert_close(x.grad, torch.autograd.grad(program(x, target), x)[0])


def test_without_gradients_the_loss_alone_is_computed(small):
    compiled = torch.compile(
        Head(4096).requires_grad_(False), backend="opaq", options={"substitute": ["cross_entropy"]}
    )
    x, target = torch.randn(2, 3, 8), torch.randint(4096, (2, 3))
    _, (code,) = run_and_get_code(compiled, x, target)
    assert "opaq_kernels::cross_entropy(" in code
