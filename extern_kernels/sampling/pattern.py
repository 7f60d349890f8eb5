"""Top-k, top-p and min-p sampling in unmodified models: the probabilities that a token is drawn
from, or the token.

Of classes with equal logits at the border of top-p, the op keeps the last ones; a sort that is not
asked to be stable leaves that open. Where the probabilities are replaced, what draws is left as it
is, with the numbers that PyTorch's generator gives it. A token that the op draws has the same
probability as before, but is not that of the same seed: this pattern is used where it is asked for
by name. torch.multinomial itself is replaced by ops that draw the same tokens from the same numbers
of the generator, and so is the draw that models write themselves, of exponential random numbers: it
has the same tokens, but does not check the probabilities. (Inductor draws other such numbers than
eager PyTorch; the ops draw those of eager PyTorch.)
"""

import inspect
from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import example_of, rows_and_columns

from .multinomial import multinomial
from .sample import sample, sample_multinomial, sampling_probabilities

EXAMPLES = {
    "logits": torch.empty(2, 8, device="meta"),
    "temperature": 2.0,
    "top_k": 3,
    "top_p": 0.75,
    "rest": 0.25,
    "min_p": 0.25,
    "probabilities": torch.empty(2, 8, device="meta"),
    "keepdim": True,
    "keeps_one": True,
}
# A set of classes whose probability is top_p exactly is enough for `1 - top_p`, but not where sums
# are compared with `> top_p`: there it must be passed. The op's sums have 40 bits.
_PASSED = 2.0**-38


def refusal(arguments, any_dims: bool = False) -> str:
    """any_dims: leading dimensions are rows, too, and there may be none."""
    logits = arguments["logits"]
    if logits.requires_grad:
        return "the op has no gradient"
    if any_dims and logits.dim() == 0:
        return "the logits have no dimensions; expected [..., classes]"
    if not any_dims and logits.dim() != 2:
        return f"the logits have {logits.dim()} dimension(s); expected two, [rows, classes]"
    if isinstance(logits.shape[-1], int) and logits.shape[-1] == 0:
        return "the logits have no classes"
    if logits.dtype == torch.float64 and logits.device.type != "cpu":
        return "the logits are float64"
    temperature = arguments["temperature"]
    if isinstance(temperature, (int, float)) and not 0 <= temperature <= 3.4e38:
        return f"temperature is {temperature}"
    return ""


def declared(name: str, replacement, measurements: str | None, **more):
    parameters = list(inspect.signature(replacement).parameters)
    return opaq.pattern(
        name,
        replacement,
        {each: EXAMPLES[each] for each in parameters},
        sizes=lambda arguments: rows_and_columns(arguments[parameters[0]]),
        measurements=measurements and Path(__file__).with_name(measurements),
        alone=True,
        **more,
    )


_OF_LOGITS = {"when": refusal, "nonzero": ("temperature",)}
_OF_ROWS = {**_OF_LOGITS, "when": lambda arguments: refusal(arguments, any_dims=True)}


def _between_0_and_1(number):
    return torch.sym_max(0.0, torch.sym_min(1.0, number))


def _probabilities(logits, *numbers):
    """Of rows, of one, and of those of several positions."""
    dims = example_of(logits).dim()
    if dims == 1:  # gpt-fast, LitGPT
        return sampling_probabilities(logits.unsqueeze(0), *numbers).squeeze(0)
    if dims > 2:
        return sampling_probabilities(logits.flatten(0, -2), *numbers).view_as(logits)
    return sampling_probabilities(logits, *numbers)


# ---- min-p, which is the last filter: before the patterns that are parts of it -------------------


def _of_min_p(logits, temperature=1.0, top_k=0, rest=None, min_p=0.0, keeps_one=True):
    top_p = 1.0 if rest is None else _kept(None, rest)
    return _probabilities(logits, temperature, top_k, top_p, _between_0_and_1(min_p))


def _when_min_p(arguments) -> str:
    if not arguments["keeps_one"] and arguments["min_p"] > 1:
        return "not even the likeliest class is left"
    return refusal(arguments, any_dims=True)


min_p_pattern = declared(
    "min_p_probabilities",
    _of_min_p,
    "measured_min_p.json",
    when=_when_min_p,
    nonzero=("temperature",),
)


def _near_the_largest(logits, min_p):  # transformers
    probabilities = torch.softmax(logits, dim=-1)
    removed = probabilities < min_p * probabilities.amax(dim=-1, keepdim=True)
    removed = removed.scatter(-1, torch.topk(probabilities, 1, dim=-1)[1], False)
    return logits.masked_fill(removed, -float("inf"))


