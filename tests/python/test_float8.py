"""opaq.extern_kernels.rms_norm_float8 and silu_mul_float8: values and scales against float64,
special values, layouts, what scaled_linear takes, compiled graphs, CUDA plans.
"""

import pytest
import torch
from kernel_checks import ARCHS, DTYPES, compiles, cuda, node_calls, plan, refuses

from opaq.extern_kernels import rms_norm_float8, scaled_linear, silu_mul_float8
from opaq.extern_kernels.rms_norm.float8 import rms_norm_float8_reference
from opaq.extern_kernels.silu_mul.float8 import silu_mul_float8_reference

F8 = torch.float8_e4m3fn
ROWS = [(1, 1), (7,), (3, 7), (2, 5, 24), (37, 8), (5, 1000), (4, 4096), (2, 20480), (0, 16)]
ROWS += [(2, 0, 16), (300, 40), (2, 9001), (4, 16376), (1030, 1032), (1025, 2056)]
BLOCKS = [(1, 128), (128,), (2, 5, 128), (37, 256), (5, 1024), (3, 384), (4, 4096), (2, 20480)]
BLOCKS += [(0, 128), (2, 14336), (1030, 1152), (1025, 2176)]
CASES = [*[(shape, 0) for shape in ROWS], *[(shape, 128) for shape in BLOCKS]]
OPS = ["rms_norm_float8", "silu_mul_float8"]


def exact(name, a, b):
    """The values before they are scaled, in float64."""
    a, b = a.double(), b.double()
    if name == "silu_mul_float8":
        return torch.nn.functional.silu(a) * b
    return a * torch.rsqrt(a.square().mean(-1, keepdim=True) + 1e-6) * b


def call(name, a, b, block):
    if name == "silu_mul_float8":
        return silu_mul_float8(a, b, block)
    return rms_norm_float8(a, b, 1e-6, block)


def make(name, shape, dtype, device):
    generator = torch.Generator().manual_seed(sum(shape))
    second = shape if name == "silu_mul_float8" else shape[-1:]
    return [
        torch.randn(each, generator=generator, dtype=torch.float64).mul(2).to(device, dtype)
        for each in (shape, second)
    ]


def parts_of(v, block):
    """[rows, parts, values of a part]"""
    rows = v.numel() // v.size(-1)
    return v.reshape(rows, v.size(-1) // block if block else 1, block or v.size(-1))


def check(name, a, b, block):
    y, scale = call(name, a, b, block)
    v = parts_of(exact(name, a, b), block)
    rows, parts, _ = v.shape
    assert (y.dtype, y.shape, y.is_contiguous()) == (F8, a.shape, True)
    assert (scale.dtype, scale.shape) == (torch.float32, (rows, parts))
    assert scale.stride() == (1, max(1, rows) if block else 1)
    # Sums and exponentials in float32, and nothing that is rounded to a narrower dtype.
    largest = v.abs().amax(-1)
    wanted = torch.where(largest == 0, 1.0, largest / 448)
    torch.testing.assert_close(scale.double(), wanted, rtol=1e-5, atol=0)
    # Half a unit in the last of 4 bits, or half of the smallest float8, 2^-9.
    wide = scale.double().unsqueeze(-1)
    got = parts_of(y.float().double(), block)
    error = (got * wide - v).abs()
    assert (error <= torch.maximum(v.abs() / 16, wide / 1024) * (1 + 1e-4)).all()
    if v.numel():
        assert (got.abs().amax(-1) == torch.where(largest == 0, 0.0, 448.0)).all()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "block"), CASES)
def test_values(shape, block, dtype, name, device):
    check(name, *make(name, shape, dtype, device), block)


@pytest.mark.parametrize("block", [0, 128])
@pytest.mark.parametrize("name", OPS)
def test_values_are_the_nearest_of_float8(name, block, device):
    a, b = make(name, (64, 1024), torch.float32, device)
    y, scale = call(name, a, b, block)
    scaled = parts_of(exact(name, a, b), block) / scale.double().unsqueeze(-1)
    nearest = scaled.float().clamp(-448, 448).to(F8).float()
    got = parts_of(y.float(), block)
    # Sums in float32 may put what lies beside a middle between two on its other side.
    assert (nearest != got).double().mean() < 1e-3


