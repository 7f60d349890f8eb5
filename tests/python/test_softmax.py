"""opaq.extern_kernels.softmax: values and gradients against float64 PyTorch, masks and how they
broadcast, rows without any value left, layouts, compiled graphs, CUDA plans.
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
    misfits,
    plan,
    refuses,
    serving,
)

import opaq
from opaq.extern_kernels import (
    log_softmax,
    log_softmax_backward,
    softmax,
    softmax_backward,
)
from opaq.extern_kernels.softmax.softmax import (
    log_softmax_backward_reference,
    log_softmax_reference,
    softmax_backward_reference,
    softmax_reference,
)

SHAPES = [
    (1, 1),
    (3, 7),
    (7,),
    (),
    (2, 3, 5, 16),
    (37, 8),
    (300, 24),
    (5, 1000),
    (4, 4096),
    (3, 9000),
    (2100, 256),
    (130, 1032),
    (3, 20000),
    (2, 65544),
    (3, 50304),
    (3, 50257),
    (5, 12289),
    (0, 16),
    (4, 0),
]


def random(shape, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).to(device, dtype)


def exact(x, scale=1.0, mask=None):
    values = x.double() * scale
    return torch.softmax(values if mask is None else values + mask.double(), -1)


def exact_log(x, scale=1.0):
    return torch.log_softmax(x.double() * scale, -1)


def check(x, scale=1.0, mask=None):
    inputs = (x, scale, mask)
    which = [0] if mask is None else [0, 2]
    (y,), grads = gradients(softmax, inputs, which)
    wide = (x.double(), scale, None if mask is None else mask.double())
    (expected,), wide_grads = gradients(exact, wide, which)
    assert (y.dtype, y.shape, y.is_contiguous()) == (x.dtype, x.shape, True)
    close(y, expected)
    for grad, wide_grad, value in zip(grads, wide_grads, [x, mask]):
        assert (grad.dtype, grad.shape) == (value.dtype, value.shape)
        # each summand was rounded to the dtype of x
        summands = max(1, x.numel() // max(1, value.numel()))
        coarser = max(x.dtype, value.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        close(grad, wide_grad, coarser, scale=4 * summands**0.5)


def check_log(x, scale=1.0):
    (y,), (grad,) = gradients(log_softmax, (x, scale), [0])
    (expected,), (wide_grad,) = gradients(exact_log, (x.double(), scale), [0])
    assert (y.dtype, y.shape, grad.dtype) == (x.dtype, x.shape, x.dtype)
    close(y, expected)
    # the logarithms that the gradient is computed from were rounded; sums gather rounding
    close(grad, wide_grad, scale=4 + (x.shape[-1] if x.dim() else 1) ** 0.5 / 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, dtype, device):
    check(random(shape, dtype, device))
    check_log(random(shape, dtype, device))


@pytest.mark.parametrize("scale", [0.125, -1.5, 0.0])
def test_scale(scale, device):
    for dtype in (torch.float32, torch.bfloat16):
        check(random((5, 96), dtype, device), scale)
        check_log(random((5, 96), dtype, device), scale)


def test_wide_rows_begin_at_any_element(device):
    """More rows than a team takes at a time, each of which begins elsewhere."""
    rows = 1030 if device == "cuda" else 9
    for scale in (1.0, -1.5):
        for dtype, length in ((torch.float32, 3333), (torch.bfloat16, 9007), (torch.half, 98306)):
            x = random((rows, length), dtype, device)
            x[3, :5], x[4, -3:], x[5], x[6] = -torch.inf, -torch.inf, -torch.inf, 3e4
            x[:, 7] = x[:, 7] * 30
            check(x, scale)
            check_log(x, scale)


# 16-byte packs of a row: the first and the last that clusters of 2, 4, 8 and 16 blocks compute, of
# 4 and of 8 warps; one less and one more; parts of blocks that are not whole lines of 128 bytes.
CLUSTERS = [(300, 2047), (300, 2048), (300, 2049), (7, 2500), (7, 4096), (7, 4097), (7, 6288)]
CLUSTERS += [(7, 8192), (7, 8193), (7, 16032), (7, 16385), (7, 25256), (7, 32768), (7, 32769)]
CLUSTERS += [(7, 50511), (7, 65536), (7, 65537)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", CLUSTERS)
def test_rows_of_clusters(shape, dtype, device):
    rows, packs = shape if device == "cuda" else (9, 2048)
    length = packs * 16 // dtype.itemsize
    x = random((rows, length), dtype, device)
    x[0, 5] = -torch.inf
    x[1, : length // 2], x[2, ::3], x[3], x[4] = -torch.inf, -torch.inf, 3e4, -3e4
    x[5, -1], x[6, 0] = 300, torch.nan
    for scale in (1.0, -1.5):
        close(softmax(x, scale), exact(x, scale))
        close(log_softmax(x, scale), exact_log(x, scale))
    for row, value in ((0, torch.inf), (1, -torch.inf), (2, torch.nan)):
        x[row] = value
    assert softmax(x)[:3].isnan().all() and log_softmax(x)[:3].isnan().all()


@pytest.mark.parametrize("length", [20480, 65472, 128256])
def test_rows_of_clusters_are_the_same_bits_every_time_whatever_is_beside_them(length, device):
    """Warps send each other what they found as soon as they have it."""
    rows = 200 if device == "cuda" else 9
    x = random((rows, length), torch.bfloat16, device)
    first = softmax(x), log_softmax(x)
    others = [3, rows // 2, rows - 1]
    x[others[0], 5], x[others[1], length - 1], x[others[2]] = torch.nan, torch.inf, -torch.inf
    kept = [row for row in range(rows) if row not in others]
    for _ in range(3):
        for actual, expected in zip((softmax(x), log_softmax(x)), first):
            assert torch.equal(actual[kept], expected[kept]) and actual[others].isnan().all()


@pytest.mark.parametrize("length", [20480, 61440])
def test_rows_of_clusters_are_replaced_by_their_results(length, device):
    """A compiled graph gives the result the memory of the values, which nothing reads then."""
    rows = 130 if device == "cuda" else 9
    x = random((rows, length), torch.bfloat16, device)
    for op in (softmax, log_softmax):
        compiled = torch.compile(lambda x: op(x + 1, 0.5))
        torch.testing.assert_close(compiled(x), op(x + 1, 0.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [48, 51])
@pytest.mark.parametrize(
    "sizes", [(), (1,), (5,), (3, 5), (3, 1), (2, 1, 1), (1, 3, 5), (2, 3, 5), (2, 1, 5)]
)
def test_a_mask_broadcasts(sizes, length, dtype, device):
    x = random((2, 3, 5, length), dtype, device)
    check(x, 0.25, random((*sizes, length), dtype, device, seed=1))
    check(x, 0.25, random((*sizes, length), torch.float32, device, seed=1))


def test_masks_of_other_layouts(device):
    x, mask = random((2, 3, 5, 48), torch.float32, device), random((96,), torch.float32, device)
    check(x, 1.0, mask[::2])
    check(x, 1.0, mask[3:51])
    check(x, 1.0, mask[:1])
    check(x, 1.0, random((5, 1), torch.float32, device))
    check(x, 1.0, mask[:48].expand(3, 5, 48))
    check(x, 1.0, random((3, 2, 5, 48), torch.float32, device).transpose(0, 1))
    check(x, 1.0, random((2, 3, 48, 5), torch.float32, device).mT)
    check(x, 1.0, random((48,), torch.float64, device))
    check(x.view(2, 3, 5, 1, 48), 1.0, random((2, 1, 5, 1, 48), torch.float32, device))
    check(x.view(2, 3, 5, 1, 48), 1.0, random((3, 1, 1, 48), torch.float32, device))


def causal(length, dtype, device, below):
    mask = torch.full((length, length), below, dtype=dtype, device=device)
    return mask.triu(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_causal_mask_leaves_zeros(dtype, device):
    x = random((2, 3, 40, 40), dtype, device)
    for below in (-torch.inf, torch.finfo(dtype).min):
        mask = causal(40, dtype, device, below)
        y = softmax(x, 0.5, mask)
        close(y, exact(x, 0.5, mask))
        assert (y.triu(1) == 0).all()


@pytest.mark.parametrize("length", [40, 43, 4096])
def test_rows_without_any_value_left_as_in_pytorch(length, device):
    x = random((6, length), torch.float32, device)
    x[0], x[1, ::2], x[2, 3], x[3, 5] = -torch.inf, -torch.inf, torch.nan, torch.inf
    x[4] = torch.finfo(torch.float32).min
    for ours, theirs in ((softmax, torch.softmax), (log_softmax, torch.log_softmax)):
        torch.testing.assert_close(ours(x), theirs(x, -1), equal_nan=True)
    assert softmax(x)[0].isnan().all() and softmax(x)[2].isnan().all()
    close(softmax(x)[4], torch.full_like(x[4], 1 / length))
    mask = torch.full((length,), -torch.inf, device=device)
    assert softmax(x, 1.0, mask).isnan().all()


@pytest.mark.parametrize("length", [100, 4096, 20000])
@pytest.mark.parametrize("shift", [1e4, -1e4, 1e7, -1e10, 1e30, -3e38])
def test_large_values_neither_overflow_nor_cancel(shift, length, device):
    x = (random((8, length), torch.float32, device) * 8).round() + shift  # exact at 1e4
    x[0, 1:], x[1, 7] = 0, 0
    close(softmax(x), exact(x))
    close(log_softmax(x), exact_log(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs_and_odd_offsets(dtype, device):
    x = random((6, 10, 64), dtype, device)
    for view in (x.transpose(0, 1), x[:, ::2], x[..., ::2], x[:, :1].expand(6, 3, 64), x[..., 3:]):
        check(view)
        check_log(view)
    for length in (7, 64, 257):
        flat = random((3 * length + 9,), dtype, device)
        for offset in range(9):
            check(flat[offset : offset + 3 * length].view(3, length), 0.5, flat[:length])
            check_log(flat[offset : offset + 3 * length].view(3, length))


def test_the_references_mean_the_same(device):
    x, grad = (random((70, 24), torch.float32, device, seed) for seed in (0, 1))
    mask = random((24,), torch.float32, device)
    y = softmax(x, 0.5, mask)
    torch.testing.assert_close(y, softmax_reference(x, 0.5, mask))
    torch.testing.assert_close(
        softmax_backward(grad, y, 0.5), softmax_backward_reference(grad, y, 0.5)
    )
    y = log_softmax(x, 0.5)
    torch.testing.assert_close(y, log_softmax_reference(x, 0.5))
    torch.testing.assert_close(
        log_softmax_backward(grad, y, 0.5), log_softmax_backward_reference(grad, y, 0.5)
    )


def test_masks_that_do_not_fit_are_refused(device, capfd):
    x = random((3, 5, 8), torch.float32, device)
    message = (
        "softmax: the mask has shape (4, 8); expected one that broadcasts to that of x, (3, 5, 8): "
        "each of its sizes, from the last on, is 1 or x's"
    )
    refuses(lambda: softmax(x, 1.0, x.new_zeros(4, 8)), message, capfd)
    message = "softmax: the mask has shape (2, 3, 5, 8); expected one that broadcasts"
    refuses(lambda: softmax(x, 1.0, x.new_zeros(2, 3, 5, 8)), message, capfd)
    message = "softmax: the mask is torch.bool; expected a floating-point dtype: it is added."
    refuses(lambda: softmax(x, 1.0, x > 0), message, capfd)


def test_opcheck(device):
    x, mask = random((5, 32), torch.float32, device), random((32,), torch.float32, device)
    torch.library.opcheck(softmax, (x.requires_grad_(), 0.5, mask.requires_grad_()))
    torch.library.opcheck(softmax, (x.detach()[:, ::2],))
    torch.library.opcheck(log_softmax, (x, 0.5))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 48), (9, 48), (33, 48)] if dynamic else [(6, 48)]
    cases = [
        (random(shape, torch.float32, device), random((48,), torch.float32, device))
        for shape in shapes
    ]
    compiled_agrees(
        softmax, lambda x, m: softmax(x * 2, 0.5, m.cos()).sin(), cases, [0, 1], dynamic
    )
    compiled_agrees(log_softmax, lambda x, m: log_softmax(x * m, 0.5).sin(), cases, [0, 1], dynamic)


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid", "block"),
    [
        ((8192, 4096), torch.bfloat16, "<__nv_bfloat16, void, false, 256, 2>", 8192, [256, 1, 1]),
        (
            (8192, 16384),
            torch.bfloat16,
            "_wide<__nv_bfloat16, void, false, 256, 1, false>",
            8192,
            [256, 1, 1],
        ),
        ((8192, 6144), torch.bfloat16, "<__nv_bfloat16, void, false, 256, 3>", 8192, [256, 1, 1]),
        ((80, 8192), torch.float16, "_wide<__half, void, false, 128, 1, false>", 80, [128, 1, 1]),
        ((80, 10240), torch.float16, "_wide<__half, void, false, 128, 1, false>", 80, [128, 1, 1]),
        ((16384, 1024), torch.bfloat16, "<__nv_bfloat16, void, false, 32, 4>", 2048, [32, 8, 1]),
        ((65536, 128), torch.bfloat16, "<__nv_bfloat16, void, false, 8, 2>", 2048, [8, 32, 1]),
        ((10, 20), torch.float32, "<float, void, false, 4, 2>", 1, [4, 64, 1]),
        ((10, 21), torch.float32, "_any<float, void, false, 32>", 10, [32, 1, 1]),
        ((10, 50257), torch.float16, "_wide<__half, void, false, 512, 1, true>", 10, [512, 1, 1]),
        ((10, 4097), torch.float16, "_any<__half, void, false, 256>", 10, [256, 1, 1]),
        (
            (4096, 32768),
            torch.bfloat16,
            "_wide<__nv_bfloat16, void, false, 512, 1, false>",
            4096,
            [512, 1, 1],
        ),
        (
            (1024, 128264),
            torch.bfloat16,
            "_wide<__nv_bfloat16, void, false, 256, 4, false>",
            2048,
            [256, 1, 1],
        ),
        (
            (101, 262144),
            torch.float32,
            "_wide<float, void, false, 256, 8, false>",
            808,
            [256, 1, 1],
        ),
        ((80, 10241), torch.float16, "_wide<__half, void, false, 128, 1, true>", 80, [128, 1, 1]),
        ((80, 1023), torch.float16, "_any<__half, void, false, 32>", 80, [32, 1, 1]),
    ],
)
def test_cuda_plan(shape, dtype, entry, grid, block):
    any_device = [f"cuda:{way}" for way in ("registers", "wide", "wide-ends", "any")]
    with opaq.prefer(softmax, any_device), opaq.prefer(log_softmax, any_device):
        chosen = plan(softmax, cuda(shape, dtype), 1.0, None)
        of_log = plan(log_softmax, cuda(shape, dtype), 1.0)
    assert chosen["entry"] == "softmax" + entry
    assert (list(chosen["grid"]), list(chosen["block"])) == ([grid, 1, 1], block)
    assert of_log["entry"] == chosen["entry"].replace("void, false", "void, true")


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid", "block"),
    [
        ((8192, 16384), torch.bfloat16, "<__nv_bfloat16, {}, 2, 8, 4>", 16384, 256),
        ((64, 32000), torch.bfloat16, "<__nv_bfloat16, {}, 4, 8, 4>", 256, 256),
        ((64, 16384), torch.float32, "<float, {}, 4, 8, 4>", 256, 256),
        ((1, 50304), torch.float16, "<__half, {}, 8, 4, 7>", 8, 128),
        ((1024, 128256), torch.bfloat16, "<__nv_bfloat16, {}, 16, 4, 8>", 16384, 128),
        ((1024, 256000), torch.bfloat16, "<__nv_bfloat16, {}, 16, 4, 16>", 16384, 128),
        ((1024, 256000), torch.float32, "<float, {}, 16, 8, 16>", 16384, 256),
        ((1024, 524288), torch.bfloat16, "<__nv_bfloat16, {}, 16, 8, 16>", 16384, 256),
    ],
)
def test_wide_rows_are_computed_by_clusters(shape, dtype, entry, grid, block):
    for op, facts, log in (
        (softmax, (cuda(shape, dtype), 1.0, None), "false"),
        (log_softmax, (cuda(shape, dtype), -0.5), "true"),
    ):
        name, launch = serving(op, facts, "sm_90a")
        assert (name, launch["entry"]) == (
            "cuda:clusters",
            f"softmax_of_clusters{entry.format(log)}",
        )
        assert (list(launch["grid"]), list(launch["block"])) == ([grid, 1, 1], [block, 1, 1])


def test_wide_rows_that_are_not_computed_by_clusters():
    """With a mask, a scale of 0, rows that are not aligned, shorter and longer ones; and where
    devices have no clusters, or none of 16 blocks."""
    x, odd, masked = cuda((1024, 128256)), cuda((1024, 128257)), cuda((128256,))
    assert serving(softmax, (x, 1.0, masked), "sm_90a")[0] == "cuda:wide:mask"
    assert misfits(softmax, (x, 0.0, None), "sm_90a", "cuda:clusters")[0].startswith("scale != 0")
    assert serving(softmax, (odd, 1.0, None), "sm_90a")[0] == "cuda:wide-ends"
    for length in (16376, 524296):
        assert serving(softmax, (cuda((1024, length)), 1.0, None), "sm_90a")[0] == "cuda:wide"
    for arch in ("sm_80", "sm_120"):
        assert serving(softmax, (x, 1.0, None), arch)[0] == "cuda:wide"
    shorter = cuda((1024, 65536)), 1.0, None
    assert serving(softmax, shorter, "sm_120")[0] == "cuda:clusters"


@pytest.mark.parametrize(
    ("mask", "entry"),
    [
        (cuda((1024,)), "<__nv_bfloat16, __nv_bfloat16, false, 32, 4>"),
        (cuda((1024,), torch.float32), "<__nv_bfloat16, float, false, 32, 4>"),
        (cuda((2, 1, 16, 1024)), "<__nv_bfloat16, __nv_bfloat16, false, 32, 4>"),
        (cuda((16, 1024), strides=(1025, 1)), "_any<__nv_bfloat16, __nv_bfloat16, false, 32>"),
        (cuda((1024,), alignment=2), "_any<__nv_bfloat16, __nv_bfloat16, false, 32>"),
    ],
)
def test_cuda_plan_with_a_mask(mask, entry):
    assert plan(softmax, cuda((2, 4, 16, 1024)), 0.125, mask)["entry"] == f"softmax{entry}"


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid", "block"),
    [
        ((8192, 4096), torch.bfloat16, "<__nv_bfloat16, false, 256, 2>", 8192, [256, 1, 1]),
        ((65536, 128), torch.float16, "<__half, false, 8, 2>", 2048, [8, 32, 1]),
        ((1024, 32000), torch.bfloat16, "_wide<__nv_bfloat16, false, 512, 2>", 1024, [512, 1, 1]),
        ((1024, 50304), torch.bfloat16, "_wide<__nv_bfloat16, false, 416, 4>", 2048, [416, 1, 1]),
        ((10, 21), torch.float32, "_any<float, false, 32>", 10, [32, 1, 1]),
    ],
)
def test_cuda_plan_backward(shape, dtype, entry, grid, block):
    x = cuda(shape, dtype)
    chosen = plan(softmax_backward, x, x, 0.5)
    assert chosen["entry"] == "softmax_backward" + entry
    assert (list(chosen["grid"]), list(chosen["block"])) == ([grid, 1, 1], block)
    assert plan(log_softmax_backward, x, x, 0.5)["entry"] == chosen["entry"].replace(
        "false", "true"
    )


def test_shared_memory_of_wide_rows_fits_every_device():
    for length in (16392, 65536, 262144, 1 << 24):
        x = cuda((64, length))
        assert plan(softmax, x, 1.0, None)["shared"] <= 96 * 1024
        assert plan(softmax_backward, x, x, 1.0)["shared"] <= 96 * 1024


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_sources_compile(arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = cuda((64, 2048), dtype)
        for name in ("cuda:registers", "cuda:wide", "cuda:any"):
            compiles(softmax, (x, 1.0, None), arch, name)
            compiles(softmax, (x, 1.0, cuda((2048,), torch.float32)), arch, f"{name}:mask")
            compiles(log_softmax, (x, 1.0), arch, name)
            compiles(softmax_backward, (x, x, 1.0), arch, name)
            compiles(log_softmax_backward, (x, x, 1.0), arch, name)
        compiles(softmax, (x, 1.0, None), arch, "cuda:wide-ends")
        compiles(log_softmax, (x, 1.0), arch, "cuda:wide-ends")
        for packs in (2048, 4095, 6288, 16032, 24576, 32768, 40000, 65536):
            x = cuda((400, packs * 16 // dtype.itemsize), dtype)
            compiles(softmax, (x, 1.0, None), arch, "cuda:clusters")
            compiles(log_softmax, (x, 1.0), arch, "cuda:clusters")
