"""Eager calls and every compiled form choose the same implementation, make the same copies and take
the same defaults.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import opaq

STRIDED = """void k(const float* x, long s0, long s1, float* y, long rows, long columns) {
  for (long i = 0; i < rows; ++i) for (long j = 0; j < columns;
      ++j) y[i * columns + j] = x[i * s0 + j * s1] + 100;
}"""
ROW_MAJOR = "void k(const float* x, float* y, long n) { for (long i = 0; i < n; ++i) y[i] = x[i]; }"
_names = (f"opaq_choices::op{i}" for i in itertools.count())


def two(requirement: str) -> Any:
    """An op with two implementations: the first reads strides and adds 100, the second takes only
    row-major tensors, so that values tell which ran.
    """
    op = opaq.op(f"{next(_names)}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        name="strided",
        priority=1,
        requires=requirement,
        source=STRIDED,
        entry="k",
        args="x, x.stride(0), x.stride(1), out, x.size(0), x.size(1)",
    )
    op.cpu(name="rows", source=ROW_MAJOR, entry="k", args="x, out, x.numel()")
    return op


def transposed(rows: int, columns: int, offset: int) -> torch.Tensor:
    """A transposed tensor that begins `offset` floats after a multiple of 64 bytes."""
    base = torch.arange(200.0)
    start = (-base.data_ptr() // 4) % 16 + offset
    return base[start : start + rows * columns].reshape(columns, rows).t()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, **options)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_launch_makes_row_major_copies_where_eager_does(dynamic: bool) -> None:
    for op in (two("aligned(x, 64)"), two("x.size(0) % 2 == 0")):
        run = compiled(lambda x, op=op: op(x), dynamic=dynamic)
        for rows, offset in ((2, 0), (2, 1), (3, 0), (5, 1)):
            x = transposed(rows, 4, offset)
            torch.testing.assert_close(run(x), op(x))
            torch.testing.assert_close(op.overload(x), op(x))


def test_a_cpp_wrapper_makes_row_major_copies_where_eager_does() -> None:
    aligned, even = two("aligned(x, 64)"), two("x.size(0) % 2 == 0")
    run = compiled(lambda x: (aligned(x), even(x)), dynamic=True, options={"cpp_wrapper": True})
    for rows, offset in ((2, 0), (2, 1), (5, 1), (3, 0)):
        x = transposed(rows, 4, offset)
        torch.testing.assert_close(run(x), (aligned(x), even(x)))


def test_a_written_argument_is_copied_and_carried_back_at_a_launch() -> None:
    op = opaq.op(f"{next(_names)}(Tensor(a!) x) -> ()")
    op.cpu(
        requires="aligned(x, 4)",
        source="void k(float* x, long n) { for (long i = 0; i < n; ++i) x[i] += i; }",
        entry="k",
        args="x, x.numel()",
    )
    want, got = torch.zeros(3, 2).t(), torch.zeros(3, 2).t()
    op(want)
    compiled(lambda x: op(x))(got)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(want, torch.arange(6.0).reshape(2, 3))


# ---- two written arguments that share memory -----------------------------------------------------


def writing() -> Any:
    op = opaq.op(f"{next(_names)}(Tensor(a!) x, Tensor(b!) y) -> ()")
    op.cpu(
        source="void k(float* x, long n, float* y, long m) { for (long i = 0; i < n; ++i) x[i] "
        "*= 10; for (long i = 0; i < m; ++i) y[i] += 1; }",
        entry="k",
        args="x, x.numel(), y, y.numel()",
    )
    return op


def test_one_view_given_twice_is_copied_once() -> None:
    f = writing()
    for call in (f, f.overload):
        column = torch.ones(2, 2)[:, 0]
        call(column, column)
        assert column.tolist() == [11, 11]


def test_written_arguments_that_never_meet_are_copied() -> None:
    f, base = writing(), torch.ones(3, 2)
    f(base[:, 0], base[:, 1])
    assert base.tolist() == [[10, 2]] * 3


@pytest.mark.parametrize(
    "views", [lambda b: (b[:, 0], b[0]), lambda b: (b[:3, 0], b[1:, 0]), lambda b: (b.t(), b)]
)
def test_written_arguments_that_overlap_in_part_are_refused(
    views: Callable[[torch.Tensor], Any],
) -> None:
    f, base = writing(), torch.ones(4, 4)
    for call in (f, f.overload):
        with pytest.raises(
            Exception,
            match="is written and not row-major, .* but it shares memory with `[xy]`; pass "
            "tensors that share no memory",
        ):
            call(*views(base))
    assert base.tolist() == torch.ones(4, 4).tolist()


def test_a_written_argument_that_overlaps_itself_is_refused() -> None:
    f, base = writing(), torch.ones(4)
    with pytest.raises(Exception, match="argument `x` is written, but elements of it share memory"):
        f(base[:1].expand(3), torch.ones(1))
    assert base.tolist() == [1] * 4


# ---- addresses -----------------------------------------------------------------------------------


def aligned_op() -> Any:
    op = opaq.op(f"{next(_names)}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    return op.cpu(source=ROW_MAJOR, entry="k", args="x, out, x.numel()", requires="aligned(x, 16)")


@pytest.mark.parametrize(
    "program",
    [
        lambda t: t[1:].clone(),
        lambda t: t[1:] + 0,
        lambda t: t[1:] * 1,
        lambda t: (t + 1)[1:].clone(),
        lambda t: torch.cat([t[1:], t]),
        lambda t: t[1:9].clone()[4:],
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_memory_that_eager_makes_is_aligned_when_compiled_too(
    program: Callable[[torch.Tensor], torch.Tensor], dynamic: bool
) -> None:
    op, t = aligned_op(), torch.arange(16.0)
    torch.testing.assert_close(
        compiled(lambda t: op(program(t)), dynamic=dynamic)(t), op(program(t))
    )


def test_what_eager_refuses_for_its_address_is_refused_when_compiled() -> None:
    op, t = aligned_op(), torch.arange(16.0)
    run = compiled(lambda t: op(t[1:]))
    for call in (lambda: op(t[1:]), lambda: run(t)):
        with pytest.raises(Exception, match=r"aligned\(x, 16\) does not hold"):
            call()


def test_an_argument_of_the_graph_is_not_copied_for_its_address() -> None:
    from torch._inductor.utils import run_and_get_code

    op = aligned_op()
    _, (code,) = run_and_get_code(compiled(lambda t: op(t)), torch.arange(16.0))
    assert code.count("empty_strided_cpu(") == 1  # the result


def test_written_parts_of_an_argument_are_not_copied_for_their_address() -> None:
    from torch._inductor.utils import run_and_get_code

    op = opaq.op(f"{next(_names)}(Tensor(a!) d) -> ()").cpu(
        source="void k(float* d, long n) { for (long i = 0; i < n; ++i) d[i] *= 2; }",
        entry="k",
        args="d, d.numel()",
        requires="aligned(d, 16)",
    )

    def each_part(t: torch.Tensor) -> None:
        for part in t:
            op(part)

    def a_copy(t: torch.Tensor) -> torch.Tensor:
        op(part := t[1, 1:].clone())
        return part

    t, expected = (torch.arange(48.0).view(3, 16) for _ in range(2))
    _, (code,) = run_and_get_code(compiled(each_part), t)
    each_part(expected)
    assert "empty_strided_cpu(" not in code and "copy_(" not in code
    torch.testing.assert_close((compiled(a_copy)(t), t), (a_copy(expected), expected))


# ---- defaults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_defaults_are_those_of_eager(dynamic: bool) -> None:
    op = opaq.op(
        f"{next(_names)}(Tensor x, ScalarType dt=float64, int n=-3, float f=2.5, bool b=True, "
        "str s='it\\'s', int[] l=[1, -2], int? k=None, "
        "ScalarType? od=None, MemoryFormat m=contiguous_format, Layout lay=strided, *, float "
        "g=1e-6) -> Tensor",
        outputs=opaq.tensor("x.shape", dtype="dt"),
    )
    op.cpu(
        source="""template <class T, class O>
        void k(const T* x, O* y, long n, double f, bool b, int s, long l, double g) {
          y[0] = x[0] + n + b + s + l + g + (f == 2.5);
        }""",
        entry="k<{x.dtype}, {dt}>",
        args="x, out, n if not defined(k) else k, f, b, 5 if s == 'it\\'s' else 0, l[1] if not "
        "defined(od) else 0, g",
    )
    x = torch.zeros(3)
    want = op(x)
    assert want.dtype == torch.float64 and want[0].item() == -3 + 1 + 5 - 2 + 1e-6 + 1
    assert compiled(lambda x: op(x), dynamic=dynamic)(x)[0].item() == want[0].item()
    assert op(x.to("meta")).dtype == torch.float64
