"""opaq.extern_kernels.cumsum: floating dtypes against PyTorch in float64, integers exactly, both
directions, layouts, gradients, compiled graphs, CUDA plans.
"""

import pytest
import torch
from kernel_checks import (
    ARCHS,
    DTYPES,
    close,
    compiled_agrees,
    compiles,
    cuda,
    gradients,
    plan,
    refuses,
    serving,
)

import opaq
from opaq import _runtime
from opaq.extern_kernels import cumsum
from opaq.extern_kernels.scan.cumsum import cumsum_reference

SHAPES = [
    (1, 1),
    (7,),
    (3, 7),
    (2, 5, 128),
    (37, 8),
    (300, 24),
    (5, 1000),
    (4, 4096),
    (3, 9001),
    (2, 40000),
    (1, 100001),
    (0, 16),
    (2, 0),
]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool]


def exact(x, reverse=False):
    wide = x.double() if x.is_floating_point() else x
    return wide.flip(-1).cumsum(-1).flip(-1) if reverse else wide.cumsum(-1)


def make(shape, dtype, device):
    generator = torch.Generator().manual_seed(sum(shape))
    if dtype.is_floating_point:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
    else:
        ends = (0, 2) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        x = torch.randint(*ends, shape, generator=generator)
    return x.to(device, dtype)


def check(x, reverse=False):
    (y,), (grad,) = gradients(lambda x: cumsum(x, reverse), (x,), [0])
    (wide,), (wide_grad,) = gradients(lambda x: exact(x, reverse), (x.double(),), [0])
    assert (y.dtype, y.shape, y.is_contiguous()) == (x.dtype, x.shape, True)
    # The error of a sum grows with the size of the sums on the way, about sqrt(n).
    scale = 4 * max(1, x.shape[-1]) ** 0.5
    close(y, wide, scale=1 + (scale if x.dtype.itemsize > 2 else 0))
    close(grad, wide_grad, scale=scale)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, dtype, reverse, device):
    check(make(shape, dtype, device), reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_integers_are_exact_and_wrap(shape, dtype, reverse, device):
    x = make(shape, dtype, device)
    y = cumsum(x, reverse)
    assert y.dtype == torch.int64
    assert torch.equal(y, exact(x, reverse))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_strided_inputs(dtype, device):
    x = make((6, 10, 64), dtype, device)
    flat = make((8 * 64 + 1,), dtype, device)
    views = [x.transpose(0, 1), x[:, ::2], x[..., ::2], x.transpose(1, 2)]
    views.append(x[:, :1].expand(6, 3, 64))
    for view in [*views, flat[1:].view(8, 64)]:
        if dtype.is_floating_point:
            check(view)
        else:
            assert torch.equal(cumsum(view), exact(view))


@pytest.mark.parametrize("n", [2200000, 2200001])
def test_sums_pass_through_long_rows(n, device):
    """On CUDA, blocks tell each other sums of tiles, of 32 tiles, and of 1024 tiles."""
    x = make((2, n), torch.int64, device)
    for reverse in (False, True):
        assert torch.equal(cumsum(x, reverse), exact(x, reverse))


# On an H200, from 64 MB on, in rows of packs of at least 1048576 numbers: one block for
# each multiprocessor, which reads tiles ahead. One row fewer, one pack less, no whole packs.
MANY = [
    ((1, 16777216), torch.float32),
    ((1, 16777214), torch.float32),
    ((2, 8800004), torch.float32),
    ((16, 1048576), torch.float32),
    ((15, 1048576), torch.float32),
    ((3, 11184816), torch.bfloat16),
    ((33, 1048568), torch.float16),
]

# Where a cluster has a tile of a row, on an H100 or newer: rows of more than 65536 packs, in tiles
# of 8 blocks up to 2097152 packs in all, then of 16. Up to 32 tiles a row, 33, and 65, of which
# the last one has one pack. Not of integers.
TILED = [((1, 65537 * 4), torch.float32), ((3, 70001 * 4), torch.float32)]
TILED += [((2, 524288 * 4), torch.float32)]
TILED += [((1, 524289 * 8), torch.bfloat16), ((4, 524288 * 4), torch.float32)]
TILED += [((1, 1048577 * 8), torch.float16), ((5, 524288 * 4), torch.float32)]
TILED += [((2, 1048577 * 8), torch.bfloat16), ((2, 524288), torch.int32)]

# Where a cluster of blocks has a row, on an H100 or newer: rows of 2049 to 65536 packs. From 4097,
# 8193, 16385 and 32769 packs on there are more blocks or more warps. Where rows are a pack shorter
# or longer, or no whole packs, they are served otherwise.
CLUSTERED = [((3, packs * 4), torch.float32) for packs in (2048, 2049, 3000, 4096, 4097, 8192)]
CLUSTERED += [((2, packs * 8), torch.bfloat16) for packs in (8193, 16384, 16385, 32064, 32768)]
CLUSTERED += [((1, packs * 8), torch.float16) for packs in (2049, 32769, 65536, 65537)]
CLUSTERED += [((2, 128257), torch.float32), ((700, 8196), torch.float32)]
CLUSTERED += [((1500, 16400), torch.bfloat16), ((40, 128256), torch.float32)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), CLUSTERED + TILED + MANY)
def test_many_whole_numbers_are_added_exactly(shape, dtype, reverse, device):
    generator = torch.Generator().manual_seed(shape[0])
    x = torch.randint(-2, 3, shape, generator=generator, dtype=torch.int8).to(device, dtype)
    assert torch.equal(cumsum(x, reverse), exact(x, reverse).to(dtype))


