"""Rows that Inductor makes longer than eager's. It does so on GPUs, and here on the CPU too."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import fake_cuda
import forms
import pytest
import substituting
import torch
from torch._inductor import config
from torch._inductor.utils import run_and_get_code

import opaq
from opaq import lowering
from opaq.lowering.substitute import apply

COLUMNS, PADDED = 1030, 1056  # rows of float32 begin at multiples of 128 bytes
SUMS = """
template <int TAG> void sums(const float* x, long s0, long s1, long n, long m, float* y) {
  for (long i = 0; i < n; ++i, y += 3) {
    y[0] = 0, y[1] = s0, y[2] = TAG;
    for (long j = 0; j < m; ++j) y[0] += x[i * s0 + j * s1];
  }
}"""
TWICE = """
void twice(const float* x, float* y, long sx, long sy, long n, long m) {
  for (long i = 0; i < n; ++i)
    for (long j = 0; j < m; ++j) y[i * sy + j] = 2 * x[i * sx + j];
}"""
SIZES = "x.size(0), x.size(1)"
FLEXIBLE = torch.Tag.flexible_layout

Op = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def _padding() -> Iterator[None]:
    with config.patch(disable_padding_cpu=False):
        yield


def sums_op(name: str, *tags: torch.Tag, strides: str = "") -> opaq.Op:
    """(sum, stride, tag of the implementation) of each row."""
    rule = opaq.tensor("x.size(0), 3", dtype="float32", strides=strides)
    op = opaq.op(f"{name}(Tensor x) -> Tensor y", outputs=rule, tags=tags)
    args = f"x, x.stride(0), x.stride(1), {SIZES}, y"
    return op.cpu(source=SUMS, entry="sums<0>", args=args)


def twice_op(name: str, *tags: torch.Tag, strides: str = "x.stride(0), 1") -> opaq.Op:
    """It may write its result over its argument."""
    rule = opaq.like("x", strides=strides, may_overwrite=True)
    op = opaq.op(f"{name}(Tensor x) -> Tensor y", outputs=rule, tags=tags)
    args = f"x, y, x.stride(0), y.stride(0), {SIZES}"
    return op.cpu(source=TWICE, entry="twice", args=args, requires="x.stride(1) == 1")


def read_by_a_product(x: torch.Tensor, w: torch.Tensor, op: Op) -> Any:
    rows = (x.flatten(0, 1) @ w).relu()
    return rows @ w.t(), op(rows)


def concatenated(x: torch.Tensor, w: torch.Tensor, op: Op) -> Any:
    return op(torch.cat([x @ w, x @ w]).flatten(0, 1))


def made_for_the_op(x: torch.Tensor, w: torch.Tensor, op: Op) -> Any:
    return op(x.flatten(0, 1) @ w) + 1


PROGRAMS = [read_by_a_product, concatenated, made_for_the_op]
DECIDED_BEFORE = PROGRAMS[:-1]


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 8), torch.randn(8, COLUMNS)


def of_op(results: Any) -> torch.Tensor:
    return results[1] if isinstance(results, tuple) else results


def compiled_code(program: Any, op: Op, *args: torch.Tensor, **options: Any) -> tuple[Any, str]:
    """(what the op's result has become, the generated code)"""
    compiled = torch.compile(lambda x, w: program(x, w, op), fullgraph=True, options=options)
    results, (code,) = run_and_get_code(compiled, *args)
    return of_op(results), code


def copies(program: Any, code: str) -> int:
    """Buffers of what the op takes without gaps between its rows."""
    rows = 12 if program is concatenated else 6
    return code.count(f"empty_strided_cpu(({rows}, {COLUMNS}), ({COLUMNS}, 1)")


def in_plain_torch(x: torch.Tensor) -> torch.Tensor:
    return x.sum(1)


@pytest.mark.parametrize("cpp", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_an_argument_is_taken_as_it_is(unique: str, program: Any, cpp: bool) -> None:
    op, args = sums_op(unique, FLEXIBLE), inputs()
    found, code = compiled_code(program, op, *args, cpp_wrapper=cpp)
    added = 1 if program is made_for_the_op else 0
    assert found[:, 1].unique().tolist() == [PADDED + added]
    expected = of_op(program(*args, in_plain_torch))
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-3)
    if not cpp:
        assert copies(program, code) == 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_the_tag_it_has_eagers_strides(unique: str, program: Any) -> None:
    for tags in ((), (FLEXIBLE, torch.Tag.needs_exact_strides)):
        op, args = sums_op(f"{unique}_{len(tags)}", *tags), inputs()
        found, _ = compiled_code(program, op, *args)
        assert torch.equal(found[:, 1], of_op(program(*args, op))[:, 1])


@pytest.mark.parametrize("program", DECIDED_BEFORE)
def test_the_order_of_strides_may_be_what_an_op_needs(unique: str, program: Any) -> None:
    op = sums_op(unique, torch.Tag.needs_fixed_stride_order)
    found, _ = compiled_code(program, op, *inputs())
    assert found[:, 1].unique().tolist() == [PADDED]


def test_one_graph_serves_every_batch(unique: str) -> None:
    op, (x, w) = sums_op(unique, FLEXIBLE), inputs()
    compiled = torch.compile(lambda x, w: op((x @ w).flatten(0, 1)) + 1, fullgraph=True)
    torch._dynamo.mark_dynamic(x, 0)
    with config.patch(pad_dynamic_shapes=True):
        for batch in (x, inputs(4)[0], inputs(5)[0]):
            with torch.compiler.set_stance("default" if batch is x else "fail_on_recompile"):
                found = compiled(batch, w) - 1
            expected = (batch @ w).flatten(0, 1).sum(1)
            torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.life
def test_a_package_reads_the_strides_of_its_buffers(unique: str, tmp_path: pathlib.Path) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.randn(8, COLUMNS), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return made_for_the_op(x, self.w, op)

    op, model, (x, _) = sums_op(unique, FLEXIBLE), Model(), inputs()
    found = forms.run_package(model, x, tmp_path)
    assert found[:, 1].unique().tolist() == [PADDED + 1]
    expected = made_for_the_op(x, model.w, in_plain_torch)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("cpp", [False, True])
def test_on_a_gpu(unique: str, cpp: bool) -> None:
    op = twice_op(unique, FLEXIBLE).cuda(
        source="__global__ void f(const float* x, float* y, long sx, long sy) {}",
        entry="f",
        args="x, y, x.stride(0), y.stride(0)",
        grid=1,
        block=1,
    )
    with lowering.options.use(archs=("sm_90a",)):
        code = fake_cuda.wrapper_source(
            lambda x, w: op(x @ w) @ w.t(), (6, 8), (8, COLUMNS), cpp=cpp, mixed=True
        )
    if cpp:
        code = fake_cuda.cpp_part(code)
    assert str(PADDED) in code and "y is written over x" in code


def test_a_kernel_that_reads_no_strides_gets_rows_without_gaps(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> Tensor y",
        outputs=opaq.tensor("x.size(0), 3", dtype="float32"),
        tags=FLEXIBLE,
    )
    args = f"x, x.size(1), 1, {SIZES}, y"
    op.cpu(source=SUMS, entry="sums<0>", args=args)
    for program in PROGRAMS:
        args = inputs()
        found, _ = compiled_code(program, op, *args)
        wanted = of_op(program(*args, op))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_requirements_see_the_strides_that_the_kernel_gets(unique: str) -> None:
    op = sums_op(unique, FLEXIBLE).cpu(
        source=SUMS,
        entry="sums<1>",
        args=f"x, x.stride(0), x.stride(1), {SIZES}, y",
        requires=["x.stride(0) % 32 == 0", "aligned(x, 16)"],
        name="cpu:aligned",
        priority=1,
    )
    args = inputs()
    assert read_by_a_product(*args, op)[1][0, 2] == 0
    assert compiled_code(read_by_a_product, op, *args)[0][0, 2] == 1


def test_results_have_eagers_strides(unique: str) -> None:
    """Here they follow from the argument's, which then are eager's, too."""
    op = sums_op(unique, FLEXIBLE, strides="x.stride(0), 1")
    op.cpu(
        source="void f(const float* x, long s, float* y, long t, long n) {"
        "  for (long i = 0; i < n; ++i) y[i * t] = y[i * t + 1] = s, y[i * t + 2] = x[i * s]; }",
        entry="f",
        args="x, x.stride(0), y, y.stride(0), x.size(0)",
        name="cpu:strided",
        priority=1,
    )
    found, _ = compiled_code(read_by_a_product, op, *inputs())
    assert found.stride() == (COLUMNS, 1)
    assert found[:, :2].unique().tolist() == [COLUMNS]


def test_an_op_that_writes(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) x, Tensor y) -> ()", tags=FLEXIBLE)
    op.cpu(
        source="void f(float* x, long s, const float* y, long t, long n) {"
        "  for (long i = 0; i < n; ++i) x[i * s] += s, x[i * s + 1] = t + y[i * t]; }",
        entry="f",
        args="x, x.stride(0), y, y.stride(0), x.size(0)",
    )

    def program(x: torch.Tensor, w: torch.Tensor) -> Any:
        y = (x.flatten(0, 1) @ w).relu()
        written = (y * 2).sin()
        z, product = written @ w.t(), y @ w.t()
        op(written, y)
        return z, product, written

    args = inputs()
    found = torch.compile(program, fullgraph=True)(*args)[-1]
    rows = (args[0].flatten(0, 1) @ args[1]).relu()
    expected = (rows * 2).sin()
    expected[:, 0] += COLUMNS
    expected[:, 1] = PADDED + rows[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("cpp", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_result_whose_strides_follow_the_arguments_is_padded_alike(
    unique: str, program: Any, cpp: bool
) -> None:
    """So that a product after it has aligned rows."""
    op, args = twice_op(unique, FLEXIBLE), inputs()

    def in_products(rows: torch.Tensor) -> torch.Tensor:
        return op(rows) @ args[1].t()

    found, code = compiled_code(program, in_products, *args, cpp_wrapper=cpp)
    expected = of_op(program(*args, lambda rows: (2 * rows) @ args[1].t()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    if not cpp:
        assert copies(program, code) == 0
        # Inductor never gives away the memory of `cat`
        assert ("y is written over x" in code) == (program is not concatenated)


def test_a_padded_result_to_which_the_op_adds(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, Tensor? added=None) -> Tensor y",
        outputs=opaq.like("x", strides="x.stride(0), 1", may_overwrite=True),
        accumulates="added",
        tags=FLEXIBLE,
    )
    op.cpu(
        source="""
void twice(const float* x, const float* added, float* y, long sx, long sy, long n, long m) {
  for (long i = 0; i < n; ++i)
    for (long j = 0; j < m; ++j)
      y[i * sy + j] = 2 * x[i * sx + j] + (added ? 1000 + added[i * m + j] : 0);
}""",
        entry="twice",
        args=f"x, added, y, x.stride(0), y.stride(0), {SIZES}",
        requires="x.stride(1) == 1",
    )

    def program(x: torch.Tensor, w: torch.Tensor, op: Op, rows: slice) -> torch.Tensor:
        product = x.flatten(0, 1) @ w
        return (product[:, rows].sin() + op(product[:, rows])) @ w[:, rows].t()

    x, w = inputs()
    for rows in (slice(None), slice(1, 1025)):
        compiled = torch.compile(lambda x, w: program(x, w, op, rows), fullgraph=True)  # noqa: B023
        (found, (code,)) = run_and_get_code(compiled, x, w)
        expected = program(x, w, lambda each: 2 * each + 1000, rows)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-1)
        assert rows != slice(None) or f"(6, {COLUMNS}), ({PADDED}, 1)" in code


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_result_that_has_its_own_strides_keeps_them(unique: str, program: Any) -> None:
    op, args = twice_op(unique, FLEXIBLE, strides=""), inputs()
    found, code = compiled_code(program, lambda rows: op(rows) @ args[1].t(), *args)
    expected = of_op(program(*args, lambda rows: (2 * rows) @ args[1].t()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    # an argument is not padded for the op where its memory can be that of the result
    assert ("y is written over x" in code) == (program is made_for_the_op)
    assert copies(program, code) == 1


@pytest.mark.parametrize("checked", ["", "contract"])
def test_a_result_of_the_graph_has_eagers_strides(unique: str, checked: str) -> None:
    op, args = twice_op(unique, FLEXIBLE), inputs()
    for program in PROGRAMS:
        with lowering.options.use(check=checked):
            found, _ = compiled_code(program, op, *args)
        assert found.stride() == (COLUMNS, 1)
        expected = of_op(program(*args, lambda rows: 2 * rows))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_the_contract_check_of_padded_tensors(unique: str) -> None:
    op, args = twice_op(unique, FLEXIBLE), inputs()
    with lowering.options.use(check="contract"):
        found, _ = compiled_code(made_for_the_op, lambda x: op(x) @ args[1].t(), *args)
    expected = made_for_the_op(*args, lambda x: (2 * x) @ args[1].t())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)


class Head(torch.nn.Module):
    def __init__(
        self, classes: int = COLUMNS, bias: bool = True, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.head = torch.nn.Linear(8, classes, bias=bias, dtype=dtype)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = self.head(x).float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, target.flatten())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_the_loss_of_padded_logits(bias: bool, train: bool) -> None:
    model, (x, _) = Head(bias=bias).requires_grad_(train), inputs()
    target = torch.randint(COLUMNS, (2, 3))
    options = {"substitute": ["cross_entropy"]}
    compiled = torch.compile(model, backend="opaq", options=options)

    def step() -> torch.Tensor:
        loss = compiled(x, target)
        if train:
            loss.backward()
        return loss

    loss, codes = run_and_get_code(step)
    torch.testing.assert_close(loss, model(x, target))
    assert len(codes) == 1 + train
    for code in codes:
        assert f"((6, {COLUMNS}), ({PADDED}, 1)" in code  # the product's result, and its gradient
        assert f"((6, {COLUMNS}), ({COLUMNS}, 1)" not in code  # a copy of it
    if train:
        found = [each.grad for each in model.parameters()]
        expected = torch.autograd.grad(model(x, target), list(model.parameters()))
        torch.testing.assert_close(found, list(expected))


NEEDS_A_COPY = "Inductor pads the rows of `{}` ({}), and the op would need a copy"


def explained_on_cuda(model: torch.nn.Module, *args: torch.Tensor) -> opaq.lowering.Substitution:
    args = tuple(each.to("meta") for each in args)
    with torch.device("cuda"):  # for which tensors on "meta" stand
        (place,) = opaq.explain(model.to("meta"), *args).substitutions
    return place


def test_a_loss_is_found_where_logits_are_padded() -> None:
    x = torch.empty(2, 2048, 8, dtype=torch.bfloat16)
    target = torch.empty(2, 2048, dtype=torch.int64)
    assert explained_on_cuda(Head(50258, dtype=x.dtype), x, target).applied


def test_results_like_padded_rows_are_left_to_inductor() -> None:
    wide = torch.nn.Linear(8, 4100, dtype=torch.bfloat16)
    model = torch.nn.Sequential(wide, torch.nn.Softmax(-1))
    place = explained_on_cuda(model, torch.empty(4096, 8, dtype=torch.bfloat16))
    assert place.reason == NEEDS_A_COPY.format("x", "input_1")


@pytest.mark.parametrize("train", [False, True])
def test_losses_of_padded_logits_are_replaced(train: bool) -> None:
    """With their gradients, too: these have padded rows, as the products that read them need."""
    x, target = torch.randn(2, 3, 8, dtype=torch.bfloat16), torch.randint(COLUMNS, (2, 3))
    for bias, classes in [(True, COLUMNS), (False, COLUMNS), (True, COLUMNS + 2)]:
        model = Head(classes, bias, x.dtype).requires_grad_(train)
        with apply.collected() as found, mock.patch.object(apply, "_gain", lambda *_: 2.0):
            torch.compile(model, backend=substituting.backend("all"))(x, target)
        assert found[-1].reason == "measured: 2.00 times as fast"
