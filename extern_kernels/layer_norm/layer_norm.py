"""LayerNorm over the last dimension, with its gradient: declaration and reference.

layer_norm(x, weight, bias, eps=1e-5) -> (y, mean, rstd)

x: [..., n], floating
weight, bias: [n], of x's dtype
y: (x - mean) * rstd * weight + bias, x's shape and dtype, rounded once from float32
mean: of the last dimension, [...], float32 (float64 for a float64 x); differentiable too
rstd: 1 / sqrt(mean((x - mean)^2) + eps), as mean

Formula: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
"""

import torch

import opaq

_FLOAT = "float64 if x.dtype == float64 else float32"  # of mean, rstd and sums
# blocks of consecutive rows, each with partial sums of grad_weight and grad_bias
_BLOCKS = "min(ceil_div(rstd.numel(), 4), 256)"

layer_norm = opaq.op(
    "opaq_kernels::layer_norm(Tensor x, Tensor weight, Tensor bias, float eps=1e-5) -> "
    "(Tensor y, Tensor mean, Tensor rstd)",
    outputs={
        "y": opaq.like("x"),
        "mean": opaq.tensor("x.shape[:-1]", dtype=_FLOAT),
        "rstd": opaq.tensor("x.shape[:-1]", dtype=_FLOAT),
    },
)
layer_norm_backward = opaq.op(
    "opaq_kernels::layer_norm_backward(Tensor grad_y, Tensor grad_mean, Tensor grad_rstd, "
    "Tensor x, Tensor weight, Tensor mean, Tensor rstd) -> (Tensor grad_x, Tensor partial)",
    outputs={
        "grad_x": opaq.like("x"),
        # of each block: what its rows add to grad_weight, and to grad_bias
        "partial": opaq.tensor(f"{_BLOCKS}, 2, x.size(-1)", dtype=_FLOAT),
    },
)

_PER_BLOCK = f"ceil_div(rstd.numel(), max(1, {_BLOCKS}))"

# ---- CUDA: a row in registers where it fits and is aligned, else two passes over it --------------

_ROWS = "rstd.numel()"
_PACKS = "(x.size(-1) * x.itemsize // 16)"  # 16-byte packs in a row
_OF_X = ["weight.dtype == x.dtype", "weight.numel() == x.size(-1)"]
_BIAS = ["bias.dtype == x.dtype", "bias.numel() == x.size(-1)"]
_CUDA = ["x.dtype == float32 or x.dtype == float16 or x.dtype == bfloat16", *_OF_X]

# Threads for a row, forward: two packs each up to a half warp, up to four each in a warp or two, up
# to eight each in 256 threads.
_LANES = (
    f"(max(1, next_power_of_2(ceil_div({_PACKS}, 2))) if {_PACKS} <= 32 else "
    f"32 if {_PACKS} <= 128 else 64 if {_PACKS} <= 256 else 256)"
)
_ITEMS = f"ceil_div({_PACKS}, {_LANES})"
# Rows that these threads take at a time: two where they are short and still fill the device.
_EACH = f"(2 if {_ITEMS} <= 2 and {_ROWS} * {_LANES} >= 2048 * 256 else 1)"
# backward: one pack each up to a warp, then about four each
_LANES_BACKWARD = (
    f"min(512, max(min(32, next_power_of_2({_PACKS})), next_power_of_2(ceil_div({_PACKS}, 4))))"
)
_ITEMS_BACKWARD = f"ceil_div({_PACKS}, {_LANES_BACKWARD})"
_HEIGHT_BACKWARD = f"max(1, 256 // {_LANES_BACKWARD})"
# Rounds that a block holds in shared memory, up to 64 KB, which every device has.
_STAGES = (
    f"(1 if {_LANES_BACKWARD} > 256 else 4 if {_ITEMS_BACKWARD} == 1 else "
    f"3 if {_ITEMS_BACKWARD} == 2 else 2)"
)
_HELD = 256 * 8  # packs of a row that the kernel which holds rows in registers takes

