"""The pattern linear_cross_entropy: a linear layer and the loss of its outputs in unmodified
code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from substituting import backend

from opaq.lowering import Substitution
from opaq.lowering.substitute import apply

WIDTH, CLASSES = 16, 50
ASKED = {"substitute": ["all", "linear_cross_entropy"]}


def inputs(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 8, WIDTH, device=device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(CLASSES, WIDTH, device=device, dtype=dtype) / 4).requires_grad_()
    target = torch.randint(0, CLASSES, (3, 8), device=device)
    target[0, :3] = -100
    return hidden, weight, target


def run(function: Callable[..., Any], *given: Any, **options: Any) -> list[Substitution]:
    """What is found; the results and gradients are compared with eager's."""
    torch.compiler.reset()
    compiled = torch.compile(function, backend="opaq", options={**ASKED, **options})
    with apply.collected() as found:
        results = [each(*given) for each in (compiled, function)]
    for got, expected in zip(*(each if isinstance(each, tuple) else (each,) for each in results)):
        torch.testing.assert_close(got, expected)
    if differentiated := [each for each in given[:2] if each.requires_grad]:
        got, expected = (
            torch.autograd.grad(3 * (each[0] if isinstance(each, tuple) else each), differentiated)
            for each in results
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    return [each for each in found if each.pattern == "linear_cross_entropy"]


def transformers(hidden, weight, target):
    logits = F.linear(hidden, weight).float()
    shifted = F.pad(target, (0, 1), value=-100)[..., 1:].contiguous()
    return F.cross_entropy(logits.view(-1, CLASSES), shifted.view(-1), reduction="mean")


def transformers_with_num_items(hidden, weight, target):
    logits = F.linear(hidden, weight).float().view(-1, CLASSES)
    return F.cross_entropy(logits, target.view(-1), reduction="sum") / 7


def older_transformers(hidden, weight, target):
    logits = F.linear(hidden, weight)
    logits, target = logits[..., :-1, :].contiguous(), target[..., 1:].contiguous()
    return torch.nn.CrossEntropyLoss()(logits.view(-1, CLASSES), target.view(-1))


def nano_gpt(hidden, weight, target):
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.view(-1, logits.size(-1)), target.view(-1), ignore_index=-100)


def torchtitan(hidden, weight, target):
    return F.cross_entropy((hidden @ weight.T).flatten(0, 1).float(), target.flatten(0, 1))


def in_rows(hidden, weight, target):
    logits = F.linear(hidden.view(-1, WIDTH), weight, None)  # as nn.Linear calls it
    return F.cross_entropy(logits, target.view(-1), label_smoothing=0.1)


def gemma2(hidden, weight, target):
    logits = F.linear(hidden, weight)
    logits = torch.tanh(logits / 30) * 30
    return F.cross_entropy(logits.view(-1, CLASSES).float(), target.view(-1))


def sliced(hidden, weight, target):
    logits = F.linear(hidden, weight)[:, :-1]
    return F.cross_entropy(logits.reshape(-1, CLASSES), target[:, 1:].reshape(-1))


def classes_second(hidden, weight, target):
    return F.cross_entropy(F.linear(hidden, weight).transpose(1, 2), target)


def transposed(hidden, weight, target):
    logits = torch.matmul(hidden, weight.transpose(0, 1)).view(-1, CLASSES)
    return torch.nn.CrossEntropyLoss()(logits, target.view(-1))


EVERY = [
    transformers,
    transformers_with_num_items,
    older_transformers,
    nano_gpt,
    torchtitan,
    in_rows,
    gemma2,
    sliced,
    classes_second,
    transposed,
]


@pytest.mark.parametrize("function", EVERY)
def test_it_is_found(function: Callable[..., Any], device: str) -> None:
    (place,) = run(function, *inputs(device))
    assert place.applied and place.reason == "it was asked for by name"


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_gradients_that_are_not_needed(needed: tuple[bool, bool], device: str) -> None:
    hidden, weight, target = inputs(device)
    given = hidden.requires_grad_(needed[0]), weight.requires_grad_(needed[1]), target
    (place,) = run(transformers, *given)
    assert place.applied


def test_without_gradients_and_with_dynamic_sizes(device: str) -> None:
    hidden, weight, target = inputs(device)
    (place,) = run(transformers, hidden.detach(), weight.detach(), target)
    assert place.applied
    torch.compiler.reset()
    compiled = torch.compile(nano_gpt, backend="opaq", options=ASKED, dynamic=True)
    for rows in (8, 5, 2):
        given = hidden[:, :rows], weight, target[:, :rows].contiguous()
        torch.testing.assert_close(compiled(*given), nano_gpt(*given))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_target_counts(reduction: str, device: str) -> None:
    hidden, weight, target = inputs(device)

    def loss(hidden, weight, target):
        logits = F.linear(hidden, weight).view(-1, CLASSES)
        return F.cross_entropy(logits, target.view(-1), reduction=reduction)

    given = hidden.detach(), weight.detach(), torch.full_like(target, -100)
    torch.compiler.reset()
    got = torch.compile(loss, backend="opaq", options=ASKED)(*given)
    torch.testing.assert_close(got, loss(*given), equal_nan=True)


