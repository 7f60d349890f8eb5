"""Items of argument lists that are more than expressions, on the CPU and in every form; for
kernels see tests/cpp/launch_everywhere_test.cpp and tests/gpu.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import opaq

FORMS = ["eager", "Python wrapper", "C++ wrapper", "package"]
_numbers = itertools.count()


def in_form(form: str, op: opaq.Op, path: Any, *example: Any) -> Callable[..., Any]:
    """A function that calls the op in this form; the package is exported for `example`."""

    class Model(torch.nn.Module):
        def forward(self, *args: Any) -> Any:
            return op(*args)

    if form == "eager":
        return op
    if form == "package":
        program = torch.export.export(Model(), example)
        return torch._inductor.aoti_load_package(opaq.package(program, path / "model.pt2"))
    options = {"cpp_wrapper": form == "C++ wrapper"}
    return torch.compile(Model(), fullgraph=True, options=options)


def declare(schema: str = "(Tensor x) -> (Tensor y)", **outputs: Any) -> opaq.Op:
    rules = outputs or {"y": opaq.like("x")}
    return opaq.op(f"arguments_test::op{next(_numbers)}{schema}", outputs=rules)


def refusal(args: Any, source: str, *call: Any, **changes: Any) -> str:
    """The error of declaring and calling a CPU function with this argument list."""
    op = declare(**changes)
    with pytest.raises(opaq.Error) as error:
        op.cpu(source=source, entry="f", args=args)
        op(*call)
    return str(error.value).replace(op.name, "OP")


BITS = """#include <cstdint>
void f(const uint16_t* x, int32_t* y, int64_t n) { for (int64_t i = 0; i < n; ++i) y[i] = x[i]; }"""
X = torch.randn(8, dtype=torch.bfloat16)


@pytest.mark.parametrize("form", FORMS)
def test_a_cast_passes_another_pointer(form: str, tmp_path: Any) -> None:
    op = declare(y=opaq.like("x", dtype="int32"))
    op.cpu(source=BITS, entry="f", args=[opaq.cast("const uint16_t*", "x"), "y", "x.numel()"])
    call = in_form(form, op, tmp_path, X)
    torch.testing.assert_close(call(X), X.view(torch.int16).int() & 0xFFFF)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "x, y, x.numel()",
            (
                "OP: argument 1 `x` is bfloat16, but parameter 1 is `unsigned short const*`; "
                "convert "
                "the tensor, make the element type a template parameter filled from .dtype, "
                "declare "
                "the parameter as void* to take any dtype, or, where the kernel reads its bytes as "
                'another type, write cast("unsigned short const*", x)'
            ),
        ),
        (
            'cast("const float*", x), y, x.numel()',
            (
                'OP: argument 1 `cast("const float*", x)` does not fit: parameter 1 is `unsigned '
                "short "
                'const*`; cast to its own type, cast("unsigned short const*", x)'
            ),
        ),
        (
            'cast("const uint16_t", x), y, x.numel()',
            (
                "args of OP, implementation 'cpu': cast(\"const uint16_t\", x): 'const "
                "uint16_t' is no "
                "pointer type; a tensor is passed as its address, as in "
                'cast("const uint16_t*", x)'
            ),
        ),
        (
            'cast("int", x.numel()), y, x.numel()',
            (
                "args of OP, implementation 'cpu': cast(\"int\", x.numel()): casts "
                "tensors; "
                "'x.numel()' is int: a number is cast by int32(...), float32(...) and their like"
            ),
        ),
        (
            "cast(x), y, x.numel()",
            (
                "args of OP, implementation 'cpu': cast(x): takes a pointer type and a tensor, "
                "as in "
                'cast("const uint16_t*", x)'
            ),
        ),
    ],
)
def test_a_cast_that_does_not_fit(args: str, message: str) -> None:
    assert refusal(args, BITS, X, y=opaq.like("x", dtype="int32")) == message


def test_a_cast_adds_const_and_takes_none_away() -> None:
    op = declare(y=opaq.like("x", dtype="int32"))
    op.cpu(source=BITS, entry="f", args='cast("uint16_t*", x), y, x.numel()')
    assert op(X).dtype == torch.int32
    writes = BITS.replace("const uint16_t* x", "uint16_t* x")
    args = 'cast("const uint16_t*", x), y, x.numel()'
    assert refusal(args, writes, X, y=opaq.like("x", dtype="int32")).startswith(
        'OP: argument 1 `cast("const uint16_t*", x)` does not fit: parameter 1 is `unsigned short*`'
    )


def test_arguments_of_cast() -> None:
    with pytest.raises(opaq.DeclarationError, match=r"opaq.cast\(...\): type: got 3 \(int\); "):
        opaq.cast(3, "x")  # type: ignore[arg-type]
    with pytest.raises(opaq.DeclarationError, match=r'the type of a pointer, such as "const uint1'):
        opaq.cast("", "x")
