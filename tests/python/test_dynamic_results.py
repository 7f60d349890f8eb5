"""Results whose sizes only a launch knows: read after it, or returned as a tensor beside results of
the largest size. The reference is PyTorch's indexing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from forms import OPTIONS, run_package

import opaq

ROWS = """
#include <cstdint>
void rows(const float* x, int64_t n, int64_t d, float* values, int64_t* index, int64_t* count) {
  int64_t k = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (x[i * d] < 0) continue;
    for (int64_t j = 0; j < d; ++j) values[k * d + j] = x[i * d + j];
    index[k++] = i;
  }
  *count = k;
}
"""
COLUMNS = """
#include <cstdint>
void columns(const float* x, int64_t n, int64_t d, float* y, int64_t* count) {
  int64_t k = 0;
  for (int64_t j = 0; j < d; ++j) {
    if (x[j] < 0) continue;
    for (int64_t i = 0; i < n; ++i) y[i * d + k] = x[i * d + j];
    ++k;
  }
  *count = k;
}
"""


@pytest.fixture(autouse=True)
def _sizes_in_graphs() -> Iterator[None]:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


def kept_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.nonzero(x[:, 0] >= 0)[:, 0]
    return x[index], index


def rows_op(name: str) -> opaq.Op:
    """Rows that begin with no negative number, and their indices."""
    op = opaq.op(
        f"{name}(Tensor x) -> (Tensor values, Tensor index)",
        outputs={
            "values": opaq.tensor("n, x.size(1)", dtype="x.dtype", counts={"n": "x.size(0)"}),
            "index": opaq.tensor("n", dtype="int64"),
        },
    )
    op.cpu(
        source=ROWS,
        entry="rows",
        args="x, x.size(0), x.size(1), values, index, n",
        requires=["x.is_contiguous()", "x.dtype == float32"],
    )
    op.reference(kept_rows)
    return op


@pytest.fixture
def rows(unique: str) -> opaq.Op:
    return rows_op(unique)


def test_a_result_has_the_size_that_the_launch_wrote(rows: opaq.Op) -> None:
    for n in (7, 1, 0):
        x = torch.randn(n, 3)
        torch.testing.assert_close(rows(x), kept_rows(x), rtol=0, atol=0)
        assert rows(x)[0].is_contiguous()
    doubled = torch.randn(4, 3, dtype=torch.float64)  # which the reference serves
    torch.testing.assert_close(rows(doubled), kept_rows(doubled), rtol=0, atol=0)
    opaq.opcheck(rows, torch.randn(5, 2))


@pytest.mark.parametrize("way", OPTIONS)
def test_compiled(rows: opaq.Op, way: str) -> None:
    """One graph for all sizes, in which the result is the argument of the same op."""

    def model(rows: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, index = rows(x * 2)
        return rows(values - 0.5)[0].sin() + 1, index * 2

    compiled = torch.compile(lambda x: model(rows, x), fullgraph=True, dynamic=True, **OPTIONS[way])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (7, 4, 11):
            x = torch.randn(n, 3)
            torch.testing.assert_close(compiled(x), model(kept_rows, x))


def test_without_a_whole_graph_the_op_runs_between_two(rows: opaq.Op) -> None:
    x = torch.randn(6, 2)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=False):
        compiled = torch.compile(lambda x: rows(x * 2)[0] + 1)
        torch.testing.assert_close(compiled(x), kept_rows(x * 2)[0] + 1)


@pytest.mark.life
def test_package(unique: str, tmp_path: Any) -> None:
    rows = rows_op(unique)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            values, index = rows(x + 1)
            return values * 2, index

    x = torch.randn(6, 3)
    values, index = kept_rows(x + 1)
    torch.testing.assert_close(list(run_package(Model(), x, tmp_path)), [values * 2, index])


def test_gradient(rows: opaq.Op) -> None:
    def save(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output[1])
        ctx.shape = inputs[0].shape

    def spread(ctx: Any, values: torch.Tensor, _: Any) -> torch.Tensor:
        return values.new_zeros(ctx.shape).index_add(0, ctx.saved_tensors[0], values)

    rows.backward(spread, setup_context=save)
    x = torch.randn(6, 3)

    def gradient(function: Any) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        function(leaf)[0].square().sum().backward()
        return leaf.grad

    expected = gradient(kept_rows)
    for function in (rows, torch.compile(lambda x: rows(x), fullgraph=True)):
        torch.testing.assert_close(gradient(function), expected)


def test_another_dimension_than_the_first(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> Tensor",
        outputs=opaq.like("x", shape="x.shape[:-1], k", counts={"k": "x.size(-1)"}),
    )
    op.cpu(source=COLUMNS, entry="columns", args="x, x.size(0), x.size(1), out, k")
    x = torch.randn(4, 9)
    expected = x[:, x[0] >= 0]
    assert op(x).stride() == (9, 1)  # a view of the memory for the bound
    torch.testing.assert_close(op(x), expected)
    for options in ({}, {"backend": "opaq", "options": {"check": "contract"}}):
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(op, fullgraph=True, **options)(x), expected)


def test_a_count_that_is_returned_is_not_read(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> (Tensor values, Tensor n)",
        outputs=opaq.tensor("n", dtype="x.dtype", counts={"n": "x.numel()"}),
    )

    def fill(x: torch.Tensor, values: torch.Tensor, n: torch.Tensor) -> None:
        kept = x[x > 0]
        values[: kept.numel()] = kept
        n.fill_(kept.numel())

    op.python(fill, device="cpu")
    x = torch.tensor([1.0, -1, 2])

    def masked(x: torch.Tensor) -> torch.Tensor:
        values, n = op(x)
        return torch.where(torch.arange(values.numel()) < n, values, 0)

    values, n = op(x)
    assert values.shape == x.shape and n.shape == () and n.dtype == torch.int64
    assert torch.Tag.cudagraph_unsafe not in op.tags
    for options in ({}, {"backend": "opaq", "options": {"check": "contract"}}):
        torch.compiler.reset()
        compiled = torch.compile(masked, fullgraph=True, **options)
        assert compiled(x).tolist() == masked(x).tolist() == [1, 2, 0]


def test_lists(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor[] xs) -> Tensor",
        outputs=opaq.tensor("n", dtype="float32", counts={"n": "sum(x.numel() for x in xs)"}),
    )

    @op.reference
    def positive(xs: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([x[x > 0] for x in xs])

    x = torch.randn(5)
    expected = torch.cat([x[x > 0], x[x > 0]])
    assert torch.equal(op([x, x]), expected)
    assert torch.equal(torch.compile(lambda x: op([x, x]), fullgraph=True)(x), expected)


def test_a_count_out_of_bounds_is_an_error(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> Tensor",
        outputs=opaq.tensor("c", dtype="x.dtype", counts={"c": "x.numel()"}),
    )
    source = "#include <cstdint>\nvoid bad(int64_t n, float*, int64_t* c) { *c = n + 1; }"
    op.cpu(source=source, entry="bad", args="x.numel(), out, c")
    with pytest.raises(opaq.LaunchError) as error:
        op(torch.ones(3))
    assert str(error.value) == (
        f"{unique}: the implementation wrote 4 to count `c`; expected 0 to 3, its bound "
        "`x.numel()`: correct the kernel, or the bound, as it may have written past the result"
    )
    with pytest.raises(RuntimeError, match=rf"expected 0 to 3 in count `c` of {unique}, which"):
        torch.compile(op, fullgraph=True)(torch.ones(3))


def test_what_cannot_be_is_refused(unique: str) -> None:
    def declared(shape: str, counts: Any, **more: Any) -> str:
        with pytest.raises(opaq.DeclarationError) as error:
            opaq.op(
                f"{unique}(Tensor x) -> Tensor",
                outputs=opaq.tensor(shape, dtype="x.dtype", counts=counts),
                **more,
            )
        return str(error.value)

    assert "computes with the count 'n'; a count is a size by itself" in declared(
        "2 * n", {"n": "x.numel()"}
    )
    assert "count 'x' has the name of an argument" in declared("x", {"x": "4"})
    assert "bound of" in declared("n", {"n": "m"}) and "'m'" in declared("n", {"n": "m"})
    assert "between two lists of sizes" in declared("x.shape, n, x.shape", {"n": "4"})
    assert "got 4 (int); expected a dict of bounds by name" in declared("n", 4)
    for more in ({"tags": torch.Tag.pointwise}, {"sharding": "rows"}):
        assert "is not for an op with the count `n`" in declared("n", {"n": "4"}, **more)


def test_what_a_call_cannot_do_is_refused(unique: str) -> None:
    rows = rows_op(unique)
    with pytest.raises(opaq.LaunchError, match="under torch.vmap: each sample has results of othe"):
        torch.vmap(rows)(torch.randn(2, 4, 3))
    with pytest.raises(opaq.LaunchError, match="tensors on meta run nothing; call it on tensors"):
        rows(torch.empty(4, 3, device="meta"))
