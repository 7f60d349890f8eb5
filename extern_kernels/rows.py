"""What ops over the rows of a tensor share, rows being its last dimension: packs of 16 bytes, the
threads of a row, conditions, dtypes, and sums by blocks of rows.
"""

import dataclasses
from typing import Any

import torch

import opaq

CUDA_DTYPES = ("float32", "float16", "bfloat16")
CPU_DTYPES = ("float32", "float64")


def one_of(name: str, dtypes: tuple[str, ...]) -> str:
    return " or ".join(f"{name}.dtype == {dtype}" for dtype in dtypes)


def packs(name: str) -> str:
    """16-byte packs in a row."""
    return f"({name}.size(-1) * {name}.itemsize // 16)"


def count(name: str) -> str:
    """The number of rows."""
    return f"({name}.numel() // max(1, {name}.size(-1)))"


def aligned(*names: str, optional: tuple[str, ...] = ()) -> list[str]:
    """That rows as long as those of x are packs in all these tensors, of which the optional ones
    may be missing.
    """
    return [
        "x.size(-1) > 0",
        "x.size(-1) * x.itemsize % 16 == 0",
        *(f"aligned({name}, 16)" for name in names),
        *(f"not defined({name}) or aligned({name}, 16)" for name in optional),
    ]


# ---- norms: of x, with rstd, one number for each row, and perhaps a weight -----------------------


def parameter(name: str, float32: bool = False) -> str:
    """That it is missing or has a value for each column, of x's dtype or, perhaps, float32."""
    dtype = f"{name}.dtype == x.dtype{f' or {name}.dtype == float32' if float32 else ''}"
    return f"not defined({name}) or ({dtype}) and {name}.numel() == x.size(-1)"


def check_parameter(op: str, name: str, given: torch.Tensor | None, x: torch.Tensor) -> None:
    """The same for a reference. Raises ValueError for a tensor of another shape."""
    if given is not None and given.shape != x.shape[-1:]:
        raise ValueError(
            f"{op}: {name} has shape {tuple(given.shape)}; expected {tuple(x.shape[-1:])}, "
            f"the last dimension of x {tuple(x.shape)}"
        )


def refusal_of_parameters(x: torch.Tensor, given: dict[str, torch.Tensor | None]) -> str:
    """The same for the `when` of a pattern, of all parameters, by name: one dtype, that of x, or
    float32 for rows of 16 bits."""
    there = {name: each for name, each in given.items() if each is not None}
    for name, each in there.items():
        if each.dim() != 1 or each.shape[0] != x.shape[-1]:
            return f"the {name} has not the shape of the last dimension"
        if each.dtype != x.dtype and not (each.dtype == torch.float32 and x.itemsize == 2):
            return f"the {name} has another dtype than x"
    one_dtype = len({each.dtype for each in there.values()}) <= 1
    return "" if one_dtype else f"{' and '.join(there)} have different dtypes"


def form_of_parameters(x: torch.Tensor, *given: torch.Tensor | None) -> str:
    """The `form` of a pattern: whether the parameters have another dtype than x."""
    mixed = any(each is not None and each.dtype != x.dtype for each in given)
    return "float32 weights" if mixed else ""


def sharing(packs: str, of_block: int) -> str:
    """Blocks that share a row of `packs`, as a cluster: up to 8, a power of two, so that each has
    `of_block` at most."""
    return f"max(1, min(8, next_power_of_2(ceil_div({packs}, {of_block}))))"


def clusters_of(ranks: str) -> str:
    """That a device with clusters has them of so many blocks: of 16 in data centers alone."""
    return f"{ranks} <= 8 or arch(x) < 110"


def fitting(packs: str, ranks: str, each: int | str) -> str:
    """Threads of a block, of `ranks` that share a row of `packs`: as few as have all packs if each
    has `each`. Where threads were a power of two, up to half of them would have nothing to do."""
    return f"(32 * ceil_div({packs}, 32 * {each} * {ranks}))"


def slots(packs: str, ranks: str, threads: str, most: int | str) -> str:
    """Packs of a thread that are in shared memory: those that it has, in groups of 4, or `most`."""
    return f"min({most}, 4 * ceil_div({packs}, 4 * {ranks} * {threads}))"


