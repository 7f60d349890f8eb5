"""Rotary position embedding of queries and keys, with its gradient: declaration and reference.

rope(q, k, cos, sin, interleaved=False) -> (q_out, k_out), as `apply_rotary_pos_emb` in
transformers' Llama. q: [B, H, S, D], k: [B, Hk, S, D], D even, of one floating dtype; Hk may be 0.
q and k may be transposed views, as they come from a projection; results are row-major, rounded once
from float32. Gradients of q and k are row-major as [B, S, H, D], as the projection needs them.

What is rotated against each other are the two halves of the head dimension, as in Llama, or, with
interleaved, its even and its odd elements: neighbours, as in GPT-J and in Su et al. 2021,
arXiv:2104.09864.

cos, sin: [N, S, D], of the elements at their own places, or [N, S, D / 2], of the pairs, as in
gpt-oss; of the dtype of q or float32; of any strides. N is B, 1, or another divisor of B: sequence
b has those of b % N. They get no gradient.
"""

import re

import torch

import opaq


def _tokens_first(x: str) -> list[str]:
    """Strides of x, [B, H, S, D], that are row-major as [B, S, H, D]."""
    row = f"{x}.size(1) * {x}.size(3)"
    return [f"{x}.size(2) * {row}", f"{x}.size(3)", row, "1"]


rope = opaq.op(
    "opaq_kernels::rope(Tensor q, Tensor k, Tensor cos, Tensor sin, "
    "bool interleaved=False) -> (Tensor q_out, Tensor k_out)",
    outputs={
        "q_out": opaq.like("q", may_overwrite=True),
        "k_out": opaq.like("k", may_overwrite=True),
    },
)
rope_backward = opaq.op(
    "opaq_kernels::rope_backward(Tensor grad_q_out, Tensor grad_k_out, Tensor cos, Tensor sin, "
    "bool interleaved=False) -> (Tensor grad_q, Tensor grad_k)",
    outputs={
        result: opaq.like(given, strides=_tokens_first(given), may_overwrite=True)
        for result, given in (("grad_q", "grad_q_out"), ("grad_k", "grad_k_out"))
    },
)


def launch_over_heads(vec: str, heads: str, tokens: str) -> tuple[list[str], list[str]]:
    """(grid, block) of a kernel whose block takes heads of one token, a row of threads for each. A
    thread takes two heads; where tokens are few, one, so that more threads share the work."""
    lanes = f"min(256, q.size(-1) // 2 // ({vec}))"
    each = f"(1 if {tokens} < 1024 else 2)"
    groups = f"max(1, ceil_div({heads}, 2 * (256 // {lanes})))"
    height = f"max(1, ceil_div({heads}, 2 * {groups}))"
    return [tokens, f"min(65535, ceil_div({heads}, {height} * {each}))"], [lanes, height]


_TABLES = ("cos", "sin")


def _requires(*dtypes: str) -> list[str]:
    """Requirements: dtypes, matching shapes, unit strides in the head dimension."""
    return [
        " or ".join(f"q.dtype == {dtype}" for dtype in dtypes),
        "k.dtype == q.dtype and sin.dtype == cos.dtype",
        "q.dim() == 4 and k.dim() == 4 and cos.dim() == 3 and sin.dim() == 3",
        "q.size(3) > 0 and q.size(3) % 2 == 0",
        "k.size(0) == q.size(0) and k.size(2) == q.size(2) and k.size(3) == q.size(3)",
        *(
            f"{name}.size(0) == q.size(0) or {name}.size(0) > 0 and q.size(0) % {name}.size(0) == 0"
            for name in _TABLES
        ),
        "cos.size(1) == q.size(2) and sin.size(1) == q.size(2) and sin.size(2) == cos.size(2)",
        "cos.size(2) == q.size(3) or 2 * cos.size(2) == q.size(3)",
        *(f"{name}.stride(-1) == 1" for name in ("q", "k")),
    ]


_STRIDES = [
    *(f"{name}.stride({i})" for name in ("q", "k") for i in range(3)),
    *(f"{name}.stride({i})" for name in _TABLES for i in range(2)),
]


