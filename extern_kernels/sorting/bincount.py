"""How often each number occurs: declaration and reference.

bincount(x, bins) -> counts

x: integer, of any shape
counts: [bins], int64; counts[b] says how many elements of x are b

Elements below 0 and from `bins` on are not counted, and it is no error that there are some. Exact,
hence deterministic. The number of bins is given, so that the result's shape does not depend on x.
"""

import torch

import opaq

bincount = opaq.op(
    "opaq_kernels::bincount(Tensor x, int bins) -> (Tensor counts)",
    outputs=opaq.tensor("bins", dtype="int64"),
)

_REQUIRES = [
    "x.dtype == int64 or x.dtype == int32",
    "x.is_contiguous()",
    "x.numel() > 0",
    "bins > 0",
]
_SHARED = 12288  # counters that a block has in shared memory, of 4 bytes
# The next smaller power of two of the counters that there is room for, up to one for each lane.
_COPIES = f"min(32, next_power_of_2({_SHARED} // bins // 2 + 1))"
_FLAT = {"grid": "ceil_div(bins, 256)", "block": 256}
_CLEAR = opaq.step(entry="clear_counts", args="counts, bins, 0, 0", **_FLAT)

# Three counters of 10 bits in a word, for so many numbers that it pays to add up those of blocks;
# from where counters of 4 bytes have no copies, up to 96 KB, which every device from sm_80 on has.
_FEW, _PACKED, _MANY = 6144, 73728, 1 << 20
_WORDS = "ceil_div(bins, 3 * 4) * 4"
_BLOCKS = 132  # one for each multiprocessor of an H100 or H200

for _name, _priority in (("packs", 1), ("any", 0)):
    _vec = "(16 // x.itemsize)" if _priority else "1"
    _requires = [*_REQUIRES, *(["aligned(x, 16)"] if _priority else [])]
    _blocks = f"min(ceil_div(x.numel(), 512 * 4 * {_vec}), 264)"
    bincount.cuda(
        name=f"cuda:shared-{_name}",
        source=opaq.file("bincount.cu"),
        steps=[
            _CLEAR,
            opaq.step(
                entry=f"bincount_shared<{{x.dtype}}, {{{_vec}}}, {{{_COPIES}}}>",
                grid=_blocks,
                block=512,
                shared=f"bins * {_COPIES} * 4",
                args="counts, x, x.numel(), bins",
            ),
        ],
        # so that no counter of 4 bytes overflows
        requires=[*_requires, f"bins <= {_SHARED}", "x.numel() < 4294967296"],
        priority=_priority + 2,
    )
    bincount.cuda(
        name=f"cuda:packed-{_name}",
        source=opaq.file("bincount.cu"),
        scratch={"sums": opaq.tensor(_WORDS, dtype="uint64")},
        steps=[
            opaq.step(entry="clear_counts", args=f"counts, bins, sums, {_WORDS}", **_FLAT),
            opaq.step(
                entry=f"bincount_packed<{{x.dtype}}, {{{_vec}}}>",
                grid=_BLOCKS,
                block=1024,
                shared=f"{_WORDS} * 4",
                args=f"counts, sums, x, x.numel(), bins, {_WORDS}",
            ),
            opaq.step(entry="add_packed", args="counts, sums, bins", **_FLAT),
        ],
        requires=[
            *_requires,
            f"x.numel() >= ({_MANY} if bins > {_FEW} else 4294967296)",
            f"bins <= {_PACKED}",
        ],
        priority=_priority + 4,
    )
    bincount.cuda(
        name=f"cuda:global-{_name}",
        source=opaq.file("bincount.cu"),
        steps=[
            _CLEAR,
            opaq.step(
                entry=f"bincount_global<{{x.dtype}}, {{{_vec}}}>",
                grid=f"min(ceil_div(x.numel(), 512 * 4 * {_vec}), 1056)",
                block=512,
                args="counts, x, x.numel(), bins",
            ),
        ],
        requires=_requires,
        priority=_priority,
    )

bincount.cpu(
    source=opaq.file("bincount.cpp"),
    entry="bincount<{x.dtype}>",
    args="counts, x, x.numel(), bins",
    requires=_REQUIRES,
)


@bincount.reference
def bincount_reference(x: torch.Tensor, bins: int) -> torch.Tensor:
    if x.is_floating_point() or x.is_complex():
        raise ValueError(f"bincount: x is {x.dtype}; expected an integer dtype")
    flat = x.flatten().long()
    one_more = torch.zeros(bins + 1, dtype=torch.int64, device=x.device)
    there = (flat >= 0) & (flat < bins)
    counts = one_more.scatter_add(0, torch.where(there, flat, bins), torch.ones_like(flat))
    return counts[:bins].clone()
