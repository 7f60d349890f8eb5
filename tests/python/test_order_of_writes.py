"""Programs in which an op's write must come before or after other reads and writes, and programs in
which written views have another offset or other strides than in eager.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import copy_programs
import pytest
import torch

import opaq


class Ops(NamedTuple):
    write: Callable[..., Any]  # a kernel: d = 2 d, then d + a
    write_by_function: Callable[..., Any]  # the same in Python
    make: Callable[..., Any]  # a kernel: 3 x


def declared(name: str) -> Ops:
    write = opaq.op(f"{name}_write(Tensor(a!) d, Tensor a) -> ()").cpu(
        source="void f(float* d, const float* a, long n) { for (long i = 0; i < n; ++i) d[i] "
        "*= 2; for (long i = 0; i < n; ++i) d[i] += a[i]; }",
        entry="f",
        args="d, a, d.numel()",
    )
    make = opaq.op(f"{name}_make(Tensor x) -> Tensor", outputs=opaq.like("x")).cpu(
        source="void f(const float* x, float* o, long n) { for (long i = 0; i < n; ++i) o[i] = "
        "3 * x[i]; }",
        entry="f",
        args="x, out, x.numel()",
    )
    by_function = opaq.custom_op(
        f"{name}_function", mutates_args=("d",), schema="(Tensor(a!) d, Tensor a) -> ()"
    )(plain.write_by_function)
    return Ops(write, by_function, make)


def _write(d: torch.Tensor, a: torch.Tensor) -> None:
    d.mul_(2)
    d.add_(a)


plain = Ops(_write, _write, lambda x: (3 * x).contiguous())


def read_after_an_inductor_write(ops: Ops, x: torch.Tensor) -> Any:
    x.add_(x + 1)
    made = ops.make(x.t()) + 1
    return made, made - x.t()


def kept_beside_a_later_write(ops: Ops, x: torch.Tensor) -> Any:
    copy = ops.make(x).clone()
    x[0] = 3
    x.copy_(x + 1)
    return copy.contiguous()


def copied_onto_itself(ops: Ops, x: torch.Tensor) -> Any:
    copy = torch.empty_like(x).copy_(x)
    written = copy.clone()
    ops.write(written, copy.clone())
    x.copy_(x.clone())
    return ops.make(written)


def view_of_a_value_written_before(ops: Ops, x: torch.Tensor) -> Any:
    view = x.unsqueeze(0)
    view.mul_(2)
    ops.write(view, view)
    return ops.make(view)


def transposed_view_of_a_value_written_before(ops: Ops, x: torch.Tensor) -> Any:
    x.add_(1)
    ops.write(x.t()[1], x.t()[2].clone())
    return ops.make(x)


def computed_before_a_function_writes(ops: Ops, x: torch.Tensor) -> Any:
    late = x + 1
    flipped = late.flip(0)
    ops.write_by_function(x, flipped)
    return ops.make(late)


def written_twice_through_a_view(ops: Ops, x: torch.Tensor) -> Any:
    first = x[0]
    first[1:].sub_(1)
    ops.write(x, x)
    ops.write(first, first)
    return first[::2].squeeze()


def view_of_a_written_intermediate(ops: Ops, x: torch.Tensor) -> Any:
    made = ops.make(x)
    view = made.transpose(0, 1)
    made.t().add_(2)
    ops.write_by_function(made, made)
    return view[1:]


def transposed_after_a_write(ops: Ops, x: torch.Tensor) -> Any:
    ops.write(x, x.clone())
    x.add_(x.t().clone())
    return ops.make(x[:2])


def shared_with_an_argument_in_other_strides(ops: Ops, x: torch.Tensor) -> Any:
    repeated = x.repeat(2, 1)
    ops.write_by_function(x, x)
    return repeated.reshape(-1, 2)


def written_after_a_cat(ops: Ops, x: torch.Tensor) -> Any:
    made = x + 1
    joined = torch.cat([made, x + 2])
    ops.write(made, made)
    part = torch.cat([x + 3, x + 4])
    ops.write(part, joined.clone())
    return joined, part, made


def last_row_of_a_value_written_before(ops: Ops, x: torch.Tensor) -> Any:
    last = x[-1]
    x[..., 1:].sub_(1)
    ops.write(last, last.clone())
    return ops.make(x.view_as(x))


def parts_of_a_value_written_before(ops: Ops, x: torch.Tensor) -> Any:
    rows, diagonal, corner = x[::2], x[:4].diagonal(), x.t()[::2, ::2]
    x[..., 1:].sub_(1)
    ops.write_by_function(rows, rows.clone())
    ops.write_by_function(diagonal, diagonal.clone())
    x.mul_(2)
    ops.write(corner, corner.clone())
    return ops.make(x.view_as(x))


def reshaped(ops: Ops, x: torch.Tensor) -> Any:
    a, b = x.reshape(4, -1), x.reshape(4, -1)
    ops.write_by_function(a, b)
    ops.write(b, a)
    return a, b


def whole(size: int) -> torch.Tensor:
    return torch.arange(4.0 * size).view(size, 4)


def window(size: int) -> torch.Tensor:
    return torch.arange(8.0 * (size + 2)).view(size + 2, 8)[1 : size + 1, 1:5]


def late(size: int) -> torch.Tensor:
    return torch.arange(4.0 * size + 3)[3:].view(size, 4)


def every_second_row(size: int) -> torch.Tensor:
    return torch.arange(8.0 * size).view(2 * size, 4)[::2]


def three_rows(size: int) -> torch.Tensor:
    return torch.arange(24.0 * (size - 3)).view(6, -1)[::2]


PROGRAMS = [
    (read_after_an_inductor_write, window),
    (kept_beside_a_later_write, whole),
    (copied_onto_itself, whole),
    (view_of_a_value_written_before, late),
    (transposed_view_of_a_value_written_before, window),
    (computed_before_a_function_writes, whole),
    (written_twice_through_a_view, window),
    (view_of_a_written_intermediate, whole),
    (transposed_after_a_write, whole),
    (shared_with_an_argument_in_other_strides, window),
    (reshaped, three_rows),
    (written_after_a_cat, whole),
    (last_row_of_a_value_written_before, every_second_row),
    (parts_of_a_value_written_before, window),
]


@pytest.mark.parametrize(
    "dynamic", [False, pytest.param(True, marks=pytest.mark.life)], ids=["static", "dynamic"]
)
@pytest.mark.parametrize(
    ("program", "make_input"), PROGRAMS, ids=[program.__name__ for program, _ in PROGRAMS]
)
def test_compiled_code_leaves_what_eager_leaves(
    program: Callable[..., Any],
    make_input: Callable[[int], torch.Tensor],
    dynamic: bool,
    unique: str,
) -> None:
    compiled = torch.compile(
        functools.partial(program, declared(unique)), fullgraph=True, dynamic=dynamic
    )
    for size in (4, 5) if dynamic and program is not transposed_after_a_write else (4,):
        x, y = make_input(size), make_input(size)
        results, expected = (
            value if isinstance(value, tuple) else (value,)
            for value in (compiled(x), program(plain, y))
        )
        for result, value in zip(results, expected, strict=True):
            assert torch.equal(result, value)
            assert result.stride() == value.stride()
        assert torch.equal(x, y)
        assert torch.equal(copy_programs.whole(x), copy_programs.whole(y))
