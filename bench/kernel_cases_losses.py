"""The losses that `opaq bench kernels` measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from opaq import extern_kernels as kernels
from opaq.lowering.substitute.pattern import KEEPS, LARGE, patterns

from .device import Tensors
from .kernel_case import Call, Case, Count, Random, Sizes, all_sizes, forward

PLAIN = [(1024, 32000), (1024, 128256), (8192, 32000), (8192, 128256), (16384, 50257)]
OTHERS = [(1024, 32000), (8192, 32000), (8192, 128256), (8192, 256000)]
WIDEST = 262208  # of Gemma 3
OF_PLAIN = [
    (rows, columns)
    for rows in (128, 1024, 8192)
    for columns in (1000, 4096, 16384, 32000, 50257, 128256, WIDEST)
]
OF_OTHERS = [(rows, columns) for rows in (128, 8192) for columns in (4096, 32000, WIDEST)]


def cases(random: Random, count: Count, device: str, regions: bool) -> list[Case]:
    """regions: as in kernel_cases.cases."""
    found = []
    plain = ("cross_entropy", _cross_entropy, _plain_cross_entropy)
    for pattern, ours, theirs in (plain, *CROSS_ENTROPIES):
        sizes = (PLAIN, OF_PLAIN) if pattern == "cross_entropy" else (OTHERS, OF_OTHERS)
        chosen = all_sizes(*sizes, regions)
        found += _of_pattern(pattern, ours, theirs, chosen, random, count, device)
    for m, n in [(8192, 32000), (8192, 128256), (16384, 50257), (4096, 151936)]:
        m = count(m)
        make = _with_target(random, m, n, device)
        name = f"cross_entropy_mean and gradient {m} x {n}"
        call = _loss_and_gradient
        found.append(Case(name, make, kernels.cross_entropy_mean, _plain_cross_entropy, call))
    for m, width, n in [(4096, 4096, 128256)]:
        m, width = count(m), count(width)
        make = _before_logits(random, m, width, n, device)
        name = f"linear_cross_entropy and gradients {m} x {width} x {n}"
        compiled = torch.compile(kernels.linear_cross_entropy, dynamic=False)
        found += [
            Case(name, make, kernels.linear_cross_entropy, _plain_linear_loss, _loss_and_gradient),
            Case(f"{name}, compiled", make, compiled, _plain_linear_loss, _loss_and_gradient),
        ]
    return found


def _of_pattern(
    pattern: str,
    ours: Call,
    plain: Call,
    sizes: list[Sizes],
    random: Random,
    count: Count,
    device: str,
) -> list[Case]:
    found = []
    for m, n in sizes:
        m = count(m)
        make = _with_target(random, m, n, device)
        form = _form_of_kept(pattern, random(1).dtype, m, n)
        for what, call in [("", forward), (" and gradient", _loss_and_gradient)]:
            name = f"{pattern}{what} {m} x {n}"
            case = Case(name, make, ours, plain, call, pattern, (m, n))
            if what and form:
                found.append(dataclasses.replace(case, form=form))
                two = torch.compile(ours, dynamic=False)
                case = dataclasses.replace(
                    case, name=f"{name}, two launches", op=two, substituted=False
                )
            found.append(case)
    return found


def _form_of_kept(name: str, dtype: torch.dtype, rows: int, classes: int) -> str:
    """That of a pattern which computes the gradient along with the loss where the logits are kept,
    as those that a graph gets are; "" where it does not."""
    pattern, argument = patterns[name], f"{KEEPS}logits"
    logits = torch.empty(rows, classes, dtype=dtype, device="meta")
    if argument not in pattern.arguments or logits.nbytes < LARGE:
        return ""
    return pattern.form({"logits": logits, "reduction": "mean", argument: "given"})


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


def _cross_entropy(logits: Any, target: Any) -> Any:
    return patterns["cross_entropy"].replacement(logits, target)


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


def _capped_cross_entropy_and_logits(logits: Any, target: Any) -> Any:
    return patterns["cross_entropy_softcap_and_logits"].replacement(logits, target, 30.0)


def _plain_capped_cross_entropy_and_logits(logits: Any, target: Any) -> Any:
    capped = torch.tanh(logits / 30.0) * 30.0
    return _plain_cross_entropy(capped, target), capped


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
    (
        "cross_entropy_softcap_and_logits",
        _capped_cross_entropy_and_logits,
        _plain_capped_cross_entropy_and_logits,
    ),
    ("token_log_probability", _token_log_probability, _plain_token_log_probability),
    ("cross_entropy_and_log_sum", _with_z_loss, _plain_with_z_loss),
]


def _loss_and_gradient(loss_of: Call) -> Call:
    """Of the loss, the first result, with respect to all arguments but the last one, the target."""

    @torch.enable_grad()
    def call(*args: Any) -> Any:
        inputs = [each.detach().requires_grad_() for each in args[:-1]]
        results = loss_of(*inputs, args[-1])
        loss, *more = results if isinstance(results, tuple) else (results,)
        kept = [each.detach() for each in (loss, *more)]
        return *kept, *torch.autograd.grad(loss, inputs)

    return call
