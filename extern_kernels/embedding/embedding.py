"""Rows of a table by index, and sums of rows by index, with gradients: declaration and reference.

embedding(weight, index, padding_idx=-1) -> y
    weight: [V, N], floating; index: any shape, int64 or int32
    y: [*index.shape, N], of weight's dtype: y[i] = weight[index[i]]; NaN where an index is no row
embedding_backward(grad_y, index, rows, padding_idx=-1, added=None) -> grad_weight
    grad_y: [*index.shape, N], floating
    grad_weight: [rows, N], of grad_y's dtype: row r is the sum of grad_y[i] with index[i] == r, 0
    where there is none and at padding_idx
index_add_rows(x, index, source) -> out
    x: [V, N], floating; index: [T], int64 or int32; source: [T, N], of x's dtype
    out: [V, N]: x.index_add(0, index, source)

Sums are deterministic: they are added in float32 (float64 for float64) in an order that depends on
the index alone, and rounded once. An index that is no row adds to none. padding_idx is that of
torch.nn.functional.embedding; a row of that number gets no gradient, and -1 means that there is
none. The gradient of y keeps the index alone. On a GPU a sum needs 132 bytes of memory for each row
of the table while it is computed.
"""

import torch

import opaq

from ..rows import CPU_DTYPES, CUDA_DTYPES, one_of

embedding = opaq.op(
    "opaq_kernels::embedding(Tensor weight, Tensor index, int padding_idx=-1) -> (Tensor y)",
    outputs=opaq.tensor("index.shape, weight.size(1)", dtype="weight.dtype"),
)
embedding_backward = opaq.op(
    "opaq_kernels::embedding_backward(Tensor grad_y, Tensor index, int rows, int padding_idx=-1, "
    "Tensor? added=None) -> (Tensor grad_weight)",
    outputs=opaq.tensor("rows, grad_y.size(-1)", dtype="grad_y.dtype"),
    accumulates="added",
)
index_add_rows = opaq.op(
    "opaq_kernels::index_add_rows(Tensor x, Tensor index, Tensor source) -> (Tensor out)",
    outputs=opaq.like("x"),
)

_INDEX = ["index.dtype == int64 or index.dtype == int32", "index.is_contiguous()"]


def _matrix(name: str) -> list[str]:
    return [f"{name}.dim() == 2", f"{name}.stride(1) == 1 or {name}.size(1) == 1"]


def _packed(first: str, stride: str, *names: str) -> list[str]:
    """Rows of `first`'s width that begin at multiples of 16 bytes in all tensors `names`."""
    return [
        *(f"aligned({name}, 16)" for name in names),
        f"{first}.size(-1) * {first}.itemsize % 16 == 0",
        f"{stride} * {first}.itemsize % 16 == 0",
    ]


# ---- rows of a table -----------------------------------------------------------------------------

_GATHER = [*_INDEX, *_matrix("weight")]
_GATHER_ARGS = "y, weight, index, index.numel(), weight.size(0), weight.size(1), weight.stride(0)"
for _name, _vec, _priority in (("cuda:packs", "16 / weight.itemsize", 1), ("cuda:any", "1", 0)):
    embedding.cuda(
        name=_name,
        source=opaq.file("embedding.cu"),
        entry=f"embedding<{{weight.dtype}}, {{index.dtype}}, {{{_vec}}}>",
        grid="ceil_div(index.numel(), 8)",
        block=256,
        args=_GATHER_ARGS,
        requires=[
            one_of("weight", CUDA_DTYPES),
            *_GATHER,
            *(_packed("weight", "weight.stride(0)", "weight", "y") if _priority else []),
        ],
        priority=_priority,
    )
embedding.cpu(
    source=opaq.file("embedding.cpp"),
    entry="embedding<{weight.dtype}, {index.dtype}>",
    args=_GATHER_ARGS,
    requires=[one_of("weight", CPU_DTYPES), *_GATHER],
)

# ---- sums of rows --------------------------------------------------------------------------------

_INDICES = "index.numel()"
# Rows that occur more than 32 times are summed by pieces, of which one row has 256 at most.
_PER_PIECE = f"max(32, ceil_div({_INDICES}, 256))"
_LONGS = f"max(1, {_INDICES} // 33)"  # that there can be
_PIECES = f"({_LONGS} + {_INDICES} // {_PER_PIECE})"


