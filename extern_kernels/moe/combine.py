"""Rows in the order of a mixture's experts and back, with gradients: declaration and reference.

moe_permute(x, order, position) -> rows
    x: [T, D], floating; order, position: [T * k], int64, as moe_route gives them
    rows: [T * k, D], of x's dtype: row j is x[order[j] // k]
moe_combine(rows, position, weights) -> out
    rows: [T * k, D], floating; weights: [T, k], float32 (float64 for float64 rows)
    out: [T, D], of rows' dtype: sum over s of weights[t, s] * rows[position[t * k + s]], added in
    the order of s in float32 and rounded once

Both are deterministic, gradients included: they gather, since `position` is the inverse of `order`.
A number in `order` or `position` that is no row gives NaN. If `position` is not a permutation,
gradients of rows that it does not name are not defined.
"""

import torch

import opaq

moe_permute = opaq.op(
    "opaq_kernels::moe_permute(Tensor x, Tensor order, Tensor position) -> (Tensor rows)",
    outputs=opaq.tensor("order.numel(), x.size(1)", dtype="x.dtype"),
)
# The sum of the gradients of a token's rows.
moe_permute_backward = opaq.op(
    "opaq_kernels::moe_permute_backward(Tensor grad_rows, Tensor position, int tokens) "
    "-> (Tensor grad_x)",
    outputs=opaq.tensor("tokens, grad_rows.size(1)", dtype="grad_rows.dtype"),
)
moe_combine = opaq.op(
    "opaq_kernels::moe_combine(Tensor rows, Tensor position, Tensor weights) -> (Tensor out)",
    outputs=opaq.tensor("weights.size(0), rows.size(1)", dtype="rows.dtype"),
)
moe_combine_backward = opaq.op(
    "opaq_kernels::moe_combine_backward(Tensor grad_out, Tensor rows, Tensor position, "
    "Tensor weights) -> (Tensor grad_rows, Tensor grad_weights)",
    outputs={"grad_rows": opaq.like("rows"), "grad_weights": opaq.like("weights")},
)

_CUDA_DTYPES = ("float32", "float16", "bfloat16")


def _declare(
    op: opaq.Op,
    kernel: str,
    tensors: str,
    first: str,
    grid: str,
    sizes: tuple[str, str],
    packed: list[str],
    requires: list[str],
    per_block: str = "",
) -> None:
    """first: the tensor that gives dtype and columns; packed: those that are read or written in
    packs; sizes: of the CUDA and the CPU function, after the tensors; per_block: template
    arguments after the number of elements in a pack. weights are of one dtype."""
    of_weights = tensors.endswith(", weights")
    rows = [f"{first}.dim() == 2", f"{first}.stride(1) == 1 or {first}.size(1) == 1", *requires]
    for name, vec, priority in (("cuda:packs", f"16 / {first}.itemsize", 1), ("cuda:any", "1", 0)):
        aligned = [f"aligned({each}, 16)" for each in packed]
        aligned.append(f"{first}.size(1) * {first}.itemsize % 16 == 0")
        aligned.append(f"{first}.stride(0) * {first}.itemsize % 16 == 0")
        op.cuda(
            name=name,
            source=opaq.file("combine.cu"),
            entry=f"{kernel}<{{{first}.dtype}}, {{{vec}}}{per_block}>",
            grid=grid,
            block=256,
            args=f"{tensors}, {sizes[0]}",
            requires=[
                " or ".join(f"{first}.dtype == {dtype}" for dtype in _CUDA_DTYPES),
                *(["weights.dtype == float32"] if of_weights else []),
                *rows,
                *(aligned if priority else []),
            ],
            priority=priority,
        )
    op.cpu(
        source=opaq.file("moe.cpp"),
        entry=f"{kernel}<{{{first}.dtype}}>",
        args=f"{tensors}, {sizes[1]}",
        requires=[
            f"{first}.dtype == float32 or {first}.dtype == float64",
            *([f"weights.dtype == {first}.dtype"] if of_weights else []),
            *rows,
        ],
    )


_INDEX = ["position.dtype == int64", "position.dim() == 1", "position.stride(0) == 1"]
_WEIGHTS = [
    *_INDEX,
    "weights.dim() == 2",
    "weights.is_contiguous()",
    "rows.is_contiguous()",
    "position.numel() == rows.size(0)",
    "weights.numel() == rows.size(0)",
]
_PERMUTED = 2  # rows of a block
_PER_TOKEN = "order.numel() / max(1, x.size(0))"
_OF_WEIGHTS = (
    "rows.size(0), weights.size(1), rows.size(1)",
    "weights.size(0), weights.size(1), rows.size(1)",
)
_OF_GRAD = "position.numel() / max(1, tokens)"

