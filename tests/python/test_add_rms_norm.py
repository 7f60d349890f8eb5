"""opaq.extern_kernels.add_rms_norm: values and gradients against float64 PyTorch, the gradient that
its backward adds, compiled graphs, CUDA plans.
"""

import pytest
import torch
from kernel_checks import (
    ARCHS,
    DTYPES,
    HALVES,
    WEIGHT_LENGTHS,
    close,
    compiled_agrees,
    compiles,
    cuda,
    gradients,
    is_served_by,
    of_one_dtype,
    plan,
    refuses,
    serving,
)

from opaq.extern_kernels import add_rms_norm, rms_norm_backward
from opaq.extern_kernels.rms_norm.add_rms_norm import add_rms_norm_reference
from opaq.extern_kernels.rms_norm.rms_norm import rms_norm_backward_reference

SHAPES = [(1, 1), (7,), (2, 5, 128), (300, 24), (5, 1000), (4, 4096), (2, 9000), (515, 8192)]
SHAPES += [(3, 12288), (2, 20480), (5, 65536), (0, 16)]


def make(shape, dtype, device):
    generator = torch.Generator().manual_seed(sum(shape))

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return random(*shape), random(*shape), 1 + random(shape[-1]) / 4


def check(x, residual, weight, eps=1e-6, offset=0.0):
    """The sum is rounded, so what comes after it is compared with float64 on the rounded sum."""

    def exact(total, weight):
        rstd = torch.rsqrt(total.square().mean(-1) + eps)
        return total * rstd.unsqueeze(-1) * (weight + offset), total, rstd

    rows, length = x[..., 0].numel(), x.shape[-1]
    (y, total, rstd), (grad_x, grad_residual, grad_weight) = gradients(
        lambda *args: add_rms_norm(*args, eps, offset), (x, residual, weight), [0, 1, 2]
    )
    assert torch.equal(total, x + residual)
    wide, (grad_total, wide_grad_weight) = gradients(
        exact, (total.double(), weight.double()), [0, 1]
    )
    assert y.dtype == grad_x.dtype == x.dtype
    assert grad_weight.dtype == weight.dtype
    close(y, wide[0])
    close(rstd, wide[2])
    close(grad_x, grad_total, scale=4 + length**0.5 / 16)
    assert torch.equal(grad_x, grad_residual)
    close(grad_weight, wide_grad_weight, x.dtype, scale=4 * max(1, rows) ** 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, dtype, device):
    check(*make(shape, dtype, device))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("length", WEIGHT_LENGTHS)
def test_a_weight_in_float32(length, dtype, device):
    x, residual, weight = make((37, length), torch.float32, device)
    check(x.to(dtype), residual.to(dtype), weight)
    check(x.to(dtype), residual.to(dtype), weight - 1, offset=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [64, 4096, 12288, 77])
def test_an_offset_and_no_weight(length, dtype, device):
    x, residual, weight = make((5, length), dtype, device)
    check(x, residual, weight - 1, offset=1.0)
    found, (grad_x, grad_residual) = gradients(
        lambda *both: add_rms_norm(*both, None), (x, residual), [0, 1]
    )
    ones = torch.ones_like(weight)
    expected, grads = gradients(lambda *both: add_rms_norm(*both, ones), (x, residual), [0, 1])
    for actual, wanted in zip((*found, grad_x, grad_residual), (*expected, *grads)):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_normalized_before_it_is_rounded(shape, dtype, device):
    x, residual, weight = make(shape, dtype, device)
    y, total, rstd = add_rms_norm(x, residual, weight, 1e-6, 0.5, True)
    exact = x.double() + residual.double()
    if dtype == torch.float32:  # in which the sum is computed
        exact = (x + residual).double()
    scale = torch.rsqrt(exact.square().mean(-1) + 1e-6)
    assert torch.equal(total, x + residual) and y.dtype == dtype
    close(rstd, scale)
    close(y, exact * scale.unsqueeze(-1) * (weight.double() + 0.5))
    if dtype in HALVES:  # whose sum overflows in float16
        large = torch.full_like(x, torch.finfo(dtype).max)
        y, _, rstd = add_rms_norm(large, large, weight, unrounded=True)
        assert y.isfinite().all() == (dtype == torch.float16 or not y.numel())