# Clusters with rings of rows that are resident at once, by their number of blocks: on an H200,
# with 200 KB of shared memory a block (cuOccupancyMaxActiveClusters). One cluster more would start
# when the others have ended. Of 2, 66 are, but rows of 64 KB were faster with 60. Clusters of other
# sizes leave more multiprocessors idle.
_RESIDENT = {2: 60, 3: 39, 4: 30, 5: 22, 8: 15, 16: 7}


@dataclasses.dataclass(frozen=True)
class Pipelined:
    """What declares a kernel of pipelined_rows.cuh. packs: of a row; sharing: how many blocks may
    share one, ascending; kept: bytes of parameters for each pack of a block, in shared memory;
    tensors: whose sum a row is, one or two; ring: KB of shared memory for chunks of rows."""

    packs: str
    rows: str
    sharing: tuple[int, ...]
    kept: str = "0"
    tensors: int = 1
    ring: int = 96  # with more, an H200 was slower for rows of one tensor

    def _by_length(self, values: list[int]) -> str:
        """A value for each of `sharing`: that of the fewest blocks with up to 2048 packs each."""
        *shorter, longest = zip(self.sharing, values)
        cases = "".join(f"{value} if {self.packs} <= {2048 * n} else " for n, value in shorter)
        return f"({cases}{longest[1]})"

    @property
    def ranks(self) -> str:
        """Blocks that share a row."""
        return self._by_length(list(self.sharing))

    @property
    def clusters(self) -> str:
        """Clusters of so many blocks that are resident at once."""
        return self._by_length([_RESIDENT[ranks] for ranks in self.sharing])

    @property
    def chunk(self) -> str:
        """Packs of a chunk, of which a block has two of a row: whole lines of 128 bytes."""
        return f"(8 * ceil_div({self.packs}, 2 * 8 * {self.ranks}))"

    @property
    def slots(self) -> str:
        """Chunks that a block holds: what the ring has place for, at most ten."""
        return f"min(10, {self.ring * 64 // self.tensors} // {self.chunk})"

    @property
    def template(self) -> str:
        """Template arguments RANKS and EACH."""
        return f"{{{self.ranks}}}, {{ceil_div({self.chunk}, 256)}}"

    @property
    def args(self) -> str:
        """Arguments slots and size."""
        return f"{self.slots}, {self.chunk}"

    @property
    def shared(self) -> str:
        kept = f"ceil_div({self.packs}, {self.ranks}) * ({self.kept})"
        return f"{16 * self.tensors} * {self.chunk} * {self.slots} + {kept}"

    @property
    def launch(self) -> dict[str, Any]:
        return {
            "grid": f"{self.ranks} * min({self.rows}, {self.clusters})",
            "block": 32 * (16 + 8 + 1),
            "shared": self.shared,
        }

    @property
    def requires(self) -> list[str]:
        """That there are rows enough for clusters to take turns with, and that the device has what
        it takes: shared memory, also for barriers and the statistics of ten rows from eight warps
        of each block."""
        return [
            f"{self.packs} <= {self.sharing[-1] * 2048}",
            f"{self.rows} > 4 * {self.clusters}",
            "arch(x) >= 90",
            "multiprocessors(x) >= 132",
            f"{self.shared} + 384 + 10 * 8 * 8 * {self.ranks} <= shared_memory(x)",
        ]


FLOAT = "float64 if x.dtype == float64 else float32"  # of statistics and of sums
ROWS = "rstd.numel()"
PACKS = packs("x")
CUDA = [one_of("x", CUDA_DTYPES), parameter("weight", float32=True)]
DTYPES = "{x.dtype}, {weight.dtype if defined(weight) else x.dtype}"  # template arguments T and W
CPU = [one_of("x", CPU_DTYPES), parameter("weight")]

