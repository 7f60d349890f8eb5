"""A linear layer and the cross-entropy of its outputs, which nothing else reads, in unmodified
models. It takes less memory and as much time, and rounds the gradient of the weight more often, so
that it is used only where it is asked for by name.
"""

import math

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import example_of

from .linear_mean import CHOSEN, of_one_node


def _given(*arguments):
    return next(each for each in arguments if each is not None)


def _loss(
    hidden=None,
    sequences=None,
    longer=None,
    weight=None,
    columns=None,
    target=None,
    targets=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    softcap=0.0,
    classes=None,
):
    """Given are hidden, in rows, or sequences, whose logits are seen as [-1, classes], or sequences
    that are longer: the logits of the last token are left out; and weight, or its transpose,
    columns; and target, or targets of sequences."""
    inputs = [example_of(_given(hidden, sequences, longer)), example_of(_given(weight, columns))]
    needed = [torch.is_grad_enabled() and each.requires_grad for each in inputs]
    if longer is not None:
        sequences = longer[..., :-1, :]
    return of_one_node(
        sequences.flatten(0, -2) if hidden is None else hidden,
        columns.t() if weight is None else weight,
        targets.flatten() if target is None else target,
        ignore_index,
        CHOSEN,
        (label_smoothing, 0.0, softcap),
        reduction == "mean",
        needed,
    )


_DIMENSIONS = {"hidden": 2, "weight": 2, "columns": 2, "target": 1, "targets": 2}


def _when(arguments) -> str:
    given = {name: each for name, each in arguments.items() if isinstance(each, torch.Tensor)}
    for name, dimensions in _DIMENSIONS.items():
        if name in given and given[name].dim() != dimensions:
            return f"{name} has {given[name].dim()} dimensions, and not {dimensions}"
    hidden = _given(*(given.get(name) for name in ("hidden", "sequences", "longer")))
    weight = given["weight"] if "weight" in given else given["columns"].t()
    if hidden.dim() < 2:
        return "hidden is one row"
    if arguments["classes"] not in (None, weight.shape[0]):
        return "a row of the loss is not a row of the linear layer's outputs"
    if "targets" in given and given["targets"].shape != hidden.shape[:-1]:
        return "there is not one target for each row of classes"
    if _given(given.get("target"), given.get("targets")).dtype != torch.int64:
        return "the target does not hold class indices of 64 bits"
    if arguments["reduction"] == "none":
        return "the loss is not reduced"
    if not 0 <= arguments["label_smoothing"] <= 1:
        return "label_smoothing is not from 0 to 1"
    if arguments["softcap"] and not 0 < arguments["softcap"] < math.inf:
        return "the softcap is not a number above 0"
    return ""


pattern = opaq.pattern(
    "linear_cross_entropy",
    _loss,
    {
        "hidden": torch.empty(6, 4, device="meta"),
        "sequences": torch.empty(2, 3, 4, device="meta"),
        "longer": torch.empty(2, 4, 4, device="meta"),
        "weight": torch.empty(8, 4, device="meta"),
        "columns": torch.empty(4, 8, device="meta"),
        "target": torch.empty(6, dtype=torch.int64, device="meta"),
        "targets": torch.empty(2, 3, dtype=torch.int64, device="meta"),
        "ignore_index": -100,
        "reduction": "mean",
        "label_smoothing": 0.1,
        "softcap": 30.0,
        "classes": 8,
    },
    when=_when,
    nonzero=("softcap",),
    rounds_products=True,
    by_name="it takes less memory but no less time",
)

# ---- spellings -----------------------------------------------------------------------------------


def loss_of(logits, target, ignore_index, reduction, label_smoothing):
    return F.cross_entropy(
        logits,
        target,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


@pattern.spelling
def _(hidden, weight, target, ignore_index, reduction, label_smoothing):
    logits = F.linear(hidden, weight)
    return loss_of(logits, target, ignore_index, reduction, label_smoothing)


@pattern.spelling
def _(hidden, columns, target, ignore_index, reduction, label_smoothing):
    logits = hidden @ columns
    return loss_of(logits, target, ignore_index, reduction, label_smoothing)


@pattern.spelling
def _(sequences, weight, target, classes, ignore_index, reduction, label_smoothing):
    rows = F.linear(sequences, weight).view(-1, classes)  # transformers, nanoGPT
    return loss_of(rows, target, ignore_index, reduction, label_smoothing)


@pattern.spelling
def _(sequences, columns, target, classes, ignore_index, reduction, label_smoothing):
    rows = (sequences @ columns).view(-1, classes)
    return loss_of(rows, target, ignore_index, reduction, label_smoothing)


@pattern.spelling
def _(longer, weight, target, classes, ignore_index, reduction, label_smoothing):
    rows = F.linear(longer, weight)[..., :-1, :].contiguous().view(-1, classes)
    return loss_of(rows, target, ignore_index, reduction, label_smoothing)


@pattern.spelling
def _(sequences, weight, targets, ignore_index, reduction, label_smoothing):
    rows = F.linear(sequences, weight).transpose(1, 2)
    return loss_of(rows, targets, ignore_index, reduction, label_smoothing)


@pattern.spelling
def _(hidden, weight, target, softcap, ignore_index, reduction, label_smoothing):
    capped = torch.tanh(F.linear(hidden, weight) / softcap) * softcap
    return loss_of(capped, target, ignore_index, reduction, label_smoothing)


@pattern.spelling
def _(sequences, weight, target, softcap, classes, ignore_index, reduction, label_smoothing):
    capped = torch.tanh(F.linear(sequences, weight) / softcap) * softcap  # Gemma 2
    rows = capped.view(-1, classes)
    return loss_of(rows, target, ignore_index, reduction, label_smoothing)
