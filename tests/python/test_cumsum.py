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
)

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


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), MANY)
def test_many_whole_numbers_are_added_exactly(shape, dtype, reverse, device):
    generator = torch.Generator().manual_seed(shape[0])
    x = torch.randint(-2, 3, shape, generator=generator, dtype=torch.int8).to(device, dtype)
    assert torch.equal(cumsum(x, reverse), exact(x, reverse).to(dtype))


def test_many_numbers_and_their_gradients(device):
    for shape in ((3, 5600000), (1, 16800000)):
        check(make(shape, torch.float32, device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_replays_of_a_graph_and_two_streams_at_once():
    """All blocks of a call wait for each other: no call may keep those of another from running."""
    xs = [make(shape, torch.float32, "cuda") for shape in ((16, 1048576), (1, 17000000))]
    expected = [cumsum(x) for x in xs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in xs]
    found = []
    for _ in range(30):
        for x, stream in zip(xs, streams):
            with torch.cuda.stream(stream):
                found.append(cumsum(x))
    torch.cuda.synchronize()
    assert all(torch.equal(y, expected[i % 2]) for i, y in enumerate(found))
    graph = torch.cuda.CUDAGraph()
    x = torch.zeros_like(xs[0])
    with torch.cuda.graph(graph):
        y = cumsum(x)
    for given in (xs[0], -xs[0]):
        x.copy_(given)
        y.fill_(torch.nan)
        graph.replay()
        assert torch.equal(y, cumsum(given))


@pytest.mark.parametrize("shape", [(3, 100000), (1, 4400001), (1, 4400004), (300, 16400)])
def test_the_same_bits_every_time(shape, device):
    x = make(shape, torch.float32, device)
    first = cumsum(x)
    for _ in range(3):
        assert torch.equal(cumsum(x), first)


@pytest.mark.parametrize("n", [64, 5000, 50000, 1100000])
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
    chosen = plan(cumsum, cuda(shape, dtype), False)
    entry = "cumsum_tiles" if implementation.startswith("tiles") else "cumsum"
    assert chosen["implementation"] == f"cuda:{implementation}"
    assert chosen["entry"] == f"{entry}<{values}>"
    assert (list(chosen["grid"]), list(chosen["block"])) == ([grid, 1, 1], [*block, 1])


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