# Wider rows, forward: clusters of up to 8 blocks of 256 threads with up to 16 packs each in shared
# memory: of one row, or, where there are rows enough, of two, and of two more after these.
_RANKS = f"max(1, min(8, next_power_of_2(ceil_div({_PACKS}, 256 * 8))))"
_SLOTS = f"min(16, 4 * ceil_div({_PACKS}, 4 * 256 * {_RANKS}))"
_TOGETHER = f"(2 if {_SLOTS} <= 8 and {_ROWS} * {_RANKS} >= 1024 else 1)"


def _aligned(*names: str) -> list[str]:
    return [
        "x.size(-1) > 0",
        "x.size(-1) * x.itemsize % 16 == 0",
        *(f"aligned({name}, 16)" for name in names),
    ]


layer_norm.cuda(
    name="cuda:registers",
    source=opaq.file("layer_norm.cu"),
    entry=f"layer_norm<{{x.dtype}}, {{{_LANES}}}, {{{_ITEMS}}}, {{{_EACH}}}>",
    grid=f"ceil_div({_ROWS}, 256 // {_LANES} * {_EACH})",
    block=[_LANES, f"256 // {_LANES}"],
    args=f"y, mean, rstd, x, weight, bias, {_ROWS}, x.size(-1), eps",
    requires=[*_CUDA, *_BIAS, *_aligned("x", "weight", "bias", "y"), f"{_PACKS} <= {_HELD}"],
    priority=1,
)
layer_norm.cuda(
    name="cuda:wide",
    source=opaq.file("layer_norm_wide.cu"),
    entry=f"layer_norm_wide<{{x.dtype}}, 256, {{{_RANKS}}}, {{{_TOGETHER}}}>",
    grid=f"{_RANKS} * ceil_div({_ROWS}, 4 if {_TOGETHER} == 2 else 1)",
    block=256,
    shared=f"{_TOGETHER} * {_SLOTS} * 256 * 16",
    args=f"y, mean, rstd, x, weight, bias, {_ROWS}, {_SLOTS}, x.size(-1), eps",
    requires=[*_CUDA, *_BIAS, *_aligned("x", "weight", "bias", "y"), f"{_PACKS} > {_HELD}"],
    priority=1,
)
layer_norm.cuda(
    name="cuda:any",
    source=opaq.file("layer_norm.cu"),
    entry="layer_norm_any<{x.dtype}>",
    grid=_ROWS,
    block=256,
    args="y, mean, rstd, x, weight, bias, x.size(-1), eps",
    requires=[*_CUDA, *_BIAS],
)
_BACKWARD_ARGS = (
    f"grad_x, partial, grad_y, grad_mean, grad_rstd, x, weight, mean, rstd, {_ROWS}, "
    f"{_PER_BLOCK}, x.size(-1)"
)
_BACKWARD_CUDA = [
    *_CUDA,
    "grad_y.dtype == x.dtype",
    *(f"{name}.dtype == float32" for name in ("grad_mean", "grad_rstd", "mean", "rstd")),
]
layer_norm_backward.cuda(
    name="cuda:ahead",
    source=opaq.file("layer_norm_backward.cu"),
    entry=f"layer_norm_backward_ahead<{{x.dtype}}, {{{_LANES_BACKWARD}}}, {{{_ITEMS_BACKWARD}}}, "
    f"{{{_STAGES}}}>",
    grid=_BLOCKS,
    block=[_LANES_BACKWARD, _HEIGHT_BACKWARD],
    shared=f"{_STAGES} * 2 * {_ITEMS_BACKWARD} * {_LANES_BACKWARD} * {_HEIGHT_BACKWARD} * 16",
    args=_BACKWARD_ARGS,
    requires=[
        *_BACKWARD_CUDA,
        *_aligned("grad_y", "x", "weight", "grad_x"),
        f"{_PACKS} <= 4 * 512",
    ],
    priority=1,
)
layer_norm_backward.cuda(
    name="cuda:any",
    source=opaq.file("layer_norm.cu"),
    entry="layer_norm_backward_any<{x.dtype}>",
    grid=_BLOCKS,
    block=256,
    args=_BACKWARD_ARGS,
    requires=_BACKWARD_CUDA,
)

