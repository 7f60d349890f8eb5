"""Evaluation in C++, printed Python, printed C++ and evaluation over symbolic sizes give the same
result for each expression.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import opaq
from opaq import _runtime
from opaq.lowering.functions import functions
from opaq.lowering.symbolic import (
    FAILING,
    REFUSED,
    UNKNOWN,
    SymbolicEvaluator,
    SymbolicTensor,
    Unknown,
)

op = opaq.op(
    "opaq_agreement::op(Tensor x, Tensor? bias, int n, int? k, float eps, bool flag, str mode, "
    "int[] dims) -> Tensor",
    outputs=opaq.like("x"),
)
NAMES = [arg["name"] for arg in op.info["args"]]

INTS = [
    0,
    1,
    -1,
    2,
    3,
    -7,
    12,
    (1 << 31) - 1,
    1 << 31,
    -(1 << 31),
    (1 << 53) + 1,
    1 << 62,
    (1 << 62) + 1,
    (1 << 63) - 1,
    -(1 << 63),
]
FLOATS = [
    0.0,
    -0.0,
    0.1,
    0.5,
    1.0,
    -3.0,
    2.5,
    1e-300,
    3.5e38,
    1e308,
    2.0**53,
    2.0**63,
    -(2.0**63),
    math.inf,
    -math.inf,
    math.nan,
]
SHAPES = [
    ((2, 3), (3, 1)),
    ((3, 2), (1, 3)),
    ((0, 4), (4, 1)),
    ((1,), (7,)),
    ((), ()),
    ((5, 1, 2), (2, 9, 1)),
]


class FakeTensor:
    """A tensor without memory, at any address."""

    def __init__(
        self, dtype: torch.dtype, sizes: tuple[int, ...], strides: tuple[int, ...], address: int
    ) -> None:
        self.dtype, self.shape, self._strides, self._address = (
            dtype,
            torch.Size(sizes),
            strides,
            address,
        )

    def data_ptr(self) -> int:
        return self._address

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int) -> int:
        return self.shape[dim]

    def stride(self, dim: int) -> int:
        return self._strides[dim]

    def numel(self) -> int:
        return math.prod(self.shape)

    def is_contiguous(self) -> bool:
        return torch.empty_strided(self.shape, self._strides, device="meta").is_contiguous()

    def fact(self) -> Any:
        return (
            str(self.dtype).removeprefix("torch."),
            self.shape,
            self._strides,
            "cpu",
            self._address,
        )


def tensor(rng: random.Random) -> FakeTensor:
    return FakeTensor(
        rng.choice([torch.float32, torch.bfloat16, torch.int64]),
        *rng.choice(SHAPES),
        rng.choice([64, 12, 4096, 6, 1 << 20]),
    )


def values(rng: random.Random) -> dict[str, Any]:
    return {
        "x": tensor(rng),
        "bias": rng.choice([None, tensor(rng)]),
        "n": rng.choice(INTS),
        "k": rng.choice([None, *INTS]),
        "eps": rng.choice(FLOATS),
        "flag": rng.random() < 0.5,
        "mode": rng.choice(["a", "it's", ""]),
        "dims": [rng.choice(INTS) for _ in range(rng.randrange(4))],
    }


def integer(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.15:
        leaves = [
            "n",
            "x.numel()",
            "x.size(0)",
            "x.size(-1)",
            "x.stride(0)",
            "x.dim()",
            "x.itemsize",
            "len(dims)",
            "dims[1]",
            "x.shape[1:][0]",
            "k if defined(k) else 3",
            "x.alignment",
            "x.data",
            "x.size(n)",
            "dims[n:][0]",
            "bias.size(0) if defined(bias) else 2",
            "k",
            "bias.dim()",
        ]
        return f"({rng.choice(leaves)})" if rng.random() < 0.7 else f"({rng.choice(INTS[:-1])})"
    a, b = integer(rng, depth - 1), integer(rng, depth - 1)
    return rng.choice(
        [
            f"({a} + {b})",
            f"({a} - {b})",
            f"({a} * {b})",
            f"({a} // {b})",
            f"({a} % {b})",
            f"ceil_div({a}, {b})",
            f"min({a}, {b})",
            f"max({a}, {b}, n)",
            f"(-{a})",
            f"abs({a})",
            f"next_power_of_2({a})",
            f"({a} if {boolean(rng, depth - 1)} else {b})",
            f"int64({a} / {b})",
            f"(({a} / {b}) // 2)",
            (
                f"{rng.choice(['int32', 'uint32', 'int64', 'uint64'])}"
                f"({rng.choice([integer, floating, boolean])(rng, depth - 1)})"
            ),
        ]
    )


def floating(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.15:
        return rng.choice(
            ["eps", "0.1", "2.5", "1e300", "float64(n)", "(0.0 - eps)", "16777217.0", "(-0.0)"]
        )
    a, b = floating(rng, depth - 1), rng.choice([integer, floating])(rng, depth - 1)
    return rng.choice(
        [
            f"({a} + {b})",
            f"({b} - {a})",
            f"({a} * {b})",
            f"({b} / {a})",
            f"({integer(rng, depth - 1)} / {b})",
            f"min({a}, {b})",
            f"max({b}, {a}, 1.0)",
            f"(-{a})",
            f"abs({a})",
            f"({a} if {boolean(rng, depth - 1)} else {b})",
            f"float32({b})",
            f"float64({b})",
        ]
    )


def boolean(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.1:
        return rng.choice(
            [
                "flag",
                "true",
                "defined(k)",
                "defined(bias)",
                "aligned(x, 16)",
                "aligned(x, 4)",
                "x.is_contiguous()",
                "(x.dtype == bfloat16)",
                "(mode == 'it\\'s')",
                "(x.shape == dims)",
                "(x.shape[:1] != dims[n:])",
                "(x.dtype in (float32, int64))",
                "aligned(x, n)",
            ]
        )
    kind = rng.choice([integer, floating])
    a, b = kind(rng, depth - 1), rng.choice([kind, kind, integer, floating])(rng, depth - 1)
    p, q = boolean(rng, depth - 1), boolean(rng, depth - 1)
    compare = rng.choice(["==", "!=", "<", "<=", ">", ">="])
    return rng.choice(
        [f"({a} {compare} {b})"] * 4
        + [
            f"({p} and {q})",
            f"({p} or {q})",
            f"(not {p})",
            f"({p} == {q})",
            f"bool({a})",
            f"({p} if {q} else {p})",
        ]
    )


def expression(rng: random.Random) -> str:
    return rng.choice([integer, floating, boolean, boolean])(rng, rng.randrange(1, 4))


def evaluate(text: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """None: the declaration is refused, since the expression fails for all arguments."""
    try:
        return _runtime.expression(
            op.name,
            text,
            [v.fact() if isinstance(v, FakeTensor) else v for v in (given[name] for name in NAMES)],
        )
    except _runtime.DeclarationError as error:
        assert any(
            reason in str(error)
            for reason in (
                "division by zero",
                "overflow",
                "not fit",
                "no whole number",
                "too long",
                "or more",
            )
        ), error
        return None


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (
            a == b and math.copysign(1, a) == math.copysign(1, b)
        )
    return type(a) is type(b) and a == b


def show(text: str, given: dict[str, Any]) -> str:
    facts = {name: v.fact() if isinstance(v, FakeTensor) else v for name, v in given.items()}
    return f"{text}\n{facts}"


# ---- printed Python ------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False))
def test_printed_python_gives_what_evaluation_gives(rng: random.Random) -> None:
    text, given = expression(rng), values(rng)
    truth = evaluate(text, given)
    if truth is None:
        return
    try:
        got = functions.evaluate(truth["python"], given)
    except _runtime.LaunchError:
        assert "error" in truth, show(text, given)
        return
    assert "value" in truth and same(got, truth["value"]), (
        f"{show(text, given)}\nPython: {got!r}\nevaluation: {truth}"
    )


# ---- symbolic sizes ------------------------------------------------------------------------------


def symbolic(
    given: dict[str, Any], rng: random.Random, names_of: Any
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """The same arguments as a compiler sees them: some sizes, strides and ints are symbols."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    hints: dict[Any, Any] = {}

    def number(value: int, size: bool) -> Any:
        if rng.random() < 0.5 or (size and value < 2):
            return value
        source = ConstantSource(f"v{len(hints)}")
        symbol = names_of.shape_env.create_symbol(
            value,
            source,
            dynamic_dim=DimDynamic.DYNAMIC,
            do_not_specialize_zero_one=True,
            positive=size or None,
        )
        if not isinstance(symbol, sympy.Symbol):
            return value
        hints[symbol] = value
        return symbol

    out: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, FakeTensor):
            sizes, strides = (
                tuple(number(v, True) for v in items) for items in (value.shape, value._strides)
            )
            out[name] = SymbolicTensor(sizes, strides, value.dtype, torch.device("cpu"))
        else:
            out[name] = number(value, False) if name in ("n", "k") and value is not None else value
    return out, hints


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False))
def test_symbolic_answers_are_never_another_truth(rng: random.Random) -> None:
    from torch._inductor.sizevars import SizeVarAllocator
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    prover = SizeVarAllocator(ShapeEnv())
    evaluator = SymbolicEvaluator(prover.statically_known_true)
    text, given = expression(rng), values(rng)
    truth = evaluate(text, given)
    if truth is None:
        return
    known, hints = symbolic(given, rng, prover)
    got = evaluator.value(truth["python"], known)
    about = (
        f"{show(text, given)}\n{truth['python']}\n{known}\nsymbolic: {got!r}\nevaluation: {truth}"
    )
    if got is UNKNOWN:
        assert "error" not in truth, about
    elif got is REFUSED:
        assert "error" in truth or truth["value"] is False, about
    elif got is not FAILING:
        if isinstance(got, sympy.Expr):
            got = int(got.xreplace(hints))
        if isinstance(got, tuple):
            return
        assert "value" in truth and same(got, truth["value"]), about


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x.numel() % 8 == 0", True),
        ("x.numel() % 16 == 0", UNKNOWN),
        ("aligned(x, 16) and x.size(1) == 9", False),
        ("n // n == 1 or flag", UNKNOWN),  # 0 // 0 would be an error first
        ("aligned(x, 16) or flag", True),
        ("aligned(x, 4)", UNKNOWN),  # not every float32 is at a multiple of 4
        ("x.size(3) == 1", UNKNOWN),
        ("ceil_div(n, -2) == -1", UNKNOWN),
        ("n * n >= 0", UNKNOWN),  # it may overflow
        ("float32(eps) != eps", True),
    ],
)
def test_symbolic_truth(text: str, expected: Any) -> None:
    from torch._inductor.sizevars import SizeVarAllocator
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    prover = SizeVarAllocator(ShapeEnv())
    rows, n = sympy.Symbol("s0", positive=True, integer=True), sympy.Symbol("n", integer=True)
    known = {
        "x": SymbolicTensor((rows, 8), (8, 1), torch.float32, torch.device("cpu")),
        "n": n,
        "eps": 0.1,
        "flag": True,
    }
    known |= {"bias": None, "k": None, "mode": "", "dims": ()}
    printed = _runtime.expression(
        op.name, text, [("float32", (2, 8), (8, 1), "cpu", 64), None, 3, None, 0.1, True, "", []]
    )["python"]
    assert SymbolicEvaluator(prover.statically_known_true).evaluate(printed, known) is expected


