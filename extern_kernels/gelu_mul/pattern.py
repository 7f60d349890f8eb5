"""GEGLU in unmodified models: gelu(gate) * up."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from .. import gated
from .gelu_mul import gelu_mul

pattern = opaq.pattern(
    "gelu_mul",
    lambda gate, up, approximate="none": gelu_mul(gate, up, approximate),
    {
        "gate": torch.empty(2, 8, device="meta"),
        "up": torch.empty(2, 8, device="meta"),
        "approximate": "tanh",
    },
    when=gated.refusal,
    streamed=("gate", "up"),
    sizes=lambda arguments: rows_and_columns(arguments["gate"]),
    measurements=Path(__file__).with_name("measured.json"),
)


@pattern.spelling
def _(gate, up, approximate):
    return F.gelu(gate, approximate=approximate) * up
