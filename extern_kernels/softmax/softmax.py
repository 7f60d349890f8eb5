"""softmax and log_softmax over the last dimension, with their gradients: declarations and
references.

softmax(x, scale=1.0, mask=None) -> softmax(x * scale + mask)
log_softmax(x, scale=1.0) -> log_softmax(x * scale)

x: [..., n], floating
mask: floating, of a shape that broadcasts to that of x: what is added, such as 0 and -inf; it may
    require a gradient (a bias of positions)
result: x's shape and dtype, rounded once from float32 (float64 for float64 x)

As in PyTorch, a row without any value above -inf gives NaN, and so does a row with a NaN or inf.
The kernels take masks of up to 4 dimensions, of x's dtype or float32, with unit stride along n; the
references take the rest. The gradients are computed from the result alone, so that x need not be
kept.
"""

import re

import torch

import opaq

from .. import rows
from ..rows_of_clusters import Cluster

softmax = opaq.op(
    "opaq_kernels::softmax(Tensor x, float scale=1.0, Tensor? mask=None) -> (Tensor y)",
    outputs=opaq.like("x", may_overwrite=True),
)
softmax_backward = opaq.op(
    "opaq_kernels::softmax_backward(Tensor grad_y, Tensor y, float scale) -> (Tensor grad_x)",
    outputs=opaq.like("grad_y", may_overwrite=True),
)
log_softmax = opaq.op(
    "opaq_kernels::log_softmax(Tensor x, float scale=1.0) -> (Tensor y)",
    outputs=opaq.like("x", may_overwrite=True),
)
log_softmax_backward = opaq.op(
    "opaq_kernels::log_softmax_backward(Tensor grad_y, Tensor y, float scale) -> (Tensor grad_x)",
    outputs=opaq.like("grad_y", may_overwrite=True),
)

_ROWS = rows.count("x")
_PACKS = rows.packs("x")
_CUDA = [
    "x.dim() > 0",
    rows.one_of("x", rows.CUDA_DTYPES),
    "x.size(-1) < 2147483648",
]
_CPU = ["x.dim() > 0", rows.one_of("x", rows.CPU_DTYPES)]

# ---- the mask: the kernels see x as [..., size1, size2, n] ---------------------------------------


def _size(back: int) -> str:
    return f"(x.size(-{back}) if x.dim() >= {back} else 1)"


def _broadcast(back: int) -> str:
    return f"mask.dim() < {back} or mask.size(-{back}) == 1"


def _stride(back: int) -> str:
    return f"(0 if not defined(mask) or {_broadcast(back)} else mask.stride(-{back}))"


_MASK_SIZES = f"{_size(3)}, {_size(2)}"
_MASK_STRIDES = [_stride(back) for back in (4, 3, 2)]
_MASK_DTYPE = "{mask.dtype if defined(mask) else x.dtype}"
_MASKED = [
    "defined(mask)",
    *(
        f"not defined(mask) or {condition}"
        for condition in (
            "mask.dtype == x.dtype or mask.dtype == float32",
            "mask.dim() > 0 and mask.dim() <= 4 and mask.dim() <= x.dim()",
            "mask.size(-1) == x.size(-1)",
            "mask.stride(-1) == 1 or mask.size(-1) == 1",
            *(f"{_broadcast(back)} or mask.size(-{back}) == x.size(-{back})" for back in (2, 3, 4)),
            f"{_broadcast(4)} or x.dim() == 4",
        )
    ),
]
_MASK_ALIGNED = [
    "not defined(mask) or aligned(mask, 16)",
    *(f"not defined(mask) or {stride} * mask.itemsize % 16 == 0" for stride in _MASK_STRIDES),
]
_WITHOUT_MASK = "0, 1, 1, 0, 0, 0"

# ---- CUDA: a row in registers, or in shared memory, where it is aligned, else two passes ---------

# Threads for a row: two packs each up to a half warp, then up to four each.
_LANES = (
    f"(max(1, next_power_of_2(ceil_div({_PACKS}, 2))) if {_PACKS} <= 32 else "
    f"32 if {_PACKS} <= 128 else 64 if {_PACKS} <= 256 else 256 if {_PACKS} <= 1024 else 512)"
)
_ITEMS = f"ceil_div({_PACKS}, {_LANES})"
_HELD = 4 * 512  # packs of a row whose gradient is computed from registers
_ANY_THREADS = "max(32, min(256, next_power_of_2(ceil_div(x.size(-1) * x.itemsize, 4 * 16))))"

