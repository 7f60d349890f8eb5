"""opaq.extern_kernels.layer_norm: values and gradients against float64 PyTorch, layouts, compiled
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
    of_one_dtype,
    plan,
    refuses,
    serving,
)

import opaq
from opaq.extern_kernels import layer_norm, layer_norm_backward
from opaq.extern_kernels.layer_norm.layer_norm import (
    layer_norm_backward_reference,
    layer_norm_reference,
)


def exact(x, weight, bias, eps):
    x = x.double()
    weight, bias = (None if each is None else each.double() for each in (weight, bias))
    y = torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
    mean = x.mean(-1)
    return y, mean, torch.rsqrt((x - mean.unsqueeze(-1)).square().mean(-1) + eps)


def make(shape, dtype, device):
    generator = torch.Generator().manual_seed(sum(shape))

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, weight, bias = random(*shape) + 0.5, 1 + random(shape[-1]) / 4, random(shape[-1])
    return tuple(each.to(device, dtype) for each in (x, weight, bias))


def check(x, weight, bias, eps=1e-5):
    rows, length = x[..., 0].numel(), x.shape[-1]
    inputs = (x, weight, bias)
    (y, mean, rstd), grads = gradients(lambda *each: layer_norm(*each, eps), inputs, [0, 1, 2])
    wide_outputs, wide_grads = gradients(
        lambda *each: exact(*each, eps), [each.double() for each in inputs], [0, 1, 2]
    )
    assert (y.dtype, y.shape, y.is_contiguous()) == (x.dtype, x.shape, True)
    assert [each.dtype for each in grads] == [each.dtype for each in inputs]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    assert (mean.dtype, rstd.dtype) == (wide, wide)
    for actual, expected in zip((y, mean, rstd), wide_outputs):
        close(actual, expected)
    # the cotangents were rounded to x.dtype, and sums over rows and columns gather rounding
    close(grads[0], wide_grads[0], scale=4 + length**0.5 / 16)
    for actual, expected in zip(grads[1:], wide_grads[1:]):
        close(actual, expected, x.dtype, scale=4 * max(1, rows) ** 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_values_and_gradients(shape, dtype, device):
    # one column has no variance: rstd, and the error of its gradient, is as large as eps allows
    check(*make(shape, dtype, device), eps=1e-5 if shape[-1] > 1 else 0.5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("length", WEIGHT_LENGTHS)
def test_weight_and_bias_in_float32(length, dtype, device):
    x, weight, bias = make((37, length), torch.float32, device)
    check(x.to(dtype), weight, bias)


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_eps(eps, device):
    check(*make((4, 64), torch.float32, device), eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", NORM_LENGTHS)
@pytest.mark.parametrize("given", [(), ("weight",), ("bias",)], ids=["none", "weight", "bias"])
def test_without_weight_or_bias(given, length, dtype, device):
    x, *parameters = make((5, length), dtype, device)
    inputs = [x, *(each for name, each in zip(("weight", "bias"), parameters) if name in given)]

    def with_(function):
        def called(x, *others):
            named = dict(zip(given, others))
            return function(x, named.get("weight"), named.get("bias"), 1e-5)

        return called

    indices = list(range(len(inputs)))
    found, grads = gradients(with_(layer_norm), inputs, indices)
    wide = [each.double() for each in inputs]
    expected, wide_grads = gradients(with_(exact), wide, indices)
    for actual, wanted in zip(found, expected):
        close(actual, wanted)
    close(grads[0], wide_grads[0], scale=4 + length**0.5 / 16)
    for actual, wanted in zip(grads[1:], wide_grads[1:]):
        assert actual.dtype == dtype
        close(actual, wanted, scale=10)


def test_parameters_that_need_no_gradient_cost_no_sums(device):
    x, weight, bias = make((5, 64), torch.float32, device)
    _, (grad_x,) = gradients(lambda x: layer_norm(x, weight, bias), (x,), [0])
    _, grads = gradients(layer_norm, (x, weight, bias), [0, 1, 2])
    assert torch.equal(grad_x, grads[0])
    for i in (1, 2):
        given = [x, weight, bias]
        _, (alone,) = gradients(
            lambda each: layer_norm(*given[:i], each, *given[i + 1 :]), (given[i],), [0]
        )
        assert torch.equal(alone, grads[i])
    statistics = layer_norm(x, weight, bias)[1:]
    given = (torch.ones_like(x), None, None, x, weight, *statistics)
    assert layer_norm_backward(*given, sums=False)[1].shape == (0, 2, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs(dtype, device):
    x, weight, bias = make((6, 10, 64), dtype, device)
    for view in (x.transpose(0, 1), x[:, ::2], x[..., ::2], x[:, :1].expand(6, 3, 64)):
        check(view, weight[: view.shape[-1]], bias[: view.shape[-1]])
    check(x, torch.stack([weight, weight], 1)[:, 0], torch.stack([bias, bias], 1)[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_odd_storage_offset(dtype, device):
    flat, weight, bias = make((8 * 64 + 1,), dtype, device)
    check(flat[1:].view(8, 64), weight[1:65], bias[1:65])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1030, 40), (3, 20480), (300, 16392), (37, 65536), (2, 70000)])
def test_many_rows_and_wide_rows(shape, dtype, device):
    check(*make(shape, dtype, device))


# bfloat16: the fewest rows that clusters take turns with, and one less; for clusters of 2, 3, 4, 5,
# 8 and 16 blocks, the first length and the last; rows that are not whole lines of 128 bytes.
# float32, which has none of 2: half the length.
PIPELINED = [
    *((121, 65536), (120, 65536), (61, 131072), (60, 131072), (130, 49160)),
    *((265, 24384), (270, 32768), (157, 45760), (156, 49152), (161, 49152), (125, 49216)),
    *((89, 76224), (88, 81920), (95, 81920), (61, 97344)),
    *((29, 194624), (31, 262144), (28, 262144)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", PIPELINED)
def test_many_wide_rows(shape, dtype, device):
    rows, length = shape[0], shape[1] * 2 // dtype.itemsize
    inputs = make((rows, length), dtype, device)
    for actual, expected in zip(layer_norm(*inputs), exact(*inputs, 1e-5)):
        close(actual, expected)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("given", [(), (1,), (2,), (1, 2)], ids=["none", "weight", "bias", "both"])
def test_parameters_of_many_wide_rows(given, weights, device):
    x, weight, bias = make((160, 49152), torch.float32, device)
    x = x.bfloat16()
    weight = weight.to(weights) if 1 in given else None
    bias = bias.to(weights) if 2 in given else None
    for actual, expected in zip(layer_norm(x, weight, bias), exact(x, weight, bias, 1e-5)):
        close(actual, expected)


def test_many_wide_rows_are_the_same_bits_every_time_whatever_is_beside_them(device):
    """Clusters take rows by turns, and none waits for another."""
    x, weight, bias = make((200, 49152), torch.bfloat16, device)
    first = layer_norm(x, weight, bias)
    x[3, 5], x[100, 49151], x[199, 0] = torch.nan, torch.inf, -torch.inf
    kept = [row for row in range(200) if row not in (3, 100, 199)]
    for _ in range(3):
        found = layer_norm(x, weight, bias)
        assert found[0][[3, 100, 199]].isnan().all() and found[2][[3, 100, 199]].isnan().all()
        assert found[1][3].isnan() and found[1][100] == torch.inf and found[1][199] == -torch.inf
        for actual, expected in zip(found, first):
            assert torch.equal(actual[kept], expected[kept])


def test_the_variance_of_many_wide_rows_is_right_where_the_mean_is_large(device):
    x, weight, bias = make((125, 20000), torch.float32, device)
    _, mean, rstd = layer_norm(x + 4096, weight, bias)
    expected = exact(x + 4096, weight, bias, 1e-5)
    torch.testing.assert_close(rstd.double(), expected[2], rtol=1e-5, atol=0)
    torch.testing.assert_close(mean.double(), expected[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("length", [64, 777, 4096, 40000])
def test_the_variance_is_right_where_the_mean_is_large(length, device):
    """In float32, the mean of squares minus the square of the mean would have no right digit."""
    x, weight, bias = make((5, length), torch.float32, device)
    x = x + 4096
    y, mean, rstd = layer_norm(x, weight, bias)
    expected = exact(x, weight, bias, 1e-5)
    torch.testing.assert_close(rstd.double(), expected[2], rtol=1e-5, atol=0)
    torch.testing.assert_close(mean.double(), expected[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(y.double(), expected[0], rtol=0, atol=1e-2)


@pytest.mark.parametrize("shape", [(37, 24), (5, 1000), (3, 7), (37, 10000)])
def test_gradients_of_each_result_alone(shape, device):
    """No zeros are made for results that have no gradient."""
    inputs = make(shape, torch.float32, device)
    for i in range(3):
        _, grads = gradients(lambda *each: layer_norm(*each, 0.1)[i].sin(), inputs, [0, 1, 2])
        wide = [each.double() for each in inputs]
        _, expected = gradients(
            lambda *each: exact(*each, 0.1)[i].sin() + 0 * (each[1] + each[2]).sum(),
            wide,
            [0, 1, 2],
        )
        for actual, wanted in zip(grads, expected):
            close(actual, wanted, scale=16)


# bfloat16: the first and the last length of each way of the gradient, and one that is not of packs
WIDE = [4096, 4104, 6144, 6152, 8192, 8200, 12288, 12296, 16384, 16392, 16391, 32768, 32776]
WIDE += [65536, 65544, 131072, 131080, 262144, 262152]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("length", WIDE)
def test_gradients_of_wide_rows(length, rows, dtype, device):
    check(*make((rows, length), dtype, device))


@pytest.mark.parametrize("length", [16392, 65536, 65544, 131072, 262144])
def test_gradients_of_wide_rows_with_float32_weights(length, device):
    x, weight, bias = make((37, length), torch.float32, device)
    check(x.bfloat16(), weight, bias)


# The implementations for devices whose blocks have at most 99 KB.
LESS_SHARED = ["cuda:one-row-96kb", "cuda:twice-96kb"]


@pytest.mark.parametrize("length", [65544, 131072])
def test_gradients_of_wide_rows_in_less_shared_memory(length, device):
    x, weight, bias = make((37, length), torch.float32, device)
    with opaq.prefer(layer_norm_backward, LESS_SHARED):
        check(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
        check(x.bfloat16(), weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 65536), (5, 65536), (67, 32776), (131, 50008)])
def test_gradients_of_wide_rows_that_are_taken_two_at_a_time(shape, dtype, device):
    x, weight, bias = make(shape, torch.float32, device)
    check(x.to(dtype), weight, bias)


MANY_WIDE = [(645, 5120), (645, 8192), (301, 16384), (301, 16392), (157, 36872), (131, 65536)]


@pytest.mark.parametrize("shape", [*MANY_WIDE, (67, 100008), (67, 140008)])
def test_gradients_of_many_wide_rows(shape, device):
    """Blocks have several rounds of rows, and the last one fewer rows than the others."""
    check(*make(shape, torch.bfloat16, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [8200, 20480, 32768])
def test_gradients_of_shifted_wide_rows(length, dtype, device):
    x, weight, bias = make((125, length), dtype, device)
    flat = torch.cat([x.flatten(), x.flatten()[:1]])
    check(flat[1:].view(x.shape), weight, bias)


@pytest.mark.parametrize("given", [(), ("weight",), ("bias",)], ids=["none", "weight", "bias"])
def test_wide_rows_without_weight_or_bias(given, device):
    for length in (24576, 81920):
        test_without_weight_or_bias(given, length, torch.float32, device)


@pytest.mark.parametrize(
    "shape", [(1000, 192), (300, 6144), (300, 16384), (300, 40000), (70, 150000)]
)
def test_gradients_are_the_same_bits_every_time(shape, device):
    inputs = make(shape, torch.float32 if shape[1] < 6144 else torch.bfloat16, device)
    first = gradients(layer_norm, inputs, [0, 1, 2])[1]
    for _ in range(3):
        for once, again in zip(first, gradients(layer_norm, inputs, [0, 1, 2])[1]):
            assert torch.equal(once, again)


@pytest.mark.parametrize("length", [64, 65, 20000])
def test_nan_and_infinity_stay_in_their_row(length, device):
    x, weight, bias = make((4, length), torch.float32, device)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    y, mean, rstd = layer_norm(x, weight, bias)
    assert y[1:3].isnan().all() and rstd[1:3].isnan().all()
    assert mean[1].isnan() and mean[2] == torch.inf
    close(y[[0, 3]], exact(x, weight, bias, 1e-5)[0][[0, 3]])


def test_rows_of_one_value_become_the_bias(device):
    _, weight, bias = make((4, 64), torch.float32, device)
    y, mean, rstd = layer_norm(torch.full((4, 64), 3.0, device=device), weight, bias)
    close(y, bias.expand(4, 64))
    close(mean, torch.full_like(mean, 3.0))
    close(rstd, torch.full_like(rstd, 1e-5**-0.5))


def test_the_references_mean_the_same(device):
    x, weight, bias = make((70, 24), torch.float32, device)
    found = layer_norm(x, weight, bias, 1e-5)
    for actual, expected in zip(found, layer_norm_reference(x, weight, bias, 1e-5)):
        torch.testing.assert_close(actual, expected)
    grads = (torch.randn_like(x), torch.randn_like(x[:, 0]), torch.randn_like(x[:, 0]))
    args = (*grads, x, weight, *found[1:])
    for actual, expected in zip(layer_norm_backward(*args), layer_norm_backward_reference(*args)):
        torch.testing.assert_close(actual, expected)


def test_a_weight_and_a_bias_of_another_dtype_are_served(device):
    x, weight, bias = make((5, 64), torch.bfloat16, device)
    for given in ((weight.float(), bias), (weight, bias.float()), (weight.float(), bias.float())):
        (y, _, _), grads = gradients(layer_norm, (x, *given), [0, 1, 2])
        assert y.dtype == torch.bfloat16
        assert [each.dtype for each in grads[1:]] == [each.dtype for each in given]
        close(y, exact(x, *given, 1e-5)[0])


def test_a_weight_or_a_bias_of_another_length_is_refused(device, capfd):
    x, weight, bias = make((5, 64), torch.float32, device)
    rest = "has shape (63,); expected (64,), the last dimension of x (5, 64)"
    refuses(lambda: layer_norm(x, weight[:63], bias), f"layer_norm: weight {rest}", capfd)
    refuses(lambda: layer_norm(x, weight, bias[:63]), f"layer_norm: bias {rest}", capfd)


def test_opcheck(device):
    inputs = make((5, 32), torch.float32, device)
    torch.library.opcheck(layer_norm, [each.clone().requires_grad_() for each in inputs])
    x, weight, bias = inputs
    torch.library.opcheck(layer_norm, (x[:, ::2], weight[::2], bias[::2]), {"eps": 1e-6})


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    shapes = [(6, 48), (9, 48), (33, 48)] if dynamic else [(6, 48)]
    compiled_agrees(
        layer_norm,
        lambda x, w, b: layer_norm(x * 2, w, b, 1e-6)[0].sin(),
        [make(shape, torch.float32, device) for shape in shapes],
        [0, 1, 2],
        dynamic,
    )


def forward_facts(shape, dtype):
    return cuda(shape, dtype), cuda(shape[-1:], dtype), cuda(shape[-1:], dtype), 1e-5


def backward_facts(shape, dtype):
    x, rows = cuda(shape, dtype), cuda(shape[:-1], torch.float32)
    return x, rows, rows, x, cuda(shape[-1:], dtype), rows, rows


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid", "block"),
    [
        ((32768, 4096), torch.bfloat16, "<__nv_bfloat16, 256, 2, 2>", 16384, [256, 1]),
        ((16, 4096), torch.bfloat16, "<__nv_bfloat16, 256, 2, 1>", 16, [256, 1]),
        ((8192, 16384), torch.bfloat16, "<__nv_bfloat16, 256, 8, 1>", 8192, [256, 1]),
        ((8192, 768), torch.bfloat16, "<__nv_bfloat16, 32, 3, 1>", 1024, [32, 8]),
        ((65536, 128), torch.bfloat16, "<__nv_bfloat16, 8, 2, 2>", 1024, [8, 32]),
        ((65536, 64), torch.bfloat16, "<__nv_bfloat16, 4, 2, 1>", 1024, [4, 64]),
        ((100, 32, 128), torch.float16, "<__half, 8, 2, 1>", 100, [8, 32]),
        ((10, 20), torch.float32, "<float, 4, 2, 1>", 1, [4, 64]),
        ((10, 21), torch.float32, "_any<float>", 10, [256, 1]),
        ((2048, 16384), torch.float32, "_wide<float, 256, 2, 2>", 1024, [256, 1]),
        ((180, 32768), torch.bfloat16, "_wide<__nv_bfloat16, 256, 2, 1>", 360, [256, 1]),
        ((16, 65536), torch.bfloat16, "_wide<__nv_bfloat16, 256, 4, 1>", 64, [256, 1]),
        ((16, 40960), torch.bfloat16, "_wide<__nv_bfloat16, 192, 4, 1>", 64, [192, 1]),
        ((20, 262144), torch.bfloat16, "_wide<__nv_bfloat16, 256, 8, 1>", 160, [256, 1]),
        ((101, 262144), torch.float32, "_wide<float, 256, 8, 1>", 808, [256, 1]),
        ((10, 65540), torch.bfloat16, "_any<__nv_bfloat16>", 10, [256, 1]),
    ],
)
def test_cuda_plan(shape, dtype, entry, grid, block):
    chosen = plan(layer_norm, *forward_facts(shape, dtype))
    parameters = "" if "any" in entry else ", true, true"
    assert chosen["entry"] == of_one_dtype(f"layer_norm{entry.removesuffix('>')}{parameters}>")
    assert list(chosen["grid"]) == [grid, 1, 1]
    assert list(chosen["block"]) == [*block, 1]


CODE = {torch.bfloat16: "__nv_bfloat16", torch.float16: "__half", torch.float32: "float"}


@pytest.mark.parametrize(
    ("shape", "dtype", "weights", "way"),
    [
        ((2048, 24576), torch.bfloat16, torch.bfloat16, "pipelined<{}, 2, 3>"),
        ((2048, 20480), torch.bfloat16, torch.bfloat16, "wide<{}, 192, 2, 2>"),
        ((241, 32768), torch.float16, torch.float16, "pipelined<{}, 2, 4>"),
        ((240, 32768), torch.float16, torch.float16, "wide<{}, 256, 2, 1>"),
        ((2048, 32768), torch.bfloat16, torch.float32, "pipelined<{}, 2, 4>"),
        ((2048, 32776), torch.bfloat16, torch.bfloat16, "wide<{}, 192, 4, 2>"),
        ((2048, 45056), torch.bfloat16, torch.bfloat16, "wide<{}, 192, 4, 2>"),
        ((2048, 46080), torch.bfloat16, torch.bfloat16, "pipelined<{}, 3, 4>"),
        ((157, 49152), torch.bfloat16, torch.float32, "pipelined<{}, 3, 4>"),
        ((156, 49152), torch.bfloat16, torch.bfloat16, "wide<{}, 192, 4, 1>"),
        ((2048, 49216), torch.bfloat16, torch.bfloat16, "pipelined<{}, 4, 4>"),
        ((2048, 65536), torch.bfloat16, torch.bfloat16, "pipelined<{}, 4, 4>"),
        ((121, 65536), torch.float16, torch.float16, "pipelined<{}, 4, 4>"),
        ((120, 65536), torch.float16, torch.float16, "wide<{}, 256, 4, 1>"),
        ((2048, 65536), torch.bfloat16, torch.float32, "pipelined<{}, 4, 4>"),
        ((1024, 65600), torch.bfloat16, torch.bfloat16, "wide<{}, 192, 8, 2>"),
        ((89, 81920), torch.bfloat16, torch.bfloat16, "pipelined<{}, 5, 4>"),
        ((88, 81920), torch.bfloat16, torch.bfloat16, "wide<{}, 192, 8, 1>"),
        ((1024, 81920), torch.bfloat16, torch.float32, "wide<{}, 192, 8, 2>"),
        ((2048, 131072), torch.bfloat16, torch.bfloat16, "pipelined<{}, 8, 4>"),
        ((2048, 131072), torch.bfloat16, torch.float32, "wide<{}, 256, 8, 2>"),
        ((2048, 131136), torch.bfloat16, torch.bfloat16, "wide<{}, 256, 8, 1>"),
        ((2048, 196608), torch.bfloat16, torch.bfloat16, "pipelined<{}, 16, 3>"),
        ((2048, 262144), torch.bfloat16, torch.bfloat16, "pipelined<{}, 16, 4>"),
        ((2048, 262144), torch.bfloat16, torch.float32, "wide<{}, 256, 8, 1>"),
        ((2048, 262208), torch.bfloat16, torch.bfloat16, "wide<{}, 256, 8, 1>"),
        ((2048, 16384), torch.float32, torch.float32, "wide<{}, 256, 2, 2>"),
        ((2048, 16388), torch.float32, torch.float32, "wide<{}, 192, 4, 2>"),
        ((2048, 16448), torch.float32, torch.float32, "pipelined<{}, 3, 3>"),
        ((1024, 40960), torch.float32, torch.float32, "pipelined<{}, 5, 4>"),
        ((2048, 65536), torch.float32, torch.float32, "pipelined<{}, 8, 4>"),
    ],
)
def test_many_wide_rows_are_pipelined_where_shared_memory_suffices(shape, dtype, weights, way):
    facts = (cuda(shape, dtype), cuda(shape[-1:], weights), cuda(shape[-1:], weights), 1e-5)
    types = f"{CODE[dtype]}, {CODE[weights]}"
    is_served_by(layer_norm, facts, f"layer_norm_{way.format(types)[:-1]}, true, true>")


@pytest.mark.parametrize("arch", ["sm_80", "sm_120", pytest.param("sm_86", marks=pytest.mark.life)])
def test_other_devices_have_another_kernel_for_many_wide_rows(arch):
    name, launch = serving(layer_norm, forward_facts((4096, 65536), torch.bfloat16), arch)
    assert name == "cuda:wide" and launch["shared"] <= 64 * 1024


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid", "block", "shared"),
    [
        ((32768, 4096), torch.bfloat16, "<__nv_bfloat16, 128, 4, 1, 2>", 256, [128, 2], 65536),
        ((8192, 2048), torch.bfloat16, "<__nv_bfloat16, 128, 2, 1, 2>", 256, [128, 2], 32768),
        ((8192, 4104), torch.bfloat16, "<__nv_bfloat16, 544, 1, 2, 2>", 128, [544, 1], 69632),
        ((8192, 6144), torch.bfloat16, "<__nv_bfloat16, 768, 1, 2, 2>", 128, [768, 1], 98304),
        ((8192, 8192), torch.bfloat16, "<__nv_bfloat16, 512, 2, 1, 3>", 128, [512, 1], 98304),
        ((8192, 9216), torch.bfloat16, "<__nv_bfloat16, 384, 3, 1, 2>", 128, [384, 1], 73728),
        ((65536, 128), torch.bfloat16, "<__nv_bfloat16, 16, 1, 1, 4>", 256, [16, 16], 32768),
        ((999, 512), torch.float16, "<__half, 32, 2, 1, 2>", 250, [32, 8], 32768),
        ((3, 768), torch.bfloat16, "<__nv_bfloat16, 32, 3, 1, 2>", 1, [32, 8], 49152),
        ((64, 4096), torch.float32, "<float, 512, 2, 1, 3>", 16, [512, 1], 98304),
        ((64, 12288), torch.bfloat16, "<__nv_bfloat16, 512, 3, 1, 2>", 16, [512, 1], 98304),
        ((64, 16384), torch.bfloat16, "<__nv_bfloat16, 512, 4, 1, 1>", 16, [512, 1], 65536),
        ((64, 16392), torch.bfloat16, "_pipelined<bf16, 160, 4, 4, 9>", 64, [160, 1], 92160),
        ((64, 32768), torch.bfloat16, "_pipelined<bf16, 256, 4, 4, 6>", 64, [256, 1], 98304),
        ((512, 65536), torch.bfloat16, "_pipelined<bf16, 256, 8, 4, 6>", 240, [256, 1], 98304),
        ((8192, 16384), torch.float32, "_pipelined<float, 256, 4, 4, 6>", 960, [256, 1], 98304),
        ((64, 65544), torch.bfloat16, "_pipelined<bf16, 160, 8, 8, 9>", 120, [160, 1], 92160),
        ((64, 131072), torch.float16, "_pipelined<__half, 256, 8, 8, 6>", 120, [256, 1], 98304),
        ((64, 262144), torch.bfloat16, "_pipelined<bf16, 512, 8, 8, 3>", 120, [512, 1], 98304),
        ((5000, 131080), torch.bfloat16, "_pipelined<bf16, 288, 8, 8, 5>", 480, [288, 1], 92160),
        ((64, 262152), torch.bfloat16, "_any<__nv_bfloat16>", 16, [256, 1], 0),
        ((8192, 8191), torch.bfloat16, "_any<__nv_bfloat16>", 256, [256, 1], 0),
    ],
)
def test_cuda_plan_backward(shape, dtype, entry, grid, block, shared):
    with opaq.prefer(layer_norm_backward, LESS_SHARED):
        chosen = plan(layer_norm_backward, *backward_facts(shape, dtype))
    kernel = "layer_norm_backward" + ("_ahead" if entry.startswith("<") else "")
    assert chosen["entry"] == of_one_dtype(kernel + entry.replace("bf16", "__nv_bfloat16"))
    assert list(chosen["grid"]) == [grid, 1, 1]
    assert list(chosen["block"]) == [*block, 1]
    assert chosen["shared"] == shared


@pytest.mark.parametrize(
    ("shape", "dtype", "way", "entry", "grid", "block", "shared"),
    [
        ((8192, 49152), torch.bfloat16, "one-row-96kb", "<bf16, 192, 8, 4, 8>", 960, 192, 98304),
        ((512, 65536), torch.bfloat16, "one-row-96kb", "<bf16, 256, 8, 4, 6>", 240, 256, 98304),
        ((64, 65544), torch.bfloat16, "one-row", "<bf16, 288, 8, 4, 12>", 120, 288, 221184),
        ((64, 131072), torch.float16, "one-row", "<__half, 512, 8, 4, 7>", 120, 512, 229376),
        ((64, 65536), torch.float32, "one-row", "<float, 512, 8, 4, 7>", 56, 512, 229376),
    ],
)
def test_wide_rows_where_there_is_more_shared_memory(shape, dtype, way, entry, grid, block, shared):
    """With as many blocks of rows, which are results."""
    facts = backward_facts(shape, dtype)
    found, launch = serving(layer_norm_backward, facts, "sm_90a")
    name = "layer_norm_backward_pipelined" + entry.replace("bf16", "__nv_bfloat16")
    assert (found, launch["entry"]) == (f"cuda:{way}", of_one_dtype(name))
    assert (list(launch["grid"]), list(launch["block"])) == ([grid, 1, 1], [block, 1, 1])
    assert launch["shared"] == shared


@pytest.mark.parametrize("arch", ["sm_80", "sm_120", pytest.param("sm_86", marks=pytest.mark.life)])
def test_devices_with_less_shared_memory_have_another_kernel_of_wide_rows(arch):
    facts = backward_facts((64, 131072), torch.bfloat16)
    assert serving(layer_norm_backward, facts, arch)[0] == "cuda:twice-96kb"


def test_blocks_share_wide_rows_that_are_not_aligned():
    """There are fewer blocks of such rows than of others."""
    x, *rest = backward_facts((512, 65536), torch.bfloat16)
    shifted = cuda((512, 65536), torch.bfloat16, alignment=2)
    chosen = plan(layer_norm_backward, shifted, *rest)
    assert chosen["entry"] == of_one_dtype("layer_norm_backward_any<__nv_bfloat16>")
    assert list(chosen["grid"]) == [30, 8, 1]


def test_shared_memory_of_wide_rows_fits_every_device():
    for rows in (64, 4096):
        for length in (16392, 20480, 65536, 262144, 1 << 24):
            facts = forward_facts((64, length), torch.bfloat16)
            assert plan(layer_norm, *facts)["shared"] <= 64 * 1024
            facts = backward_facts((rows, length), torch.bfloat16)
            with opaq.prefer(layer_norm_backward, LESS_SHARED):
                assert plan(layer_norm_backward, *facts)["shared"] <= 96 * 1024


@pytest.mark.parametrize("arch", ARCHS)
def test_the_wide_cuda_kernel_compiles(arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in ((64, 32768), (4096, 32768), (64, 262144)):
            compiles(layer_norm, forward_facts(shape, dtype), arch, "cuda:wide")


@pytest.mark.parametrize("arch", ARCHS)
def test_the_pipelined_cuda_kernel_compiles(arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for packs in (2049, 4096, 4097, 6144, 8192, 8193, 10240, 16384, 32768):
            facts = forward_facts((400, packs * 16 // dtype.itemsize), dtype)
            compiles(layer_norm, facts, arch, "cuda:pipelined")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shape", [(64, 24), (64, 768), (64, 16384), (65536, 128), (65536, 1024)])
def test_the_cuda_kernel_that_holds_rows_compiles(shape, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if shape[1] * dtype.itemsize <= 32768:
            compiles(layer_norm, forward_facts(shape, dtype), arch, "cuda:registers")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("length", [16, 128, 512, 768, 1024, 4096, 6144, 8192])
def test_the_cuda_kernel_that_reads_ahead_compiles(length, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        compiles(layer_norm_backward, backward_facts((64, length), dtype), arch, "cuda:ahead")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("way", WIDE_BACKWARD)
def test_the_cuda_kernels_of_wide_rows_compile(way, arch):
    for dtype, packs in itertools.product((torch.float32, *HALVES), WIDE_BACKWARD[way]):
        x, *others, _, mean, rstd = backward_facts((64, packs * 16 // dtype.itemsize), dtype)
        for weight in {cuda((x[1][1],), dtype), cuda((x[1][1],), torch.float32)}:
            facts = (x, *others, weight, mean, rstd)
            compiles(layer_norm_backward, facts, arch, f"cuda:{way}")


@pytest.mark.parametrize("arch", ARCHS)
def test_the_cuda_kernels_of_any_alignment_compile(arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        compiles(layer_norm, forward_facts((64, 2047), dtype), arch, "cuda:any")
        compiles(layer_norm_backward, backward_facts((64, 2047), dtype), arch, "cuda:any")
