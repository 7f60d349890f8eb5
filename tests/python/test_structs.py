"""Structs by value: packed the same in every form on the CPU, and held against their definitions
when the function or kernel is compiled. Kernels are launched in tests/cpp/struct_test.cpp and
tests/gpu.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import forked
import pytest
import torch
from test_arguments import FORMS, declare, in_form, refusal

import opaq
from opaq import _runtime

# Every kind of field; padding everywhere; a base, a nameless union, a private field.
STRUCTS = """#include <cstdint>
namespace ns {
enum class Mode : int8_t { Sum, Mean };
struct Scale { bool on; double by[2][2]; };
struct Base { int8_t first; };
template <class T> class Params : public Base {
 public:
  const T* x; T* y; int64_t n; uint8_t small; Scale scale; Mode mode; float eps;
  union { int32_t i; float f; };
  int sizes[4];
 private:
  double hidden = 0;
 public:
  double sum() const {
    double s = first + small + scale.on + int(mode) + eps + f + hidden;
    for (auto& row : scale.by) for (double by : row) s += by;
    for (int size : sizes) s += size;
    return s;
  }
};
struct alignas(32) Tail { char c; double d; };
}
"""
HOST = (
    STRUCTS
    + """
template <class T> void f(ns::Params<T> p, const ns::Tail t) {
  for (int64_t i = 0; i < p.n; ++i) p.y[i] = p.x[i] + T(p.sum() + t.c + t.d); }
"""
)
SCHEMA = "(Tensor x, float eps=0.5, int[] l=[1, 2]) -> (Tensor y)"
FIELDS = {
    "first": "l[0]",
    "x": "x",
    "y": "y",
    "n": "x.numel()",
    "small": 200,
    "scale": {"on": "eps < 1", "by": [[1, "eps"], ["x.size(0) / x.size(1)", 4.5]]},
    "mode": 1,
    "eps": "eps",
    "f": "eps * 2",
    "sizes": "[*x.shape, ...]",
    "hidden": 2,
}
ARGS = [opaq.struct("Params", **FIELDS), "[7, eps * 4]"]


def expected(x: torch.Tensor, eps: float) -> torch.Tensor:
    total = 1 + 200 + (eps < 1) + 1 + eps + 2 * eps + 2 + sum(x.shape)
    total += 1 + eps + x.size(0) / x.size(1) + 4.5
    return x + (total + 7 + 4 * eps)


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_field(form: str, tmp_path: Any) -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    op = declare(SCHEMA)
    op.cpu(source=HOST, entry="f<{x.dtype}>", args=ARGS)
    call = in_form(form, op, tmp_path, x, 0.25)
    torch.testing.assert_close(call(x, 0.25), expected(x, 0.25))


@pytest.mark.parametrize("form", ["eager", "Python wrapper", "C++ wrapper"])
def test_errors_of_values_are_the_same(form: str, tmp_path: Any) -> None:
    op = declare("(Tensor x, int small, int[] l) -> (Tensor y)")
    struct = opaq.struct("Params", ..., **{**FIELDS, "eps": 1, "f": 1, "small": "small"})
    fields = str(struct).replace("eps < 1", "true").replace("eps", "1").replace("hidden=2, ", "")
    fields = fields.replace("1=1", "eps=1").replace("[*x.shape, ...]", "[*l]")
    op.cpu(source=HOST, entry="f<{x.dtype}>", args=[fields, "[7, 4]"])
    x = torch.ones(2, 2)

    def error(small: int, sizes: list[int]) -> str:
        torch.compiler.reset()
        with pytest.raises(RuntimeError) as raised:
            in_form(form, op, tmp_path)(x, small, sizes)
        return str(raised.value).replace(op.name, "OP")

    assert (
        "OP: argument 1, field `small`: `small` is 300, which does not fit the kernel's parameter "
        "`unsigned char`; declare the parameter as int64_t" in error(300, [1, 2, 3, 4])
    )
    assert (
        "OP: argument 1, field `sizes`: `[*l]` has 2 items, but the field is an array of 4; write "
        "[*list, ...] where the other items are zero" in error(3, [1, 2])
    )
    assert "has 5 items, but the field is an array of 4; make the array larger" in error(3, [1] * 5)


TYPES = (
    "typedef signed char int8_t; typedef unsigned char uint8_t; typedef int int32_t; typedef long "
)
TYPES += "int64_t;"
KERNEL = (
    STRUCTS.replace("#include <cstdint>", TYPES).replace("double sum", "__device__ double sum")
    + """
