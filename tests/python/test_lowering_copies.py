"""Copies before a write, and arguments that share memory: every compiled form reads and writes the
same values as eager.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from copy_programs import (
    PROGRAMS,
    add_and_reverse,
    check,
    example_inputs,
    packaged,
    reverse_into,
    write_both,
)
from torch._inductor.utils import run_and_get_code

import opaq


def reverse_op(name: str) -> Callable[..., Any]:
    op = opaq.op(f"{name}(Tensor src, Tensor(a!) dst) -> ()")
    return op.cpu(
        source="void f(const float* s, long ss, float* d, long ds, long n) { for (long i = 0; "
        "i < n; ++i) d[(n - 1 - i) * ds] = s[i * ss]; }",
        entry="f",
        args="src, src.stride(0), dst, dst.stride(0), src.numel()",
    )


def both_op(name: str) -> Callable[..., Any]:
    op = opaq.op(f"{name}(Tensor(a!) a, Tensor(b!) b) -> ()")
    return op.cpu(
        source="""void f(float* a, long as, float* b, long bs, long n) {
          for (long i = 0; i < n; ++i) { a[i * as] = a[i * as] * 2 + b[(n - 1 - i) * bs];
              b[i * bs] += 3; } }""",
        entry="f",
        args="a, a.stride(0), b, b.stride(0), a.numel()",
    )


def returning_op(name: str) -> Callable[..., Any]:
    op = opaq.op(f"{name}(Tensor src, Tensor(a!) dst) -> Tensor", outputs=opaq.like("src"))
    return op.cpu(
        source="""void f(const float* s, long ss, float* d, long ds, float* o, long n) {
          for (long i = 0; i < n; ++i) { o[i] = s[i * ss] + d[i * ds];
              d[(n - 1 - i) * ds] = s[i * ss]; } }""",
        entry="f",
        args="src, src.stride(0), dst, dst.stride(0), out, src.numel()",
    )


def python_op(name: str) -> Callable[..., Any]:
    return opaq.custom_op(name, reverse_into, mutates_args={"dst"})


def only_with_a_reference(name: str) -> Callable[..., Any]:
    """In a C++ wrapper it goes through the dispatcher."""
    op = opaq.op(f"{name}(Tensor src, Tensor(a!) dst) -> ()")
    op.reference(reverse_into)
    return op


MAKERS = {
    "op": (reverse_op, reverse_into),
    "two written": (both_op, write_both),
    "returns": (returning_op, add_and_reverse),
    "custom_op": (python_op, reverse_into),
    "reference": (only_with_a_reference, reverse_into),
}


def forms() -> Iterator[Any]:
    """Each kind with inputs of each kind; all of these crossed, and kernels as users have them, in
    the part life."""
    for parts, dynamic, kind in itertools.product((False, True), (False, True), MAKERS):
        users = kind == "op" and not (parts or dynamic)
        repeats = kind != "op" and parts != dynamic
        name = f"{'parts' if parts else 'whole'}-{'dynamic' if dynamic else 'static'}-{kind}"
        marks = [pytest.mark.life] * (users or repeats)
        yield pytest.param(kind, dynamic, parts, users, id=name, marks=marks)


@pytest.mark.parametrize("kind, dynamic, parts, users", list(forms()))
def test_every_program_agrees_with_eager(
    unique: str,
    kind: str,
    dynamic: bool,
    parts: bool,
    users: bool,
    request: pytest.FixtureRequest,
) -> None:
    if users:
        request.getfixturevalue("kernels_as_users_have_them")
    make, meaning = MAKERS[kind]
    check(
        make(unique),
        meaning,
        PROGRAMS,
        lambda f: torch.compile(f, fullgraph=True, dynamic=dynamic),
        parts=parts,
    )


@pytest.mark.parametrize(
    "kind",
    [
        "op",
        "two written",
        *[
            pytest.param(kind, marks=pytest.mark.life)
            for kind in ("returns", "custom_op", "reference")
        ],
    ],
)
def test_with_the_first_version_of_functionalization(unique: str, kind: str) -> None:
    make, meaning = MAKERS[kind]
    refused = (
        {
            "input_to_clone",
            "clone_of_input",
            "clone_then_input",
            "input_two_clones",
            "times_one_then_input",
            "transposed_then_input",
            "overlap_input_clone",
            "written_then_flipped",
        }
        if kind == "two written"
        else set()
    )
    programs = [each for each in PROGRAMS if each.__name__ not in refused]
    check(
        make(unique),
        meaning,
        programs,
        lambda f: torch.compile(
            f, fullgraph=True, options={"enable_auto_functionalized_v2": False}
        ),
    )


def test_the_first_version_refuses_a_graph_input_and_a_copy_of_it(unique: str) -> None:
    op = both_op(unique)

    def model(t: torch.Tensor) -> torch.Tensor:
        copy = t * 1
        op(copy, t)
        return copy

    expected = torch.arange(6.0)
    write_both(expected, torch.arange(6.0))
    try:
        result = torch.compile(
            model, fullgraph=True, options={"enable_auto_functionalized_v2": False}
        )(torch.arange(6.0))
    except Exception as error:
        assert re.search(
            "it writes to `a` and `b`, a graph input and a copy of it; .*leave the option at True",
            str(error),
        )
    else:  # a newer Inductor keeps the copy
        assert torch.equal(result, expected)


def test_without_inductors_pattern_matcher(unique: str) -> None:
    check(
        reverse_op(unique),
        reverse_into,
        PROGRAMS,
        lambda f: torch.compile(f, fullgraph=True, options={"pattern_matcher": False}),
    )


@pytest.mark.parametrize("kind", ["op", pytest.param("reference", marks=pytest.mark.life)])
def test_in_a_cpp_wrapper(unique: str, kind: str) -> None:
    make, meaning = MAKERS[kind]
    check(
        make(unique),
        meaning,
        PROGRAMS,
        lambda f: torch.compile(f, fullgraph=True, options={"cpp_wrapper": True}),
    )


def test_in_a_package(unique: str, tmp_path: Any) -> None:
    check(
        reverse_op(unique),
        reverse_into,
        PROGRAMS,
        lambda f: packaged(f, example_inputs(PROGRAMS), tmp_path / "model.pt2"),
    )


def test_in_branches_of_cond(unique: str) -> None:
    op = reverse_op(unique)

    def model(write: Callable[..., Any], t: torch.Tensor) -> torch.Tensor:
        def copied(x: torch.Tensor) -> torch.Tensor:
            s = x + 1
            write(s.clone(), s)
            return s * 2

        def shared(x: torch.Tensor) -> torch.Tensor:
            s = x + 1
            old = s.clone()
            write(s[:-1], s[1:])
            return s + old

        return torch.cond(t.sum() > 0, copied, shared, (t,))

    for t in (torch.arange(6.0), -torch.arange(6.0)):
        # eager torch.cond would trace: the branches are called by hand
        expected = torch.arange(6.0)
        s = t + 1
        if t.sum() > 0:
            reverse_into(s.clone(), s)
            expected = s * 2
        else:
            old = s.clone()
            reverse_into(s[:-1], s[1:])
            expected = s + old
        assert torch.equal(torch.compile(lambda t: model(op, t), fullgraph=True)(t), expected)


def test_in_a_training_graph(unique: str) -> None:
    op = reverse_op(unique)

    def model(write: Callable[..., Any], w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        s = (t * 2).detach()
        write(s.clone(), s)
        whole = (t * 3).detach()
        old = whole.clone()
        write(whole[:-1], whole[1:])
        return (w * s + w * w * old * whole).sum()

    grads = []
    for function, write in ((model, reverse_into), (torch.compile(model, fullgraph=True), op)):
        w, t = torch.arange(1.0, 7.0, requires_grad=True), torch.arange(6.0)
        function(write, w, t).backward()
        grads.append(w.grad)
    assert torch.equal(*grads)


def test_graphs_that_differ_by_a_dropped_copy_alone_are_two_graphs_in_the_cache(
    unique: str,
) -> None:
    """Inductor drops `+ 0` before it makes a graph's cache key."""
    op = reverse_op(unique)

    def copied(t: torch.Tensor) -> torch.Tensor:
        s = t + 1
        op(s + 0, s)
        return s

    def shared(t: torch.Tensor) -> torch.Tensor:
        s = t + 1
        op(s, s)
        return s

    t = torch.arange(6.0)
    for function, expected in ((copied, [6.0, 5, 4, 3, 2, 1]), (shared, [1.0, 2, 3, 3, 2, 1])):
        torch._dynamo.reset()
        assert torch.compile(function, fullgraph=True)(t).tolist() == expected