# Wider rows: a block takes one row, with up to 8 or 12 packs of each thread in shared memory,
# whichever was faster, and reads a few more twice; wider still, clusters of up to 8 blocks of up to
# 256 threads with up to 16 packs each take two rows.
_WIDE = 3 * 256  # packs above which this is faster than registers
_ALONE = 512 * 13  # most packs of a row that a block takes alone
_RANKS = f"(1 if {_PACKS} <= {_ALONE} else {rows.sharing(_PACKS, 256 * 16)})"
_OF_8 = f"{_PACKS} <= 1024 or {_PACKS} >= 1536 and {_PACKS} <= 512 * 8"
_MOST = f"(12 if {_RANKS} == 1 else 16)"
_EACH = f"(8 if {_OF_8} else {_MOST})"
_THREADS = f"min(512 if {_RANKS} == 1 else 256, {rows.fitting(_PACKS, _RANKS, _EACH)})"
_SLOTS = rows.slots(_PACKS, _RANKS, _THREADS, _MOST)
_TEAMS = f"ceil_div({_ROWS}, 1 if {_RANKS} == 1 else max(1, min(2, {_ROWS} // 512)))"
# Rows of 32 KB to 1 MB without a mask, where the device has clusters: one computes a row, which it
# holds in registers (softmax_of_clusters.cu).
_CLUSTER = Cluster(_PACKS, _ROWS)
# Of the gradients, blocks of up to 512 threads with 4 packs of both tensors. A team computes up to
# four rows: few, so that the last wave is short.
_RANKS_BACKWARD = rows.sharing(_PACKS, 512 * 4)
_THREADS_BACKWARD = f"min(512, {rows.fitting(_PACKS, _RANKS_BACKWARD, 4)})"
_TEAMS_BACKWARD = f"ceil_div({_ROWS}, max(1, min(4, {_ROWS} // 512)))"


def _declare_forward(op: opaq.Op, log: bool) -> None:
    of_log = str(log).lower()
    kinds = [("", "void", _WITHOUT_MASK, [] if log else ["not defined(mask)"], [])]
    if not log:
        with_mask = f"mask, {_MASK_SIZES}, {', '.join(_MASK_STRIDES)}"
        kinds.append((":mask", _MASK_DTYPE, with_mask, _MASKED, _MASK_ALIGNED))
    for suffix, mask_type, mask_args, condition, aligned in kinds:
        # not 0: what threads add for the columns that a row lacks is -inf, and 0 * -inf is NaN
        requires = [*_CUDA, *condition, "scale != 0"]
        mask, _, mask_rows = mask_args.partition(", ")
        args = f"y, x, {mask}, {_ROWS}, x.size(-1), scale, {mask_rows}"
        op.cuda(
            name=f"cuda:registers{suffix}",
            source=opaq.file("softmax.cu"),
            entry=f"softmax<{{x.dtype}}, {mask_type}, {of_log}, {{{_LANES}}}, {{{_ITEMS}}}>",
            grid=f"ceil_div({_ROWS}, max(1, 256 // {_LANES}))",
            block=[_LANES, f"max(1, 256 // {_LANES})"],
            args=args,
            requires=[*requires, *rows.aligned("x", "y"), *aligned, f"{_PACKS} <= {_WIDE}"],
            priority=1,
        )
        if not suffix:
            op.cuda(
                name="cuda:clusters",
                source=opaq.file("softmax_of_clusters.cu"),
                entry=f"softmax_of_clusters<{{x.dtype}}, {of_log}, {_CLUSTER.template}>",
                **_CLUSTER.launch,
                args=f"y, x, {_CLUSTER.part}, x.size(-1), scale",
                requires=[*requires, *rows.aligned("x", "y"), *_CLUSTER.requires],
                priority=3,
            )
        wide = [("wide", "false", [*rows.aligned("x", "y"), *aligned])]
        if not suffix:
            wide.append(("wide-ends", "true", ["aligned(x, 16)", "aligned(y, 16)"]))
        for name, ends, rows_fit in wide:
            op.cuda(
                name=f"cuda:{name}{suffix}",
                source=opaq.file("softmax_wide.cu"),
                entry=f"softmax_wide<{{x.dtype}}, {mask_type}, {of_log}, {{{_THREADS}}}, "
                f"{{{_RANKS}}}, {ends}>",
                grid=f"{_RANKS} * {_TEAMS}",
                block=_THREADS,
                shared=f"{_SLOTS} * {_THREADS} * 16",
                args=f"y, x, {mask}, {_ROWS}, {_SLOTS}, x.size(-1), scale, {mask_rows}",
                requires=[*requires, *rows_fit, f"{_PACKS} > {_WIDE}"],
                priority=2 if name == "wide" else 1,
            )
        op.cuda(
            name=f"cuda:any{suffix}",
            source=opaq.file("softmax.cu"),
            entry=f"softmax_any<{{x.dtype}}, {mask_type}, {of_log}, {{{_ANY_THREADS}}}>",
            grid=_ROWS,
            block=_ANY_THREADS,
            args=args,
            requires=requires,
        )
        op.cpu(
            name=f"cpu{suffix}",
            source=opaq.file("softmax.cpp"),
            entry=f"softmax<{{x.dtype}}, {mask_type}, {of_log}>",
            args=args,
            requires=[*_CPU, *condition],
        )


