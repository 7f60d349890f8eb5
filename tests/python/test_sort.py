"""opaq.extern_kernels.sort: against torch.sort, exactly: order, stability, NaN and zeros, layouts,
gradients, compiled graphs, CUDA plans.
"""

import pytest
import torch
from kernel_checks import ARCHS, DTYPES, compiled_agrees, compiles, cuda, gradients, plan, refuses

from opaq.extern_kernels import sort
from opaq.extern_kernels.sorting.sort import sort_reference

SHAPES = [
    (1, 1),
    (7,),
    (3, 7),
    (2, 5, 128),
    (37, 257),
    (4, 4096),
    (3, 4097),
    (2, 16384),
    (2, 16385),
    (0, 16),
    (2, 0),
]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.uint8]


def make(shape, dtype, device):
    """Numbers of which some are equal."""
    generator = torch.Generator().manual_seed(sum(shape))
    if dtype.is_floating_point:
        return (torch.randn(shape, generator=generator) * 64).round().div(16).to(device, dtype)
    info = torch.iinfo(dtype)
    x = torch.randint(info.min, info.max, shape, generator=generator)
    return torch.where(x % 3 == 0, x // 64, x).to(device, dtype)


def check(x, descending=False):
    values, indices = sort(x, descending)
    # On GPUs, torch.sort takes a NaN with a sign for the smallest.
    wanted, places = torch.sort(x.cpu(), dim=-1, descending=descending, stable=True)
    wanted, places = wanted.to(x.device), places.to(x.device)
    assert (values.dtype, values.shape, values.is_contiguous()) == (x.dtype, x.shape, True)
    assert (indices.dtype, indices.shape) == (torch.int64, x.shape)
    torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices, places)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, *INTEGERS])
@pytest.mark.parametrize("shape", SHAPES)
def test_order_and_indices(shape, dtype, descending, device):
    check(make(shape, dtype, device), descending)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [9, 1000, 5000])
def test_nan_infinities_and_zeros(n, dtype, descending, device):
    choices = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1.5, -2.0, -torch.nan])
    generator = torch.Generator().manual_seed(n)
    x = choices[torch.randint(len(choices), (4, n), generator=generator)].to(device, dtype)
    check(x, descending)
    values, indices = sort(x, descending)
    assert torch.equal(values.signbit(), x.gather(-1, indices).signbit())


@pytest.mark.parametrize("descending", [False, True])
def test_equal_elements_keep_their_order(descending, device):
    for dtype in (torch.float32, torch.int32, torch.bfloat16):
        x = torch.zeros(2, 3000, dtype=dtype, device=device)
        assert torch.equal(sort(x, descending)[1], torch.arange(3000, device=device).expand(2, -1))


def test_the_smallest_and_largest_integers(device):
    info = torch.iinfo(torch.int32)
    x = torch.tensor([0, info.max, -1, info.min, 1, info.max], dtype=torch.int32, device=device)
    for descending in (False, True):
        check(x, descending)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(dtype, device):
    x = make((6, 10, 64), dtype, device)
    for view in (x.transpose(0, 1), x[:, ::2], x[..., ::2], x[:, :1].expand(6, 3, 64)):
        check(view)
    check(make((8 * 64 + 1,), dtype, device)[1:].view(8, 64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype, device):
    x = make((5, 100), dtype, device)
    _, grads = gradients(lambda x: sort(x, True)[0], (x,), [0])
    plain = {"dim": -1, "descending": True, "stable": True}
    _, wanted = gradients(lambda x: torch.sort(x, **plain)[0], (x,), [0])
    assert torch.equal(grads[0], wanted[0])


def test_the_reference_means_the_same(device):
    x = make((5, 100), torch.float32, device)
    for actual, wanted in zip(sort(x), sort_reference(x)):
        assert torch.equal(actual, wanted)


def test_what_has_no_last_dimension_is_refused(device, capfd):
    message = "sort: x is torch.float32 of shape (); expected at least one dimension"
    refuses(lambda: sort(torch.ones((), device=device)), message, capfd)


def test_opcheck(device):
    x = make((5, 32), torch.float32, device)
    torch.library.opcheck(sort, (x.requires_grad_(),), {"descending": True})
    torch.library.opcheck(sort, (make((5, 32), torch.int32, device)[:, ::2],))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 48), (9, 52), (33, 20)] if dynamic else [(6, 48)]
    compiled_agrees(
        sort,
        lambda x: sort(x * 2)[0].sin(),
        [(make(shape, torch.float32, device),) for shape in shapes],
        [0],
        dynamic,
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid", "block"),
    [
        ((8192, 4096), torch.float32, "sort<float, 512, 8, ", 8192, 512),
        ((1024, 16384), torch.float32, "sort<float, 512, 32, ", 1024, 512),
        ((10, 7), torch.bfloat16, "sort<__nv_bfloat16, 32, 1, ", 10, 32),
        ((10, 1000), torch.int32, "sort<int, 128, 8, ", 10, 128),
    ],
)
def test_cuda_plan(shape, dtype, entry, grid, block):
    chosen = plan(sort, cuda(shape, dtype), False)
    assert chosen["entry"].startswith(entry)
    assert (list(chosen["grid"]), list(chosen["block"])) == ([grid, 1, 1], [block, 1, 1])
    assert chosen["shared"] <= 96 * 1024


def test_long_rows_are_served_by_the_reference():
    assert plan(sort, cuda((2, 16385), torch.float32), False)["implementation"] == "reference"
    assert plan(sort, cuda((2, 64), torch.int64), False)["implementation"] == "reference"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("n", [1, 100, 4096, 16384])
def test_cuda_sources_compile(n, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32):
        compiles(sort, (cuda((5, n), dtype), False), arch, "cuda")
