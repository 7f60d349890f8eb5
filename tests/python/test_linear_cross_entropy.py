"""opaq.extern_kernels.linear_cross_entropy: against PyTorch in float64, groups of rows, gradients
that are not needed, memory, compiled graphs.
"""

import pytest
import torch
from kernel_checks import close
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from opaq.extern_kernels import linear_cross_entropy
from opaq.extern_kernels.cross_entropy.linear_mean import rows_of_group


def make(rows, width, classes, dtype, device):
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(classes, width, device=device) / width**0.5).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (rows,), device=device)
    target[::5] = -100
    return hidden, weight, target


def exact(hidden, weight, target, ignore_index=-100):
    hidden, weight = (each.detach().double().requires_grad_() for each in (hidden, weight))
    logits = hidden @ weight.t()
    loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=ignore_index)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 24, 1000])
def test_values_and_gradients(rows, dtype, device):
    hidden, weight, target = make(24, 32, 50, dtype, device)
    loss = linear_cross_entropy(hidden, weight, target, rows=rows)
    got = torch.autograd.grad(loss * 3, (hidden, weight))
    wide_loss, *wide = exact(hidden, weight, target)
    bounds = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.1, "atol": 4e-3}
    torch.testing.assert_close(loss.double(), wide_loss, **bounds)
    for each, expected in zip(got, wide):
        assert each.dtype == dtype
        torch.testing.assert_close(each.double(), 3 * expected, **bounds)


@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_that_are_not_needed(needed, compiled, device):
    hidden, weight, target = make(24, 32, 50, torch.float32, device)
    hidden.requires_grad_(needed[0])
    weight.requires_grad_(needed[1])
    function = torch.compile(linear_cross_entropy, fullgraph=True) if compiled else None
    loss = (function or linear_cross_entropy)(hidden, weight, target, rows=10)
    wide_loss, *wide = exact(hidden, weight, target)
    close(loss.detach(), wide_loss, scale=8)
    if any(needed):
        loss.backward()
    for each, expected, need in zip((hidden, weight), wide, needed):
        assert (each.grad is not None) == need
        if need:
            torch.testing.assert_close(each.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_second_backward_pass(device):
    hidden, weight, target = make(24, 32, 50, torch.float32, device)
    loss = linear_cross_entropy(hidden, weight, target, rows=10)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    kept = [each.clone() for each in first]
    for each in first:
        each.zero_()  # what was given away belongs to the caller
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), tuple(kept))


def test_an_index_that_is_ignored_and_rows_that_are_not_there(device):
    hidden, weight, target = make(24, 32, 50, torch.float32, device)
    target[target == -100] = 3
    loss = linear_cross_entropy(hidden, weight, target, ignore_index=3, rows=10)
    close(loss.detach(), exact(hidden, weight, target, 3)[0], scale=8)
    loss = linear_cross_entropy(hidden[:0], weight, target[:0])
    (grad,) = torch.autograd.grad(loss, weight)
    assert loss.isnan() and grad.shape == weight.shape  # as PyTorch's mean of nothing


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    compiled = torch.compile(
        lambda h, w, t: linear_cross_entropy(h * 2, w, t, rows=10), fullgraph=True, dynamic=dynamic
    )
    for rows in [24, 37] if dynamic else [24]:
        hidden, weight, target = make(rows, 32, 50, torch.float32, device)
        loss = compiled(hidden, weight, target)
        got = torch.autograd.grad(loss, (hidden, weight))
        eager = linear_cross_entropy(hidden * 2, weight, target, rows=10)
        torch.testing.assert_close(loss, eager)
        expected = torch.autograd.grad(eager, (hidden, weight))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


EXTRAS = {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 3.0}


def exact_with_extras(hidden, weight, target):
    hidden, weight = (each.detach().double().requires_grad_() for each in (hidden, weight))
    logits = 3.0 * torch.tanh(hidden @ weight.t() / 3.0)
    loss = torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
    squares = logits.logsumexp(1).square()
    loss = loss + 1e-2 * squares[target != -100].mean()
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("compiled", [False, True])
def test_label_smoothing_z_loss_and_softcap(compiled, device):
    hidden, weight, target = make(24, 32, 50, torch.float32, device)
    function = torch.compile(linear_cross_entropy) if compiled else linear_cross_entropy
    loss = function(hidden, weight, target, rows=10, **EXTRAS)
    wide_loss, *wide = exact_with_extras(hidden, weight, target)
    close(loss.detach(), wide_loss, scale=8)
    for got, expected in zip(torch.autograd.grad(loss, (hidden, weight)), wide):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        close(function(hidden, weight, target, rows=10, **EXTRAS), wide_loss, scale=8)


