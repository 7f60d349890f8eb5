"""opaq.extern_kernels.embedding, embedding_backward, index_add_rows: against PyTorch in float64,
rows that occur often, once or never, numbers that are no rows, layouts, gradients, compiled graphs,
CUDA plans.
"""

import pytest
import torch
from kernel_checks import (
    ARCHS,
    DTYPES,
    close,
    compiled_agrees,
    compiles,
    cuda,
    gradients,
    plan,
    refuses,
)

import opaq
from opaq.extern_kernels import embedding, embedding_backward, index_add_rows
from opaq.extern_kernels.embedding import embedding as module
from opaq.lowering.substitute import apply

# (indices, rows of the table, columns): rows that occur up to 32 times, more often, and not at all
SIZES = [
    (1, 1, 1),
    (5, 3, 8),
    (33, 1, 7),
    (40, 2000, 16),
    (1000, 50, 72),
    (3000, 7, 520),
    (9000, 40, 16),
    (700, 1500, 2056),
]


def random(*shape, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def indices(count, rows, device, kind="any"):
    """kind: any rows; mostly the first ones, as words of a language; one row alone."""
    generator = torch.Generator().manual_seed(count)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    found = {
        "any": uniform * rows,
        "first": rows**uniform - 1,
        "one": torch.full_like(uniform, rows - 1),
    }[kind]
    return found.long().clamp(0, rows - 1).to(device)


def sum_exactly(source, index, rows):
    zeros = torch.zeros(rows, source.size(1), dtype=torch.float64, device=source.device)
    return zeros.index_add(0, index.long(), source.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["any", "first", "one"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients(size, kind, dtype, device):
    count, rows, n = size
    weight, index = random(rows, n, dtype=dtype, device=device), indices(count, rows, device, kind)
    (y,), (grad,) = gradients(lambda weight: embedding(weight, index), (weight,), [0])
    assert y.dtype == grad.dtype == dtype and torch.equal(y, weight[index])
    grad_y = random(count, n, dtype=dtype, device=device)
    grad = embedding_backward(grad_y, index, rows)
    close(grad, sum_exactly(grad_y, index, rows), scale=count**0.5 if dtype.itemsize > 2 else 1)
    again = embedding_backward(grad_y, index, rows)
    assert torch.equal(grad.view(torch.uint8), again.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES[1:6], ids=str)
def test_rows_are_added(size, dtype, device):
    count, rows, n = size
    x, source = random(rows, n, dtype=dtype, device=device), random(count, n, dtype=dtype)
    source, index = source.to(device), indices(count, rows, device, "first")
    (out,), grads = gradients(
        lambda x, source: index_add_rows(x, index, source), (x, source), [0, 1]
    )
    (wide,), wide_grads = gradients(
        lambda x, source: x.index_add(0, index, source), (x.double(), source.double()), [0, 1]
    )
    close(out, wide, scale=count**0.5 if dtype.itemsize > 2 else 1)
    for actual, expected in zip(grads, wide_grads):
        close(actual, expected, dtype)
    assert torch.equal(out, index_add_rows(x, index, source))


# How often each row of a table occurs. A row that occurs up to 32 times is summed by a warp, others
# by blocks, in pieces of 32 positions or more; a warp has two rows of a table of 16384 rows.
COUNTS = {
    "around what a warp sums": [0, 31, 32, 33, 1, 8, 9, 63, 64, 65, 0],
    "all often": [33, 40, 100, 33, 34],
    "all equal": [0, 5000],
    "none": [0, 0, 0],
    "many rows": [33, *[0] * 16380, 32, 1, 31, 34],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [24, 7])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_how_often_rows_occur(counts, columns, dtype, device):
    """Sums of small integers, so that they are exact in each dtype, where each also fits it."""
    rows = len(counts)
    index = torch.arange(rows).repeat_interleave(torch.tensor(counts))
    index = torch.cat([index, torch.tensor([-1, rows])])  # these are no rows
    generator = torch.Generator().manual_seed(rows)
    index = index[torch.randperm(len(index), generator=generator)].to(device)
    there = (index >= 0) & (index < rows)

    def integers(count, width):
        return torch.randint(-1, 2, (count, width), generator=generator).to(device, dtype)

    x, wide = integers(rows, columns), integers(len(index), columns + 8)
    for source in (wide[:, :columns].contiguous(), wide[:, :columns]):
        exact = sum_exactly(source[there], index[there], rows)
        assert exact.abs().max() <= 256
        assert torch.equal(embedding_backward(source, index, rows).double(), exact)
        sums = x.double() + exact
        assert torch.equal(index_add_rows(x, index, source).double(), sums)
        for padding in (0, rows - 1):
            padded = sums.clone()
            padded[padding] = x[padding].double()
            got = embedding_backward(source, index, rows, padding, x)
            assert torch.equal(got.double(), padded)


def test_rows_of_more_columns_than_blocks_take_at_once(device):
    index = torch.zeros(40, dtype=torch.int64, device=device)
    source = random(40, 32 * 400 + 8, dtype=torch.float32, device=device)
    close(embedding_backward(source, index, 1), sum_exactly(source, index, 1), scale=40**0.5)


def test_a_sum_is_rounded_once(device):
    source = torch.full((4000, 8), 1.0, dtype=torch.bfloat16, device=device)
    index = torch.zeros(4000, dtype=torch.int64, device=device)
    assert (embedding_backward(source, index, 3)[0] == 4000).all()
    x = torch.full((3, 8), 96.0, dtype=torch.bfloat16, device=device)
    out = index_add_rows(x, index, source)
    assert (out[0] == 4096).all() and (out[1:] == 96).all()


def test_the_gradient_is_that_of_pytorch(device):
    weight, index = random(10, 16, device=device), indices(12, 10, device).view(3, 4)
    for padding_idx in (-1, 0, int(index[1, 1])):
        _, grads = gradients(lambda w, p=padding_idx: embedding(w, index, p), (weight,), [0])
        plain = torch.nn.functional.embedding
        wanted = padding_idx if padding_idx >= 0 else None
        _, expected = gradients(lambda w, p=wanted: plain(index, w, p), (weight,), [0])
        torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (2, 3, 2), (0,), (4, 0)])
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
def test_shapes_of_the_index(shape, index_dtype, device):
    weight = random(9, 24, dtype=torch.float32, device=device)
    count = torch.Size(shape).numel()
    index = indices(count, 9, device).view(shape).to(index_dtype)
    (y,), (grad,) = gradients(lambda weight: embedding(weight, index), (weight,), [0])
    (expected,), (expected_grad,) = gradients(lambda weight: weight[index.long()], (weight,), [0])
    assert y.shape == (*shape, 24)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(grad, expected_grad)
    grad_y = random(*shape, 24, dtype=torch.float32, device=device)
    torch.testing.assert_close(
        embedding_backward(grad_y, index, 9).double(),
        sum_exactly(grad_y.view(-1, 24), index.flatten(), 9),
        check_dtype=False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(dtype, device):
    wide, index = random(60, 80, dtype=dtype, device=device), indices(60, 12, device)
    for view in (wide[:, :64], wide[:, 1:65], wide[:, 3:10], wide[:, ::2], wide.t()[:60, :60]):
        assert torch.equal(embedding(view[:12], index), view[:12][index])
        exact = sum_exactly(view, index, 12)
        close(embedding_backward(view, index, 12), exact, scale=8)
        close(index_add_rows(view[:12], index, view), exact + view[:12].double(), scale=8)
    row = wide[:1].expand(60, 80)
    close(embedding_backward(row, index, 12), sum_exactly(row, index, 12), scale=8)
    every_second = torch.stack([index, -index], 1)[:, 0]
    assert not every_second.is_contiguous()
    assert torch.equal(embedding(wide, every_second), wide[index])
    close(embedding_backward(wide, every_second, 12), sum_exactly(wide, index, 12), scale=8)


def test_empty_sizes(device):
    index = torch.zeros(0, dtype=torch.int64, device=device)
    assert embedding(torch.zeros(0, 4, device=device), index).shape == (0, 4)
    assert embedding(torch.zeros(3, 0, device=device), index).shape == (0, 0)
    assert embedding_backward(torch.zeros(0, 4, device=device), index, 3).tolist() == [[0] * 4] * 3
    assert embedding_backward(torch.zeros(0, 4, device=device), index, 0).shape == (0, 4)
    x = random(3, 4, device=device)
    assert torch.equal(index_add_rows(x, index, x[:0]), x)


def test_a_number_that_is_no_row(device):
    weight = random(5, 8, dtype=torch.float32, device=device)
    index = torch.tensor([1, -1, 4, 5, 2**40], device=device)
    y = embedding(weight, index)
    expected = [False, True, False, True, True]
    assert y.isnan().all(1).tolist() == y.isnan().any(1).tolist() == expected
    assert embedding(weight[:0], index).isnan().all()
    ones = torch.ones(5, 8, device=device)
    assert embedding_backward(ones, index, 5)[:, 0].tolist() == [0, 1, 0, 0, 1]
    assert index_add_rows(ones, index, ones)[:, 0].tolist() == [1, 2, 1, 1, 2]


def test_padding_gets_no_gradient(device):
    index = torch.tensor([3, 0, 3] * 100, device=device)
    grad = embedding_backward(torch.ones(300, 8, device=device), index, 5, 3)
    assert grad[:, 0].tolist() == [100, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [64, 65])
def test_another_gradient_is_added(columns, dtype, device):
    grad_y = random(300, columns, dtype=dtype, device=device)
    index = indices(300, 20, device, "first")
    flat = random(20 * columns + 1, dtype=dtype, device=device)
    for added in (flat[:-1].view(20, columns), flat[1:].view(20, columns)):
        got = embedding_backward(grad_y, index, 20, 0, added)
        exact = sum_exactly(grad_y[index != 0], index[index != 0], 20) + added.double()
        close(got, exact, scale=300**0.5 if dtype.itemsize > 2 else 1)
        assert torch.equal(got[0], added[0])


def test_a_tied_table(device):
    """The gradient by the head is added to that by the embedding."""
    weight, index = random(20, 64, dtype=torch.float32, device=device), indices(30, 20, device)

    def model(weight, index):
        return embedding(weight, index).tanh() @ weight.t()

    compiled_agrees(embedding_backward, model, [[weight, index]], [0], False)


def test_the_references_mean_the_same(device):
    weight, index = random(30, 24, dtype=torch.float32, device=device), indices(70, 30, device)
    index[3], index[5] = -1, 31
    grad_y = random(70, 24, dtype=torch.float32, device=device)
    for op, reference, args in [
        (embedding, module.embedding_reference, (weight, index, -1)),
        (embedding_backward, module.embedding_backward_reference, (grad_y, index, 30, 4)),
        (index_add_rows, module.index_add_rows_reference, (weight, index, grad_y)),
    ]:
        torch.testing.assert_close(op(*args), reference(*args), equal_nan=True)


def test_bad_arguments_are_refused(device, capfd):
    weight, index = random(30, 24, device=device), indices(70, 30, device)
    message = "embedding: index is torch.float64; expected int64 or int32"
    refuses(lambda: embedding(weight, index.double()), message, capfd)
    message = "embedding: weight has shape (30, 4, 6); expected two dimensions"
    refuses(lambda: embedding(weight.view(30, 4, 6), index), message, capfd)
    message = "embedding: weight is torch.int64; expected a floating-point dtype"
    refuses(lambda: embedding(weight.long(), index), message, capfd)
    message = "embedding_backward: grad_y has shape (30, 24) and index (70,); expected a row of"
    refuses(lambda: embedding_backward(weight, index, 30), message, capfd)
    message = "embedding_backward: added is torch.float64 (3, 24); expected torch.float64 (9, 24)"
    refuses(lambda: embedding_backward(weight, index[:30], 9, -1, weight[:3]), message, capfd)
    message = "index_add_rows: x has shape (30, 24), index (70,) and source (30, 24); expected"
    refuses(lambda: index_add_rows(weight, index, weight), message, capfd)
    message = "index_add_rows: x is torch.float64 and source torch.float32; expected one"
    refuses(lambda: index_add_rows(weight, index[:30], weight.float()), message, capfd)


def test_opcheck(device):
    weight, index = random(6, 8, dtype=torch.float32, device=device), indices(9, 6, device)
    torch.library.opcheck(embedding, (weight.clone().requires_grad_(), index.view(3, 3), 2))
    torch.library.opcheck(embedding, (weight.t().requires_grad_(), index.int()))
    grad_y = random(9, 8, dtype=torch.float32, device=device)
    torch.library.opcheck(embedding_backward, (grad_y, index, 6))
    torch.library.opcheck(
        index_add_rows, (weight.requires_grad_(), index, grad_y.clone().requires_grad_())
    )
    opaq.opcheck(embedding_backward, grad_y.view(3, 3, 8), index.view(3, 3), 6)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    counts = [6, 9, 133] if dynamic else [6]
    cases = [
        [random(12, 32, dtype=torch.float32, device=device), indices(2 * count, 12, device)]
        for count in counts
    ]
    sources = [random(2 * count, 32, dtype=torch.float32, device=device) for count in counts]

    def looked_up(weight, index):
        return embedding(weight * 2, index.view(2, -1), 3).sin()

    for op in (embedding, embedding_backward):
        compiled_agrees(op, looked_up, cases, [0], dynamic)

    def added(weight, index, source):
        return index_add_rows(weight * 2, index, source.cos()).sin()

    more = [[*case, source] for case, source in zip(cases, sources)]
    compiled_agrees(index_add_rows, added, more, [0, 2], dynamic)


def replaced(function, *args):
    torch.compiler.reset()
    with apply.collected() as found:
        result = torch.compile(function, backend="opaq", options={"substitute": ["embedding"]})(
            *args
        )
    return result, [each.applied for each in found]


def test_in_models(device):
    index = indices(12, 10, device).view(3, 4)
    index[0, 0] = 9
    for padding_idx in (None, 0, -1):
        model = torch.nn.Embedding(10, 16, padding_idx, device=device)
        y, found = replaced(model, index)
        assert found == [True] and torch.equal(y, model(index))
        (grad,) = torch.autograd.grad(y.sin().sum(), [model.weight])
        (expected,) = torch.autograd.grad(model(index).sin().sum(), [model.weight])
        torch.testing.assert_close(grad, expected)
    weight = random(10, 16, device=device)
    functions = torch.nn.functional.embedding, torch.embedding
    for call in (lambda w, i: functions[0](i, w, -2), lambda w, i: functions[1](w, i, 3)):
        grads = []
        for with_opaq in (False, True):
            leaf = weight.clone().requires_grad_()
            y, found = replaced(call, leaf, index) if with_opaq else (call(leaf, index), [True])
            grads += torch.autograd.grad(y.sin().sum(), [leaf])
            assert found == [True]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    "changed",
    [{"sparse": True}, {"scale_grad_by_freq": True}, {"max_norm": 2.0}, {"max_norm": 0.0}],
    ids=str,
)
def test_other_embeddings_are_left_alone(changed, device):
    index = indices(12, 10, device).view(3, 4)
    model = torch.nn.Embedding(10, 16, **changed, device=device).requires_grad_(False)
    assert replaced(model, index)[1] == []
    if "max_norm" not in changed:
        frequent, sparse = "scale_grad_by_freq" in changed, "sparse" in changed
        weight = random(10, 16, device=device)
        assert replaced(lambda w: torch.embedding(w, index, -1, frequent, sparse), weight)[1] == []


def test_cuda_plan():
    tokens = cuda((4, 2048), torch.int64)
    chosen = plan(embedding, cuda((32000, 2048)), tokens, -1)
    assert (chosen["implementation"], chosen["entry"], list(chosen["grid"])) == (
        "cuda:packs",
        "embedding<__nv_bfloat16, long long, 8>",
        [1024, 1, 1],
    )
    chosen = plan(embedding_backward, cuda((4, 2048, 2048)), tokens, 32000, -1)
    assert chosen["implementation"] == "cuda:packs"
    assert [(step["entry"], list(step["grid"])) for step in chosen["steps"]] == [
        ("clear_counts", [125, 1, 1]),
        ("place_positions<long long>", [32, 1, 1]),
        ("sum_rows<__nv_bfloat16, long long, 8, 2>", [396 + 2000, 1, 1]),
    ]
    # Few indices: work for a long row, two pieces of it and 64 times 32 columns.
    chosen = plan(embedding_backward, cuda((40, 2048)), cuda((40,), torch.int64), 100, -1)
    assert (chosen["steps"][2]["entry"], list(chosen["steps"][2]["grid"])) == (
        "sum_rows<__nv_bfloat16, long long, 8, 1>",
        [1 + 2 + 64 + 13, 1, 1],
    )
    odd = cuda((4, 2048, 2049))
    assert plan(embedding, cuda((32000, 2049)), tokens, -1)["implementation"] == "cuda:any"
    assert plan(embedding_backward, odd, tokens, 32000, -1)["implementation"] == "cuda:any"
    rows, index = cuda((100, 64), strides=(65, 1)), cuda((100,), torch.int32)
    assert plan(embedding_backward, rows, index, 32000, -1)["implementation"] == "cuda:any"
    x = cuda((32000, 64))
    assert plan(index_add_rows, x, index, rows)["implementation"] == "cuda:any"
    assert plan(index_add_rows, x, index, cuda((100, 64)))["implementation"] == "cuda:packs"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("implementation", ["cuda:packs", "cuda:any"])
def test_cuda_sources_compile(implementation, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight, rows = cuda((300, 128), dtype), cuda((64, 128), dtype)
        for index_dtype in (torch.int64, torch.int32):
            index = cuda((64,), index_dtype)
            compiles(embedding, (weight, index, -1), arch, implementation)
            compiles(embedding_backward, (rows, index, 300, -1), arch, implementation)
        compiles(index_add_rows, (weight, index, rows), arch, implementation)
