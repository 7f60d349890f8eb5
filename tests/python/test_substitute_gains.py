"""Where patterns are used: where they are measured to be faster, and nothing better is broken."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import substituting
import torch
import torch.nn.functional as F
from substituting import found_in

import opaq
from opaq import extern_kernels
from opaq.lowering import Substitution
from opaq.lowering.substitute import apply, measured
from opaq.lowering.substitute.pattern import patterns

extern_kernels.load_patterns()
Tensor = torch.Tensor


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 8), torch.randn(4, 8)


class Head(torch.nn.Module):
    """As transformers computes the loss of a language model."""

    def __init__(self, before: Any = None, after: Any = None, classes: int = 32000) -> None:
        super().__init__()
        self.head = torch.nn.Linear(8, classes, bias=False, dtype=torch.bfloat16)
        self.before = before or (lambda logits: logits)
        self.after = after or (lambda loss: loss)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.before(self.head(x)).float()
        return self.after(F.cross_entropy(logits.flatten(0, 1), target.view(-1)))


def explained_on_cuda(model: torch.nn.Module, rows: int) -> Substitution:
    with torch.device("meta"):
        x = torch.empty(2, rows // 2, 8, dtype=torch.bfloat16)
        target = torch.empty(2, rows // 2, dtype=torch.int64)
    with torch.device("cuda"):  # for which tensors on "meta" stand
        places = opaq.explain(model.to("meta"), x, target).substitutions
    (place,) = [each for each in places if each.pattern == "cross_entropy"]
    return place


def test_all_replaces_what_is_measured_to_be_faster() -> None:
    place = explained_on_cuda(Head(), 4096)
    assert place.applied, place.reason
    assert place.gain is not None and place.gain > 1
    assert place.reason == f"measured: {place.gain:.2f} times as fast"


def test_what_reads_a_loss_does_not_matter() -> None:
    assert explained_on_cuda(Head(after=lambda loss: loss / 4 + 1), 4096).applied


def test_all_leaves_what_was_not_measured_and_what_inductor_fuses() -> None:
    place = explained_on_cuda(Head(), 16)
    assert not place.applied
    assert place.reason == "it was not measured for 16 x 32000 values on cuda:0"
    place = explained_on_cuda(Head(lambda logits: 30 * torch.sigmoid(logits / 30)), 4096)
    assert not place.applied
    assert "in the same kernel, which saves more" in place.reason


def reason_for_an_embedding(rows: int, tokens: int, train: bool = True) -> str:
    """Of rows of a table that are read by what Inductor computes in the same kernel."""
    table = torch.nn.Embedding(rows, 8, dtype=torch.bfloat16)
    with torch.set_grad_enabled(train):
        model = torch.compile(
            lambda x: table(x).sin(), backend=substituting.backend("all"), dynamic=False
        )
        with apply.collected() as found:
            model(torch.zeros(tokens, dtype=torch.int64))
    (place,) = found
    return place.reason


def test_measurements_are_of_the_dtype_of_a_table_not_of_its_index() -> None:
    with torch.device("meta"):
        table = torch.nn.Embedding(32000, 2048, dtype=torch.bfloat16)
        index = torch.empty(8192, dtype=torch.int64)
    with torch.device("cuda"):
        (place,) = opaq.explain(table, index).substitutions
    assert place.applied, place.reason


def test_the_gradient_of_a_table_outweighs_a_fusion_of_its_rows() -> None:
    assert reason_for_an_embedding(32000, 512) == "it was not measured for 512 x 8 values on cpu"
    fused = "Inductor computes what reads the result (sin) in the same kernel, which saves more"
    assert reason_for_an_embedding(32000, 512, train=False) == fused
    assert reason_for_an_embedding(100, 512) == fused
    reason = "it was not measured for 64 x 8 values on cpu (a small table)"
    assert reason_for_an_embedding(100, 64) == reason


# Classes of published models: Llama 2, Phi-3, GPT-2, GPT-NeoX, Llama 3, DeepSeek-V3, Qwen, Phi-4,
# Gemma 2, Gemma 3.
CLASSES = [32000, 32064, 50257, 50432, 128256, 129280, 151936, 152064, 200064, 256000, 262208]


@pytest.mark.parametrize("rows", [512, 4096, 65536])
def test_losses_of_published_models_are_measured(rows: int) -> None:
    """Where a measurement were missing, they would be left to Inductor."""
    smoothed = ("cross_entropy_label_smoothing", "cross_entropy_two_sums")
    for name in ("cross_entropy", "token_log_probability", *smoothed):
        known = measured.read(patterns[name].measurements)
        for classes in CLASSES:
            for training in (False, True):
                points = measured.alike(known, "sm_90", "bfloat16", training, "")
                gain = measured.gain(points, rows, classes)
                assert gain is not None and gain > measured.FASTER, (name, classes, training)


def test_parts_of_a_product_are_not_fused(pair: Any) -> None:
    linear = torch.nn.Linear(8, 16)

    def model(x: Tensor) -> Tensor:
        gate, up = linear(x).chunk(2, -1)
        return torch.mm(F.silu(gate) * up, torch.ones(8, 2))

    (place,) = found_in(model, pair[0], names="all")
    assert place.reason == "it was not measured for 4 x 8 values on cpu"


def test_what_reads_the_result_behind_a_product_is_not_fused(pair: Any) -> None:
    linear = torch.nn.Linear(8, 8)

    def layer(x: Tensor, residual: Tensor, after: Any) -> Tensor:
        total = linear(x) + residual
        return total + after(F.rms_norm(total, (8,), torch.ones(8), 1e-6))

    def reason(after: Any) -> str:
        found = found_in(lambda *args: layer(*args, after), *pair, names="all")
        (place,) = [each for each in found if each.pattern == "add_rms_norm"]
        return place.reason

    assert reason(linear) == "it was not measured for 4 x 8 values on cpu"
    assert "in the same kernel, which saves more" in reason(lambda y: y)


def test_parts_of_a_pattern_that_read_one_of_its_results_are_not_neighbours(pair: Any) -> None:
    linear = torch.nn.Linear(8, 8)

    def norm_by_hand(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = linear(x) + residual
        scale = torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-6)
        return total, linear(torch.ones(8) * (total * scale))

    def capped_loss(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        capped = torch.tanh(linear(x) / 30) * 30
        return F.cross_entropy(capped, torch.zeros(4, dtype=torch.int64)), capped

    for model, pattern in (
        (norm_by_hand, "add_rms_norm"),
        (capped_loss, "cross_entropy_softcap_and_logits"),
    ):
        found = {each.pattern: each.reason for each in found_in(model, *pair, names="all")}
        assert found[pattern] == "it was not measured for 4 x 8 values on cpu"


class Weighted(torch.nn.Module):
    """A softmax in float32, which a product reads in the same dtype, or in bfloat16."""

    def __init__(self, view: tuple[int, ...], narrow: bool) -> None:
        super().__init__()
        self.view, self.dtype = view, torch.bfloat16 if narrow else torch.float32
        self.values = torch.nn.Linear(4096, 8, dtype=self.dtype)

    def forward(self, scores: Tensor) -> Tensor:
        return self.values(scores.softmax(-1).view(self.view).to(self.dtype))


@pytest.mark.parametrize("view", [(8192, 4096), (2, 4096, 4096)])
def test_a_result_that_is_read_with_fewer_bits_is_left(view: tuple[int, ...]) -> None:
    def place(narrow: bool) -> Substitution:
        model, x = Weighted(view, narrow).to("meta"), torch.empty(8192, 4096, device="meta")
        with torch.device("cuda"):  # for which tensors on "meta" stand
            (found,) = opaq.explain(model, x).substitutions
        return found

    assert place(narrow=False).applied
    refused = "Inductor computes the result in bfloat16 at once, in which it is read (to), which"
    assert place(narrow=True).reason.startswith(refused)


# ---- measurements --------------------------------------------------------------------------------


def points(*gains: tuple[int, int, float]) -> list[measured.Point]:
    return [measured.Point("sm_90", "bfloat16", False, *gain) for gain in gains]


def test_the_gain_is_the_smallest_of_the_measurements_around() -> None:
    known = points((16, 128, 1.5), (1024, 128, 1.2), (16, 4096, 0.9), (1024, 4096, 1.3))
    assert measured.gain(known, 16, 128) == 1.5
    assert measured.gain(known, 100, 128) == 1.2
    assert measured.gain(known, 1024, 1000) == 1.2
    assert measured.gain(known, 100, 1000) == 0.9
    assert measured.gain(known, 10**6, 4096) == 1.3  # more rows count as the most measured
    assert measured.gain(known, 8, 128) is None  # fewer rows than were measured
    assert measured.gain(known, 100, 8192) is None
    known += points((4096, 1000, 1.1))
    assert measured.gain(known, 1024, 1000) == 1.2  # a width that was measured with more rows only
    assert measured.gain(known, 4096, 1000) == 1.1
    assert measured.gain([], 1, 1) is None


def test_float16_counts_as_bfloat16_where_it_was_not_measured() -> None:
    call = ("sm_90", "float16", False, "")
    known = points((16, 128, 1.5))
    assert measured.alike(known, *call) == known
    of_its_own = [dataclasses.replace(known[0], dtype="float16", gain=1.1)]
    assert measured.alike([*known, *of_its_own], *call) == of_its_own
    assert measured.alike(of_its_own, "sm_90", "bfloat16", False, "") == []
    assert measured.alike(known, "sm_90", "float32", False, "") == []


def test_a_new_measurement_replaces_that_of_the_same_call(tmp_path: Any) -> None:
    file = tmp_path / "measured.json"
    assert measured.read(file) == ()
    measured.write(file, points((16, 128, 1.5), (16, 256, 1.4)), {"device": "test"})
    measured.write(file, points((16, 256, 1.1)), {"device": "test"})
    assert measured.read(file) == (*points((16, 128, 1.5), (16, 256, 1.1)),)
