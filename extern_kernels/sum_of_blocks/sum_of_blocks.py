"""Sums over blocks of rows in one launch: declaration and reference. The gradients of the
parameters of norms are added up by blocks of rows (rows.blocks) first, and then over the blocks.

sum_of_blocks(partial, like) -> sum

partial: [blocks, ...], float32 (float64 for a float64 `like`)
like: a tensor of the dtype of the result, such as the parameter; its values are not read
sum: [...], partial.sum(0), rounded once to the dtype of `like`

There is no gradient. Raises ValueError for a `partial` without dimensions.
"""

import torch

import opaq

from .. import rows

sum_of_blocks = opaq.op(
    "opaq_kernels::sum_of_blocks(Tensor partial, Tensor like) -> (Tensor sum)",
    outputs=opaq.tensor("partial.shape[1:]", dtype="like.dtype"),
)
_COLUMNS = "sum.numel()"
_ARGS = f"sum, partial, partial.size(0), {_COLUMNS}"
for _name, _vec, _aligned, _priority in [
    ("cuda:packs", 4, ["aligned(partial, 16)", f"{_COLUMNS} % 4 == 0"], 1),
    ("cuda:any", 1, [], 0),
]:
    sum_of_blocks.cuda(
        name=_name,
        source=opaq.file("sum_of_blocks.cu"),
        entry=f"sum_of_blocks<{{like.dtype}}, {_vec}>",
        grid=f"ceil_div({_COLUMNS}, 32)",
        block=256,
        args=_ARGS,
        requires=[
            "partial.dim() > 0",
            "partial.dtype == float32",
            rows.one_of("like", rows.CUDA_DTYPES),
            *_aligned,
        ],
        priority=_priority,
    )
sum_of_blocks.cpu(
    source=opaq.file("sum_of_blocks.cpp"),
    entry="sum_of_blocks<{partial.dtype}>",
    args=_ARGS,
    requires=[
        "partial.dim() > 0",
        rows.one_of("partial", rows.CPU_DTYPES),
        "like.dtype == partial.dtype",
    ],
)


@sum_of_blocks.reference
def sum_of_blocks_reference(partial: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if partial.dim() == 0:
        raise ValueError(
            "sum_of_blocks: partial has no dimensions; expected [blocks, ...], to add up the blocks"
        )
    return partial.sum(0).to(like.dtype)


sum_of_blocks.backward(None)
