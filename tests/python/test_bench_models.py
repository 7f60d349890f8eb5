"""The models that `opaq bench models` measures can be made, and a set of them is measured."""

from __future__ import annotations

import io
from argparse import ArgumentParser, Namespace
from typing import Any

import pytest
import torch

from opaq.bench import contest, model_parts, models
from opaq.bench.table import Progress
from opaq.bench.wanted import values_of
from opaq.user_file import WrongTarget

transformers = pytest.importorskip("transformers")


def parsed(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    models.add_arguments(parser)
    return parser.parse_args([*arguments], Namespace(device="cpu", rounds=1))


@pytest.mark.parametrize("name", [name for name, each in models.MODELS.items() if each.hf])
def test_the_configurations_are_valid(name: str) -> None:
    entry = models.MODELS[name]
    cls = getattr(transformers, str(entry.hf))
    config = cls.config_class(**values_of(entry.config))
    for option in values_of(entry.config):
        assert option in config.to_dict(), option
    with torch.device("meta"):
        made = cls(config)
    assert 1e7 < sum(each.numel() for each in made.parameters()) < 2e9


def test_a_step_of_decoding() -> None:
    sizes = {"layers": 1, "width": 32, "heads": 4, "kv_heads": 2, "inner": 64, "classes": 50}
    for make in (
        model_parts.decoder,
        model_parts.decoder_with_flex_attention,
        model_parts.decoder_of_transformers,
    ):
        model, (tokens, position) = make(**sizes, batch=3, cached=8)
        with torch.no_grad():
            drawn = model.to("cpu")(tokens.cpu(), position.cpu())
        assert drawn.shape == (3, 1) and ((drawn >= 0) & (drawn < 50)).all()


def test_both_ways_to_write_attention_agree() -> None:
    q, k, v = torch.randn(3, 4, 1, 16), torch.randn(3, 2, 8, 16), torch.randn(3, 2, 8, 16)
    position = torch.tensor([5])
    expected = model_parts.masked(q, k, v, position)
    torch.testing.assert_close(model_parts.flex(q, k, v, position), expected)


def test_both_ways_to_write_top_p_keep_the_same_classes() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 500) * 3
    torch.testing.assert_close(model_parts.likeliest(logits), model_parts.warped(logits))


def test_a_layer_of_experts() -> None:
    layer, (x,) = model_parts.experts(width=16, inner=8, count=4, k=2, tokens=5)
    assert layer.to("cpu")(x.cpu()).shape == (1, 5, 16)


@pytest.mark.life
def test_a_set_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    small = "n_layer=1,n_embd=16,n_head=2,vocab_size=32"
    entries = {
        "right": models.Entry(hf="GPT2LMHeadModel", config=small, train=False),
        "wrong": models.Entry(hf="GPT2LMHeadModel", config="n_layer=1,n_embd=16,n_head=3"),
    }
    monkeypatch.setattr(models, "MODELS", entries)
    progress = Progress(io.StringIO())
    command = parsed("--contestants", "eager", "--batch", "1", "--tokens", "4", "--jobs", "2")
    method = models.run(command, progress)
    assert method["models"] == 2
    steps: dict[str, Any] = {
        each["case"]: each for each in progress.records if each["metric"] == contest.STEP
    }
    assert steps["right"]["verdict"] == "baseline" and steps["right"]["value"] > 0
    assert steps["wrong"]["verdict"] == "failed" and "heads" in steps["wrong"]["note"]


def test_a_name_that_no_model_has() -> None:
    with pytest.raises(WrongTarget, match="--only: got 'nothing'; there are Llama, Qwen3, "):
        models.run(parsed("--only", "nothing"), Progress(io.StringIO()))