# The fewest rows that clusters take turns with, and one less; the most, and one more; the
# first and the last length; rows that are not whole lines of 128 bytes.
PIPELINED = [(61, 65536), (60, 65536), (131, 48136), (131, 65544), (70, 131072), (512, 48136)]
PIPELINED += [(513, 48136)]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", PIPELINED)
def test_some_wide_rows(shape, dtype, device):
    rows, length = shape if device == "cuda" else (9, shape[1])
    x, residual, weight = make((rows, length), dtype, device)
    for given, offset in ((weight, 0.0), (weight.float(), 1.0), (None, 0.0)):
        for unrounded in (False, True):
            results = add_rms_norm(x, residual, given, 1e-6, offset, unrounded)
            assert torch.equal(results[1], x + residual)
            exact = x.double() + residual.double() if unrounded else results[1].double()
            scale = torch.rsqrt(exact.square().mean(-1) + 1e-6)
            close(results[2], scale)
            factor = 1 if given is None else given.double() + offset
            close(results[0], exact * scale.unsqueeze(-1) * factor)
            again = add_rms_norm(x, residual, given, 1e-6, offset, unrounded)
            assert all(torch.equal(*both) for both in zip(results, again))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_gradient_of_a_sum_that_is_rounded_afterwards(dtype, device):
    x, residual, weight = make((37, 128), dtype, device)
    (y, total, _), (grad, _, grad_weight) = gradients(
        lambda *args: add_rms_norm(*args, unrounded=True), (x, residual, weight), [0, 1, 2]
    )

    def exact(x, residual, weight):
        total = x + residual
        y = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-6) * weight
        return y, total, torch.rsqrt(total.square().mean(-1) + 1e-6)

    wide = [each.double() for each in (x, residual, weight)]
    _, (expected, _, expected_of_weight) = gradients(exact, wide, [0, 1, 2])
    close(grad, expected, scale=8)
    close(grad_weight, expected_of_weight, dtype, scale=4 * 37**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_and_shifted_inputs(dtype, device):
    x, residual, weight = make((6, 10, 64), dtype, device)
    check(x.transpose(0, 1), residual.transpose(0, 1), weight)
    check(x[:, ::2], residual[:, 1::2], weight)
    flat = torch.cat([x.flatten(), x.flatten()[:1]])
    check(flat[1:].view(60, 64), residual.view(60, 64), weight)


@pytest.mark.parametrize("length", [24, 64, 1024, 12288, 20480, 32768, 40000, 65536, 81920])
def test_the_gradient_is_added_to_another(length, device):
    for dtype in (torch.float32, torch.float64):
        x, grad, weight = make((70, length), dtype, device)
        rstd = torch.rsqrt(x.square().mean(-1) + 1e-6)
        args = (grad, torch.randn_like(rstd), x, weight, rstd)
        added = torch.randn_like(x)
        expected = rms_norm_backward_reference(*(each.double() for each in args), added.double())
        grad_x, partial = rms_norm_backward(*args, added)
        close(grad_x, expected[0], scale=32 + length**0.5)
        close(partial.sum(0), expected[1].sum(0), scale=32 + length**0.5)


def test_the_references_mean_the_same(device):
    args = make((70, 24), torch.float32, device)
    for actual, expected in zip(add_rms_norm(*args, 1e-5), add_rms_norm_reference(*args, 1e-5)):
        torch.testing.assert_close(actual, expected)


def test_a_residual_of_another_shape_is_refused(device, capfd):
    x, residual, weight = make((5, 64), torch.float32, device)
    message = (
        "add_rms_norm: residual is torch.float32 of shape (4, 64); expected torch.float32 of "
        "shape (5, 64), as x"
    )
    refuses(lambda: add_rms_norm(x, residual[:4], weight), message, capfd)


def test_opcheck(device):
    args = [each.requires_grad_() for each in make((5, 32), torch.float32, device)]
    torch.library.opcheck(add_rms_norm, tuple(args), {"eps": 1e-5})


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 48), (9, 48), (33, 48)] if dynamic else [(6, 48)]

    def function(x, residual, weight):
        y, total, _ = add_rms_norm(x * 2, residual, weight, 1e-5)
        return y.sin() + total

    cases = [make(shape, torch.float32, device) for shape in shapes]
    compiled_agrees(add_rms_norm, function, cases, [0, 1, 2], dynamic)


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid", "block"),
    [
        ((8192, 4096), torch.bfloat16, "add_rms_norm<__nv_bfloat16, 256, 2, 1>", 8192, [256, 1]),
        ((100, 32, 128), torch.float16, "add_rms_norm<__half, 8, 2, 1>", 100, [8, 32]),
        ((10, 21), torch.float32, "add_rms_norm_any<float>", 10, [256, 1]),
        ((64, 32768), torch.float16, "add_rms_norm_shared<__half, 256, 8, 2, 1>", 128, [256, 1]),
        ((8, 20480), torch.float32, "add_rms_norm_shared<float, 160, 8, 4, 1>", 32, [160, 1]),
        ((64, 262144), torch.bfloat16, "add_rms_norm_any<__nv_bfloat16>", 64, [256, 1]),
    ],
)
def test_cuda_plan(shape, dtype, entry, grid, block):
    arguments = cuda(shape, dtype), cuda(shape, dtype), cuda(shape[-1:], dtype), 1
    for unrounded in (False, True):
        chosen = plan(add_rms_norm, *arguments, 0, unrounded)
        differs = unrounded and dtype != torch.float32
        assert chosen["entry"] == of_one_dtype(f"{entry[:-1]}, {str(differs).lower()}>")
    assert list(chosen["grid"]) == [grid, 1, 1]
    assert list(chosen["block"]) == [*block, 1]


