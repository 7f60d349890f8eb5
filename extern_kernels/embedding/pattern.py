"""Embeddings in unmodified models: rows of a table by index."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq

from .embedding import embedding


def _when(arguments) -> str:
    weight, index = arguments["weight"], arguments["index"]
    if weight.dim() != 2:
        return "the table has not two dimensions"
    if index.dtype not in (torch.int64, torch.int32):
        return "the index is neither int64 nor int32"
    return "" if weight.is_floating_point() else "the table is not of a floating-point dtype"


def _saves(arguments, training):
    """In a gradient of 16 bits: Inductor fills one of float32 with zeros, and converts it. It costs
    the rows that were found, written and read once more."""
    weight, index = arguments["weight"], arguments["index"]
    if not training or weight.itemsize != 2:
        return 0
    return weight.numel() * (4 + 4) - 2 * index.numel() * weight.shape[1] * weight.itemsize


def _form(arguments) -> str:
    """In the gradient of a table of few rows there is little to fill and to convert; how fast
    Inductor computes it was not measured."""
    return "" if arguments["weight"].shape[0] >= 16384 else "a small table"


pattern = opaq.pattern(
    "embedding",
    lambda index, weight, padding_idx=-1: embedding(weight, index, padding_idx),
    {
        "index": torch.empty(2, 3, dtype=torch.int64, device="meta"),
        "weight": torch.empty(5, 8, device="meta"),
        "padding_idx": 1,
    },
    when=_when,
    sizes=lambda arguments: (arguments["index"].numel(), arguments["weight"].shape[1]),
    measurements=Path(__file__).with_name("measured.json"),
    form=_form,
    saves=_saves,
)


@pattern.spelling
def _(index, weight, padding_idx):  # torch.nn.Embedding
    return F.embedding(index, weight, padding_idx)