def _near_in_order(logits, min_p):  # transformers, before version 5
    probabilities = torch.softmax(logits, dim=-1)
    removed = probabilities < min_p * torch.max(probabilities, dim=-1, keepdim=True)[0]
    order = torch.argsort(logits, descending=True, dim=-1)
    in_order = torch.gather(removed, dim=-1, index=order)
    first = torch.full_like(in_order[..., :1], False)
    in_order = torch.slice_scatter(in_order, first, -1, None, 1)
    removed = in_order.scatter(1, order, in_order)
    return logits.masked_fill(removed, -float("inf"))


def _near(logits, min_p):
    """Without a class that is kept anyway."""
    probabilities = torch.softmax(logits, dim=-1)
    removed = probabilities < min_p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(removed, -float("inf"))


def _spell_min_p(near, **fixed):
    """Alone, and after the other filters."""

    @min_p_pattern.spelling(**fixed)
    def _(logits, temperature, top_k, rest, min_p):
        likeliest = _likeliest(_largest(logits / temperature, top_k), rest)
        return F.softmax(near(likeliest, min_p), dim=-1)

    @min_p_pattern.spelling(**fixed)
    def _(logits, temperature, top_k, min_p):
        return F.softmax(near(_largest(logits / temperature, top_k), min_p), dim=-1)

    @min_p_pattern.spelling(**fixed)
    def _(logits, temperature, rest, min_p):
        return F.softmax(near(_likeliest(logits / temperature, rest), min_p), dim=-1)

    @min_p_pattern.spelling(**fixed)
    def _(logits, temperature, min_p):
        return F.softmax(near(logits / temperature, min_p), dim=-1)

    @min_p_pattern.spelling(**fixed)
    def _(logits, top_k, rest, min_p):
        return F.softmax(near(_likeliest(_largest(logits, top_k), rest), min_p), dim=-1)

    @min_p_pattern.spelling(**fixed)
    def _(logits, top_k, min_p):
        return F.softmax(near(_largest(logits, top_k), min_p), dim=-1)

    @min_p_pattern.spelling(**fixed)
    def _(logits, rest, min_p):
        return F.softmax(near(_likeliest(logits, rest), min_p), dim=-1)

    @min_p_pattern.spelling(**fixed)
    def _(logits, min_p):
        return F.softmax(near(logits, min_p), dim=-1)


_spell_min_p(_near_the_largest)
_spell_min_p(_near_in_order)
_spell_min_p(_near, keeps_one=False)


def _near_of(probabilities, min_p):
    least = min_p * probabilities.amax(dim=-1, keepdim=True)
    kept = probabilities.masked_fill(probabilities < least, 0.0)
    return kept / kept.sum(-1, keepdim=True)


@min_p_pattern.spelling(keeps_one=False)
def _(logits, temperature, min_p):
    return _near_of(F.softmax(logits / temperature, dim=-1), min_p)


@min_p_pattern.spelling(keeps_one=False)
def _(logits, min_p):
    return _near_of(F.softmax(logits, dim=-1), min_p)


# ---- top-k ---------------------------------------------------------------------------------------


def _of_top_k(logits, temperature=1.0, top_k=0):
    return _probabilities(logits, temperature, top_k)


top_k_pattern = declared("top_k_probabilities", _of_top_k, "measured_top_k.json", **_OF_ROWS)


def _largest(logits, top_k):  # transformers, nanoGPT
    least = torch.topk(logits, top_k, dim=-1)[0][..., -1, None]
    return logits.masked_fill(logits < least, -float("inf"))


def _largest_selected(logits, top_k):  # gpt-fast
    least = torch.topk(logits, top_k)[0].select(-1, -1).unsqueeze(-1)
    return torch.where(logits < least, -float("inf"), logits)


def _largest_kept(logits, top_k):
    least = torch.topk(logits, top_k, dim=-1)[0][..., -1, None]
    return torch.where(logits >= least, logits, -float("inf"))


def _spell_top_k(largest):
    @top_k_pattern.spelling
    def _(logits, temperature, top_k):
        return F.softmax(largest(logits / temperature, top_k), dim=-1)

    @top_k_pattern.spelling
    def _(logits, top_k):
        return F.softmax(largest(logits, top_k), dim=-1)


for _each in (_largest, _largest_selected, _largest_kept):
    _spell_top_k(_each)


# ---- top-p ---------------------------------------------------------------------------------------


def _kept(top_p, rest):
    return _between_0_and_1(top_p + _PASSED if rest is None else 1 - rest)