def test_many_numbers_and_their_gradients(device):
    for shape in ((3, 5600000), (1, 16800000)):
        check(make(shape, torch.float32, device))


def test_calls_of_many_sizes_follow_each_other(device):
    """On CUDA, launches find what others left in the memory that blocks tell each other sums in."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, 3000001), (3, 70001), (1, 3000000), (40, 20001), (2, 40001), (5, 1000001)]
    sizes += [(9, 1000000), (1, 300000)]
    for turn in range(3):
        for shape in sizes:
            whole = torch.randint(-2, 3, shape, generator=generator, dtype=torch.int8).to(device)
            for dtype in (torch.float32, torch.int64, torch.int32):
                x = whole.to(dtype)
                assert torch.equal(cumsum(x, turn == 1), exact(x, turn == 1).to(cumsum(x).dtype))


def replayed(x):
    """A graph of cumsum, its input and its output."""
    given, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = cumsum(given)
    given.copy_(x)
    return graph, given, y


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    "shapes",
    [
        ((64, 128256), (256, 32768)),  # a cluster a row
        ((8, 1048576), (1, 4194304)),  # clusters that have tiles
        ((8, 1048575), (1, 4194303)),  # blocks that have tiles
        ((16, 1048576), (1, 17000000)),  # all blocks of a call wait for each other
    ],
)
def test_replays_of_graphs_and_two_streams_at_once(shapes):
    """No call may keep the blocks of another from running, or read what it tells its blocks."""
    xs = [make(shape, torch.float32, "cuda") for shape in shapes]
    expected = [cumsum(x) for x in xs]
    graphs = [replayed(x) for x in xs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in xs]
    found = []
    for _ in range(30):
        for x, stream in zip(xs, streams):
            with torch.cuda.stream(stream):
                found.append(cumsum(x))
    torch.cuda.synchronize()
    assert all(torch.equal(y, expected[i % 2]) for i, y in enumerate(found))
    for sign in (1, -1):
        for (_, given, y), x in zip(graphs, xs):
            given.copy_(sign * x)
            y.fill_(torch.nan)
        torch.cuda.synchronize()
        for _ in range(10):
            for (graph, _, _), stream in zip(graphs, streams):
                with torch.cuda.stream(stream):
                    graph.replay()
        torch.cuda.synchronize()
        for (_, _, y), sums in zip(graphs, expected):
            assert torch.equal(y, sign * sums)


@pytest.mark.parametrize("shape", [(3, 100000), (1, 4400001), (9, 1100000), (300, 16400)])
def test_the_same_bits_every_time(shape, device):
    x = make(shape, torch.float32, device)
    first = cumsum(x)
    for _ in range(3):
        assert torch.equal(cumsum(x), first)


@pytest.mark.parametrize("n", [64, 5000, 9000, 50000, 300004, 300005, 1100000])
def test_nan_and_infinity_stay_in_their_row_and_behind_their_place(n, device):
    x = make((4, n), torch.float32, device)
    x[1, n // 2], x[2, n // 3] = torch.nan, torch.inf
    for reverse in (False, True):
        close(cumsum(x, reverse), exact(x, reverse), scale=4 * n**0.5)


def test_the_reference_means_the_same(device):
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        x = make((7, 24), dtype, device)
        for reverse in (False, True):
            torch.testing.assert_close(cumsum(x, reverse), cumsum_reference(x, reverse))


def test_what_has_no_last_dimension_or_order_is_refused(device, capfd):
    message = (
        "cumsum: x is torch.float32 of shape (); expected at least one dimension and a floating or "
        "integer dtype"
    )
    refuses(lambda: cumsum(torch.ones((), device=device)), message, capfd)


def test_opcheck(device):
    x = make((5, 32), torch.float32, device)
    torch.library.opcheck(cumsum, (x.requires_grad_(),), {"reverse": True})
    torch.library.opcheck(cumsum, (x.detach()[:, ::2],))
    torch.library.opcheck(cumsum, (make((5, 32), torch.int32, device),))


def test_second_gradients(device):
    x = make((3, 9), torch.float64, device).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: cumsum(x, True).square(), x)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 48), (9, 52), (33, 20)] if dynamic else [(6, 48)]
    compiled_agrees(
        cumsum,
        lambda x: cumsum(x * 2).sin(),
        [(make(shape, torch.float32, device),) for shape in shapes],
        [0],
        dynamic,
    )


TILES = "float, float, 128, 8, 4"
WITHOUT_CLUSTERS = [f"cuda:{way}" for way in ("tiles-packs", "tiles-any", "packs", "any")]


@pytest.mark.parametrize(
    ("shape", "dtype", "implementation", "values", "grid", "block"),
    [
        ((8192, 4096), torch.float32, "packs", "float, float, 256, 4, 4", 8192, [256, 1]),
        ((100, 64), torch.float16, "packs", "__half, __half, 2, 4, 8", 1, [2, 128]),
        ((100, 65), torch.int32, "any", "int, long long, 32, 3, 1", 13, [32, 8]),
        ((8192, 32768), torch.float32, "packs", "float, float, 256, 4, 4", 8192, [256, 1]),
        ((64, 32768), torch.float32, "tiles-packs", TILES, 512, [128, 1]),
        ((1, 1 << 25), torch.int32, "tiles-packs", "int, long long, 128, 8, 2", 16384, [128, 1]),
        ((1, 1 << 31), torch.int32, "tiles-packs", "int, long long, 128, 8, 2", 1 << 20, [128, 1]),
        ((2, 50001), torch.float16, "tiles-any", "__half, __half, 256, 12, 1", 34, [256, 1]),
    ],
)
def test_cuda_plan(shape, dtype, implementation, values, grid, block):
    with opaq.prefer(cumsum, WITHOUT_CLUSTERS):
        chosen = plan(cumsum, cuda(shape, dtype), False)
    entry = "cumsum_tiles" if implementation.startswith("tiles") else "cumsum"
    assert chosen["implementation"] == f"cuda:{implementation}"
    assert chosen["entry"] == f"{entry}<{values}>"
    assert (list(chosen["grid"]), list(chosen["block"])) == ([grid, 1, 1], [*block, 1])


@pytest.mark.parametrize(
    ("shape", "dtype", "arch", "name", "kernel"),
    [
        ((1000, 8192), torch.float32, "sm_90a", "packs", "float, float, 256, 4, 4"),
        ((1000, 8196), torch.float32, "sm_90a", "cluster", "float, 4, 4, 5"),
        ((256, 32768), torch.float32, "sm_90a", "cluster", "float, 8, 4, 8"),
        ((64, 128256), torch.float32, "sm_90a", "cluster", "float, 16, 8, 8"),
        ((64, 128256), torch.bfloat16, "sm_100a", "cluster", "__nv_bfloat16, 16, 4, 8"),
        ((5000, 262144), torch.float16, "sm_90a", "cluster", "__half, 16, 8, 8"),
        ((527, 262144), torch.float32, "sm_90a", "cluster", "float, 16, 16, 8"),
        ((528, 262144), torch.float32, "sm_90a", "packs", "float, float, 256, 4, 4"),
        ((1, 262148), torch.float32, "sm_90a", "cluster-tiles", "float, 8, 8, 7"),
        ((8, 1 << 20), torch.float32, "sm_90a", "cluster-tiles", "float, 8, 8, 8"),
        ((2, (1 << 22) + 4), torch.float32, "sm_90a", "cluster-tiles", "float, 16, 8, 8"),
        ((9, 1 << 20), torch.float32, "sm_100a", "cluster-tiles", "float, 16, 8, 8"),
        ((527, 262148), torch.float32, "sm_90a", "cluster-tiles", "float, 16, 8, 6"),
        ((528, 262148), torch.float32, "sm_90a", "packs", "float, float, 256, 4, 4"),
        ((16, 262149), torch.float32, "sm_90a", "tiles-any", "float, float, 256, 12, 1"),
        ((16, 262148), torch.float32, "sm_80", "tiles-packs", "float, float, 128, 8, 4"),
        ((1, 262148), torch.float32, "sm_120", "cluster-tiles", "float, 8, 8, 7"),
        ((100, 1000000), torch.float16, "sm_120", "tiles-packs", "__half, __half, 128, 8, 8"),
        ((64, 128257), torch.float32, "sm_90a", "tiles-any", "float, float, 256, 12, 1"),
        ((64, 128256), torch.int32, "sm_90a", "tiles-packs", "int, long long, 128, 8, 2"),
        ((64, 128256), torch.float32, "sm_80", "tiles-packs", "float, float, 128, 8, 4"),
        ((64, 32768), torch.float32, "sm_120", "cluster", "float, 8, 4, 8"),
        ((64, 128256), torch.float32, "sm_120", "tiles-packs", "float, float, 128, 8, 4"),
    ],
)
def test_what_serves_on_a_device(shape, dtype, arch, name, kernel):
    served, launch = serving(cumsum, (cuda(shape, dtype), False), arch)
    assert served == f"cuda:{name}"
    assert launch["entry"].endswith(f"<{kernel}>")


MULTIPROCESSORS = "which only a launch can ask for"  # all that is left to know


@pytest.mark.parametrize(
    ("shape", "dtype", "arch", "why"),
    [
        ((1, 1 << 24), torch.float32, "sm_90a", MULTIPROCESSORS),
        ((1, (1 << 24) - 4), torch.float32, "sm_90a", "x.numel() * x.itemsize >= "),
        ((1, (1 << 24) + 2), torch.float32, "sm_90a", " % (16 // x.itemsize) == 0"),
        ((32, 1 << 20), torch.float16, "sm_100a", MULTIPROCESSORS),
        ((32, 1 << 19), torch.float16, "sm_100a", " >= 1048576"),
        ((528, 1 << 20), torch.float32, "sm_90a", " < 528"),
        ((1, 1 << 24), torch.int32, "sm_90a", "x.dtype == "),
        ((1, 1 << 31), torch.float32, "sm_90a", MULTIPROCESSORS),
        ((1, 1 << 24), torch.float32, "sm_80", "arch(x) >= 90"),
        ((1, 1 << 24), torch.float32, "sm_120", " <= shared_memory(x)"),
    ],
)
def test_what_blocks_that_read_ahead_serve(shape, dtype, arch, why):
    facts = (cuda(shape, dtype), False)
    found = _runtime.check_code(cumsum.name, "cuda:ring", facts, [arch])[0]
    assert why in (found["why_not"] or found["refused"][0])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("implementation", ["packs", "any", "tiles-packs", "tiles-any"])
def test_cuda_sources_compile(implementation, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64):
        facts = (cuda((2, 32768), dtype), False)
        compiles(cumsum, facts, arch, f"cuda:{implementation}")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_source_of_blocks_that_read_ahead_compiles(dtype, arch):
    compiles(cumsum, (cuda((1, 1 << 24), dtype), False), arch, "cuda:ring")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_source_of_clusters_compiles(dtype, arch):
    for packs in (2049, 4096, 8192, 16385, 65536):
        facts = (cuda((2, packs * (16 // dtype.itemsize)), dtype), False)
        compiles(cumsum, facts, arch, "cuda:cluster")


@pytest.mark.parametrize("arch", ARCHS)
def test_the_source_of_tiles_of_clusters_compiles(arch):
    for rows, packs in ((1, 65537), (1, 524288), (40, 65537), (1, 4194304)):
        facts = (cuda((rows, packs * 4), torch.float32), False)
        compiles(cumsum, facts, arch, "cuda:cluster-tiles")
