"""opaq.extern_kernels.multinomial and sample_multinomial: the classes of torch.multinomial with the
same random numbers, for any row length and alignment, in eager, graphs and packages; what is no
probability; CUDA plans.
"""

import subprocess
import sys

import pytest
import torch
from kernel_checks import DTYPES, compiles, cuda, plan, refuses

import opaq
from opaq.extern_kernels import multinomial, sample_multinomial, sampling_probabilities

# Of one block and of clusters of 2, 4 and 8 of them; with and without whole packs.
CLASSES = [1, 2, 7, 8, 31, 257, 1000, 4099, 9001, 33000, 128256]
SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"top_k": 20},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.02, "temperature": 0.9},
]


def make(rows, classes, dtype, device, kind="softmax"):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(rows, classes, generator=generator) * 2
    if kind == "equal":
        found = torch.ones_like(logits)
    elif kind == "few":
        found = (logits > 1).float()
        found[:, -1] = 1
    elif kind == "tiny":  # with denormal numbers
        found = torch.rand(rows, classes, generator=generator) * 1e-42
        found[:, 0] = 1e-41
    else:
        found = logits.softmax(-1) * (3.0 if kind == "unnormalized" else 1.0)
    return found.to(device, dtype)


def seeded(function, seed=5):
    """What it gives, and the next number of the generator."""
    torch.manual_seed(seed)
    result = function()
    return result, torch.rand(1, device=result.device)


