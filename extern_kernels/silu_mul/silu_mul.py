"""SwiGLU activation with its gradient: declaration and reference.

silu_mul(gate, up) -> y = silu(gate) * up. gate, up: one shape and one floating dtype; y: the same,
row-major, rounded once from float32. The halves of one projection, `gate, up = h.chunk(2, -1)` for
a 2- or 3-dimensional h, are read where they lie. Formula: Shazeer 2020, arXiv:2002.05202.
"""

import torch

import opaq

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

SAME = ["up.dtype == gate.dtype", "up.shape == gate.shape"]
_CUDA = ["gate.dtype == float32 or gate.dtype == float16 or gate.dtype == bfloat16", *SAME]
_BACKWARD = ["grad_y.dtype == gate.dtype", "grad_y.shape == gate.shape"]
_VEC = "16 / gate.itemsize"


def strided(name: str) -> list[str]:
    """Requirements that `name` is rows at a constant stride: two-dimensional, or three-dimensional
    with leading dimensions that could be merged.
    """
    return [
        f"{name}.stride(-1) == 1",
        f"{name}.stride(-2) * {name}.itemsize % 16 == 0",
        f"{name}.dim() == 2 or {name}.stride(0) == {name}.size(1) * {name}.stride(1)",
    ]


def _declare_cuda(
    op: opaq.Op, kernel: str, tensors: str, inputs: list[str], requires: list[str]
) -> None:
    """Three kernels: packs of one long row, packs of strided rows without a copy, single elements
    of one long row.
    """
    source = opaq.file("silu_mul.cu")
    rows = "gate.numel() / gate.size(-1)"
    aligned = [f"aligned({name}, 16)" for name in inputs]
    op.cuda(
        name="cuda:packs",
        source=source,
        entry=f"{kernel}<{{gate.dtype}}, {{{_VEC}}}>",
        grid=f"ceil_div(gate.numel(), 256 * {_VEC})",
        block=256,
        args=f"{tensors}, 1, gate.numel(), 0, 0",
        requires=[*requires, f"gate.numel() % ({_VEC}) == 0", *aligned],
        priority=2,
    )
    op.cuda(
        name="cuda:rows",
        source=source,
        entry=f"{kernel}<{{gate.dtype}}, {{{_VEC}}}>",
        grid=[f"ceil_div(gate.size(-1), 256 * {_VEC})", f"min({rows}, 65535)"],
        block=256,
        args=f"{tensors}, {rows}, gate.size(-1), gate.stride(-2), up.stride(-2)",
        requires=[
            *requires,
            "gate.dim() == 2 or gate.dim() == 3",
            "gate.size(-1) > 0",
            f"gate.size(-1) % ({_VEC}) == 0",
            *strided("gate"),
            *strided("up"),
            *aligned,
        ],
        priority=1,
    )
    op.cuda(
        name="cuda:elements",
        source=source,
        entry=f"{kernel}<{{gate.dtype}}, 1>",
        grid="ceil_div(gate.numel(), 256)",
        block=256,
        args=f"{tensors}, 1, gate.numel(), 0, 0",
        requires=requires,
    )


_declare_cuda(silu_mul, "silu_mul", "y, gate, up", ["gate", "up"], _CUDA)
_declare_cuda(
    silu_mul_backward,
    "silu_mul_backward",
    "grad_gate, grad_up, grad_y, gate, up",
    ["grad_y", "gate", "up"],
    [*_CUDA, *_BACKWARD],
)

_CPU = ["gate.dtype == float32 or gate.dtype == float64", *SAME]
silu_mul.cpu(
    source=opaq.file("silu_mul.cpp"),
    entry="silu_mul<{gate.dtype}>",
    args="y, gate, up, y.numel()",
    requires=_CPU,
)
silu_mul_backward.cpu(
    source=opaq.file("silu_mul.cpp"),
    entry="silu_mul_backward<{gate.dtype}>",
    args="grad_gate, grad_up, grad_y, gate, up, gate.numel()",
    requires=[*_CPU, *_BACKWARD],
)


def check(op: str, gate: torch.Tensor, up: torch.Tensor) -> None:
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"{op}: gate is {gate.dtype} {tuple(gate.shape)}, up is {up.dtype} "
            f"{tuple(up.shape)}; expected one shape and one dtype: "
            "broadcast or cast the smaller one first"
        )


@silu_mul.reference
def silu_mul_reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    check("silu_mul", gate, up)
    wide = torch.promote_types(gate.dtype, torch.float32)
    return (torch.nn.functional.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


@silu_mul_backward.reference
def silu_mul_backward_reference(
    grad_y: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    check("silu_mul", gate, up)
    wide = torch.promote_types(gate.dtype, torch.float32)
    grad, v, u = grad_y.to(wide), gate.to(wide), up.to(wide)
    s = torch.sigmoid(v)
    return (grad * u * s * (1 + v * (1 - s))).to(gate.dtype), (grad * v * s).to(up.dtype)


silu_mul.backward("opaq_kernels::silu_mul_backward")
