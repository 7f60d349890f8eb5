"""Calls that `opaq bench kernels` measures: what the patterns of a mixture of experts replace, as
transformers computes it with experts_implementation="grouped_mm"."""

from __future__ import annotations

from typing import Any

import torch

from opaq import extern_kernels as kernels
from opaq.lowering.substitute.pattern import patterns

from .device import Tensors
from .kernel_case import Call, Case, Count, Random, forward, gradients

# experts, of them for a token, columns of its row
KINDS = [(8, 2, 4096), (64, 8, 2048), (128, 8, 2048)]
# experts, groups of them, groups that are kept, of routers by sigmoids: MiniMax-M2, GLM-4.5, Kimi,
# DeepSeek-V3
SCORED = [(256, 0, 0), (128, 1, 1), (384, 1, 1), (256, 8, 4)]


def experts(random: Random, count: Count) -> list[Case]:
    found = []
    for m in (64, 2048, 16384):
        m = count(m)
        for e, groups, kept in SCORED:
            found += [_scored(random, m, e, groups, kept, training) for training in (False, True)]
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


def _scored(random: Random, m: int, e: int, groups: int, kept: int, training: bool) -> Case:
    k, eps, scale = 8, 1e-20, 2.5

    def make() -> Tensors:
        # No equal scores, with the bias neither, of which torch.topk may take any.
        logits = (random(m, e).argsort(1).float() - e / 2) * (8 / e)
        bias = random(e).argsort().remainder(2).float()
        return [*([random(m, k).float()] if training else []), logits, bias]

    def op(logits: Any, bias: Any) -> Any:
        given = (groups, e // groups, e, kept) if groups else (None, None, None, None)
        found = patterns["moe_route_scored"].replacement
        return found(logits, k, bias, *given, -torch.inf, eps, scale)

    def plain(logits: Any, bias: Any) -> Any:
        scores = logits.sigmoid()
        by = scores + bias
        if groups:
            of_group = by.view(-1, groups, e // groups).topk(2, dim=-1)[0].sum(dim=-1)
            best = torch.topk(of_group, k=kept, dim=-1, sorted=False)[1]
            mask = torch.zeros_like(of_group).scatter_(1, best, 1)
            mask = mask.unsqueeze(-1).expand(-1, groups, e // groups).reshape(-1, e)
            by = by.masked_fill(~mask.bool(), -torch.inf)
        experts = torch.topk(by, k, dim=-1)[1]
        weights = scores.gather(1, experts)
        return experts, weights / (weights.sum(dim=-1, keepdim=True) + eps) * scale

    of_groups = f", {kept} of {groups} groups" if groups else ""
    size = f"{m} x {e}, {k} of them{of_groups}" + (" and gradient" if training else "")
    call = _gradient_of_logits if training else forward
    title, form = f"moe_route of transformers by sigmoids, {size}", "sigmoid, bias"
    form += "" if not groups else ", all groups" if kept == groups else ", groups"
    return Case(title, make, op, plain, call, "moe_route_scored", (m, e), form, "float32")


def _gradient_of_logits(function: Call) -> Call:
    """The experts and weights of a router, and the gradient of the logits; the bias has none."""

    @torch.enable_grad()
    def call(grad: Any, logits: Any, bias: Any) -> Any:
        leaf = logits.detach().requires_grad_()
        experts, weights = function(leaf, bias)
        return experts, weights.detach(), *torch.autograd.grad(weights, leaf, grad)

    return call


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