@pytest.mark.parametrize(
    ("shape", "weight", "way"),
    [
        ((61, 65536), torch.bfloat16, "_pipelined<{}, 8, 2, 1"),
        ((60, 65536), torch.bfloat16, "_shared<{}, 256, 8, 4, 1"),
        ((512, 65536), torch.float32, "_pipelined<{}, 8, 2, 1"),
        ((513, 65536), torch.bfloat16, "_shared<{}, 256, 8, 4, 1"),
        ((128, 48128), torch.bfloat16, "_shared<{}, 192, 8, 4, 1"),
        ((128, 48136), None, "_pipelined<{}, 8, 2, 0"),
        ((128, 81920), torch.float32, "_pipelined<{}, 8, 3, 1"),
        ((128, 131072), torch.bfloat16, "_pipelined<{}, 8, 4, 1"),
        ((128, 131072), torch.float32, "_shared<{}, 256, 8, 8, 1"),
    ],
)
def test_few_wide_rows_are_pipelined_where_shared_memory_suffices(shape, weight, way):
    x, given = cuda(shape), None if weight is None else cuda(shape[-1:], weight)
    types = f"__nv_bfloat16, {'float' if weight == torch.float32 else '__nv_bfloat16'}"
    for unrounded in (False, True):
        value = "float" if unrounded else "__nv_bfloat16"
        last = value if "pipelined" in way else str(unrounded).lower()
        entry = f"add_rms_norm{way.format(types)}, {last}>"
        is_served_by(add_rms_norm, (x, x, given, 1e-6, 0, unrounded), entry, "cuda:shared")


def test_other_devices_and_float32_have_another_kernel_for_few_wide_rows():
    half = torch.bfloat16
    for arch, dtype in (("sm_80", half), ("sm_120", half), ("sm_90a", torch.float32)):
        length = 131072 // dtype.itemsize
        x, weight = cuda((128, length), dtype), cuda((length,), dtype)
        assert serving(add_rms_norm, (x, x, weight, 1e-6), arch)[0] == "cuda:shared"


@pytest.mark.parametrize("arch", ARCHS)
def test_the_pipelined_cuda_kernel_compiles(arch):
    for dtype in (torch.float16, torch.bfloat16):
        for length in (48136, 81920, 131072):
            x = cuda((128, length), dtype)
            for weight in (None, cuda((length,), dtype), cuda((length,), torch.float32)):
                for unrounded in (False, True):
                    facts = (x, x, weight, 1e-6, 0, unrounded)
                    compiles(add_rms_norm, facts, arch, "cuda:pipelined")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("implementation", ["cuda:registers", "cuda:shared", "cuda:any"])
def test_cuda_sources_compile(implementation, arch):
    length = 40960 if implementation == "cuda:shared" else 2048
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x, weight = cuda((64, length), dtype), cuda((length,), dtype)
        for unrounded in (False, True):
            compiles(add_rms_norm, (x, x, weight, 1e-6, 0, unrounded), arch, implementation)
