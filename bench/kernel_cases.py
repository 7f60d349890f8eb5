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
from . import kernel_cases_rope as rope
from .device import Tensors
from .kernel_case import Call, Case, Random, forward, gradients
from .kernel_cases_experts import experts

Operands = tuple[int, ...]  # 2: a tensor of all rows; 1: one of the length of a row
Sizes = tuple[int, int]


def cases(device: str, rows: float) -> list[Case]:
    """rows: a factor of the numbers of rows, below 1 to try the command."""
    kernels.load_patterns()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def count(number: int) -> int:
        return max(2, int(number * rows))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    def of_shapes(*shapes: tuple[int, ...]) -> Callable[[], Tensors]:
        return lambda: [random(*shape) for shape in shapes]

    found = []
    for name, op, plain, operands, training, sizes in ROWS:
        for m, n in sizes:
            m = count(m)
            found.append(
                Case(
                    f"{name}{' and gradients' if training else ''} {m} x {n}",
                    # a gradient first
                    of_shapes(*[(m, n)] * training, *_shapes(operands, m, n)),
                    op,
                    plain,
                    gradients if training else forward,
                    pattern=name,
                    sizes=(m, n),
                )
            )
    for block in (0, 128):
        each = f"for each {block} values" if block else "for each row"
        for name, op, plain, operands, (m, n) in FLOAT8:
            m = count(m)
            make = of_shapes(*_shapes(operands, m, n))
            ours = functools.partial(op, block=block)
            theirs = functools.partial(plain, block=block)
            found.append(Case(f"{name} {each} {m} x {n}", make, ours, theirs))
    sizes = [(1024, 32000), (1024, 128256), (1024, 256000), (8192, 32000), (8192, 128256)]
    for m, n in [*sizes, (8192, 256000), (16384, 50257)]:
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
    for pattern, ours, plain in CROSS_ENTROPIES:
        for m, n in [(1024, 32000), (8192, 32000), (8192, 128256), (8192, 256000)]:
            m = count(m)
            make = _with_target(random, m, n, device)
            found += [
                Case(f"{pattern}{what} {m} x {n}", make, ours, plain, call, pattern, (m, n))
                for what, call in [("", forward), (" and gradient", _loss_and_gradient)]
            ]
    for m, n in [(8192, 32000), (8192, 128256), (16384, 50257), (4096, 151936)]:
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
        compiled = torch.compile(kernels.linear_cross_entropy, dynamic=False)
        found += [
            Case(name, make, kernels.linear_cross_entropy, _plain_linear_loss, _loss_and_gradient),
            Case(f"{name}, compiled", make, compiled, _plain_linear_loss, _loss_and_gradient),
        ]
    return [
        *found,
        *indexed.sampling(random, count, device),
        *indexed.probabilities(random, count, device),
        *indexed.tokens(random, count, device),
        *indexed.penalties(random, count, device),
        *indexed.mixture(random, count, device),
        *experts(random, count),
        *rope.cases(random, count, device),
        *indexed.embeddings(random, count, device),
        *indexed.scans(count, device),
    ]


def _shapes(operands: Operands, m: int, n: int) -> list[tuple[int, ...]]:
    return [(m, n)[2 - dims :] for dims in operands]


def _plain_softmax(x: Any) -> Any:
    return torch.softmax(x, -1)


def _plain_log_softmax(x: Any) -> Any:
    return torch.log_softmax(x, -1)


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


def _plain_gelu_mul(gate: Any, up: Any) -> Any:
    return F.gelu(gate, approximate="tanh") * up


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