def _declare(op: opaq.Op, outputs: str, q: str, k: str, backward: str) -> None:
    """q, k: what the arguments of the op are called in the place of q and k."""

    def named(text: str) -> str:
        return re.sub(r"\b[qk]\b", lambda found: {"q": q, "k": k}[found[0]], text)

    def declare_cuda(name: str, vec: str, more: list[str], priority: int) -> None:
        grid, block = launch_over_heads(vec, "(q.size(1) + k.size(1))", "q.size(0) * q.size(2)")
        op.cuda(
            name=name,
            source=opaq.file("rope.cu"),
            entry=named(
                f"rope<{{q.dtype}}, {{q.size(3)}}, {{{vec}}}, {backward}, {{cos.dtype}}, "
                "{interleaved}, {cos.size(2) < q.size(3)}, {cos.stride(2)}>"
            ),
            grid=[named(size) for size in grid],
            block=[named(size) for size in block],
            args=named(
                f"{outputs}, q, k, cos, sin, q.size(1), k.size(1), q.size(2), cos.size(0), "
                "sin.size(0), " + ", ".join(_STRIDES)
            ),
            requires=[
                named(each)
                for each in (
                    *_requires("float32", "float16", "bfloat16"),
                    "cos.dtype == q.dtype or cos.dtype == float32",
                    # 2: real and imaginary parts of complex numbers
                    "cos.stride(2) == sin.stride(2) and (cos.stride(2) == 1 or cos.stride(2) == 2)",
                    *more,
                )
            ],
            priority=priority,
        )

    declare_cuda(
        "cuda:packs",
        "16 / q.itemsize",
        [
            "q.size(3) * q.itemsize % 32 == 0",
            *(f"{each} * q.itemsize % 16 == 0" for each in _STRIDES if each[0] in "qk"),
            *(f"aligned({name}, 16)" for name in ("q", "k")),
            # What is not next to each other is read one by one.
            *(
                f"cos.stride(2) == 2 or {each} * cos.itemsize % 16 == 0"
                for each in _STRIDES
                if each[0] not in "qk"
            ),
            *(f"cos.stride(2) == 2 or aligned({name}, 16)" for name in _TABLES),
        ],
        priority=1,
    )
    declare_cuda("cuda:elements", "1", [], priority=0)
    op.cpu(
        source=opaq.file("rope.cpp"),
        entry=named(f"rope<{{q.dtype}}, {backward}>"),
        args=named(
            f"{outputs}, q, k, cos, sin, q.size(0), q.size(1), k.size(1), q.size(2), q.size(3), "
            f"cos.size(0), sin.size(0), {', '.join(_STRIDES)}, cos.stride(2), sin.stride(2), "
            "interleaved, cos.size(2) < q.size(3)"
        ),
        requires=[
            *(named(each) for each in _requires("float32", "float64")),
            f"cos.dtype == {q}.dtype",
        ],
    )


_declare(rope, "q_out, k_out", "q", "k", "false")
_declare(rope_backward, "grad_q, grad_k", "grad_q_out", "grad_k_out", "true")


def _check(q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    batch, _, tokens, dim = q.shape
    if dim % 2:
        raise ValueError(
            f"rope: q has a head dimension of {dim}; expected an even number, for pairs of its "
            "elements are rotated against each other"
        )
    for name, table in (("cos", cos), ("sin", sin)):
        fits = table.dim() == 3 and table.size(1) == tokens and table.size(2) in (dim, dim // 2)
        if not fits or not (table.size(0) == batch or table.size(0) and batch % table.size(0) == 0):
            raise ValueError(
                f"rope: {name} has shape {tuple(table.shape)}; expected (1 or {batch}, "
                f"{tokens}, {dim}) to go with q {tuple(q.shape)}, or {dim // 2} in place of {dim}"
            )
    if cos.size(2) != sin.size(2):
        raise ValueError(
            f"rope: cos has shape {tuple(cos.shape)} and sin {tuple(sin.shape)}; expected both of "
            "columns or both of pairs"
        )


def _of_columns(q: torch.Tensor, table: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """cos or sin as wide as the head, for each sequence, in the dtype of the arithmetic."""
    table = table.to(torch.promote_types(q.dtype, torch.float32))
    if table.size(2) < q.size(3):
        table = _joined(table, table, interleaved)
    if table.size(0) != q.size(0):
        table = table.repeat(q.size(0) // table.size(0), 1, 1)
    return table.unsqueeze(1)


def _partners(x: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What is rotated against each other: halves, or even and odd elements."""
    return (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)


def _joined(first: torch.Tensor, second: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """The inverse of `_partners`."""
    if interleaved:
        return torch.stack((first, second), -1).flatten(-2)
    return torch.cat((first, second), -1)


def rotated(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> torch.Tensor:
    """cos, sin: as wide as x, and in the dtype of the arithmetic."""
    first, second = _partners(x.to(cos.dtype), interleaved)
    return (x.to(cos.dtype) * cos + _joined(-second, first, interleaved) * sin).to(x.dtype)


@rope.reference
def rope_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(q, cos, sin)
    cos, sin = (_of_columns(q, table, interleaved) for table in (cos, sin))
    return rotated(q, cos, sin, interleaved), rotated(k, cos, sin, interleaved)


@rope_backward.reference
def rope_backward_reference(
    grad_q_out: torch.Tensor,
    grad_k_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(grad_q_out, cos, sin)
    cos, sin = (_of_columns(grad_q_out, table, interleaved) for table in (cos, sin))

    def transpose(grad: torch.Tensor) -> torch.Tensor:
        first, second = _partners(grad.to(cos.dtype) * sin, interleaved)
        turned = _joined(second, -first, interleaved)
        result = (grad.to(cos.dtype) * cos + turned).to(grad.dtype)
        return result.transpose(1, 2).contiguous().transpose(1, 2)

    return transpose(grad_q_out), transpose(grad_k_out)


rope.backward("opaq_kernels::rope_backward")
