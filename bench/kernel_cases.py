"""The calls that `opaq bench kernels` measures: shipped ops, their meaning in PyTorch, shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from opaq import extern_kernels as kernels
from opaq.lowering.substitute.pattern import patterns

from . import measure
from .device import Tensors

Call = Callable[..., Any]


def _forward(function: Call) -> Call:
    return function


@dataclasses.dataclass(frozen=True)
class Case:
    """op, plain: functions of the tensors that `make` gives, with the same results. call: makes of
    such a function, compiled or not, what is measured. pattern: that puts the op into models, if
    there is one; sizes: (rows, columns), as the pattern counts them; written: the positions of
    operands that a call writes whole, and returns after its other results."""

    name: str
    make: Callable[[], Tensors]
    op: Call
    plain: Call
    call: Callable[[Call], Call] = _forward
    pattern: str = ""
    sizes: tuple[int, int] = (0, 0)
    written: tuple[int, ...] = ()

    @property
    def training(self) -> bool:
        """Whether gradients are measured, too."""
        return self.call is not _forward

    def bytes(self, operands: Tensors) -> int:
        """That the call must move at least: its operands and results, each once; a written operand
        is one of both."""
        results = measure.tensors_in(self.call(self.plain)(*operands))
        results = results[: len(results) - len(self.written)]
        return sum(
            each.numel() * each.element_size() for each in (*measure.tensors_in(operands), *results)
        )


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
                _gradients,
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
                    _gradients if training else _forward,
                    pattern="layer_norm",
                    sizes=(m, n),
                )
            )
    for m, n in [(32768, 4096), (8192, 8192), (8192, 2048), (16, 4096)]:
        m = count(m)
        for what, call in [("", _forward), (" and gradients", _gradients)]:
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
        for what, call in [("", _forward), (" and gradient", _loss_and_gradient)]:
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
        *_sampling(random, count, device),
        *_mixture(random, count, device),
        *_sampling(random, count, device),
        *_mixture(random, count, device),
        *_embeddings(random, count, device),
        *_scans(count, device),
    ]


Random = Callable[..., torch.Tensor]


def _paged(random: Random, count: Callable[[int], int], device: str) -> list[Case]:
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


def _softmax(random: Random, count: Callable[[int], int]) -> list[Case]:
    def case(name: str, op: Call, plain: Call, m: int, n: int, training: bool = False) -> Case:
        m = count(m)
        operands = 2 if training else 1
        return Case(
            f"{name}{' and gradients' if training else ''} {m} x {n}",
            lambda: [random(m, n) for _ in range(operands)],
            op,
            plain,
            _gradients if training else _forward,
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


# With given numbers to draw with in place of PyTorch's generator, so that results can be compared.
SAMPLING: list[tuple[str, dict[str, Any]]] = [
    ("top-k 50", {"top_k": 50}),
    ("top-p 0.9", {"top_p": 0.9}),
    ("top-k 50, top-p 0.9", {"top_k": 50, "top_p": 0.9}),
]


def _sampling(random: Random, count: Callable[[int], int], device: str) -> list[Case]:
    found = []
    for what, setting in SAMPLING:
        for m, n in [(64, 128256), (64, 32000), (1, 128256)]:
            m = count(m) if m > 1 else 1

            def make(m: int = m, n: int = n) -> Tensors:
                return [random(m, n) * 3, torch.rand(m, device=device)]

            def op(logits: Any, uniform: Any, setting: Any = setting) -> Any:
                tokens = kernels.sample_with_uniform(logits, uniform, **setting)
                return _places(logits, tokens)

            def plain(logits: Any, uniform: Any, setting: Any = setting) -> Any:
                tokens = _plain_tokens(logits, uniform, **setting)
                return _places(logits, tokens)

            found.append(Case(f"sample {what} {m} x {n}", make, op, plain))
    return found


def _places(logits: Any, tokens: Any) -> Any:
    """Tokens as numbers to 1: where a number to draw with is at the border of two classes, both
    are right."""
    return (tokens.double() / logits.size(1)).to(logits.dtype)


def _plain_tokens(logits: Any, uniform: Any, top_k: int = 0, top_p: float = 1.0) -> Any:
    """As transformers' warpers keep classes, and a draw by the sum of probabilities."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
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


def _mixture(random: Random, count: Callable[[int], int], device: str) -> list[Case]:
    found = []
    for m, experts, k, n in [(8192, 64, 8, 2048), (8192, 128, 8, 2048), (16384, 8, 2, 4096)]:
        m = count(m)

        def gate(m: int = m, experts: int = experts) -> Tensors:
            # No equal logits, of which torch.topk may take any.
            return [random(m, experts).argsort(1).to(random(1).dtype) / 16]

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
    wide = logits if logits.dtype == torch.float64 else logits.float()
    weights, experts = torch.topk(torch.softmax(wide, 1), k)
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


def _embeddings(random: Random, count: Callable[[int], int], device: str) -> list[Case]:
    found = []
    for m, rows, n, equal in [
        (8192, 128256, 2048, False),
        (32768, 32000, 1024, False),
        (8192, 32000, 2048, True),
    ]:
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
            ("embedding", make, _forward),
            ("embedding and gradient", with_grad, _gradient_of_table),
        ]:
            case = Case(f"{name} {what}", makes, _embedding, _plain_embedding, call)
            found.append(dataclasses.replace(case, pattern="embedding", sizes=sizes))
    return found


def _scans(count: Callable[[int], int], device: str) -> list[Case]:
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


def _gradients(function: Call) -> Call:
    """Of the result with respect to all arguments, given the gradient of the result first; of
    several results, each has that gradient."""

    @torch.enable_grad()
    def call(grad: Any, *args: Any) -> Any:
        args = tuple(each.detach().requires_grad_() for each in args)
        result = function(*args)
        results = result if isinstance(result, tuple) else (result,)
        found = torch.autograd.grad(results, args, [grad] * len(results))
        return *(each.detach() for each in results), *found

    return call
