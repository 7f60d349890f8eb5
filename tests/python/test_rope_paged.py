"""opaq.extern_kernels.rope_paged_: against float64 PyTorch and an index copy, slots that are none,
views of one product, layouts of caches, compiled graphs, CUDA plans.
"""

import copy

import pytest
import torch
from kernel_checks import (
    ARCHS,
    DTYPES,
    close,
    compiles,
    cuda,
    node_calls,
    plan,
    refuses,
)
from torch._inductor.utils import run_and_get_code

from opaq.extern_kernels import rope_paged_
from opaq.extern_kernels.rope.paged import rope_paged_reference

NAMES = ("q", "k", "v", "cos", "sin", "k_cache", "v_cache", "slots")
K_CACHE, V_CACHE, SLOTS = 5, 6, 7

# tokens, heads, kv_heads, size, pages, page_size
SHAPES = [
    (1, 1, 1, 2, 1, 1),
    (9, 4, 2, 64, 3, 4),
    (5, 3, 1, 6, 2, 5),
    (7, 8, 8, 128, 4, 16),
    (6, 2, 2, 80, 10, 1),
    (5, 70, 9, 32, 1, 7),
    (3, 1, 1, 1030, 2, 2),
    (1030, 4, 2, 16, 70, 16),
    (0, 4, 2, 64, 3, 4),
    (4, 0, 2, 16, 2, 4),
    (4, 2, 0, 16, 2, 4),
]


def make(shape, dtype, device):
    """q, k and v as views of one product; cos and sin with halves that differ; slots in any order,
    each at most once; of every five tokens the third is padding.
    """
    tokens, heads, kv_heads, size, pages, page_size = shape
    generator = torch.Generator().manual_seed(tokens + size)

    def random(*sizes):
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(device, dtype)

    q, k, v = random(tokens, heads + 2 * kv_heads, size).split([heads, kv_heads, kv_heads], 1)
    slots = torch.randperm(max(tokens, pages * page_size), generator=generator)[:tokens]
    slots[slots >= pages * page_size] = -1
    slots[2::5] = -1
    caches = [random(pages, page_size, kv_heads, size) for _ in range(2)]
    return [q, k, v, random(tokens, size), random(tokens, size), *caches, slots.to(device)]


def rotate(x, cos, sin):
    x, cos, sin = x.double(), cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def check(args):
    """Calls the op; compares what it returns and writes, element by element where nothing is
    computed."""
    q, k, v, cos, sin, k_cache, v_cache, slots = args
    k_before, v_before = k_cache.clone(), v_cache.clone()
    q_exact, k_exact, v_given = rotate(q, cos, sin), rotate(k, cos, sin), v.clone()
    q_out = rope_paged_(*args)
    count = k_cache.size(0) * k_cache.size(1)
    q_exact[(slots < -1) | (slots >= count)] = torch.nan
    assert (q_out.dtype, q_out.shape, q_out.is_contiguous()) == (q.dtype, q.shape, True)
    close(q_out, q_exact)
    there = (slots >= 0) & (slots < count)
    index = slots[there]
    flat = [each.reshape(count, *k.shape[1:]) for each in (k_cache, v_cache, k_before, v_before)]
    k_after, v_after, k_before, v_before = flat
    close(k_after[index], k_exact[there])
    assert torch.equal(v_after[index], v_given[there])
    rest = torch.ones(count, dtype=torch.bool, device=slots.device)
    rest[index] = False
    assert torch.equal(k_after[rest], k_before[rest])
    assert torch.equal(v_after[rest], v_before[rest])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64_and_an_index_copy(shape, dtype, device):
    check(make(shape, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 6])
def test_a_slot_that_is_none_is_not_followed(size, dtype, device):
    args = make((8, 4, 2, size, 3, 4), dtype, device)
    args[SLOTS] = torch.tensor([12, 3, -2, -1, 11, 2**40, -(2**62), 0], device=device)
    check(args)