def same(ours, theirs):
    for one, other in zip(seeded(ours), seeded(theirs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["softmax", "unnormalized", "equal", "few", "tiny"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_classes_are_those_of_pytorch(dtype, kind, device):
    if kind == "tiny" and dtype not in (torch.float32, torch.float64):
        return
    for classes in CLASSES:
        for rows in (1, 3, 70):
            if rows * classes > 1_000_000 and device == "cpu":
                continue
            found = make(rows, classes, dtype, device, kind)
            same(lambda: multinomial(found), lambda: torch.multinomial(found, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_begin_at_any_element(dtype, device):
    for classes in (5, 64, 5003):
        for begin in (1, 2, 3, 5):
            memory = torch.zeros(4 * classes + 8, dtype=dtype, device=device)
            found = memory[begin : begin + 4 * classes].view(4, classes)
            found.copy_(make(4, classes, dtype, device))
            same(lambda: multinomial(found), lambda: torch.multinomial(found, 1))


def test_other_layouts(device):
    found = make(6, 500, torch.float32, device)
    row = found[2]
    assert multinomial(row).shape == (1,)
    same(lambda: multinomial(row), lambda: torch.multinomial(row, 1))
    apart = torch.stack([found, found], dim=2)[:, :, 0]
    same(lambda: multinomial(apart), lambda: torch.multinomial(found, 1))
    assert multinomial(found[:0]).shape == (0, 1)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_those_of_the_probabilities(dtype, setting, device):
    for classes in (1, 7, 300, 5003, 20000):
        generator = torch.Generator().manual_seed(classes)
        logits = (torch.randn(41, classes, generator=generator) * 2).to(device, dtype)
        same(
            lambda: sample_multinomial(logits, **setting),
            lambda: torch.multinomial(sampling_probabilities(logits, **setting), 1).squeeze(1),
        )


@pytest.mark.parametrize("op", [multinomial, sample_multinomial], ids=lambda op: op.name)
@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}], ids=["Python", "C++"])
def test_compiled(options, op, device):
    def function(x):
        return op(x.softmax(-1)), op(x.softmax(-1))  # with numbers of their own

    compiled = torch.compile(function, dynamic=True, fullgraph=True, options=options)
    for rows in (4, 9):
        logits = torch.randn(rows, 3000, device=device)
        torch.manual_seed(1)
        expected = function(logits)
        torch.manual_seed(1)
        for ours, theirs in zip(compiled(logits), expected):
            assert torch.equal(ours, theirs)
        assert not torch.equal(*expected)


def test_a_package_draws_the_same(tmp_path, device):
    class Model(torch.nn.Module):
        def forward(self, logits):
            return sample_multinomial(logits, 0.8, 0, 0.9), multinomial(logits.softmax(-1))

    logits = torch.randn(5, 1000, device=device)
    path = opaq.package(torch.export.export(Model(), (logits,)), tmp_path / "model.pt2")
    loaded = torch._inductor.aoti_load_package(path)
    torch.manual_seed(2)
    expected = Model()(logits)
    torch.manual_seed(2)
    for ours, theirs in zip(loaded(logits), expected):
        assert torch.equal(ours, theirs)


WRONG = {
    "negative": (lambda p: p.index_fill_(1, torch.tensor([3], device=p.device), -1e-3), "element"),
    "inf": (lambda p: p.index_fill_(1, torch.tensor([3], device=p.device), torch.inf), "inf"),
    "nan": (lambda p: p.index_fill_(1, torch.tensor([3], device=p.device), torch.nan), "nan"),
    "zeros": (lambda p: p.zero_(), "sum of probabilities <= 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_probability(name, capfd):
    change, message = WRONG[name]
    found = change(make(2, 20, torch.float32, "cpu"))
    with pytest.raises(RuntimeError, match=message):
        torch.multinomial(found, 1)
    refuses(lambda: multinomial(found), message, capfd)
    logits = torch.zeros(2, 20)
    logits[1, 3] = torch.nan
    refuses(lambda: sample_multinomial(logits), "nan", capfd)


def raced(found):
    """The draw as models write it."""
    return (found / torch.empty_like(found).exponential_()).argmax(-1, keepdim=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_check_classes_are_those_of_the_quotients(dtype, device):
    for classes in (1, 2, 31, 257, 9001, 33000):
        found = make(12, classes, dtype, device)
        found[1], found[2], found[3] = 0, torch.nan, -torch.inf
        found[4] = -found[4]
        found[5, classes // 2] = -1
        found[6, classes // 3] = torch.inf
        found[7, classes // 3 :] = torch.nan
        found[8, classes // 3], found[8, classes // 2] = torch.inf, torch.nan
        found[9, 1:] = 0
        found[10] *= 1e-3
        same(lambda: multinomial(found, check=False), lambda: raced(found))
        same(lambda: multinomial(found[10:], check=False), lambda: torch.multinomial(found[10:], 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_check_a_row_of_no_logits_has_the_token_0(dtype, device):
    for classes in (7, 300, 20000):
        logits = torch.randn(6, classes, generator=torch.Generator().manual_seed(classes))
        logits = logits.to(device, dtype)
        logits[1], logits[2, 5] = -torch.inf, torch.nan
        tokens, _ = seeded(lambda: sample_multinomial(logits, top_k=9, check=False))
        assert (tokens[1:3] == 0).all()
        same(
            lambda: sample_multinomial(logits, top_k=9, check=False),
            lambda: raced(sampling_probabilities(logits, top_k=9)).squeeze(1),
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", [*WRONG, "logits"])
def test_what_is_no_probability_fails_on_a_gpu(name):
    """An assertion ends the use of the GPU by a process."""
    changed = {
        "negative": "p[1, 3] = -1e-3",
        "inf": "p[1, 3] = torch.inf",
        "nan": "p[1, 3] = torch.nan",
        "zeros": "p[1] = 0",
        "logits": "p[1, 3] = torch.nan",
    }[name]
    op = "sample_multinomial" if name == "logits" else "multinomial"
    code = f"""
import torch
from opaq.extern_kernels import {op}
p = torch.rand(2, 5000, device="cuda")
{op}(p)
torch.cuda.synchronize()
print("fine")
{changed}
{op}(p)
torch.cuda.synchronize()
print("not noticed")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert ended.returncode != 0 and ended.stdout == "fine\n"
    assert "multinomial:" in ended.stderr and "device-side assert" in ended.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("op", [multinomial, sample_multinomial], ids=lambda op: op.name)
def test_each_replay_of_a_cuda_graph_draws_the_next_numbers(op):
    found = torch.rand(64, 5000, device="cuda")
    op(found)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = op(found)
    torch.cuda.manual_seed(3)
    replayed = []
    for _ in range(3):
        graph.replay()
        replayed.append(drawn.clone())
    torch.cuda.manual_seed(3)
    for each in replayed:
        assert torch.equal(each, op(found))


def test_bad_arguments_are_refused(device, capfd):
    found = torch.rand(2, 3, 4, device=device)
    refuses(lambda: multinomial(found), "expected [rows, classes] or [classes]", capfd)
    refuses(lambda: multinomial(found[0].long()), "are torch.int64", capfd)
    refuses(lambda: sample_multinomial(found), "sample_multinomial: logits have shape", capfd)


def test_opcheck(device):
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    found = make(5, 16, torch.float32, device)
    for op, arguments in ((multinomial, (found,)), (sample_multinomial, (found, 1.0, 5, 0.9))):
        assert torch.Tag.nondeterministic_seeded in op.overload.tags
        torch.library.opcheck(op, arguments, test_utils=utils)


@pytest.mark.parametrize(
    ("shape", "dtype", "entry", "grid"),
    [
        ((64, 128256), torch.float32, "multinomial<float, 256, 8>", 512),
        ((64, 10000), torch.bfloat16, "multinomial<__nv_bfloat16, 256, 2>", 128),
        ((1000,), torch.float16, "multinomial<__half, 256, 1>", 1),
    ],
)
def test_cuda_plan(shape, dtype, entry, grid):
    chosen = plan(multinomial, cuda(shape, dtype))
    assert (chosen["entry"], list(chosen["grid"])) == (entry, [grid, 1, 1])
    numbers = torch.empty(shape, dtype=dtype).nbytes
    assert numbers <= chosen["workspace_bytes"] < numbers + 256


@pytest.mark.parametrize(("dtype", "arch"), [(torch.float32, "sm_80"), (torch.float16, "sm_90a")])
def test_cuda_sources_compile(dtype, arch):
    compiles(multinomial, (cuda((64, 128256), dtype),), arch, "cuda")
    facts = (1.0, 50, 0.9, 0.0, None, None, None, None, True)
    compiles(sample_multinomial, (cuda((64, 128256), dtype), *facts), arch, "cuda")
