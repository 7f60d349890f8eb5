"""gelu_mul and silu_mul on a GPU: in unmodified models, values and gradients no further from
float64 than what Inductor makes, of whole tensors and of halves of one projection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from opaq.lowering.substitute import apply

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
FUNCTIONS: dict[str, tuple[str, Function]] = {
    "erf": ("gelu_mul", lambda gate, up: F.gelu(gate) * up),
    "tanh": ("gelu_mul", lambda gate, up: F.gelu(gate, approximate="tanh") * up),
    "silu": ("silu_mul", lambda gate, up: F.silu(gate) * up),
}


def of_halves(function: Function) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda h: function(*h.chunk(2, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [4096, 4098])
@pytest.mark.parametrize("form", FUNCTIONS)
def test_no_further_from_float64_than_inductor(form: str, width: int, dtype: torch.dtype) -> None:
    name, function = FUNCTIONS[form]
    torch.manual_seed(0)
    h = (torch.randn(300, width, device="cuda") * 4).to(dtype)
    h[0] = torch.linspace(-30, 30, width)
    weights = torch.randn(300, width // 2, device="cuda").to(dtype)

    def results(call: Any, h: torch.Tensor) -> list[torch.Tensor]:
        h = h.detach().requires_grad_()
        y = call(h)
        return [y.detach(), *torch.autograd.grad(y, h, weights.to(y.dtype))]

    def errors(**options: Any) -> list[float]:
        torch.compiler.reset()
        found = results(torch.compile(of_halves(function), **options), h)
        return [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact)]

    exact = results(of_halves(function), h.double())
    theirs = errors()
    with apply.collected() as found:
        ours = errors(backend="opaq", options={"substitute": [name]})
    assert [each.applied for each in found] == [True], found
    half_a_unit = torch.finfo(dtype).eps / 2
    for our, their in zip(ours, theirs):
        assert our <= max(1.05 * their, half_a_unit), (ours, theirs)
