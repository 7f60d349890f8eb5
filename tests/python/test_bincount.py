"""opaq.extern_kernels.bincount: against torch.bincount, numbers that have no bin, layouts,
compiled graphs, CUDA plans.
"""

import pytest
import torch
from kernel_checks import ARCHS, compiles, cuda, node_calls, plan, refuses

from opaq.extern_kernels import bincount
from opaq.extern_kernels.sorting.bincount import bincount_reference


def make(n, bins, dtype, device):
    generator = torch.Generator().manual_seed(n + bins)
    return torch.randint(-2, bins + 3, (n,), generator=generator).to(device, dtype)


def expected(x, bins):
    flat = x.flatten().long().cpu()
    kept = flat[(flat >= 0) & (flat < bins)]
    return torch.bincount(kept, minlength=bins)


def check(x, bins):
    counts = bincount(x, bins)
    assert (counts.dtype, counts.shape, counts.is_contiguous()) == (torch.int64, (bins,), True)
    assert torch.equal(counts.cpu(), expected(x, bins))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
@pytest.mark.parametrize("bins", [0, 1, 2, 7, 256, 385, 5000, 12288, 12289, 30000])
@pytest.mark.parametrize("n", [0, 1, 3, 1000, 40001])
def test_counts(n, bins, dtype, device):
    check(make(n, bins, dtype, device), bins)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("bins", [6144, 6145, 6146, 12288, 12289, 65536, 73728, 73729])
def test_many_numbers(bins, dtype, device):
    """Of which CUDA keeps counters of 10 bits in shared memory, up to 73728 bins."""
    x = make(1100001, bins, dtype, device)
    check(x, bins)
    check(x[1:], bins)
    check(x.sort()[0], bins)
    x[::2] = 17  # skewed
    check(x, bins)


@pytest.mark.parametrize("bins", [6146, 6147, 65536])
def test_counters_of_neighbours_overflow_together(bins, device):
    """Bins whose counters share a word on CUDA: two of them, three of them, one."""
    generator = torch.Generator().manual_seed(bins)
    for first, count in ((0, 3), (0, 2), (bins // 3 * 3 - 3, 3), (bins - 2, 2), (bins - 1, 1)):
        x = first + torch.randint(0, count, (2100001,), generator=generator)
        for dtype in (torch.int64, torch.int32):
            same = x.to(device, dtype)
            check(same, bins)
            check(same[1:], bins)
            check(same.sort()[0], bins)


@pytest.mark.parametrize("bins", [3, 300, 20000])
def test_equal_numbers(bins, device):
    for value in (0, bins - 1, bins, -1):
        check(torch.full((50001,), value, device=device), bins)


def test_the_smallest_and_largest_numbers_have_no_bin(device):
    for dtype in (torch.int64, torch.int32):
        info = torch.iinfo(dtype)
        x = torch.tensor([info.min, info.max, 1, 2**31 - 1, 1], dtype=dtype, device=device)
        check(x, 4)
        check(x, 20000)
    check(torch.tensor([2**32 + 1, 1, -(2**32) + 1], device=device), 4)


def test_layouts(device):
    x = make(24 * 30 + 1, 9, torch.int64, device)
    check(x[1:], 9)
    grid = x[1:].view(24, 30)
    for view in (grid, grid.t(), grid[:, ::2], grid[:1].expand(5, 30), grid[0, 0]):
        check(view, 9)


def test_bytes_and_truth_values(device):
    check(torch.tensor([0, 255, 3, 3], dtype=torch.uint8, device=device), 256)
    check(torch.tensor([True, False, True], device=device), 2)


def test_the_reference_means_the_same(device):
    x = make(1000, 50, torch.int64, device)
    assert torch.equal(bincount(x, 50), bincount_reference(x, 50))


def test_numbers_that_are_no_integers_are_refused(device, capfd):
    message = "bincount: x is torch.float32; expected an integer dtype"
    refuses(lambda: bincount(torch.ones(3, device=device), 4), message, capfd)


def test_opcheck(device):
    torch.library.opcheck(bincount, (make(100, 7, torch.int64, device), 7))
    torch.library.opcheck(bincount, (make(100, 7, torch.int32, device)[::2], 7))


def test_compiled(device):
    x = make(1000, 50, torch.int64, device)
    before = node_calls(bincount)
    compiled = torch.compile(lambda x: bincount(x + 1, 50) * 2, fullgraph=True)
    assert torch.equal(compiled(x), bincount(x + 1, 50) * 2)
    assert node_calls(bincount) > before


@pytest.mark.parametrize(
    ("n", "dtype", "alignment", "bins", "implementation"),
    [
        (1 << 24, torch.int64, 256, 256, "cuda:shared-packs"),
        (1 << 24, torch.int64, 8, 256, "cuda:shared-any"),
        (1 << 24, torch.int32, 256, 6144, "cuda:shared-packs"),
        (1 << 24, torch.int32, 256, 6145, "cuda:packed-packs"),
        (1 << 24, torch.int32, 4, 6145, "cuda:packed-any"),
        (1 << 20, torch.int64, 256, 73728, "cuda:packed-packs"),
        (1 << 20, torch.int64, 256, 73729, "cuda:global-packs"),
        ((1 << 20) - 1, torch.int64, 256, 12288, "cuda:shared-packs"),
        ((1 << 20) - 1, torch.int64, 256, 12289, "cuda:global-packs"),
        (1 << 19, torch.int32, 4, 65536, "cuda:global-any"),
        ((1 << 32) - 1, torch.int32, 256, 256, "cuda:shared-packs"),
        (1 << 32, torch.int32, 256, 256, "cuda:packed-packs"),
    ],
)
def test_cuda_plan(n, dtype, alignment, bins, implementation):
    chosen = plan(bincount, cuda((n,), dtype, alignment=alignment), bins)
    assert chosen["implementation"] == implementation


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("bins", [1, 384, 385, 6144, 6145, 12288])
def test_cuda_sources_compile(bins, arch):
    for dtype in (torch.int64, torch.int32):
        facts = (cuda((1 << 22,), dtype), bins)
        for each in ("shared", "packed", "global") if bins == 1 else ("shared",):
            for access in ("packs", "any"):
                compiles(bincount, facts, arch, f"cuda:{each}-{access}")