@pytest.mark.parametrize("block", [0, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_strided_inputs(name, dtype, block, device):
    a, b = make(name, (6, 10, 256), dtype, device)
    views = [lambda t: t.transpose(0, 1), lambda t: t[:, ::2], lambda t: t[..., ::2]]
    views += [lambda t: t[:, :1].expand(6, 3, 256), lambda t: t[..., 128:]]
    for view in views:
        other = view(b) if b.dim() == 3 else b[: view(a).size(-1)]
        check(name, view(a), other, block)
    flat = a.flatten()[1 : 1 + 8 * 128].view(8, 128)
    check(name, flat, flat if b.dim() == 3 else b[1:129], block)


@pytest.mark.parametrize("block", [0, 128])
@pytest.mark.parametrize("shape", [(6, 256), (2, 3, 256), (2, 2, 3, 512)])
def test_halves_of_one_projection(shape, block, device):
    h = make("rms_norm_float8", shape, torch.bfloat16, device)[0]
    check("silu_mul_float8", *h.chunk(2, -1), block)


@pytest.mark.parametrize("block", [0, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_zeros_nan_and_infinity(name, dtype, block, device):
    a, b = make(name, (5, 256), dtype, device)
    a[1] = 0
    a[2, 3] = torch.nan
    a[3, 130] = torch.inf
    y, scale = call(name, a, b, block)
    check(name, a[[0, 4]], b[[0, 4]] if b.dim() == 2 else b, block)
    assert (y[1].float() == 0).all() and (scale[1] == 1).all()
    assert y[2, :128].float().isnan().all() and scale[2, 0].isnan()
    if name == "rms_norm_float8":  # the sum of squares is NaN or infinite for the whole row
        assert y[2].float().isnan().all() and scale[2].isnan().all()
        assert y[3, 130].float().isnan() and scale[3, -1].isnan()
    else:
        assert scale[3, -1].isinf() and y[3, 130].float().isnan()
        assert (y[3, 131:].float() == 0).all()
        if block:
            check(name, a[2:3, 128:], b[2:3, 128:], block)
            check(name, a[3:4, :128], b[3:4, :128], block)


@pytest.mark.parametrize("block", [0, 128])
def test_very_small_values_have_the_least_scale(block, device):
    gate = torch.full((2, 128), 2.0**-70, device=device)
    y, scale = silu_mul_float8(gate, torch.full_like(gate, 2.0**-60), block)
    assert (scale == 2.0**-126).all()
    assert (y.float() == 2.0**-5).all()


def test_large_gates_saturate(device):
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]], device=device)
    y, scale = silu_mul_float8(gate, torch.full_like(gate, 2.0))
    torch.testing.assert_close(scale, torch.tensor([[2e4 / 448]], device=device))
    assert y.float().tolist() == [[0, 0, 0, 4.5, 448]]


@pytest.mark.parametrize("rule", [1, 2, 3])
@pytest.mark.parametrize("block", [0, 128])
@pytest.mark.parametrize("name", OPS)
def test_other_rules_of_scales(name, block, rule, device):
    a, b = make(name, (6, 1024), torch.float32, device)
    a[1] = 0
    a[2] *= 1e-9
    a[4] *= 1e-25
    if name == "silu_mul_float8":  # whose values may be large
        a[5] *= 1e30
    a[3, 5] = torch.nan
    op = silu_mul_float8 if name == "silu_mul_float8" else rms_norm_float8
    reference = {
        "silu_mul_float8": silu_mul_float8_reference,
        "rms_norm_float8": rms_norm_float8_reference,
    }[name]
    for least in (0.0, 1e-4):
        given = {"block": block, "rule": rule, "least": least}
        y, scale = op(a, b, **given)
        wanted_y, wanted_scale = reference(a, b, **given)
        torch.testing.assert_close(scale, wanted_scale, rtol=1e-5, atol=0, equal_nan=True)
        assert torch.equal(y.float().isnan(), wanted_y.float().isnan())
        off = (y.float() != wanted_y.float()) & ~y.float().isnan()
        assert off.double().mean() < 1e-3
    if least:
        assert (y[1].float() == 0).all()
    bound = 1e-4 if rule == 1 else 1e-4 / 448
    torch.testing.assert_close(scale[1], torch.full_like(scale[1], bound), rtol=1e-6, atol=0)


def test_bad_rules_are_refused(device, capfd):
    a, b = make("silu_mul_float8", (2, 128), torch.float32, device)
    refuses(lambda: silu_mul_float8(a, b, rule=4), "silu_mul_float8: rule is 4; expected 0", capfd)
    message = "silu_mul_float8: least is 1.0 with rule 0; expected a number that is not negative"
    refuses(lambda: silu_mul_float8(a, b, least=1.0), message, capfd)


@pytest.mark.parametrize("block", [0, 128])
def test_the_references_mean_the_same(block, device):
    for name, reference in [
        ("rms_norm_float8", lambda a, b: rms_norm_float8_reference(a, b, 1e-6, block)),
        ("silu_mul_float8", lambda a, b: silu_mul_float8_reference(a, b, block)),
    ]:
        a, b = make(name, (70, 256), torch.float32, device)
        (y, scale), (wanted, wanted_scale) = call(name, a, b, block), reference(a, b)
        torch.testing.assert_close(scale, wanted_scale)
        assert scale.stride() == wanted_scale.stride()
        assert (y.float() != wanted.float()).double().mean() < 1e-3


@pytest.mark.parametrize("block", [0, 128])
@pytest.mark.parametrize("name", OPS)
def test_scaled_linear_takes_both_as_they_are(name, block, device):
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("scales for rows and blocks need a device of 9.0")
    a, b = make(name, (2, 4, 256), torch.bfloat16, device)
    y, scale = call(name, a, b, block)
    weight = torch.randn(128, 256, device=device).to(F8)
    shape = (2, 128) if block else (1, 128)
    weight_scale = torch.rand(shape, device=device).t()  # for each 128 values, or each row
    product = scaled_linear(y, weight, scale, weight_scale)
    wide = (parts_of(y.double(), block) * scale.double().unsqueeze(-1)).reshape(8, 256)
    times = weight_scale.double().repeat_interleave(256 // weight_scale.size(1), 1)
    wanted = (wide @ (weight.double() * times).t()).reshape(2, 4, 128)
    error = (product.double() - wanted).square().mean().sqrt()
    assert error < 0.01 * wanted.square().mean().sqrt()


@pytest.mark.parametrize("name", OPS)
def test_bad_arguments_are_refused(name, device, capfd):
    tensor = "x" if name == "rms_norm_float8" else "gate"
    a, b = make(name, (4, 200), torch.float32, device)
    message = f"{name}: block is 64; expected 0, for one scale for each row, or 128, for one for"
    refuses(lambda: call(name, a, b, 64), message, capfd)
    message = f"{name}: {tensor} has shape (4, 200); expected rows of a multiple of 128, for block"
    refuses(lambda: call(name, a, b, 128), message, capfd)
    message = f"{name}: {tensor} has shape (4, 0); expected rows of one value or more in the last"
    refuses(lambda: call(name, a[:, :0], b[..., :0], 0), message, capfd)


def test_other_shapes_and_dtypes_are_refused(device, capfd):
    x = torch.ones(4, 128, device=device)
    message = "rms_norm_float8: weight has shape (127,); expected (128,), the last dimension of x"
    refuses(lambda: rms_norm_float8(x, x[0, 1:]), message, capfd)
    message = "silu_mul_float8: gate is torch.float32 (4, 128), up is torch.float64 (4, 128)"
    refuses(lambda: silu_mul_float8(x, x.double()), message, capfd)


@pytest.mark.parametrize("name", OPS)
def test_there_is_no_gradient(name, device):
    a, b = make(name, (4, 128), torch.float32, device)
    y, scale = call(name, a.requires_grad_(), b.requires_grad_(), 0)
    assert not y.requires_grad and not scale.requires_grad


def test_opcheck(device):
    for block in (0, 128):
        x, weight = make("rms_norm_float8", (5, 256), torch.float32, device)
        torch.library.opcheck(rms_norm_float8, (x, weight, 1e-5, block))
        torch.library.opcheck(rms_norm_float8, (x[:, ::2], weight[::2], 1e-5, block))
        gate, up = make("silu_mul_float8", (5, 256), torch.float32, device)
        torch.library.opcheck(silu_mul_float8, (gate, up, block))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("block", [0, 128])
def test_compiled(block, dynamic, device):
    def function(x, weight, up):
        y, scale = rms_norm_float8(x * 2, weight, 1e-5, block)
        z, other = silu_mul_float8(x + 1, up, block)
        return y, scale + 1, z, other * 2

    torch.compiler.reset()
    compiled = torch.compile(function, dynamic=dynamic, fullgraph=True)
    before = node_calls(rms_norm_float8), node_calls(silu_mul_float8)
    rows = [6, 9, 33] if dynamic else [6]
    for m in rows:
        x, weight = make("rms_norm_float8", (m, 256), torch.float32, device)
        inputs = x, weight, torch.randn_like(x)
        for actual, expected in zip(compiled(*inputs), function(*inputs)):
            assert actual.dtype == expected.dtype and actual.stride() == expected.stride()
            torch.testing.assert_close(actual.float(), expected.float(), rtol=0.13, atol=1e-5)
    assert node_calls(rms_norm_float8) >= before[0] + len(rows)
    assert node_calls(silu_mul_float8) >= before[1] + len(rows)


@pytest.mark.parametrize(
    ("shape", "block", "entry", "grid", "threads"),
    [
        ((32768, 4096), 0, "<__nv_bfloat16, 64, 8, 64, 0, 0>", 32768, [64, 1, 1]),
        ((32768, 4096), 128, "<__nv_bfloat16, 64, 8, 128, 128, 0>", 16384, [64, 2, 1]),
        ((8192, 8192), 0, "<__nv_bfloat16, 128, 8, 128, 0, 0>", 8192, [128, 1, 1]),
        ((8192, 5128), 0, "<__nv_bfloat16, 128, 6, 128, 0, 0>", 8192, [128, 1, 1]),
        ((2049, 2048), 0, "<__nv_bfloat16, 32, 8, 64, 0, 0>", 1025, [32, 2, 1]),
        ((1023, 16384), 0, "<__nv_bfloat16, 256, 8, 256, 0, 0>", 1023, [256, 1, 1]),
        ((16, 4096), 0, "<__nv_bfloat16, 256, 2, 256, 0, 0>", 16, [256, 1, 1]),
        ((16, 4096), 128, "<__nv_bfloat16, 256, 2, 256, 128, 0>", 16, [256, 1, 1]),
        ((100, 32, 128), 0, "<__nv_bfloat16, 8, 2, 256, 0, 0>", 100, [8, 32, 1]),
        ((100, 32, 128), 128, "<__nv_bfloat16, 16, 1, 256, 128, 0>", 200, [16, 16, 1]),
        ((10, 21), 0, "_any<__nv_bfloat16, 0, 0>", 10, [256, 1, 1]),
        ((10, 32768), 128, "_any<__nv_bfloat16, 128, 0>", 10, [256, 1, 1]),
    ],
)
def test_cuda_plan_of_rms_norm(shape, block, entry, grid, threads):
    chosen = plan(rms_norm_float8, cuda(shape), cuda(shape[-1:]), 1e-6, block)
    assert chosen["entry"] == f"rms_norm_float8{entry}"
    assert (list(chosen["grid"]), list(chosen["block"])) == ([grid, 1, 1], threads)


@pytest.mark.parametrize(
    ("shape", "strides", "block", "entry", "grid", "threads"),
    [
        ((8192, 14336), (28672, 1), 0, "<__nv_bfloat16, 512, 4, 0, 0>", 8192, [512, 1, 1]),
        ((8192, 14336), None, 128, "<__nv_bfloat16, 512, 4, 128, 0>", 8192, [512, 1, 1]),
        ((2, 3, 4, 256), None, 0, "<__nv_bfloat16, 16, 2, 0, 0>", 2, [16, 16, 1]),
        ((24, 128), None, 128, "<__nv_bfloat16, 16, 1, 128, 0>", 2, [16, 16, 1]),
        ((10, 21), None, 0, "_any<__nv_bfloat16, 0, 0>", 10, [256, 1, 1]),
        ((10, 32768), None, 128, "_any<__nv_bfloat16, 128, 0>", 10, [256, 1, 1]),
    ],
)
def test_cuda_plan_of_silu_mul(shape, strides, block, entry, grid, threads):
    tensor = cuda(shape, strides=strides)
    chosen = plan(silu_mul_float8, tensor, tensor, block)
    assert chosen["entry"] == f"silu_mul_float8{entry}"
    assert chosen["implementation"].startswith("cuda:strided") == (
        len(shape) == 2 and "any" not in entry
    )
    assert (list(chosen["grid"]), list(chosen["block"])) == ([grid, 1, 1], threads)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", ["", "any-"])
def test_cuda_sources_compile(kind, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = cuda((64, 2048), dtype)
        for block, what in [(0, "rows"), (128, "blocks")]:
            name = f"cuda:{kind}{what}"
            compiles(rms_norm_float8, (x, cuda((2048,), dtype), 1e-6, block), arch, name)
            compiles(silu_mul_float8, (x, x, block), arch, name)
