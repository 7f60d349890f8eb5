"""Top-k, top-p and min-p with numbers of their own for each row, as vLLM writes them: the first two
are applied to logits in ascending order, which are put back."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from .pattern import refusal, unlikely
from .sample import sampling_probabilities


def _when_of_rows(arguments) -> str:
    logits, classes = arguments["logits"], arguments["classes"]
    if refused := refusal({**arguments, "temperature": 1.0}):
        return refused
    for name in ("row_top_k", "row_top_p"):
        given = arguments[name]
        if given is not None and (given.dim() != 1 or given.shape[0] != logits.shape[0]):
            return f"{name} has not a number for each row"
    if classes is not None and classes != logits.shape[1]:
        return "the order is not counted from the number of classes"
    return ""


def _of_rows(logits, row_top_k=None, row_top_p=None, classes=None):
    if row_top_k is not None:
        row_top_k = row_top_k.to(torch.int64).contiguous()
    if row_top_p is not None:
        row_top_p = row_top_p.to(torch.float32).clamp(0.0, 1.0).contiguous()
    return sampling_probabilities(logits, 1.0, 0, 1.0, 0.0, None, row_top_k, row_top_p)


rows_pattern = opaq.pattern(
    "top_k_top_p_of_rows",
    _of_rows,
    {
        "logits": torch.empty(2, 8, device="meta"),
        "row_top_k": torch.empty(2, dtype=torch.int64, device="meta"),
        "row_top_p": torch.empty(2, device="meta"),
        "classes": 8,
    },
    when=_when_of_rows,
    sizes=lambda arguments: rows_and_columns(arguments["logits"]),
    measurements=Path(__file__).with_name("measured_rows.json"),
    alone=True,
)


def _largest_of_rows(ascending, row_top_k, classes):
    least = ascending.gather(1, (classes - row_top_k.to(torch.int64)).unsqueeze(1))
    return ascending.masked_fill(ascending < least, -float("inf"))


def _likeliest_of_rows(ascending, row_top_p):
    removed = unlikely(ascending, 1 - row_top_p.unsqueeze(1))
    return ascending.masked_fill(removed, -float("inf"))


def _put_back(index, ascending):
    return F.softmax(ascending.scatter(-1, index, ascending), dim=-1)


@rows_pattern.spelling
def _(logits, row_top_k, row_top_p, classes):  # vLLM
    ascending, index = torch.sort(logits, dim=-1)
    ascending = _largest_of_rows(ascending, row_top_k, classes)
    return _put_back(index, _likeliest_of_rows(ascending, row_top_p))


@rows_pattern.spelling
def _(logits, row_top_k, classes):
    ascending, index = torch.sort(logits, dim=-1)
    return _put_back(index, _largest_of_rows(ascending, row_top_k, classes))


@rows_pattern.spelling
def _(logits, row_top_p):
    ascending, index = torch.sort(logits, dim=-1)
    return _put_back(index, _likeliest_of_rows(ascending, row_top_p))


# ---- min-p ---------------------------------------------------------------------------------------


def _when_min_p_of_rows(arguments) -> str:
    given, logits = arguments["row_min_p"], arguments["logits"]
    if refused := refusal({**arguments, "temperature": 1.0}):
        return refused
    if given.dim() != 2 or (given.shape[0], given.shape[1]) != (logits.shape[0], 1):
        return "row_min_p has not a number for each row"
    return ""


def _min_p_of_rows(logits, row_min_p):
    least = row_min_p.squeeze(1).to(torch.float32).clamp(0.0, 1.0).contiguous()
    return sampling_probabilities(logits, row_min_p=least)


min_p_of_rows_pattern = opaq.pattern(
    "min_p_of_rows",
    _min_p_of_rows,
    {
        "logits": torch.empty(2, 8, device="meta"),
        "row_min_p": torch.empty(2, 1, device="meta"),
    },
    when=_when_min_p_of_rows,
    sizes=lambda arguments: rows_and_columns(arguments["logits"]),
    measurements=Path(__file__).with_name("measured_min_p_of_rows.json"),
    alone=True,
)


@min_p_of_rows_pattern.spelling
def _(logits, row_min_p):  # vLLM
    probabilities = F.softmax(logits, dim=-1)
    least = probabilities.amax(dim=-1, keepdim=True) * row_min_p
    return F.softmax(logits.masked_fill(probabilities < least, -float("inf")), dim=-1)
