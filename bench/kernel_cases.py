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

from . import kernel_cases_indexed as indexed
from . import kernel_cases_losses as losses
from . import kernel_cases_rope as rope
from .device import Tensors
from .kernel_case import Call, Case, Sizes, all_sizes, forward, gradients
from .kernel_cases_experts import experts

Operands = tuple[int, ...]  # 2: a tensor of all rows; 1: one of the length of a row


def cases(device: str, rows: float, regions: bool = False, dtype: str = "") -> list[Case]:
    """rows: a factor of the numbers of rows, below 1 to try the command. regions: also the sizes
    between which models are, so that measurements tell where patterns are used. dtype: of what is
    random; "" for bfloat16, on the CPU for float32."""
    kernels.load_patterns()
    dtype = dtype or ("bfloat16" if device == "cuda" else "float32")

    def count(number: int) -> int:
        return max(2, int(number * rows))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=getattr(torch, dtype))

    def of_shapes(*shapes: tuple[int, ...]) -> Callable[[], Tensors]:
        return lambda: [random(*shape) for shape in shapes]

    found = []
    for name, op, plain, operands, training, sizes in ROWS:
        for m, n in all_sizes(sizes, REGIONS.get(name, []), regions):
            m = count(m)
            # a gradient first
            shapes = [*[(m, n)] * training, *_shapes(operands, m, n)]
            case = Case(
                f"{name}{' and gradients' if training else ''} {m} x {n}",
                of_shapes(*shapes),
                op,
                plain,
                gradients if training else forward,
                pattern=name,
                sizes=(m, n),
            )
            found.append(case)
            if name in FLOAT32_WEIGHTS and dtype != "float32":
                found.append(_with_float32_weights(case))
    for block in (0, 128):
        each = f"for each {block} values" if block else "for each row"
        for name, op, plain, operands, (m, n) in FLOAT8:
            m = count(m)
            make = of_shapes(*_shapes(operands, m, n))
            ours = functools.partial(op, block=block)
            theirs = functools.partial(plain, block=block)
            found.append(Case(f"{name} {each} {m} x {n}", make, ours, theirs))
    found += [
        *losses.cases(random, count, device, regions),
        *indexed.sampling(random, count, device),
        *indexed.probabilities(random, count, device),
        *indexed.tokens(random, count, device),
        *indexed.penalties(random, count, device),
        *indexed.mixture(random, count, device),
        *experts(random, count),
        *rope.cases(random, count, device),
        *indexed.embeddings(random, count, device, regions),
        *indexed.scans(count, device),
    ]
    return [each if each.dtype else dataclasses.replace(each, dtype=dtype) for each in found]


def _with_float32_weights(case: Case) -> Case:
    """Of a norm: all but its rows are in float32, as mixed precision keeps them."""
    name, form = case.pattern, "float32 weights"
    return dataclasses.replace(
        case,
        name=case.name.replace(name, f"{name} with {form}", 1),
        make=lambda: [each.float() if each.dim() == 1 else each for each in case.make()],
        plain=FLOAT32_WEIGHTS[name],
        form=form,
    )


def _shapes(operands: Operands, m: int, n: int) -> list[tuple[int, ...]]:
    return [(m, n)[2 - dims :] for dims in operands]


def _plain_softmax(x: Any) -> Any:
    return torch.softmax(x, -1)


def _plain_log_softmax(x: Any) -> Any:
    return torch.log_softmax(x, -1)


def _rms_norm(x: Any, weight: Any) -> Any:
    return kernels.rms_norm(x, weight)[0]


def _add_rms_norm(x: Any, residual: Any, weight: Any) -> Any:
    return kernels.add_rms_norm(x, residual, weight)[:2]


def _plain_add_rms_norm(x: Any, residual: Any, weight: Any) -> Any:
    total = x + residual
    return _plain_rms_norm(total, weight), total


def _plain_rms_norm(x: Any, weight: Any) -> Any:
    return F.rms_norm(x, weight.shape, weight, eps=1e-6)


def _rms_norm_in_float32(x: Any, weight: Any) -> Any:
    return _plain_rms_norm(x.to(weight.dtype), weight).to(x.dtype)


def _add_rms_norm_in_float32(x: Any, residual: Any, weight: Any) -> Any:
    total = x + residual
    return _rms_norm_in_float32(total, weight), total


def _layer_norm_in_float32(x: Any, weight: Any, bias: Any) -> Any:
    return _plain_layer_norm(x.to(weight.dtype), weight, bias).to(x.dtype)


def _l2_norm(x: Any) -> Any:
    return patterns["l2_norm"].replacement(x, 1e-6)


def _plain_l2_norm(x: Any) -> Any:
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


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
    if not block:
        scale = v.abs().amax(1, keepdim=True) / 448
        return (v / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale
    parts = v.view(v.size(0), -1, block)
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
    *(
        ("l2_norm", _l2_norm, _plain_l2_norm, (2,), training, [(131072, 128), (8192, 1024)])
        for training in (False, True)
    ),
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
        [
            *[(8192, 4096), (8192, 16384), (4096, 32768), (1024, 128256), (65536, 128)],
            (16384, 50257),
        ],
    ),
    ("softmax", kernels.softmax, _plain_softmax, (2,), True, [(8192, 4096)]),
    (
        "log_softmax",
        kernels.log_softmax,
        _plain_log_softmax,
        (2,),
        False,
        [(8192, 32000), (16384, 50257)],
    ),
    ("log_softmax", kernels.log_softmax, _plain_log_softmax, (2,), True, [(8192, 32000)]),
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
_NORMS = [(m, n) for m in (512, 8192) for n in (768, 2048, 4096, 16384, 65536)]
_SOFTMAX = [(m, n) for m in (128, 8192) for n in (128, 1024, 4096, 16384, 131072)]
REGIONS: dict[str, list[Sizes]] = {
    "rms_norm": _NORMS,
    "l2_norm": [(m, n) for m in (512, 8192, 131072) for n in (64, 128, 1024)],
    "layer_norm": _NORMS,
    "add_rms_norm": _NORMS,
    "softmax": _SOFTMAX,
    "log_softmax": _SOFTMAX,
}
# what is measured with weights in float32, too
FLOAT32_WEIGHTS: dict[str, Call] = {
    "rms_norm": _rms_norm_in_float32,
    "add_rms_norm": _add_rms_norm_in_float32,
    "layer_norm": _layer_norm_in_float32,
}
FLOAT8: list[tuple[str, Call, Call, Operands, Sizes]] = [
    ("rms_norm_float8", _rms_norm_float8, _plain_rms_norm_float8, (2, 1), (32768, 4096)),
    ("silu_mul_float8", _silu_mul_float8, _plain_silu_mul_float8, (2, 2), (8192, 14336)),
]
