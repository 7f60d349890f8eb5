"""Properties over generated inputs: expressions against Python, schemas against PyTorch's parser,
strided tensors against PyTorch.
"""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import opaq

_names = (f"opaq_property::op{i}" for i in itertools.count())

# ---- expressions ---------------------------------------------------------------------------------

LEAVES = st.sampled_from(
    ["x.size(0)", "x.size(-1)", "x.numel()", "x.dim()", "n", "len(x.shape)"]
) | st.integers(0, 50).map(str)


def _combine(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, inner)
    return st.one_of(
        pair.map(lambda p: f"({p[0]} + {p[1]})"),
        pair.map(lambda p: f"({p[0]} - {p[1]})"),
        pair.map(lambda p: f"({p[0]} * {p[1]})"),
        pair.map(lambda p: f"({p[0]} // ({p[1]} * {p[1]} + 1))"),
        pair.map(lambda p: f"({p[0]} % ({p[1]} * {p[1]} + 1))"),
        pair.map(lambda p: f"min({p[0]}, {p[1]})"),
        pair.map(lambda p: f"max({p[0]}, {p[1]})"),
        pair.map(lambda p: f"({p[0]} if {p[0]} < {p[1]} else {p[1]})"),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(LEAVES, _combine, max_leaves=8),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(-5, 5),
)
def test_an_output_size_is_what_python_computes(
    expression: str, rows: int, columns: int, n: int
) -> None:
    x = torch.empty(rows, columns)
    expected = abs(eval(expression, {"x": x, "n": n})) % 64
    op = opaq.op(
        f"{next(_names)}(Tensor x, int n) -> Tensor",
        outputs=opaq.tensor(f"abs({expression}) % 64", dtype="float32"),
    )
    op.reference(lambda x, n: torch.zeros(expected))
    # evaluated in C++, and checked against the Python text of the same expression
    assert op(x, n).shape == (expected,)
    assert op.overload(x.to("meta"), n).shape == (expected,)


# ---- schemas -------------------------------------------------------------------------------------

TYPES = st.sampled_from(
    [
        "Tensor",
        "Tensor?",
        "int",
        "SymInt",
        "float",
        "bool",
        "str",
        "int?",
        "float?",
        "int[]",
        "SymInt[]",
        "int[2]",
        "ScalarType",
        "Device",
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TYPES, max_size=5), st.integers(1, 3), st.integers(1, 3))
def test_a_canonical_schema_is_what_pytorch_reads(
    types: list[str], results: int, spaces: int
) -> None:
    name = next(_names)
    arguments = ("," + " " * spaces).join(
        ["Tensor x", *(f"{kind} a{i}" for i, kind in enumerate(types))]
    )
    returns = ", ".join(f"Tensor r{i}" for i in range(results))
    op = opaq.op(
        f"{name}({arguments}) -> ({returns})",
        outputs={f"r{i}": opaq.like("x") for i in range(results)},
    )
    assert str(op.overload._schema) == str(
        torch._C.parse_schema(f"{name}({arguments}) -> ({returns})")
    )
    assert str(torch._C.parse_schema(op.info["schema"])) == str(op.overload._schema)


# ---- strides -------------------------------------------------------------------------------------

row_major = opaq.op(f"{next(_names)}(Tensor x) -> Tensor", outputs=opaq.like("x"))
row_major.cpu(
    source="void copy(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) "
    "out[i] = x[i]; }",
    entry="copy",
    args="x, out, x.numel()",
)
strided = opaq.op(f"{next(_names)}(Tensor x) -> Tensor", outputs=opaq.like("x"))
strided.cpu(
    source="""void copy(const float* x, long s0, long s1, float* out, long rows, long columns) {
      for (long i = 0; i < rows; ++i) for (long k = 0; k < columns;
          ++k) out[i * columns + k] = x[i * s0 + k * s1];
    }""",
    entry="copy",
    args="x, x.stride(0), x.stride(1), out, x.size(0), x.size(1)",
)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 5), st.integers(0, 5), st.integers(0, 7), st.integers(0, 7), st.integers(0, 9)
)
def test_any_strides_give_the_same_values(
    rows: int, columns: int, stride0: int, stride1: int, offset: int
) -> None:
    x = torch.arange(200.0).as_strided((rows, columns), (stride0, stride1), offset)
    for op in (row_major, strided):
        torch.testing.assert_close(op(x), x.clone())
        torch.testing.assert_close(op.overload(x), x.clone())
