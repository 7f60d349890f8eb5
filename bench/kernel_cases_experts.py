"""Calls that `opaq bench kernels` measures: what the patterns of a mixture of experts replace, as
transformers computes it with experts_implementation="grouped_mm"."""

from __future__ import annotations

from typing import Any

import torch

from opaq import extern_kernels as kernels
from opaq.lowering.substitute.pattern import patterns

from .device import Tensors
from .kernel_case import Case, Count, Random, forward, gradients

# experts, of them for a token, columns of its row
KINDS = [(8, 2, 4096), (64, 8, 2048), (128, 8, 2048)]


def experts(random: Random, count: Count) -> list[Case]:
    found = []
    for m in (64, 2048, 16384):
        m = count(m)
        for e, k, n in KINDS:
            for training in (False, True):
                size = f"{m} x {e}, {k} of them" + (" and gradient" if training else "")
                for pattern, which in [
                    ("moe_route", "normalized"),
                    ("moe_route_unnormalized", "not normalized"),
                ]:
                    title = f"moe_route of transformers, {which}, {size}"
                    found.append(_router(pattern, title, random, m, e, k, training))
                if e != 64:  # measurements are of rows and columns
                    found.append(_permute(size, random, m, e, k, n, training))
                    found.append(_combine(size, random, m, e, k, n, training))
    return found


def _router(
    pattern: str, title: str, random: Random, m: int, e: int, k: int, training: bool
) -> Case:
    def make() -> Tensors:
        # No equal logits, of which torch.topk may take any.
        logits = random(m, e).argsort(1).to(random(1).dtype) / 16
        return [*([random(m, k).to(_wide(logits))] if training else []), logits]

    def op(logits: Any) -> Any:
        return patterns[pattern].replacement(logits, k)

    def plain(logits: Any) -> Any:
        probabilities = torch.softmax(logits, dim=-1, dtype=_wide(logits))
        weights, experts = torch.topk(probabilities, k, dim=-1)
        if pattern == "moe_route":
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, experts

    call = gradients if training else forward
    return Case(title, make, op, plain, call, pattern, (m, e))


def _permute(size: str, random: Random, m: int, e: int, k: int, n: int, training: bool) -> Case:
    title = f"moe_permute of transformers, {size}, {n} columns"

    def make() -> Tensors:
        chosen = random(m, e).argsort(1)[:, :k].contiguous()
        return [*([_few_bits(random, m * k, n)] if training else []), random(m, n), chosen]

    def op(x: Any, chosen: Any) -> Any:
        return patterns["moe_permute"].replacement(x, chosen, k, e, e - 1)[:3]

    def plain(x: Any, chosen: Any) -> Any:
        numbers, order = torch.sort(chosen.reshape(-1), stable=True)
        numbers = numbers.int() if x.is_cuda else numbers.float()
        counts = torch.histc(numbers, bins=e, min=0, max=e - 1)
        return x[order // k], order, torch.cumsum(counts, dim=0, dtype=torch.int32)

    call = gradients if training else forward
    return Case(title, make, op, plain, call, "moe_permute", (m * k, n))


def _combine(size: str, random: Random, m: int, e: int, k: int, n: int, training: bool) -> Case:
    title = f"moe_combine of transformers, {size}, {n} columns"

    def make() -> Tensors:
        weights, _, _, order, _ = kernels.moe_route(random(m, e), k)
        grad = [random(m, n)] if training else []
        return [*grad, random(m * k, n), weights.to(random(1).dtype), order]

    def op(rows: Any, weights: Any, order: Any) -> Any:
        return patterns["moe_combine"].replacement(rows, order, weights, k, n)

    def plain(rows: Any, weights: Any, order: Any) -> Any:
        weighted = rows * weights.reshape(-1)[order].unsqueeze(-1)
        numbers = torch.arange(order.size(0), device=order.device)
        inverse = torch.empty_like(order).index_put((order,), numbers)
        return weighted[inverse].view(m, k, n).sum(dim=1)

    call = gradients if training else forward
    return Case(title, make, op, plain, call, "moe_combine", (m * k, n))


def _wide(tensor: Any) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _few_bits(random: Random, *shape: int) -> torch.Tensor:
    """Numbers whose sums are exact in any order and any dtype."""
    return random(*shape).mul(2).round().clamp(-2, 2)
