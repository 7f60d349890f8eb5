"""What gated activations share, y = a(gate) * up for some function a: implementations, conditions,
and the check of their references.
"""

import torch

import opaq

SAME = ["up.dtype == gate.dtype", "up.shape == gate.shape"]
_CUDA = ["gate.dtype == float32 or gate.dtype == float16 or gate.dtype == bfloat16", *SAME]
_CPU = ["gate.dtype == float32 or gate.dtype == float64", *SAME]
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


def declare(op: opaq.Op, backward: opaq.Op, cuda, cpu, kind: str = "", requires=()) -> None:
    """The implementations of an activation and of its gradient by two files, in which functions
    have the names of the ops. kind: what follows the dtype, and on CUDA the length of a pack, among
    their template arguments. requires: of both."""
    for each, tensors, inputs, more in [
        (op, "y, gate, up", ["gate", "up"], []),
        (
            backward,
            "grad_gate, grad_up, grad_y, gate, up",
            ["grad_y", "gate", "up"],
            _BACKWARD,
        ),
    ]:
        kernel, more = each.name.partition("::")[2], [*more, *requires]
        _declare_cuda(each, kernel, tensors, inputs, cuda, kind, [*_CUDA, *more])
        each.cpu(
            source=cpu,
            entry=f"{kernel}<{{gate.dtype}}{kind}>",
            args=f"{tensors}, gate.numel()",
            requires=[*_CPU, *more],
        )


def _declare_cuda(
    op: opaq.Op,
    kernel: str,
    tensors: str,
    inputs: list[str],
    source,
    kind: str,
    requires: list[str],
) -> None:
    """Three kernels: packs of one long row, packs of strided rows without a copy, single elements
    of one long row.
    """
    rows = "gate.numel() / gate.size(-1)"
    aligned = [f"aligned({name}, 16)" for name in inputs]
    op.cuda(
        name="cuda:packs",
        source=source,
        entry=f"{kernel}<{{gate.dtype}}, {{{_VEC}}}{kind}>",
        grid=f"ceil_div(gate.numel(), 256 * {_VEC})",
        block=256,
        args=f"{tensors}, 1, gate.numel(), 0, 0",
        requires=[*requires, f"gate.numel() % ({_VEC}) == 0", *aligned],
        priority=2,
    )
    op.cuda(
        name="cuda:rows",
        source=source,
        entry=f"{kernel}<{{gate.dtype}}, {{{_VEC}}}{kind}>",
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
        entry=f"{kernel}<{{gate.dtype}}, 1{kind}>",
        grid="ceil_div(gate.numel(), 256)",
        block=256,
        args=f"{tensors}, 1, gate.numel(), 0, 0",
        requires=requires,
    )


def check(op: str, gate: torch.Tensor, up: torch.Tensor) -> None:
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"{op}: gate is {gate.dtype} {tuple(gate.shape)}, up is {up.dtype} "
            f"{tuple(up.shape)}; expected one shape and one dtype: "
            "broadcast or cast the smaller one first"
        )


def refusal(arguments) -> str:
    """`when` of the patterns."""
    gate, up = arguments["gate"], arguments["up"]
    if gate.shape != up.shape:
        return "gate and up have different shapes"
    return "" if gate.dtype == up.dtype else "gate and up have different dtypes"