def test_nothing_is_written_for_padding(device):
    args = make((8, 4, 2, 64, 3, 4), torch.float32, device)
    args[SLOTS].fill_(-1)
    before = [each.clone() for each in args]
    assert not rope_paged_(*args).isnan().any()
    for each, expected in zip(args, before):
        assert torch.equal(each, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 6])
def test_caches_of_any_layout(size, dtype, device):
    """In one tensor; heads before slots; and tokens apart from each other."""
    shape = (9, 4, 2, size, 3, 4)
    args = make(shape, dtype, device)
    both = torch.randn(3, 2, 4, 2, size, device=device).to(dtype)
    check([*args[:K_CACHE], both[:, 0], both[:, 1], args[SLOTS]])
    args = make(shape, dtype, device)
    for i in (K_CACHE, V_CACHE):
        args[i] = args[i].transpose(1, 2).contiguous().transpose(1, 2)
    check(args)
    args = make((18, *shape[1:]), dtype, device)
    check([each if i in (K_CACHE, V_CACHE) else each[::2] for i, each in enumerate(args)])


@pytest.mark.parametrize("shifted", [0, 1, 2, 3, 4, K_CACHE, V_CACHE], ids=lambda i: NAMES[i])
def test_any_alignment(shifted, device):
    args = make((9, 4, 2, 64, 3, 4), torch.float32, device)
    one = args[shifted]
    whole = torch.zeros(one.numel() + 1, device=device)
    whole[1:] = one.flatten()
    args[shifted] = whole[1:].view(one.shape)
    check(args)


def test_equal_slots_keep_values_of_one_of_their_tokens(device):
    args = make((4, 2, 1, 8, 2, 2), torch.float32, device)
    args[SLOTS] = torch.tensor([1, 1, 3, 1], device=device)
    rope_paged_(*args)
    stays = args[V_CACHE].view(-1, 8)[1]
    values = args[2][[0, 1, 3], 0]
    assert (stays == values).any(0).all()


def test_the_reference_means_the_same(device):
    args = make((9, 4, 2, 64, 3, 4), torch.float32, device)
    args[SLOTS][4] = 12
    others = [each.clone() for each in args]
    torch.testing.assert_close(
        rope_paged_(*args), rope_paged_reference(*others), equal_nan=True, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(args, others)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {name: (slice(None), slice(None), slice(63)) for name in ("q", "k", "v")},
            "rope_paged_: q has a head dimension of 63; expected an even number",
        ),
        (
            {"cos": (slice(8),)},
            "rope_paged_: cos has shape (8, 64); expected (9, 64) to go with q (9, 4, 64)",
        ),
        ({"v": (slice(8),)}, "rope_paged_: v has shape (8, 2, 64); expected (9, 2, 64)"),
        ({"slots": (slice(8),)}, "rope_paged_: slots has shape (8,); expected (9,)"),
        ({"q": (0,)}, "expected [tokens, heads, size], [tokens, kv_heads, size]"),
    ],
    ids=["odd", "cos", "v", "slots", "dimensions"],
)
def test_wrong_shapes_are_refused(changes, message, device, capfd):
    args = make((9, 4, 2, 64, 3, 4), torch.float32, device)
    for name, index in changes.items():
        args[NAMES.index(name)] = args[NAMES.index(name)][index]
    refuses(lambda: rope_paged_(*args), message, capfd)


def test_other_dtypes_are_refused(device, capfd):
    args = make((9, 4, 2, 64, 3, 4), torch.float32, device)
    halved = [each.half() if i == K_CACHE else each for i, each in enumerate(args)]
    message = "q is torch.float32 and k_cache torch.float16; expected one floating-point dtype"
    refuses(lambda: rope_paged_(*halved), message, capfd)
    args[SLOTS] = args[SLOTS].int()
    message = "slots are torch.int32; expected torch.int64: convert them with slots.long()"
    refuses(lambda: rope_paged_(*args), message, capfd)