template <class T> __global__ void k(const __grid_constant__ ns::Params<T> p, ns::Tail t) {
  p.y[0] = p.x[0] + p.sum() + t.d; }
"""
)


def compile_for(op: opaq.Op, arch: str = "sm_90a") -> dict[str, Any]:
    return _runtime.compile(op.name, [("float32", (4, 3), (3, 1), "cuda:0", 256)], arch, "cuda")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a", "compute_90"])
def test_a_kernel_is_held_against_the_struct(arch: str) -> None:
    op = declare(SCHEMA)
    op.cuda(source=KERNEL, entry="k<{x.dtype}>", args=ARGS, grid=1, block=1)
    assert compile_for(op, arch)["bytes"] > 0
    assert compile_for(op, arch)["from_cache"] in (False, True)


X = torch.ones(2, 2, dtype=torch.float64)
PARAMS_FIELDS = (
    "first (`signed char`), x (`double const*`), y (`double*`), n (`long`), small (`unsigned "
    "char`), scale (`Scale`), mode (`Mode`), eps (`float`), i (`int`), f (`float`), sizes "
    "(`int[4]`), hidden (`double`)"
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"epps": 1},
            (
                "OP: argument 1: the parameter is the struct `ns::Params<double>`, which has no "
                "field "
                f"`epps`; did you mean 'eps'?; its fields are {PARAMS_FIELDS}"
            ),
        ),
        (
            {"scale": {"off": 1}},
            (
                "OP: argument 1: field `scale` is the struct `Scale`, which has no field `off`; "
                "its "
                "fields are on (`bool`), by (`double[2][2]`)"
            ),
        ),
        (
            {"i": 1},
            "OP: argument 1: field `f` shares its memory with `i`; give one of them",
        ),
        (
            {"eps": None},
            (
                "OP: argument 1: field `eps` (`float`) is not given; give it, or write ... as "
                "the last "
                "item where the fields that are not given are zero"
            ),
        ),
        (
            {"x": 1},
            (
                "OP: argument 1, field `x`: `1` is int, but field `x` of parameter 1 is `double "
                "const*`; pass a tensor by its name, 0 for a null pointer, or declare the "
                "parameter as "
                "a scalar"
            ),
        ),
        (
            {"n": "x"},
            (
                "OP: argument 1, field `n`: `x` is Tensor, but field `n` of parameter 1 is `long`; "
                "pass a number of it, such as x.numel(), or declare the parameter as a pointer"
            ),
        ),
        ({"n": "l"}, "OP: argument 1: field `n` is `long`, which takes one value; got the int[] l"),
        ({"n": [1]}, "OP: argument 1: field `n` is `long`, which takes one value; got [1]"),
        (
            {"sizes": [1, 2]},
            (
                "OP: argument 1: field `sizes` is `int[4]`; got a list of 2: end it with ... "
                "where the "
                "other items are zero"
            ),
        ),
        ({"sizes": 1}, "OP: argument 1: field `sizes` is `int[4]`, which takes a list; got 1"),
        (
            {"scale": {"on": 1, "by": "l"}},
            (
                "OP: argument 1: field `scale.by` is `double[2][2]`; an int[] fills an array of "
                "one "
                "dimension"
            ),
        ),
        (
            {"scale": 3},
            (
                "OP: argument 1: field `scale` is the struct `Scale`; got `3`: give its fields, on "
                "(`bool`), by (`double[2][2]`)"
            ),
        ),
        (
            {"x": "y"},
            (
                "OP: `y` is written by this op, but field `x` of parameter 1 is `double const*`; "
                "take "
                "the const away, or check the order of args"
            ),
        ),
        (
            {"x": opaq.cast("const float*", "x")},
            (
                'OP: argument 1, field `x`: `cast("const float*", x)` does not fit: field `x` of '
                'parameter 1 is `double const*`; cast to its own type, cast("double const*", x)'
            ),
        ),
    ],
)
def test_a_field_that_does_not_fit(fields: dict[str, Any], message: str) -> None:
    given = {**FIELDS, **fields}
    given = {name: value for name, value in given.items() if value is not None}
    if "i" in fields:  # before the union's other member
        given = {"i": 1, **given}
    args = [opaq.struct("Params", **given), "[7, 1]"]
    op = declare(SCHEMA)
    op.cpu(source=HOST, entry="f<{x.dtype}>", args=args)
    with pytest.raises(opaq.CompileError) as error:
        op(X)
    assert str(error.value).replace(op.name, "OP").startswith(message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            'struct("Parms", y=y, ...), [7, 1]',
            (
                "OP: argument 1: the parameter is the struct `ns::Params<double>`; got "
                'struct("Parms", ...)'
            ),
        ),
        (
            "y, [7, 1]",
            (
                "OP: argument 1 `y` is Tensor, but parameter 1 is the struct "
                "`ns::Params<double>` of "
                '120 bytes; give the struct\'s fields, opaq.struct("ns::Params<double>", field=...)'
            ),
        ),
        (
            "struct(y=y, ...), [1, 2, 3]",
            "OP: argument 2: the parameter is the struct `ns::Tail` of 2 fields; got a list of 3",
        ),
        (
            'struct("P", y), [7, 1]',
            (
                "args of OP, implementation 'cpu': struct(\"P\", y): 'y' is no field; a struct is "
                'written struct("Params", x=x, n=x.numel()), with ... at the end where the other '
                "fields are zero"
            ),
        ),
        (
            "struct(y=y, y=y), [7, 1]",
            "args of OP, implementation 'cpu': struct(y=y, y=y): field 'y' is given twice",
        ),
        (
            "struct(y=y, sizes=[*x.shape, 1]), [7, 1]",
            (
                "args of OP, implementation 'cpu': [*x.shape, 1]: '*' stands for all items of an "
                "array, so that nothing but ... may be beside it"
            ),
        ),
        (
            "struct(y=y, n=z), 1",
            "args of OP, implementation 'cpu': unknown name 'z'",
        ),
    ],
)
def test_a_struct_that_cannot_be(args: str, message: str) -> None:
    assert refusal(
        args,
        HOST.replace(
            "template <class T> void f(ns::Params<T>", "using T = double; void f(ns::Params<T>"
        ),
        X,
    ).startswith(message)


def test_bit_fields_and_references_are_refused() -> None:
    source = "struct P { float* y; int bit : 3; int& r; }; void f(P p) { *p.y = p.bit; }"
    x = torch.ones(1)
    assert refusal("struct(y=y, bit=1, r=1)", source, x) == (
        "OP: argument 1: field `bit` is a bit-field, which cannot be set; make it a whole number"
    )
    assert refusal("struct(y=y, r=1, ...)", source, x) == (
        "OP: argument 1: field `r` is `int&`, a reference, which cannot be set; make it a pointer"
    )


def test_what_tells_no_layouts_takes_no_structs(tmp_path: Any) -> None:
    op = declare()
    with pytest.raises(opaq.DeclarationError) as error:
        op.cuda(binary=b"\x7fELF", entry="k", args="struct(y=y)", grid=1, block=1)
    assert "struct(y=y) is a struct, and a cubin, fatbin or PTX does not tell how its" in str(
        error.value
    )
    with pytest.raises(opaq.DeclarationError, match="is a struct, and a library does not tell"):
        op.library("libm.so.6", symbol="f", args="[y]", device="cpu")


def test_arguments_of_struct() -> None:
    with pytest.raises(opaq.DeclarationError, match=r"opaq.struct\(...\): type: got 3 \(int\)"):
        opaq.struct(3)  # type: ignore[arg-type]
    with pytest.raises(opaq.DeclarationError, match="expected fields by name, as in opaq.struct"):
        opaq.struct("P", "x")  # type: ignore[arg-type]
    with pytest.raises(opaq.DeclarationError, match=r"n: got None; expected an expression, a numb"):
        opaq.struct("P", n=None)
    with pytest.raises(
        opaq.DeclarationError, match=r"n: got nan \(float\); expected an expression"
    ):
        opaq.struct("P", n=float("nan"))


WARM = """
import os, sys
os.environ["PATH"] = {path!r}
import torch, opaq
sys.path[:0] = {folders!r}
from test_structs import HOST, ARGS, SCHEMA, KERNEL, declare, compile_for, expected
op = declare(SCHEMA)
op.cpu(source=HOST, entry="f<{{x.dtype}}>", args=ARGS)
op.cuda(source=KERNEL, entry="k<{{x.dtype}}>", args=ARGS, grid=1, block=1)
x = torch.randn(3, 5, dtype=torch.float64)
torch.testing.assert_close(op(x), expected(x, 0.5))
print(compile_for(op)["from_cache"])
"""


def test_a_warm_start_compiles_nothing(tmp_path: Any) -> None:
    """Layouts are in the cache beside the code: no compiler is needed to know them again."""
    folder = os.path.dirname(__file__)
    environment = {**os.environ, "OPAQ_CACHE_DIR": str(tmp_path / "cache")}

    def process(path: str) -> str:
        program = WARM.format(folders=[folder, os.path.dirname(folder)], path=path)
        done = forked.run([sys.executable, "-c", program], env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    process(os.environ["PATH"])
    assert process("").startswith("True")  # and no C++ compiler is found


def test_a_struct_that_no_launch_can_pass() -> None:
    source = "struct S { float v[9000]; }; __global__ void k(const __grid_constant__ S s, float* y)"
    op = declare()
    op.cuda(
        source=source + " { y[0] = s.v[threadIdx.x]; }",
        entry="k",
        args="struct(...), y",
        grid=1,
        block=1,
        compiler="nvrtc",
    )
    with pytest.raises(opaq.CompileError) as error:
        compile_for(op)
    assert "36008 bytes required, max 32764 bytes allowed" in str(error.value)
    assert (
        str(error.value)
        .rstrip()
        .endswith(
            "a kernel takes at most 32764 bytes of parameters (4096 before CUDA 12.1); pass what "
            "is "
            "larger in a tensor"
        )
    )


STEPS = """
struct P { const float* x; double* sum; long n; };
void add(P p) { *p.sum = 0; for (long i = 0; i < p.n; ++i) *p.sum += p.x[i]; }
void divide(P p, float* y) { for (long i = 0; i < p.n; ++i) y[i] = p.x[i] / *p.sum; }
"""


@pytest.mark.parametrize("form", FORMS)
def test_structs_in_steps_hold_scratch_memory(form: str, tmp_path: Any) -> None:
    op = declare()
    params = opaq.struct("P", x="x", sum="total", n="x.numel()")
    op.cpu(
        source=STEPS,
        scratch={"total": opaq.tensor("1", dtype="float64")},
        steps=[
            opaq.step(entry="add", args=[params]),
            opaq.step(entry="divide", args=[params, "y"]),
        ],
    )
    x = torch.rand(10)
    torch.testing.assert_close(in_form(form, op, tmp_path, x)(x), x / x.sum())
