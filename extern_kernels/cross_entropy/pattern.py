"""Cross-entropy with class indices in unmodified models."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq

from .cross_entropy import cross_entropy


def _when(arguments) -> str:
    logits, target = arguments["logits"], arguments["target"]
    if logits.dim() != 2 or target.dim() != 1:
        return "logits have not two dimensions, or the target not one"
    if target.dtype != torch.int64:
        return "the target does not hold class indices of 64 bits"
    return ""


def _replacement(logits, target, ignore_index=-100, reduction="mean"):
    loss, _ = cross_entropy(logits, target, ignore_index)
    if reduction == "none":
        return loss
    return loss.sum() / (target != ignore_index).sum() if reduction == "mean" else loss.sum()


pattern = opaq.pattern(
    "cross_entropy",
    _replacement,
    {
        "logits": torch.empty(2, 8, device="meta"),
        "target": torch.empty(2, dtype=torch.int64, device="meta"),
        "ignore_index": -100,
        "reduction": "mean",
    },
    when=_when,
    streamed=("logits",),
    sizes=lambda arguments: tuple(arguments["logits"].shape),
    measurements=Path(__file__).with_name("measured.json"),
)


@pattern.spelling
def _(logits, target, ignore_index, reduction):
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction)


@pattern.spelling
def _(logits, target, ignore_index, reduction):
    log_probabilities = F.log_softmax(logits, dim=-1)
    return F.nll_loss(log_probabilities, target, ignore_index=ignore_index, reduction=reduction)
