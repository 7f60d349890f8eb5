"""Models that `opaq bench models` measures beside those of transformers: a step of decoding with
top-p sampling, and a layer of a mixture of experts; and a Llama that returns its loss alone, for
`opaq bench model`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a decoder; the defaults are those of Llama 3.2 1B."""

    layers: int = 16
    width: int = 2048
    heads: int = 32
    kv_heads: int = 8
    inner: int = 8192
    classes: int = 128256
    batch: int = 64
    cached: int = 1024


# Of queries of the last token, keys and values of all that are cached, and the last one's position.
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    mask = torch.arange(k.shape[2], device=k.device) <= position
    return F.scaled_dot_product_attention(q, k, v, mask[None], enable_gqa=True)


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    last = position.squeeze()

    def seen(
        score: torch.Tensor, batch: Any, head: Any, row: Any, column: torch.Tensor
    ) -> torch.Tensor:
        return torch.where(column <= last, score, -float("inf"))

    found = flex_attention(q, k, v, score_mod=seen, enable_gqa=True)
    assert isinstance(found, torch.Tensor)
    return found


class Layer(nn.Module):
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, sizes: Sizes, attention: Attention) -> None:
        super().__init__()
        self.sizes, self.attention = sizes, attention
        head = sizes.width // sizes.heads
        self.norm = nn.RMSNorm(sizes.width, eps=1e-5)
        self.qkv = nn.Linear(sizes.width, (sizes.heads + 2 * sizes.kv_heads) * head, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)
        self.inner_norm = nn.RMSNorm(sizes.width, eps=1e-5)
        self.gate = nn.Linear(sizes.width, sizes.inner, bias=False)
        self.up = nn.Linear(sizes.width, sizes.inner, bias=False)
        self.down = nn.Linear(sizes.inner, sizes.width, bias=False)
        # Two tensors: of parts of one, Inductor copies the whole with each write.
        cached = (sizes.batch, sizes.kv_heads, sizes.cached, head)
        self.register_buffer("keys", torch.randn(cached))
        self.register_buffer("values", torch.randn(cached))

    def forward(
        self, x: torch.Tensor, position: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        sizes = self.sizes
        head = sizes.width // sizes.heads
        qkv = self.qkv(self.norm(x)).view(sizes.batch, 1, -1, head).transpose(1, 2)
        q, k, v = qkv.split([sizes.heads, sizes.kv_heads, sizes.kv_heads], dim=1)
        self.keys[:, :, position] = rotated(k, cos, sin)
        self.values[:, :, position] = v
        y = self.attention(rotated(q, cos, sin), self.keys, self.values, position)
        x = x + self.out(y.transpose(1, 2).reshape(sizes.batch, 1, -1))
        y = self.inner_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Decoder(nn.Module):
    """A step: one token of each sequence, by top-p sampling."""

    angles: torch.Tensor

    def __init__(
        self,
        sizes: Sizes,
        kept: Callable[[torch.Tensor], torch.Tensor],
        attention: Attention,
    ) -> None:
        """kept: the probabilities that a token is drawn from, of logits."""
        super().__init__()
        self.kept = kept
        head = sizes.width // sizes.heads
        self.embedding = nn.Embedding(sizes.classes, sizes.width)
        self.layers = nn.ModuleList([Layer(sizes, attention) for _ in range(sizes.layers)])
        self.norm = nn.RMSNorm(sizes.width, eps=1e-5)
        frequency = 500000.0 ** (-torch.arange(0, head, 2) / head)
        angles = torch.outer(torch.arange(sizes.cached), frequency)
        self.register_buffer("angles", torch.cat([angles, angles], dim=-1))

    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        angles = self.angles[position]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, position, cos, sin)
        logits = F.linear(self.norm(x)[:, -1], self.embedding.weight)
        return torch.multinomial(self.kept(logits), 1)


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """As code that sorts probabilities writes top-p sampling."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    probabilities = F.softmax(scores / 0.8, dim=-1)
    descending, index = torch.sort(probabilities, dim=-1, descending=True)
    sums = torch.cumsum(descending, dim=-1)
    descending[sums - descending > 0.9] = 0.0
    kept = torch.zeros_like(probabilities).scatter_(-1, index, descending)
    return kept / kept.sum(dim=-1, keepdim=True)


def warped(logits: torch.Tensor) -> torch.Tensor:
    """As transformers' TopPLogitsWarper. Inductor of torch 2.11 fails on a GPU if there are so many
    classes: https://github.com/pytorch/pytorch/issues/180221.
    """
    scores = logits.float() / 0.8
    ascending, index = torch.sort(scores, descending=False)
    removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= (1 - 0.9)
    removed[..., -1:] = 0
    removed = removed.scatter(1, index, removed)
    return F.softmax(scores.masked_fill(removed, -float("inf")), dim=-1)


def decoder(**sizes: int) -> Any:
    return _decoder(likeliest, Sizes(**sizes))


def decoder_with_flex_attention(**sizes: int) -> Any:
    return _decoder(likeliest, Sizes(**sizes), flex)


def decoder_of_transformers(**sizes: int) -> Any:
    return _decoder(warped, Sizes(**sizes))


def _decoder(
    kept: Callable[[torch.Tensor], torch.Tensor], sizes: Sizes, attention: Attention = masked
) -> Any:
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        tokens = torch.randint(sizes.classes, (sizes.batch, 1))
        position = torch.tensor([sizes.cached - 1])
        return Decoder(sizes, kept, attention).eval(), (tokens, position)


def experts(
    width: int = 2048, inner: int = 768, count: int = 64, k: int = 8, tokens: int = 8192
) -> Any:
    """A layer of transformers' Qwen3-MoE."""
    from transformers.models.qwen3_moe import modeling_qwen3_moe

    config = modeling_qwen3_moe.Qwen3MoeConfig(
        hidden_size=width,
        moe_intermediate_size=inner,
        num_experts=count,
        num_experts_per_tok=k,
        norm_topk_prob=True,
        experts_implementation="grouped_mm",
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        layer = modeling_qwen3_moe.Qwen3MoeSparseMoeBlock(config)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.02)
        return layer, (torch.randn(1, tokens, width, requires_grad=True),)


class Loss(nn.Module):
    """Of a model of transformers, without the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.model(input_ids=tokens, labels=tokens).loss
        return loss


def loss_of_llama() -> Any:
    """0.75 B parameters, 4 x 2048 tokens."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=5632,
        vocab_size=128256,
        tie_word_embeddings=True,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        tokens = torch.randint(config.vocab_size, (4, 2048))
        return Loss(transformers.LlamaForCausalLM(config)), (tokens,)
