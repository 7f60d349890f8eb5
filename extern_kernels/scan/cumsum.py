"""Cumulative sums over the last dimension, with their gradient: declaration and reference.

cumsum(x, reverse=False) -> y

x: [..., n], floating or integer
y: x's shape; y[..., i] is the sum of x[..., 0] to x[..., i], or, with reverse, of x[..., i] to
x[..., n - 1]. Of x's dtype where that is floating, else int64.

Sums of float16, bfloat16 and float32 are made in float32 and rounded once; those of integers are
exact up to 64 bits, and wrap as PyTorch's do. Deterministic: the order in which numbers are added
depends on the shape, the dtype and the alignment of x, and on which implementation serves them on
the device, not on what else it does or how many multiprocessors it has. Rows are read once, also
long ones, of which many blocks have a part each and tell each other their sums: the blocks of a
cluster, where the device has clusters and one can hold the row, or blocks, or clusters of them, of
the whole device.
"""

from typing import Any

import torch

import opaq

from ..rows import CUDA_DTYPES, clusters_of, one_of

_FLOATING = one_of("x", CUDA_DTYPES)
_INTEGER = "x.dtype == int64 or x.dtype == int32"
_DTYPE = f"x.dtype if {_FLOATING} or x.dtype == float64 else int64"

cumsum = opaq.op(
    "opaq_kernels::cumsum(Tensor x, bool reverse=False) -> (Tensor y)",
    outputs=opaq.tensor("x.shape", dtype=_DTYPE),
)

_N = "x.size(-1)"
_ROWS = f"(x.numel() // {_N})"
_REQUIRES = ["x.dim() > 0", "x.is_contiguous()", "x.numel() > 0"]
# Where rows are few and long, a block has a tile of a row instead of a row.
_LONG = f"{_N} > 16384 and {_ROWS} < 528"


def _words_of(tiles: str) -> str:
    """Of look_back.cuh: how many sums of tiles, groups and sections a row has."""
    return f"({tiles} + ceil_div({tiles}, 32) + ceil_div({tiles}, 1024))"


def _published(words: str) -> dict[str, Any]:
    """The memory in which blocks tell each other sums, `words` for each row. The order counts:
    look_back.cuh says why."""
    return {
        "launches": opaq.zeros(1, dtype="uint64", once=True),
        "published": opaq.zeros(f"{_ROWS} * {words}", dtype="uint64", once=True),
    }


for _name, _priority in (("packs", 1), ("any", 0)):
    _vec = "(16 // y.itemsize)" if _priority else "1"
    _aligned = [f"{_N} % {_vec} == 0", "aligned(x, 16)", "aligned(y, 16)"] if _priority else []
    _packs = f"ceil_div({_N}, {_vec})"  # of a row
    _lanes = f"min(256, next_power_of_2(ceil_div({_packs}, 4)))"
    _requires = [f"{_FLOATING} or {_INTEGER}", *_REQUIRES, *_aligned]
    cumsum.cuda(
        name=f"cuda:{_name}",
        source=opaq.file("cumsum.cu"),
        entry=f"cumsum<{{x.dtype}}, {{y.dtype}}, {{{_lanes}}}, "
        f"{{min(4, ceil_div({_packs}, {_lanes}))}}, {{{_vec}}}>",
        grid=f"ceil_div({_ROWS}, 256 // {_lanes})",
        block=[_lanes, f"256 // {_lanes}"],
        args=f"y, x, {_ROWS}, {_N}, reverse",
        requires=_requires,
        priority=_priority,
    )
    _threads, _items = (128, "8") if _priority else (256, "(8 if y.itemsize == 8 else 12)")
    _tiles = f"ceil_div({_N}, {_threads} * {_items} * {_vec})"
    _words = f"({_words_of(_tiles)} * (1 if {_FLOATING} else 2))"  # twice, for sums of 8 bytes
    cumsum.cuda(
        name=f"cuda:tiles-{_name}",
        source=opaq.file("cumsum.cu"),
        scratch=_published(_words),
        entry=f"cumsum_tiles<{{x.dtype}}, {{y.dtype}}, {_threads}, {{{_items}}}, {{{_vec}}}>",
        grid=f"{_ROWS} * {_tiles}",
        block=_threads,
        shared=f"{_threads} * {_items} * {_vec} * x.itemsize",
        args=f"y, x, launches, published, {_tiles}, {_words}, {_N}, reverse",
        requires=[*_requires, _LONG],
        priority=_priority + 2,
    )

# Rows of floating numbers that a cluster of blocks can hold in registers, up to eight packs a
# thread (cumsum_cluster.cu): as few blocks of four warps as hold it, up to 16 of them; then more
# warps. Measured on an H200 with 64 to 1024 rows, this was faster than one block for each row from
# 2048 packs on. Blocks of 16 warps, of which a multiprocessor has two, were measured for few rows
# alone.
_PACKS = f"({_N} // (16 // x.itemsize))"
_RANKS = f"min(16, next_power_of_2(ceil_div({_PACKS}, 4 * 8 * 32)))"
_WARPS = f"max(4, next_power_of_2(ceil_div({_PACKS}, 16 * 8 * 32)))"
_MOST_HELD = 16 * 16 * 8 * 32  # packs of a row
_OF_PACKS = [
    *[*_REQUIRES, _FLOATING, f"{_N} % (16 // x.itemsize) == 0", "aligned(x, 16)", "aligned(y, 16)"],
    "arch(x) >= 90",
]
cumsum.cuda(
    name="cuda:cluster",
    source=opaq.file("cumsum_cluster.cu"),
    entry=f"cumsum_cluster<{{x.dtype}}, {{{_RANKS}}}, {{{_WARPS}}}, "
    f"{{ceil_div({_PACKS}, {_RANKS} * {_WARPS} * 32)}}>",
    grid=f"{_ROWS} * {_RANKS}",
    block=f"{_WARPS} * 32",
    cluster=_RANKS,  # so that clusters of 16 are allowed
    args=f"y, x, {_N}, reverse",
    requires=[
        *_OF_PACKS,
        f"{_PACKS} > 2048",
        f"{_PACKS} <= 16 * 8 * 8 * 32 or {_PACKS} <= {_MOST_HELD} and {_LONG}",
        clusters_of(_RANKS),
    ],
    priority=5,
)