def _declare_sums(
    op: opaq.Op,
    out: str,
    source: str,
    stride: str,
    rows: str,
    left_out: str,
    requires: list[str],
    x: str,
    x_stride: str,
    x_packed: list[str],
) -> None:
    """out: the result's name; source: that of the rows to add, `stride` elements apart; x: that of
    what they are added to, and what it must be to be read in packs."""
    n = f"{source}.size(-1)"
    # Blocks for rows that occur more than 32 times: as many as there can be work for, up to 3 for
    # each multiprocessor of an H200.
    for_longs = f"min({_LONGS} + {_PIECES} + {_LONGS} * ceil_div({n}, 32), 396)"
    of_warp = f"(2 if {rows} >= 16384 else 1)"  # rows
    of_index = f"index, {_INDICES}, {rows}, {left_out}"
    requires = [*_INDEX, f"{_INDICES} > 0", f"{rows} > 0", f"{n} > 0", *requires]
    for name, vec, priority in (("cuda:packs", f"16 / {source}.itemsize", 1), ("cuda:any", "1", 0)):
        packed = [*_packed(source, stride, source, out), *x_packed]
        op.cuda(
            name=name,
            source=opaq.file("sum_rows.cu"),
            scratch={
                "count": opaq.tensor(rows, dtype="int32"),
                "slots": opaq.tensor(f"{rows}, 32", dtype="int32"),
                "positions": opaq.tensor(_INDICES, dtype="int32"),
                "longs": opaq.tensor(f"{_LONGS}, 4", dtype="int32"),
                "pieces": opaq.tensor(f"{_PIECES}, 2", dtype="int32"),
                "shared": opaq.tensor(8, dtype="int32"),
                "partial": opaq.tensor(f"{_PIECES}, {n}", dtype="float32"),
            },
            steps=[
                opaq.step(
                    entry="clear_counts",
                    grid=f"ceil_div({rows}, 256)",
                    block=256,
                    args=f"count, shared, {rows}",
                ),
                opaq.step(
                    entry="place_positions<{index.dtype}>",
                    grid=f"ceil_div({_INDICES}, 256)",
                    block=256,
                    args=f"slots, count, longs, shared, {of_index}",
                ),
                opaq.step(
                    entry=f"sum_rows<{{{source}.dtype}}, {{index.dtype}}, {{{vec}}}, "
                    f"{{{of_warp}}}>",
                    grid=f"{for_longs} + ceil_div({rows}, 8 * {of_warp})",
                    block=256,
                    args=f"{out}, partial, positions, longs, pieces, shared, count, slots, {x}, "
                    f"{source}, {of_index}, {n}, {x_stride}, {stride}, {_PER_PIECE}, {for_longs}",
                ),
            ],
            requires=[
                one_of(source, CUDA_DTYPES),
                *requires,
                f"{_INDICES} < 2147483648 and {rows} < 2147483648",
                *(packed if priority else []),
            ],
            priority=priority,
        )
    op.cpu(
        source=opaq.file("embedding.cpp"),
        entry=f"sum_rows<{{{source}.dtype}}, {{index.dtype}}>",
        args=f"{out}, {x}, {source}, index, {_INDICES}, {rows}, {n}, {x_stride}, {stride}, "
        f"{left_out}",
        requires=[one_of(source, CPU_DTYPES), *requires],
    )


_declare_sums(
    embedding_backward,
    "grad_weight",
    "grad_y",
    "(grad_y.stride(0) if grad_y.dim() == 2 else grad_y.size(-1))",
    "rows",
    "padding_idx",
    [
        "grad_y.dim() == index.dim() + 1 and grad_y.shape[:-1] == index.shape",
        "grad_y.is_contiguous() or grad_y.dim() == 2 and grad_y.stride(1) == 1",
        (
            "not defined(added) or added.dtype == grad_y.dtype and added.is_contiguous() "
            "and added.dim() == 2 and added.size(0) == rows and added.size(1) == grad_y.size(-1)"
        ),
    ],
    "added",
    "grad_y.size(-1)",
    ["not defined(added) or aligned(added, 16)"],
)
_declare_sums(
    index_add_rows,
    "out",
    "source",
    "source.stride(0)",
    "x.size(0)",
    "-1",
    [
        *_matrix("x"),
        *_matrix("source"),
        "x.dtype == source.dtype",
        "index.dim() == 1 and index.numel() == source.size(0)",
        "x.size(1) == source.size(1)",
    ],
    "x",
    "x.stride(0)",
    ["aligned(x, 16)", "x.stride(0) * x.itemsize % 16 == 0"],
)

# ---- meaning and gradients -----------------------------------------------------------------------


def _check_index(op: str, index: torch.Tensor) -> None:
    if index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{op}: index is {index.dtype}; expected int64 or int32")


