"""`opaq demo`: trains a small Llama with the shipped ops on real text, compiled, and compares it
with plain eager PyTorch.

The model is transformers' LlamaForCausalLM with random weights over bytes; its norms, SwiGLU
activations, rotary embeddings and loss are replaced by opaq.extern_kernels on this one instance. A
second, unchanged copy is the reference for the first steps. The text is Python's own manual, which
is part of every Python (pydoc_data.topics). On a GPU it ends by training one unmodified model with
Inductor and with backend="opaq".
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import _runtime, demo_backends

# What only the demo imports; the extra `demo` of pyproject.toml.
DEMO_PACKAGES = ("rich", "transformers")

CHECKED_STEPS = 3  # steps whose loss and gradients are compared
TOLERANCE = 1e-4  # of the relative error norm, in float32; two correct runs differ by about 1e-6
LENGTH = 80  # characters generated
ARCH = "sm_90a"  # what the CUDA sources are compiled for where there is no GPU

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """How large the model and its training are."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    batch: int
    tokens: int
    steps: int


SIZES = {
    "cpu": Size(
        hidden=192, intermediate=512, layers=4, heads=6, kv_heads=3, batch=8, tokens=64, steps=240
    ),
    "cuda": Size(
        hidden=512,
        intermediate=1536,
        layers=8,
        heads=8,
        kv_heads=4,
        batch=32,
        tokens=256,
        steps=400,
    ),
}


# ---- the model, with and without opaque ops ------------------------------------------------------


class RMSNorm(nn.Module):
    """LlamaRMSNorm through opaq.extern_kernels.rms_norm."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = plain.weight, plain.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        from .extern_kernels import rms_norm

        return rms_norm(x, self.weight, self.eps)[0]


class MLP(nn.Module):
    """LlamaMLP through opaq.extern_kernels.silu_mul."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            plain.gate_proj,
            plain.up_proj,
            plain.down_proj,
        )

    def forward(self, x: Tensor) -> Tensor:
        from .extern_kernels import silu_mul

        return self.down_proj(silu_mul(self.gate_proj(x), self.up_proj(x)))


class Attention(nn.Module):
    """Causal LlamaAttention, without padding or cache, through opaq.extern_kernels.rope."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            plain.q_proj,
            plain.k_proj,
            plain.v_proj,
            plain.o_proj,
        )
        self.head_dim, self.scaling = plain.head_dim, plain.scaling

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> tuple[Tensor, None]:
        from .extern_kernels import rope

        batch, tokens, _hidden = hidden_states.shape
        q, k, v = (
            projection(hidden_states).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rope(q, k, *position_embeddings)
        attended = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.scaling, enable_gqa=True
        )
        return self.o_proj(attended.transpose(1, 2).reshape(batch, tokens, -1)), None


def use_opaque_ops(model: nn.Module) -> nn.Module:
    """Swaps the modules of this LlamaForCausalLM for the ones above; parameters keep their names
    and storage.
    """
    for layer in model.model.layers:
        layer.input_layernorm = RMSNorm(layer.input_layernorm)
        layer.post_attention_layernorm = RMSNorm(layer.post_attention_layernorm)
        layer.self_attn = Attention(layer.self_attn)
        layer.mlp = MLP(layer.mlp)
    model.model.norm = RMSNorm(model.model.norm)
    return model


def make_models(size: Size, device: str) -> tuple[nn.Module, nn.Module]:
    """(with opaque ops, plain): equal weights, none shared."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.tokens,
        attn_implementation="sdpa",
    )
    plain = LlamaForCausalLM(config).to(device)
    return use_opaque_ops(copy.deepcopy(plain)), plain


def loss_of(model: nn.Module, mean_cross_entropy: Loss) -> Loss:
    """A function (ids [B, T], targets [B, T]) -> mean loss."""

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return mean_cross_entropy(logits.flatten(0, 1), targets.flatten())

    return loss


# ---- data, training, text ------------------------------------------------------------------------


def corpus() -> Tensor:
    """The manual's text as bytes, [n] uint8."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def batches(text: Tensor, size: Size, device: str, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows of the text, for ever: bytes and the bytes that follow them, [batch, tokens]
    int64.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - size.tokens, (size.batch, 1), generator=generator)
        window = text[starts + torch.arange(size.tokens + 1)].long().to(device)
        yield window[:, :-1], window[:, 1:]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|, Euclidean norms over all elements."""
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-30))


def compare(
    model: nn.Module, loss: Tensor, plain: nn.Module, plain_loss: Loss, batch: tuple[Tensor, Tensor]
) -> float:
    """Largest relative error of the loss and of every parameter's gradient, against the plain model
    at the same weights.
    """
    plain.load_state_dict(model.state_dict())
    plain.zero_grad()
    expected = plain_loss(*batch)
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    errors = [
        relative_error(parameter.grad, gradients[name])
        for name, parameter in model.named_parameters()
    ]
    return max(relative_error(loss.detach(), expected.detach()), *errors)


