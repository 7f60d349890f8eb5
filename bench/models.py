"""A set of unmodified models under several backends: training steps of models of transformers with
the widths and vocabularies of published ones and few layers, a step of decoding with top-p sampling
in CUDA graphs, a layer of a mixture of experts. All in bfloat16.

As in `opaq bench model`, each contestant runs in a process of its own with empty caches. The first
calls of some models are made side by side; one process at a time is measured.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import tempfile
import threading
from typing import Any

from opaq.user_file import WrongTarget

from . import lists
from .contest import Contest
from .table import Progress
from .wanted import Wanted

TITLE = "Models under several backends"
GRAPHS = {"inductor": "reduce-overhead", "opaq": "opaq:triton.cudagraphs=true"}
CONTESTANTS = ("inductor", "opaq", "max-autotune", "eager")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Of the set. config: of a class of transformers."""

    target: str | None = None
    hf: str | None = None
    config: str = ""
    train: bool = True
    cuda_graphs: bool = False

    def contestants(self, names: list[str]) -> list[str]:
        return [GRAPHS.get(name, name) for name in names] if self.cuda_graphs else names


def _of_transformers(name: str, config: str) -> Entry:
    return Entry(hf=name, config=config)


_DECODER = (
    "hidden_size={},num_attention_heads={},num_key_value_heads={},intermediate_size={},"
    "vocab_size={},num_hidden_layers=2"
)
_ENCODER = "hidden_dropout_prob=0,attention_probs_dropout_prob=0,num_hidden_layers=4"

# By name of the case.
MODELS = {
    "Llama": _of_transformers("LlamaForCausalLM", _DECODER.format(2048, 32, 8, 8192, 128256)),
    "Qwen3": _of_transformers(
        "Qwen3ForCausalLM", _DECODER.format(1024, 16, 8, 3072, 151936) + ",head_dim=128"
    ),
    "Qwen2": _of_transformers("Qwen2ForCausalLM", _DECODER.format(896, 14, 2, 4864, 151936)),
    "Gemma2": _of_transformers(
        "Gemma2ForCausalLM", _DECODER.format(2304, 8, 4, 9216, 256000) + ",head_dim=256"
    ),
    "Mistral": _of_transformers("MistralForCausalLM", _DECODER.format(4096, 32, 8, 14336, 32000)),
    "Phi3": _of_transformers(
        "Phi3ForCausalLM", _DECODER.format(3072, 32, 32, 8192, 32064) + ",pad_token_id=0"
    ),
    "Mixtral": _of_transformers(
        "MixtralForCausalLM",
        _DECODER.format(2048, 16, 8, 4096, 32000) + ",num_local_experts=8",
    ),
    "OLMo": _of_transformers("OlmoForCausalLM", _DECODER.format(2048, 16, 16, 8192, 50304)),
    "GPT-NeoX": _of_transformers(
        "GPTNeoXForCausalLM",
        "hidden_size=1024,num_attention_heads=16,intermediate_size=4096,vocab_size=50432,"
        "num_hidden_layers=4",
    ),
    "GPT-2": _of_transformers(
        "GPT2LMHeadModel", "n_layer=4,resid_pdrop=0,embd_pdrop=0,attn_pdrop=0"
    ),
    "OPT": _of_transformers("OPTForCausalLM", "dropout=0,num_hidden_layers=4"),
    "BERT": _of_transformers("BertForMaskedLM", _ENCODER + ",max_position_embeddings=1024"),
    "RoBERTa": _of_transformers("RobertaForMaskedLM", _ENCODER + ",max_position_embeddings=1026"),
    "ViT": _of_transformers("ViTForImageClassification", _ENCODER),
    "experts, training": Entry("opaq.bench.model_parts:experts"),
    "experts": Entry("opaq.bench.model_parts:experts", train=False),
    "decoding, top-p": Entry("opaq.bench.model_parts:decoder", train=False, cuda_graphs=True),
    "decoding, top-p, FlexAttention": Entry(
        "opaq.bench.model_parts:decoder_with_flex_attention", train=False, cuda_graphs=True
    ),
    "decoding, top-p of transformers": Entry(
        "opaq.bench.model_parts:decoder_of_transformers", train=False, cuda_graphs=True
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", default="", metavar="TEXT,...", help="models whose name contains one of them"
    )
    parser.add_argument(
        "--contestants",
        type=lists.names(CONTESTANTS),
        default=["inductor", "opaq"],
        metavar="NAME,...",
        help=f"of {', '.join(CONTESTANTS)}; the others are compared with the first; "
        "default: inductor,opaq",
    )
    parser.add_argument("--batch", type=int, default=4, help="of training; default: 4")
    parser.add_argument("--tokens", type=int, default=1024, help="of a sequence; default: 1024")
    parser.add_argument("--inference", action="store_true", help="the forward pass of all of them")
    parser.add_argument(
        "--jobs", type=int, default=4, help="models that are compiled side by side; default: 4"
    )
    parser.add_argument(
        "--timeout", type=float, default=600, metavar="SECONDS", help="for a first call"
    )


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    wanted = [each.strip() for each in arguments.only.split(",")]
    chosen = [name for name in MODELS if any(each in name for each in wanted)]
    if not chosen:
        raise WrongTarget(f"--only: got {arguments.only!r}; there are {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory(prefix="opaq_bench_") as folder:
        for first in range(0, len(chosen), arguments.jobs):
            names = chosen[first : first + arguments.jobs]
            _measure(names, folder, arguments, progress)
    return {"rounds": arguments.rounds, "models": len(chosen), "inference": arguments.inference}


def _measure(
    names: list[str], folder: str, arguments: argparse.Namespace, progress: Progress
) -> None:
    """First calls side by side, then one model after the other."""
    contests = {name: _contest(name, f"{folder}/{name}", arguments) for name in names}
    lock = threading.Lock()

    def prepare(name: str) -> None:
        def step(what: str) -> None:
            with lock:
                progress.of(name)(what)

        contest = contests[name]
        lost = contest.start([name], step) + contest.first_calls(name, {}, step)
        with lock:
            progress.record(*lost)

    try:
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            for _ in pool.map(prepare, names):
                pass
        for name, contest in contests.items():
            progress.record(*contest.turns(name, arguments.rounds, progress.of(name)))
            contest.close()
    finally:
        for contest in contests.values():
            contest.close()


def _contest(name: str, folder: str, arguments: argparse.Namespace) -> Contest:
    entry = MODELS[name]
    wanted = Wanted(
        target=entry.target,
        hf=entry.hf,
        config=entry.config,
        batch=arguments.batch,
        tokens=arguments.tokens,
        train=entry.train and not arguments.inference,
        dtype="bfloat16",
        device=arguments.device,
        seed=0,
    )
    contestants = entry.contestants(arguments.contestants)
    return Contest(wanted, contestants, folder, arguments.timeout)