def _of_top_p(logits, temperature=1.0, top_k=0, top_p=None, rest=None):
    return _probabilities(logits, temperature, top_k, _kept(top_p, rest))


top_p_pattern = declared("top_p_probabilities", _of_top_p, "measured_top_p.json", **_OF_ROWS)


def unlikely(ascending, rest):
    """What top-p removes of ascending logits; the last one stays."""
    removed = F.softmax(ascending, dim=-1).cumsum(dim=-1) <= rest
    return torch.slice_scatter(removed, torch.full_like(removed[..., -1:], False), -1, -1)


def _likeliest(logits, rest):  # transformers
    ascending, index = torch.sort(logits, dim=-1)
    removed = unlikely(ascending, rest)
    removed = removed.scatter(1, index, removed)
    return logits.masked_fill(removed, -float("inf"))


@top_p_pattern.spelling
def _(logits, temperature, top_k, rest):
    return F.softmax(_likeliest(_largest(logits / temperature, top_k), rest), dim=-1)


@top_p_pattern.spelling
def _(logits, top_k, rest):
    return F.softmax(_likeliest(_largest(logits, top_k), rest), dim=-1)


@top_p_pattern.spelling
def _(logits, temperature, rest):
    return F.softmax(_likeliest(logits / temperature, rest), dim=-1)


@top_p_pattern.spelling
def _(logits, rest):
    return F.softmax(_likeliest(logits, rest), dim=-1)


def _likeliest_shifted(logits, top_p):  # the first one that was widely copied, of 2019
    descending, index = torch.sort(logits, dim=-1, descending=True)
    passed = F.softmax(descending, dim=-1).cumsum(dim=-1) > top_p
    removed = torch.slice_scatter(passed, passed[..., :-1].clone(), -1, 1, None)
    first = torch.full_like(removed[..., :1], False)
    removed = torch.slice_scatter(removed, first, -1, 0, 1)
    return logits.masked_fill(removed.scatter(-1, index, removed), -float("inf"))


def _likeliest_put_back(logits, top_p):
    descending, index = torch.sort(logits, dim=-1, descending=True)
    probabilities = F.softmax(descending, dim=-1)
    removed = torch.cumsum(probabilities, dim=-1) - probabilities > top_p
    descending = descending.masked_fill(removed, -float("inf"))
    return descending.scatter(-1, index, descending)


def _spell_top_p(likeliest):
    @top_p_pattern.spelling
    def _(logits, temperature, top_k, top_p):
        return F.softmax(likeliest(_largest(logits / temperature, top_k), top_p), dim=-1)

    @top_p_pattern.spelling
    def _(logits, top_k, top_p):
        return F.softmax(likeliest(_largest(logits, top_k), top_p), dim=-1)

    @top_p_pattern.spelling
    def _(logits, temperature, top_p):
        return F.softmax(likeliest(logits / temperature, top_p), dim=-1)

    @top_p_pattern.spelling
    def _(logits, top_p):
        return F.softmax(likeliest(logits, top_p), dim=-1)


_spell_top_p(_likeliest_shifted)
_spell_top_p(_likeliest_put_back)


def _in_order(probabilities, top_p):
    descending, index = torch.sort(probabilities, dim=-1, descending=True)
    removed = torch.cumsum(descending, dim=-1) - descending > top_p
    return descending.masked_fill(removed, 0.0), index


def _likeliest_of(probabilities, top_p):
    descending, index = _in_order(probabilities, top_p)
    kept = torch.zeros_like(probabilities).scatter(-1, index, descending)
    return kept / kept.sum(-1, keepdim=True)


@top_p_pattern.spelling
def _(logits, temperature, top_p):
    return _likeliest_of(F.softmax(logits / temperature, dim=-1), top_p)


@top_p_pattern.spelling
def _(logits, top_p):
    return _likeliest_of(F.softmax(logits, dim=-1), top_p)


# ---- tokens --------------------------------------------------------------------------------------


def _drawn(logits, temperature=1.0, top_k=0, top_p=None, rest=None):
    return sample(logits, temperature, top_k, _kept(top_p, rest)).unsqueeze(-1)


sample_pattern = declared(
    "sample", _drawn, None, by_name="it would draw other random numbers", **_OF_LOGITS
)


def _drawn_in_order(descending, index):
    return torch.gather(index, -1, torch.multinomial(descending, 1))


def _drawn_normalized(descending, index):  # Llama's own code
    return _drawn_in_order(descending / descending.sum(-1, keepdim=True), index)


@sample_pattern.spelling
def _(logits, temperature, top_p):
    return _drawn_normalized(*_in_order(F.softmax(logits / temperature, dim=-1), top_p))


