"""Ops with hidden state: compiled graphs make each call once and in order, as eager does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forms import OPTIONS
from torch._higher_order_ops.effects import _register_effectful_op
from torch._library.effects import EffectType
from torch.utils.checkpoint import checkpoint

import opaq

TICKET = (
    "void ticket(const float* x, long a, float* y, long n) { long v = ++*(long*)a; for "
    "(long i = 0; i < n; ++i) y[i] = x[i] + v; }"
)
TICKETS = """void tickets(const float* x, long a, float* y, float* z, long n) {
  long v = ++*(long*)a; for (long i = 0; i < n; ++i) { y[i] = x[i] + v; z[i] = x[i] * v; } }"""


def ticket(name: str, effects: str | None = "ordered") -> opaq.Op:
    op = opaq.op(
        f"{name}(Tensor x, int address) -> Tensor", outputs=opaq.like("x"), effects=effects
    )
    op.cpu(source=TICKET, entry="ticket", args="x, address, out, x.numel()")
    return op.backward(lambda ctx, grad: (grad, None))


def many_calls(name: str, address: int) -> Callable[[torch.Tensor], torch.Tensor]:
    one = ticket(name)
    two = opaq.op(
        f"{name}_two(Tensor x, int address) -> (Tensor y, Tensor z)",
        outputs={"y": opaq.like("x"), "z": opaq.like("x")},
        effects="ordered",
    )
    two.cpu(source=TICKETS, entry="tickets", args="x, address, y, z, x.numel()")
    two.backward(lambda ctx, grad_y, grad_z: (grad_y + grad_z, None))
    double = opaq.op(f"{name}_double(int address, Tensor x) -> ()", effects="ordered")
    double.cpu(source="void f(long a) { *(long*)a *= 2; }", entry="f", args="address")

    def model(x: torch.Tensor) -> torch.Tensor:
        one(x, address)  # not used, but made
        first = one(x, address)
        double(address, x)
        second = one(x, address)
        y, z = two(x.sin(), address)
        return first - second * 3 + y * z + one(x, address)

    return model


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("form", ["inductor", "opaq", "cpp"])
def test_every_call_is_made_once_and_in_order(unique: str, training: bool, form: str) -> None:
    state = torch.zeros(1, dtype=torch.int64)
    model = many_calls(unique, state.data_ptr())
    compiled = torch.compile(model, fullgraph=True, **OPTIONS[form])
    for start in (0, 5):
        seen = []
        for run in (model, compiled):
            x = torch.linspace(0, 1, 5, requires_grad=training)
            state.fill_(start)
            y = run(x)
            grads = torch.autograd.grad(y.sum(), x) if training else None
            seen.append((y.detach(), grads, state.item()))
        torch.testing.assert_close(seen[1], seen[0])


def test_a_package_makes_every_call_once_and_in_order(unique: str, tmp_path: Path) -> None:
    state, x = torch.zeros(1, dtype=torch.int64), torch.linspace(0, 1, 5)
    call = many_calls(unique, state.data_ptr())

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return call(x)

    path = opaq.package(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    run = torch._inductor.aoti_load_package(str(path))
    seen = []
    for made in (call, run):
        state.fill_(5)
        seen.append((made(x), state.item()))
    torch.testing.assert_close(seen[1], seen[0])


@pytest.mark.skipif(
    torch.__version__.startswith("2.11"),
    reason="Inductor of torch 2.11 fails, with an error, on a checkpointed op with effects",
)
def test_a_checkpoint_does_not_call_again_when_compiled(unique: str) -> None:
    state = torch.zeros(1, dtype=torch.int64)
    op = ticket(unique)
    address = state.data_ptr()
    x = torch.ones(3, requires_grad=True)
    compiled = torch.compile(
        lambda x: checkpoint(lambda x: op(x.sin(), address).sin(), x, use_reentrant=False),
        fullgraph=True,
    )
    compiled(x).sum().backward()
    assert state.item() == 1
    torch.testing.assert_close(x.grad, (x.sin() + 1).cos() * x.cos())


def test_effects_registered_with_torch(unique: str) -> None:
    state = torch.zeros(1, dtype=torch.int64)
    address = state.data_ptr()
    op = ticket(unique, effects=None)
    _register_effectful_op(op.overload, EffectType.ORDERED)
    compiled = torch.compile(lambda x: op(x, address) - op(x, address), fullgraph=True)
    assert compiled(torch.ones(2, requires_grad=True)).tolist() == [-1, -1] and state.item() == 2

    calls = []

    @opaq.custom_op(unique + "_python", mutates_args=())
    def noted(x: torch.Tensor, what: int) -> torch.Tensor:
        calls.append(what)
        return x + len(calls)

    noted.register_fake(lambda x, what: torch.empty_like(x))
    noted.register_autograd(lambda ctx, grad: (grad, None))
    noted.register_effect(EffectType.ORDERED)

    def model(x: torch.Tensor) -> torch.Tensor:
        noted(x, 1)
        return noted(x, 2) - noted(x, 2)

    assert torch.compile(model, fullgraph=True)(torch.ones(2, requires_grad=True)).tolist() == [
        -1,
        -1,
    ] and calls == [1, 2, 2]


def test_declarations_that_contradict(unique: str) -> None:
    with pytest.raises(
        opaq.DeclarationError,
        match=rf'{unique}: got effects=True; expected "random", "ordered", or None for a function '
        r"of its arguments",
    ):
        ticket(unique, effects=True)
    with pytest.raises(
        opaq.DeclarationError,
        match=r'effects="ordered" is not for an op that writes to arguments \(`state`\).*leave '
        r"effects out",
    ):
        opaq.op(f"{unique}(Tensor(a!) state) -> ()", effects="ordered")
    op = ticket(unique + "_kept")
    assert ticket(unique + "_kept") is op
    with pytest.raises(
        opaq.DeclarationError,
        match=r"is declared with effects='ordered'; got None. Give the same, or replace=True",
    ):
        ticket(unique + "_kept", effects=None)
