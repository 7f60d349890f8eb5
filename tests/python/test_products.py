"""Products are found however their factors are associated and ordered."""

from __future__ import annotations

import inspect
import random
from typing import Any

import pytest
import substituting
import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from opaq import extern_kernels
from opaq.lowering.substitute import apply, match, operations, products
from opaq.lowering.substitute.nodes import Nodes
from opaq.lowering.substitute.pattern import patterns
from opaq.lowering.substitute.spelling import graph_of

Tensor = torch.Tensor
extern_kernels.load_patterns()


def root_of(graph: Nodes) -> Node:
    return operations.without_casts(match.results_of(graph)[0])[0]


def product_of(graph: Nodes) -> products.Product | None:
    root = root_of(graph)
    known = products.is_one(graph.operation(root))
    return products.of_spelling(graph, root) if known else None


WITH_PRODUCTS = [
    pytest.param(pattern, number, id=f"{pattern.name}-{number}")
    for pattern in patterns.values()
    if not (pattern.exact or pattern.casts_matter)
    for number, graph in enumerate(pattern.graphs())
    if product_of(graph) is not None
]


def associated(graph: Graph, seed: int) -> None:
    """Writes the product that a graph returns in another order, associated at random."""
    nodes, choice = Nodes(graph), random.Random(seed)
    root, product = root_of(nodes), product_of(nodes)
    assert product is not None
    factors = [*product.factors]
    choice.shuffle(factors)
    with graph.inserting_before(root):
        while len(factors) > 1:
            at = choice.randrange(len(factors) - 1)
            one, other = sorted(factors[at : at + 2], key=lambda each: each.divides)
            multiply = one.divides == other.divides
            if any(isinstance(each.value, Node) for each in (one, other)):
                call = torch.mul if multiply else torch.div
                value = graph.call_function(call, (one.value, other.value))
            else:
                value = one.value * other.value if multiply else one.value / other.value
            factors[at : at + 2] = [products.Factor(value, one.divides)]
    root.replace_all_uses_with(factors[0].value)
    graph.eliminate_dead_code()


def places(name: str, function: Any, *arguments: Any) -> tuple[list[Any], Any]:
    """(what is found of a pattern, the results where it is replaced)"""
    torch.compiler.reset()
    with apply.collected() as found:
        results = torch.compile(function, backend=substituting.backend(name))(*arguments)
    return found, results


@pytest.mark.parametrize("pattern, number", WITH_PRODUCTS)
def test_factors_of_spellings_in_any_order(pattern: Any, number: int) -> None:
    function = pattern.spellings[number]
    examples = [pattern.examples[name] for name in inspect.signature(function).parameters]
    torch.manual_seed(0)
    arguments = [torch.rand(each.shape) if isinstance(each, Tensor) else each for each in examples]
    expected = function(*arguments)
    for seed in range(4):
        graph = graph_of(function, examples)
        associated(graph, seed)
        module = torch.fx.GraphModule({}, graph)
        found, results = places(pattern.name, module, *arguments)
        assert [each.applied for each in found] == [True], (seed, graph, found)
        torch.testing.assert_close(results, expected)


def swiglu_of_two(g: Tensor, u: Tensor) -> Tensor:
    return u / (1 + torch.exp(-g)) * g


def swiglu_last(g: Tensor, u: Tensor) -> Tensor:
    return u * g * torch.sigmoid(g)


def geglu(g: Tensor, u: Tensor) -> Tensor:
    return (u * 0.5) * (g * (1 + torch.erf(g * 0.7071067811865476)))


def geglu_by_halves(g: Tensor, u: Tensor) -> Tensor:
    return g / 2 * (1 + torch.erf(g / 1.4142135623730951)) * u


def geglu_with_a_cube(g: Tensor, u: Tensor) -> Tensor:
    return 0.5 * g * (1 + torch.tanh(0.7978845608028654 * (g + g * g * g * 0.044715))) * u


def geglu_with_a_square(g: Tensor, u: Tensor) -> Tensor:
    return 0.5 * g * (1 + torch.tanh(0.7978845608028654 * g * (1 + 0.044715 * g**2))) * u


@pytest.mark.parametrize(
    "name, function",
    [
        ("silu_mul", swiglu_of_two),
        ("silu_mul", swiglu_last),
        ("gelu_mul", geglu),
        ("gelu_mul", geglu_by_halves),
        ("gelu_mul", geglu_with_a_cube),
        ("gelu_mul", geglu_with_a_square),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_activations(name: str, function: Any, dtype: torch.dtype) -> None:
    g, u = torch.randn(2, 4, 8, dtype=dtype).unbind(0)
    found, results = places(name, function, g, u)
    assert [each.applied for each in found] == [True], found
    torch.testing.assert_close(results, function(g.double(), u.double()).to(dtype))


def test_norms() -> None:
    def scaled_first(x: Tensor, w: Tensor) -> Tensor:
        return x * (w * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    x, w = torch.randn(4, 8), torch.randn(8)
    found, results = places("rms_norm", scaled_first, x, w)
    assert [each.applied for each in found] == [True], found
    torch.testing.assert_close(results, F.rms_norm(x, (8,), w, 1e-6))


def test_what_is_read_elsewhere_too_is_left() -> None:
    def function(g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        both = g * u
        return both * torch.sigmoid(g), both

    g, u = torch.randn(2, 4, 8).unbind(0)
    found, results = places("silu_mul", function, g, u)
    assert not any(each.applied for each in found)
    torch.testing.assert_close(results, function(g, u))


def test_more_factors_are_another_product() -> None:
    def function(g: Tensor, u: Tensor) -> Tensor:
        return (g * g) * (u * torch.sigmoid(g))

    g, u = torch.randn(2, 4, 8).unbind(0)
    found, results = places("silu_mul", function, g, u)
    torch.testing.assert_close(results, function(g, u))


def test_what_divides_is_no_factor() -> None:
    def function(g: Tensor, u: Tensor) -> Tensor:
        return u / g * torch.sigmoid(g)

    g, u = torch.randn(2, 4, 8).unbind(0)
    found, results = places("silu_mul", function, g, u)
    assert found == []
    torch.testing.assert_close(results, function(g, u))


@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_numbers_that_are_computed() -> None:
    def gelu(g: Tensor, u: Tensor, root: Tensor) -> Tensor:
        return (0.5 * g) * (u * (1 + torch.erf(g / root.item())))

    def norm(x: Tensor, w: Tensor, eps: Tensor) -> Tensor:
        return x * (w * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps.item()))

    g, u = torch.randn(2, 4, 8).unbind(0)
    for name, function, other, number, reason in (
        ("gelu_mul", gelu, u, 2**0.5, "whether the op may stand there depends on values, known"),
        ("rms_norm", norm, u[0], 1e-6, "the replacement fails: RuntimeError: opaq_kernels::rms_n"),
    ):
        found, results = places(name, function, g, other, torch.tensor(number))
        (reason_given,) = [each.reason for each in found]
        assert reason_given.startswith(reason) and "\n" not in reason_given
        torch.testing.assert_close(results, function(g, other, torch.tensor(number)))