# Threads for a row, forward: two packs each up to a half warp, up to four each in a warp or two, up
# to eight each in 256 threads.
LANES = (
    f"(max(1, next_power_of_2(ceil_div({PACKS}, 2))) if {PACKS} <= 32 else "
    f"32 if {PACKS} <= 128 else 64 if {PACKS} <= 256 else 256)"
)
ITEMS = f"ceil_div({PACKS}, {LANES})"
HELD = 256 * 8  # packs of a row that the kernels which hold rows in registers take
# backward: one pack each up to a warp, then up to four each; and blocks of 256 threads or more
LANES_BACKWARD = (
    f"(min(32, next_power_of_2({PACKS})) if {PACKS} <= 96 else 64 if {PACKS} <= 192 else "
    f"128 if {PACKS} <= 512 else 512)"
)
ITEMS_BACKWARD = f"ceil_div({PACKS}, {LANES_BACKWARD})"


def height_backward(lanes: str) -> str:
    """Rows of a block at a time."""
    return f"max(1, 256 // {lanes})"


def shared_backward(stages: str, packs: str, lanes: str) -> str:
    """Bytes for so many rounds of packs of two tensors of each thread."""
    return f"{stages} * 2 * {packs} * {lanes} * {height_backward(lanes)} * 16"


HELD_BACKWARD = 512 * 4  # packs of a row of one block
HEIGHT_BACKWARD = height_backward(LANES_BACKWARD)
# Rounds that a block holds in shared memory, up to 96 KB, which every device from sm_80 on has.
STAGES_BACKWARD = (
    f"(4 if {ITEMS_BACKWARD} == 1 else 1 if {LANES_BACKWARD} * {ITEMS_BACKWARD} > 1536 else 2)"
)
SHARED_BACKWARD = shared_backward(STAGES_BACKWARD, ITEMS_BACKWARD, LANES_BACKWARD)
MOST_BLOCKS = 256
MOST_BLOCKS_OF_WIDE = 128  # whose sums are long: to be written, and added up
# Rows for norm_backward_pipelined.cuh: clusters of 4 or 8 blocks share them. On an H200, 60 such
# clusters are resident, 30 or 15; one more would start when the others have ended. Few rows are
# given to so many clusters, since each has sums to write. Many rows are given to four times as
# many: a device on which fewer clusters are resident would take twice as long with a second wave of
# a few, but takes only a quarter longer with a fifth wave. Few rows for which this was faster are
# given to half as many: two at a time, to clusters of 8 blocks or, above 8192 packs, of 16, seven
# of which are resident.
MOST_PACKS_PIPELINED = 8 * 4096
RANKS_PIPELINED = sharing(PACKS, 1024)
MANY_ROWS = 4096
_PIPELINED = f"({PACKS} > {HELD_BACKWARD} and {PACKS} <= {MOST_PACKS_PIPELINED})"
# Blocks that share the rows of a block where their tensors are not aligned, lest there are few.
SHARES = f"({RANKS_PIPELINED} if x.size(-1) * x.itemsize % 16 == 0 and {_PIPELINED} else 1)"


def blocks(narrow: int, two_rows: str) -> str:
    """Blocks of consecutive rows, each with partial sums of the gradients of parameters. Rows are
    wide that have more than `narrow` packs, and so few that the kernels for aligned rows take
    them. two_rows: whether those of clusters are taken two at a time."""
    clusters = f"(60 if {PACKS} <= 4096 else 30 if {PACKS} <= 8192 else 15)"
    of_two = f"({_RESIDENT[8]} if {PACKS} <= 8192 else {_RESIDENT[16]})"
    few = f"({of_two} if ({two_rows}) else {clusters})"
    most = (
        f"{MOST_BLOCKS} if x.size(-1) * x.itemsize % 16 != 0 or {PACKS} <= {narrow} "
        f"or {PACKS} > {MOST_PACKS_PIPELINED} else "
        f"{MOST_BLOCKS_OF_WIDE} if {PACKS} <= {HELD_BACKWARD} else "
        f"4 * {clusters} if {ROWS} >= {MANY_ROWS} else {few}"
    )
    return f"min(ceil_div({ROWS}, 4), ({most}))"


