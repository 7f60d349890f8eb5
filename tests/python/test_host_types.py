"""Element types that host C++ lacks: opaq's small floats, compared with PyTorch's conversions; and
division.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import opaq

_names = (f"opaq_host_types::op{i}" for i in itertools.count())
SMALL = [
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]
LOOP = (
    "template <class T, class O> void k(const T* x, O* y, long n) { for (long i = 0; i < n; "
    "++i) y[i] = O(float(x[i])); }"
)

convert = opaq.op(
    f"{next(_names)}(Tensor x, ScalarType to) -> Tensor", outputs=opaq.tensor("x.shape", dtype="to")
)
convert.cpu(source=LOOP, entry="k<{x.dtype}, {to}>", args="x, out, x.numel()")


def codes(dtype: torch.dtype) -> torch.Tensor:
    """Every value of the type."""
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_small_floats_convert_as_pytorch_does(dtype: torch.dtype) -> None:
    every = codes(dtype)
    want = every.float()
    torch.testing.assert_close(convert(every, torch.float32), want, rtol=0, atol=0, equal_nan=True)
    finite = want[torch.isfinite(want)].sort().values
    middle = (finite[1:] + finite[:-1]) / 2  # ties, and the values next to them
    edges = torch.tensor(
        [
            0.0,
            -0.0,
            torch.inf,
            -torch.inf,
            torch.nan,
            1e-45,
            3.4e38,
            -3.4e38,
            464.0,
            465.0,
            480.0,
            57344.0,
            61440.0,
            65519.0,
            65520.0,
            248.0,
        ]
    )
    values = torch.cat(
        [
            want,
            middle,
            middle.nextafter(torch.tensor(torch.inf)),
            middle.nextafter(torch.tensor(-torch.inf)),
            edges,
        ]
    )
    # both the vectorised part and the rest of a loop
    values = values.repeat(2)[: values.numel() + 3]
    got, expected = convert(values, dtype), values.to(dtype)
    # torch 2.11 gives NaN for what is too large, torch 2.15 and CUDA's type the largest number
    if dtype is torch.float8_e4m3fn:
        expected = torch.where(values.isnan(), values, values.clamp(-448, 448)).to(dtype)
    unequal = (got.float() != expected.float()) & ~(got.float().isnan() & expected.float().isnan())
    signs = got.float().signbit() != expected.float().signbit()
    assert not unequal.any(), (values[unequal][:5], got[unequal][:5], expected[unequal][:5])
    assert not (signs & ~got.float().isnan()).any()


@pytest.mark.parametrize("dtype", SMALL[:-1], ids=str)
def test_small_floats_have_limits_and_arithmetic(dtype: torch.dtype) -> None:
    op = opaq.op(f"{next(_names)}(Tensor x) -> Tensor", outputs=opaq.tensor("8", dtype="float32"))
    op.cpu(
        source="""#include <cmath>
        template <class T> void k(const T* x, float* y) {
          using L = std::numeric_limits<T>;
          T sum = 0;
          sum += x[0]; sum *= 2; sum -= 1; sum /= T(2);
          y[0] = L::max(); y[1] = L::min(); y[2] = L::epsilon(); y[3] = L::lowest();
          y[4] = sum; y[5] = x[0] + x[1] * 2; y[6] = std::exp(x[0]) > 2 && x[0] < x[1] ? 1 : 0;
              y[7] = -x[1];
        }""",
        entry="k<{x.dtype}>",
        args="x, out",
    )
    info, values = torch.finfo(dtype), codes(dtype).float()
    # torch 2.11's finfo gives half of it for float8_e5m2fnuz
    eps = values[values > 1].min().item() - 1
    assert op(torch.tensor([1.0, 1.5]).to(dtype)).tolist() == [
        info.max,
        info.smallest_normal,
        eps,
        info.min,
        0.5,
        4.0,
        1.0,
        -1.5,
    ]


def test_a_scalar_parameter_may_be_a_small_float() -> None:
    op = opaq.op(
        f"{next(_names)}(Tensor x, float f) -> Tensor", outputs=opaq.like("x", dtype="float32")
    )
    op.cpu(
        source="template <class T> void k(const T* x, float* y, T f) { y[0] = x[0] * f; }",
        entry="k<{x.dtype}>",
        args="x, out, f",
    )
    for dtype in (torch.float16, torch.bfloat16):
        assert (
            op(torch.tensor([3.0], dtype=dtype), 0.1).item()
            == 3 * torch.tensor(0.1, dtype=dtype).float().item()
        )


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128], ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_complex_numbers_need_no_include(dtype: torch.dtype, unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="template <class T> void f(const T* x, T* out, long n) {\n"
        "  for (long i = 0; i < n; ++i) out[i] = x[i] * x[i] + x[i];\n}",
        entry="f<{x.dtype}>",
        args="x, out, x.numel()",
    )
    x = torch.tensor([1 + 2j, -0.5j, 3.0], dtype=torch.complex128)
    torch.testing.assert_close(op(x.to(dtype)).to(torch.complex128), x * x + x)


def test_a_type_that_cpp_lacks_is_refused_by_name() -> None:
    op = opaq.op(f"{next(_names)}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=LOOP, entry="k<{x.dtype}, {x.dtype}>", args="x, out, x.numel()")
    x = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(
        Exception,
        match="float4_e2m1fn_x2, which has no type in host C\\+\\+; exclude it with requires",
    ):
        op(x)
    op.cuda(
        source="template <class T> __global__ void k(const T* x, T* y, long n) {}",
        entry="k<{x.dtype}>",
        args="x, out, x.numel()",
    )
    with pytest.raises(
        opaq.LaunchError, match="float8_e4m3fnuz, which has no type in CUDA C\\+\\+"
    ):
        opaq._runtime.compile(op.name, [("float8_e4m3fnuz", [4], [1], "cuda:0", 256)], "sm_90a")


# ---- division ------------------------------------------------------------------------------------

SCALED = (
    "void k(const float* x, float* y, float scale, long n, int half) { for (long i = 0; i "
    "< n; ++i) y[i] = x[i] * scale + half; }"
)


def test_a_quotient_of_ints_is_a_float_or_an_exact_int_as_the_parameter_is() -> None:
    op = opaq.op(f"{next(_names)}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source=SCALED,
        entry="k",
        args="x, out, 1 / x.size(-1), x.numel() / x.size(-1) * x.size(-1), x.numel() / 2",
    )
    x = torch.ones(2, 4)
    want = x / 4 + 4
    torch.testing.assert_close(op(x), want)
    torch.testing.assert_close(
        torch.compile(lambda x: op(x), fullgraph=True, dynamic=True)(x), want
    )
    with pytest.raises(
        Exception,
        match=r"`x.numel\(\) / 2`|'x.numel\(\) / 2': 15 / 2 is no whole number, and an int is "
        r"needed here; write // to round down",
    ):
        op(torch.ones(3, 5))


def test_a_quotient_where_an_int_is_needed() -> None:
    op = opaq.op(
        f"{next(_names)}(Tensor x) -> Tensor",
        outputs=opaq.tensor("x.numel() / x.size(-1), x.size(-1)", dtype="x.dtype"),
    )
    op.cpu(
        source="template <int N> void k(const float* x, float* y, long n) { for (long i = 0; i "
        "< n; ++i) y[i] = N; }",
        entry="k<{x.size(-1) / 2}>",
        args="x, out, x.numel()",
    )
    assert op(torch.ones(2, 3, 4)).tolist() == [[2.0] * 4] * 6
    assert op(torch.ones(2, 3, 4, device="meta")).shape == (6, 4)
    run = torch.compile(lambda x: op(x), fullgraph=True, dynamic=True)
    torch.testing.assert_close(run(torch.ones(2, 3, 4)), op(torch.ones(2, 3, 4)))
    with pytest.raises(
        opaq.DeclarationError, match="grid of .*: '7 / 2': 7 / 2 is no whole number"
    ):
        op.cuda(source="k", entry="k", args="out", grid="7 / 2")
    with pytest.raises(opaq.DeclarationError, match="has type float, expected int"):
        op.cuda(source="k", entry="k", args="out", grid="x.numel() * 0.5")


def test_quotes_may_be_escaped_in_entries_and_arguments() -> None:
    op = opaq.op(f"{next(_names)}(Tensor x, str s) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="template <int N> void k(float* y, int n) { y[0] = N; y[1] = n; }",
        entry="k<{1 if s == 'it\\'s}' else 0}>",
        args="out, 2 if s == 'it\\'s}' else 3",
    )
    assert op(torch.ones(2), "it's}").tolist() == [1, 2]
    assert op(torch.ones(2), "it").tolist() == [0, 3]
