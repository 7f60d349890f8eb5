"""SwiGLU activation with its gradient: declaration and reference.

silu_mul(gate, up) -> y = silu(gate) * up. gate, up: one shape and one floating dtype; y: the same,
row-major, rounded once from float32. The halves of one projection, `gate, up = h.chunk(2, -1)` for
a 2- or 3-dimensional h, are read where they lie. Formula: Shazeer 2020, arXiv:2002.05202.
"""

import torch

import opaq

from .. import gated

silu_mul = opaq.op(
    "opaq_kernels::silu_mul(Tensor gate, Tensor up) -> (Tensor y)",
    outputs=opaq.like("gate", may_overwrite=True),
)
silu_mul_backward = opaq.op(
    "opaq_kernels::silu_mul_backward(Tensor grad_y, Tensor gate, Tensor up) "
    "-> (Tensor grad_gate, Tensor grad_up)",
    outputs={
        "grad_gate": opaq.like("gate", may_overwrite=True),
        "grad_up": opaq.like("up", may_overwrite=True),
    },
)

gated.declare(silu_mul, silu_mul_backward, opaq.file("silu_mul.cu"), opaq.file("silu_mul.cpp"))


@silu_mul.reference
def silu_mul_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gated.check("silu_mul", gate, up)
    wide = torch.promote_types(gate.dtype, torch.float32)
    return (torch.nn.functional.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


@silu_mul_backward.reference
def silu_mul_backward_reference(
    grad_y: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    gated.check("silu_mul", gate, up)
    wide = torch.promote_types(gate.dtype, torch.float32)
    grad, v, u = grad_y.to(wide), gate.to(wide), up.to(wide)
    s = torch.sigmoid(v)
    return (grad * u * s * (1 + v * (1 - s))).to(gate.dtype), (grad * v * s).to(up.dtype)


silu_mul.backward("opaq_kernels::silu_mul_backward")