def train(
    model: nn.Module,
    plain: nn.Module,
    size: Size,
    steps: int,
    device: str,
    seed: int,
    tick: Callable[[int, float], None],
) -> dict[str, Any]:
    """Trains `model` compiled with backend="opaq"; facts: the losses and the largest error of the
    checked steps.
    """
    from .extern_kernels import cross_entropy_mean

    compiled = torch.compile(
        loss_of(model, cross_entropy_mean), backend="opaq", options={"profile": True}
    )
    plain_loss = loss_of(plain, functional.cross_entropy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=steps + 1, pct_start=0.1
    )
    losses: list[float] = []
    max_error = 0.0
    for step, batch in zip(range(steps), batches(corpus(), size, device, seed)):
        optimizer.zero_grad()
        loss = compiled(*batch)
        loss.backward()
        if step < CHECKED_STEPS:
            max_error = max(max_error, compare(model, loss, plain, plain_loss, batch))
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        tick(step + 1, losses[-1])
    last = losses[-10:]
    return {
        "agree": max_error <= TOLERANCE,
        "max_error": max_error,
        "loss_first": losses[0],
        "loss_last": sum(last) / len(last),
    }


@torch.no_grad()
def generate(model: nn.Module, tokens: int, device: str, seed: int) -> str:
    """A line of LENGTH characters, drawn byte by byte with the model in eager mode."""
    generator = torch.Generator().manual_seed(seed)
    ids = list(b"The ")
    while len(ids) < LENGTH:
        logits = model(
            input_ids=torch.tensor([ids[-tokens:]], device=device), use_cache=False
        ).logits[0, -1]
        ids.append(
            int(torch.multinomial((logits.float().cpu() / 0.6).softmax(-1), 1, generator=generator))
        )
    return " ".join(bytes(ids).decode(errors="replace").split())


# ---- facts about the kernels ---------------------------------------------------------------------


def statistics() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (entry["op"], entry["implementation"]): entry
        for entry in _runtime.implementation_stats()
        if entry["op"].startswith("opaq_kernels::")
    }


def images_compiled() -> int:
    """How many images of the shipped ops this process has compiled; those from the disk cache are
    not counted.
    """
    return sum(entry["compiled"] for entry in statistics().values())


