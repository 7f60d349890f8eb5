"""opaq.extern_kernels.penalize_tokens: against transformers, vLLM's formulas and float64, paddings,
strides, errors, compiled graphs, CUDA plans.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import (
    ARCHS,
    DTYPES,
    close,
    compiles,
    cuda,
    needs_transformers,
    node_calls,
    plan,
    refuses,
)

import opaq
from opaq.extern_kernels import penalize_tokens
from opaq.extern_kernels.sampling.penalize_tokens import penalize_tokens_reference

NUMBERS = (1.3, 0.4, 0.25)
Tensor = torch.Tensor


def make(rows: int, classes: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * classes)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 3
    tokens = torch.randint(0, min(classes, 30), (rows, 40), generator=generator)
    prompt = torch.randint(0, classes, (rows, 300), generator=generator)
    return logits.to(device, dtype), tokens.to(device), prompt.to(device)


def exact(
    logits: Tensor,
    tokens: Tensor,
    prompt: Tensor,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
) -> Tensor:
    """As vLLM's apply_penalties."""
    counts = [
        torch.stack([row.bincount(minlength=logits.shape[1] + 1) for row in each.cpu()])
        for each in (tokens, prompt)
    ]
    generated, given = (each[:, : logits.shape[1]].to(logits.device) for each in counts)
    wide = logits.double()
    seen = (generated > 0) | (given > 0)
    factor = torch.ones_like(wide).masked_fill(seen, repetition)
    wide = wide * torch.where(wide > 0, 1 / factor, factor)
    return wide - frequency * generated.double() - presence * (generated > 0).double()


@pytest.mark.parametrize("dtype", DTYPES)
def test_penalties(dtype: torch.dtype, device: str) -> None:
    for rows, classes in ((1, 1), (3, 7), (5, 1000), (2, 50257), (70, 32), (9, 8200), (1, 8193)):
        logits, tokens, prompt = make(rows, classes, dtype, device)
        found = penalize_tokens(logits, tokens, prompt, *NUMBERS)
        assert found.dtype == dtype
        close(found, exact(logits, tokens, prompt, *NUMBERS))
        none = tokens[:, :0]
        found = penalize_tokens(logits, tokens, None, *NUMBERS)
        close(found, exact(logits, tokens, none, *NUMBERS))
        close(penalize_tokens(logits, None, prompt, 1.3), exact(logits, none, prompt, 1.3))
        assert torch.equal(penalize_tokens(logits, tokens, prompt), logits)
        assert torch.equal(penalize_tokens(logits, none, none, *NUMBERS), logits)


