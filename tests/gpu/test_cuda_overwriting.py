"""Results over arguments on a GPU: a training step with cross_entropy has no second tensor of the
logits' size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._inductor.utils import run_fw_bw_and_get_code

from opaq.extern_kernels import cross_entropy_mean

TOKENS, WIDTH, CLASSES = 2048, 64, 32000
LOGITS_BYTES = TOKENS * CLASSES * 4  # 250 MiB
WAYS: dict[str, dict[str, Any]] = {
    "inductor": {},
    "opaq": {"backend": "opaq", "options": {"strict": True}},
    "cpp": {"options": {"cpp_wrapper": True}},
}


def head(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy_mean(hidden @ weight.t(), target)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_memory_of_a_training_step(way: str, dynamic: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, device="cuda", requires_grad=True)
    weight = torch.randn(CLASSES, WIDTH, device="cuda", requires_grad=True)
    target = torch.randint(0, CLASSES, (TOKENS,), device="cuda")
    expected = torch.autograd.grad(head(hidden, weight, target), (hidden, weight))
    if way == "cpp":  # the kernel's template arguments depend on it: C++ wrappers compile ahead
        torch._dynamo.mark_static(weight, 0)
    compiled = torch.compile(head, fullgraph=True, dynamic=dynamic, **WAYS[way])

    _, codes = run_fw_bw_and_get_code(lambda: compiled(hidden, weight, target))
    assert "grad_logits is written over logits" in "".join(codes)
    torch.testing.assert_close((hidden.grad, weight.grad), expected)
    hidden.grad = weight.grad = None
    del expected
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    compiled(hidden, weight, target).backward()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert LOGITS_BYTES <= peak < 1.5 * LOGITS_BYTES


@pytest.mark.parametrize("way", ["inductor", "cpp"])
def test_cuda_graphs_of_a_training_step(way: str) -> None:
    """Each replay has the same gradients."""
    options = {"triton.cudagraphs": True, **WAYS[way].get("options", {})}
    compiled = torch.compile(head, fullgraph=True, options=options)
    torch.manual_seed(0)
    hidden = torch.randn(64, WIDTH, device="cuda", requires_grad=True)
    weight = torch.randn(1000, WIDTH, device="cuda", requires_grad=True)
    for step in range(5):
        target = torch.randint(0, 1000, (64,), device="cuda")
        expected = torch.autograd.grad(head(hidden, weight, target), (hidden, weight))
        torch.compiler.cudagraph_mark_step_begin()
        got = torch.autograd.grad(compiled(hidden, weight, target), (hidden, weight))
        torch.testing.assert_close(got, expected, msg=lambda text: f"step {step}: {text}")  # noqa: B023
