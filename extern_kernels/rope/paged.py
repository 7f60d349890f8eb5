"""Rotary position embedding, with keys and values written into a paged cache: declaration and
reference.

rope_paged_(q, k, v, cos, sin, k_cache, v_cache, slots) -> q_out, for inference: no gradient.

q: [tokens, heads, size]; k, v: [tokens, kv_heads, size], size even; all three may be views of one
    product, with any strides of tokens and heads
cos, sin: [tokens, size], as `rope` takes them, with halves rotated against each other
k_cache, v_cache: [pages, page_size, kv_heads, size], of any strides but the last (1), written in
    place; all these are of one floating dtype
slots: [tokens], int64: where a token's key and value go, page * page_size + offset; -1: nowhere,
    for a token of padding. Any other number that is no slot writes nothing either, and the token's
    row of q_out is NaN
q_out: [tokens, heads, size], row-major

Slots that no token names keep their values. Of tokens with equal slots it is not defined whose
values stay, and they may be mixed. k and v must not share memory with the caches, nor the caches
with each other. Keys are rounded once from float32. Cache: Kwon et al. 2023, arXiv:2309.06180.
"""

import torch

import opaq

from ..rows import CPU_DTYPES, CUDA_DTYPES, one_of
from .rope import launch_over_heads, rotated

rope_paged_ = opaq.op(
    "opaq_kernels::rope_paged_(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, "
    "Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots) -> (Tensor q_out)",
    outputs=opaq.like("q", may_overwrite=True),
)

_GIVEN = ("q", "k", "v", "cos", "sin", "k_cache", "v_cache")
_STRIDED = [
    *((name, 2) for name in ("q", "k", "v")),
    *((name, 1) for name in ("cos", "sin", "slots")),
    *((name, 3) for name in ("k_cache", "v_cache")),
]
_STRIDES = [f"{name}.stride({i})" for name, count in _STRIDED for i in range(count)]


def _requires(dtypes: tuple[str, ...]) -> list[str]:
    return [
        one_of("q", dtypes),
        *(f"{name}.dtype == q.dtype" for name in _GIVEN[1:]),
        "slots.dtype == int64 and slots.dim() == 1 and slots.size(0) == q.size(0)",
        "q.dim() == 3 and q.size(2) > 0 and q.size(2) % 2 == 0",
        "k.dim() == 3 and k.size(0) == q.size(0) and k.size(2) == q.size(2)",
        "v.shape == k.shape",
        *(
            f"{name}.dim() == 2 and {name}.size(0) == q.size(0) and {name}.size(1) == q.size(2)"
            for name in ("cos", "sin")
        ),
        "k_cache.dim() == 4 and k_cache.size(2) == k.size(1) and k_cache.size(3) == q.size(2)",
        "v_cache.shape == k_cache.shape",
        *(f"{name}.stride(-1) == 1" for name in _GIVEN),
    ]


def _declare_cuda(name: str, vec: str, more: list[str], priority: int) -> None:
    grid, block = launch_over_heads(vec, "(q.size(1) + 2 * k.size(1))", "q.size(0)")
    rope_paged_.cuda(
        name=name,
        source=opaq.file("paged.cu"),
        entry=f"rope_paged<{{q.dtype}}, {{q.size(2)}}, {{{vec}}}>",
        grid=grid,
        block=block,
        args="q_out, k_cache, v_cache, q, k, v, cos, sin, slots, q.size(1), k.size(1), "
        f"k_cache.size(0) * k_cache.size(1), k_cache.size(1), {', '.join(_STRIDES)}",
        requires=[
            *_requires(CUDA_DTYPES),
            "k_cache.size(0) * k_cache.size(1) < 2147483648",
            *more,
        ],
        priority=priority,
    )


_declare_cuda(
    "cuda:packs",
    "16 / q.itemsize",
    [
        "q.size(2) * q.itemsize % 32 == 0",
        *(f"{each} * q.itemsize % 16 == 0" for each in _STRIDES if not each.startswith("slots")),
        # The caches may lie at any address: the kernel sees by itself how it can store packs.
        *(f"aligned({name}, 16)" for name in _GIVEN if not name.endswith("cache")),
    ],
    priority=1,
)
_declare_cuda("cuda:elements", "1", [], priority=0)
rope_paged_.cpu(
    source=opaq.file("paged.cpp"),
    entry="rope_paged<{q.dtype}>",
    args="q_out, k_cache, v_cache, q, k, v, cos, sin, slots, q.size(0), q.size(1), k.size(1), "
    f"q.size(2), k_cache.size(0), k_cache.size(1), {', '.join(_STRIDES)}",
    requires=_requires(CPU_DTYPES),
)

# ---- meaning -------------------------------------------------------------------------------------


def _check(given: dict[str, torch.Tensor], slots: torch.Tensor) -> None:
    q, k, k_cache = (given[name] for name in ("q", "k", "k_cache"))
    if q.dim() != 3 or k.dim() != 3 or k_cache.dim() != 4:
        raise ValueError(
            f"rope_paged_: q, k and k_cache have shapes {tuple(q.shape)}, {tuple(k.shape)} and "
            f"{tuple(k_cache.shape)}; expected [tokens, heads, size], [tokens, kv_heads, size] and "
            "[pages, page_size, kv_heads, size]: flatten batches into tokens"
        )
    tokens, _, size = q.shape
    if size % 2:
        raise ValueError(
            f"rope_paged_: q has a head dimension of {size}; expected an even number, for its two "
            "halves are rotated against each other"
        )
    cache = (*k_cache.shape[:2], k.size(1), size)
    expected = {
        "k": (tokens, k.size(1), size),
        "v": (tokens, k.size(1), size),
        **dict.fromkeys(("cos", "sin"), (tokens, size)),
        **dict.fromkeys(("k_cache", "v_cache"), cache),
        "slots": (tokens,),
    }
    for name, shape in expected.items():
        got = (given | {"slots": slots})[name].shape
        if got != shape:
            raise ValueError(
                f"rope_paged_: {name} has shape {tuple(got)}; expected {shape} to go with q "
                f"{tuple(q.shape)}, k {tuple(k.shape)} and k_cache {tuple(k_cache.shape)}"
            )
    for name, each in given.items():
        if each.dtype != q.dtype or not q.is_floating_point():
            raise ValueError(
                f"rope_paged_: q is {q.dtype} and {name} {each.dtype}; expected one floating-point "
                f"dtype: convert {name} first"
            )
    if slots.dtype != torch.int64:
        raise ValueError(
            f"rope_paged_: slots are {slots.dtype}; expected torch.int64: convert them with "
            "slots.long()"
        )


@rope_paged_.reference
def rope_paged_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    _check(dict(zip(_GIVEN, (q, k, v, cos, sin, k_cache, v_cache), strict=True)), slots)
    page_size = k_cache.size(1)
    wide = torch.promote_types(q.dtype, torch.float32)
    cos, sin = (table.to(wide).unsqueeze(1) for table in (cos, sin))
    written = (slots >= 0) & (slots < k_cache.size(0) * page_size)
    slot = slots[written]
    where = (slot // max(1, page_size), slot % max(1, page_size))
    k_cache[where] = rotated(k, cos, sin)[written]
    v_cache[where] = v[written]
    wrong = ~written & (slots != -1)
    return torch.where(wrong.view(-1, 1, 1), torch.nan, rotated(q, cos, sin))