def op_facts(before: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls since `before`: one entry per op and implementation."""
    facts = []
    for key, entry in sorted(statistics().items()):
        earlier = before.get(key, {})
        calls = entry["calls"] - earlier.get("calls", 0)
        if calls:
            timed = entry["timed_calls"] - earlier.get("timed_calls", 0)
            host_seconds = entry["host_seconds"] - earlier.get("host_seconds", 0.0)
            facts.append(
                {
                    "name": entry["op"],
                    "implementation": entry["implementation"],
                    "calls": calls,
                    "host_us_per_call": host_seconds / timed * 1e6 if timed else None,
                    "compile_seconds": entry["compile_seconds"],
                    "images_compiled": entry["compiled"] - earlier.get("compiled", 0),
                    "cache_hits": entry["disk_hits"],
                }
            )
    return facts


def compile_cuda_sources(size: Size) -> dict[str, Any]:
    """Compiles every CUDA implementation of the shipped ops, in bfloat16, for ARCH; needs NVRTC and
    no GPU.
    """
    from . import extern_kernels

    def tensor(*shape: int, dtype: str = "bfloat16") -> tuple[Any, ...]:
        return (dtype, shape, torch.empty(shape, device="meta").stride(), "cuda:0", 256)

    rows, head = size.batch * size.tokens, size.hidden // size.heads
    x, gate, logits = tensor(rows, size.hidden), tensor(rows, size.intermediate), tensor(rows, 256)
    per_row, target = tensor(rows, dtype="float32"), tensor(rows, dtype="int64")
    heads = [
        tensor(size.batch, count, size.tokens, head) for count in (size.heads, size.kv_heads)
    ] + [tensor(1, size.tokens, head)] * 2
    weight = tensor(size.hidden)
    arguments = {
        "rms_norm": [x, weight, 1e-6],
        "rms_norm_backward": [x, per_row, x, weight, per_row],
        "silu_mul": [gate, gate],
        "silu_mul_backward": [gate, gate, gate],
        "rope": heads,
        "rope_backward": heads,
        "cross_entropy_mean_with_gradient": [logits, target, -100],
    }
    before, images = images_compiled(), 0
    try:
        for name, values in arguments.items():
            op = getattr(extern_kernels, name)
            for implementation in op.info["implementations"]:
                if implementation["device"] == "cuda":
                    _runtime.compile(op.name, values, ARCH, implementation["name"])
                    images += 1
    except _runtime.MissingError as error:
        return {
            "cuda_sources_compiled": 0,
            "images": 0,
            "images_compiled": 0,
            "cuda_note": f"CUDA sources were not compiled: {error}",
        }
    sources = len({name.removesuffix("_backward") for name in arguments})
    compiled = images_compiled() - before
    cached = f" ({images - compiled} came from the cache)" if compiled < images else ""
    note = (
        f"No GPU here: NVRTC compiled {images} kernels of {sources} CUDA sources for {ARCH}, "
        f"in bfloat16{cached}."
    )
    return {
        "cuda_sources_compiled": sources,
        "images": images,
        "images_compiled": compiled,
        "cuda_note": note,
    }


def used_cuda_sources(ops: list[dict[str, Any]]) -> dict[str, Any]:
    used = {
        (entry["name"], entry["implementation"])
        for entry in ops
        if entry["implementation"].startswith("cuda")
    }
    sources = len({name.removesuffix("_backward") for name, _ in used})
    compiled = sum(entry["images_compiled"] for entry in ops)
    note = f"{len(used)} kernels of {sources} CUDA sources ran."
    return {
        "cuda_sources_compiled": sources,
        "images": len(used),
        "images_compiled": compiled,
        "cuda_note": note,
    }


# ---- the demo ------------------------------------------------------------------------------------


def run(
    *, steps: int | None = None, device: str | None = None, json: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Trains, checks, generates; returns the facts that `opaq demo --json` prints, and shows them
    as text unless `json`.

    steps: training steps, at least 1; the device's usual number when None. device: "cpu" or "cuda";
    the GPU, if there is one, when None. Raises ValueError for steps below 1, opaq.MissingError for
    a device or a package that is not there.
    """
    missing = [name for name in DEMO_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise _runtime.MissingError(
            f"the demo needs {' and '.join(missing)}; run `pip install {' '.join(missing)}`"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = device.split(":")[0]
    if kind not in SIZES:
        raise ValueError(f"device: got {device!r}; expected 'cpu' or 'cuda'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise _runtime.MissingError(
            "device 'cuda' was asked for, but torch sees no GPU; run `opaq doctor`, or pass "
            "--device cpu"
        )
    size = SIZES[kind]
    steps = size.steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps: got {steps}; expected at least 1")

    began = time.perf_counter()
    torch.manual_seed(seed)
    model, plain = make_models(size, device)
    before = statistics()
    with progress(steps, shown=not json) as tick:
        facts = train(model, plain, size, steps, device, seed, tick)
    text = generate(model, size.tokens, device, seed)
    ops = op_facts(before)
    cuda = used_cuda_sources(ops) if kind == "cuda" else compile_cuda_sources(size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {
        **facts,
        **cuda,
        "device": device,
        "steps": steps,
        "parameters": parameters,
        "seconds": time.perf_counter() - began,
        "text": text,
        "ops": ops,
    }
    if kind == "cuda":
        facts["backends"] = demo_backends.run(device)
    if not json:
        show(facts)
    return facts


@contextmanager
def progress(steps: int, *, shown: bool) -> Iterator[Callable[[int, float], None]]:
    """A progress bar on stderr; gives the function (step, loss) that moves it."""
    if not shown:
        yield lambda step, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("compiling the first step", total=steps)
        yield lambda step, loss: bar.update(task, completed=step, description=f"loss {loss:.3f}")


def show(facts: dict[str, Any]) -> None:
    """Prints the facts of `run` as a reader wants them."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    verdict = "[green]agrees[/green]" if facts["agree"] else "[red]DISAGREES[/red]"
    console.print(
        f"Llama, {facts['parameters'] / 1e6:.1f} M parameters, on {facts['device']}: "
        f"{facts['steps']} steps in {facts['seconds']:.0f} s, "
        f"compiled with backend='opaq'; loss {facts['loss_first']:.2f} -> {facts['loss_last']:.2f}."
    )
    console.print(
        f"It {verdict} with plain eager PyTorch: loss and gradients of the first "
        f"{min(CHECKED_STEPS, facts['steps'])} steps differ by at most "
        f"{facts['max_error']:.1e} (bound {TOLERANCE:.0e}, relative)."
    )
    console.print(f"It writes: [italic]{escape(facts['text'])}[/italic]")
    table = Table(
        title="Opaque ops (opaq_kernels::), host time per call",
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
    )
    for heading in ("op", "implementation"):
        table.add_column(heading, no_wrap=True)
    for heading in ("calls", "host us", "compile s", "cache hits"):
        table.add_column(heading, justify="right")
    for entry in facts["ops"]:
        table.add_row(
            entry["name"].removeprefix("opaq_kernels::"),
            entry["implementation"],
            str(entry["calls"]),
            "-" if entry["host_us_per_call"] is None else f"{entry['host_us_per_call']:.1f}",
            f"{entry['compile_seconds']:.2f}",
            str(entry["cache_hits"]),
        )
    console.print(table)
    if facts["device"] == "cpu":
        console.print("On the CPU, host time includes the kernel itself.")
    console.print(escape(facts["cuda_note"]))
    if "backends" in facts:
        print(f"\n{demo_backends.text(facts['backends'])}")
