"""What is likely a mistake in an argument list, though it would run: each has a rule, and is an
error or a warning that says what to write.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from test_arguments import declare, in_form

import opaq

SCALE = (
    "void f(const float* x, float* y, TYPE by) { for (int i = 0; i < 4; ++i) y[i] = x[i] * by; }"
)
X = torch.ones(4)


def scaled(args: str, type_of_by: str, *call: Any, form: str = "eager") -> torch.Tensor:
    op = declare("(Tensor x, SymInt n) -> (Tensor y)")
    op.cpu(source=SCALE.replace("TYPE", type_of_by), entry="f", args=args)
    try:
        return in_form(form, op, None)(X, *call)
    except RuntimeError as error:
        raise RuntimeError(str(error).replace(op.name, "OP")) from None


# ---- an int for a floating-point parameter -------------------------------------------------------


def test_an_int_becomes_a_float_where_that_is_exact() -> None:
    for n in (0, 3, -7, 1 << 24, (1 << 24) + 2, 3 << 40, -(1 << 63)):
        assert scaled("x, y, n", "float", n)[0] == n
    assert scaled("x, y, n", "double", (1 << 53) + 2)[0] == float((1 << 53) + 2)


@pytest.mark.parametrize("form", ["eager", "Python wrapper", "C++ wrapper"])
@pytest.mark.parametrize(("type_of_by", "n"), [("float", (1 << 24) + 1), ("double", (1 << 53) + 1)])
def test_an_int_that_would_be_rounded_is_an_error(form: str, type_of_by: str, n: int) -> None:
    torch.compiler.reset()
    expected = (
        f"OP: argument 3 `n` is the int {n}, which the kernel's parameter `{type_of_by}` cannot "
        "hold exactly; write float64(...) around it to have it rounded, or declare the parameter "
        "as an integer"
    )
    with pytest.raises(RuntimeError, match=re.escape(expected)):
        scaled("x, y, n", type_of_by, n, form=form)
    assert scaled("x, y, float64(n)", "float", n).shape == (4,)


# ---- quotients of ints ---------------------------------------------------------------------------


def test_a_quotient_of_ints_is_a_float_for_a_float_and_exact_for_an_int() -> None:
    assert scaled("x, y, 1 / n", "float", 4)[0] == 0.25
    assert scaled("x, y, n / 2", "int", 4)[0] == 2
    assert scaled("x, y, n // 2", "int", 3)[0] == 1
    with pytest.raises(RuntimeError) as error:
        scaled("x, y, n / 2", "int", 3)
    assert str(error.value) == (
        "args of OP, implementation 'cpu': 'n / 2': 3 / 2 is no whole number, and an int is needed "
        "here; write // to round down, or ceil_div(a, b) to round up"
    )


# ---- a tensor that is only read, and a pointer without const -------------------------------------


def test_a_read_tensor_for_a_pointer_without_const_is_a_warning() -> None:
    op = declare("(Tensor x, SymInt n) -> (Tensor y)")
    source = SCALE.replace("const ", "").replace("TYPE", "float")
    op.cpu(source=source, entry="f", args="x, y, n")
    with pytest.warns(UserWarning) as told:
        op(X, 2)
    assert [str(warning.message).replace(op.name, "OP") for warning in told] == [
        (
            "OP: `x` is not written according to the schema, but parameter 1 is `float*` without "
            "const; "
            "if the kernel only reads it, declare `float const*`; if it writes to it, declare "
            "`Tensor(a!) x` in the schema: otherwise compiled graphs may reuse or reorder what it "
            "overwrites"
        )
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op(X, 2)  # once is enough


def test_a_field_without_const_is_a_warning_too() -> None:
    op = declare("(Tensor x) -> (Tensor y)")
    source = "struct P { float* x; float* y; }; void f(P p) { p.y[0] = p.x[0]; }"
    op.cpu(source=source, entry="f", args="struct(x=x, y=y)")
    with pytest.warns(
        UserWarning, match="but field `x` of parameter 1 is `float\\*` without const"
    ):
        op(X)


def test_a_warning_may_be_an_error() -> None:
    op = declare("(Tensor x) -> (Tensor y)")
    op.cpu(source="void f(float* x, float* y) { *y = *x; }", entry="f", args="x, y")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="without const"):
            op(X)


def test_written_tensors_and_results_give_no_warning() -> None:
    op = opaq.op("argument_rules::written(Tensor(a!) x, Tensor z) -> ()")
    source = "void f(float* x, const void* z, void* again) { *x += 1; }"
    op.cpu(source=source, entry="f", args="x, z, x")
    x = torch.zeros(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op(x, X)
    assert x[0] == 1


# ---- a grid or a block that was forgotten --------------------------------------------------------

KERNEL = "__global__ void k(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"block": 256},
            [
                (
                    "OP: .cuda(...): grid is not given: one block is launched; say how many, as in "
                    'grid="ceil_div(x.numel(), 256)", or grid=1'
                )
            ],
        ),
        (
            {"grid": "x.numel()"},
            [
                (
                    "OP: .cuda(...): block is not given: a block has one thread; say how many, "
                    "as in "
                    "block=256, or block=1"
                )
            ],
        ),
        ({"grid": 1, "block": 1}, []),
    ],
)
def test_a_forgotten_grid_or_block_is_a_warning(given: dict[str, Any], told: list[str]) -> None:
    op = declare()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        op.cuda(source=KERNEL, entry="k", args="x, y", **given)
    assert [str(warning.message).replace(op.name, "OP") for warning in shown] == told
    assert all(warning.filename == __file__ for warning in shown)


# ---- what is not supported -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "x, y, philox(4)",
            (
                "args of OP, implementation 'cuda': philox(4): a seed and an offset are scratch "
                "memory that PyTorch's generator fills for each launch: give the implementation "
                "scratch={'rng': opaq.philox()} and pass rng, a pointer to the two "
                "(tests/examples/random_numbers.py)"
            ),
        ),
    ],
)
def test_what_cannot_be_passed_is_refused_by_name(args: str, message: str) -> None:
    op = declare()
    with pytest.raises(opaq.DeclarationError) as error:
        op.cuda(source=KERNEL, entry="k", args=args, grid=1, block=1)
    assert str(error.value).replace(op.name, "OP") == message
