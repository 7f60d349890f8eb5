"""opaq.extern_kernels.sample: the kept classes against transformers' warpers, draws against the
distribution, masked, equal and invalid logits, layouts, compiled graphs, CUDA plans.
"""

import pytest
import torch
from kernel_checks import DTYPES, compiles, cuda, needs_transformers, plan, refuses

import opaq
from opaq.extern_kernels import sample, sample_with_uniform, sampling_probabilities
from opaq.extern_kernels.sampling.sample import (
    sample_reference,
    sample_with_uniform_reference,
    sampling_probabilities_reference,
)

# Of one block and of clusters of 2, 4 and 8 of them, with float32 or 16-bit logits.
CLASSES = [1, 2, 7, 31, 257, 5003, 20000, 50257, 128256]
SETTINGS = [
    {},
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 3000},
    {"top_p": 0.9},
    {"top_p": 0.3, "temperature": 2.0},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.02, "temperature": 0.9},
]


def make(rows, classes, dtype, device, scale=2.0):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale
    return logits.to(device, dtype)


def exact(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    return sampling_probabilities_reference(logits.double(), temperature, top_k, top_p, min_p)


def check(logits, **setting):
    """Probabilities are those of float64, but for one class at the border of top_p or min_p."""
    found = sampling_probabilities(logits, **setting)
    wide = exact(logits, **setting)
    assert found.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    other = (found > 0) != (wide > 1e-12 * wide.amax(1, keepdim=True))
    # A class whose weight is below what a float32 or the fixed point has is no difference.
    other &= (found > 1e-10) | (wide > 1e-10)
    allowed = 1 if {"top_p", "min_p"} & set(setting) else 0
    assert other.sum(1).max() <= allowed
    torch.testing.assert_close(found.double(), wide, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_probabilities(dtype, setting, device):
    for classes in CLASSES:
        if device == "cpu" and classes > 20000 and len(setting) == 1:
            continue
        check(make(3, classes, dtype, device), **setting)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_64_rows(dtype, device):
    for setting in ({"top_k": 50}, {"top_p": 0.9}):
        check(make(64, 8200, dtype, device), **setting)
    check(make(1, 128256, dtype, device), top_k=50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [20000, 66001])
def test_many_rows_have_larger_blocks(classes, dtype, device):
    logits = make(41, classes, dtype, device)
    for setting in ({"top_k": 50}, {"top_p": 0.9}, {"top_k": 700, "top_p": 0.5, "min_p": 0.01}, {}):
        check(logits, **setting)
    tokens = sample_with_uniform(logits, torch.rand(41, device=device), top_p=0.9)
    assert (exact(logits, top_p=0.9).gather(1, tokens.unsqueeze(1)) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 31, 257, 9001])
def test_rows_begin_at_any_element(classes, dtype, device):
    flat = make(1, 3 * (classes + 1) + 8, dtype, device)[0]
    for offset in range(9):
        begin = flat[offset:]
        for stride in (classes, classes + 1):
            logits = begin.as_strided((3, classes), (stride, 1), begin.storage_offset())
            for setting in ({"top_k": 5}, {"top_p": 0.7}, {}):
                check(logits, **setting)
                tokens = sample_with_uniform(
                    logits, torch.tensor([0.1, 0.5, 0.999], device=device), **setting
                )
                assert ((tokens >= 0) & (tokens < classes)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs(dtype, device):
    logits = make(12, 96, dtype, device)
    expanded = logits[:1].expand(5, 96)
    for view in (logits[::2], logits[:, 8:72], logits.t(), logits[:, ::2], expanded):
        check(view, top_k=9, top_p=0.8)


@needs_transformers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kept_classes_are_those_of_transformers(dtype, device):
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    # A few values over and over: ties at the border of top-k and of top-p. Sums of weights, which
    # transformers rounds to float32, are far from p times the total.
    generator = torch.Generator().manual_seed(0)
    for rows, classes in ((8, 50), (8, 1000), (4, 9000)):
        values = torch.randint(-20, 20, (rows, classes), generator=generator) / 4
        logits = values.to(device, dtype)
        for warper, setting in [
            (TopKLogitsWarper(1), {"top_k": 1}),
            (TopKLogitsWarper(30), {"top_k": 30}),
            (TopKLogitsWarper(700), {"top_k": 700}),
            (TopPLogitsWarper(0.9123), {"top_p": 0.9123}),
            (TopPLogitsWarper(0.3717), {"top_p": 0.3717}),
            (TopPLogitsWarper(0.0), {"top_p": 0.0}),
            (MinPLogitsWarper(0.1), {"min_p": 0.1}),
            (MinPLogitsWarper(1.0), {"min_p": 1.0}),
        ]:
            expected = warper(None, logits.float())
            kept = sampling_probabilities(logits, **setting) > 0
            found = torch.where(kept, logits.float(), -torch.inf)
            if "top_p" in setting:  # its sort is not stable: which of equal logits is open
                expected, found = expected.sort(1)[0], found.sort(1)[0]
            assert torch.equal(found, expected), (classes, setting)
        scores = logits.float()
        for warper in (
            TemperatureLogitsWarper(1.7),
            TopKLogitsWarper(45),
            TopPLogitsWarper(0.83),
            MinPLogitsWarper(0.15),
        ):
            scores = warper(None, scores)
        found = sampling_probabilities(logits, 1.7, 45, 0.83, 0.15)
        expected = scores.softmax(1)
        torch.testing.assert_close(found.sort(1)[0], expected.sort(1)[0], rtol=1e-5, atol=1e-6)


def chi_square(counts, probabilities):
    """Of the classes with at least 8 expected draws; by its distribution, with mean 0 and standard
    deviation 1 where draws follow the probabilities."""
    expected = probabilities * counts.sum()
    often = expected >= 8
    degrees = int(often.sum()) - 1
    found = ((counts - expected) ** 2 / expected)[often].sum()
    return float(found - degrees) / (2 * degrees) ** 0.5


@pytest.mark.parametrize("setting", [{}, {"top_k": 20}, {"top_p": 0.7}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("classes", [50, 3000])
def test_draws_follow_the_distribution(classes, setting, device):
    logits = make(1, classes, torch.float32, device)
    torch.manual_seed(3)
    draws = 20000
    tokens = sample(logits.expand(draws, classes), **setting)
    counts = torch.bincount(tokens, minlength=classes).double()
    wide = exact(logits, **setting)[0]
    assert counts[wide == 0].sum() == 0
    assert abs(chi_square(counts, wide)) < 4.5


@pytest.mark.parametrize("setting", [{}, {"top_k": 200}, {"top_p": 0.8}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_picks_the_class_at_its_place(dtype, setting, device):
    for classes in (1, 37, 5003, 50257):
        logits = make(1, classes, dtype, device, 1.0)
        uniform = torch.linspace(0, 1 - 2**-23, 97, device=device)
        tokens = sample_with_uniform(logits.expand(97, classes), uniform, **setting)
        upto = exact(logits, **setting)[0].cumsum(0)
        before = torch.where(tokens > 0, upto[(tokens - 1).clamp(min=0)], 0)
        close = 2e-5
        assert (before <= uniform.double() + close).all()
        assert (upto[tokens] >= uniform.double() - close).all()
        assert (exact(logits, **setting)[0][tokens] > 0).all()


def test_the_seed_decides_and_no_two_calls_are_alike(device):
    logits = torch.zeros(64, 1000, device=device)
    seen = []
    for function in (sample, torch.compile(sample, fullgraph=True)):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            seen += [function(logits), function(logits)]
    for i, j in ((0, 2), (1, 3), (0, 6), (1, 7), (4, 10)):
        assert torch.equal(seen[i], seen[j])
    for i, j in ((0, 1), (0, 4), (1, 5)):
        assert not torch.equal(seen[i], seen[j])
    assert len(set(seen[0].tolist())) > 50


def test_each_row_has_parameters_of_its_own(device):
    logits = make(6, 2000, torch.float32, device)
    temperature = torch.tensor([0.5, 1, 2, 1, 1, 1.0], device=device)
    top_k = torch.tensor([0, 5, 0, 100, 5000, 1], device=device)
    top_p = torch.tensor([1, 0.5, 0.9, 1, 0.2, 1.0], device=device)
    min_p = torch.tensor([0, 0, 0, 0.1, 0, 0.0], device=device)
    found = sampling_probabilities(
        logits,
        row_temperature=temperature,
        row_top_k=top_k,
        row_top_p=top_p,
        row_min_p=min_p,
    )
    for i in range(6):
        setting = [float(temperature[i]), int(top_k[i]), float(top_p[i]), float(min_p[i])]
        torch.testing.assert_close(
            found[i : i + 1], sampling_probabilities(logits[i : i + 1], *setting)
        )
    tokens = sample_with_uniform(logits, torch.full((6,), 0.5, device=device), row_top_k=top_k)
    assert tokens[5] == logits[5].argmax()
    top_k[1] = -1
    assert sample(logits, row_top_k=top_k).ge(0).tolist() == [True, False, *[True] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.02, 10.0])
def test_flat_and_peaked_rows(scale, dtype, device):
    """Few and many classes are near the border of what is kept."""
    logits = make(2, 20000, dtype, device, scale)
    for setting in ({"top_k": 1000}, {"top_k": 300, "top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.01}):
        check(logits, **setting)
    logits[:, ::3] = logits[:, :1]  # a third of the classes are equal
    check(logits, top_k=50, top_p=0.8)
    kept = sampling_probabilities(logits, top_p=0.6) > 0
    wide = exact(logits, top_p=0.6) > 0
    assert (kept.sum(1) - wide.sum(1)).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [8, 1001, 9000])
def test_masked_and_invalid_logits(classes, dtype, device):
    logits = make(6, classes, dtype, device)
    logits[0, 1:] = -torch.inf
    logits[1] = -torch.inf
    logits[2, -1] = torch.nan
    logits[3, 4] = torch.inf
    logits[4, ::2] = -torch.inf
    logits[5, 0] = -torch.finfo(dtype).max
    for setting in ({}, {"top_k": 6}, {"top_p": 0.9}, {"temperature": 1e-30}, {"min_p": 0.5}):
        torch.manual_seed(0)
        tokens = sample(logits, **setting)
        assert tokens.ge(0).tolist() == [True, False, False, True, True, True]
        assert (tokens[0], tokens[3], tokens[4] % 2) == (0, 4, 1)
        found = sampling_probabilities(logits, **setting)
        assert found.isnan().any(1).tolist() == found.isnan().all(1).tolist()
        torch.testing.assert_close(
            found.double(), exact(logits, **setting), rtol=1e-5, atol=1e-5, equal_nan=True
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [100, 9001])
def test_equal_logits(classes, dtype, device):
    logits = torch.full((3, classes), -1.5, dtype=dtype, device=device)
    kept = sampling_probabilities(logits, top_p=0.25) > 0
    assert kept.sum(1).tolist() == [-(-classes // 4)] * 3
    assert kept[:, -1].all() and not kept[:, 0].any()  # the last ones
    assert (sampling_probabilities(logits, top_k=3) > 0).all()
    assert (sampling_probabilities(logits, min_p=1.0) > 0).all()
    zeros = torch.zeros(1, classes, dtype=dtype, device=device)
    zeros[:, ::2] = -0.0
    assert (sampling_probabilities(zeros, top_k=1) > 0).all()


def test_a_temperature_near_zero_leaves_the_largest(device):
    logits = make(20, 3000, torch.float32, device)
    for temperature in (0.0, 1e-38, 1e-6):
        assert torch.equal(sample(logits, temperature), logits.argmax(1))


def test_no_rows(device):
    logits = torch.empty(0, 100, device=device)
    assert sample(logits).shape == (0,)
    assert sampling_probabilities(logits, top_p=0.5).shape == (0, 100)


def test_the_references_mean_the_same(device):
    logits, uniform = make(12, 400, torch.float32, device), torch.rand(12, device=device)
    for setting in SETTINGS:
        values = [setting.get("temperature", 1.0), setting.get("top_k", 0)]
        values += [setting.get("top_p", 1.0), setting.get("min_p", 0.0)]
        found = sample_with_uniform(logits, uniform, *values)
        assert torch.equal(found, sample_with_uniform_reference(logits, uniform, *values))
    assert torch.equal(sample(logits, top_k=1), sample_reference(logits, 1.0, 1))


def test_bad_arguments_are_refused(device, capfd):
    logits = make(3, 10, torch.float32, device)
    for setting, message in [
        ({"temperature": -1.0}, "sample: temperature is -1.0; expected a number from 0 on"),
        ({"top_p": 1.5}, "sample: top_p is 1.5; expected a number from 0 to 1"),
        ({"min_p": -0.5}, "sample: min_p is -0.5; expected a number from 0 to 1"),
        ({"top_k": -1}, "sample: top_k is -1; expected 0, for all classes, or the number"),
    ]:
        refuses(lambda setting=setting: sample(logits, **setting), message, capfd)
    message = "sample: logits have shape (1, 3, 10); expected [rows, classes] with at least one"
    refuses(lambda: sample(logits[None]), message, capfd)
    message = "sample: row_top_p has shape (2,); expected (3,), a value for each row of logits"
    refuses(lambda: sample(logits, row_top_p=torch.ones(2, device=device)), message, capfd)
    message = "sample: row_top_k is torch.float32; expected int64"
    refuses(lambda: sample(logits, row_top_k=torch.ones(3, device=device)), message, capfd)
    message = "sample: logits are torch.int64; expected a floating-point dtype"
    refuses(lambda: sample(logits.long()), message, capfd)
    message = "sample_with_uniform: uniform has shape (2,); expected (3,), a number for each row"
    uniform = torch.ones(2, device=device)
    refuses(lambda: sample_with_uniform(logits, uniform), message, capfd)


def test_opcheck(device):
    logits, uniform = make(5, 16, torch.float32, device), torch.rand(5, device=device)
    assert torch.Tag.nondeterministic_seeded in sample.overload.tags
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(sample, (logits, 1.0, 5, 0.9), test_utils=utils)
    torch.library.opcheck(sample_with_uniform, (logits, uniform, 1.0, 5, 0.9))
    torch.library.opcheck(sampling_probabilities, (logits, 1.0, 5, 0.9))


def test_compiled(device):
    def draw(logits, uniform):
        return sample_with_uniform(logits * 2, uniform, top_k=50, top_p=0.9) + 1

    compiled = torch.compile(draw, dynamic=True, fullgraph=True)
    for rows in (4, 9, 33):
        logits, uniform = make(rows, 300, torch.float32, device), torch.rand(rows, device=device)
        assert torch.equal(compiled(logits, uniform), draw(logits, uniform))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_each_replay_of_a_cuda_graph_draws_anew():
    logits = torch.zeros(64, 5000, device="cuda", dtype=torch.bfloat16)
    sample(logits, top_p=0.9)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = sample(logits, top_p=0.9)
    seen = []
    for _ in range(3):
        graph.replay()
        seen.append(tokens.tolist())
    assert len({tuple(each) for each in seen}) == 3


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid"),
    [
        ((64, 128256), torch.bfloat16, "sample<__nv_bfloat16, 1024, 2>", 128),
        ((64, 128256), torch.float32, "sample<float, 1024, 2>", 128),
        ((64, 32000), torch.float16, "sample<__half, 512, 2>", 128),
        ((64, 1000), torch.bfloat16, "sample<__nv_bfloat16, 256, 1>", 64),
        ((8, 128256), torch.bfloat16, "sample<__nv_bfloat16, 256, 8>", 64),
    ],
)
def test_cuda_plan(shape, dtype, entry, grid):
    chosen = plan(sample, cuda(shape, dtype), 1.0, 50, 0.9, 0.0, None, None, None, None)
    assert (chosen["entry"], list(chosen["grid"])) == (entry, [grid, 1, 1])


@pytest.mark.parametrize(("dtype", "arch"), [(torch.float32, "sm_80"), (torch.float16, "sm_90a")])
def test_cuda_sources_compile(dtype, arch):
    """test_shipped_kernels.py: bfloat16, and all ops."""
    facts = (1.0, 50, 0.9, 0.0, None, None, None, None)
    compiles(sample, (cuda((64, 128256), dtype), *facts), arch, "cuda")


def test_the_checks_of_a_call(device):
    logits = make(4, 64, torch.float32, device)
    opaq.opcheck(sampling_probabilities, logits, 0.8, 10, 0.9, 0.01)
