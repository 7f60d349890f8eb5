"""Cross-entropy with class indices in unmodified models, with label smoothing and with the softcap
of Gemma 2, and the logarithms of the probabilities of given tokens.

In logits of more than two dimensions the classes are the second one, as F.cross_entropy has it.
"""

import functools
import math
from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import example_of, rows_and_columns

from ..softmax_spellings import log_softmax_by_hand, log_softmax_by_sum
from .capped import cross_entropy_and_capped
from .cross_entropy import cross_entropy
from .kept import cross_entropy_mean_kept
from .linear_pattern import loss_of  # its pattern comes first: ours finds parts of its places

_EXAMPLES = {
    "logits": torch.empty(2, 8, device="meta"),
    "target": torch.empty(2, dtype=torch.int64, device="meta"),
    "ignore_index": -100,
    "reduction": "mean",
    "label_smoothing": 0.1,
    "confidence": 0.9,
    "low": 0.0125,
    "high": 0.9125,
    "softcap": 30.0,
    "classes": 8,
    "negated": False,
    "index": torch.empty(2, 1, dtype=torch.int64, device="meta"),
}
NO_CLASS = -(1 << 62)  # to be ignored: no index is this one


def _when(arguments) -> str:
    logits, target = arguments["logits"], arguments["target"]
    if logits.dim() < 2 or target.dim() != logits.dim() - 1:
        return "there is not one target for each row of classes"
    if logits.dim() > 2 and not logits.movedim(1, -1).is_contiguous():
        return "the classes of a row are not next to each other in memory"
    if target.dtype != torch.int64:
        return "the target does not hold class indices of 64 bits"
    if not 0 <= (arguments.get("label_smoothing") or 0) <= 1:
        return "label_smoothing is not from 0 to 1"
    return ""


def _in_rows(logits, target):
    """Logits and target of two dimensions and one."""
    if example_of(logits).dim() == 2:
        return logits, target
    return logits.movedim(1, -1).flatten(0, -2), target.flatten()


def _reduced(loss, target, ignore_index, reduction):
    if reduction == "none":
        return loss if example_of(target).dim() == 1 else loss.view_as(target)
    return loss.sum() / (target != ignore_index).sum() if reduction == "mean" else loss.sum()


def _is_kept(keeps_logits, reduction, logits) -> bool:
    """Whether the gradient is computed with the loss. Of fewer classes it is slower."""
    return bool(keeps_logits) and reduction == "mean" and logits.shape[1] >= 4096


def _reduced_loss(logits, target, ignore_index, reduction, label_smoothing=0.0, keeps_logits=""):
    """Where the logits are kept anyway, the gradient of a mean is computed with it; where they come
    from another graph, that expects a gradient without gaps."""
    rows = _in_rows(logits, target)
    if _is_kept(keeps_logits, reduction, example_of(logits)):
        aligned_rows = keeps_logits == "returned"
        return cross_entropy_mean_kept(*rows, aligned_rows, ignore_index, label_smoothing)[0]
    loss, _ = cross_entropy(*rows, ignore_index, label_smoothing)
    return _reduced(loss, target, ignore_index, reduction)


def _targets_and_classes(arguments):
    return arguments["target"].numel(), arguments["logits"].shape[1]


def _form(arguments) -> str:
    """That of a mean whose gradient is computed with it."""
    given = (arguments.get(name) for name in ("keeps_logits", "reduction", "logits"))
    return "the logits are kept" if _is_kept(*given) else ""


def _declare(name, replacement, measured, sizes=None, when=_when, nonzero=()):
    return opaq.pattern(
        name,
        replacement,
        _EXAMPLES,
        when=when,
        streamed=("logits",),
        nonzero=nonzero,
        sizes=sizes or _targets_and_classes,
        form=_form,
        measurements=Path(__file__).with_name(measured),
    )


# ---- softcap; first, so that it is not left to Inductor where the loss alone is taken ------------


def _rows_and_classes(arguments):
    logits = arguments["logits"]
    return logits.numel() // logits.shape[-1], logits.shape[-1]


def _when_capped(arguments) -> str:
    logits, classes = arguments["logits"], arguments["classes"]
    if not 0 < arguments["softcap"] < math.inf:
        return "the softcap is not a number above 0"
    if classes is None:
        return _when(arguments)
    if logits.dim() == 0 or logits.shape[-1] != classes:
        return "a row of the loss is not the last dimension of the logits"
    return _when({**arguments, "logits": logits.reshape(-1, classes)})


def _in_rows_of(logits, target, classes):
    """classes: the logits are seen as [-1, classes]."""
    return _in_rows(logits, target) if classes is None else (logits.reshape(-1, classes), target)


