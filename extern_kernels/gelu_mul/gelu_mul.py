"""GEGLU activation with its gradient: declaration and reference.

gelu_mul(gate, up, approximate="none") -> y = gelu(gate) * up. gate, up: one shape and one floating
dtype; y: the same, row-major, rounded once from float32. approximate: "none", the form with erf, or
"tanh", as torch.nn.functional.gelu. The halves of one projection, `gate, up = h.chunk(2, -1)` for a
2- or 3-dimensional h, are read where they lie. Formula: Shazeer 2020, arXiv:2002.05202.
"""

import math

import torch

import opaq

from .. import gated

_SCALE = 2 * math.sqrt(2 / math.pi)

gelu_mul = opaq.op(
    "opaq_kernels::gelu_mul(Tensor gate, Tensor up, str approximate='none') -> (Tensor y)",
    outputs=opaq.like("gate", may_overwrite=True),
)
gelu_mul_backward = opaq.op(
    "opaq_kernels::gelu_mul_backward(Tensor grad_y, Tensor gate, Tensor up, str approximate) "
    "-> (Tensor grad_gate, Tensor grad_up)",
    outputs={
        "grad_gate": opaq.like("gate", may_overwrite=True),
        "grad_up": opaq.like("up", may_overwrite=True),
    },
)

gated.declare(
    gelu_mul,
    gelu_mul_backward,
    opaq.file("gelu_mul.cu"),
    opaq.file("gelu_mul.cpp"),
    kind=", {1 if approximate == 'tanh' else 0}",
    requires=["approximate == 'none' or approximate == 'tanh'"],
)


def _check(gate: torch.Tensor, up: torch.Tensor, approximate: str) -> None:
    gated.check("gelu_mul", gate, up)
    if approximate not in ("none", "tanh"):
        raise ValueError(
            f"gelu_mul: approximate is {approximate!r}; expected 'none', for the form with erf, or "
            "'tanh'"
        )


@gelu_mul.reference
def gelu_mul_reference(
    gate: torch.Tensor, up: torch.Tensor, approximate: str = "none"
) -> torch.Tensor:
    _check(gate, up, approximate)
    wide = torch.promote_types(gate.dtype, torch.float32)
    v = gate.to(wide)
    return (v * _share(v, approximate) * up.to(wide)).to(gate.dtype)


def _share(v: torch.Tensor, approximate: str) -> torch.Tensor:
    """gelu(v) / v, exact for large negative v, too, where 1 + erf and 1 + tanh have no digits."""
    if approximate == "tanh":
        return torch.sigmoid(_SCALE * (v + 0.044715 * v.pow(3)))
    return 0.5 * torch.erfc(-v * math.sqrt(0.5))


@gelu_mul_backward.reference
def gelu_mul_backward_reference(
    grad_y: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, approximate: str
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(gate, up, approximate)
    wide = torch.promote_types(gate.dtype, torch.float32)
    grad, v, u = grad_y.to(wide), gate.to(wide), up.to(wide)
    share = _share(v, approximate)
    if approximate == "tanh":
        # the density is 0 where the square would be too large
        density = share * (1 - share) * _SCALE * (1 + 3 * 0.044715 * v.square().clamp(max=3000))
    else:
        density = torch.exp(-0.5 * v.square()) / math.sqrt(2 * math.pi)
    grad_gate = grad * u * (share + v * density)
    return grad_gate.to(gate.dtype), (grad * v * share).to(up.dtype)


gelu_mul.backward("opaq_kernels::gelu_mul_backward")
