"""GEGLU in unmodified models: gelu(gate) * up, with PyTorch's gelu or written by hand."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from .. import gated
from .gelu_mul import gelu_mul

# The numbers of gelu, of which models round some.
_NUMBERS = {"root": math.sqrt(2), "inverse": math.sqrt(0.5), "slope": math.sqrt(2 / math.pi)}


def _when(arguments) -> str:
    gate = arguments["gate"]
    known = 1e-15 if gate.dtype == torch.float64 else 1e-7
    for name, number in _NUMBERS.items():
        given = arguments[name]
        if given is not None and abs(given - number) > known * number:
            return f"{given} is not the number of gelu, {number}"
    return gated.refusal(arguments)


def _replacement(gate, up, approximate="none", root=None, inverse=None, slope=None):
    return gelu_mul(gate, up, approximate if slope is None else "tanh")


pattern = opaq.pattern(
    "gelu_mul",
    _replacement,
    {
        "gate": torch.empty(2, 8, device="meta"),
        "up": torch.empty(2, 8, device="meta"),
        "approximate": "tanh",
        **_NUMBERS,
    },
    when=_when,
    streamed=("gate", "up"),
    sizes=lambda arguments: rows_and_columns(arguments["gate"]),
    measurements=Path(__file__).with_name("measured.json"),
)


@pattern.spelling
def _(gate, up, approximate):
    return F.gelu(gate, approximate=approximate) * up


@pattern.spelling
def _(gate, up, root):
    return 0.5 * gate * (1 + torch.erf(gate / root)) * up


@pattern.spelling
def _(gate, up, inverse):
    return 0.5 * gate * (1 + torch.erf(gate * inverse)) * up


@pattern.spelling
def _(gate, up, slope):  # transformers: "gelu_new"
    return 0.5 * gate * (1 + torch.tanh(slope * (gate + 0.044715 * gate.pow(3)))) * up


@pattern.spelling
def _(gate, up, slope):  # transformers: "gelu_fast"
    return 0.5 * gate * (1 + torch.tanh(gate * slope * (1 + 0.044715 * gate * gate))) * up