def _declare_backward(op: opaq.Op, log: bool) -> None:
    def of_y(text: str) -> str:
        return re.sub(r"\bx\.", "y.", text)

    of_log = str(log).lower()
    args = of_y(f"grad_x, grad_y, y, {_ROWS}, x.size(-1), scale")
    same = ["grad_y.dtype == y.dtype", "grad_y.shape == y.shape"]
    lanes, items, threads = of_y(_LANES), of_y(_ITEMS), of_y(_ANY_THREADS)
    aligned = [of_y(each) for each in rows.aligned("grad_y", "grad_x", "y")]
    ranks, teams = of_y(_RANKS_BACKWARD), of_y(_TEAMS_BACKWARD)
    wide_threads = of_y(_THREADS_BACKWARD)
    cuda = [*map(of_y, _CUDA), *same]
    op.cuda(
        name="cuda:registers",
        source=opaq.file("softmax_backward.cu"),
        entry=f"softmax_backward<{{y.dtype}}, {of_log}, {{{lanes}}}, {{{items}}}>",
        grid=of_y(f"ceil_div({_ROWS}, max(1, 256 // {_LANES}))"),
        block=[lanes, f"max(1, 256 // {lanes})"],
        args=args,
        requires=[*cuda, *aligned, of_y(f"{_PACKS} <= {_HELD}")],
        priority=1,
    )
    op.cuda(
        name="cuda:wide",
        source=opaq.file("softmax_wide.cu"),
        entry=f"softmax_backward_wide<{{y.dtype}}, {of_log}, {{{wide_threads}}}, {{{ranks}}}>",
        grid=f"{ranks} * {teams}",
        block=wide_threads,
        shared=f"2 * 4 * {wide_threads} * 16",
        args=args,
        requires=[*cuda, *aligned, of_y(f"{_PACKS} > {_HELD}")],
        priority=1,
    )
    op.cuda(
        name="cuda:any",
        source=opaq.file("softmax_backward.cu"),
        entry=f"softmax_backward_any<{{y.dtype}}, {of_log}, {{{threads}}}>",
        grid=of_y(_ROWS),
        block=threads,
        args=args,
        requires=cuda,
    )
    op.cpu(
        source=opaq.file("softmax.cpp"),
        entry=f"softmax_backward<{{y.dtype}}, {of_log}>",
        args=args,
        requires=[*map(of_y, _CPU), *same],
    )


_declare_forward(softmax, False)
_declare_forward(log_softmax, True)
_declare_backward(softmax_backward, False)
_declare_backward(log_softmax_backward, True)

# ---- meaning and gradients -----------------------------------------------------------------------


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@softmax.reference
def softmax_reference(
    x: torch.Tensor, scale: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    values = _wide(x) * scale
    if mask is not None:
        if not mask.is_floating_point():
            raise ValueError(
                f"softmax: the mask is {mask.dtype}; expected a floating-point dtype: it is added. "
                "For a mask of what counts, give "
                "torch.zeros(mask.shape, dtype=x.dtype).masked_fill(~mask, -torch.inf)"
            )
        if not broadcasts(mask.shape, x.shape):
            raise ValueError(
                f"softmax: the mask has shape {tuple(mask.shape)}; expected one that broadcasts to "
                f"that of x, {tuple(x.shape)}: each of its sizes, from the last on, is 1 or x's"
            )
        values = values + mask
    return torch.softmax(values, -1).to(x.dtype)


def broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Whether a tensor of a shape broadcasts to another shape, without changing that."""
    sizes = zip(reversed(shape), reversed(to))
    return len(shape) <= len(to) and all(size in (1, whole) for size, whole in sizes)


@log_softmax.reference
def log_softmax_reference(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return torch.log_softmax(_wide(x) * scale, -1).to(x.dtype)


@softmax_backward.reference
def softmax_backward_reference(grad_y: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
    g, v = _wide(grad_y), _wide(y)
    return (scale * v * (g - (g * v).sum(-1, keepdim=True))).to(grad_y.dtype)


@log_softmax_backward.reference
def log_softmax_backward_reference(
    grad_y: torch.Tensor, y: torch.Tensor, scale: float
) -> torch.Tensor:
    g = _wide(grad_y)
    return (scale * (g - _wide(y).exp() * g.sum(-1, keepdim=True))).to(grad_y.dtype)


def _setup_context(ctx, inputs, output) -> None:
    ctx.scale = inputs[1]
    mask = inputs[2] if len(inputs) > 2 else None
    ctx.save_for_backward(output)
    ctx.mask = None if mask is None else (mask.shape, mask.dtype)


def _backward(ctx, grad_y: torch.Tensor):
    (y,) = ctx.saved_tensors
    need_x, _, need_mask = ctx.needs_input_grad
    grad_x = softmax_backward(grad_y, y, ctx.scale) if need_x else None
    if ctx.mask is None or not need_mask:
        return grad_x, None, None
    shape, dtype = ctx.mask
    return grad_x, None, _wide(softmax_backward(grad_y, y, 1.0)).sum_to_size(shape).to(dtype)


def _log_backward(ctx, grad_y: torch.Tensor):
    (y,) = ctx.saved_tensors
    return log_softmax_backward(grad_y, y, ctx.scale), None


softmax.backward(_backward, setup_context=_setup_context)
log_softmax.backward(_log_backward, setup_context=_setup_context)
