"""The calls of rotary position embedding that `opaq bench kernels` measures."""

from __future__ import annotations

from typing import Any

import torch

from opaq import extern_kernels as kernels
from opaq.lowering.substitute.pattern import patterns

from . import model_parts
from .device import Tensors
from .kernel_case import Call, Case, Count, Random, forward

SIZES = [(4, 4096), (64, 1)]  # batch, tokens
HEADS, KV_HEADS, WIDTH = 32, 8, 128


def cases(random: Random, count: Count, device: str) -> list[Case]:
    return [*_forms(random, count, device), *_paged(random, count, device)]


# ---- forms of the pattern ------------------------------------------------------------------------


def _llama(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    return model_parts.rotated(q, cos, sin), model_parts.rotated(k, cos, sin)


def _cohere(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    def rotated(x: Any) -> Any:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * cos + turned * sin

    return rotated(q), rotated(k)


def _gpt_oss(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    def rotated(x: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    return rotated(q), rotated(k)


def _deepseek(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    def rotated(x: Any) -> Any:
        first, second = x[..., ::2], x[..., 1::2]
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    return rotated(q), rotated(k)


def _nanochat(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    def rotated(x: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos + second * sin, first * (-sin) + second * cos], dim=-1)

    return rotated(q), rotated(k)


def _gpt_fast(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    def rotated(x: Any) -> Any:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        parts = first * cos - second * sin, second * cos + first * sin
        return torch.stack(parts, dim=-1).flatten(-2)

    return rotated(q), rotated(k)


def _in_float32(function: Call) -> Call:
    """With float32 tables, as FLUX and vision towers have them."""

    def call(q: Any, k: Any, *tables: Any) -> Any:
        wide = [each if each.dtype == torch.float64 else each.float() for each in (q, k)]
        return tuple(each.to(q.dtype) for each in function(*wide, *tables))

    return call


def _meta_llama(q: Any, k: Any, angles: Any) -> Any:
    def rotated(x: Any) -> Any:
        wide = x if x.dtype == torch.float64 else x.float()
        turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * angles
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)

    return rotated(q), rotated(k)


_TABLE_NAMES = {"cos and sin": ("cos", "sin"), "cos and sin of pairs": ("half_cos", "half_sin")}
_FORMS: list[tuple[str, Call]] = [
    ("halves, cos and sin, heads first", _llama),
    ("neighbours, cos and sin, heads first", _cohere),
    ("halves, cos and sin of pairs, heads first", _gpt_oss),
    ("halves, cos and sin of pairs, tokens first", _gpt_oss),
    ("halves, cos and sin of pairs, tokens first, backwards", _nanochat),
    ("neighbours into halves, cos and sin of pairs, heads first", _deepseek),
    ("neighbours, cos and sin of pairs, tokens first", _gpt_fast),
    ("neighbours, complex numbers, tokens first, in float32", _meta_llama),
    ("halves, cos and sin, heads first, in float32", _in_float32(_llama)),
    ("neighbours, cos and sin of pairs, heads first, in float32", _in_float32(_gpt_fast)),
]


def _projected(function: Call) -> Call:
    """Where heads come first, a model has views of what projections give, [batch, tokens, heads,
    size], and the gradients go back there."""

    def call(q: Any, k: Any, *tables: Any) -> Any:
        return function(q.transpose(1, 2), k.transpose(1, 2), *tables)

    return call


def _forms(random: Random, count: Count, device: str) -> list[Case]:
    found = []
    forms = dict(_FORMS)
    if random(1).dtype == torch.float32:  # which is what float32 tables are then, too
        forms = {form: plain for form, plain in _FORMS if "in float32" not in form}
        forms["neighbours, complex numbers, tokens first"] = _meta_llama
    for form, plain in forms.items():
        pairing, kind, order, *more = form.split(", ")
        names = _TABLE_NAMES.get(kind, ("angles",))
        fixed = {
            "interleaved": pairing.startswith("neighbours"),
            "apart": pairing.endswith("into halves"),
            "backwards": "backwards" in more,
        }

        def op(q: Any, k: Any, *tables: Any, names: Any = names, fixed: Any = fixed) -> Any:
            given = dict(zip(names, tables, strict=True))
            return patterns["rope"].replacement(q, k, **given, **fixed)

        if order == "heads first":
            op, plain = _projected(op), _projected(plain)
        head = 1 if order == "heads first" else 2
        for batch, length in SIZES:
            length = count(length) if length > 1 else 1

            def make(
                batch: int = batch,
                length: int = length,
                kind: str = kind,
                head: int = head,
                wide: bool = "in float32" in more,
            ) -> Tensors:
                both = [random(batch, length, heads, WIDTH) for heads in (HEADS, KV_HEADS)]
                width = WIDTH if kind == "cos and sin" else WIDTH // 2
                tables = [random(batch, length, width) for _ in range(2)]
                tables = [each.float() for each in tables] if wide else tables
                if kind == "complex numbers":
                    tables = [torch.polar(torch.ones_like(tables[0]), tables[0])]
                return [*both, *(each.unsqueeze(head) for each in tables)]

            name = f"rope of {form} {batch} x {length} x ({HEADS} + {KV_HEADS}) x {WIDTH}"
            sizes = (batch * length * (HEADS + KV_HEADS), WIDTH)
            found.append(Case(name, make, op, plain, forward, "rope", sizes, form))
            if length > 1:
                name = name.replace("rope of", "rope and gradients of")
                make = _with_gradients(make, random, head == 1)
                found.append(Case(name, make, op, plain, _gradients, "rope", sizes, form))
    return found


def _with_gradients(make: Any, random: Random, heads_first: bool) -> Any:
    """Gradients of the results first, row-major."""

    def operands() -> Tensors:
        q, k, *tables = make()
        results = [each.transpose(1, 2) if heads_first else each for each in (q, k)]
        return [*(random(*each.shape) for each in results), q, k, *tables]

    return operands


def _gradients(function: Call) -> Call:
    @torch.enable_grad()
    def call(grad_q: Any, grad_k: Any, q: Any, k: Any, *tables: Any) -> Any:
        both = [each.detach().requires_grad_() for each in (q, k)]
        results = function(*both, *tables)
        found = torch.autograd.grad(results, both, [grad_q, grad_k])
        return *(each.detach() for each in results), *found

    return call


# ---- with a paged cache --------------------------------------------------------------------------


def _paged(random: Random, count: Count, device: str) -> list[Case]:
    """Caches of 16 slots a page that have as many slots as there are tokens, in any order, so that
    a call writes the caches whole."""
    found = []
    for tokens in (64, 16384):
        tokens = count(tokens)
        size = min(16, tokens)  # of a page

        def make(tokens: int = tokens, size: int = size) -> Tensors:
            qkv = random(tokens, HEADS + 2 * KV_HEADS, WIDTH).split([HEADS, KV_HEADS, KV_HEADS], 1)
            tables = [random(tokens, WIDTH) for _ in range(2)]
            caches = [random(tokens // size, size, KV_HEADS, WIDTH) for _ in range(2)]
            return [*qkv, *tables, *caches, torch.randperm(tokens, device=device)]

        name = f"rope_paged {tokens} x ({HEADS} + {KV_HEADS} + {KV_HEADS}) x {WIDTH}"
        found.append(Case(name, make, _rope_paged, _plain_rope_paged, written=(5, 6)))
    return found


def _rope_paged(*operands: Any) -> Any:
    return kernels.rope_paged_(*operands), *operands[5:7]


def _plain_rope_paged(
    q: Any, k: Any, v: Any, cos: Any, sin: Any, k_cache: Any, v_cache: Any, slots: Any
) -> Any:
    q, k = _llama(q, k, cos.unsqueeze(1), sin.unsqueeze(1))
    k_cache.view(-1, *k.shape[1:])[slots] = k
    v_cache.view(-1, *v.shape[1:])[slots] = v
    return q, k_cache, v_cache
