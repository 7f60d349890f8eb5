"""Penalties for tokens that were there before in unmodified models: the repetition penalty of
transformers, and presence and frequency penalties as vLLM counts tokens for them.

Behind the filters, which take what is penalized: an op reads it then, and no kernel of Inductor,
which could penalize on its way.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from .penalize_tokens import penalize_tokens

_EXAMPLES = {
    "logits": torch.empty(2, 8, device="meta"),
    "tokens": torch.empty(2, 3, dtype=torch.int64, device="meta"),
    "prompt": torch.empty(2, 3, dtype=torch.int64, device="meta"),
    "repetition": 1.25,
    "presence": 0.25,
    "frequency": 0.75,
    "row_repetition": torch.empty(2, device="meta"),
    "row_presence": torch.empty(2, device="meta"),
    "row_frequency": torch.empty(2, device="meta"),
    "classes": 8,
    "paddings": 1,
}
_CLASSES = 8
_ALL = (1 << 62) - 1  # paddings: whatever is no class, but for negative numbers


def _when(arguments) -> str:
    logits = arguments["logits"]
    if any(isinstance(each, torch.Tensor) and each.requires_grad for each in arguments.values()):
        return "the op has no gradient"
    if logits.dim() != 2:
        return f"the logits have {logits.dim()} dimensions; the op takes [rows, classes]"
    if logits.dtype == torch.float64 and logits.device.type != "cpu":
        return "the logits are float64"
    if arguments["classes"] not in (None, logits.shape[1]):
        return "the tokens are not counted up to the number of classes"
    for name in ("tokens", "prompt"):
        given = arguments[name]
        if given is None:
            continue
        if given.dim() != 2 or given.shape[0] != logits.shape[0]:
            return f"{name} has not a row for each row of logits"
        if given.dtype != torch.int64 or given.device != logits.device:
            return f"{name} is {given.dtype} on {given.device}; expected int64 beside the logits"
    for name in ("row_repetition", "row_presence", "row_frequency"):
        given = arguments.get(name)
        if given is not None and (given.dim() != 1 or given.shape[0] != logits.shape[0]):
            return f"{name} has not a number for each row"
    repetition = arguments["repetition"]
    if isinstance(repetition, (int, float)) and not 0 < repetition < math.inf:
        return f"repetition is {repetition}"
    return ""


def _penalized(
    logits,
    tokens=None,
    prompt=None,
    repetition=1.0,
    presence=0.0,
    frequency=0.0,
    row_repetition=None,
    row_presence=None,
    row_frequency=None,
    classes=None,
    paddings=0,
    result_dtype="",
):
    rows = (row_repetition, row_presence, row_frequency)
    rows = (each if each is None else each.to(torch.float32).contiguous() for each in rows)
    wide = result_dtype == "float32"
    numbers = (repetition, presence, frequency)
    return penalize_tokens(logits, tokens, prompt, *numbers, *rows, paddings, wide, True)


def _declared(name: str, **more):
    return opaq.pattern(
        name,
        _penalized,
        _EXAMPLES,
        when=_when,
        sizes=lambda arguments: rows_and_columns(arguments["logits"]),
        measurements=Path(__file__).with_name(f"measured_{name}.json"),
        **more,
    )


# ---- the repetition penalty ----------------------------------------------------------------------

repetition_pattern = _declared("repetition_penalty", streamed=("logits",))


def _repeated(logits, repetition):
    return torch.where(logits < 0, logits * repetition, logits / repetition)


def _repeated_if_positive(logits, repetition):
    return torch.where(logits > 0, logits / repetition, logits * repetition)


def _scaled(logits, repetition):  # vLLM
    return logits * torch.where(logits > 0, 1.0 / repetition, repetition)


def _spell_repetition(repeated):
    @repetition_pattern.spelling(paddings=_ALL)  # transformers
    def _(logits, prompt, repetition, classes):
        logits, index = F.pad(logits, (0, 1)), prompt.clamp(max=classes)
        penalized = repeated(torch.gather(logits, 1, index), repetition)
        return logits.scatter(1, index, penalized)[:, :-1]

    @repetition_pattern.spelling  # before version 5
    def _(logits, prompt, repetition):
        penalized = repeated(torch.gather(logits, 1, prompt), repetition)
        return logits.scatter(1, prompt, penalized)

    for seen, fixed in _MASKS:
        _spell_by_mask(repeated, seen, fixed)


def _spell_by_mask(repeated, seen, fixed):
    @repetition_pattern.spelling(**fixed)
    def _(logits, prompt, repetition):
        return torch.where(seen(prompt), repeated(logits, repetition), logits)


# ---- counts of tokens ----------------------------------------------------------------------------


def _counts(tokens):
    counts = torch.zeros(2, _CLASSES, dtype=torch.int64, device=tokens.device)
    return counts.scatter_add(1, tokens, torch.ones_like(tokens))


def _counts_beside_paddings(tokens):  # vLLM
    counts = torch.zeros(2, _CLASSES + 1, dtype=torch.int64, device=tokens.device)
    return counts.scatter_add(1, tokens, torch.ones_like(tokens))[:, :-1]


def _marks(tokens):
    marks = torch.zeros(2, _CLASSES, dtype=torch.bool, device=tokens.device)
    return marks.scatter(1, tokens, True)


def _marks_beside_paddings(tokens):
    marks = torch.zeros(2, _CLASSES + 1, dtype=torch.bool, device=tokens.device)
    return marks.scatter(1, tokens, True)[:, :-1]


_COUNTS = ((_counts, {}), (_counts_beside_paddings, {"paddings": 1}))
_MASKS = (
    *((lambda tokens, counts=counts: counts(tokens) > 0, fixed) for counts, fixed in _COUNTS),
    (_marks, {}),
    (_marks_beside_paddings, {"paddings": 1}),
)
for _each in (_repeated, _repeated_if_positive):
    _spell_repetition(_each)


# ---- presence and frequency, perhaps behind a repetition penalty ---------------------------------

# Zeros, sums and a mask of all classes take longer than what Inductor could compute on its way.
penalties_pattern = _declared("token_penalties", alone=True)


def _lessened(logits, counts, presence, frequency):
    return logits - frequency * counts - presence * (counts > 0)


def _lessened_at_once(logits, counts, presence, frequency):
    return logits - (frequency * counts + presence * (counts > 0))


def _spell_penalties(counts, fixed):
    both = (_lessened, _lessened_at_once)
    for lessened in both:  # first, since the others are parts of it
        for repeated in (_scaled, _repeated, _repeated_if_positive):
            _spell_all(counts, repeated, lessened, fixed)
    for lessened in both:
        _spell_both(counts, lessened, fixed)

    @penalties_pattern.spelling(**fixed)
    def _(logits, tokens, frequency):
        return logits - frequency * counts(tokens)

    @penalties_pattern.spelling(**fixed)
    def _(logits, tokens, presence):
        return logits - presence * (counts(tokens) > 0)

    @penalties_pattern.spelling(**fixed)
    def _(logits, tokens, row_frequency):
        return logits - row_frequency.unsqueeze(1) * counts(tokens)

    @penalties_pattern.spelling(**fixed)
    def _(logits, tokens, row_presence):
        return logits - row_presence.unsqueeze(1) * (counts(tokens) > 0)


def _spell_both(counts, lessened, fixed):
    @penalties_pattern.spelling(**fixed)
    def _(logits, tokens, presence, frequency):
        return lessened(logits, counts(tokens), presence, frequency)

    @penalties_pattern.spelling(**fixed)
    def _(logits, tokens, row_presence, row_frequency):
        both = (row_presence.unsqueeze(1), row_frequency.unsqueeze(1))
        return lessened(logits, counts(tokens), *both)


def _spell_all(counts, repeated, lessened, fixed):
    """With a repetition penalty for tokens of the prompt, too, and for generated tokens alone."""

    def penalized(logits, tokens, seen, factors, presence, frequency):
        logits = repeated(logits, torch.where(seen, factors, 1.0))
        return lessened(logits, counts(tokens), presence, frequency)

    @penalties_pattern.spelling(**fixed)
    def _(logits, tokens, repetition, presence, frequency):
        seen = counts(tokens) > 0
        logits = torch.where(seen, repeated(logits, repetition), logits)
        return lessened(logits, counts(tokens), presence, frequency)

    # A logit of 0 is multiplied by the op, which makes nan of it where the number of its row is
    # infinite.
    if repeated is _repeated:
        return

    @penalties_pattern.spelling(**fixed)  # vLLM
    def _(logits, tokens, prompt, row_repetition, row_presence, row_frequency, classes):
        seen = (counts(prompt) > 0) | (counts(tokens) > 0)
        factors = row_repetition.unsqueeze(1).repeat(1, classes)
        both = (row_presence.unsqueeze(1), row_frequency.unsqueeze(1))
        return penalized(logits, tokens, seen, factors, *both)

    @penalties_pattern.spelling(**fixed)
    def _(logits, tokens, prompt, row_repetition, row_presence, row_frequency):
        seen = (counts(prompt) > 0) | (counts(tokens) > 0)
        both = (row_presence.unsqueeze(1), row_frequency.unsqueeze(1))
        return penalized(logits, tokens, seen, row_repetition.unsqueeze(1), *both)

    @penalties_pattern.spelling(**fixed)
    def _(logits, tokens, row_repetition, row_presence, row_frequency):
        both = (row_presence.unsqueeze(1), row_frequency.unsqueeze(1))
        seen = counts(tokens) > 0
        return penalized(logits, tokens, seen, row_repetition.unsqueeze(1), *both)


for _counting, _fixed in reversed(_COUNTS):
    _spell_penalties(_counting, _fixed)
