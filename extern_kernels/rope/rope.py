"""Rotary position embedding of queries and keys, with its gradient: declaration and reference.

rope(q, k, cos, sin, interleaved=False) -> (q_out, k_out), as `apply_rotary_pos_emb` in
transformers' Llama. q: [B, H, S, D], k: [B, Hk, S, D], D even, of one floating dtype; Hk may be 0.
cos, sin: [B or 1, S, D], of that dtype or float32. q and k may be transposed views, as they come
from a projection; results are row-major, rounded once from float32. cos and sin get no gradient.

What is rotated against each other are the two halves of the head dimension, as in Llama, or, with
interleaved, its even and its odd elements: neighbours, as in GPT-J and in Su et al. 2021,
arXiv:2104.09864. cos and sin are of the elements at their own places in both cases.
"""

import torch

import opaq

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
        "grad_q": opaq.like("grad_q_out", may_overwrite=True),
        "grad_k": opaq.like("grad_k_out", may_overwrite=True),
    },
)


def _requires(q: str, k: str, *dtypes: str) -> list[str]:
    """Requirements: dtypes, matching shapes, unit strides in the head dimension."""
    return [
        " or ".join(f"{q}.dtype == {dtype}" for dtype in dtypes),
        f"{k}.dtype == {q}.dtype and sin.dtype == cos.dtype",
        f"{q}.dim() == 4 and {k}.dim() == 4 and cos.dim() == 3 and sin.dim() == 3",
        f"{q}.size(3) % 2 == 0",
        f"{k}.size(0) == {q}.size(0) and {k}.size(2) == {q}.size(2) and {k}.size(3) == {q}.size(3)",
        *(f"{name}.size(0) == 1 or {name}.size(0) == {q}.size(0)" for name in ("cos", "sin")),
        *(
            f"{name}.size(1) == {q}.size(2) and {name}.size(2) == {q}.size(3)"
            for name in ("cos", "sin")
        ),
        *(f"{name}.stride(-1) == 1" for name in (q, k, "cos", "sin")),
    ]


def _strides(q: str, k: str) -> str:
    batch = [
        f"0 if {name}.size(0) == 1 else {name}.stride(0), {name}.stride(1)"
        for name in ("cos", "sin")
    ]
    return ", ".join([*(f"{name}.stride({i})" for name in (q, k) for i in range(3)), *batch])


def _declare(op: opaq.Op, outputs: str, q: str, k: str, backward: str) -> None:
    tensors = f"{outputs}, {q}, {k}, cos, sin"
    same = f"cos.dtype == {q}.dtype"
    requires = _requires(q, k, "float32", "float16", "bfloat16")
    of_packs = [
        f"{q}.size(3) * {q}.itemsize % 32 == 0",
        *(
            f"{name}.stride({i}) * {name}.itemsize % 16 == 0"
            for name, count in ((q, 3), (k, 3), ("cos", 2), ("sin", 2))
            for i in range(count)
        ),
        *(f"aligned({name}, 16)" for name in (q, k, "cos", "sin")),
    ]

    def declare_cuda(prefix: str, more: str, accepted: str) -> None:
        """more: template arguments."""
        for vec, name in ((f"{{16 / {q}.itemsize}}", "packs"), ("1", "elements")):
            op.cuda(
                name=f"cuda:{prefix}{name}",
                source=opaq.file("rope.cu"),
                entry=f"rope<{{{q}.dtype}}, {{{q}.size(3)}}, {vec}, {backward}{more}>",
                grid=f"{q}.size(0) * {q}.size(2)",
                block=256,
                args=f"{tensors}, {q}.size(1), {k}.size(1), {q}.size(2), {_strides(q, k)}",
                requires=[*requires, accepted, *(of_packs if name == "packs" else [])],
                priority=int(name == "packs"),
            )

    declare_cuda("", "", f"not interleaved and {same}")
    wide = "cos.dtype == float32"
    declare_cuda("wide-", ", {cos.dtype}", f"not interleaved and {wide} and not {same}")
    declare_cuda("pairs-", ", {cos.dtype}, true", f"interleaved and ({same} or {wide})")
    op.cpu(
        source=opaq.file("rope.cpp"),
        entry=f"rope<{{{q}.dtype}}, {backward}>",
        args=f"{tensors}, {q}.size(0), {q}.size(1), {k}.size(1), {q}.size(2), {q}.size(3), "
        f"{_strides(q, k)}, interleaved",
        requires=[*_requires(q, k, "float32", "float64"), same],
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
        if table.dim() != 3 or table.size(0) not in (1, batch) or table.shape[1:] != (tokens, dim):
            raise ValueError(
                f"rope: {name} has shape {tuple(table.shape)}; expected (1 or {batch}, "
                f"{tokens}, {dim}) to go with q {tuple(q.shape)}"
            )


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
    """x: with heads in its second dimension, which cos and sin have not."""
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos.to(wide).unsqueeze(1), sin.to(wide).unsqueeze(1)
    first, second = _partners(x.to(wide), interleaved)
    return (x.to(wide) * cos + _joined(-second, first, interleaved) * sin).to(x.dtype)


@rope.reference
def rope_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(q, cos, sin)
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
    wide = torch.promote_types(grad_q_out.dtype, torch.float32)
    cos, sin = cos.to(wide).unsqueeze(1), sin.to(wide).unsqueeze(1)

    def transpose(grad: torch.Tensor) -> torch.Tensor:
        first, second = _partners(grad.to(wide) * sin, interleaved)
        turned = _joined(second, -first, interleaved)
        return (grad.to(wide) * cos + turned).to(grad.dtype)

    return transpose(grad_q_out), transpose(grad_k_out)


rope.backward("opaq_kernels::rope_backward")