# name, which is that of the pattern, op, its meaning, operands, whether with gradients, sizes
ROWS: list[tuple[str, Call, Call, Operands, bool, list[Sizes]]] = [
    (
        "rms_norm",
        _rms_norm,
        _plain_rms_norm,
        (2, 1),
        False,
        [(32768, 4096), (8192, 16384), (2048, 65536), (65536, 128), (16, 4096)],
    ),
    ("rms_norm", _rms_norm, _plain_rms_norm, (2, 1), True, [(32768, 4096), (8192, 8192)]),
    (
        "layer_norm",
        _layer_norm,
        _plain_layer_norm,
        (2, 1, 1),
        False,
        [(32768, 4096), (65536, 128), (8192, 768), (2048, 65536), (16, 4096)],
    ),
    (
        "layer_norm",
        _layer_norm,
        _plain_layer_norm,
        (2, 1, 1),
        True,
        [(32768, 4096), (8192, 768)],
    ),
    *(
        (
            "add_rms_norm",
            _add_rms_norm,
            _plain_add_rms_norm,
            (2, 2, 1),
            training,
            [(32768, 4096), (8192, 8192), (8192, 2048), (16, 4096)],
        )
        for training in (False, True)
    ),
    (
        "silu_mul",
        _silu_mul,
        _plain_silu_mul,
        (2, 2),
        False,
        [(8192, 14336), (32768, 4096), (16, 14336)],
    ),
    (
        "gelu_mul",
        functools.partial(kernels.gelu_mul, approximate="tanh"),
        _plain_gelu_mul,
        (2, 2),
        False,
        [(8192, 14336), (32768, 4096), (16, 14336)],
    ),
    (
        "softmax",
        kernels.softmax,
        _plain_softmax,
        (2,),
        False,
        [(8192, 4096), (8192, 16384), (4096, 32768), (1024, 128256), (65536, 128)],
    ),
    ("softmax", kernels.softmax, _plain_softmax, (2,), True, [(8192, 4096)]),
    ("log_softmax", kernels.log_softmax, _plain_log_softmax, (2,), False, [(8192, 32000)]),
    # y = v / scale, as the patterns have it
    (
        "rms_norm_float8",
        functools.partial(kernels.rms_norm_float8, rule=1),
        functools.partial(_plain_rms_norm_float8, block=0),
        (2, 1),
        False,
        [(32768, 4096), (8192, 8192), (16, 4096), (16, 8192)],
    ),
    (
        "silu_mul_float8",
        functools.partial(kernels.silu_mul_float8, rule=1),
        functools.partial(_plain_silu_mul_float8, block=0),
        (2, 2),
        False,
        [(8192, 14336), (32768, 4096), (16, 14336), (16, 4096)],
    ),
]
FLOAT8: list[tuple[str, Call, Call, Operands, Sizes]] = [
    ("rms_norm_float8", _rms_norm_float8, _plain_rms_norm_float8, (2, 1), (32768, 4096)),
    ("silu_mul_float8", _silu_mul_float8, _plain_silu_mul_float8, (2, 2), (8192, 14336)),
]


def _cross_entropy(logits: Any, target: Any) -> Any:
    return patterns["cross_entropy"].replacement(logits, target)


def _cross_entropy_mean(logits: Any, target: Any) -> Any:
    return kernels.cross_entropy_mean(logits, target)


def _plain_linear_loss(hidden: Any, weight: Any, target: Any) -> Any:
    return _plain_cross_entropy(hidden @ weight.t(), target)


def _plain_cross_entropy(logits: Any, target: Any) -> Any:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, target)


def _smoothed_cross_entropy(logits: Any, target: Any) -> Any:
    return patterns["cross_entropy_label_smoothing"].replacement(logits, target, 0.1)


def _plain_smoothed_cross_entropy(logits: Any, target: Any) -> Any:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, target, label_smoothing=0.1)


def _capped_cross_entropy(logits: Any, target: Any) -> Any:
    return patterns["cross_entropy_softcap"].replacement(logits, target, 30.0)


def _plain_capped_cross_entropy(logits: Any, target: Any) -> Any:
    return _plain_cross_entropy(torch.tanh(logits / 30.0) * 30.0, target)


def _token_log_probability(logits: Any, target: Any) -> Any:
    found = patterns["token_log_probability"].replacement(logits, target.unsqueeze(-1))
    return found.float().mean()


def _plain_token_log_probability(logits: Any, target: Any) -> Any:
    return F.log_softmax(logits, dim=-1).gather(-1, target.unsqueeze(-1)).float().mean()


def _with_z_loss(logits: Any, target: Any) -> Any:
    loss, log_sum = patterns["cross_entropy_and_log_sum"].replacement(logits, target)
    return loss + 1e-4 * log_sum.square().mean()


def _plain_with_z_loss(logits: Any, target: Any) -> Any:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_sum = torch.logsumexp(wide, -1)
    return F.cross_entropy(wide, target) + 1e-4 * log_sum.square().mean()


CROSS_ENTROPIES: list[tuple[str, Call, Call]] = [
    ("cross_entropy_label_smoothing", _smoothed_cross_entropy, _plain_smoothed_cross_entropy),
    ("cross_entropy_softcap", _capped_cross_entropy, _plain_capped_cross_entropy),
    ("token_log_probability", _token_log_probability, _plain_token_log_probability),
    ("cross_entropy_and_log_sum", _with_z_loss, _plain_with_z_loss),
]


def _loss_and_gradient(loss_of: Call) -> Call:
    """Of the loss with respect to all arguments but the last one, the target."""

    @torch.enable_grad()
    def call(*args: Any) -> Any:
        inputs = [each.detach().requires_grad_() for each in args[:-1]]
        loss = loss_of(*inputs, args[-1])
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    return call