@sample_pattern.spelling
def _(logits, top_p):
    return _drawn_normalized(*_in_order(F.softmax(logits, dim=-1), top_p))


@sample_pattern.spelling
def _(logits, temperature, top_p):
    return _drawn_in_order(*_in_order(F.softmax(logits / temperature, dim=-1), top_p))


@sample_pattern.spelling
def _(logits, top_p):
    return _drawn_in_order(*_in_order(F.softmax(logits, dim=-1), top_p))


@sample_pattern.spelling
def _(logits, temperature, top_k, rest):
    return torch.multinomial(
        F.softmax(_likeliest(_largest(logits / temperature, top_k), rest), dim=-1), 1
    )


@sample_pattern.spelling
def _(logits, temperature, rest):
    return torch.multinomial(F.softmax(_likeliest(logits / temperature, rest), dim=-1), 1)


@sample_pattern.spelling
def _(logits, rest):
    return torch.multinomial(F.softmax(_likeliest(logits, rest), dim=-1), 1)


# ---- torch.multinomial, with its own random numbers ----------------------------------------------


def _drawn_from(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    return sample_multinomial(logits, temperature, top_k, top_p, min_p).unsqueeze(-1)


# After the patterns above have put the op there.
sample_multinomial_pattern = declared(
    "sample_multinomial", _drawn_from, "measured_sample_multinomial.json", casts_matter=True
)


@sample_multinomial_pattern.spelling
def _(logits, temperature, top_k, top_p, min_p):
    found = sampling_probabilities(logits, temperature, top_k, top_p, min_p)
    return torch.multinomial(found, 1)


@sample_multinomial_pattern.spelling
def _(logits, temperature, top_k, top_p):
    return torch.multinomial(sampling_probabilities(logits, temperature, top_k, top_p), 1)


@sample_multinomial_pattern.spelling
def _(logits, temperature, top_k):
    return torch.multinomial(sampling_probabilities(logits, temperature, top_k), 1)


def _when_drawn(arguments) -> str:
    probabilities = arguments["probabilities"]
    if probabilities.dim() not in (1, 2):
        return "the probabilities have not one or two dimensions"
    if not probabilities.is_contiguous():
        return "PyTorch's random numbers go by the order of memory, which is not that of rows"
    if probabilities.dtype == torch.float64 and probabilities.device.type != "cpu":
        return "the probabilities are float64"
    return ""


_OF_PROBABILITIES = {"when": _when_drawn, "positive": ("probabilities",), "casts_matter": True}

multinomial_pattern = declared(
    "multinomial",
    lambda probabilities: multinomial(probabilities),
    "measured_multinomial.json",
    **_OF_PROBABILITIES,
)


@multinomial_pattern.spelling
def _(probabilities):
    return torch.multinomial(probabilities, 1)


@multinomial_pattern.spelling
def _(probabilities):  # the same for one class
    return torch.multinomial(probabilities, 1, replacement=True)


# ---- the same draw as models write it ------------------------------------------------------------


def _raced_of(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, keepdim=True):
    tokens = sample_multinomial(logits, temperature, top_k, top_p, min_p, check=False)
    return tokens.unsqueeze(-1) if keepdim else tokens


sample_race_pattern = declared(
    "sample_exponential_race",
    _raced_of,
    "measured_sample_exponential_race.json",
    casts_matter=True,
)


def _race(probabilities, keepdim):  # gpt-fast, vLLM
    numbers = torch.ops.aten.exponential(torch.empty_like(probabilities))
    return torch.argmax(probabilities / numbers, dim=-1, keepdim=keepdim)


@sample_race_pattern.spelling
def _(logits, temperature, top_k, top_p, min_p, keepdim):
    return _race(sampling_probabilities(logits, temperature, top_k, top_p, min_p), keepdim)


@sample_race_pattern.spelling
def _(logits, temperature, top_k, top_p, keepdim):
    return _race(sampling_probabilities(logits, temperature, top_k, top_p), keepdim)


@sample_race_pattern.spelling
def _(logits, temperature, top_k, keepdim):
    return _race(sampling_probabilities(logits, temperature, top_k), keepdim)


def _raced(probabilities, keepdim=True):
    classes = multinomial(probabilities, check=False)
    return classes if keepdim else classes.squeeze(-1)


race_pattern = declared(
    "exponential_race", _raced, "measured_exponential_race.json", **_OF_PROBABILITIES
)


@race_pattern.spelling
def _(probabilities, keepdim):
    return _race(probabilities, keepdim)
