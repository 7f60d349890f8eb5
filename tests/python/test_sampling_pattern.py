"""Sampling as models write it: what a token is drawn from, and tokens, by our ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from opaq import extern_kernels
from opaq.lowering.substitute import apply
from opaq.lowering.substitute.pattern import patterns

extern_kernels.load_patterns()


def warped(*processors: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """As `generate` of transformers, with its own classes."""
    listed = pytest.importorskip("transformers").LogitsProcessorList(processors)

    def probabilities(logits: torch.Tensor) -> torch.Tensor:
        return F.softmax(listed(None, logits.to(copy=True, dtype=torch.float32)), dim=-1)

    return probabilities


def of_transformers(*names: str) -> Callable[[torch.Tensor], torch.Tensor]:
    transformers = pytest.importorskip("transformers")
    made = {
        "temperature": lambda: transformers.TemperatureLogitsWarper(0.7),
        "top_k": lambda: transformers.TopKLogitsWarper(10),
        "top_p": lambda: transformers.TopPLogitsWarper(0.9),
    }
    return warped(*(made[name]() for name in names))


def nano_gpt(logits: torch.Tensor) -> torch.Tensor:
    logits = logits / 0.8
    v, _ = torch.topk(logits, min(10, logits.size(-1)))
    logits[logits < v[:, [-1]]] = -float("Inf")
    return F.softmax(logits, dim=-1)


def gpt_fast(logits: torch.Tensor) -> torch.Tensor:
    logits = logits / max(0.8, 1e-5)
    v, _ = torch.topk(logits, min(10, logits.size(-1)))
    pivot = v.select(-1, -1).unsqueeze(-1)
    logits = torch.where(logits < pivot, -float("Inf"), logits)
    return torch.nn.functional.softmax(logits, dim=-1)


def sorted_in_place(logits: torch.Tensor, p: float = 0.9) -> torch.Tensor:
    probs = torch.softmax(logits / 0.6, dim=-1)
    probs_sort, probs_idx = torch.sort(probs, dim=-1, descending=True)
    probs_sum = torch.cumsum(probs_sort, dim=-1)
    probs_sort[probs_sum - probs_sort > p] = 0.0
    kept = torch.zeros_like(probs)
    kept.scatter_(-1, probs_idx, probs_sort)
    return kept / kept.sum(dim=-1, keepdim=True)


def llama(logits: torch.Tensor, p: float = 0.9) -> torch.Tensor:
    """As Llama's own code writes it."""
    probs = torch.softmax(logits / 0.6, dim=-1)
    probs_sort, probs_idx = torch.sort(probs, dim=-1, descending=True)
    probs_sum = torch.cumsum(probs_sort, dim=-1)
    mask = probs_sum - probs_sort > p
    probs_sort[mask] = 0.0
    probs_sort.div_(probs_sort.sum(dim=-1, keepdim=True))
    next_token = torch.multinomial(probs_sort, num_samples=1)
    return torch.gather(probs_idx, -1, next_token)


def found_in(function: Any, names: list[str], *arguments: Any, **options: Any) -> Any:
    torch.compiler.reset()
    compiled = torch.compile(function, backend="opaq", options={"substitute": names}, **options)
    with apply.collected() as found:
        results = compiled(*arguments)
    return results, found


FILTERS = {
    "transformers top-k": lambda: of_transformers("top_k"),
    "transformers temperature, top-k": lambda: of_transformers("temperature", "top_k"),
    "transformers top-p": lambda: of_transformers("top_p"),
    "transformers temperature, top-p": lambda: of_transformers("temperature", "top_p"),
    "transformers top-k, top-p": lambda: of_transformers("top_k", "top_p"),
    "transformers all": lambda: of_transformers("temperature", "top_k", "top_p"),
    "nanoGPT": lambda: nano_gpt,
    "gpt-fast": lambda: gpt_fast,
    "sorted in place": lambda: sorted_in_place,
}


@pytest.mark.parametrize("name", FILTERS)
def test_probabilities_that_models_compute(name: str) -> None:
    torch.manual_seed(0)
    function = FILTERS[name]()
    logits = torch.randn(5, 300) * 3
    logits[1, 4:200] = -torch.inf
    logits[2] = 0.0
    logits[2, 7] = 9.0
    expected = function(logits.clone())
    pattern = "top_p" if "top-p" in name or "sorted" in name or "all" in name else "top_k"
    result, found = found_in(function, ["top_k_probabilities", "top_p_probabilities"], logits)
    assert [(each.pattern, each.applied) for each in found if each.applied] == [
        (f"{pattern}_probabilities", True)
    ], found
    torch.testing.assert_close(result, expected)


def without_gradients(logits: torch.Tensor) -> torch.Tensor:
    scores = logits * 2
    with torch.no_grad():
        return sorted_in_place(scores)


