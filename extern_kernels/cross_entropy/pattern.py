"""Cross-entropy with class indices in unmodified models, with label smoothing and with the softcap
of Gemma 2."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq

from .cross_entropy import cross_entropy

_EXAMPLES = {
    "logits": torch.empty(2, 8, device="meta"),
    "target": torch.empty(2, dtype=torch.int64, device="meta"),
    "ignore_index": -100,
    "reduction": "mean",
    "label_smoothing": 0.1,
    "softcap": 30.0,
    "classes": 8,
}


def _when(arguments) -> str:
    logits, target = arguments["logits"], arguments["target"]
    if logits.dim() != 2 or target.dim() != 1:
        return "logits have not two dimensions, or the target not one"
    if target.dtype != torch.int64:
        return "the target does not hold class indices of 64 bits"
    if not 0 <= arguments.get("label_smoothing", 0) <= 1:
        return "label_smoothing is not from 0 to 1"
    return ""


def _reduced(loss, target, ignore_index, reduction):
    if reduction == "none":
        return loss
    return loss.sum() / (target != ignore_index).sum() if reduction == "mean" else loss.sum()


def _declare(name, replacement, measured, sizes=None, when=_when, nonzero=()):
    return opaq.pattern(
        name,
        replacement,
        _EXAMPLES,
        when=when,
        streamed=("logits",),
        nonzero=nonzero,
        sizes=sizes or (lambda arguments: tuple(arguments["logits"].shape)),
        measurements=Path(__file__).with_name(measured),
    )


# ---- softcap; first, so that it is not left to Inductor where the loss alone is taken ------------


def _rows_and_classes(arguments):
    logits = arguments["logits"]
    return logits.numel() // logits.shape[-1], logits.shape[-1]


def _when_capped(arguments) -> str:
    logits, classes = arguments["logits"], arguments["classes"]
    if classes is None:
        return _when(arguments)
    if logits.dim() == 0 or logits.shape[-1] != classes:
        return "a row of the loss is not the last dimension of the logits"
    return _when({**arguments, "logits": logits.reshape(-1, classes)})


def _capped(
    logits, target, softcap, classes=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """classes: the logits are seen as [-1, classes]."""
    if classes is not None:
        logits = logits.reshape(-1, classes)
    loss, _ = cross_entropy(logits, target, ignore_index, label_smoothing, 0.0, softcap)
    return _reduced(loss, target, ignore_index, reduction)


def _loss(logits, target, ignore_index, reduction, label_smoothing):
    return F.cross_entropy(
        logits,
        target,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


softcap_pattern = _declare(
    "cross_entropy_softcap",
    _capped,
    "measured_softcap.json",
    _rows_and_classes,
    _when_capped,
    ("softcap",),
)


@softcap_pattern.spelling
def _(logits, target, softcap, classes, ignore_index, reduction, label_smoothing):
    """transformers: Gemma 2"""
    capped = torch.tanh(logits / softcap) * softcap
    rows = capped.view(-1, classes)
    return _loss(rows, target, ignore_index, reduction, label_smoothing)


@softcap_pattern.spelling
def _(logits, target, softcap, ignore_index, reduction, label_smoothing):
    capped = torch.tanh(logits / softcap) * softcap
    return _loss(capped, target, ignore_index, reduction, label_smoothing)


# ---- without and with label smoothing ------------------------------------------------------------


def _plain(logits, target, ignore_index=-100, reduction="mean"):
    loss, _ = cross_entropy(logits, target, ignore_index)
    return _reduced(loss, target, ignore_index, reduction)


pattern = _declare("cross_entropy", _plain, "measured.json")


@pattern.spelling
def _(logits, target, ignore_index, reduction):
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)


@pattern.spelling
def _(logits, target, ignore_index, reduction):
    log_probabilities = F.log_softmax(logits, dim=-1)
    return F.nll_loss(log_probabilities, target, ignore_index=ignore_index, reduction=reduction)


def _smoothed(logits, target, label_smoothing, ignore_index=-100, reduction="mean"):
    loss, _ = cross_entropy(logits, target, ignore_index, label_smoothing)
    return _reduced(loss, target, ignore_index, reduction)


smoothing_pattern = _declare(
    "cross_entropy_label_smoothing",
    _smoothed,
    "measured_label_smoothing.json",
    nonzero=("label_smoothing",),
)
smoothing_pattern.spelling(_loss)
