"""Every pattern: each of its spellings is found, and gives what eager PyTorch gives."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch

import opaq
from opaq import extern_kernels
from opaq.lowering.substitute import apply
from opaq.lowering.substitute.pattern import Pattern, patterns

extern_kernels.load_patterns()
SPELLINGS = [
    pytest.param(pattern, number, id=f"{pattern.name}-{number}")
    for pattern in patterns.values()
    if not pattern.random  # see test_sampling_pattern.py
    for number in range(len(pattern.spellings))
]

DRAWS = ("multinomial", "sample_multinomial", "exponential_race", "sample_exponential_race")
NO_GRADIENT = ("rms_norm_float8", "silu_mul_float8", "top_k_probabilities", "top_p_probabilities")
NO_GRADIENT += ("min_p_probabilities", "top_k_top_p_of_rows")


def values(pattern: Pattern, function: Any, dtype: torch.dtype) -> list[Any]:
    """Random arguments that look like the examples."""
    torch.manual_seed(0)

    def value(name: str) -> Any:
        example = pattern.examples[name]
        if not isinstance(example, torch.Tensor):
            return example
        if name == "order":
            return torch.randperm(example.numel())
        if name == "row_top_k":
            return torch.tensor([3, 8])
        if example.is_complex():
            return torch.randn(example.shape, dtype=dtype.to_complex())
        if not example.is_floating_point():
            return torch.randint(2, example.shape, dtype=example.dtype)
        if name == "probabilities":
            return torch.rand(example.shape, dtype=dtype)
        return torch.randn(example.shape, dtype=dtype)

    return [value(name) for name in inspect.signature(function).parameters]


def leaves(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("pattern, number", SPELLINGS)
def test_a_spelling_is_found_and_agrees_with_eager(
    pattern: Pattern, number: int, dynamic: bool
) -> None:
    function = pattern.spellings[number]
    arguments = values(pattern, function, torch.float32)
    for each in arguments:
        if isinstance(each, torch.Tensor) and each.dim() == 4:
            torch._dynamo.mark_static(each, 3)  # the size of a head
    compiled = torch.compile(
        function, backend="opaq", options={"substitute": [pattern.name]}, dynamic=dynamic
    )
    with apply.collected() as found:
        torch.manual_seed(1)
        results = leaves(compiled(*arguments))
    torch.manual_seed(1)
    expected_results = leaves(function(*arguments))
    assert {each.applied for each in found} == {True}, found  # some numbers are compiled anew
    for result, expected in zip(results, expected_results, strict=True):
        assert result.dtype == expected.dtype
        if result.dtype == torch.float8_e4m3fn:
            result, expected = result.float(), expected.float()
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    "pattern, number", [each for each in SPELLINGS if not each.id.startswith(NO_GRADIENT + DRAWS)]
)
def test_gradients_of_a_spelling(pattern: Pattern, number: int) -> None:
    function = pattern.spellings[number]
    arguments = [
        each.requires_grad_()
        if isinstance(each, torch.Tensor)
        and each.is_floating_point()
        and (pattern.name != "rope" or name in ("q", "k"))  # its angles get no gradients
        else each
        for name, each in zip(
            inspect.signature(function).parameters, values(pattern, function, torch.float32)
        )
    ]
    wanted = [each for each in arguments if isinstance(each, torch.Tensor) and each.requires_grad]

    def gradients(call: Any) -> Any:
        return torch.autograd.grad(
            sum(each.sin().sum() for each in leaves(call(*arguments))), wanted
        )

    with apply.collected() as found:
        results = gradients(
            torch.compile(function, backend="opaq", options={"substitute": [pattern.name]})
        )
    assert [each.applied for each in found] == [True], found
    for result, expected in zip(results, gradients(function), strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.usefixtures("kernels_as_users_have_them")
@pytest.mark.parametrize(
    "pattern, number", [each for each in SPELLINGS if not each.id.startswith(DRAWS)]
)
def test_errors_are_no_larger_than_inductors(pattern: Pattern, number: int) -> None:
    """In bfloat16 against float64, on values of many sizes."""
    function = pattern.spellings[number]
    arguments = values(pattern, function, torch.float64)
    narrow, wide = [], []
    for each in arguments:
        if isinstance(each, torch.Tensor) and each.is_floating_point():
            each = (each * 10 ** torch.linspace(-3, 2, each.shape[-1])).bfloat16()
        elif isinstance(each, torch.Tensor) and each.is_complex():
            each = each.to(torch.complex64)
        narrow.append(each)
        if isinstance(each, torch.Tensor) and (each.is_floating_point() or each.is_complex()):
            each = each.to(torch.promote_types(each.dtype, torch.float64))
        wide.append(each)
    expected = leaves(function(*wide))

    def error(**options: Any) -> float:
        torch.compiler.reset()
        results = leaves(torch.compile(function, **options)(*narrow))
        return max(
            ((a.double() - b.double()).norm() / b.double().norm()).item()
            for a, b in zip(results, expected)
            if b.is_floating_point()
        )

    theirs = error()
    ours = error(backend="opaq", options={"substitute": [pattern.name]})
    # one rounding of a result is within half a unit, 2^-9, whoever makes it
    assert ours <= max(theirs, 2**-9)


def test_float8_of_narrow_values_and_of_those_with_gradients() -> None:
    def block(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        v = (torch.nn.functional.silu(gate) * up).float()
        scale = v.abs().amax(dim=-1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
        return (v / scale).to(torch.float8_e4m3fn), scale

    def narrow(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, scale = block(gate, up)
        return y, scale.bfloat16()

    def found_in(function: Any, *arguments: torch.Tensor) -> Any:
        torch.compiler.reset()
        options = {"substitute": ["silu_mul_float8"]}
        with apply.collected() as found:
            results = torch.compile(function, backend="opaq", options=options)(*arguments)
        (place,) = found
        return place, results

    gate, up = torch.randn(64, 256).bfloat16(), torch.randn(64, 256).bfloat16()
    place, (y, scale) = found_in(block, gate, up)
    assert place.applied
    wanted_y, wanted_scale = block(gate.float(), up.float())  # rounded once, at the end
    torch.testing.assert_close(scale, wanted_scale)
    assert (y.float() != wanted_y.float()).double().mean() < 1e-3
    place, _ = found_in(narrow, gate, up)
    assert place.applied  # the scale itself is not rounded
    place, _ = found_in(block, gate.requires_grad_(), up)
    assert place.reason == "the op has no gradient"


def test_all_leaves_graphs_on_the_cpu_to_inductor() -> None:
    def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(gate) * up

    with apply.collected() as found:
        torch.compile(swiglu, backend="opaq")(torch.randn(4, 8), torch.randn(4, 8))
    (place,) = found
    assert (place.pattern, place.applied, place.gain) == ("silu_mul", False, None)
    assert place.reason == "it was not measured for 4 x 8 values on cpu"
    assert place.place.endswith("in swiglu")


def test_measurements_are_well_formed() -> None:
    from opaq.lowering.substitute import measured

    for pattern in patterns.values():
        assert (pattern.measurements is None) == pattern.random, pattern.name
        if pattern.measurements is None:
            continue
        for point in measured.read(pattern.measurements):
            assert point.gain > 0 and point.arch.startswith("sm_")


def test_report_and_explain_tell_what_is_replaced() -> None:
    def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(gate) * up

    compiled = torch.compile(swiglu, backend="opaq", options={"substitute": ["silu_mul"]})
    arguments = torch.randn(4, 8), torch.randn(4, 8)
    for found in (opaq.explain(compiled, *arguments), (compiled(*arguments), opaq.report())[1]):
        place = found.substitutions[-1]
        assert (place.pattern, place.applied) == ("silu_mul", True)
        assert place.reason == "it was asked for by name"
        assert re.search("pattern +places +replaced +why", str(found))
    assert "opaq_kernels::silu_mul" in {node.op for node in found.nodes}