def beside_a_transform(logits: torch.Tensor) -> torch.Tensor:
    """As models with masks by FlexAttention."""

    def doubled(row: torch.Tensor) -> torch.Tensor:
        made = row * 2
        made.add_(1)
        return made

    return sorted_in_place(logits + torch.vmap(doubled)(logits))


@pytest.mark.parametrize(
    "function", [without_gradients, torch.no_grad()(nano_gpt), beside_a_transform]
)
def test_other_parts_of_a_graph_may_change_modes(function: Callable[..., torch.Tensor]) -> None:
    logits = torch.randn(5, 300)
    expected = function(logits.clone())
    names = ["top_k_probabilities", "top_p_probabilities"]
    result, found = found_in(function, names, logits)
    assert [each.applied for each in found] == [True], found
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("classes", [4, 8, 64])
def test_probabilities_that_reach_top_p_exactly(p: float, classes: int) -> None:
    """Sums of equal powers of 2 are exact: `> top_p` keeps one class more than `<= 1 - top_p`."""
    transformers = pytest.importorskip("transformers")
    logits = torch.zeros(1, classes)

    def descending(logits: torch.Tensor) -> torch.Tensor:
        return sorted_in_place(logits, p)

    for function in (warped(transformers.TopPLogitsWarper(p)), descending):
        expected = function(logits.clone())
        result, found = found_in(function, ["top_p_probabilities"], logits)
        assert any(each.applied for each in found)
        assert (result > 0).sum() == (expected > 0).sum()
    assert (result > 0).sum() == p * classes + 1


def test_a_stable_order_is_kept() -> None:
    """Of equal classes a stable descending order keeps the first ones, which the op does not."""

    def stable(logits: torch.Tensor) -> torch.Tensor:
        probabilities = torch.softmax(logits, dim=-1)
        descending, index = torch.sort(probabilities, dim=-1, descending=True, stable=True)
        descending[torch.cumsum(descending, dim=-1) - descending > 0.5] = 0.0
        kept = torch.zeros_like(probabilities).scatter(-1, index, descending)
        return kept / kept.sum(dim=-1, keepdim=True)

    logits = torch.zeros(2, 8)
    result, found = found_in(stable, ["top_p_probabilities"], logits)
    assert not any(each.applied for each in found)
    torch.testing.assert_close(result, stable(logits))


def test_probabilities_that_need_a_gradient_are_left() -> None:
    logits = torch.randn(2, 50, requires_grad=True)
    _, found = found_in(gpt_fast, ["top_k_probabilities"], logits)
    assert [(each.applied, each.reason) for each in found] == [(False, "the op has no gradient")]


def test_logits_without_classes_are_left() -> None:
    """The op has no probabilities of no classes."""
    logits = torch.randn(2, 0)

    def likeliest(logits: torch.Tensor) -> torch.Tensor:
        descending, index = torch.sort(logits, dim=-1, descending=True)
        probabilities = torch.softmax(descending, -1)
        removed = probabilities.cumsum(-1) - probabilities > 0.5
        kept = descending.masked_fill(removed, -torch.inf)
        return torch.softmax(kept.scatter(-1, index, kept), -1)

    result, found = found_in(likeliest, ["top_p_probabilities"], logits)
    assert [each.reason for each in found] == ["the logits have no classes"]
    assert result.shape == logits.shape


def test_tokens_are_drawn_by_the_op_where_it_is_asked_for() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(1, 40) * 2).expand(20000, 40).contiguous()
    tokens, found = found_in(llama, ["sample"], logits)
    assert [each.applied for each in found] == [True], found
    assert tokens.shape == (20000, 1) and tokens.dtype == torch.int64
    expected = sorted_in_place(logits[:1])[0]
    counted = torch.bincount(tokens.flatten(), minlength=40)
    assert counted[expected == 0].sum() == 0
    # five standard deviations of a binomial number
    bound = 5 * (20000 * expected * (1 - expected)).sqrt() + 1
    assert ((counted - 20000 * expected).abs() <= bound).all()


@pytest.mark.parametrize("number", range(7))
def test_every_spelling_of_a_token_is_found(number: int) -> None:
    import inspect

    pattern = patterns["sample"]
    assert len(pattern.spellings) == 7
    function = pattern.spellings[number]
    names = inspect.signature(function).parameters
    arguments = [torch.randn(4, 8), *(pattern.examples[name] for name in names if name != "logits")]
    tokens, found = found_in(function, ["sample"], *arguments)
    assert [each.applied for each in found] == [True], found
    assert tokens.shape == (4, 1) and ((tokens >= 0) & (tokens < 8)).all()


@pytest.mark.parametrize("tune", ["off", "search"])
def test_other_random_numbers_are_drawn_only_where_it_is_asked_for(tune: str) -> None:
    torch.compiler.reset()
    options = {"tune": tune}
    with apply.collected() as found:
        torch.compile(llama, backend="opaq", options=options)(torch.randn(4, 40))
    reasons = {each.reason for each in found if each.pattern == "sample"}
    assert reasons == {"it would draw other random numbers: ask for it by name"}


