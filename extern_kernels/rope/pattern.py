"""Rotary position embedding of queries and keys in unmodified models, with halves rotated against
each other."""

from pathlib import Path

import torch

import opaq

from .rope import rope


def _when(arguments) -> str:
    q, k, cos, sin = (arguments[name] for name in ("q", "k", "cos", "sin"))
    if q.dim() != 4 or k.dim() != 4 or cos.dim() != 3 or cos.shape != sin.shape:
        return "queries and keys have not four dimensions, or cos and sin not three"
    if not q.dtype == k.dtype == cos.dtype == sin.dtype:
        return "q, k, cos and sin have different dtypes"
    batch, _, tokens, dim = q.shape
    if (k.shape[0], k.shape[2], k.shape[3]) != (batch, tokens, dim):
        return "queries and keys have different shapes"
    if cos.shape[0] not in (1, batch) or tuple(cos.shape[1:]) != (tokens, dim):
        return "cos and sin have another shape than the tokens"
    if cos.requires_grad or sin.requires_grad:
        return "cos and sin need gradients"
    return ""


def _sizes(arguments):
    q, k = arguments["q"], arguments["k"]
    return q.shape[0] * q.shape[2] * (q.shape[1] + k.shape[1]), q.shape[3]


pattern = opaq.pattern(
    "rope",
    lambda q, k, cos, sin: rope(q, k, cos, sin),
    {
        "q": torch.empty(2, 4, 3, 8, device="meta"),
        "k": torch.empty(2, 2, 3, 8, device="meta"),
        "cos": torch.empty(2, 3, 8, device="meta"),
        "sin": torch.empty(2, 3, 8, device="meta"),
    },
    when=_when,
    streamed=("q", "k"),
    sizes=_sizes,
    measurements=Path(__file__).with_name("measured.json"),
)


def _half_turned(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


@pattern.spelling
def _(q, k, cos, sin):  # transformers: Llama, Mistral, Qwen, Gemma
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + _half_turned(q) * sin, k * cos + _half_turned(k) * sin