def _capped(
    logits, target, softcap, classes=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    rows = _in_rows_of(logits, target, classes)
    loss, _ = cross_entropy(*rows, ignore_index, label_smoothing, 0.0, softcap)
    return _reduced(loss, target, ignore_index, reduction)


def _capped_with_logits(
    logits, target, softcap, classes=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    rows = _in_rows_of(logits, target, classes)
    loss, _, capped = cross_entropy_and_capped(*rows, softcap, ignore_index, label_smoothing)
    if classes is None and example_of(logits).dim() > 2:
        capped = capped.view_as(logits.movedim(1, -1)).movedim(-1, 1)
    else:
        capped = capped.view_as(logits)
    return _reduced(loss, target, ignore_index, reduction), capped


def _cap(logits, softcap):
    return torch.tanh(logits / softcap) * softcap


def _declare_capped(name, replacement, measured):
    return _declare(name, replacement, measured, _rows_and_classes, _when_capped, ("softcap",))


softcap_pattern = _declare_capped("cross_entropy_softcap", _capped, "measured_softcap.json")
capped_logits_pattern = _declare_capped(
    "cross_entropy_softcap_and_logits", _capped_with_logits, "measured_softcap_and_logits.json"
)


def _seen_as_rows(logits, target, softcap, classes, ignore_index, reduction, label_smoothing):
    """transformers: Gemma 2"""
    capped = _cap(logits, softcap)
    rows = capped.view(-1, classes)
    return loss_of(rows, target, ignore_index, reduction, label_smoothing), capped


def _as_given(logits, target, softcap, ignore_index, reduction, label_smoothing):
    capped = _cap(logits, softcap)
    return loss_of(capped, target, ignore_index, reduction, label_smoothing), capped


def _loss_alone(spelling):
    """The spelling without its second result."""

    @functools.wraps(spelling)
    def alone(*arguments):
        return spelling(*arguments)[0]

    return alone


for _spelling in (_seen_as_rows, _as_given):
    softcap_pattern.spelling(_loss_alone(_spelling))
    capped_logits_pattern.spelling(_spelling)


# ---- with the logarithm of the sum of exponentials, for a z-loss; before the loss alone ----------


def _with_log_sum(logits, target, ignore_index=-100, reduction="mean"):
    loss, log_sum = cross_entropy(logits, target, ignore_index)
    return _reduced(loss, target, ignore_index, reduction), log_sum


def _when_two(arguments) -> str:
    return _when(arguments) if arguments["logits"].dim() == 2 else "the logits have more dimensions"


log_sum_pattern = _declare(
    "cross_entropy_and_log_sum", _with_log_sum, "measured_log_sum.json", when=_when_two
)


@log_sum_pattern.spelling
def _(logits, target, ignore_index, reduction):  # OLMo
    loss = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)
    return loss, torch.logsumexp(logits, -1)


# ---- without and with label smoothing ------------------------------------------------------------


def _plain(logits, target, ignore_index=-100, reduction="mean", keeps_logits=""):
    return _reduced_loss(logits, target, ignore_index, reduction, keeps_logits=keeps_logits)


pattern = _declare("cross_entropy", _plain, "measured.json")


@pattern.spelling
def _(logits, target, ignore_index, reduction):
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)


@pattern.spelling
def _(logits, target, ignore_index, reduction):
    log_probabilities = F.log_softmax(logits, dim=-1)
    return F.nll_loss(log_probabilities, target, ignore_index=ignore_index, reduction=reduction)


@pattern.spelling
def _(logits, target, ignore_index, reduction):
    log_probabilities = log_softmax_by_hand(logits)
    return F.nll_loss(log_probabilities, target, ignore_index=ignore_index, reduction=reduction)


@pattern.spelling
def _(logits, target, ignore_index, reduction):
    log_probabilities = log_softmax_by_sum(logits)
    return F.nll_loss(log_probabilities, target, ignore_index=ignore_index, reduction=reduction)


def _smoothed(
    logits,
    target=None,
    label_smoothing=None,
    ignore_index=-100,
    reduction="mean",
    confidence=None,
    low=None,
    high=None,
    classes=None,
    index=None,
    negated=False,
    keeps_logits="",
):
    """confidence: what label_smoothing leaves to the class. low, high: the weights of other classes
    and of the class. index: the target with a last dimension of 1."""
    if low is not None:
        label_smoothing = low * int(example_of(logits).shape[1])
    if target is None:
        target = index.squeeze(-1)
    if low is not None and reduction == "none":
        loss, _ = cross_entropy(*_in_rows(logits, target), ignore_index, label_smoothing)
    else:
        numbers = ignore_index, reduction, label_smoothing
        loss = _reduced_loss(logits, target, *numbers, keeps_logits)
    return -loss if negated else loss


