"""opaq.extern_kernels.sum_of_blocks: against sums in float64, layouts, CUDA plans."""

import pytest
import torch
from kernel_checks import ARCHS, DTYPES, close, compiles, cuda, plan, refuses

from opaq.extern_kernels import sum_of_blocks
from opaq.extern_kernels.sum_of_blocks.sum_of_blocks import sum_of_blocks_reference


def make(shape, dtype, device):
    generator = torch.Generator().manual_seed(sum(shape))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    partial = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, wide)
    return partial, torch.empty(3, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(1, 4), (256, 2, 768), (255, 4096), (3, 7), (1000, 33), (7,), (5, 0), (0, 8), (2, 3, 5, 31)],
)
def test_sums(shape, dtype, device):
    partial, like = make(shape, dtype, device)
    found = sum_of_blocks(partial, like)
    assert (found.dtype, found.shape, found.is_contiguous()) == (dtype, shape[1:], True)
    close(found, partial.double().sum(0), scale=max(1, shape[0]) ** 0.5)
    close(sum_of_blocks_reference(partial, like), partial.double().sum(0), scale=shape[0] + 1)
    for _ in range(3):
        assert torch.equal(found, sum_of_blocks(partial, like))


def test_strided_and_unaligned_blocks(device):
    partial, like = make((40, 2, 65), torch.float32, device)
    for view in (partial[::2], partial[:, 1], partial[..., 1:], partial.transpose(1, 2)):
        close(sum_of_blocks(view, like), view.double().sum(0), scale=8)
    flat = partial.flatten()[1 : 1 + 40 * 64].view(40, 64)
    close(sum_of_blocks(flat, like), flat.double().sum(0), scale=8)


def test_nan_and_infinity_stay_in_their_column(device):
    partial, like = make((100, 64), torch.float32, device)
    partial[3, 1], partial[50, 2] = torch.nan, torch.inf
    found = sum_of_blocks(partial, like)
    assert found[1].isnan() and found[2] == torch.inf and found[3:].isfinite().all()


def test_the_op_passes_opcheck(device):
    torch.library.opcheck(sum_of_blocks, make((5, 8), torch.float32, device))


def test_a_partial_without_dimensions_is_refused(device, capfd):
    partial = torch.zeros((), device=device)
    refuses(lambda: sum_of_blocks(partial, partial), "expected [blocks, ...]", capfd)


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid"),
    [
        ((256, 2, 768), torch.bfloat16, "<__nv_bfloat16, 4>", 48),
        ((256, 4096), torch.float32, "<float, 4>", 128),
        ((64, 33), torch.float16, "<__half, 1>", 2),
    ],
)
def test_cuda_plan(shape, dtype, entry, grid):
    chosen = plan(sum_of_blocks, cuda(shape, torch.float32), cuda((3,), dtype))
    assert chosen["entry"] == "sum_of_blocks" + entry
    assert (list(chosen["grid"]), list(chosen["block"])) == ([grid, 1, 1], [256, 1, 1])


@pytest.mark.parametrize("arch", ARCHS)
def test_the_cuda_kernels_compile(arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for columns, name in ((64, "cuda:packs"), (63, "cuda:any")):
            facts = cuda((256, columns), torch.float32), cuda((3,), dtype)
            compiles(sum_of_blocks, facts, arch, name)