# ---- printed C++ ---------------------------------------------------------------------------------

# What Inductor compiles C++ wrappers with (torch/_inductor/cpp_builder.py).
FLAGS = [
    "-fno-trapping-math",
    "-funsafe-math-optimizations",
    "-ffinite-math-only",
    "-fno-signed-zeros",
    "-fno-math-errno",
    "-fno-finite-math-only",
    "-fno-unsafe-math-optimizations",
    "-ffp-contract=off",
]
PARAMETERS = """const opaq_tensor& x, const std::optional<opaq_tensor>& bias, int64_t n,
    std::optional<int64_t> k, double eps, bool flag,
    std::string_view mode, opaq_ints dims"""
HEAD = """
#include <cinttypes>
#include <cstdio>
#include <cstring>
void show(bool v) { std::printf("%s\\n", v ? "true" : "false"); }
template <class T> void show(T v) {
  if constexpr (std::is_floating_point_v<T>) { double d = v; uint64_t bits;
      std::memcpy(&bits, &d, 8); std::printf("%" PRIu64 "\\n", bits); }
  else std::printf("%" PRId64 "\\n", static_cast<int64_t>(v));
}
"""


def cpp_int(value: int) -> str:
    return "INT64_MIN" if value == -(1 << 63) else f"INT64_C({value})"