def test_a_weight_of_columns(device: str) -> None:
    hidden, weight, target = inputs(device)

    def loss(hidden, columns, target):
        return F.cross_entropy((hidden @ columns).view(-1, CLASSES), target.view(-1))

    (place,) = run(loss, hidden, weight.detach().t().contiguous().requires_grad_(), target)
    assert place.applied


def test_it_is_used_only_where_it_is_asked_for() -> None:
    (place,) = run(transformers, *inputs(), substitute=["all"])
    assert not place.applied
    assert place.reason == "it takes less memory but no less time: ask for it by name"


def returns_logits(hidden, weight, target):
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.view(-1, CLASSES), target.view(-1)), logits


def returns_rows(hidden, weight, target):
    rows = F.linear(hidden, weight).view(-1, CLASSES)
    return F.cross_entropy(rows, target.view(-1)), rows


def returns_wide_logits(hidden, weight, target):  # transformers
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits.view(-1, CLASSES), target.view(-1)), logits


def of_each_row(hidden, weight, target):
    rows = F.linear(hidden, weight).view(-1, CLASSES)
    return F.cross_entropy(rows, target.view(-1), reduction="none").mean()


def in_float32(hidden, weight, target):
    rows = F.linear(hidden.float(), weight.float()).view(-1, CLASSES)
    return F.cross_entropy(rows, target.view(-1))


def of_other_rows(hidden, weight, target):
    return F.cross_entropy(F.linear(hidden, weight).view(-1, 2 * CLASSES), target.view(-1)[::2])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (returns_logits, "is used elsewhere"),
        (returns_rows, "is used elsewhere"),
        (returns_wide_logits, "is used elsewhere"),
        (of_each_row, "the loss is not reduced"),
        (in_float32, "is computed in another dtype than it is given in (bfloat16 and float"),
        (of_other_rows, "a row of the loss is not a row of the linear layer's outputs"),
    ],
)
def test_other_places_are_left(function: Callable[..., Any], reason: str) -> None:
    dtype = torch.bfloat16 if function is in_float32 else torch.float32
    given = [each.detach() for each in inputs(dtype=dtype)]
    (place,) = run(function, *given)
    assert not place.applied and reason in place.reason


@pytest.mark.parametrize("cap", [-30.0, float("inf")])
def test_a_softcap_that_the_op_does_not_take_is_left(cap: float) -> None:
    def loss(hidden, weight, target):
        logits = torch.tanh(F.linear(hidden.detach(), weight.detach()) / cap) * cap
        return F.cross_entropy(logits.view(-1, CLASSES), target.view(-1))

    torch.compiler.reset()
    compiled = torch.compile(loss, backend="opaq", options=ASKED)
    with apply.collected() as found:
        got = compiled(*inputs())
    torch.testing.assert_close(got, loss(*inputs()), equal_nan=True)
    (place,) = [each for each in found if each.pattern == "linear_cross_entropy"]
    assert not place.applied and place.reason == "the softcap is not a number above 0"


def test_gradients_of_gradients_inside_the_model(device: str) -> None:
    def penalized(hidden, weight, target):
        loss = gemma2(hidden, weight, target)
        (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
        return loss + grad.square().sum()

    hidden, weight, target = inputs(device)
    compiled = torch.compile(penalized, backend=backend("linear_cross_entropy"))
    with apply.collected() as found:
        got, expected = (
            torch.autograd.grad(each(hidden, weight, target), (hidden, weight))
            for each in (compiled, penalized)
        )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert all(each.applied for each in found)


def test_gradients_of_gradients_of_a_compiled_loss_are_an_error() -> None:
    """The same as of Inductor, which has none either; they were taken for zeros."""

    def loss_of_rows(hidden, weight, target):
        return F.cross_entropy(F.linear(hidden, weight), target)

    def errors(**compiled_by) -> list[str]:
        hidden, weight, target = inputs()
        hidden, target = hidden.detach().view(-1, WIDTH).requires_grad_(), target.view(-1)
        torch.compiler.reset()
        compiled = torch.compile(loss_of_rows, **compiled_by)
        with torch._functorch.config.patch(donated_buffer=False):
            loss = compiled(hidden, weight, target)
            gradients = torch.autograd.grad(loss, (hidden, weight), create_graph=True)
        found = []
        for each in gradients:
            for given in (hidden, weight):
                with pytest.raises(RuntimeError) as raised:
                    torch.autograd.grad(each.square().sum(), given, retain_graph=True)
                found.append(str(raised.value))
        return found

    with apply.collected() as places:
        of_opaq = errors(backend="opaq", options=ASKED)
    assert [each.pattern for each in places if each.applied] == ["linear_cross_entropy"]
    assert of_opaq == errors()
    assert any("does not currently support double backward" in each for each in of_opaq)


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_is_left(inside: bool) -> None:
    hidden, weight, target = inputs()

    autocast = torch.autocast("cpu", torch.bfloat16)

    def loss(hidden, weight, target):
        with torch.autocast("cpu", torch.bfloat16):
            return transformers(hidden, weight, target)

    function = loss if inside else transformers
    torch.compiler.reset()
    compiled = torch.compile(function, backend="opaq", options=ASKED)
    with apply.collected() as found, contextlib.nullcontext() if inside else autocast:
        got, expected = compiled(hidden, weight, target), function(hidden, weight, target)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)
    assert not [each for each in found if each.pattern == "linear_cross_entropy" and each.applied]
