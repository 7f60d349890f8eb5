"""The end of `opaq demo` on a GPU: one unmodified model, trained with Inductor and with
backend="opaq", which puts shipped ops where they were measured to be faster.
"""

from __future__ import annotations

import copy
import functools
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .bench import measure
from .report import report
from .terminal import table

BACKENDS = ("inductor", "opaq")
WARMUPS, ROUNDS = 3, 20


@dataclass(frozen=True)
class Size:
    hidden: int
    layers: int
    vocabulary: int
    batch: int
    tokens: int


LARGE = Size(hidden=1024, layers=4, vocabulary=128256, batch=4, tokens=1024)


def run(device: str, size: Size = LARGE, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """For each backend: milliseconds of a training step without optimizer (median; the backends
    take turns), the first loss, and how many parts of the model were replaced."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 11 // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 128,
        max_position_embeddings=size.tokens,
    )
    model = LlamaForCausalLM(config).to(device, torch.bfloat16)
    ids = torch.randint(size.vocabulary, (size.batch, size.tokens), device=device)
    replaced, steps = {}, {}
    for backend in BACKENDS:
        torch.compiler.reset()
        before = len(report().substitutions)
        steps[backend] = _step(copy.deepcopy(model), backend, ids)
        losses = [steps[backend]().item() for _ in range(WARMUPS)]
        found = report().substitutions[before:]
        replaced[backend] = (sum(each.applied for each in found), losses[0])
    synchronize = measure.synchronizer(device)

    def microseconds(step: Any) -> float:
        return measure.host_us(step, per=1, synchronize=synchronize, repeats=1, warmups=0)

    turns = {name: functools.partial(microseconds, step) for name, step in steps.items()}
    times = measure.in_turns(turns, rounds)
    return [
        {
            "backend": backend,
            "ms_per_step": statistics.median(times[backend]) / 1e3,
            "replaced": replaced[backend][0],
            "loss": replaced[backend][1],
        }
        for backend in BACKENDS
    ]


def text(facts: list[dict[str, Any]]) -> str:
    rows = [("backend", "ms a step", "parts replaced", "first loss")]
    for each in facts:
        cells = f"{each['ms_per_step']:.2f}", str(each["replaced"]), f"{each['loss']:.4f}"
        rows.append((each["backend"], *cells))
    first, second = (each["ms_per_step"] for each in facts)
    return (
        "The same unmodified model, a Llama with a vocabulary of 128256, trained with both:\n"
        f"{table(rows)}\n"
        f"A step takes {second / first:.2f} times as long with backend='opaq' as with Inductor."
    )


def _step(model: nn.Module, backend: str, ids: Tensor) -> Any:
    compiled = torch.compile(model, backend=backend)

    def step() -> Tensor:
        model.zero_grad()
        loss = compiled(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return step
