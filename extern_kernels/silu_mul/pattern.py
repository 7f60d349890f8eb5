"""SwiGLU in unmodified models: silu(gate) * up."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from .silu_mul import silu_mul


def _when(arguments) -> str:
    gate, up = arguments["gate"], arguments["up"]
    if gate.shape != up.shape:
        return "gate and up have different shapes"
    return "" if gate.dtype == up.dtype else "gate and up have different dtypes"


pattern = opaq.pattern(
    "silu_mul",
    lambda gate, up: silu_mul(gate, up),
    {"gate": torch.empty(2, 8, device="meta"), "up": torch.empty(2, 8, device="meta")},
    when=_when,
    streamed=("gate", "up"),
    sizes=lambda arguments: rows_and_columns(arguments["gate"]),
    measurements=Path(__file__).with_name("measured.json"),
)


@pattern.spelling
def _(gate, up):
    return F.silu(gate) * up


@pattern.spelling
def _(gate, up):
    return gate * torch.sigmoid(gate) * up


@pattern.spelling
def _(gate, up):
    return gate / (1 + torch.exp(-gate)) * up
