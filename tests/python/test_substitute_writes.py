"""Places of patterns whose arguments or results are written to afterwards: an op may keep for its
gradient what PyTorch's functions do not need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from opaq import extern_kernels
from opaq.lowering.record import Substitution
from opaq.lowering.substitute import apply

extern_kernels.load_patterns()
Tensor = torch.Tensor
NAMES = ["cross_entropy", "embedding", "layer_norm", "moe_route", "rms_norm"]


def trained(function: Any, *arguments: Tensor) -> list[Substitution]:
    """The places; results and the gradient of the first argument are eager's."""
    compiled = torch.compile(function, backend="opaq", options={"substitute": NAMES})

    def called(call: Any) -> list[Tensor]:
        leaf = arguments[0].detach().requires_grad_()
        results = call(leaf, *arguments[1:])
        with_gradients = [each for each in results if each.requires_grad]
        (gradient,) = torch.autograd.grad(sum((each * 3).sum() for each in with_gradients), leaf)
        return [*(each.detach() for each in results), gradient]

    with apply.collected() as found:
        results = called(compiled)
    torch.testing.assert_close(results, called(function))
    return found


SAME_MEMORY = {
    "a cast to its own dtype": lambda x: x.float(),
    "what is contiguous": lambda x: x.contiguous(),
    "detached": lambda x: x.detach(),
    "its data": lambda x: x.data,
    "its transpose": lambda x: x.T,
    "a diagonal": lambda x: x.diagonal(),
    "strided": lambda x: x.as_strided((3,), (2,)),
}


@pytest.mark.parametrize("seen", SAME_MEMORY.values(), ids=SAME_MEMORY)
def test_an_argument_is_written_in_whichever_way_it_is_seen(seen: Any) -> None:
    def loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits + 1
        mean = F.cross_entropy(logits, target)
        seen(logits).mul_(2)
        return mean, logits.detach()

    (place,) = trained(loss, torch.randn(4, 8), torch.tensor([0, 3, 7, 1]))
    assert "writes to an argument" in place.reason


@pytest.mark.parametrize("seen", [lambda x: x.to(torch.float32), lambda x: x.detach()])
def test_a_result_that_a_write_made_is_written_once_more(seen: Any) -> None:
    """The first write is replaced by a new tensor, of which later views are."""

    def route(logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = torch.topk(F.softmax(logits, dim=-1), 2, dim=-1)
        weights /= weights.sum(dim=-1, keepdim=True)
        again = seen(weights)
        scaled = weights.exp()
        again.mul_(2)
        return scaled, experts

    (place,) = trained(route, torch.randn(6, 16))
    assert "writes to a result" in place.reason


def test_memory_of_other_tensors_is_written() -> None:
    def loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        mean = F.cross_entropy(logits, target)
        counts = torch.zeros(8)
        counts.add_(1)
        copy = logits.detach().clone()
        copy.mul_(2)
        return mean, counts + copy

    (place,) = trained(loss, torch.randn(4, 8), torch.tensor([0, 3, 7, 1]))
    assert place.applied


def test_the_result_of_a_checkpointed_part_is_written() -> None:
    def block(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits * 2
        return F.cross_entropy(logits, target), logits

    def written(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        mean, seen = checkpoint(block, logits, target, use_reentrant=False)
        seen.detach().mul_(2)
        return mean, seen.detach()

    def read(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.zeros(8)
        mean, seen = checkpoint(block, logits, target, use_reentrant=False)
        counts.add_(1)
        return mean, seen.detach() * counts

    arguments = torch.randn(4, 8), torch.tensor([0, 3, 7, 1])
    (place,) = trained(written, *arguments)
    assert place.reason.startswith("the graph that calls this one writes")
    (place,) = trained(read, *arguments)
    assert place.applied


def loss_with_a_penalty(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:  # Mixtral's routers
    loss = F.cross_entropy(x, TARGET)
    loss += 0.1 * weight.sum()
    return loss, x * 2


def weighted_losses(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    losses = F.nll_loss(torch.log_softmax(x, -1), TARGET, reduction="none")
    losses *= weight[:4]
    return losses, losses.sum()


def shifted_norm(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    y = F.layer_norm(x, (8,), weight)
    first = y[0]
    y.add_(x)
    return y, F.rms_norm(x, (8,), weight).mul_(2), first


def scaled_rows(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    rows = F.embedding(TARGET, x)
    rows *= 8**0.5
    rows += weight
    return (rows,)


TARGET = torch.tensor([0, 3, 2, 1])
OF_RESULTS = {
    loss_with_a_penalty: ["cross_entropy"],
    weighted_losses: ["cross_entropy"],
    scaled_rows: ["embedding"],
}


@pytest.mark.parametrize("function", OF_RESULTS)
def test_a_result_is_written_that_nothing_keeps(function: Any) -> None:
    found = trained(function, torch.randn(4, 8), torch.randn(8))
    assert [(each.pattern, each.applied) for each in found] == [
        (name, True) for name in OF_RESULTS[function]
    ]


def test_a_view_of_a_result_stays_one() -> None:
    found = trained(shifted_norm, torch.randn(4, 8), torch.randn(8))
    assert {each.pattern: each.applied for each in found} == {"layer_norm": False, "rms_norm": True}
