"""Sorted rows, with their gradient: declaration and reference.

sort(x, descending=False) -> (values, indices)

x: [..., n]
values: x's shape and dtype, each row in ascending or, if asked for, descending order
indices: x's shape, int64; values[..., i] is x[..., indices[..., i]]

Stable: equal elements keep their order. NaN, of either sign, counts as larger than every number,
and -0 equals 0, as for torch.sort on the CPU (on GPUs it takes a NaN with a sign for the smallest).
Rows of up to 16384 elements of float32, float16, bfloat16 or int32 are sorted on CUDA by one block
each; torch.sort serves longer rows and other dtypes. The gradient of values goes to the elements
that they are.
"""

import torch

import opaq

sort = opaq.op(
    "opaq_kernels::sort(Tensor x, bool descending=False) -> (Tensor values, Tensor indices)",
    outputs={"values": opaq.like("x"), "indices": opaq.tensor("x.shape", dtype="int64")},
)

_N = "x.size(-1)"
_ROWS = f"(x.numel() // {_N})"
_REQUIRES = ["x.dim() > 0", "x.is_contiguous()", "x.numel() > 0"]
# Eight elements for a thread, or up to 32 of 512 threads.
_THREADS = f"max(32, min(512, next_power_of_2(ceil_div({_N}, 8))))"
_ITEMS = f"next_power_of_2(ceil_div({_N}, {_THREADS}))"
# For the ranks of digits, 32 bytes and some a thread, or for an exchange of keys.
_SHARED = f"max({_THREADS} * 40, {_THREADS} * {_ITEMS} * max(2, x.itemsize) * 33 // 32) + 1024"

sort.cuda(
    source=opaq.file("sort.cu"),
    entry=f"sort<{{x.dtype}}, {{{_THREADS}}}, {{{_ITEMS}}}, {{{_SHARED}}}>",
    grid=_ROWS,
    block=_THREADS,
    shared=_SHARED,
    args=f"values, indices, x, {_N}, descending",
    requires=[
        "x.dtype == float32 or x.dtype == float16 or x.dtype == bfloat16 or x.dtype == int32",
        *_REQUIRES,
        f"{_N} <= 16384",
    ],
)
sort.cpu(
    source=opaq.file("sort.cpp"),
    entry="sort<{x.dtype}>",
    args=f"values, indices, x, {_ROWS}, {_N}, descending",
    requires=[
        "x.dtype == float32 or x.dtype == float64 or x.dtype == int64 or x.dtype == int32",
        *_REQUIRES,
    ],
)


@sort.reference
def sort_reference(x: torch.Tensor, descending: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dim() == 0 or x.is_complex():
        raise ValueError(
            f"sort: x is {x.dtype} of shape {tuple(x.shape)}; expected at least one dimension and "
            "a dtype whose numbers have an order"
        )
    keys = x.masked_fill(x.isnan(), torch.nan) if x.is_floating_point() else x
    indices = torch.sort(keys, dim=-1, descending=descending, stable=True)[1]
    return x.gather(-1, indices), indices


def _setup_context(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx, grad_values: torch.Tensor, grad_indices):
    (indices,) = ctx.saved_tensors
    return torch.zeros_like(grad_values).scatter(-1, indices, grad_values), None


sort.backward(_backward, setup_context=_setup_context)