def _most_blocks(rows: int, x: torch.Tensor, narrow: int, two_rows: bool) -> int:
    """The most that `blocks` gives."""
    packs, rest = divmod(x.size(-1) * x.itemsize, 16)
    if rest or packs <= narrow or packs > MOST_PACKS_PIPELINED:
        return MOST_BLOCKS
    if packs <= HELD_BACKWARD:
        return MOST_BLOCKS_OF_WIDE
    clusters = 60 if packs <= 4096 else 30 if packs <= 8192 else 15
    if rows >= MANY_ROWS:
        return 4 * clusters
    return _RESIDENT[8 if packs <= 8192 else 16] if two_rows else clusters


def per_block(blocks: str) -> str:
    """Rows of each."""
    return f"ceil_div({ROWS}, max(1, {blocks}))"


def sums_by_block(
    values: torch.Tensor, x: torch.Tensor, narrow: int, two_rows: bool
) -> torch.Tensor:
    """[rows, ...] added up over the rows of each of the `blocks`: [blocks, ...]"""
    rows = values.size(0)
    blocks = min(-(-rows // 4), _most_blocks(rows, x, narrow, two_rows))
    if not rows:
        return values.new_empty(values.shape)
    per_block = -(-rows // blocks)
    missing = values.new_zeros(blocks * per_block - rows, *values.shape[1:])
    return torch.cat([values, missing]).view(blocks, per_block, *values.shape[1:]).sum(1)


def declare_wide_backward(
    op: opaq.Op,
    name: str,
    kernel: str,
    dtypes: str,
    more: str,
    blocks: str,
    two_rows: str,
    requires: list[str],
    **given: Any,
) -> None:
    """Implementations for longer rows, by norm_backward_pipelined.cuh: blocks share them, as
    clusters, of as few threads as have all packs if each has `items`. name: with {} for what tells
    them apart; dtypes, more: first and last template arguments; given: source and args. 96 KB of
    shared memory are there on every device from sm_80 on; before sm_90, which has no clusters, the
    kernels compute rows by other means."""
    # Shared memory of a thread, in slots of 16 bytes, of which a block has so many KB in all: for
    # the weight, unless it has the dtype of x, and a ring of units of two packs each of two
    # tensors. In a sweep on an H200, more was better for rows of each length that was measured. A
    # block has up to 3 KB besides, for sums and for the barriers of its ring.
    held = "(not defined(weight) or weight.dtype == x.dtype)"  # in registers
    in_shared = f"(0 if {held} else weight.itemsize // x.itemsize)"  # words for each of its packs
    two_rows_ranks = f"(8 if {PACKS} <= 8192 else 16)"
    two_rows_requires = [f"{ROWS} < {MANY_ROWS} and ({two_rows})", "multiprocessors(x) >= 132"]
    for way, ranks, kilobytes, items, of_weight, longer, longest, more_requires in [
        ("two-rows", two_rows_ranks, 224, 2, in_shared, 4096, 8 * 2048, two_rows_requires),
        ("one-row", RANKS_PIPELINED, 224, 4, in_shared, 8 * 1024, 8 * 2048, []),
        ("one-row-96kb", RANKS_PIPELINED, 96, 4, in_shared, HELD_BACKWARD, 8 * 1024, []),
        ("twice-96kb", RANKS_PIPELINED, 96, 8, "0", 8 * 1024, MOST_PACKS_PIPELINED, []),
    ]:
        weights = f"{items} * {of_weight}"
        threads = fitting(PACKS, ranks, items)
        stages = f"(({kilobytes * 64} // {threads} - {weights}) // 4)"
        op.cuda(
            name=name.format(way),
            entry=f"{kernel}<{dtypes}, {{{threads}}}, {{{ranks}}}, {items}, {{{stages}}}{more}>",
            grid=f"{ranks} * {blocks}",
            block=threads,
            shared=f"(4 * {stages} + {weights}) * {threads} * 16",
            requires=[
                *requires,
                *more_requires,
                f"{PACKS} > {longer} and {PACKS} <= {longest}",
                *([f"{(kilobytes + 3) * 1024} <= shared_memory(x)"] if kilobytes > 96 else []),
            ],
            priority=1,
            **({"cluster": ranks} if way == "two-rows" else {}),  # so that 16 are allowed
            **given,
        )
