"""Gradients of returned logits that are computed only if they are asked for, with the kernels and
the memory of a GPU."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F

Tensor = torch.Tensor
ROWS, COLUMNS, CLASSES = 512, 64, 40_000  # logits of 40 MB in bfloat16, 80 MB in float32


class Model(torch.nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(COLUMNS, device="cuda", dtype=dtype)
        self.head = torch.nn.Linear(COLUMNS, CLASSES, bias=False, device="cuda", dtype=dtype)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.float(), target), logits


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, COLUMNS, device="cuda", dtype=dtype, requires_grad=True)
    return x, torch.randint(CLASSES, (ROWS,), device="cuda")


TOTALS = {
    "the loss": lambda loss, logits: loss,
    "the logits": lambda loss, logits: logits.float().square().mean(),
    "both": lambda loss, logits: loss * 2 + logits[:, 3].float().exp().mean(),
}


def is_lazy(result: Tensor) -> bool:
    return type(result.grad_fn).__name__ == "_GradientBackward"


def compile_with_opaq(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="opaq", fullgraph=True, options=options or None)


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("substitute", ["all", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_eager(
    dtype: torch.dtype, substitute: str, cuda_graphs: bool
) -> None:
    torch.manual_seed(0)
    model = Model(dtype)
    trained = list(model.parameters())
    close = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    for asked in TOTALS:
        torch.compiler.reset()
        options: dict[str, Any] = {"substitute": substitute, "triton.cudagraphs": cuda_graphs}
        compiled = compile_with_opaq(model, **options)
        for what in ("the loss", "the loss", "the loss", asked, asked, "the loss"):
            x, target = operands(dtype)
            torch.compiler.cudagraph_mark_step_begin()
            results = compiled(x, target)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = torch.autograd.grad(TOTALS[what](*results), [x, *trained])
            expected = model(x, target)
            grads = torch.autograd.grad(TOTALS[what](*expected), [x, *trained])
            for ours, theirs in zip((*results, *found), (*expected, *grads), strict=True):
                assert (ours - theirs).float().norm() <= close * theirs.float().norm()


def test_a_step_takes_no_memory_for_them() -> None:
    model, (x, target) = Model(torch.bfloat16), operands(torch.bfloat16)
    peaks = {}
    for lazy in (True, False):
        torch.compiler.reset()
        compiled = compile_with_opaq(model, lazy_gradients=lazy)
        for _ in range(3):
            loss, logits = compiled(x, target)
            assert is_lazy(logits) == lazy
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            loss.backward()
            peaks[lazy] = torch.cuda.max_memory_allocated() - before
            del loss, logits
    logits_bytes = ROWS * CLASSES * 2
    assert peaks[True] <= peaks[False] - logits_bytes * 0.9
