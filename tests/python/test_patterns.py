"""Every pattern: each of its spellings is found, and gives what eager PyTorch gives."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import compile_once
import pytest
import torch

import opaq
from opaq import extern_kernels
from opaq.lowering.substitute import apply
from opaq.lowering.substitute.pattern import Pattern, patterns

extern_kernels.load_patterns()
EVERY = [
    pytest.param(pattern, id=pattern.name)
    for pattern in patterns.values()
    if not pattern.by_name  # see test_sampling_pattern.py, test_linear_cross_entropy.py
]

# Those that the run without a part takes for what `life` does with every pattern.
SOME = ("rms_norm", "softmax")


def mostly_in_life(patterns: Iterable[Any]) -> list[Any]:
    return [each if each.id in SOME else in_life(each) for each in patterns]


def in_life(each: Any) -> Any:
    return pytest.param(*each.values, id=each.id, marks=pytest.mark.life)


def each_with_sizes_of_both_kinds() -> Iterator[Any]:
    for dynamic in (False, True):
        for each in mostly_in_life(EVERY) if dynamic else EVERY:
            name = f"{each.id}-{dynamic}"
            yield pytest.param(dynamic, *each.values, id=name, marks=each.marks)


DRAWS = ("multinomial", "sample_multinomial", "exponential_race", "sample_exponential_race")
NO_GRADIENT = ("rms_norm_float8", "silu_mul_float8", "top_k_probabilities", "top_p_probabilities")
NO_GRADIENT += ("min_p_probabilities", "min_p_of_rows", "top_k_top_p_of_rows")
NO_GRADIENT += ("repetition_penalty", "token_penalties")

# The arguments that get gradients, where not all do: the angles of `rope`, and what only chooses.
WITH_GRADIENT = {"rope": ("q", "k"), "moe_route_scored": ("logits",)}


def values(pattern: Pattern, dtype: torch.dtype) -> dict[str, Any]:
    """Random arguments that look like the examples, by name."""
    torch.manual_seed(0)

    def value(name: str) -> Any:
        example = pattern.examples[name]
        if not isinstance(example, torch.Tensor):
            return example
        if name == "order":
            return torch.randperm(example.numel())
        if name == "row_min_p":
            return torch.tensor([[0.1], [0.9]], dtype=dtype)
        if name == "row_top_k":
            return torch.tensor([3, 8])
        if example.is_complex():
            return torch.randn(example.shape, dtype=dtype.to_complex())
        if not example.is_floating_point():
            return torch.randint(2, example.shape, dtype=example.dtype)
        if name == "probabilities":
            return torch.rand(example.shape, dtype=dtype)
        return torch.randn(example.shape, dtype=dtype)

    return {name: value(name) for name in pattern.examples}


def call(spelling: Any, known: Mapping[str, Any]) -> list[torch.Tensor]:
    """The results of a spelling for those of the known arguments that it has."""
    result = spelling(*(known[name] for name in inspect.signature(spelling).parameters))
    return list(result) if isinstance(result, tuple) else [result]


def compiled_call(spelling: Any, known: Mapping[str, Any], **options: Any) -> list[torch.Tensor]:
    torch.compiler.reset()
    return call(torch.compile(spelling, **options), known)


@pytest.mark.parametrize("dynamic, pattern", list(each_with_sizes_of_both_kinds()))
def test_each_spelling_is_found_and_agrees_with_eager(pattern: Pattern, dynamic: bool) -> None:
    known = values(pattern, torch.float32)
    for each in known.values():
        if isinstance(each, torch.Tensor) and each.dim() == 4:
            torch._dynamo.mark_static(each, 3)  # the size of a head
    options = {"substitute": [pattern.name]}
    with compile_once.calls_of_kernels():
        for number, spelling in enumerate(pattern.spellings):
            with apply.collected() as found:
                torch.manual_seed(1)
                results = compiled_call(
                    spelling, known, backend="opaq", options=options, dynamic=dynamic
                )
            torch.manual_seed(1)
            expected_results = call(spelling, known)
            # several, where some numbers are compiled anew
            assert {each.applied for each in found} == {True}, (number, found)
            for result, expected in zip(results, expected_results, strict=True):
                assert result.dtype == expected.dtype, number
                if result.dtype == torch.float8_e4m3fn:
                    result, expected = result.float(), expected.float()
                assert_close(result, expected, number)


def assert_close(result: torch.Tensor, expected: torch.Tensor, spelling: int) -> None:
    torch.testing.assert_close(
        result, expected, msg=lambda text: f"the spelling of number {spelling}: {text}"
    )


@pytest.mark.parametrize(
    "pattern", [each for each in EVERY if not each.id.startswith(NO_GRADIENT + DRAWS)]
)
def test_gradients_of_each_spelling(pattern: Pattern) -> None:
    known = values(pattern, torch.float32)
    wanted = {}
    for name, each in known.items():
        with_gradient = name in WITH_GRADIENT.get(pattern.name, known)
        if isinstance(each, torch.Tensor) and each.is_floating_point() and with_gradient:
            wanted[name] = each.requires_grad_()

    def gradients(spelling: Any, results: list[torch.Tensor]) -> Any:
        names = inspect.signature(spelling).parameters
        inputs = [each for name, each in wanted.items() if name in names]
        return torch.autograd.grad(sum(each.sin().sum() for each in results), inputs)

    with compile_once.calls_of_kernels():
        for number, spelling in enumerate(pattern.spellings):
            with apply.collected() as found:
                results = compiled_call(
                    spelling, known, backend="opaq", options={"substitute": [pattern.name]}
                )
            assert [each.applied for each in found] == [True], (number, found)
            expected_gradients = gradients(spelling, call(spelling, known))
            for gradient, expected in zip(
                gradients(spelling, results), expected_gradients, strict=True
            ):
                assert_close(gradient, expected, number)


@pytest.mark.long
@pytest.mark.usefixtures("kernels_as_users_have_them")
@pytest.mark.parametrize(
    "pattern", mostly_in_life(each for each in EVERY if not each.id.startswith(DRAWS))
)
def test_errors_are_no_larger_than_inductors(pattern: Pattern) -> None:
    """In bfloat16 against float64, on values of many sizes."""
    narrow, wide = {}, {}
    for name, each in values(pattern, torch.float64).items():
        if isinstance(each, torch.Tensor) and each.is_floating_point():
            each = (each * 10 ** torch.linspace(-3, 2, each.shape[-1])).bfloat16()
        elif isinstance(each, torch.Tensor) and each.is_complex():
            each = each.to(torch.complex64)
        narrow[name] = each
        if isinstance(each, torch.Tensor) and (each.is_floating_point() or each.is_complex()):
            each = each.to(torch.promote_types(each.dtype, torch.float64))
        wide[name] = each

    def error(results: list[torch.Tensor], spelling: Any) -> float:
        return max(
            ((a.double() - b.double()).norm() / b.double().norm()).item()
            for a, b in zip(results, call(spelling, wide), strict=True)
            if b.is_floating_point()
        )

    ours = {}
    with compile_once.calls_of_kernels():
        for spelling in pattern.spellings:
            results = compiled_call(
                spelling, narrow, backend="opaq", options={"substitute": [pattern.name]}
            )
            ours[spelling] = error(results, spelling)
    # One rounding of a result is within half a unit, 2^-9, whoever makes it: what Inductor makes
    # need be known only for larger errors. (Inductor compiles faster one by one than in one graph.)
    for number, spelling in enumerate(pattern.spellings):
        if ours[spelling] > 2**-9:
            # In the dtypes of eager PyTorch: Inductor of torch 2.11 has float32 for some.
            rounded = [
                each.to(eager.dtype)
                for each, eager in zip(compiled_call(spelling, narrow), call(spelling, narrow))
            ]
            assert ours[spelling] <= error(rounded, spelling), number


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
        assert (pattern.measurements is None) == bool(pattern.by_name), pattern.name
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