@needs_transformers
def test_repetition_is_that_of_transformers(device: str) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, _, prompt = make(6, 500, torch.float32, device)
    prompt[:, 3] = prompt[:, 7]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(prompt, logits.clone())
    torch.testing.assert_close(penalize_tokens(logits, None, prompt, 1.7), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_wide_results_are_not_rounded_to_16_bits(dtype: torch.dtype, device: str) -> None:
    given = make(3, 200, dtype, device)
    found = penalize_tokens(*given, *NUMBERS, wide=True)
    assert found.dtype == torch.float32
    close(found, exact(*given, *NUMBERS))


def test_each_row_has_penalties_of_its_own(device: str) -> None:
    logits, tokens, prompt = make(4, 300, torch.float32, device)
    rows = [
        torch.tensor(values, device=device)
        for values in ([1.0, 1.5, 0.8, 1.0], [0.0, 0.5, -0.3, 1.0], [0.0, 0.1, 2.0, 0.0])
    ]
    found = penalize_tokens(logits, tokens, prompt, 1.0, 0.0, 0.0, *rows)
    for i in range(4):
        one = slice(i, i + 1)
        numbers = (float(each[i]) for each in rows)
        alone = penalize_tokens(logits[one], tokens[one], prompt[one], *numbers)
        torch.testing.assert_close(found[one], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinite_penalties_of_other_tokens(dtype: torch.dtype, device: str) -> None:
    logits, tokens, prompt = make(4, 300, dtype, device)
    each = torch.tensor([0.5, torch.inf, torch.nan, 0.0], device=device)
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, tokens, True)
    for name in ("row_presence", "row_frequency"):
        found = penalize_tokens(logits, tokens, prompt, **{name: each}, others=True)
        assert torch.equal(found[1].isnan(), ~seen[1]) and (found[1][seen[1]] == -torch.inf).all()
        assert found[2].isnan().all()
        for row in (0, 3):
            assert torch.equal(found[row][~seen[row]], logits[row][~seen[row]])
        found = penalize_tokens(logits, tokens, prompt, **{name: each})
        assert torch.equal(found[~seen], logits[~seen])
    assert penalize_tokens(logits, None, prompt, presence=torch.inf, others=True).isnan().all()


def test_paddings_are_passed_over(device: str) -> None:
    logits, tokens, prompt = make(4, 300, torch.float32, device)
    expected = exact(logits, tokens[:, :20], prompt[:, :5], *NUMBERS)
    tokens[:, 20:], prompt[:, 5:] = 300, 304
    found = penalize_tokens(logits, tokens, prompt, *NUMBERS, paddings=5)
    torch.testing.assert_close(found, expected.float())
    huge = tokens.masked_fill(tokens == 300, 2**62)
    found = penalize_tokens(logits, huge, prompt, *NUMBERS, paddings=2**63 - 1)
    torch.testing.assert_close(found, expected.float())


def test_strided_and_masked(device: str) -> None:
    logits, tokens, prompt = make(6, 96, torch.float32, device)
    logits[:, 5], logits[:, 6], logits[:, 7] = -torch.inf, torch.inf, torch.nan
    for view in (logits[::2], logits.expand(6, 96)[:3], logits.t()[:30, :3].t()):
        given = tokens[::2, 3:] % view.shape[1], prompt.t()[::3].t()[:3] % view.shape[1]
        for each in (given, tuple(one.contiguous() for one in given)):
            found = penalize_tokens(view, *each, *NUMBERS)
            close(found, exact(view, *each, *NUMBERS))


def test_no_rows(device: str) -> None:
    assert penalize_tokens(*make(0, 10, torch.float32, device), *NUMBERS).shape == (0, 10)


def test_the_reference_means_the_same(device: str) -> None:
    given = make(7, 200, torch.float32, device)
    expected = penalize_tokens_reference(*given, *NUMBERS)
    torch.testing.assert_close(penalize_tokens(*given, *NUMBERS), expected)


def test_tokens_that_are_no_classes_are_an_error() -> None:
    logits, tokens, prompt = make(2, 50, torch.float32, "cpu")
    for wrong, paddings in ((-1, 0), (50, 0), (51, 1), (-1, 7)):
        for number, given in enumerate((tokens, prompt)):
            bad = given.clone()
            bad[1, 2] = wrong
            both = (bad, prompt) if number == 0 else (tokens, bad)
            with pytest.raises(RuntimeError, match=f"token {wrong} is out of bounds for 50"):
                penalize_tokens(logits, *both, 1.1, paddings=paddings)
            with pytest.raises(RuntimeError, match="out of bounds"):
                penalize_tokens(logits.half(), *both, 1.1, paddings=paddings)


def test_bad_arguments_are_refused(device: str, capfd: Any) -> None:
    logits, tokens, prompt = make(3, 10, torch.float32, device)
    message = "penalize: repetition is 0.0; expected a number above 0"
    refuses(lambda: penalize_tokens(logits, tokens, prompt, 0.0), message, capfd)
    message = "penalize_tokens: tokens is torch.int32 of shape (3, 40); expected torch.int64 of ["
    refuses(lambda: penalize_tokens(logits, tokens.int()), message, capfd)
    message = "penalize_tokens: prompt is torch.int64 of shape (2, 300); expected torch.int64 of ["
    refuses(lambda: penalize_tokens(logits, None, prompt[:2]), message, capfd)
    message = "penalize_tokens: paddings is -1; expected 0 or more"
    refuses(lambda: penalize_tokens(logits, tokens, paddings=-1), message, capfd)
    message = "penalize: row_presence has shape (2,); expected (3,), a value for each row"
    two = torch.ones(2, device=device)
    refuses(lambda: penalize_tokens(logits, tokens, row_presence=two), message, capfd)
    message = "penalize_tokens: logits are torch.float32 of shape (10,); expected [rows, classes]"
    refuses(lambda: penalize_tokens(logits[0], tokens), message, capfd)


def test_opcheck(device: str) -> None:
    given = make(5, 16, torch.float32, device)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(penalize_tokens, (*given, *NUMBERS), test_utils=utils)
    opaq.opcheck(penalize_tokens, *given, *NUMBERS)


def test_compiled(device: str) -> None:
    def step(logits: Tensor, tokens: Tensor, prompt: Tensor) -> Tensor:
        return penalize_tokens(logits * 2, tokens, prompt, *NUMBERS).argmax(1)

    compiled = torch.compile(step, dynamic=True, fullgraph=True)
    before = node_calls(penalize_tokens)
    for rows in (4, 9):
        inputs = make(rows, 300, torch.float32, device)
        assert torch.equal(compiled(*inputs), step(*inputs))
    assert node_calls(penalize_tokens) >= before + 2


REST = (None, None, None, 0)


@pytest.mark.parametrize(
    ("rows", "classes", "dtype", "wide", "entry", "grid"),
    [
        (1, 128256, torch.bfloat16, True, "__nv_bfloat16, float, 1024, 8", [126, 1]),
        (64, 128256, torch.float32, False, "float, float, 8192, 4", [16, 64]),
        (64, 50257, torch.float16, False, "__half, __half, 2048, 1", [25, 64]),
    ],
)
def test_cuda_plan(
    rows: int, classes: int, dtype: torch.dtype, wide: bool, entry: str, grid: list[int]
) -> None:
    tensors = [cuda((rows, classes), dtype), cuda((rows, 70), torch.int64)]
    chosen = plan(penalize_tokens, *tensors, None, *NUMBERS, *REST, wide)
    assert chosen["entry"] == f"penalize_tokens<{entry}>"
    assert list(chosen["grid"]) == [*grid, 1]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", ["cuda:few", "cuda:packs", "cuda:elements"])
def test_cuda_sources_compile(arch: str, name: str) -> None:
    tensors = [cuda((8, 1000), torch.float16), *[cuda((8, 70), torch.int64)] * 2]
    for wide in (False, True):
        compiles(penalize_tokens, (*tensors, *NUMBERS, *REST, wide), arch, name)
