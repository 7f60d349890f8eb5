"""Label smoothing that models write as two sums of log-probabilities, of the class of a row and of
all classes: fairseq, transformers' LabelSmoother. The classes are the last dimension.

Rows that a mask leaves out afterwards have losses too, of whichever class the index names.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import example_of, rows_and_columns

from .cross_entropy import cross_entropy
from .pattern import NO_CLASS, when_given


def _when(arguments) -> str:
    of_class, of_all = arguments["of_class"], arguments["of_all"]
    of_mean = arguments["of_mean"] if of_all is None else of_all * arguments["logits"].shape[-1]
    if not (-1e-9 < of_class + of_mean + 1 < 1e-9 or -1e-9 < of_class + of_mean - 1 < 1e-9):
        return "the weights of the two losses do not add up to 1"
    if of_class * of_mean < 0:
        return "label_smoothing is not from 0 to 1"
    return when_given(arguments)


def _loss(logits, index, of_class, of_all=None, of_mean=None, squeezed=False):
    """of_class, of_all, of_mean: what the log-probability of the class, and all of them, or their
    mean, are multiplied with. squeezed: without the last dimension of the index."""
    is_loss = bool(example_of(of_class) + example_of(of_mean if of_all is None else of_all) < 0)
    if of_mean is None:
        of_mean = of_all * int(example_of(logits).shape[-1])
    given = index.squeeze(-1) if squeezed else index
    rows = logits if example_of(logits).dim() == 2 else logits.flatten(0, -2)
    found, _ = cross_entropy(rows, given.flatten(), NO_CLASS, -of_mean if is_loss else of_mean)
    found = found.view_as(given)
    return found if is_loss else -found


pattern = opaq.pattern(
    "cross_entropy_two_sums",
    _loss,
    {
        "logits": torch.empty(2, 8, device="meta"),
        "index": torch.empty(2, 1, dtype=torch.int64, device="meta"),
        "of_class": -0.9,
        "of_all": -0.1 / 8,
        "of_mean": -0.1,
        "squeezed": False,
    },
    when=_when,
    streamed=("logits",),
    sizes=lambda arguments: rows_and_columns(arguments["logits"]),
    measurements=Path(__file__).with_name("measured_label_smoothing.json"),
)


@pattern.spelling
def _(logits, index, of_class, of_all):  # fairseq, transformers
    found = F.log_softmax(logits, dim=-1)
    return found.gather(-1, index) * of_class + found.sum(-1, keepdim=True) * of_all


@pattern.spelling
def _(logits, index, of_class, of_mean):
    found = F.log_softmax(logits, dim=-1)
    return found.gather(-1, index) * of_class + found.mean(-1, keepdim=True) * of_mean


@pattern.spelling(squeezed=True)
def _(logits, index, of_class, of_all):
    found = F.log_softmax(logits, dim=-1)
    return found.gather(-1, index).squeeze(-1) * of_class + found.sum(-1) * of_all


@pattern.spelling(squeezed=True)
def _(logits, index, of_class, of_mean):
    found = F.log_softmax(logits, dim=-1)
    return found.gather(-1, index).squeeze(-1) * of_class + found.mean(-1) * of_mean
