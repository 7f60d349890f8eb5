"""In compiled graphs, implementations get the sizes and strides that they get in eager, and the
same ones are chosen.
"""

from __future__ import annotations

import pytest
import torch

import opaq
from opaq import lowering

# Writes the strides of its argument, and which implementation this is, into its result.
STRIDES = """
template <int TAG> void strides_of(const float* x, long s0, long s1, long* out) { out[0] = s0;
    out[1] = s1; out[2] = TAG; }
"""
TAGGED = {
    "source": STRIDES,
    "entry": "strides_of<1>",
    "args": "x, x.stride(0), x.stride(1), out",
    "priority": 1,
}
COPY = (
    "void copy(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) out[i] = x[i]; }"
)


def strides_op(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.tensor("3", dtype="int64"))
    return op.cpu(source=STRIDES, entry="strides_of<0>", args="x, x.stride(0), x.stride(1), out")


def copy_op(name: str) -> opaq.Op:
    return opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x")).cpu(
        source=COPY, entry="copy", args="x, out, x.numel()"
    )


def decided(op: opaq.Op) -> list[tuple[str, str]]:
    return [
        (record.implementation, record.reason)
        for record in lowering.nodes()
        if record.op == op.name
    ]


VIEWS = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.t(),
    "every second column": lambda x: x[:, ::2],
    "computed": lambda x: x + 1,
    "computed, transposed": lambda x: (x + 1).t(),
    "computed, permuted before": lambda x: (x.t() * 2).sin(),
    "expanded": lambda x: x[:1].expand(4, 6),
    "one row": lambda x: x[:, :1],
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_strides_that_are_read_are_those_of_eager(unique: str, view: str, dynamic: bool) -> None:
    op = strides_op(unique)

    def model(x: torch.Tensor) -> torch.Tensor:
        return op(VIEWS[view](x))

    x = torch.randn(4, 6)
    assert torch.compile(model, fullgraph=True, dynamic=dynamic)(x).tolist() == model(x).tolist()


@pytest.mark.parametrize("view", VIEWS)
def test_strides_that_are_not_read_are_row_major(unique: str, view: str) -> None:
    op = copy_op(unique)
    x = torch.randn(4, 6)
    torch.testing.assert_close(
        torch.compile(lambda x: op(VIEWS[view](x)), fullgraph=True)(x), VIEWS[view](x).contiguous()
    )
    copied = not VIEWS[view](x).is_contiguous()
    assert decided(op) == [("cpu", "made contiguous: x" if copied else "")]


def test_requirements_choose_as_in_eager(unique: str) -> None:
    op = strides_op(unique).cpu(**TAGGED, name="cpu:rows", requires="x.stride(1) == 1")

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([op(x + 1), op((x + 1).t()), op(x.t())])

    x = torch.randn(4, 6)
    assert torch.compile(model, fullgraph=True)(x).tolist() == model(x).tolist()
    refused = "cpu:rows: x.stride(1) == 1 does not hold"
    assert decided(op) == [("cpu:rows", ""), ("cpu", refused), ("cpu", refused)]


def test_what_shapes_leave_open_is_decided_at_each_launch(unique: str) -> None:
    op = strides_op(unique).cpu(**TAGGED, name="cpu:even", requires="x.size(0) % 2 == 0")
    compiled = torch.compile(lambda x: op(x), fullgraph=True, dynamic=True)
    with torch.compiler.set_stance("default"):
        assert compiled(torch.randn(4, 6))[2] == 1
        with torch.compiler.set_stance("fail_on_recompile"):
            assert compiled(torch.randn(5, 6))[2] == 0
            assert compiled(torch.randn(8, 6))[2] == 1
    assert decided(op) == [("cpu:even", "checked at each launch: x.size(0) % 2 == 0")]


def test_a_higher_priority_that_needs_a_copy_comes_after_one_that_does_not(unique: str) -> None:
    op = strides_op(unique).cpu(
        source="void rows(const float* x, long* out) { out[0] = out[1] = -1; out[2] = 1; }",
        entry="rows",
        args="x, out",
        name="cpu:rows",
        priority=1,
    )

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([op(x), op(x.t())])

    x = torch.randn(4, 6)
    assert torch.compile(model, fullgraph=True)(x).tolist() == model(x).tolist()
    assert [name for name, _ in decided(op)] == ["cpu:rows", "cpu"]