_declare(
    moe_permute,
    "moe_permute",
    "rows, x, order",
    "x",
    f"ceil_div(order.numel(), {_PERMUTED})",
    (
        f"order.numel(), x.size(0), {_PER_TOKEN}, x.size(1), x.stride(0)",
        f"x.size(0), {_PER_TOKEN}, x.size(1), x.stride(0)",
    ),
    ["x", "rows"],
    [
        "order.dtype == int64",
        "order.dim() == 1",
        "order.stride(0) == 1",
        "x.size(0) > 0",
        "order.numel() % max(1, x.size(0)) == 0",
    ],
    per_block=f", {_PERMUTED}",
)
_declare(
    moe_permute_backward,
    "moe_combine",
    "grad_x, grad_rows, position, 0",
    "grad_rows",
    "tokens",
    (
        f"grad_rows.size(0), {_OF_GRAD}, grad_rows.size(1)",
        f"tokens, {_OF_GRAD}, grad_rows.size(1)",
    ),
    ["grad_rows", "grad_x"],
    [
        *_INDEX,
        "grad_rows.is_contiguous()",
        "position.numel() == grad_rows.size(0)",
        "tokens > 0",
        "position.numel() % max(1, tokens) == 0",
    ],
)
_declare(
    moe_combine,
    "moe_combine",
    "out, rows, position, weights",
    "rows",
    "weights.size(0)",
    _OF_WEIGHTS,
    ["rows", "out"],
    _WEIGHTS,
)
_declare(
    moe_combine_backward,
    "moe_combine_backward",
    "grad_rows, grad_weights, grad_out, rows, position, weights",
    "rows",
    "weights.size(0)",
    _OF_WEIGHTS,
    ["rows", "grad_out", "grad_rows"],
    [
        *_WEIGHTS,
        "grad_out.dtype == rows.dtype",
        "grad_out.is_contiguous()",
        "grad_out.dim() == 2 and grad_out.size(0) == weights.size(0)",
        "grad_out.size(1) == rows.size(1)",
    ],
)

# ---- meaning and gradients -----------------------------------------------------------------------


def _rows_at(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """rows[index], NaN where there is no such row."""
    there = (index >= 0) & (index < rows.size(0))
    found = rows.index_select(0, torch.where(there, index, 0))
    return torch.where(there.unsqueeze(1), found, torch.nan)


@moe_permute.reference
def moe_permute_reference(
    x: torch.Tensor, order: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    if x.dim() != 2 or order.dim() != 1 or order.shape != position.shape:
        raise ValueError(
            f"moe_permute: x has shape {tuple(x.shape)}, order {tuple(order.shape)} and position "
            f"{tuple(position.shape)}; expected [T, D], [T * k] and [T * k], as moe_route gives "
            "them: flatten the leading dimensions of x first"
        )
    if not x.is_floating_point():
        raise ValueError(f"moe_permute: x is {x.dtype}; expected a floating-point dtype")
    if x.size(0) == 0 and order.numel() == 0:
        return x.clone()
    if x.size(0) == 0 or order.numel() % x.size(0):
        raise ValueError(
            f"moe_permute: order has {order.numel()} pairs for {x.size(0)} rows of x; expected a "
            "multiple, k pairs for each row"
        )
    per_token = order.numel() // x.size(0)
    return _rows_at(x, order.div(max(1, per_token), rounding_mode="floor"))


@moe_permute_backward.reference
def moe_permute_backward_reference(
    grad_rows: torch.Tensor, position: torch.Tensor, tokens: int
) -> torch.Tensor:
    wide = _rows_at(grad_rows, position).to(torch.promote_types(grad_rows.dtype, torch.float32))
    k = position.numel() // max(1, tokens)
    return wide.view(tokens, k, grad_rows.size(1)).sum(1).to(grad_rows.dtype)


def _check(rows: torch.Tensor, position: torch.Tensor, weights: torch.Tensor) -> None:
    if (
        rows.dim() != 2
        or weights.dim() != 2
        or not (position.shape == rows.shape[:1] and weights.numel() == rows.size(0))
    ):
        raise ValueError(
            f"moe_combine: rows have shape {tuple(rows.shape)}, position {tuple(position.shape)} "
            f"and weights {tuple(weights.shape)}; expected [T * k, D], [T * k] and [T, k]"
        )


@moe_combine.reference
def moe_combine_reference(
    rows: torch.Tensor, position: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    _check(rows, position, weights)
    wide = _rows_at(rows, position).to(torch.promote_types(rows.dtype, torch.float32))
    each = wide.view(*weights.shape, rows.size(1)) * weights.unsqueeze(2)
    return each.sum(1).to(rows.dtype)


@moe_combine_backward.reference
def moe_combine_backward_reference(
    grad_out: torch.Tensor, rows: torch.Tensor, position: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(rows, position, weights)
    wide = torch.promote_types(rows.dtype, torch.float32)
    grad = grad_out.to(wide).unsqueeze(1)
    each = _rows_at(rows, position).to(wide).view(*weights.shape, rows.size(1))
    by_pair = (grad * weights.unsqueeze(2)).view(rows.shape)
    there = (position >= 0) & (position < rows.size(0))
    grad_rows = torch.zeros_like(by_pair).index_put((position[there],), by_pair[there])
    return grad_rows.to(rows.dtype), (each * grad).sum(2).to(weights.dtype)


def _keep_position(ctx, inputs, output) -> None:
    x, _, position = inputs
    ctx.tokens = x.size(0)
    ctx.save_for_backward(position)


def _permute_backward(ctx, grad_rows: torch.Tensor):
    (position,) = ctx.saved_tensors
    return moe_permute_backward(grad_rows.contiguous(), position, ctx.tokens), None, None


def _keep_inputs(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _combine_backward(ctx, grad_out: torch.Tensor):
    rows, position, weights = ctx.saved_tensors
    grad_rows, grad_weights = moe_combine_backward(
        grad_out.contiguous(), rows.contiguous(), position, weights.contiguous()
    )
    return grad_rows, None, grad_weights


moe_permute.backward(
    _permute_backward, setup_context=_keep_position, non_differentiable="order, position"
)
moe_combine.backward(_combine_backward, setup_context=_keep_inputs, non_differentiable="position")
