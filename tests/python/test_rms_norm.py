"""opaq.extern_kernels.rms_norm: values and gradients against float64 PyTorch, layouts, compiled
graphs, CUDA plans.
"""

import itertools

import pytest
import torch
from kernel_checks import (
    ARCHS,
    DTYPES,
    HALVES,
    NORM_LENGTHS,
    NORM_SHAPES,
    WEIGHT_LENGTHS,
    WIDE_BACKWARD,
    close,
    compiled_agrees,
    compiles,
    cuda,
    gradients,
    is_served_by,
    misfits,
    of_one_dtype,
    plan,
    refuses,
    serves_on_many_multiprocessors,
    serving,
)

import opaq
from opaq.extern_kernels import rms_norm, rms_norm_backward
from opaq.extern_kernels.rms_norm.rms_norm import rms_norm_backward_reference, rms_norm_reference


def exact(x, weight, eps, offset=0.0):
    x = x.double()
    rstd = torch.rsqrt(x.square().mean(-1) + eps)
    y = x * rstd.unsqueeze(-1)
    return y if weight is None else y * (weight.double() + offset), rstd


def make(shape, dtype, device):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
    weight = (1 + torch.randn(shape[-1], generator=generator, dtype=torch.float64) / 4).to(
        device, dtype
    )
    return x, weight


