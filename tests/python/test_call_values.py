"""Numbers, strings and dtypes as arguments: eager, torch.ops and compiled code accept the same
values, those that PyTorch accepts for the same schema.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest
import torch

import opaq


class Three(enum.IntEnum):
    THREE = 3


class Text(str):
    pass


class Real(float):
    pass


VALUES: dict[str, list[Any]] = {
    "int": [
        3,
        True,
        np.int64(3),
        np.int32(3),
        np.uint8(3),
        np.bool_(True),
        Three.THREE,
        torch.tensor(3),
        torch.tensor([3]),
        2.0,
        np.float32(2),
        torch.tensor(2.0),
        None,
        "3",
        2**63,
        -(2**63),
        [3],
    ],
    "SymInt": [3, True, np.int64(3), Three.THREE, torch.tensor(3), 2.0, None, "3"],
    "float": [
        2.0,
        2,
        True,
        np.float64(2),
        np.float32(2),
        np.int64(2),
        np.float16(2),
        np.bool_(True),
        torch.tensor(2.0),
        torch.tensor(2),
        torch.tensor([2.0]),
        Real(2),
        Three.THREE,
        float("nan"),
        float("-inf"),
        None,
        "2",
        [2.0],
        2j,
    ],
    "bool": [
        True,
        False,
        1,
        0,
        2,
        np.bool_(True),
        np.bool_(False),
        1.5,
        torch.tensor(True),
        torch.tensor(0),
        None,
        "yes",
        [True],
    ],
    "str": ["a", Text("a"), np.str_("a"), b"a", 3, None],
    "ScalarType": [torch.float64, torch.int8, 6, "float64", None, np.float64],
    "int[]": [
        [1, 2],
        (1, 2),
        [],
        [True],
        [np.int64(2), 3],
        torch.Size([4, 5]),
        np.array([1, 2]),
        torch.tensor([1, 2]),
        3,
        [1.0],
        [None],
        "12",
        None,
        range(2),
    ],
    "int?": [3, None, np.int64(3), 2.0],
    "float?": [2.0, None, np.float32(2), "x"],
    "bool?": [True, None, 1, "x"],
    "str?": ["a", None, 3],
    "ScalarType?": [torch.float32, None, "x"],
    "int[]?": [[1], None, (2,), "x"],
}
LIBRARIES: list[
    torch.library.Library
] = []  # an op that is gone but still listed in torch.ops breaks the import of Inductor (2.11)
READ = {
    "int": "v",
    "SymInt": "v",
    "float": "v",
    "bool": "(1 if v else 0)",
    "str": "(1 if v == 'a' else 0)",
    "ScalarType": "(1 if v == float64 else 0)",
    "int[]": "len(v)",
}


@pytest.mark.parametrize("kind", VALUES)
def test_the_same_values_are_taken_everywhere(unique: str, kind: str) -> None:
    """A stock op of the same schema, defined in Python, tells what PyTorch takes, and what
    arrives."""
    library = torch.library.Library("opaq_stock", "FRAGMENT")
    LIBRARIES.append(library)
    stock_name = unique.split("::")[1]
    library.define(f"{stock_name}(Tensor x, {kind} v) -> Tensor")
    arrived: list[Any] = []
    library.impl(stock_name, lambda x, v: (arrived.append(v), x.clone())[1], "CPU")
    stock = getattr(torch.ops.opaq_stock, stock_name)

    base = kind.rstrip("?")
    read = READ[base] if base == kind else f"{READ[base]} if defined(v) else 77"
    op = opaq.op(
        f"{unique}(Tensor x, {kind} v) -> Tensor", outputs=opaq.tensor("1", dtype="float64")
    )
    op.cpu(source="void f(double* out, double v) { out[0] = v; }", entry="f", args=f"out, {read}")

    @op.reference
    def meaning(x: torch.Tensor, v: Any) -> torch.Tensor:
        raise AssertionError("the implementation fits every call")

    for value in VALUES[kind]:
        arrived.clear()
        try:
            stock(torch.ones(1), value)
        except Exception:
            for call in (op, op.overload):
                with pytest.raises(RuntimeError) as caught:
                    call(torch.ones(1), value)
                assert "v" in str(caught.value) and unique.split("::")[1] in str(caught.value), (
                    value
                )
            continue
        results = [call(torch.ones(1), value).tolist() for call in (op, op.overload)]
        assert repr(results[0]) == repr(results[1]), (value, results)
        got = arrived[0]
        if base in ("int", "SymInt", "float", "bool") and got is not None:
            assert repr(results[0]) == repr([float(got)]), (value, got, results)


def test_ints_and_bools_for_each_other_compiled(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, float f, int i, bool b) -> Tensor",
        outputs=opaq.tensor("3", dtype="float64"),
    )
    op.cpu(
        source="void f(double* out, double f, long i, bool b) { out[0] = f; out[1] = i; out[2] "
        "= b; }",
        entry="f",
        args="out, f, i, b",
    )
    compiled = torch.compile(lambda x, f, i, b: op(x, f, i, b))
    x = torch.ones(1)
    for f, i, b in ((2.0, 3, True), (2, True, 1), (True, 4, False)):
        want = op(x, f, i, b).tolist()
        assert want == op.overload(x, f, i, b).tolist() == compiled(x, f, i, b).tolist()
        torch.compiler.reset()


def test_warmup_and_explain_take_what_a_call_takes(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, float f, int i, bool b) -> Tensor",
        outputs=opaq.tensor("3", dtype="float64"),
    )
    op.cpu(
        source="void f(double* out, double f, long i, bool b) { out[0] = f; out[1] = i; out[2] "
        "= b; }",
        entry="f",
        args="out, f, i, b",
    )
    x = torch.ones(1)
    for args in (
        (x, np.float32(2), np.int64(3), 1),
        (x, torch.tensor(2.0), torch.tensor(3), np.bool_(True)),
    ):
        op.warmup(*args)
        assert op.explain(*args[:1], 2.0, 3, True) == "cpu: chosen"
        assert op(*args).tolist() == [2, 3, 1]
    for args, text in (
        ((x, "2", 3, True), r"argument `f` is a str; expected a float"),
        ((x, 2.0, 3.5, True), r"argument `i` is a float; expected an int"),
    ):
        for call in (op.warmup, op):
            with pytest.raises(opaq.LaunchError, match=text):
                call(*args)


def test_plain_subclasses_of_tensors_compile(unique: str) -> None:
    class MyParameter(torch.nn.Parameter):
        pass

    class Plain(torch.Tensor):
        pass

    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="void f(float* out, const float* x, long n) { for (long i = 0; i < n; ++i) "
        "out[i] = x[i] * 2; }",
        entry="f",
        args="out, x, x.numel()",
    )
    for value in (
        MyParameter(torch.ones(2), requires_grad=False),
        torch.ones(2).as_subclass(Plain),
        torch.nn.Buffer(torch.ones(2)),
    ):
        assert (
            op(value).tolist()
            == op.overload(value).tolist()
            == torch.compile(lambda x: op(x), fullgraph=True)(value).tolist()
            == [2, 2]
        )
        op.warmup(value)
        torch.compiler.reset()
