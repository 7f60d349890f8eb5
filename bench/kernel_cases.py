"""The calls that `opaq bench kernels` measures: shipped ops, their meaning in PyTorch, shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from opaq import extern_kernels as kernels
from opaq.lowering.substitute.pattern import patterns

from . import kernel_cases_indexed as indexed
from .device import Tensors
from .kernel_case import Call, Case, Count, Random, forward, gradients


def cases(device: str, rows: float) -> list[Case]:
    """rows: a factor of the numbers of rows, below 1 to try the command."""
    kernels.load_patterns()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def count(number: int) -> int:
        return max(2, int(number * rows))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    def like(shape: tuple[int, ...], number: int) -> Callable[[], Tensors]:
        return lambda: [random(*shape) for _ in range(number)]

    found = []
    for m, n in [(32768, 4096), (8192, 16384), (2048, 65536), (65536, 128), (16, 4096)]:
        m = count(m)
        make = _with_weight(random, (m, n))
        found.append(
            Case(
                f"rms_norm {m} x {n}",
                make,
                _rms_norm,
                _plain_rms_norm,
                pattern="rms_norm",
                sizes=(m, n),
            )
        )
    for m, n in [(32768, 4096), (8192, 8192)]:
        m = count(m)
        make = _with_grad(random, (m, n))
        found.append(
            Case(
                f"rms_norm and gradients {m} x {n}",
                make,
                _rms_norm,
                _plain_rms_norm,
                gradients,
                pattern="rms_norm",
                sizes=(m, n),
            )
        )
    for training, shapes in [(False, LAYER_NORMS), (True, LAYER_NORMS_TRAINED)]:
        for m, n in shapes:
            m = count(m)
            found.append(
                Case(
                    f"layer_norm{' and gradients' if training else ''} {m} x {n}",
                    _normalized(random, (m, n), training),
                    _layer_norm,
                    _plain_layer_norm,
                    gradients if training else forward,
                    pattern="layer_norm",
                    sizes=(m, n),
                )
            )
    for m, n in [(32768, 4096), (8192, 8192), (8192, 2048), (16, 4096)]:
        m = count(m)
        for what, call in [("", forward), (" and gradients", gradients)]:
            found.append(
                Case(
                    f"add_rms_norm{what} {m} x {n}",
                    _with_residual(random, (m, n), bool(what)),
                    _add_rms_norm,
                    _plain_add_rms_norm,
                    call,
                    pattern="add_rms_norm",
                    sizes=(m, n),
                )
            )
    for m, n in [(8192, 14336), (32768, 4096), (16, 14336)]:
        m = count(m)
        make = like((m, n), 2)
        found.append(
            Case(
                f"silu_mul {m} x {n}",
                make,
                _silu_mul,
                _plain_silu_mul,
                pattern="silu_mul",
                sizes=(m, n),
            )
        )
    for block in (0, 128):
        each = f"for each {block} values" if block else "for each row"
        for name, op, plain, m, n in FLOAT8:
            make = (_with_weight if name == "rms_norm_float8" else _pair)(random, (count(m), n))
            ours = functools.partial(op, block=block)
            theirs = functools.partial(plain, block=block)
            found.append(Case(f"{name} {each} {count(m)} x {n}", make, ours, theirs))
    for batch, length in [(4, 4096), (64, 1)]:
        length = count(length) if length > 1 else 1
        make = _heads(random, batch, length)
        found.append(
            Case(
                f"rope {batch} x {length} x (32 + 8) x 128",
                make,
                _rope,
                _plain_rope,
                pattern="rope",
                sizes=(batch * length * (32 + 8), 128),
            )
        )
    found += _paged(random, count, device)
    for m, n in [(1024, 32000), (1024, 128256), (8192, 32000), (8192, 128256), (16384, 50257)]:
        m = count(m)
        make = _with_target(random, m, n, device)
        for what, call in [("", forward), (" and gradient", _loss_and_gradient)]:
            found.append(
                Case(
                    f"cross_entropy{what} {m} x {n}",
                    make,
                    _cross_entropy,
                    _plain_cross_entropy,
                    call,
                    pattern="cross_entropy",
                    sizes=(m, n),
                )
            )
    for m, n in [(8192, 32000), (8192, 128256), (16384, 50257)]:
        m = count(m)
        make = _with_target(random, m, n, device)
        name = f"cross_entropy_mean and gradient {m} x {n}"
        found.append(
            Case(name, make, _cross_entropy_mean, _plain_cross_entropy, _loss_and_gradient)
        )
    for m, width, n in [(4096, 4096, 128256)]:
        m, width = count(m), count(width)
        make = _before_logits(random, m, width, n, device)
        name = f"linear_cross_entropy and gradients {m} x {width} x {n}"
        found.append(
            Case(name, make, kernels.linear_cross_entropy, _plain_linear_loss, _loss_and_gradient)
        )
    return [
        *found,
        *_softmax(random, count),
        *indexed.sampling(random, count, device),
        *indexed.mixture(random, count, device),
        *indexed.sampling(random, count, device),
        *indexed.mixture(random, count, device),
        *indexed.embeddings(random, count, device),
        *indexed.scans(count, device),
    ]


def _paged(random: Random, count: Count, device: str) -> list[Case]:
    """Caches of 16 slots a page that have as many slots as there are tokens, in any order, so that
    a call writes the caches whole."""
    found = []
    for tokens in (64, 16384):
        tokens = count(tokens)
        size = min(16, tokens)  # of a page

        def make(tokens: int = tokens, size: int = size) -> Tensors:
            qkv = random(tokens, 32 + 8 + 8, 128).split([32, 8, 8], 1)
            tables = [random(tokens, 128) for _ in range(2)]
            caches = [random(tokens // size, size, 8, 128) for _ in range(2)]
            return [*qkv, *tables, *caches, torch.randperm(tokens, device=device)]

        name = f"rope_paged {tokens} x (32 + 8 + 8) x 128"
        found.append(Case(name, make, _rope_paged, _plain_rope_paged, written=(5, 6)))
    return found


def _rope_paged(*operands: Any) -> Any:
    return kernels.rope_paged_(*operands), *operands[5:7]


def _plain_rope_paged(
    q: Any, k: Any, v: Any, cos: Any, sin: Any, k_cache: Any, v_cache: Any, slots: Any
) -> Any:
    q, k = _plain_rope(q, k, cos, sin)
    k_cache.view(-1, *k.shape[1:])[slots] = k
    v_cache.view(-1, *v.shape[1:])[slots] = v
    return q, k_cache, v_cache


LAYER_NORMS = [(32768, 4096), (65536, 128), (8192, 768), (2048, 65536), (16, 4096)]
LAYER_NORMS_TRAINED = [(32768, 4096), (8192, 768)]


def _softmax(random: Random, count: Count) -> list[Case]:
    def case(name: str, op: Call, plain: Call, m: int, n: int, training: bool = False) -> Case:
        m = count(m)
        operands = 2 if training else 1
        return Case(
            f"{name}{' and gradients' if training else ''} {m} x {n}",
            lambda: [random(m, n) for _ in range(operands)],
            op,
            plain,
            gradients if training else forward,
            pattern=name,
            sizes=(m, n),
        )

    sizes = [(8192, 4096), (4096, 32768), (1024, 128256), (65536, 128)]
    softmax, log_softmax = kernels.softmax, kernels.log_softmax
    return [
        *[case("softmax", softmax, _plain_softmax, m, n) for m, n in sizes],
        case("softmax", softmax, _plain_softmax, 8192, 4096, training=True),
        case("log_softmax", log_softmax, _plain_log_softmax, 8192, 32000),
    ]


def _plain_softmax(x: Any) -> Any:
    return torch.softmax(x, -1)


def _plain_log_softmax(x: Any) -> Any:
    return torch.log_softmax(x, -1)


def _with_weight(random: Random, shape: tuple[int, int]) -> Callable[[], Tensors]:
    return lambda: [random(*shape), random(shape[1])]


def _pair(random: Random, shape: tuple[int, int]) -> Callable[[], Tensors]:
    return lambda: [random(*shape) for _ in range(2)]


def _with_grad(random: Random, shape: tuple[int, int]) -> Callable[[], Tensors]:
    return lambda: [random(*shape), random(*shape), random(shape[1])]


def _with_residual(random: Random, shape: tuple[int, int], training: bool) -> Callable[[], Tensors]:
    """x, residual, weight; first, if training, the gradient of both results."""
    return lambda: [*(random(*shape) for _ in range(2 + training)), random(shape[1])]


def _normalized(random: Random, shape: tuple[int, int], training: bool) -> Callable[[], Tensors]:
    """x, weight, bias; first, if training, the gradient of the result."""
    shapes = [*[shape] * (1 + training), *[shape[1:]] * 2]
    return lambda: [random(*each) for each in shapes]


def _heads(random: Random, batch: int, length: int) -> Callable[[], Tensors]:
    shapes = [(batch, 32, length, 128), (batch, 8, length, 128), *[(batch, length, 128)] * 2]
    return lambda: [random(*shape) for shape in shapes]


def _with_target(random: Random, rows: int, classes: int, device: str) -> Callable[[], Tensors]:
    return lambda: [random(rows, classes), torch.randint(classes, (rows,), device=device)]


def _before_logits(
    random: Random, rows: int, width: int, classes: int, device: str
) -> Callable[[], Tensors]:
    return lambda: [
        random(rows, width),
        random(classes, width) / width**0.5,
        torch.randint(classes, (rows,), device=device),
    ]


def _rms_norm(x: Any, weight: Any) -> Any:
    return kernels.rms_norm(x, weight)[0]


def _add_rms_norm(x: Any, residual: Any, weight: Any) -> Any:
    return kernels.add_rms_norm(x, residual, weight)[:2]


def _plain_add_rms_norm(x: Any, residual: Any, weight: Any) -> Any:
    total = x + residual
    return _plain_rms_norm(total, weight), total


def _plain_rms_norm(x: Any, weight: Any) -> Any:
    return F.rms_norm(x, weight.shape, weight, eps=1e-6)


def _layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    return kernels.layer_norm(x, weight, bias)[0]


def _plain_layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    return F.layer_norm(x, weight.shape, weight, bias)


def _silu_mul(gate: Any, up: Any) -> Any:
    return kernels.silu_mul(gate, up)


def _plain_silu_mul(gate: Any, up: Any) -> Any:
    return F.silu(gate) * up


def _wide(x: Any) -> Any:
    return x if x.dtype == torch.float64 else x.float()


def _rms_norm_float8(x: Any, weight: Any, block: int) -> Any:
    return kernels.rms_norm_float8(x, weight, block=block)


def _plain_rms_norm_float8(x: Any, weight: Any, block: int) -> Any:
    return _plain_float8(_plain_rms_norm(_wide(x), _wide(weight)), block)


def _silu_mul_float8(gate: Any, up: Any, block: int) -> Any:
    return kernels.silu_mul_float8(gate, up, block)


def _plain_silu_mul_float8(gate: Any, up: Any, block: int) -> Any:
    return _plain_float8(_plain_silu_mul(_wide(gate), _wide(up)), block)


def _plain_float8(v: Any, block: int) -> Any:
    """float8 with a scale for each row, or for each `block` values, column by column."""
    parts = v.view(v.size(0), -1, block or v.size(1))
    scale = parts.abs().amax(2, keepdim=True) / 448
    y = (parts / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return y.view(v.shape), scale.squeeze(2).t().contiguous().t()


FLOAT8: list[tuple[str, Call, Call, int, int]] = [
    ("rms_norm_float8", _rms_norm_float8, _plain_rms_norm_float8, 32768, 4096),
    ("silu_mul_float8", _silu_mul_float8, _plain_silu_mul_float8, 8192, 14336),
]


def _rope(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    return kernels.rope(q, k, cos, sin)


def _plain_rope(q: Any, k: Any, cos: Any, sin: Any) -> Any:
    def half_turned(x: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)

    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + half_turned(q) * sin, k * cos + half_turned(k) * sin


def _cross_entropy(logits: Any, target: Any) -> Any:
    return patterns["cross_entropy"].replacement(logits, target)


def _cross_entropy_mean(logits: Any, target: Any) -> Any:
    return kernels.cross_entropy_mean(logits, target)


def _plain_linear_loss(hidden: Any, weight: Any, target: Any) -> Any:
    return _plain_cross_entropy(hidden @ weight.t(), target)


def _plain_cross_entropy(logits: Any, target: Any) -> Any:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, target)


def _loss_and_gradient(loss_of: Call) -> Call:
    """Of the loss with respect to all arguments but the last one, the target."""

    @torch.enable_grad()
    def call(*args: Any) -> Any:
        inputs = [each.detach().requires_grad_() for each in args[:-1]]
        loss = loss_of(*inputs, args[-1])
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    return call