def check(x, weight, eps=1e-6, offset=0.0):
    rows, length = x[..., 0].numel(), x.shape[-1]
    (y, rstd), (grad_x, grad_weight) = gradients(
        lambda x, w: rms_norm(x, w, eps, offset), (x, weight), [0, 1]
    )
    wide_outputs, wide_grads = gradients(
        lambda x, w: exact(x, w, eps, offset), (x.double(), weight.double()), [0, 1]
    )
    assert (y.dtype, y.shape, y.is_contiguous()) == (x.dtype, x.shape, True)
    assert (grad_x.dtype, grad_weight.dtype) == (x.dtype, weight.dtype)
    assert rstd.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    close(y, wide_outputs[0])
    close(rstd, wide_outputs[1])
    # the cotangents were rounded to x.dtype, and sums over rows and columns gather rounding
    close(grad_x, wide_grads[0], scale=4 + length**0.5 / 16)
    close(grad_weight, wide_grads[1], x.dtype, scale=4 * max(1, rows) ** 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_values_and_gradients(shape, dtype, device):
    check(*make(shape, dtype, device))


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_eps(eps, device):
    check(*make((4, 64), torch.float32, device), eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", NORM_LENGTHS)
def test_an_offset_is_added_to_the_weight(length, dtype, device):
    x, weight = make((5, length), dtype, device)
    check(x, weight - 1, offset=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", NORM_LENGTHS)
def test_without_a_weight(length, dtype, device):
    x, _ = make((5, length), dtype, device)
    (y, rstd), (grad_x,) = gradients(lambda x: rms_norm(x, None), (x,), [0])
    wide, (wide_grad,) = gradients(lambda x: exact(x, None, 1e-6), (x.double(),), [0])
    close(y, wide[0])
    close(rstd, wide[1])
    close(grad_x, wide_grad, scale=4 + length**0.5 / 16)


def test_an_offset_without_a_weight_is_refused(device, capfd):
    message = "rms_norm: offset is 1.0, but there is no weight that it could be added to; expected"
    refuses(lambda: rms_norm(torch.ones(2, 8, device=device), None, 1e-6, 1.0), message, capfd)


@pytest.mark.parametrize("length", NORM_LENGTHS)
def test_a_weight_that_needs_no_gradient_costs_no_sums(length, device):
    x, weight = make((5, length), torch.float32, device)
    _, (grad_x,) = gradients(lambda x: rms_norm(x, weight), (x,), [0])
    _, both = gradients(rms_norm, (x, weight), [0, 1])
    assert torch.equal(grad_x, both[0])
    rstd = rms_norm(x, weight)[1]
    _, partial = rms_norm_backward(torch.ones_like(x), None, x, weight, rstd, sums=False)
    assert partial.shape == (0, length)


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_of_each_result_alone(which, device):
    x, weight = make((37, 24), torch.float32, device)
    _, grads = gradients(lambda x, w: rms_norm(x, w, 0.1)[which].sin(), (x, weight), [0, 1])
    _, wide = gradients(
        lambda x, w: exact(x, w, 0.1)[which].sin() + 0 * w.sum(),
        (x.double(), weight.double()),
        [0, 1],
    )
    for actual, expected in zip(grads, wide):
        close(actual, expected, scale=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs(dtype, device):
    x, weight = make((6, 10, 64), dtype, device)
    for view in (x.transpose(0, 1), x[:, ::2], x[..., ::2], x[:, :1].expand(6, 3, 64)):
        check(view, weight[: view.shape[-1]])
    check(x, torch.stack([weight, weight], 1)[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_odd_storage_offset(dtype, device):
    flat, weight = make((8 * 64 + 1,), dtype, device)
    check(flat[1:].view(8, 64), weight[1:65])


# bfloat16: the fewest rows that clusters of 4 and of 8 take turns with, and one less; the first and
# the last lengths; rows that are not whole lines of 128 bytes. float32: half the length.
PIPELINED = [(121, 61440), (120, 61440), (131, 65472), (131, 65528), (61, 121920), (60, 121920)]
PIPELINED += [(70, 128256), (61, 131072), (131, 32776), (131, 40968), (61, 65600), (60, 81920)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", PIPELINED)
def test_many_wide_rows(shape, dtype, device):
    rows, length = shape[0] if device == "cuda" else 9, shape[1] * 2 // dtype.itemsize
    x, weight = make((rows, length), dtype, device)
    for given, offset in ((weight, 0.0), (weight.float(), 0.0), (weight, 1.0), (None, 0.0)):
        wide = None if given is None else given.double() + offset
        for actual, expected in zip(rms_norm(x, given, 1e-6, offset), exact(x, wide, 1e-6)):
            close(actual, expected)


# The fewest rows that clusters hold, and one less; the first and last lengths, and longer rows;
# parts of blocks that are not whole lines of 128 bytes.
HELD = [(511, 65536), (512, 65536), (513, 32776), (512, 40968), (600, 81928), (512, 131072)]
HELD += [(512, 131080)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", HELD)
def test_more_wide_rows(shape, dtype, device):
    x, weight = make((shape[0] if device == "cuda" else 9, shape[1]), dtype, device)
    for given, offset in ((weight, 0.0), (weight.float(), 1.0), (None, 0.0)):
        wide = None if given is None else given.double() + offset
        for actual, expected in zip(rms_norm(x, given, 1e-6, offset), exact(x, wide, 1e-6)):
            close(actual, expected)
    first = rms_norm(x, weight)
    x[3, 5] = torch.nan
    kept = [row for row in range(x.shape[0]) if row != 3]
    for actual, expected in zip(rms_norm(x, weight), first):
        assert torch.equal(actual[kept], expected[kept]) and actual[3].isnan().all()


def test_many_wide_rows_are_the_same_bits_every_time_whatever_is_beside_them(device):
    """Clusters take rows by turns, and none waits for another."""
    rows = 200 if device == "cuda" else 9
    x, weight = make((rows, 65472), torch.bfloat16, device)
    first = rms_norm(x, weight)
    others = [3, rows // 2, rows - 1]
    x[others[0], 5], x[others[1], 65471], x[others[2], 0] = torch.nan, torch.inf, -torch.inf
    kept = [row for row in range(rows) if row not in others]
    for _ in range(3):
        y, rstd = rms_norm(x, weight)
        assert y[others[0]].isnan().all() and rstd[others[0]].isnan()
        assert (rstd[others[1:]] == 0).all()
        assert torch.equal(y[kept], first[0][kept]) and torch.equal(rstd[kept], first[1][kept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1030, 40), (3, 20480), (300, 16392), (37, 65536), (2, 70000)])
def test_many_rows_and_wide_rows(shape, dtype, device):
    check(*make(shape, dtype, device))


# bfloat16: the first and the last length of each way of the gradient of wide rows, and some between
WIDE = [16384, 16392, 20480, 32768, 32776, 65536, 65544, 131072, 131080, 262144, 262152]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("length", WIDE)
def test_gradients_of_wide_rows(length, rows, dtype, device):
    check(*make((rows, length), dtype, device))


@pytest.mark.parametrize("length", [16392, 65536, 65544, 131072, 262144])
def test_gradients_of_wide_rows_with_a_float32_weight(length, device):
    x, weight = make((37, length), torch.float32, device)
    check(x.bfloat16(), weight - 1, offset=1.0)


# The implementations for devices whose blocks have at most 99 KB.
LESS_SHARED = [f"cuda:{way}-96kb{more}" for way in ("one-row", "twice") for more in ("", "-added")]


@pytest.mark.parametrize("length", [65544, 131072])
def test_gradients_of_wide_rows_in_less_shared_memory(length, device):
    x, weight = make((37, length), torch.float32, device)
    with opaq.prefer(rms_norm_backward, LESS_SHARED):
        check(x.bfloat16(), weight.bfloat16())
        check(x.bfloat16(), weight)


MANY_WIDE = [(301, 16392), (157, 36872), (131, 65536), (67, 100008), (67, 140008)]


@pytest.mark.parametrize("shape", MANY_WIDE)
def test_gradients_of_many_wide_rows(shape, device):
    """Blocks have several rows, and the last one fewer than the others."""
    check(*make(shape, torch.bfloat16, device))


@pytest.mark.parametrize("length", [8200, 32768])
def test_gradients_of_shifted_wide_rows(length, device):
    x, weight = make((125, length), torch.float32, device)
    flat = torch.cat([x.flatten(), x.flatten()[:1]])
    check(flat[1:].view(x.shape), weight)


@pytest.mark.parametrize("shape", [(1000, 192), (300, 20000)])
def test_gradients_are_the_same_bits_every_time(shape, device):
    x, weight = make(shape, torch.float32, device)
    first = gradients(rms_norm, (x, weight), [0, 1])[1]
    for _ in range(3):
        for once, again in zip(first, gradients(rms_norm, (x, weight), [0, 1])[1]):
            assert torch.equal(once, again)


def test_nan_and_infinity_stay_in_their_row(device):
    x, weight = make((4, 64), torch.float32, device)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    y, rstd = rms_norm(x, weight)
    assert y[1].isnan().all() and rstd[1].isnan()
    assert rstd[2] == 0 and y[2, 5].isnan() and (y[2, :5] == 0).all()
    close(y[[0, 3]], exact(x, weight, 1e-6)[0][[0, 3]])


def test_the_references_mean_the_same(device):
    x, weight = make((70, 24), torch.float32, device)
    for actual, expected in zip(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5)):
        torch.testing.assert_close(actual, expected)
    args = (torch.randn_like(x), torch.randn_like(x[:, 0]), x, weight, rms_norm(x, weight)[1])
    for actual, expected in zip(rms_norm_backward(*args), rms_norm_backward_reference(*args)):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("length", WEIGHT_LENGTHS)
def test_a_weight_in_float32(length, dtype, device):
    x, weight = make((37, length), torch.float32, device)
    check(x.to(dtype), weight)
    check(x.to(dtype), weight - 1, offset=1.0)


def test_a_weight_of_another_dtype_is_served(device):
    x, weight = make((5, 64), torch.bfloat16, device)
    for other in (torch.float64, torch.float16):
        y, _ = rms_norm(x, weight.to(other))
        assert y.dtype == torch.bfloat16
        close(y, exact(x, weight, 1e-6)[0])


def test_a_weight_of_another_length_is_refused(device, capfd):
    x, _ = make((5, 64), torch.float32, device)
    message = "rms_norm: weight has shape (63,); expected (64,), the last dimension of x (5, 64)"
    refuses(lambda: rms_norm(x, torch.ones(63, device=device)), message, capfd)


def test_opcheck(device):
    x, weight = make((5, 32), torch.float32, device)
    torch.library.opcheck(rms_norm, (x.requires_grad_(), weight.requires_grad_()), {"eps": 1e-5})
    torch.library.opcheck(rms_norm, (x.detach()[:, ::2], weight.detach()[::2]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 48), (9, 48), (33, 48)] if dynamic else [(6, 48)]
    compiled_agrees(
        rms_norm,
        lambda x, w: rms_norm(x * 2, w, 1e-5)[0].sin(),
        [make(shape, torch.float32, device) for shape in shapes],
        [0, 1],
        dynamic,
    )


@pytest.mark.parametrize(("length", "name"), [(4096, "<__nv_bfloat16, 256, 2"), (65536, "_wide<")])
def test_cuda_kernels_without_a_weight_and_with_an_offset(length, name):
    x, weight = cuda((64, length), torch.bfloat16), cuda((length,), torch.bfloat16)
    for arguments, kind in [((x, None), 0), ((x, weight), 1), ((x, weight, 1e-6, 1.0), 2)]:
        entry = plan(rms_norm, *arguments)["entry"]
        assert entry.startswith(of_one_dtype(f"rms_norm{name}")) and entry.endswith(f", {kind}>")


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid", "block"),
    [
        ((8192, 4096), torch.bfloat16, "rms_norm<__nv_bfloat16, 256, 2>", 8192, [256, 1, 1]),
        ((8192, 16384), torch.bfloat16, "rms_norm<__nv_bfloat16, 256, 8>", 8192, [256, 1, 1]),
        ((16384, 1024), torch.bfloat16, "rms_norm<__nv_bfloat16, 32, 4>", 2048, [32, 8, 1]),
        ((100, 32, 128), torch.float16, "rms_norm<__half, 8, 2>", 100, [8, 32, 1]),
        ((10, 20), torch.float32, "rms_norm<float, 4, 2>", 1, [4, 64, 1]),
        ((10, 21), torch.float32, "rms_norm_any<float>", 10, [256, 1, 1]),
        ((2048, 32768), torch.bfloat16, "rms_norm_wide<__nv_bfloat16, 512, 1>", 1024, [512, 1, 1]),
        ((2048, 65536), torch.bfloat16, "rms_norm_wide<__nv_bfloat16, 512, 2>", 2048, [512, 1, 1]),
        ((2048, 40960), torch.bfloat16, "rms_norm_wide<__nv_bfloat16, 320, 2>", 2048, [320, 1, 1]),
        ((101, 262144), torch.float32, "rms_norm_wide<float, 512, 8>", 408, [512, 1, 1]),
        ((10, 65540), torch.bfloat16, "rms_norm_any<__nv_bfloat16>", 10, [256, 1, 1]),
    ],
)
def test_cuda_plan(shape, dtype, entry, grid, block):
    with opaq.prefer(rms_norm, ["cuda:registers", "cuda:wide", "cuda:any"]):  # of any device
        chosen = plan(rms_norm, cuda(shape, dtype), cuda(shape[-1:], dtype), 1e-6)
    parameters = "" if "any" in entry else ", 1"
    assert chosen["entry"] == of_one_dtype(f"{entry.removesuffix('>')}{parameters}>")
    assert list(chosen["grid"]) == [grid, 1, 1]
    assert list(chosen["block"]) == block


def backward_facts(shape, dtype):
    rows = cuda(shape[:-1], torch.float32)
    return cuda(shape, dtype), rows, cuda(shape, dtype), cuda(shape[-1:], dtype), rows


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid", "block", "shared"),
    [
        ((32768, 4096), torch.bfloat16, "_ahead<__nv_bfloat16, 128, 4, 2", 256, [128, 2], 65536),
        ((8192, 2048), torch.bfloat16, "_ahead<__nv_bfloat16, 128, 2, 2", 256, [128, 2], 32768),
        ((8192, 8192), torch.bfloat16, "_ahead<__nv_bfloat16, 512, 2, 2", 256, [512, 1], 65536),
        ((65536, 128), torch.bfloat16, "_ahead<__nv_bfloat16, 16, 1, 4", 256, [16, 16], 32768),
        ((999, 512), torch.float16, "_ahead<__half, 32, 2, 2", 250, [32, 8], 32768),
        ((3, 768), torch.bfloat16, "_ahead<__nv_bfloat16, 32, 3, 2", 1, [32, 8], 49152),
        ((64, 4096), torch.float32, "_ahead<float, 512, 2, 2", 16, [512, 1], 65536),
        ((64, 16384), torch.bfloat16, "_ahead<__nv_bfloat16, 512, 4, 1", 16, [512, 1], 65536),
        ((64, 32768), torch.bfloat16, "_pipelined<bf16, 256, 4, 4, 6", 64, [256, 1], 98304),
        ((8192, 16384), torch.float32, "_pipelined<float, 256, 4, 4, 6", 960, [256, 1], 98304),
        ((8192, 65536), torch.bfloat16, "_pipelined<bf16, 256, 8, 4, 6", 960, [256, 1], 98304),
        ((512, 36864), torch.bfloat16, "_pipelined<bf16, 160, 8, 4, 9", 240, [160, 1], 92160),
        ((64, 131072), torch.bfloat16, "_pipelined<bf16, 256, 8, 8, 6", 56, [256, 1], 98304),
        ((64, 262144), torch.bfloat16, "_pipelined<bf16, 512, 8, 8, 3", 120, [512, 1], 98304),
        ((64, 262152), torch.bfloat16, "_any<__nv_bfloat16", 16, [256, 1], 0),
        ((8192, 65540), torch.bfloat16, "_any<__nv_bfloat16", 256, [256, 1], 0),
    ],
)
def test_cuda_plan_backward(shape, dtype, entry, grid, block, shared):
    for added, adds in [(None, "false"), (cuda(shape, dtype), "true")]:
        with opaq.prefer(rms_norm_backward, LESS_SHARED):
            chosen = plan(rms_norm_backward, *backward_facts(shape, dtype), added)
        more = "" if "any" in entry else f", {adds}"
        named = entry.replace("bf16", "__nv_bfloat16")
        assert chosen["entry"] == of_one_dtype(f"rms_norm_backward{named}{more}>")
        assert list(chosen["grid"]) == [grid, 1, 1]
        assert list(chosen["block"]) == [*block, 1]
        assert chosen["shared"] == shared


@pytest.mark.parametrize(
    ("shape", "dtype", "way", "entry", "grid", "block", "shared"),
    [
        ((8192, 65536), torch.bfloat16, "one-row-96kb", "<bf16, 256, 8, 4, 6", 960, 256, 98304),
        ((64, 131072), torch.bfloat16, "one-row", "<bf16, 512, 8, 4, 7", 56, 512, 229376),
    ],
)
def test_wide_rows_where_there_is_more_shared_memory(shape, dtype, way, entry, grid, block, shared):
    facts, name = backward_facts(shape, dtype), entry.replace("bf16", "__nv_bfloat16")
    for added, adds, more in [((), "false", ""), ((facts[0],), "true", "-added")]:
        found, launch = serving(rms_norm_backward, (*facts, *added), "sm_90a")
        assert found == f"cuda:{way}{more}"
        assert launch["entry"] == of_one_dtype(f"rms_norm_backward_pipelined{name}, {adds}>")
        assert (list(launch["grid"]), list(launch["block"])) == ([grid, 1, 1], [block, 1, 1])
        assert launch["shared"] == shared


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((64, 65544), "288, 16, 2, 12"),
        ((512, 131072), "512, 16, 2, 7"),
        ((4096, 131072), ""),
        ((512, 65536), ""),
    ],
)
def test_few_wide_rows_are_taken_two_at_a_time(shape, way):
    """By clusters of 16 blocks, of which seven are resident; each has a block of rows."""
    facts = backward_facts(shape, torch.bfloat16)
    for added, adds, more in [((), "false", ""), ((facts[0],), "true", "-added")]:
        given, name = (*facts, *added), f"cuda:two-rows{more}"
        if not way:
            assert len(misfits(rms_norm_backward, given, "sm_90a", name)) > 1
            continue
        entry = of_one_dtype(f"rms_norm_backward_pipelined<__nv_bfloat16, {way}, {adds}>")
        assert serves_on_many_multiprocessors(rms_norm_backward, given, name) == entry


@pytest.mark.parametrize(
    ("shape", "weight", "way"),
    [
        ((512, 65536), torch.bfloat16, "pipelined<{}, 4, 4, 1>"),
        ((121, 65536), torch.float32, "pipelined<{}, 4, 4, 1>"),
        ((120, 65536), torch.bfloat16, "wide<{}, 512, 2, 1>"),
        ((1024, 65536), torch.bfloat16, "pipelined<{}, 4, 4, 1>"),
        ((2048, 40968), torch.bfloat16, "pipelined<{}, 4, 3, 1>"),
        ((120, 40968), torch.bfloat16, "wide<{}, 352, 2, 1>"),
        ((2048, 65600), torch.bfloat16, "pipelined<{}, 8, 3, 1>"),
        ((61, 81920), torch.bfloat16, "pipelined<{}, 8, 3, 1>"),
        ((60, 81920), torch.bfloat16, "wide<{}, 320, 4, 1>"),
        ((2048, 131072), torch.float32, "pipelined<{}, 8, 4, 1>"),
        ((2048, 131072), None, "pipelined<{}, 8, 4, 0>"),
        ((2048, 131136), torch.bfloat16, "wide<{}, 288, 8, 1>"),
        ((500, 32832), torch.bfloat16, "wide<{}, 288, 2, 1>"),
        ((2048, 32768), torch.bfloat16, "wide<{}, 512, 1, 1>"),
    ],
)
def test_many_wide_rows_are_pipelined(shape, weight, way):
    given = None if weight is None else cuda(shape[-1:], weight)
    facts = (cuda(shape, torch.bfloat16), given, 1e-6)
    types = f"__nv_bfloat16, {'float' if weight == torch.float32 else '__nv_bfloat16'}"
    is_served_by(rms_norm, facts, f"rms_norm_{way.format(types)}")


@pytest.mark.parametrize(
    ("shape", "weight", "entry"),
    [
        ((512, 65536), torch.bfloat16, "<bf16, bf16, 8, 4, 8, 1>"),
        ((2048, 65536), torch.float32, "<bf16, float, 8, 4, 8, 1>"),
        ((1024, 81920), None, "<bf16, bf16, 8, 4, 10, 0>"),
        ((512, 32776), torch.bfloat16, "<bf16, bf16, 8, 4, 5, 1>"),
        ((512, 131072), torch.bfloat16, "<bf16, bf16, 8, 4, 16, 1>"),
    ],
)
def test_more_wide_rows_are_computed_by_clusters_that_hold_them(shape, weight, entry):
    given = None if weight is None else cuda(shape[-1:], weight)
    name, launch = serving(rms_norm, (cuda(shape), given, 1e-6), "sm_90a")
    assert name == "cuda:clusters"
    assert launch["entry"] == f"rms_norm_of_clusters{entry.replace('bf16', '__nv_bfloat16')}"
    assert (launch["grid"][0], launch["block"][0]) == (8 * shape[0], 128)


def test_rows_that_clusters_do_not_hold():
    """Few rows, shorter and longer ones, of 32 bits, that are not aligned."""
    for shape in [(511, 65536), (512, 32768), (512, 131080), (512, 65540)]:
        assert misfits(rms_norm, (cuda(shape), None, 1e-6), "sm_90a", "cuda:clusters") != [""]
    wide = (cuda((512, 32768), torch.float32), None, 1e-6)
    assert misfits(rms_norm, wide, "sm_90a", "cuda:clusters") != [""]


@pytest.mark.parametrize(("arch", "name"), [("sm_80", "cuda:wide"), ("sm_120", "cuda:clusters")])
def test_other_devices_have_another_kernel_for_many_wide_rows(arch, name):
    facts = (cuda((4096, 65536)), cuda((65536,)), 1e-6)
    assert serving(rms_norm, facts, arch)[0] == name


def test_shared_memory_of_wide_rows_fits_every_device():
    for length in (16392, 20480, 65536, 262144, 1 << 24):
        facts = cuda((64, length), torch.bfloat16), cuda((length,), torch.bfloat16), 1e-6
        assert plan(rms_norm, *facts)["shared"] <= 96 * 1024
        facts = backward_facts((64, length), torch.bfloat16)
        with opaq.prefer(rms_norm_backward, LESS_SHARED):
            assert plan(rms_norm_backward, *facts)["shared"] <= 96 * 1024


@pytest.mark.parametrize("arch", ARCHS)
def test_the_wide_cuda_kernel_compiles(arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for length in (32768, 262144):
            facts = cuda((64, length), dtype), cuda((length,), dtype), 1e-6
            compiles(rms_norm, facts, arch, "cuda:wide")


@pytest.mark.parametrize("arch", ARCHS)
def test_the_pipelined_cuda_kernel_compiles(arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for packs in (4097, 8192, 8193, 16384):
            x, n = cuda((400, packs * 16 // dtype.itemsize), dtype), packs * 16 // dtype.itemsize
            for weight in (cuda((n,), dtype), cuda((n,), torch.float32)):
                compiles(rms_norm, (x, weight, 1e-6), arch, "cuda:pipelined")
            compiles(rms_norm, (x, None, 1e-6), arch, "cuda:pipelined")


@pytest.mark.parametrize("arch", ARCHS)
def test_the_cuda_kernel_of_clusters_compiles(arch):
    for dtype in (torch.float16, torch.bfloat16):
        for packs in (4097, 8192, 10240, 16384):
            x, n = cuda((512, packs * 8), dtype), packs * 8
            for weight in (cuda((n,), dtype), cuda((n,), torch.float32), None):
                compiles(rms_norm, (x, weight, 1e-6), arch, "cuda:clusters")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("length", [16, 128, 768, 1024, 2048, 4096, 8192, 12288])
def test_the_cuda_kernel_that_reads_ahead_compiles(length, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        facts = backward_facts((64, length), dtype)
        compiles(rms_norm_backward, facts, arch, "cuda:ahead")
        compiles(rms_norm_backward, (*facts, facts[0]), arch, "cuda:ahead-added")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("way", WIDE_BACKWARD)
def test_the_cuda_kernels_of_wide_rows_compile(way, arch):
    for dtype, packs in itertools.product((torch.float32, *HALVES), WIDE_BACKWARD[way]):
        x, *others, _, rstd = backward_facts((64, packs * 16 // dtype.itemsize), dtype)
        for weight in {cuda((x[1][1],), dtype), cuda((x[1][1],), torch.float32)}:
            facts = (x, *others, weight, rstd)
            compiles(rms_norm_backward, facts, arch, f"cuda:{way}")
            compiles(rms_norm_backward, (*facts, x), arch, f"cuda:{way}-added")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("implementation", ["cuda:registers", "cuda:any"])
def test_cuda_sources_compile(implementation, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, weight = cuda((64, 2048), dtype), cuda((2048,), dtype)
        compiles(rms_norm, (x, weight, 1e-6), arch, implementation)
        if implementation == "cuda:any":
            facts = backward_facts((64, 2048), dtype)
            compiles(rms_norm_backward, facts, arch, implementation)
