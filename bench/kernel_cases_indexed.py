"""Calls that `opaq bench kernels` measures: sampling, sorting, counting, sums, rows by index."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from opaq import extern_kernels as kernels

from . import model_parts
from .device import Tensors
from .kernel_case import Call, Case, Count, Random, all_sizes, forward, unequal

# With given numbers to draw with in place of PyTorch's generator, so that results can be compared.
SAMPLING: list[tuple[str, dict[str, Any]]] = [
    ("top-k 50", {"top_k": 50}),
    ("top-p 0.9", {"top_p": 0.9}),
    ("top-k 50, top-p 0.9", {"top_k": 50, "top_p": 0.9}),
]

CLASSES = [(1, 32000), (64, 32000), (1, 128256), (64, 128256), (1, 262144), (64, 262144)]


def sampling(random: Random, count: Count, device: str) -> list[Case]:
    found = []
    for what, setting in SAMPLING:
        for m, n in [(64, 128256), (64, 32000), (1, 128256)]:
            m = count(m) if m > 1 else 1

            def make(m: int = m, n: int = n) -> Tensors:
                return [random(m, n) * 3, torch.rand(m, device=device)]

            def op(logits: Any, uniform: Any, setting: Any = setting) -> Any:
                return kernels.sample_with_uniform(logits, uniform, **setting)

            def plain(logits: Any, uniform: Any, setting: Any = setting) -> Any:
                return _plain_tokens(logits, uniform, **setting)

            found.append(Case(f"sample {what} {m} x {n}", make, op, plain, compared=_places))
    return found


def probabilities(random: Random, count: Count, device: str) -> list[Case]:
    """What a token is drawn from, as gpt-fast, code that sorts probabilities, transformers (for
    min-p) and vLLM (with numbers for each row) write it."""

    def kept(logits: Any) -> Any:
        return kernels.sampling_probabilities(logits, 0.8, 50)

    def plain_kept(logits: Any) -> Any:
        scores = _wide(logits) / 0.8
        least = torch.topk(scores, 50)[0].select(-1, -1).unsqueeze(-1)
        return F.softmax(torch.where(scores < least, -float("inf"), scores), dim=-1)

    def likely(logits: Any) -> Any:
        return kernels.sampling_probabilities(logits, 0.8, 0, 0.9)

    def near(logits: Any) -> Any:
        return kernels.sampling_probabilities(logits, 0.8, 0, 1.0, 0.05)

    def plain_near(logits: Any) -> Any:
        scores = _wide(logits) / 0.8
        weights = F.softmax(scores, dim=-1)
        removed = weights < 0.05 * weights.amax(dim=-1, keepdim=True)
        removed.scatter_(-1, torch.topk(weights, 1, dim=-1)[1], False)
        return F.softmax(scores.masked_fill(removed, -float("inf")), dim=-1)

    def of_rows(logits: Any, k: Any, p: Any) -> Any:
        return kernels.sampling_probabilities(logits, row_top_k=k, row_top_p=p)

    def plain_of_rows(logits: Any, k: Any, p: Any) -> Any:
        ascending, index = _wide(logits).sort(dim=-1)
        least = ascending.gather(1, (logits.shape[1] - k).unsqueeze(1))
        ascending = ascending.masked_fill(ascending < least, -float("inf"))
        removed = F.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - p.unsqueeze(1)
        removed[:, -1] = False
        ascending = ascending.masked_fill(removed, -float("inf"))
        return F.softmax(ascending.scatter(-1, index, ascending), dim=-1)

    def near_of_rows(logits: Any, least: Any) -> Any:
        return kernels.sampling_probabilities(logits, row_min_p=least.squeeze(1))

    def plain_near_of_rows(logits: Any, least: Any) -> Any:
        weights = F.softmax(_wide(logits), dim=-1)
        removed = weights < weights.amax(dim=-1, keepdim=True) * least
        return F.softmax(_wide(logits).masked_fill(removed, -float("inf")), dim=-1)

    def numbers_of_rows(m: int) -> Tensors:
        k = torch.randint(10, 200, (m,), device=device)
        return [k, 0.8 + 0.2 * torch.rand(m, device=device)]

    def least_of_rows(m: int) -> Tensors:
        return [0.2 * torch.rand(m, 1, device=device)]

    def no_numbers(m: int) -> Tensors:
        return []

    found = []
    for pattern, op, plain, numbers in (
        ("top_k_probabilities", kept, plain_kept, no_numbers),
        ("top_p_probabilities", likely, model_parts.likeliest, no_numbers),
        ("min_p_probabilities", near, plain_near, no_numbers),
        ("top_k_top_p_of_rows", of_rows, plain_of_rows, numbers_of_rows),
        ("min_p_of_rows", near_of_rows, plain_near_of_rows, least_of_rows),
    ):
        for m, n in CLASSES:
            m = count(m) if m > 1 else 1

            def make(m: int = m, n: int = n, numbers: Any = numbers) -> Tensors:
                return [random(m, n) * 3, *numbers(m)]

            name = f"{pattern} {m} x {n}"
            found.append(
                Case(name, make, op, plain, pattern=pattern, sizes=(m, n), compared=_by_size)
            )
    return found


def tokens(random: Random, count: Count, device: str) -> list[Case]:
    """Draws, of probabilities and of what filters leave. Each call draws other tokens, so what is
    compared is whether they have a probability."""

    def possible(operands: Tensors, drawn: Any) -> Any:
        return operands[0].gather(1, drawn) > 0

    def possible_of_top_p(operands: Tensors, drawn: Any) -> Any:
        return model_parts.likeliest(operands[0]).gather(1, drawn) > 0

    def of_top_p(logits: Any, check: bool = True) -> Any:
        return kernels.sample_multinomial(logits, 0.8, 0, 0.9, check=check).unsqueeze(1)

    found = []
    for pattern, plain, check in (
        ("multinomial", _plain_multinomial, True),
        ("exponential_race", _plain_race, False),
    ):
        for m, n in [*CLASSES, (512, 32000), (4096, 1024), (8192, 64)]:
            m = count(m) if m > 1 else 1
            case = Case(
                f"{pattern} {m} x {n}",
                lambda m=m, n=n: [random(m, n).float().mul(3).softmax(-1)],
                functools.partial(kernels.multinomial, check=check),
                plain,
                pattern=pattern,
                sizes=(m, n),
                dtype="float32",
                compared=possible,
            )
            found.append(case)
    for pattern, draw, check in (
        ("sample_multinomial", _plain_multinomial, True),
        ("sample_exponential_race", _plain_race, False),
    ):
        for m, n in CLASSES:
            m = count(m) if m > 1 else 1
            case = Case(
                f"{pattern} {m} x {n}",
                lambda m=m, n=n: [random(m, n) * 3],
                functools.partial(of_top_p, check=check),
                lambda logits, draw=draw: draw(model_parts.likeliest(logits)),
                pattern=pattern,
                sizes=(m, n),
                compared=possible_of_top_p,
            )
            found.append(case)
    return found


def _plain_multinomial(probabilities: Any) -> Any:
    return torch.multinomial(probabilities, 1)


def _plain_race(probabilities: Any) -> Any:
    """As gpt-fast draws."""
    numbers = torch.empty_like(probabilities).exponential_(1)
    return torch.argmax(probabilities / numbers, dim=-1, keepdim=True)


def penalties(random: Random, count: Count, device: str) -> list[Case]:
    numbers = {"repetition": 1.1, "presence": 0.2, "frequency": 0.1}

    def plain(logits: Any, counts: Any, prompt: Any) -> Any:
        scores = _wide(logits)
        generated = counts > 0
        scores = torch.where(
            generated | prompt,
            torch.where(scores > 0, scores / 1.1, scores * 1.1),
            scores,
        )
        return (scores - (0.2 * generated + 0.1 * counts)).to(logits.dtype)

    def op(logits: Any, counts: Any, prompt: Any) -> Any:
        return kernels.penalize(logits, counts, prompt, **numbers)

    found = []
    for m, n in [(64, 128256), (64, 32000)]:
        m = count(m)

        def make(m: int = m, n: int = n) -> Tensors:
            seen = torch.randint(0, 100, (2, m, n), device=device)
            counts = (seen[0] - 97).clamp(min=0).int()
            return [random(m, n) * 3, counts, seen[1] < 3]

        found.append(Case(f"penalize {m} x {n}", make, op, plain))
    return [*found, *_token_penalties(random, count, device)]


def _token_penalties(random: Random, count: Count, device: str) -> list[Case]:
    """As transformers and vLLM write them, which compute in float32."""

    def op_repetition(logits: Any, prompt: Any) -> Any:
        return kernels.penalize_tokens(logits, None, prompt, 1.1, wide=True)

    def plain_repetition(logits: Any, prompt: Any) -> Any:
        scores = _wide(logits)
        index = prompt.clamp(max=scores.shape[1])
        padded = F.pad(scores, (0, 1))
        score = torch.gather(padded, 1, index)
        score = torch.where(score < 0, score * 1.1, score / 1.1)
        return padded.scatter(1, index, score)[..., : scores.shape[1]].contiguous()

    def op_all(logits: Any, prompt: Any, tokens: Any, *rows: Any) -> Any:
        numbers = (1.0, 0.0, 0.0, *rows, 1, True)
        return kernels.penalize_tokens(logits, tokens, prompt, *numbers)

    def plain_all(logits: Any, prompt: Any, tokens: Any, *rows: Any) -> Any:
        scores = _wide(logits)
        counts = []
        for given in (prompt, tokens):
            whole = torch.zeros(
                scores.shape[0], scores.shape[1] + 1, dtype=torch.int64, device=device
            )
            whole.scatter_add_(1, given, torch.ones_like(given))
            counts.append(whole[:, : scores.shape[1]])
        repetition, presence, frequency = (each.unsqueeze(1) for each in rows)
        repeated = repetition.repeat(1, scores.shape[1])
        factor = torch.where((counts[0] > 0) | (counts[1] > 0), repeated, 1.0)
        scores = scores * torch.where(scores > 0, 1.0 / factor, factor)
        scores = scores - frequency * counts[1]
        return scores - presence * (counts[1] > 0)

    def rows_of(m: int) -> Tensors:
        given = [torch.randint(30000, (m, 128), device=device)]
        return [*given, *(0.1 + torch.rand(3, m, device=device)).unbind()]

    def none_of(m: int) -> Tensors:
        return []

    found = []
    for pattern, op, plain, more in (
        ("repetition_penalty", op_repetition, plain_repetition, none_of),
        ("token_penalties", op_all, plain_all, rows_of),
    ):
        for m, n in CLASSES:
            m = count(m) if m > 1 else 1

            def make(m: int = m, n: int = n, more: Any = more) -> Tensors:
                prompt = torch.randint(30000, (m, 1024), device=device)
                return [random(m, n) * 3, prompt, *more(m)]

            found.append(
                Case(f"{pattern} {m} x {n}", make, op, plain, pattern=pattern, sizes=(m, n))
            )
    return found


def _wide(logits: Any) -> Any:
    return logits if logits.dtype == torch.float64 else logits.float()


def _by_size(operands: Tensors, probabilities: Any) -> Any:
    """Of classes that are equally likely any may be kept, so which is which does not count."""
    return probabilities.sort(dim=-1)[0]


def _places(operands: Tensors, tokens: Any) -> Any:
    """Tokens as numbers to 1: where a number to draw with is at the border of two classes, both
    are right."""
    logits = operands[0]
    return (tokens.double() / logits.size(1)).to(logits.dtype)


def _plain_tokens(logits: Any, uniform: Any, top_k: int = 0, top_p: float = 1.0) -> Any:
    """As transformers' warpers keep classes, and a draw by the sum of probabilities."""
    scores = _wide(logits)
    if top_k:
        least = torch.topk(scores, top_k)[0][:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if top_p < 1:
        ascending, index = torch.sort(scores, stable=True)
        remove = ascending.softmax(1).cumsum(1) <= 1 - top_p
        remove[:, -1:] = False
        scores = scores.masked_fill(remove.scatter(1, index, remove), -torch.inf)
    upto = scores.softmax(1).cumsum(1)
    wanted = uniform.to(upto.dtype).unsqueeze(1) * upto[:, -1:]
    return torch.searchsorted(upto, wanted, right=True).squeeze(1).clamp(max=logits.size(1) - 1)


def mixture(random: Random, count: Count, device: str) -> list[Case]:
    found = []
    for m, experts, k, n in [(8192, 64, 8, 2048), (8192, 128, 8, 2048), (16384, 8, 2, 4096)]:
        m = count(m)

        def gate(m: int = m, experts: int = experts) -> Tensors:
            return [unequal(random, m, experts)]

        def routed(m: int = m, experts: int = experts, k: int = k, n: int = n) -> Tensors:
            weights, _, _, order, position = kernels.moe_route(random(m, experts), k)
            return [random(m * k, n), order, position, weights]

        def route(logits: Any, k: int = k) -> Any:
            return kernels.moe_route(logits, k)

        def plain_route(logits: Any, k: int = k) -> Any:
            return _plain_route(logits, k)

        size = f"{m} x {experts}, {k} of them"
        found.append(Case(f"moe_route {size}", gate, route, plain_route))
        found.append(Case(f"moe_permute {size}, {n} columns", routed, _permute, _plain_permute))
        found.append(Case(f"moe_combine {size}, {n} columns", routed, _combine, _plain_combine))
    return found


def _plain_route(logits: Any, k: int) -> Any:
    weights, experts = torch.topk(torch.softmax(_wide(logits), 1), k)
    flat = experts.flatten()
    order = torch.sort(flat, stable=True)[1]
    position = torch.empty_like(order)
    position[order] = torch.arange(flat.numel(), device=flat.device)
    counts = torch.zeros(logits.size(1), dtype=torch.int64, device=flat.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat))
    return weights / weights.sum(1, keepdim=True), experts, counts, order, position


