"""Arguments that an op writes to in compiled graphs: inputs, views and intermediates of any layout
have the same values afterwards as in eager.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from forms import OPTIONS
from torch._inductor.utils import run_and_get_code

import opaq

ADD = (
    "void add(float* cache, const float* x, double by, long n) { for (long i = 0; i < n; "
    "++i) cache[i] += x[i] * by; }"
)
ADD_STRIDED = """
void add(float* cache, long c0, long c1, const float* x, double by, long n, long m) {
  for (long i = 0; i < n; ++i) for (long j = 0; j < m;
      ++j) cache[i * c0 + j * c1] += x[i * m + j] * by;
}"""
ADD_AND_SUM = """
void add(float* cache, const float* x, float* total, long n, long m) {
  for (long i = 0; i < n; ++i) { total[i] = 0; for (long j = 0; j < m;
      ++j) total[i] += cache[i * m + j] += x[i * m + j]; }
}"""


def row_major(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor(a!) cache, Tensor x, float by=1.0) -> ()")
    return op.cpu(source=ADD, entry="add", args="cache, x, by, x.numel()")


def strided(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor(a!) cache, Tensor x, float by=1.0) -> ()")
    return op.cpu(
        source=ADD_STRIDED,
        entry="add",
        args="cache, cache.stride(0), cache.stride(1), x, by, x.size(0), x.size(1)",
    )


def input_itself(op, cache, x):
    op(cache, x, 2.0)
    return cache + 1


def rows(op, cache, x):
    op(cache[1:3], x[1:3], 2.0)
    return cache * 2


def columns(op, cache, x):
    op(cache[:, 1:4], x[:, 1:4], 2.0)
    return cache * 2


def transposed(op, cache, x):
    op(cache.t(), x.t(), 2.0)
    return cache.t() * 2


def intermediate(op, cache, x):
    made = cache * 3
    op(made, x)
    seen = made + 1
    op(made, x, 0.5)
    return made, seen, made + seen


def intermediate_views(op, cache, x):
    made = cache * 3
    part = made[:, 2:4]
    op(part, x[:, 2:4])
    seen = part.sum()
    op(made.t(), x.t())
    return made, part, seen


def row_as_column(op, cache, x):
    op(cache[1:2].t(), x[1:2].t())
    op(cache[-1:].t(), x[-1:].t())
    return cache * 2


def columns_first(op, cache, x):
    made = torch.empty_strided(cache.shape, (1, cache.size(0))).copy_(cache)
    op(made, x)
    op(made, x, 2.0)
    return made, made.t()


def fresh(op, cache, x):
    made = torch.zeros_like(x)
    op(made, x)
    return made + 1


def read_before_write(op, cache, x):
    before = cache * 2 + x
    op(cache, x)
    return before, cache * 2


def same_tensor_twice(op, cache, x):
    op(cache, cache)
    return cache + 0


def loop(op, cache, x):
    for i in range(3):
        op(cache, x, float(i))
    return x * 2


def in_torch(cache: torch.Tensor, x: torch.Tensor, by: float = 1.0) -> None:
    cache.add_(x, alpha=by)


CASES = [
    input_itself,
    rows,
    columns,
    transposed,
    intermediate,
    intermediate_views,
    row_as_column,
    columns_first,
    fresh,
    read_before_write,
    same_tensor_twice,
    loop,
]


def forms() -> Iterator[Any]:
    """Most of those with kernels as users have them in the part life."""
    for dynamic, make, case in itertools.product((False, True), (row_major, strided), CASES):
        users = make is row_major and not dynamic
        in_life = users and case not in (input_itself, intermediate_views)
        name = f"{'dynamic' if dynamic else 'static'}-{make.__name__}-{case.__name__}"
        marks = [pytest.mark.life] * in_life
        yield pytest.param(case, make, dynamic, users, id=name, marks=marks)


@pytest.mark.parametrize("case, make, dynamic, users", list(forms()))
def test_the_write_lands(
    unique: str,
    case: Callable,
    make: Callable,
    dynamic: bool,
    users: bool,
    request: pytest.FixtureRequest,
) -> None:
    if users:
        request.getfixturevalue("kernels_as_users_have_them")
    op = make(unique)
    cache, x = torch.randn(4, 6), torch.randn(4, 6)
    expected_cache, compiled_cache = cache.clone(), cache.clone()
    expected = case(in_torch, expected_cache, x)
    function = torch.compile(lambda cache, x: case(op, cache, x), fullgraph=True, dynamic=dynamic)
    compiled, code = run_and_get_code(function, compiled_cache, x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(compiled_cache, expected_cache)
    assert f"torch.ops.{unique.replace('::', '.')}" not in code[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize(
    "make, dynamic",
    [
        pytest.param(row_major, False, id="static-row-major"),
        pytest.param(strided, True, id="dynamic-strided"),
        pytest.param(row_major, True, id="dynamic-row-major", marks=pytest.mark.life),
        pytest.param(strided, False, id="static-strided", marks=pytest.mark.life),
    ],
)
def test_the_write_lands_in_a_part_of_a_tensor(
    unique: str, case: Callable, make: Callable, dynamic: bool
) -> None:
    op = make(unique)
    whole, x = torch.randn(7, 9), torch.randn(4, 6)
    expected_whole, compiled_whole = whole.clone(), whole.clone()
    expected = case(in_torch, expected_whole[2:6, 1:7], x)
    compiled = torch.compile(lambda cache, x: case(op, cache, x), fullgraph=True, dynamic=dynamic)(
        compiled_whole[2:6, 1:7], x
    )
    torch.testing.assert_close(compiled, expected, check_stride=True)
    torch.testing.assert_close(compiled_whole, expected_whole)


def test_an_input_is_written_in_place(unique: str) -> None:
    op = row_major(unique)
    cache, x = torch.zeros(4, 6), torch.randn(4, 6)
    _, code = run_and_get_code(
        torch.compile(lambda cache, x: op(cache, x), fullgraph=True), cache, x
    )
    torch.testing.assert_close(cache, x)
    assert "empty_strided_cpu(" not in code[0][code[0].index("def call(") :]


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_op_may_write_and_return(unique: str, dynamic: bool) -> None:
    op = opaq.op(
        f"{unique}(Tensor(a!) cache, Tensor x) -> (Tensor total)",
        outputs=opaq.tensor("x.size(0)", dtype="x.dtype"),
    )
    op.cpu(source=ADD_AND_SUM, entry="add", args="cache, x, total, x.size(0), x.size(1)")

    def model(cache: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return op(cache, x) * 2, op(cache.t(), x.t()) + 1

    cache, x = torch.randn(4, 6), torch.randn(4, 6)
    written = cache.clone()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)(written, x)
    torch.testing.assert_close(compiled, ((cache + x).sum(1) * 2, (cache + 2 * x).sum(0) + 1))
    torch.testing.assert_close(written, cache + 2 * x)


def test_an_absent_optional_that_would_be_written(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, Tensor(a!)? cache=None) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="""void add(const float* x, float* cache, float* out, long n) {
          for (long i = 0; i < n; ++i) { out[i] = x[i] * 2; if (cache) cache[i] += x[i]; } }""",
        entry="add",
        args="x, cache, out, x.numel()",
    )
    x = torch.randn(5)
    for options in OPTIONS.values():
        torch.compiler.reset()
        cache = torch.zeros(5)
        for absent in (lambda x: op(x), lambda x: op(x, None)):
            torch.testing.assert_close(torch.compile(absent, fullgraph=True, **options)(x), x * 2)
        given = torch.compile(lambda x, cache: op(x, cache=cache), fullgraph=True, **options)
        torch.testing.assert_close(given(x, cache), x * 2)
        torch.testing.assert_close(cache, x)


def test_an_op_that_neither_writes_nor_returns_still_runs(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, int address) -> ()")
    op.cpu(
        source="void tell(const float* x, long address) { ++*(long*)address; }",
        entry="tell",
        args="x, address",
    )
    counter = torch.zeros(1, dtype=torch.int64)
    address = counter.data_ptr()

    def model(x: torch.Tensor) -> torch.Tensor:
        op(x, address)
        return x * 2

    torch.compile(model, fullgraph=True)(torch.randn(3))
    assert counter.item() == 1


def test_autograd_notices_a_write_through_the_dispatcher(unique: str) -> None:
    op = row_major(unique)
    cache = torch.zeros(3)
    weight = torch.ones(3, requires_grad=True)
    product = (cache * weight).sum()
    op.overload(cache, torch.ones(3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("kind", ["op", "custom_op"])
def test_what_an_op_reads_is_written_after_it(unique: str, kind: str) -> None:
    """torch 2.11 loses this dependency if the kernel that writes is fused from several, and then
    moves that kernel forward to save memory.
    """

    def meaning(a: torch.Tensor) -> torch.Tensor:
        return a * 2

    if kind == "op":
        op = opaq.op(f"{unique}(Tensor a) -> Tensor", outputs=opaq.like("a"))
        op.cpu(
            source="void f(const float* a, float* y, long n) { for (long i = 0; i < n; ++i) "
            "y[i] = a[i] * 2; }",
            entry="f",
            args="a, out, a.numel()",
        )
    else:
        op = opaq.custom_op(unique, meaning, mutates_args=())
        op.register_fake(torch.empty_like)

    def model(double: Callable, x: torch.Tensor) -> torch.Tensor:
        y = double(x)
        x[..., 1:].sub_(1)
        return y[0]

    expected = torch.randn(4, 4)
    compiled = expected.clone()
    assert torch.equal(torch.compile(model, fullgraph=True)(op, compiled), model(meaning, expected))
    assert torch.equal(compiled, expected)


@pytest.mark.parametrize("name", ["mode", "ctx", "fake_mode", "self", "op", "kwargs", "args"])
def test_an_argument_of_a_writing_op_may_have_any_name(unique: str, name: str) -> None:
    """torch's functional calls hand arguments on by keyword to functions that have parameters of
    such names.
    """
    op = opaq.op(f"{unique}(Tensor(a!) x, float {name}) -> ()").cpu(
        source="void f(float* x, double by, long n) { for (long i = 0; i < n; ++i) x[i] *= by; }",
        entry="f",
        args=f"x, {name}, x.numel()",
    )
    x = torch.randn(8)
    expected = x * 3
    torch.compile(lambda x: op(x, **{name: 3.0}), fullgraph=True)(x)
    assert torch.equal(x, expected)
