"""An op as a Python object: eager and compiled code can call it wherever it is stored; copying it
gives the op itself.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import warnings

import pytest
import torch

import opaq

PLUS = (
    "void plus(const float* x, double by, float* out, long n) { for (long i = 0; i < n; "
    "++i) out[i] = x[i] + by; }"
)


@pytest.fixture
def plus(unique: str) -> opaq.Op:
    op = opaq.op(f"{unique}(Tensor x, float by=1.0) -> Tensor", outputs=opaq.like("x"))
    return op.cpu(source=PLUS, entry="plus", args="x, by, out, x.numel()")


def test_an_op_is_found_wherever_a_model_keeps_it(plus: opaq.Op) -> None:
    class Model(torch.nn.Module):
        of_class = plus  # no method: it gets no `self`

        def __init__(self) -> None:
            super().__init__()
            self.own, self.listed, self.bound = plus, [plus], functools.partial(plus, by=100.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bound(self.listed[0](self.own(self.of_class(x), by=10.0)))

    x, model = torch.randn(4), Model()
    with warnings.catch_warnings():
        # Python 3.13 warns of partials that will become methods
        warnings.simplefilter("error", FutureWarning)
        assert Model.of_class is plus and model.of_class is plus
        torch.testing.assert_close(model(x), x + 112)
    for backend in ("inductor", "opaq"):
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend=backend)(x), x + 112
        )
    torch.testing.assert_close(torch.export.export(model, (x,), strict=False).module()(x), x + 112)


def test_an_op_outlives_a_graph_break(plus: opaq.Op) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        op = plus
        torch._dynamo.graph_break()
        return op(x)

    x = torch.randn(4)
    torch.testing.assert_close(torch.compile(function)(x), x + 1)


def test_another_op_under_the_same_name_compiles_anew(plus: opaq.Op, unique: str) -> None:
    minus = opaq.op(f"{unique}_minus(Tensor x, float by=1.0) -> Tensor", outputs=opaq.like("x"))
    minus.cpu(source=PLUS.replace("+ by", "- by"), entry="plus", args="x, by, out, x.numel()")
    scope = {"op": plus}
    exec("def function(x): return op(x)", scope)
    compiled, x = torch.compile(scope["function"], fullgraph=True), torch.randn(4)
    torch.testing.assert_close(compiled(x), x + 1)
    scope["op"] = minus
    torch.testing.assert_close(compiled(x), x - 1)


def test_copies_are_the_op_itself(plus: opaq.Op) -> None:
    assert copy.copy(plus) is plus and copy.deepcopy([plus])[0] is plus
    assert pickle.loads(pickle.dumps(plus)) is plus
    assert repr(plus) == f"<opaq.op {plus.info['schema']}>"


def test_an_op_has_the_signature_of_its_schema(unique: str, plus: opaq.Op) -> None:
    assert inspect.signature(plus).bind(1).arguments == {"x": 1}
    schema = (
        f"{unique}_kinds(Tensor self, int n, Tensor? z=None, *, str how='sum', int[] "
        "pads=[0, 0], ScalarType to=float64) -> Tensor"
    )
    shown = str(inspect.signature(opaq.op(schema, outputs=opaq.like("self")))).replace('"', "'")
    assert (
        shown == "(self: 'Tensor', n: 'int', z: 'Tensor?' = None, *, how: 'str' = 'sum', pads: "
        "'int[]' = [0, 0], to: 'ScalarType' = torch.float64)"
    )


def test_a_pickled_op_must_be_declared_where_it_is_read(plus: opaq.Op) -> None:
    absent = pickle.dumps(plus).replace(
        plus.name.encode(), plus.name.replace("opaq_test::op", "opaq_none::op").encode()
    )
    with pytest.raises(
        opaq.DeclarationError,
        match=r"opaq_none::op\d+ was pickled as an op, but is not declared in this process; import",
    ):
        pickle.loads(absent)
