"""`opaq demo`: the compiled model agrees with plain PyTorch, the facts are complete, bad arguments
are refused.
"""

import importlib.util
import json

import pytest
import torch

from opaq import MissingError, _runtime, demo, demo_backends

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)

OPS = [
    "cross_entropy_mean_with_gradient",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "rope_backward",
    "scale_gradient",
    "silu_mul",
    "silu_mul_backward",
    "sum_of_blocks",
]


@pytest.mark.usefixtures("kernels_as_users_have_them")
def test_a_short_run_agrees_and_tells_all(device, capsys):
    facts = demo.run(steps=4, device=device, json=True)
    assert capsys.readouterr().out == "", "json=True shows nothing of its own"
    assert facts["agree"] and facts["max_error"] < demo.TOLERANCE
    assert facts["loss_last"] < facts["loss_first"]
    assert (facts["device"], facts["steps"]) == (device, 4)
    assert facts["text"].startswith("The") and len(facts["text"]) <= demo.LENGTH
    called = [entry["name"].removeprefix("opaq_kernels::") for entry in facts["ops"]]
    assert sorted(set(called)) == OPS
    for entry in facts["ops"]:
        assert entry["implementation"].startswith(device), (
            f"{entry['name']} ran {entry['implementation']}"
        )
        assert entry["calls"] >= 4 and entry["host_us_per_call"] > 0
    if _runtime.doctor()["nvrtc"]["found"]:
        assert facts["cuda_sources_compiled"] >= 4
        assert facts["images"] >= 8 and facts["images_compiled"] <= facts["images"]
    assert json.loads(json.dumps(facts)) == facts

    again = demo.run(steps=1, device=device, json=True)
    assert again["images_compiled"] == 0

    capsys.readouterr()
    demo.show(facts)
    shown = capsys.readouterr().out
    assert "agrees with plain eager PyTorch" in " ".join(shown.split())
    assert all(name in shown for name in OPS)


@pytest.mark.life
def test_one_model_with_both_backends():
    small = demo_backends.Size(hidden=128, layers=1, vocabulary=64, batch=2, tokens=8)
    facts = demo_backends.run("cpu", small, rounds=2)
    assert [each["backend"] for each in facts] == ["inductor", "opaq"]
    assert all(each["ms_per_step"] > 0 for each in facts)
    assert facts[0]["loss"] == pytest.approx(facts[1]["loss"], rel=1e-2)
    assert "times as long with backend='opaq' as with Inductor" in demo_backends.text(facts)


def test_steps_below_one_are_refused():
    with pytest.raises(ValueError, match="steps: got 0; expected at least 1"):
        demo.run(steps=0, device="cpu", json=True)


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="device: got 'tpu'; expected 'cpu' or 'cuda'"):
        demo.run(steps=1, device="tpu", json=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_told():
    with pytest.raises(
        MissingError,
        match="device 'cuda' was asked for, but torch sees no GPU; run `opaq doctor`, or pass "
        "--device cpu",
    ):
        demo.run(steps=1, device="cuda", json=True)