def test_a_cache_is_never_copied(unique: str) -> None:
    """Rows of a key/value cache, written through views, as an input and as an intermediate: the
    generated code allocates nothing of its size.
    """
    op = opaq.op(f"{unique}(Tensor(a!) cache, Tensor row, int at) -> ()")
    op.cpu(
        source="void f(float* cache, long stride, const float* row, long at, long n) { for "
        "(long i = 0; i < n; ++i) cache[at * stride + i] = row[i]; }",
        entry="f",
        args="cache, cache.stride(0), row, at, row.numel()",
    )

    def model(cache: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        op(cache, row * 2, 3)
        op(cache[8:16], row + 1, 2)
        op(cache[16:], cache[0].clone(), 1)
        return cache[3] + cache[10] + cache[17]

    cache, row = torch.zeros(32, 8), torch.arange(8.0)
    result, code = run_and_get_code(torch.compile(model, fullgraph=True), cache, row)
    assert (
        torch.equal(cache[3], row * 2)
        and torch.equal(cache[10], row + 1)
        and torch.equal(cache[17], torch.zeros(8))
    )
    assert torch.equal(result, row * 3 + 1)
    assert "empty_strided_cpu((32, 8)" not in code[0]


@pytest.mark.parametrize("shift, copies", [(4, 0), (3, 1)])
def test_only_what_may_overlap_is_copied(unique: str, shift: int, copies: int) -> None:
    op = reverse_op(unique)

    def model(t: torch.Tensor) -> torch.Tensor:
        s = t + 1
        op(s.clone()[:4], s[shift : shift + 4])
        return s

    t = torch.arange(8.0)
    expected = t + 1
    reverse_into((t + 1)[:4], expected[shift : shift + 4])
    result, code = run_and_get_code(torch.compile(model, fullgraph=True), t)
    assert torch.equal(result, expected)
    assert (
        code[0]
        .partition("def call(")[2]
        .partition("benchmark_compiled_module")[0]
        .count("empty_strided_cpu(")
        == 1 + copies
    )


@pytest.mark.parametrize("training", [False, True])
def test_a_returned_copy_of_what_was_written_is_a_tensor_of_its_own(
    unique: str, training: bool
) -> None:
    op = reverse_op(unique)

    def model(t: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        op(t[:3], t[3:])
        return t.clone(), t * 1, t.view(2, 3).t().clone(), t[:2] + 0, t, t[3:], w * 2

    t, w = torch.arange(6.0), torch.ones(1, requires_grad=training)
    results = torch.compile(model, fullgraph=True)(t, w)
    expected = torch.tensor([0.0, 1, 2, 2, 1, 0])
    for result, value in zip(
        results, (expected, expected, expected.view(2, 3).t(), expected[:2], expected, expected[3:])
    ):
        assert torch.equal(result, value)
    shared = [
        result.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for result in results
    ]
    assert shared == [False, False, False, False, True, True, False]


def test_a_written_cache_that_is_returned_is_not_copied(unique: str) -> None:
    op = reverse_op(unique)

    def model(cache: torch.Tensor) -> tuple[torch.Tensor, ...]:
        op(cache[:4] * 2, cache[4:8])
        return cache, cache[2:]

    cache = torch.arange(64.0)
    _, code = run_and_get_code(torch.compile(model, fullgraph=True), cache)
    assert (
        code[0]
        .partition("def call(")[2]
        .partition("benchmark_compiled_module")[0]
        .count("empty_strided_cpu(")
        == 1
    )


def test_in_the_body_of_a_while_loop(unique: str) -> None:
    op = reverse_op(unique)

    def model(t: torch.Tensor) -> torch.Tensor:
        def body(i: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            s = x + 1
            op(s.clone(), s)
            old = s.clone()
            op(s[:-1], s[1:])
            return i + 1, s + old

        from torch._higher_order_ops.while_loop import while_loop

        return while_loop(lambda i, x: i < 3, body, (torch.zeros((), dtype=torch.int64), t))[1]

    expected = torch.arange(6.0)
    for _ in range(3):
        s = expected + 1
        reverse_into(s.clone(), s)
        old = s.clone()
        reverse_into(s[:-1], s[1:])
        expected = s + old
    assert torch.equal(torch.compile(model, fullgraph=True)(torch.arange(6.0)), expected)


def test_a_row_of_dynamic_shape_is_written_where_it_is(unique: str) -> None:
    """Inductor takes the storage offset of such a view for 0."""
    op = reverse_op(unique)

    def model(write: Callable[..., Any], t: torch.Tensor) -> torch.Tensor:
        s = t + 1
        write(s[0], s[2])
        write(s[:, 1], s[:, -1])
        write(t[1], t[-1])
        return s

    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for n in (4, 5):
        t = torch.arange(float(n * n)).view(n, n)
        expected_t = t.clone()
        expected = model(reverse_into, expected_t)
        assert torch.equal(compiled(op, t), expected)
        assert torch.equal(t, expected_t)
