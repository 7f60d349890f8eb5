"""RMSNorm in unmodified models.

Some divide by a norm, or a root of a mean, that is not below a tiny number. The op adds the square
of that number to the mean instead. Both give the same for zeros, and for all rows but those whose
norm is within a factor of a thousand of the number.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import example_of, rows_and_columns

from .. import float8_spellings as made
from .. import rows
from .add_rms_norm import add_rms_norm
from .float8 import rms_norm_float8
from .rms_norm import rms_norm


def _when(arguments) -> str:
    x, weight = arguments["x"], arguments["weight"]
    if x.dim() == 0:
        return "x has no dimension"
    residual = arguments.get("residual", x)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        return "x and the residual have different shapes or dtypes"
    if refusal := _refusal_of_bound(arguments, x.shape[-1]):
        return refusal
    return rows.refusal_of_parameters(x, {"weight": weight})


def _when_added(arguments) -> str:
    """The sum that is normalized is rounded as it is in the model; the op has the gradient of
    rounded sums alone."""
    x, residual, read = arguments["x"], arguments["residual"], arguments["read_dtype"]
    trained = torch.is_grad_enabled() and (x.requires_grad or residual.requires_grad)
    if _is_unrounded(x, read) and (trained or read != "float32"):
        return f"the sum is normalized in {read}, before it is rounded to {x.dtype}"
    return _when(arguments)


def _is_unrounded(x, read) -> bool:
    return getattr(torch, read).itemsize > x.dtype.itemsize


def _when_of_one_dtype(arguments) -> str:
    return _when(arguments) or (_form(arguments) and "the weight has another dtype than x")


def _form(arguments) -> str:
    return rows.form_of_parameters(arguments["x"], arguments["weight"])


def _refusal_of_bound(arguments, n) -> str:
    """Of what is divided by a norm or by a root that are bounded."""
    norm, root = arguments.get("least_norm"), arguments.get("least_root")
    if norm is None and root is None:
        return ""
    count = float(arguments["scale"]) ** 2 if root is None else float(arguments["part"]) ** -2
    if not math.isclose(count, int(n), rel_tol=1e-6):
        return "the scale is not the root of the size of a row"
    return refusal_of_number(norm if root is None else root)


def refusal_of_number(least) -> str:
    """The square is a float32 that is not subnormal."""
    known = 1e-14 <= float(least) <= 1e-8
    return "" if known else "the least norm is not from 1e-14 to 1e-8"


def _scaled(x, weight, eps):  # transformers: Llama, Mistral, Qwen
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def _divided(x, weight, eps):
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _of_pytorch(x, weight, eps):
    return F.rms_norm(x, weight.shape, weight, eps)


_WEIGHTED = [_scaled, _divided, _of_pytorch]
_BARE = [  # without a weight: nanochat
    lambda x, eps: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps),
    lambda x, eps: x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps),
    lambda x, eps: F.rms_norm(x, (8,), None, eps),
]
_EXAMPLES = {
    "x": torch.empty(2, 8, device="meta"),
    "weight": torch.empty(8, device="meta"),
    "eps": 1e-6,
    "offset": 1.0,
    "scale": 8**0.5,
    "least_norm": 1e-12,
    "part": 8**-0.5,
    "least_root": 1e-8,
}


def _added(x, eps, least_norm, least_root):
    """What the op adds to the mean of squares."""
    if least_norm is not None:
        return float(example_of(least_norm)) ** 2 / int(example_of(x).shape[-1])
    return eps if least_root is None else float(example_of(least_root)) ** 2


def _normed(
    x,
    eps=None,
    weight=None,
    offset=0.0,
    scale=None,
    least_norm=None,
    part=None,
    least_root=None,
):
    """scale and part: the root of the size of a row, and its inverse, which the op has anyway."""
    return rms_norm(x, weight, _added(x, eps, least_norm, least_root), offset)[0]


def _add_normed(
    x,
    residual,
    eps=None,
    weight=None,
    offset=0.0,
    scale=None,
    least_norm=None,
    part=None,
    least_root=None,
    read_dtype="",
):
    eps = _added(x, eps, least_norm, least_root)
    unrounded = _is_unrounded(example_of(x), read_dtype)
    return add_rms_norm(x, residual, weight, eps, offset, unrounded)[:2]


def _float8(
    x,
    weight,
    eps,
    scale_least=None,
    size_least=None,
    factor_least=None,
    parts=None,
    block=None,
    columns=None,
):
    least = {"scale_least": scale_least, "size_least": size_least, "factor_least": factor_least}
    return made.results(rms_norm_float8, x, weight, eps, **least, block=block)


# First, so that a normalization is taken with what follows it.
float8_pattern = opaq.pattern(
    "rms_norm_float8",
    _float8,
    {
        "x": torch.empty(2, 256, device="meta"),
        "weight": torch.empty(256, device="meta"),
        "eps": 1e-6,
        **made.NUMBERS,
        **made.SIZES,
    },
    when=lambda arguments: made.refusal(arguments, "x") or _when_of_one_dtype(arguments),
    streamed=("x",),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    measurements=Path(__file__).with_name("measured_float8.json"),
    exact=True,
)
# Then, so that the sum before a normalization is taken with it.
add_pattern = opaq.pattern(
    "add_rms_norm",
    _add_normed,
    {**_EXAMPLES, "residual": torch.empty(2, 8, device="meta")},
    when=_when_added,
    streamed=("x", "residual"),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    form=_form,
    measurements=Path(__file__).with_name("measured_add.json"),
)
pattern = opaq.pattern(
    "rms_norm",
    _normed,
    _EXAMPLES,
    when=_when,
    streamed=("x",),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    form=_form,
    measurements=Path(__file__).with_name("measured.json"),
)


def _made_float8(norm):
    return [
        lambda x, weight, eps: made.plain(norm(x, weight, eps), False),
        lambda x, weight, eps, factor_least: made.by_factor(
            norm(x, weight, eps), False, factor_least
        ),
        lambda x, weight, eps, scale_least: made.scale_bounded(
            norm(x, weight, eps), True, scale_least
        ),
        lambda x, weight, eps, size_least: made.size_bounded(
            norm(x, weight, eps), True, size_least
        ),
        lambda x, weight, eps, factor_least: made.by_factor(
            norm(x, weight, eps), True, factor_least
        ),
        lambda x, weight, eps: made.plain(norm(x, weight, eps), True),
        lambda x, weight, eps, parts, block, columns, factor_least: made.blocks_by_factor(
            norm(x, weight, eps), parts, block, columns, factor_least
        ),
        lambda x, weight, eps, parts, block, columns: made.blocks_plain(
            norm(x, weight, eps), parts, block, columns
        ),
        lambda x, weight, eps, parts, block, columns, scale_least: made.blocks_scale_bounded(
            norm(x, weight, eps), parts, block, columns, scale_least
        ),
        lambda x, weight, eps, parts, block, columns, size_least: made.blocks_size_bounded(
            norm(x, weight, eps), parts, block, columns, size_least
        ),
        lambda x, weight, eps, parts, block, columns, size_least: made.flat_blocks_size_bounded(
            norm(x, weight, eps), parts, block, columns, size_least
        ),
    ]


for _normalized in (_scaled, _of_pytorch):
    for _made in _made_float8(_normalized):
        float8_pattern.spelling(_made)


def _with_offset(normalized):  # transformers: Gemma
    return lambda x, weight, eps, offset: normalized(x, weight + offset, eps)


def _after_a_sum(normalized):
    def spelling(x, residual, weight, eps):
        total = x + residual
        return normalized(total, weight, eps), total

    return spelling


def _with_offset_after_a_sum(normalized):
    def spelling(x, residual, weight, eps, offset):
        total = x + residual
        return normalized(total, weight + offset, eps), total

    return spelling


def _bare_after_a_sum(normalized):
    def spelling(x, residual, eps):
        total = x + residual
        return normalized(total, eps), total

    return spelling


# In this order, for what is found first is taken: those without a weight are parts of the others,
# and a weight may be the sum of another and a number.
for _normalized in _WEIGHTED:
    pattern.spelling(_with_offset(_normalized))
    add_pattern.spelling(_with_offset_after_a_sum(_normalized))
for _normalized in _WEIGHTED:
    pattern.spelling(_normalized)
    add_pattern.spelling(_after_a_sum(_normalized))
for _normalized in _BARE:
    pattern.spelling(_normalized)
    add_pattern.spelling(_bare_after_a_sum(_normalized))

# ---- by a norm, or a root of a mean, that is not below a tiny number -----------------------------


def _by_norm(x, weight, scale, least_norm):  # lucidrains: vit-pytorch, x-transformers
    return F.normalize(x, dim=-1, eps=least_norm) * scale * weight


def _by_root(x, weight, part, least_root):  # x-transformers
    root = x.norm(dim=-1, keepdim=True) * part
    return x / root.clamp(min=least_root) * weight


@pattern.spelling
def _(x, weight, scale, least_norm, offset):
    return _by_norm(x, weight + offset, scale, least_norm)


@add_pattern.spelling
def _(x, residual, weight, scale, least_norm, offset):
    total = x + residual
    return _by_norm(total, weight + offset, scale, least_norm), total


@add_pattern.spelling
def _(x, residual, weight, scale, least_norm):
    total = x + residual
    return _by_norm(total, weight, scale, least_norm), total


@add_pattern.spelling
def _(x, residual, weight, part, least_root):
    total = x + residual
    return _by_root(total, weight, part, least_root), total


pattern.spelling(_by_norm)
pattern.spelling(_by_root)


@pattern.spelling
def _(x, scale, least_norm):
    return F.normalize(x, dim=-1, eps=least_norm) * scale


@pattern.spelling
def _(x, part, least_root):
    return x / (x.norm(dim=-1, keepdim=True) * part).clamp(min=least_root)