def _when_of_classes(arguments) -> str:
    """Of weights that one_hot makes of `classes`: neither they nor the logits broadcast."""
    logits, classes = arguments["logits"], arguments.get("classes")
    if classes is not None and (logits.dim() == 0 or logits.shape[-1] != classes):
        return "one_hot has another number of classes than the logits"
    return ""


def _when_smoothed(arguments) -> str:
    logits, smoothing = arguments["logits"], arguments["label_smoothing"]
    if refused := _when_of_classes(arguments):
        return refused
    if (index := arguments["index"]) is not None:
        if index.dim() == 0 or index.shape[-1] != 1:
            return "there is not one target for each row of classes"
        arguments = {**arguments, "target": index.squeeze(-1)}
    confidence, low, high = (arguments[name] for name in ("confidence", "low", "high"))
    if confidence is None and low is None:
        return _when(arguments)
    if logits.dim() != 2:
        return "the logits have more dimensions"
    if arguments["target"].shape != logits.shape[:1]:  # what takes a class may take fewer rows
        return "there is not one target for each row of classes"
    if low is not None:
        smoothing = low * logits.shape[1]
        confidence = high - low if confidence is None else confidence
    if not -1e-9 < confidence + smoothing - 1 < 1e-9:
        return "the weights of the two losses do not add up to 1"
    return _when({**arguments, "label_smoothing": smoothing})


smoothing_pattern = _declare(
    "cross_entropy_label_smoothing",
    _smoothed,
    "measured_label_smoothing.json",
    when=_when_smoothed,
    nonzero=("label_smoothing", "low"),
)
smoothing_pattern.spelling(loss_of)


@smoothing_pattern.spelling(ignore_index=NO_CLASS, reduction="none")
def _(logits, target, label_smoothing, confidence):  # timm
    log_probabilities = F.log_softmax(logits, dim=-1)
    given = -log_probabilities.gather(-1, target.unsqueeze(-1))
    every = -log_probabilities.mean(-1)
    return given.squeeze(-1) * confidence + every * label_smoothing


# ---- probabilities of given tokens, of any number of dimensions ----------------------------------


def when_given(arguments) -> str:
    logits, index, target = (arguments.get(each) for each in ("logits", "index", "target"))
    given = index if target is None else target.unsqueeze(-1)
    if given.dtype != torch.int64:
        return "the tokens are not numbers of 64 bits"
    if logits.dim() < 2 or logits.shape[:-1] != given.shape[:-1] or given.shape[-1] != 1:
        return "there is not one token for each row of the logits"
    return _when_of_classes(arguments)


def _of_given(
    logits, index=None, target=None, loss=False, squeezed=False, from_end=False, classes=None
):
    """loss: the negative. squeezed: without the last dimension of the index. from_end: targets
    below 0 count from the end."""
    if from_end:
        target = torch.where(target < 0, target + logits.size(-1), target)
    given = target if index is None else index.squeeze(-1) if squeezed else index
    rows = logits if example_of(logits).dim() == 2 else logits.flatten(0, -2)
    found, _ = cross_entropy(rows, given.flatten(), NO_CLASS)
    found = found.view_as(given)
    return found if loss else -found


given_pattern = opaq.pattern(
    "token_log_probability",
    _of_given,
    {**_EXAMPLES, "loss": False, "squeezed": False, "from_end": False},
    when=when_given,
    streamed=("logits",),
    sizes=lambda arguments: rows_and_columns(arguments["logits"]),
    measurements=Path(__file__).with_name("measured_given.json"),
)


@given_pattern.spelling
def _(logits, index):
    return F.log_softmax(logits, dim=-1).gather(-1, index)


@given_pattern.spelling
def _(logits, index):
    return log_softmax_by_hand(logits).gather(-1, index)


@given_pattern.spelling
def _(logits, index):
    return log_softmax_by_sum(logits).gather(-1, index)


@given_pattern.spelling(loss=True, squeezed=True)
def _(logits, index):
    return torch.logsumexp(logits, -1) - logits.gather(-1, index).squeeze(-1)


@given_pattern.spelling(loss=True)
def _(logits, index):
    return torch.logsumexp(logits, -1, keepdim=True) - logits.gather(-1, index)


@given_pattern.spelling
def _(logits, index):
    return logits.gather(-1, index) - torch.logsumexp(logits, -1, keepdim=True)


@given_pattern.spelling(squeezed=True)
def _(logits, index):  # TRL
    return logits.gather(-1, index).squeeze(-1) - torch.logsumexp(logits, -1)


@given_pattern.spelling(from_end=True)
def _(logits, target):
    rows = torch.arange(target.shape[0], device=target.device)
    return F.log_softmax(logits, dim=-1)[rows, target]