@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_graph_has_one_node_for_it(training, device):
    found = []

    def compiler(graph_module, _):
        found.extend(str(n.target) for n in graph_module.graph.nodes if n.op == "call_function")
        return graph_module.forward

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    compiled = torch.compile(linear_cross_entropy, backend=backend, fullgraph=True)
    hidden, weight, target = make(24, 32, 50, torch.float32, device)
    with torch.set_grad_enabled(training):
        loss = compiled(hidden, weight, target, rows=5)
    wide_loss, *wide = exact(hidden, weight, target)
    close(loss.detach(), wide_loss, scale=8)
    if training:
        for got, expected in zip(torch.autograd.grad(loss, (hidden, weight)), wide):
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    assert sum("linear_cross_entropy" in each for each in found) == 1
    assert not [each for each in found if "mm" in each or "cross_entropy_with" in each]


def squares_of_gradients(loss, inputs):
    """Gradients of the loss and of the squares of its gradients."""
    gradients = torch.autograd.grad(loss, inputs, create_graph=True)
    return torch.autograd.grad(loss + sum(each.square().sum() for each in gradients), inputs)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_of_gradients(reduction, device):
    hidden, weight, target = make(24, 32, 50, torch.float64, device)
    how = {"label_smoothing": 0.1, "reduction": reduction}
    loss = linear_cross_entropy(hidden, weight, target, rows=10, softcap=3.0, **how)
    capped = 3.0 * torch.tanh(hidden @ weight.t() / 3.0)
    expected = torch.nn.functional.cross_entropy(capped, target, **how)
    both = (squares_of_gradients(each, (hidden, weight)) for each in (loss, expected))
    torch.testing.assert_close(*both)


def test_numbers_out_of_range_are_refused(device):
    inputs = make(4, 8, 5, torch.float32, device)
    with pytest.raises(ValueError, match="linear_cross_entropy: got softcap=-1; expected"):
        linear_cross_entropy(*inputs, softcap=-1)


def test_no_tensor_of_all_logits(device):
    """The largest tensor that autograd keeps or an operation makes."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for each in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(each, torch.Tensor):
                    largest = max(largest, each.numel())
            return result

    hidden, weight, target = make(64, 8, 100, torch.float32, device)
    with Watch():
        linear_cross_entropy(hidden, weight, target, rows=8).backward()
    assert largest == 8 * 100  # as many as there are values in the weight and its gradient


def test_groups_are_equal_and_five_where_they_are_large():
    found = {n: rows_of_group(n) for n in (0, 1, 800, 1024, 1025, 2048, 4000, 4096, 5000, 16384)}
    assert found == {
        **{0: 1, 1: 1, 800: 800, 1024: 1024, 1025: 513, 2048: 1024},
        **{4000: 800, 4096: 820, 5000: 1000, 16384: 1024},
    }


@pytest.mark.parametrize("rows", [0, 1, 1025])
def test_groups_that_are_not_given(rows, device):
    hidden, weight, target = make(rows, 8, 20, torch.float32, device)
    loss = linear_cross_entropy(hidden, weight, target, reduction="sum")
    (grad,) = torch.autograd.grad(loss, hidden)
    wide = hidden.detach().double().requires_grad_()
    expected = F.cross_entropy(wide @ weight.double().t(), target, reduction="sum")
    (wide_grad,) = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), wide_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("hidden", "weight", "target", "rows", "message"),
    [
        ((2, 3, 4), (5, 4), (2, 3), 9, r"hidden has shape \(2, 3, 4\), weight \(5, 4\) and target"),
        ((3, 4), (4, 5), (3,), 9, r"expected \[N, D\], \[V, D\] and \[N\]"),
        ((3, 4), (5, 4), (2,), 9, r"target \(2,\); expected"),
        ((3, 4), (5, 4), (3,), 0, "got rows=0; expected at least 1"),
    ],
)
def test_other_shapes_are_refused(hidden, weight, target, rows, message):
    given = torch.randn(hidden), torch.randn(weight), torch.zeros(target, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*given, rows=rows)
