"""LayerNorm in unmodified models."""

from pathlib import Path

import torch
import torch.nn.functional as F

import opaq
from opaq.pattern import rows_and_columns

from .. import rows
from .layer_norm import layer_norm


def _when(arguments) -> str:
    x = arguments["x"]
    if x.dim() == 0:
        return "x has no dimension"
    return rows.refusal_of_parameters(x, {name: arguments[name] for name in ("weight", "bias")})


def _form(arguments) -> str:
    return rows.form_of_parameters(arguments["x"], arguments["weight"], arguments["bias"])


pattern = opaq.pattern(
    "layer_norm",
    lambda x, eps, weight=None, bias=None: layer_norm(x, weight, bias, eps)[0],
    {
        "x": torch.empty(2, 8, device="meta"),
        "eps": 1e-5,
        "weight": torch.empty(8, device="meta"),
        "bias": torch.empty(8, device="meta"),
    },
    when=_when,
    streamed=("x",),
    sizes=lambda arguments: rows_and_columns(arguments["x"]),
    form=_form,
    measurements=Path(__file__).with_name("measured.json"),
)


def _divided(x, eps):
    apart = x - x.mean(-1, keepdim=True)
    return apart / torch.sqrt(apart.pow(2).mean(-1, keepdim=True) + eps)


def _divided_by_variance(x, eps):
    variance = x.var(-1, keepdim=True, unbiased=False)
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance + eps)


def _scaled(x, eps):
    apart = x - x.mean(-1, keepdim=True)
    return apart * torch.rsqrt(apart.pow(2).mean(-1, keepdim=True) + eps)


def _scaled_by_variance(x, eps):
    variance = x.var(-1, keepdim=True, unbiased=False)
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(variance + eps)


_NORMALIZED = [_divided, _divided_by_variance, _scaled, _scaled_by_variance]


def _with_weight_and_bias(normalized):
    return lambda x, weight, bias, eps: normalized(x, eps) * weight + bias


def _with_weight(normalized):
    return lambda x, weight, eps: normalized(x, eps) * weight


# In this order, since those with less are parts of those with more.
pattern.spelling(lambda x, weight, bias, eps: F.layer_norm(x, (8,), weight, bias, eps))
pattern.spelling(lambda x, weight, eps: F.layer_norm(x, (8,), weight, None, eps))
pattern.spelling(lambda x, eps: F.layer_norm(x, (8,), None, None, eps))
for _each in _NORMALIZED:
    pattern.spelling(_with_weight_and_bias(_each))
for _each in _NORMALIZED:
    pattern.spelling(_with_weight(_each))
for _each in _NORMALIZED:
    pattern.spelling(_each)