def _permute(rows: Any, order: Any, position: Any, weights: Any) -> Any:
    return kernels.moe_permute(rows[: weights.size(0)], order, position)


def _plain_permute(rows: Any, order: Any, position: Any, weights: Any) -> Any:
    return rows[: weights.size(0)][order // weights.size(1)]


def _combine(rows: Any, order: Any, position: Any, weights: Any) -> Any:
    return kernels.moe_combine(rows, position, weights)


def _plain_combine(rows: Any, order: Any, position: Any, weights: Any) -> Any:
    each = rows[position].view(*weights.shape, rows.size(1))
    return (each * weights.unsqueeze(2)).sum(1).to(rows.dtype)


def embeddings(random: Random, count: Count, device: str, regions: bool) -> list[Case]:
    """regions: as in kernel_cases.cases."""
    found = []
    shown = [(8192, 128256, 2048, False), (32768, 32000, 1024, False), (8192, 32000, 2048, True)]
    of_region = [(m, 32000, n, False) for m in (512, 8192, 32768) for n in (512, 1024, 4096, 8192)]
    for m, rows, n, equal in all_sizes(shown, of_region, regions):
        m, rows = count(m), count(rows)

        def make(
            m: int = m, rows: int = rows, n: int = n, equal: bool = equal, grad: bool = False
        ) -> Tensors:
            index = torch.randint(rows, (1 if equal else m,), device=device).expand(m).contiguous()
            # Numbers of a few bits, whose sums are exact in any order and any dtype.
            given = [torch.randint(-1, 2, (m, n), device=device).to(random(1).dtype)]
            return [*(given if grad else []), random(rows, n), index]

        def with_grad(make: Callable[..., Tensors] = make) -> Tensors:
            return make(grad=True)

        what = f"{m} of {rows} x {n}" + (", all equal" if equal else "")
        sizes = (m, n)
        for name, makes, call in [
            ("embedding", make, forward),
            ("embedding and gradient", with_grad, _gradient_of_table),
        ]:
            case = Case(f"{name} {what}", makes, _embedding, _plain_embedding, call)
            found.append(dataclasses.replace(case, pattern="embedding", sizes=sizes))
    return found


def scans(count: Count, device: str) -> list[Case]:
    found = []
    for m, n in [(8192, 4096), (64, 128256), (1, 1 << 25)]:
        m, n = (count(m), n) if m > 1 else (1, count(n))

        def make(m: int = m, n: int = n) -> Tensors:
            # Numbers whose sums are exact, in any order.
            return [torch.randint(-4, 5, (m, n), device=device).float()]

        found.append(Case(f"cumsum {m} x {n}", make, kernels.cumsum, _plain_cumsum))
    for bins in (256, 65536):

        def numbers(bins: int = bins) -> Tensors:
            return [torch.randint(bins, (count(1 << 24),), device=device)]

        def op(x: Any, bins: int = bins) -> Any:
            return kernels.bincount(x, bins)

        def plain(x: Any, bins: int = bins) -> Any:
            counts = torch.zeros(bins, dtype=torch.int64, device=x.device)
            return counts.scatter_add(0, x, torch.ones_like(x))

        found.append(Case(f"bincount {count(1 << 24)}, {bins} bins", numbers, op, plain))
    for m, n in [(8192, 4096), (1024, 16384)]:
        m = count(m)

        def unsorted(m: int = m, n: int = n) -> Tensors:
            return [torch.randn(m, n, device=device)]

        found.append(Case(f"sort {m} x {n}", unsorted, kernels.sort, _plain_sort))
    return found


def _plain_sort(x: Any) -> Any:
    return torch.sort(x, dim=-1, stable=True)


def _plain_cumsum(x: Any) -> Any:
    return torch.cumsum(x, -1)


def _embedding(weight: Any, index: Any) -> Any:
    return kernels.embedding(weight, index)


def _plain_embedding(weight: Any, index: Any) -> Any:
    return F.embedding(index, weight)


def _gradient_of_table(function: Call) -> Call:
    """Of the rows with respect to the table, given the gradient of the rows first."""

    @torch.enable_grad()
    def call(grad: Any, weight: Any, index: Any) -> Any:
        weight = weight.detach().requires_grad_()
        result = function(weight, index)
        return result.detach(), *torch.autograd.grad(result, [weight], grad)

    return call