def _sums(
    start: torch.Tensor, index: torch.Tensor, source: torch.Tensor, left_out: int
) -> torch.Tensor:
    """start with the rows of source added where the index says, in one row more, which takes what
    is left out. In a fixed order: index_add has one on the CPU, index_put on GPUs."""
    rows = start.size(0)
    there = (index >= 0) & (index < rows) & (index != left_out)
    longer = torch.nn.functional.pad(start, (0, 0, 0, 1))
    to = torch.where(there, index, rows).long()
    if source.is_cpu:
        return longer.index_add(0, to, source)[:rows]
    return longer.index_put((to,), source, accumulate=True)[:rows]


@embedding.reference
def embedding_reference(
    weight: torch.Tensor, index: torch.Tensor, padding_idx: int = -1
) -> torch.Tensor:
    _check_index("embedding", index)
    if weight.dim() != 2:
        raise ValueError(
            f"embedding: weight has shape {tuple(weight.shape)}; expected two dimensions, a row "
            "for each index"
        )
    if not weight.is_floating_point():
        raise ValueError(f"embedding: weight is {weight.dtype}; expected a floating-point dtype")
    flat = index.flatten()
    there = (flat >= 0) & (flat < weight.size(0))
    # One row more, so that there is one to read.
    found = torch.nn.functional.pad(weight, (0, 0, 0, 1), value=torch.nan).index_select(
        0, torch.where(there, flat, weight.size(0))
    )
    return found.view(*index.shape, weight.size(1))


@embedding_backward.reference
def embedding_backward_reference(
    grad_y: torch.Tensor,
    index: torch.Tensor,
    rows: int,
    padding_idx: int = -1,
    added: torch.Tensor | None = None,
) -> torch.Tensor:
    _check_index("embedding_backward", index)
    if grad_y.shape[:-1] != index.shape or grad_y.dim() != index.dim() + 1:
        raise ValueError(
            f"embedding_backward: grad_y has shape {tuple(grad_y.shape)} and index "
            f"{tuple(index.shape)}; expected a row of grad_y for each index, "
            f"({', '.join(map(str, index.shape))}, N)"
        )
    n = grad_y.size(-1)
    wide = grad_y.to(torch.promote_types(grad_y.dtype, torch.float32)).reshape(index.numel(), n)
    if added is None:
        start = torch.zeros(rows, n, dtype=wide.dtype, device=wide.device)
    elif added.shape == (rows, n) and added.dtype == grad_y.dtype:
        start = added.to(wide.dtype)
    else:
        raise ValueError(
            f"embedding_backward: added is {added.dtype} {tuple(added.shape)}; expected "
            f"{grad_y.dtype} {(rows, n)}, like the result"
        )
    return _sums(start, index.flatten(), wide, padding_idx).to(grad_y.dtype)


@index_add_rows.reference
def index_add_rows_reference(
    x: torch.Tensor, index: torch.Tensor, source: torch.Tensor
) -> torch.Tensor:
    _check_index("index_add_rows", index)
    if (
        x.dim() != 2
        or index.dim() != 1
        or source.dim() != 2
        or source.size(0) != index.size(0)
        or source.size(1) != x.size(1)
    ):
        raise ValueError(
            f"index_add_rows: x has shape {tuple(x.shape)}, index {tuple(index.shape)} and source "
            f"{tuple(source.shape)}; expected [V, N], [T] and [T, N]"
        )
    if x.dtype != source.dtype or not x.is_floating_point():
        raise ValueError(
            f"index_add_rows: x is {x.dtype} and source {source.dtype}; expected one "
            "floating-point dtype"
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    return _sums(x.to(wide), index, source.to(wide), -1).to(x.dtype)


def _keep_index(ctx, inputs, output) -> None:
    weight, index, ctx.padding_idx = inputs
    ctx.rows = weight.size(0)
    ctx.save_for_backward(index)


def _embedding_gradient(ctx, grad_y: torch.Tensor):
    (index,) = ctx.saved_tensors
    n = grad_y.size(-1)
    grad = embedding_backward(
        grad_y.reshape(index.numel(), n), index.flatten(), ctx.rows, ctx.padding_idx
    )
    return grad, None, None


def _keep_added_index(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])


def _index_add_gradient(ctx, grad_out: torch.Tensor):
    (index,) = ctx.saved_tensors
    return grad_out, None, embedding(grad_out, index)


embedding.backward(_embedding_gradient, setup_context=_keep_index, non_differentiable="index")
index_add_rows.backward(
    _index_add_gradient, setup_context=_keep_added_index, non_differentiable="index"
)