def cpp_float(value: float) -> str:
    return (
        '__builtin_nan("")'
        if math.isnan(value)
        else f"{'-' if value < 0 else ''}__builtin_inf()"
        if math.isinf(value)
        else value.hex()
    )


def cpp_list(items: Any) -> str:
    return f"new int64_t[{len(items) + 1}]{{{', '.join(map(cpp_int, items))}}}"


def cpp_value(name: str, value: Any) -> str:
    if isinstance(value, FakeTensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return (
            f"opaq_tensor{{reinterpret_cast<void*>({value.data_ptr()}), "
            f"{cpp_list(value.shape)}, {cpp_list(value._strides)}, {value.dim()}, "
            f"opaq_{dtype}, {value.dtype.itemsize}}}"
        )
    if value is None:
        return "std::nullopt"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list):
        return f"opaq_ints{{{cpp_list(value)}, {len(value)}}}"
    return cpp_float(value) if name == "eps" else cpp_int(value)


def cpp_result(value: Any) -> str:
    import struct

    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        str(struct.unpack("Q", struct.pack("d", value))[0])
        if isinstance(value, float)
        else str(value)
    )


def test_printed_cpp_gives_what_evaluation_gives(tmp_path: Any) -> None:
    rng = random.Random(0)
    environments = [values(rng) for _ in range(12)]
    cases: list[tuple[str, str, list[Any]]] = []
    while len(cases) < 300:
        text = expression(rng)
        results = [evaluate(text, given) for given in environments]
        if None not in results:
            cases.append((text, results[0]["cpp"], results))
    lines = [*map(_runtime.cpp_prelude, ("errors", "expressions")), HEAD]
    lines.append(f"using Case = void (*)({PARAMETERS});")
    lines += [
        f"static void case_{i}([[maybe_unused]] {PARAMETERS}) {{ show({cpp}); }}"
        for i, (_, cpp, _) in enumerate(cases)
    ]
    lines.append(
        f"static const Case cases[] = {{{', '.join(f'case_{i}' for i in range(len(cases)))}}};"
    )
    lines.append(f"static void run({PARAMETERS}) {{")
    lines.append(
        "  for (Case c : cases) try { c(x, bias, n, k, eps, flag, mode, dims); } catch (const "
        'std::exception&) { std::puts("error"); }\n}'
    )
    calls = "\n".join(
        f"  run({', '.join(cpp_value(name, given[name]) for name in NAMES)});"
        for given in environments
    )
    lines.append(f"int main() {{\n{calls}\n}}")
    source, program = tmp_path / "cases.cpp", tmp_path / "cases"
    source.write_text("\n".join(lines))
    subprocess.run(
        [
            os.environ.get("CXX", "g++"),
            "-std=c++17",
            "-O1",
            *FLAGS,
            str(source),
            "-o",
            str(program),
        ],
        check=True,
    )
    printed = subprocess.run(
        [str(program)], check=True, capture_output=True, text=True
    ).stdout.split()
    expected = [
        "error" if "error" in r[e] else cpp_result(r[e]["value"])
        for e in range(len(environments))
        for _, _, r in cases
    ]
    for i, (got, want) in enumerate(zip(printed, expected, strict=True)):
        text, cpp, _ = cases[i % len(cases)]
        nan = (
            want not in ("true", "false", "error") and cpp_result(math.nan) == want and got != want
        )
        assert got == want or (nan and int(got) & 0x7FF0000000000000 == 0x7FF0000000000000), (
            show(text, environments[i // len(cases)]) + f"\n{cpp}: {got}, {want}"
        )


def test_an_unknown_has_no_truth() -> None:
    with pytest.raises(TypeError, match="the truth of an unknown value"):
        bool(Unknown("u", False))