# ---- CPU -----------------------------------------------------------------------------------------

_CPU = ["x.dtype == float32 or x.dtype == float64", *_OF_X]
layer_norm.cpu(
    source=opaq.file("layer_norm.cpp"),
    entry="layer_norm<{x.dtype}>",
    args=f"y, mean, rstd, x, weight, bias, {_ROWS}, x.size(-1), eps",
    requires=[*_CPU, *_BIAS],
)
layer_norm_backward.cpu(
    source=opaq.file("layer_norm.cpp"),
    entry="layer_norm_backward<{x.dtype}>",
    args=f"grad_x, partial, grad_y, grad_mean, grad_rstd, x, weight, mean, rstd, {_ROWS}, "
    f"{_PER_BLOCK}, {_BLOCKS}, x.size(-1)",
    requires=[
        *_CPU,
        *(
            f"{name}.dtype == x.dtype"
            for name in ("grad_y", "grad_mean", "grad_rstd", "mean", "rstd")
        ),
    ],
)

# ---- meaning and gradient ------------------------------------------------------------------------


@layer_norm.reference
def layer_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    for name, each in (("weight", weight), ("bias", bias)):
        if each.shape != x.shape[-1:]:
            raise ValueError(
                f"layer_norm: {name} has shape {tuple(each.shape)}; expected "
                f"{tuple(x.shape[-1:])}, the last dimension of x {tuple(x.shape)}"
            )
    wide = x.double() if x.dtype == torch.float64 else x.float()
    mean = wide.mean(-1)
    apart = wide - mean.unsqueeze(-1)
    rstd = torch.rsqrt(apart.square().mean(-1) + eps)
    return (apart * rstd.unsqueeze(-1) * weight + bias).to(x.dtype), mean, rstd


@layer_norm_backward.reference
def layer_norm_backward_reference(
    grad_y: torch.Tensor,
    grad_mean: torch.Tensor,
    grad_rstd: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    n = x.size(-1)
    rows = rstd.numel()
    blocks = min(-(-rows // 4), 256)
    scale = rstd.unsqueeze(-1)
    grad, v = grad_y.to(rstd.dtype), x.to(rstd.dtype) - mean.unsqueeze(-1)
    g = grad * weight
    shift = (g.sum(-1) * rstd - grad_mean) / n
    pull = ((g * v).sum(-1) + grad_rstd) * rstd.pow(3) / n
    grad_x = (g * scale - shift.unsqueeze(-1) - v * pull.unsqueeze(-1)).to(x.dtype)
    if not rows:
        return grad_x, torch.empty(0, 2, n, dtype=rstd.dtype, device=x.device)
    per_block = -(-rows // blocks)
    both = torch.stack([(grad * v * scale).reshape(rows, n), grad.reshape(rows, n)], 1)
    partial = torch.nn.functional.pad(both, (0, 0, 0, 0, 0, blocks * per_block - rows))
    return grad_x, partial.view(blocks, per_block, 2, n).sum(1)


def _setup_context(ctx, inputs, output) -> None:
    x, weight = inputs[:2]
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.bias_dtype = inputs[2].dtype


def _backward(ctx, grad_y: torch.Tensor, grad_mean: torch.Tensor, grad_rstd: torch.Tensor):
    x, weight, mean, rstd = ctx.saved_tensors
    grad_x, partial = layer_norm_backward(grad_y, grad_mean, grad_rstd, x, weight, mean, rstd)
    grad_weight, grad_bias = partial.sum(0)
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(ctx.bias_dtype), None


layer_norm.backward(_backward, setup_context=_setup_context)