def test_probabilities_are_replaced_under_the_same_random_numbers() -> None:
    torch.manual_seed(3)
    logits = torch.randn(64, 300)

    def drawn(logits: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(nano_gpt(logits), 1)

    torch.manual_seed(7)
    expected = drawn(logits)
    torch.manual_seed(7)
    result, found = found_in(drawn, ["top_k_probabilities"], logits)
    assert any(each.applied for each in found)
    # a probability that is rounded in another way may change a token
    assert (result == expected).float().mean() > 0.95


# ---- torch.multinomial ---------------------------------------------------------------------------

DRAWING = ["top_k_probabilities", "top_p_probabilities", "sample_multinomial", "multinomial"]


def same_tokens(function: Any, x: torch.Tensor, names: list[str] = DRAWING) -> list[str]:
    """The patterns that are replaced; the tokens, and the generator afterwards, are as before."""
    torch.manual_seed(7)
    expected, number = function(x.clone()), torch.rand(1)
    torch.manual_seed(7)
    result, found = found_in(function, names, x.clone())
    assert torch.equal(torch.rand(1), number)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    return [each.pattern for each in found if each.applied]


@pytest.mark.parametrize("name", FILTERS)
def test_tokens_of_filtered_logits_are_drawn_by_one_op(name: str) -> None:
    function = FILTERS[name]()
    torch.manual_seed(0)
    applied = same_tokens(lambda x: torch.multinomial(function(x), 1), torch.randn(64, 300) * 2)
    assert applied[1:] == ["sample_multinomial"]


def both(logits: torch.Tensor) -> torch.Tensor:
    found = gpt_fast(logits)
    return torch.multinomial(found, 1) + found


def written_before_the_draw(logits: torch.Tensor) -> torch.Tensor:
    scores = logits * 1
    found = gpt_fast(scores)
    scores.zero_()
    return torch.multinomial(found, 1) + scores


def two_draws(logits: torch.Tensor) -> torch.Tensor:
    found = gpt_fast(logits)
    return torch.multinomial(found, 1) + torch.multinomial(found, 1)


DRAWS: dict[str, tuple[Any, list[str]]] = {
    "softmax": (lambda x: torch.multinomial(x.softmax(-1), 1), ["multinomial"]),
    "one row": (lambda x: torch.multinomial(x[0].softmax(-1), 1), ["multinomial"]),
    "replacement": (lambda x: x.softmax(-1).multinomial(1, True), ["multinomial"]),
    "16 bits": (lambda x: torch.multinomial(x.softmax(-1).half(), 1), ["multinomial"]),
    "64 bits": (lambda x: torch.multinomial(x.softmax(-1).double(), 1), ["multinomial"]),
    "16 bits, filtered": (
        lambda x: torch.multinomial(gpt_fast(x).bfloat16(), 1),
        ["top_k_probabilities", "multinomial"],
    ),
    "64 bits, filtered": (
        lambda x: torch.multinomial(gpt_fast(x).double(), 1),
        ["top_k_probabilities", "multinomial"],
    ),
    "probabilities are read": (both, ["top_k_probabilities", "multinomial"]),
    "two draws": (two_draws, ["top_k_probabilities", "multinomial", "multinomial"]),
    "two numbers": (lambda x: torch.multinomial(x.softmax(-1), 2), []),
    "columns": (lambda x: torch.multinomial(x.softmax(0).t(), 1), []),
    "rows of a transposed tensor": (
        lambda x: torch.multinomial(x.t().softmax(-1), 1),
        ["multinomial"],
    ),
    "exponentials of a transposed tensor": (lambda x: torch.multinomial(x.t().exp(), 1), []),
    "filtered rows of a transposed tensor": (
        lambda x: torch.multinomial(gpt_fast(x.t()), 1),
        ["top_k_probabilities", "sample_multinomial"],
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_with_the_same_numbers(name: str) -> None:
    function, expected = DRAWS[name]
    torch.manual_seed(0)
    assert same_tokens(function, torch.randn(64, 300) * 2) == expected


def test_a_write_between_the_probabilities_and_the_draw_stays() -> None:
    torch.manual_seed(0)
    assert "sample_multinomial" not in same_tokens(written_before_the_draw, torch.randn(64, 300))


def test_a_generator_of_its_own_is_left() -> None:
    generator = torch.Generator().manual_seed(4)

    def drawn(probabilities: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(probabilities, 1, generator=generator)

    expected = drawn(torch.ones(50, 20))
    generator.manual_seed(4)
    result, found = found_in(drawn, DRAWING, torch.ones(50, 20))
    assert torch.equal(result, expected) and not any(each.applied for each in found)


def test_what_is_no_probability_is_an_error_as_before() -> None:
    compiled = torch.compile(
        lambda p: torch.multinomial(p, 1), backend="opaq", options={"substitute": ["multinomial"]}
    )
    with pytest.raises(RuntimeError, match="inf"):
        compiled(torch.tensor([[1.0, torch.nan]]))