def test_opcheck(device):
    torch.library.opcheck(rope_paged_, make((5, 4, 2, 32, 3, 4), torch.float32, device))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, device):
    """The caches are written in place in compiled graphs, and read after it."""

    def layer(product, cos, sin, k_cache, v_cache, slots):
        q, k, v = (product * 2).split([4, 2, 2], 1)
        q = rope_paged_(q, k, v, cos, sin, k_cache, v_cache, slots)
        return q.sin(), k_cache.sum(), v_cache[0] + 1

    compiled = torch.compile(layer, dynamic=dynamic, fullgraph=True)
    before = node_calls(rope_paged_)
    counts = (9, 12, 5) if dynamic else (9,)
    for tokens in counts:
        args = make((tokens, 4, 2, 64, 3, 4), torch.float32, device)
        args = [torch.cat(args[:3], 1), *args[3:]]
        others = [each.clone() for each in args]
        with torch.no_grad():
            torch.testing.assert_close(compiled(*args), layer(*others))
        torch.testing.assert_close(args, others)
    assert node_calls(rope_paged_) >= before + len(counts)


@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_graph_copies_no_cache(whole, device):
    """whole: the caches of all layers are one tensor."""

    def step(q, k, v, cos, sin, slots, k_caches, v_caches):
        for layer in range(2):
            q = rope_paged_(q, k, v, cos, sin, k_caches[layer], v_caches[layer], slots)
        return q

    args = make((4, 4, 2, 64, 300, 4), torch.float32, device)
    caches = [torch.stack([each, each + 1]) for each in args[K_CACHE:SLOTS]]
    args = [*args[:K_CACHE], args[SLOTS], *(caches if whole else map(list, caches))]
    if not whole:
        args[-2:] = [[each.clone() for each in layers] for layers in args[-2:]]
    others = copy.deepcopy(args)
    _, code = run_and_get_code(torch.compile(step, fullgraph=True), *args)
    step(*others)
    torch.testing.assert_close(args, others)
    call = code[0][code[0].index("def call(") : code[0].index("def get_args(")]
    assert ".copy_(" not in call
    assert [line for line in call.splitlines() if "= empty_strided" in line and "300" in line] == []


def facts(tokens, heads, kv_heads, size, dtype=torch.bfloat16):
    row = (heads + 2 * kv_heads) * size
    views = [cuda((tokens, h, size), dtype, (row, size, 1)) for h in (heads, *[kv_heads] * 2)]
    tables = [cuda((tokens, size), dtype)] * 2
    caches = [cuda((1000, 16, kv_heads, size), dtype)] * 2
    return (*views, *tables, *caches, cuda((tokens,), torch.int64))


@pytest.mark.parametrize(
    "shape, dtype, implementation, entry, grid, block",
    [
        ((64, 32, 8, 128), torch.bfloat16, "packs", "__nv_bfloat16, 128, 8", [64, 2, 1], [8, 24]),
        (
            (16384, 32, 8, 128),
            torch.bfloat16,
            "packs",
            "__nv_bfloat16, 128, 8",
            [16384, 1, 1],
            [8, 24],
        ),
        ((2048, 64, 8, 80), torch.float16, "packs", "__half, 80, 8", [2048, 1, 1], [5, 40]),
        ((9, 4, 2, 6), torch.float32, "elements", "float, 6, 1", [9, 2, 1], [3, 4]),
    ],
)
def test_cuda_plan(shape, dtype, implementation, entry, grid, block):
    chosen = plan(rope_paged_, *facts(*shape, dtype))
    assert chosen["implementation"] == f"cuda:{implementation}"
    assert chosen["entry"] == f"rope_paged<{entry}>"
    assert (list(chosen["grid"]), list(chosen["block"])[:2]) == (grid, block)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("implementation", ["cuda:packs", "cuda:elements"])
def test_cuda_sources_compile(implementation, arch):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        compiles(rope_paged_, facts(64, 8, 2, 128, dtype), arch, implementation)