# Of longer rows of float32, a cluster of 8 or 16 blocks has a tile. Measured on an H200, 8 were
# faster for 16 MB in all, 16 for 64 MB, and for 32 MB both about the same; in 16 bits, tiles of
# blocks were as fast.
_TILE_RANKS = f"(16 if {_ROWS} * {_PACKS} > 2097152 else 8)"
_TILE_COUNT = f"ceil_div({_PACKS}, {_TILE_RANKS} * 8 * 8 * 32)"
_TILE_WORDS = _words_of(_TILE_COUNT)
cumsum.cuda(
    name="cuda:cluster-tiles",
    source=opaq.file("cumsum_cluster.cu"),
    scratch=_published(_TILE_WORDS),
    entry=f"cumsum_cluster_tiles<{{x.dtype}}, {{{_TILE_RANKS}}}, 8, "
    f"{{ceil_div({_PACKS}, {_TILE_COUNT} * {_TILE_RANKS} * 8 * 32)}}>",
    grid=f"{_ROWS} * {_TILE_COUNT} * {_TILE_RANKS}",
    block=8 * 32,
    cluster=_TILE_RANKS,
    args=f"y, x, launches, published, {_TILE_COUNT}, {_TILE_WORDS}, {_N}, reverse",
    requires=[
        *[*_OF_PACKS, _LONG, f"x.dtype == float32 and {_PACKS} > {_MOST_HELD}"],
        clusters_of(_TILE_RANKS),
    ],
    priority=4,
)

# Of more floating numbers, one block for each multiprocessor stays, and reads ahead while it waits
# for the sums of others. That pays, measured on an H200, from where the start and the end of such a
# launch are short beside the time to move all bytes. Blocks are those of an H100 or H200 on any
# device, so that the order of additions is the same.
_WRITERS, _ITEMS, _STAGES, _BLOCKS = 16, 3, 9, 132
_MOST = _WRITERS * _ITEMS * 32  # packs of a tile
_FULL = f"ceil_div({_PACKS}, {_MOST})"
# As many tiles as fill the last turn of the blocks, too, but none below 256 packs.
_TILES = (
    f"max({_FULL}, min(ceil_div({_ROWS} * {_FULL}, {_BLOCKS}) * {_BLOCKS} // {_ROWS}, "
    f"ceil_div({_PACKS}, 256)))"
)
cumsum.cuda(
    name="cuda:ring",
    source=opaq.file("cumsum_ring.cu"),
    scratch={"words": opaq.tensor(f"ceil_div({_ROWS} * {_TILES}, {_BLOCKS}), 256", dtype="uint32")},
    entry=f"cumsum_ring<{{x.dtype}}, {_WRITERS}, {_ITEMS}, {_STAGES}>",
    grid=f"min({_BLOCKS}, {_ROWS} * {_TILES})",
    block=(_WRITERS + 6) * 32,
    shared=_STAGES * _MOST * 16,
    cooperative=True,
    args=f"y, x, words, {_ROWS}, {_TILES}, ceil_div({_PACKS}, {_TILES}), {_N}, reverse",
    requires=[
        *_OF_PACKS,
        *[_LONG, f"{_N} >= 1048576 and x.numel() * x.itemsize >= 67108864"],
        f"{_STAGES * _MOST * 16} + 1024 <= shared_memory(x)",
        f"multiprocessors(x) >= {_BLOCKS}",
    ],
    priority=5,
)

cumsum.cpu(
    source=opaq.file("cumsum.cpp"),
    entry="cumsum<{x.dtype}, {y.dtype}>",
    args=f"y, x, {_ROWS}, {_N}, reverse",
    requires=[f"x.dtype == float32 or x.dtype == float64 or {_INTEGER}", *_REQUIRES],
)


@cumsum.reference
def cumsum_reference(x: torch.Tensor, reverse: bool = False) -> torch.Tensor:
    if x.dim() == 0 or x.is_complex():
        raise ValueError(
            f"cumsum: x is {x.dtype} of shape {tuple(x.shape)}; expected at least one dimension "
            "and a floating or integer dtype"
        )
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    wide = x.float() if narrow else x
    sums = wide.flip(-1).cumsum(-1).flip(-1) if reverse else wide.cumsum(-1)
    return sums.to(x.dtype) if narrow else sums


def _setup_context(ctx, inputs, output) -> None:
    _, ctx.reverse = inputs


def _backward(ctx, grad_y: torch.Tensor):
    return cumsum(grad_y, not ctx.reverse), None


cumsum.backward(_backward, setup_context=_setup_context)
