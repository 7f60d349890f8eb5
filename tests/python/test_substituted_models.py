"""Patterns in unmodified models of transformers and torch.nn: they are found, and the changed graph
gives eager's loss and gradients. The graphs run eagerly here; what Inductor makes of them is tested
elsewhere.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from opaq import extern_kernels
from opaq.lowering.substitute import apply
from opaq.lowering.substitute.pattern import patterns

transformers = pytest.importorskip("transformers")
extern_kernels.load_patterns()
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 64,
}
GROUPED = {"num_key_value_heads": 2}

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# a dense layer, and one with experts
FIRST_DENSE = {"n_routed_experts": 8, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
FIRST_DENSE["num_experts_per_tok"] = 2
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
LATENT |= {"v_head_dim": 8, "num_key_value_heads": 4}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}

# By class: its configuration, and how often each pattern is found.
LLAMA = {"add_rms_norm": 4, "cross_entropy": 1, "embedding": 1, "rms_norm": 1, "rope": 2}
# the loss of logits that have a softcap, and are a result too
CAPPED = {name.replace("entropy", "entropy_softcap_and_logits"): LLAMA[name] for name in LLAMA}
MODELS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "LlamaForCausalLM": ({**SMALL, **GROUPED}, {**LLAMA, "silu_mul": 2}),
    "Qwen3ForCausalLM": (
        {**SMALL, **GROUPED, "head_dim": 8},
        {**LLAMA, "silu_mul": 2, "rms_norm": 5},
    ),
    "MixtralForCausalLM": (
        {**SMALL, **GROUPED, "num_local_experts": 4},
        {**LLAMA, "moe_combine": 2, "moe_permute": 2, "moe_route": 2, "silu_mul": 2},
    ),
    "Qwen3MoeForCausalLM": (
        {**SMALL, **GROUPED, **EXPERTS, "head_dim": 8, "norm_topk_prob": True},
        {
            **LLAMA,
            "moe_combine": 2,
            "moe_permute": 2,
            "moe_route": 2,
            "rms_norm": 5,
            "silu_mul": 2,
        },
    ),
    "OlmoeForCausalLM": (
        {**SMALL, **GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
        {
            **LLAMA,
            "moe_combine": 2,
            "moe_permute": 2,
            "moe_route_unnormalized": 2,
            "rms_norm": 5,
            "silu_mul": 2,
        },
    ),
    "GptOssForCausalLM": (
        {**SMALL, **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
        {**LLAMA, "moe_combine": 2, "moe_permute": 2, "moe_route": 2, "softmax": 2},
    ),
    # routers by sigmoids: with groups, with one group, without
    "DeepseekV3ForCausalLM": (
        {**SMALL, **FIRST_DENSE, **LATENT, "n_group": 2, "topk_group": 1},
        {
            **LLAMA,
            **{"moe_combine": 1, "moe_permute": 1, "moe_route_scored": 1},
            **{"rms_norm": 5, "silu_mul": 3},
        },
    ),
    # rotary embedding by complex numbers, of a part of a head
    "DeepseekV2ForCausalLM": (
        {**SMALL, **FIRST_DENSE, **LATENT, "topk_method": "greedy"},
        {
            **LLAMA,
            **{"moe_combine": 1, "moe_permute": 1, "moe_route_unnormalized": 1},
            **{"rms_norm": 5, "silu_mul": 3},
        },
    ),
    # rotated keys that are copied into a tensor
    "MiniCPM3ForCausalLM": ({**SMALL, **LATENT}, {**LLAMA, "rms_norm": 5, "silu_mul": 2}),
    # a router that gives the scores of all experts
    "Llama4ForCausalLM": (
        {**SMALL, **GROUPED, **TOKENS, "num_local_experts": 4, "head_dim": 8},
        {**LLAMA, "moe_scores": 2, "rms_norm": 5, "silu_mul": 4},
    ),
    "Glm4MoeForCausalLM": (
        {**SMALL, **GROUPED, **FIRST_DENSE, "head_dim": 8},
        {**LLAMA, "moe_combine": 1, "moe_permute": 1, "moe_route_scored": 1, "silu_mul": 3},
    ),
    "MiniMaxM2ForCausalLM": (
        {**SMALL, **GROUPED, **TOKENS, "num_local_experts": 8, "head_dim": 8},
        {
            **LLAMA,
            **{"moe_combine": 2, "moe_permute": 2, "moe_route_scored": 2},
            **{"rms_norm": 5, "silu_mul": 2},
        },
    ),
    # by a softmax, with a bias of the choice
    "Ernie4_5_MoeForCausalLM": (
        {**SMALL, **GROUPED, "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 16},
        {**LLAMA, "moe_combine": 1, "moe_permute": 1, "moe_route_scored": 1, "silu_mul": 3},
    ),
    "Gemma2ForCausalLM": (
        {**SMALL, **GROUPED, "head_dim": 8},
        {**CAPPED, "gelu_mul": 2, "rms_norm": 5, "softmax": 2},
    ),
    # norms of heads before rope, which lie in memory by tokens
    "Gemma3ForCausalLM": (
        {**SMALL, **GROUPED, "head_dim": 8},
        {**LLAMA, "gelu_mul": 2, "rms_norm": 9},
    ),
    # norms of what rope gives, and one that follows attention
    "HunYuanDenseV1ForCausalLM": (
        {**SMALL, **GROUPED, "head_dim": 8},
        {**LLAMA, "silu_mul": 2, "rms_norm": 5},
    ),
    "BitNetForCausalLM": ({**SMALL, **GROUPED, "pad_token_id": 0}, {**LLAMA, "rms_norm": 5}),
    "NanoChatForCausalLM": ({**SMALL, **GROUPED, "pad_token_id": 0}, {**CAPPED, "rms_norm": 6}),
    "CohereForCausalLM": (
        {**SMALL, **GROUPED},
        {"cross_entropy": 1, "embedding": 1, "layer_norm": 3, "rope": 2, "silu_mul": 2},
    ),
    "GPTNeoXForCausalLM": (
        {**SMALL, "rotary_pct": 0.5},
        {"cross_entropy": 1, "embedding": 1, "layer_norm": 5, "rope": 2},
    ),
    "GPT2LMHeadModel": (
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64},
        {"cross_entropy": 1, "embedding": 2, "layer_norm": 5},
    ),
    "BertForMaskedLM": (SMALL, {"cross_entropy": 1, "embedding": 3, "layer_norm": 6}),
}


def loss_and_gradients(model: torch.nn.Module, call: Any, inputs: Any) -> list[torch.Tensor]:
    model.zero_grad()
    loss = call(**inputs).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def check(model: torch.nn.Module, inputs: Any, expected: dict[str, int]) -> None:
    def backend(graph_module: torch.fx.GraphModule, _: Any) -> Any:
        apply.apply(graph_module, list(patterns))
        return graph_module.forward

    with apply.collected() as found:
        results = loss_and_gradients(model, torch.compile(model, backend=backend), inputs)
    places = Counter(each.pattern for each in found if each.applied)
    assert places == Counter(expected), found
    for result, eager in zip(results, loss_and_gradients(model, model, inputs), strict=True):
        torch.testing.assert_close(result, eager, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers(name: str) -> None:
    configuration, expected = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, name).config_class(**configuration)
    model = getattr(transformers, name)(config).eval()
    for tensor in (*model.buffers(), *model.parameters()):
        if tensor.numel() == 8 and not tensor.any():  # the bias of a choice among 8 experts
            torch.nn.init.normal_(tensor, std=0.1)
    ids = torch.randint(64, (2, 12))
    inputs = {"input_ids": ids, "labels": ids}
    if "Causal" in name or "GPT2" in name:
        inputs["use_cache"] = False
    check(model, inputs, expected)


def test_a_vision_model() -> None:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    model = transformers.ViTForImageClassification(config).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 4])}
    check(model, inputs, {"cross_entropy": 1, "layer_norm": 3})