def test_the_reference_runs_where_nothing_fits(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=COPY, entry="copy", args="x, out, x.numel()", requires="x.dtype == float32")
    op.reference(lambda x: x.clone())
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(lambda x: op(x), fullgraph=True)(x), x)
    assert decided(op) == [("reference", "cpu: x.dtype == float32 does not hold")]


def test_strict_refuses_what_is_not_the_first_choice(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=COPY, entry="copy", args="x, out, x.numel()", requires="x.dtype == float32")
    op.reference(lambda x: x.clone())
    with lowering.options.use(strict=True), pytest.raises(Exception) as error:
        torch.compile(lambda x: op(x), fullgraph=True)(torch.randn(2, 3, dtype=torch.float64))
    text = str(error.value)
    assert (
        f"{unique} (node " in text
        and ", cpu): strict: its first implementation does not fit, reference would run" in text
    )
    assert "cpu: x.dtype == float32 does not hold" in text
    assert "x float64[2, 3] strides [3, 1]" in text


def test_without_a_reference_the_error_names_everything(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=COPY, entry="copy", args="x, out, x.numel()", requires="x.size(-1) % 4 == 0")
    op.cuda(source="__global__ void k(const float* x, float* out) {}", entry="k", args="x, out")
    with pytest.raises(opaq.LaunchError) as eager:
        op(torch.randn(2, 3))
    with pytest.raises(opaq.LaunchError) as error:
        torch.compile(lambda x: op(x), fullgraph=True)(torch.randn(2, 3))
    text = str(error.value)
    assert text == str(eager.value)
    assert f"{unique}: no implementation fits this call, and there is no reference:" in text
    assert "cpu: x.size(-1) % 4 == 0 does not hold" in text
    assert "cuda: runs on cuda, the arguments are on cpu" in text
    assert "relax a requirement, add an implementation, or declare a reference" in text


def test_options_refuse_unknown_names_and_types() -> None:
    with (
        pytest.raises(
            TypeError, match="lowering option `strct` does not exist; did you mean `strict`"
        ),
        lowering.options.use(strct=True),
    ):
        pass
    with (
        pytest.raises(TypeError, match="lowering option `strict` is a bool; got 1"),
        lowering.options.use(strict=1),
    ):
        pass
    assert not lowering.options.current().strict


def test_several_results_of_which_one_is_used(unique: str) -> None:
    rules = {"same": opaq.like("x"), "rows": opaq.tensor("x.size(0)", dtype="x.dtype")}
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor same, Tensor rows)", outputs=rules)
    op.cpu(
        source="""void both(const float* x, float* same, float* rows, long n, long m) {
          for (long i = 0; i < n; ++i) { rows[i] = 0; for (long j = 0; j < m;
              ++j) rows[i] += same[i * m + j] = x[i * m + j]; } }""",
        entry="both",
        args="x, same, rows, x.size(0), x.size(1)",
    )
    x = torch.randn(4, 6)
    compiled = torch.compile(lambda x: op(x + 1)[1] * 2, fullgraph=True)
    torch.testing.assert_close(compiled(x), (x + 1).sum(1) * 2)


def test_a_stride_of_a_dimension_of_size_1_is_eagers(unique: str) -> None:
    """Such a tensor is row-major whatever that stride is, and is passed as it is; requirements on
    it are evaluated at the launch.
    """
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    source = (
        "void f(const float* x, float* o, long n, long k) { for (long i = 0; i < n; ++i) "
        "o[i] = x[i] + k; }"
    )
    op.cpu(
        source=source,
        entry="f",
        args="x, out, x.numel(), 1 + 0 * x.stride(0)",
        requires=["x.stride(-1) == 1"],
        name="unit",
        priority=3,
    )
    op.cpu(
        source=source,
        entry="f",
        args="x, out, x.numel(), 2 + 0 * x.stride(0)",
        requires=["x.numel() >= 8"],
        name="large",
        priority=2,
    )
    op.cpu(source=source, entry="f", args="x, out, x.numel(), 3", name="row-major", priority=1)
    compiled = torch.compile(op, fullgraph=True, dynamic=True)
    for size in (4, 5, 9):
        x = torch.arange(float(size)).view(1, size).t()
        assert torch.equal(compiled(x), op(x))
