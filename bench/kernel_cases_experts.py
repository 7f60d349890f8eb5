"""Calls that `opaq bench kernels` measures: what the patterns of a mixture of experts replace, as
transformers computes it with experts_implementation="grouped_mm"."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
import torch.nn.functional as F

from opaq import extern_kernels as kernels
from opaq.lowering.substitute.pattern import patterns

from .device import Tensors
from .kernel_case import Call, Case, Count, Random, forward, gradients, unequal

# experts, of them for a token, columns of its row
KINDS = [(8, 2, 4096), (64, 8, 2048), (128, 8, 2048)]


@dataclasses.dataclass(frozen=True)
class Scored:
    """A router of the pattern "moe_route_scored". kept: of the groups, by the sum of the `best`
    largest scores in each; no groups: 0."""

    experts: int
    k: int
    groups: int = 0
    kept: int = 0
    scoring: str = "sigmoid"
    biased: bool = True
    normalize: bool = True
    best: int = 2

    @property
    def form(self) -> str:
        given = {"groups": self.groups or None, "kept": self.kept, "scoring": self.scoring}
        given |= {"bias": self.biased or None, "normalize": self.normalize}
        return patterns["moe_route_scored"].form(given)

    @property
    def title(self) -> str:
        by = {
            ("sigmoid", True): "sigmoids",
            ("sigmoid", False): "sigmoids without bias",
            ("softmax", True): "softmax with a bias",
            ("softmax", False): "softmax",
            ("sqrt_softplus", True): "roots of softplus",
        }
        return f"moe_route of transformers by {by[self.scoring, self.biased]}"


_SCORES: dict[str, Call] = {
    "sigmoid": torch.sigmoid,
    "softmax": functools.partial(torch.softmax, dim=-1),
    "sqrt_softplus": lambda logits: F.softplus(logits).sqrt(),
}
SCORED = [
    Scored(256, 8),  # MiniMax-M2
    Scored(32, 4),  # LFM2
    Scored(128, 8, groups=1, kept=1),  # GLM-4.5
    Scored(384, 8, groups=1, kept=1),  # Kimi
    Scored(256, 8, groups=8, kept=4),  # DeepSeek-V3
    Scored(32, 4, biased=False),  # LFM2
    Scored(256, 8, biased=False),  # Cohere 2
    Scored(256, 6, scoring="sqrt_softplus"),  # DeepSeek-V4
    Scored(384, 6, scoring="sqrt_softplus"),
    Scored(64, 6, scoring="softmax", normalize=False),  # Ernie 4.5
    Scored(128, 4, groups=1, kept=1, scoring="softmax", biased=False),  # Mistral 4
    # DeepSeek-V2
    Scored(160, 6, 8, 3, scoring="softmax", biased=False, normalize=False, best=1),
]


def experts(random: Random, count: Count) -> list[Case]:
    found = []
    for m in (64, 2048, 16384):
        m = count(m)
        for router in SCORED:
            found += [_scored(random, m, router, training) for training in (False, True)]
        for e in (16, 128):  # Llama 4
            found += [_scores(random, m, e, training) for training in (False, True)]
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
                    found.append(_sum(size, random, m, e, k, n, training))
    return found


def _router(
    pattern: str, title: str, random: Random, m: int, e: int, k: int, training: bool
) -> Case:
    def make() -> Tensors:
        logits = unequal(random, m, e)
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


def _scored(random: Random, m: int, router: Scored, training: bool) -> Case:
    e, k, groups, kept = router.experts, router.k, router.groups, router.kept
    eps, scale = (1e-20, 2.5) if router.normalize else (0.0, 1.0)

    def make() -> Tensors:
        # No equal scores, with the bias neither, of which torch.topk may take any.
        logits = (random(m, e).argsort(1).float() - e / 2) * (8 / e)
        bias = [random(e).argsort().remainder(2).float()] if router.biased else []
        return [*([random(m, k).float()] if training else []), logits, *bias]

    def op(logits: Any, bias: Any = None) -> Any:
        given = (groups, e // groups, e, kept) if groups else (None, None, None, None)
        rule = (-torch.inf, eps, scale, router.scoring, router.normalize, router.best)
        return patterns["moe_route_scored"].replacement(logits, k, bias, *given, *rule)

    def plain(logits: Any, bias: Any = None) -> Any:
        scores = _SCORES[router.scoring](logits)
        by = scores if bias is None else scores + bias
        if groups:
            of_experts = by.view(-1, groups, e // groups)
            two = router.best == 2
            of_group = of_experts.topk(2, -1)[0].sum(-1) if two else of_experts.max(dim=-1)[0]
            best = torch.topk(of_group, k=kept, dim=-1, sorted=False)[1]
            mask = torch.zeros_like(of_group).scatter_(1, best, 1)
            mask = mask.unsqueeze(-1).expand(-1, groups, e // groups).reshape(-1, e)
            by = by.masked_fill(~mask.bool(), -torch.inf)
        weights, experts = torch.topk(by, k, dim=-1)
        if bias is not None or (groups and two):
            weights = scores.gather(1, experts)
        if router.normalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + eps) * scale
        return experts, weights

    of_groups = f", {kept} of {groups} groups" if groups else ""
    size = f"{m} x {e}, {k} of them{of_groups}" + (" and gradient" if training else "")
    call = _gradient_of_logits if training else forward
    title, name = f"{router.title}, {size}", "moe_route_scored"
    return Case(title, make, op, plain, call, name, (m, e), router.form, dtype="float32")


def _scores(random: Random, m: int, e: int, training: bool) -> Case:
    def make() -> Tensors:
        logits = unequal(random, m, e)
        return [*([random(m, e)] if training else []), logits]

    def op(logits: Any) -> Any:
        return patterns["moe_scores"].replacement(logits, 1)

    def plain(logits: Any) -> Any:
        values, experts = torch.topk(logits, 1, dim=1)
        scores = torch.full_like(logits, -torch.inf).scatter_(1, experts, values)
        return torch.sigmoid(scores.to(_wide(logits))).to(logits.dtype)

    size = f"{m} x {e}, 1 of them" + (" and gradient" if training else "")
    call, title = gradients if training else forward, f"moe_scores of transformers, {size}"
    return Case(title, make, op, plain, call, "moe_scores", (m, e))


def _gradient_of_logits(function: Call) -> Call:
    """The experts and weights of a router, and the gradient of the logits; a bias has none."""

    @torch.enable_grad()
    def call(grad: Any, logits: Any, *bias: Any) -> Any:
        leaf = logits.detach().requires_grad_()
        experts, weights = function(leaf, *bias)
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


def _sum(size: str, random: Random, m: int, e: int, k: int, n: int, training: bool) -> Case:
    """Of rows that have their weights already, as torchtitan computes it."""
    title = f"moe_combine of torchtitan, {size}, {n} columns"

    def make() -> Tensors:
        order = kernels.moe_route(random(m, e), k)[3]
        return [*([random(m, n)] if training else []), random(m * k, n), order]

    def op(rows: Any, order: Any) -> Any:
        return patterns["moe_combine"].replacement(rows, order, None, k, n)

    def plain(rows: Any, order: Any) -> Any:
        put = torch.empty_like(rows).index_put((order,), rows)
        return put.view(-1, k, n).sum(dim=1)

    call, form = gradients if training else forward, "no weights"
    return Case(title, make, op, plain, call, "moe_combine", (m * k, n), form)


def _wide(tensor: Any) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _few_bits(random: Random, *shape: int) -> torch.Tensor:
    """Numbers whose sums are exact in any order and any dtype."""
    return random(*shape).mul(2).round().clamp(-2, 2)
