"""opaq.extern_kernels.penalize: against transformers and the formulas in float64, rows of their own
penalties, strides, errors, compiled graphs, CUDA plans.
"""

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
from opaq.extern_kernels import penalize
from opaq.extern_kernels.sampling.penalize import penalize_reference

NUMBERS = (1.3, 0.4, 0.25)


def make(rows, classes, dtype, device):
    generator = torch.Generator().manual_seed(rows * classes)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 3
    seen = torch.randint(0, 8, (2, rows, classes), generator=generator)
    counts = (seen[0] - 5).clamp(min=0).int()
    return logits.to(device, dtype), counts.to(device), (seen[1] == 0).to(device)


def exact(logits, counts, prompt, repetition=1.0, presence=0.0, frequency=0.0):
    wide = logits.double()
    generated = counts > 0
    seen = generated | prompt
    wide = torch.where(seen & (wide > 0), wide / repetition, wide)
    wide = torch.where(seen & (logits < 0), wide * repetition, wide)
    return wide - frequency * counts.double() - presence * generated.double()


@pytest.mark.parametrize("dtype", DTYPES)
def test_penalties(dtype, device):
    for rows, classes in ((1, 1), (3, 7), (5, 1000), (2, 50257), (70000, 3), (2, 8200)):
        logits, counts, prompt = make(rows, classes, dtype, device)
        found = penalize(logits, counts, prompt, *NUMBERS)
        assert found.dtype == dtype
        close(found, exact(logits, counts, prompt, *NUMBERS))
        none = torch.zeros_like(prompt)
        close(penalize(logits, counts, None, *NUMBERS), exact(logits, counts, none, *NUMBERS))
        assert torch.equal(penalize(logits, counts, prompt), logits)
        untouched = (counts == 0) & ~prompt
        assert torch.equal(found[untouched], logits[untouched])


@needs_transformers
def test_repetition_is_that_of_transformers(device):
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, _, _ = make(6, 500, torch.float32, device)
    ids = torch.randint(0, 500, (6, 80), device=device)
    prompt = torch.zeros(6, 500, dtype=torch.bool, device=device)
    prompt.scatter_(1, ids[:, :50], True)
    counts = torch.zeros(6, 500, dtype=torch.int32, device=device)
    ones = torch.ones(6, 30, dtype=torch.int32, device=device)
    counts.scatter_add_(1, ids[:, 50:], ones)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone())
    torch.testing.assert_close(penalize(logits, counts, prompt, 1.7), expected)


def test_each_row_has_penalties_of_its_own(device):
    logits, counts, prompt = make(4, 300, torch.float32, device)
    rows = [
        torch.tensor(values, device=device)
        for values in ([1.0, 1.5, 0.8, 1.0], [0.0, 0.5, -0.3, 1.0], [0.0, 0.1, 2.0, 0.0])
    ]
    found = penalize(logits, counts, prompt, 1.0, 0.0, 0.0, *rows)
    for i in range(4):
        alone = penalize(
            logits[i : i + 1], counts[i : i + 1], prompt[i : i + 1], *(float(r[i]) for r in rows)
        )
        torch.testing.assert_close(found[i : i + 1], alone)


def test_strided_and_masked_logits(device):
    logits, counts, prompt = make(6, 96, torch.float32, device)
    logits[:, 5] = -torch.inf
    logits[:, 6] = torch.inf
    for view in (logits[::2], logits.expand(6, 96)[:3], logits.t()[:3, :6].t()):
        rows, classes = view.shape
        c, p = counts[:rows, :classes], prompt[:rows, :classes]
        close(penalize(view, c, p, *NUMBERS), exact(view, c, p, *NUMBERS))
        close(penalize(view, c.contiguous(), p.contiguous(), *NUMBERS), exact(view, c, p, *NUMBERS))


def test_no_rows(device):
    assert penalize(*make(0, 10, torch.float32, device), *NUMBERS).shape == (0, 10)


def test_the_reference_means_the_same(device):
    inputs = make(7, 200, torch.float32, device)
    torch.testing.assert_close(penalize(*inputs, *NUMBERS), penalize_reference(*inputs, *NUMBERS))


def test_bad_arguments_are_refused(device, capfd):
    logits, counts, prompt = make(3, 10, torch.float32, device)
    message = "penalize: repetition is 0.0; expected a number above 0"
    refuses(lambda: penalize(logits, counts, prompt, 0.0), message, capfd)
    message = "penalize: counts is torch.int64 of shape (3, 10); expected torch.int32 of logits'"
    refuses(lambda: penalize(logits, counts.long()), message, capfd)
    message = "penalize: prompt is torch.bool of shape (3, 9); expected torch.bool of logits' shape"
    refuses(lambda: penalize(logits, counts, prompt[:, :9]), message, capfd)
    message = "penalize: row_presence has shape (2,); expected (3,), a value for each row"
    two = torch.ones(2, device=device)
    refuses(lambda: penalize(logits, counts, row_presence=two), message, capfd)
    message = "penalize: logits are torch.float32 of shape (10,); expected [rows, classes] of"
    refuses(lambda: penalize(logits[0], counts[0]), message, capfd)


def test_opcheck(device):
    logits, counts, prompt = make(5, 16, torch.float32, device)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(penalize, (logits, counts, prompt, *NUMBERS), test_utils=utils)
    opaq.opcheck(penalize, logits, counts, prompt, *NUMBERS)


def test_compiled(device):
    def step(logits, counts, prompt):
        return penalize(logits * 2, counts, prompt, *NUMBERS).argmax(1)

    compiled = torch.compile(step, dynamic=True, fullgraph=True)
    before = node_calls(penalize)
    for rows in (4, 9):
        inputs = make(rows, 300, torch.float32, device)
        assert torch.equal(compiled(*inputs), step(*inputs))
    assert node_calls(penalize) >= before + 2


@pytest.mark.parametrize(
    ("classes", "dtype", "entry", "grid"),
    [
        (128256, torch.bfloat16, "penalize<__nv_bfloat16, 8>", [63, 64]),
        (128256, torch.float32, "penalize<float, 4>", [126, 64]),
        (50257, torch.float16, "penalize<__half, 1>", [197, 64]),
    ],
)
def test_cuda_plan(classes, dtype, entry, grid):
    tensors = [cuda((64, classes), dtype), cuda((64, classes), torch.int32)]
    chosen = plan(penalize, *tensors, cuda((64, classes), torch.bool), *NUMBERS, None, None, None)
    assert (chosen["entry"], list(chosen["grid"])) == (entry, [*grid, 1])


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_sources_compile(arch):
    tensors = [cuda((64, 1000), torch.float16), cuda((64, 1000), torch.int32)]
    facts = (*tensors, cuda((64, 1000), torch.bool), *NUMBERS, None, None, None)
    compiles(penalize, facts, arch, "cuda:packs")
