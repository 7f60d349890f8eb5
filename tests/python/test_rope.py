"""opaq.extern_kernels.rope: against transformers' apply_rotary_pos_emb and float64 PyTorch,
transposed views, compiled graphs, CUDA plans.
"""

import functools

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
    needs_transformers,
    plan,
    refuses,
)

from opaq.extern_kernels import rope, rope_backward
from opaq.extern_kernels.rope.rope import rope_backward_reference, rope_reference

# batch, query heads, key heads, tokens, head dimension
SHAPES = [
    (1, 1, 1, 1, 2),
    (2, 4, 2, 9, 64),
    (2, 3, 1, 5, 6),
    (1, 8, 8, 3, 128),
    (3, 2, 2, 4, 40),
    (2, 4, 2, 0, 64),
    (0, 4, 2, 5, 64),
]


def of_columns(q, table, interleaved):
    """As wide as q, and of as many sequences."""
    table = table.double()
    if table.size(2) < q.size(3):
        table = table.repeat_interleave(2, 2) if interleaved else torch.cat((table, table), 2)
    return table if table.size(0) == q.size(0) else table.repeat(q.size(0) // table.size(0), 1, 1)


def exact(q, k, cos, sin, interleaved=False):
    cos, sin = (of_columns(q, table, interleaved).unsqueeze(1) for table in (cos, sin))

    def rotate(x):
        if interleaved:
            turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
            return x.double() * cos + turned.double() * sin
        first, second = x.double().chunk(2, -1)
        return x.double() * cos + torch.cat((-second, first), -1) * sin

    return rotate(q), rotate(k)


def make(shape, dtype, device, cos_batch=None):
    """q and k as a projection yields them: [B, S, H, D] seen as [B, H, S, D]; cos and sin with
    halves that differ.
    """
    batch, q_heads, k_heads, tokens, dim = shape
    generator = torch.Generator().manual_seed(dim)
    sizes = [
        (batch, tokens, q_heads, dim),
        (batch, tokens, k_heads, dim),
        *[(batch if cos_batch is None else cos_batch, tokens, dim)] * 2,
    ]
    q, k, cos, sin = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)
        for size in sizes
    )
    return q.transpose(1, 2), k.transpose(1, 2), cos, sin


def check(q, k, cos, sin, interleaved=False):
    function, reference = (functools.partial(f, interleaved=interleaved) for f in (rope, exact))
    outputs, grads = gradients(function, (q, k, cos, sin), [0, 1])
    wide, wide_grads = gradients(reference, [value.double() for value in (q, k, cos, sin)], [0, 1])
    for x, actual, expected, grad, wide_grad in zip((q, k), outputs, wide, grads, wide_grads):
        assert (actual.dtype, actual.shape, actual.is_contiguous()) == (x.dtype, x.shape, True)
        close(actual, expected, scale=2)
        assert grad.dtype == x.dtype and grad.transpose(1, 2).is_contiguous()
        close(grad, wide_grad, scale=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, dtype, device):
    check(*make(shape, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_interleaved_pairs(shape, dtype, device):
    check(*make(shape, dtype, device), interleaved=True)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [128, 6])
def test_angles_with_more_digits_than_queries(dim, interleaved, device):
    for dtype in (torch.float16, torch.bfloat16):
        q, k, _, _ = make((2, 4, 2, 9, dim), dtype, device)
        _, _, cos, sin = make((2, 4, 2, 9, dim), torch.float32, device)
        check(q, k, cos, sin, interleaved)
        (close_to_it, _), (wide, _) = (
            rope(q, k, cos, sin, interleaved),
            exact(q, k, cos, sin, interleaved),
        )
        # rounded once, by half a unit of the last place
        torch.testing.assert_close(
            close_to_it.double(), wide, rtol=torch.finfo(dtype).eps / 2 * 1.001, atol=1e-6
        )


@pytest.mark.parametrize("interleaved", [False, True])
def test_one_tensor_alone(interleaved, device):
    q, _, cos, sin = make((2, 4, 2, 9, 64), torch.float32, device)
    check(q, q.new_empty(2, 0, 9, 64), cos, sin, interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_angles_of_pairs(dtype, interleaved, device):
    """As wide as half a head; also the parts of complex numbers, and of fewer sequences."""
    for shape in SHAPES:
        q, k, cos, sin = make(shape, dtype, device)
        half = cos.size(2) // 2
        narrow = cos[..., :half].contiguous(), sin[..., :half].contiguous()
        check(q, k, *narrow, interleaved)
        check(q, k, *torch.stack(narrow, -1).unbind(-1), interleaved)
        if dtype in (torch.float16, torch.bfloat16):
            wide = (table.float() for table in narrow)
            check(q, k, *torch.stack((*wide,), -1).unbind(-1), interleaved)


def test_angles_of_fewer_sequences(device):
    """Sequence b has those of b % N: heads that come after tokens share tables without copies."""
    q, k, cos, sin = make((6, 4, 2, 5, 64), torch.float32, device)
    results = rope(q, k, cos[:3], sin[:2])
    cos, sin = cos[:3].repeat(2, 1, 1), sin[:2].repeat(3, 1, 1)
    for result, expected in zip(results, rope(q, k, cos, sin)):
        torch.testing.assert_close(result, expected)
    check(q, k, cos[:3], sin[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(dtype, device):
    q, k, cos, sin = make((2, 4, 2, 6, 64), dtype, device)
    check(q.contiguous(), k.contiguous(), cos, sin)
    check(q.contiguous(), k, cos[:1], sin[:1].expand(2, 6, 64))
    check(q[:, ::2], k, cos, sin)
    check(q[:, :, ::2], k[:, :, 1::2], cos[:, ::2], sin[:, ::2])
    check(q[..., ::2], k[..., ::2], cos[..., ::2], sin[..., ::2])
    check(q[..., 1:33], k[..., 3:35], cos[..., :32], sin[..., 5:37])
    # one projection for q, k and v: token stride of all heads
    fused = torch.cat([q, k, k], 1).transpose(1, 2).contiguous()
    check(fused[:, :, :4].transpose(1, 2), fused[:, :, 4:6].transpose(1, 2), cos, sin)


@needs_transformers
def test_it_is_what_llama_does(device):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k, cos, sin = make((2, 4, 2, 9, 64), torch.float32, device, cos_batch=1)
    for actual, expected in zip(rope(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin)):
        torch.testing.assert_close(actual, expected)


def test_a_rotation_keeps_lengths_and_its_gradient_turns_back(device):
    angle = torch.randn(1, 7, 16, device=device).repeat(1, 1, 2)
    q, k, _, _ = make((2, 3, 3, 7, 32), torch.float32, device)
    cos, sin = angle.cos(), angle.sin()
    turned = rope(q, k, cos, sin)
    torch.testing.assert_close(turned[0].norm(dim=-1), q.norm(dim=-1))
    for back, start in zip(rope_backward(*turned, cos, sin), (q, k)):
        torch.testing.assert_close(back, start.contiguous())


def test_the_references_mean_the_same(device):
    args = make((2, 4, 2, 9, 64), torch.float32, device)
    for op, reference in ((rope, rope_reference), (rope_backward, rope_backward_reference)):
        for actual, expected in zip(op(*args), reference(*args)):
            torch.testing.assert_close(actual, expected)


def test_an_odd_head_dimension_is_refused(device, capfd):
    args = [value[..., :63] for value in make((2, 4, 2, 9, 64), torch.float32, device)]
    refuses(
        lambda: rope(*args), "rope: q has a head dimension of 63; expected an even number", capfd
    )


def test_a_cos_of_another_length_is_refused(device, capfd):
    q, k, cos, sin = make((2, 4, 2, 9, 64), torch.float32, device)
    message = "rope: cos has shape (2, 8, 64); expected (1 or 2, 9, 64) to go with q (2, 4, 9, 64)"
    refuses(lambda: rope(q, k, cos[:, :8], sin), message, capfd)
    message = "rope: sin has shape (3, 9, 64); expected (1 or 2, 9, 64) to go with q (2, 4, 9, 64)"
    refuses(lambda: rope(q, k, cos, sin.repeat(2, 1, 1)[:3]), message, capfd)
    message = "cos has shape (2, 9, 64) and sin (2, 9, 32); expected both of columns or both of"
    refuses(lambda: rope(q, k, cos, sin[..., :32]), message, capfd)


def test_opcheck(device):
    q, k, cos, sin = make((2, 4, 2, 5, 32), torch.float32, device)
    for interleaved in (False, True):
        torch.library.opcheck(rope, (q.requires_grad_(), k.requires_grad_(), cos, sin, interleaved))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, interleaved, device):
    shapes = [(2, 4, 2, tokens, 32) for tokens in ((6, 9, 33) if dynamic else (6,))]

    def function(q, k, cos, sin):
        q, k = rope(q * 2, k + 1, cos, sin, interleaved)
        return q.sin(), k

    compiled_agrees(
        rope,
        function,
        [make(shape, torch.float32, device, cos_batch=1) for shape in shapes],
        [0, 1],
        dynamic,
    )


def test_cuda_plan():
    def facts(batch, q_heads, k_heads, tokens, dim, dtype=torch.bfloat16, table=None):
        views = [
            cuda((batch, h, tokens, dim), dtype, (tokens * h * dim, dim, h * dim, 1))
            for h in (q_heads, k_heads)
        ]
        return (*views, *[cuda((1, tokens, dim), table or dtype)] * 2)

    def chosen(op, *given):
        found = plan(op, *given)
        return found["implementation"], found["entry"]

    large, small = facts(4, 32, 8, 4096, 128), facts(4, 32, 8, 100, 6, torch.float32)
    wide = facts(4, 32, 8, 4096, 128, table=torch.float32)
    angles = *large[:2], *[cuda((4, 4096, 64), torch.float32, (524288, 128, 2))] * 2
    assert chosen(rope, *large, False) == (
        "cuda:packs",
        "rope<__nv_bfloat16, 128, 8, false, __nv_bfloat16, false, false, 1>",
    )
    launch = plan(rope, *large, False)
    assert (launch["grid"], launch["block"]) == ([4 * 4096, 1, 1], [8, 20, 1])
    few = plan(rope, *facts(64, 32, 8, 1, 128), False)
    assert (few["grid"], few["block"]) == ([64, 2, 1], [8, 20, 1])
    assert chosen(rope_backward, *small, False) == (
        "cuda:elements",
        "rope<float, 6, 1, true, float, false, false, 1>",
    )
    assert chosen(rope, *wide, True) == (
        "cuda:packs",
        "rope<__nv_bfloat16, 128, 8, false, float, true, false, 1>",
    )
    assert chosen(rope, *angles, True) == (
        "cuda:packs",
        "rope<__nv_bfloat16, 128, 8, false, float, true, true, 2>",
    )


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", ["packs", "elements"])
def test_cuda_sources_compile(kind, arch):
    heads = (2, 8, 64, 128), (2, 2, 64, 128)
    columns, pairs = ((1, 64, 128), (8192, 128, 1)), ((1, 64, 64), (4096, 64, 1))
    parts = (1, 64, 64), (8192, 128, 2)  # of complex numbers
    tables = [(dtype, *columns) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    tables += [(torch.bfloat16, *pairs), (torch.float32, *pairs), (torch.float32, *parts)]
    for number, (table, *layout) in enumerate(tables):
        for dtype in {table, torch.bfloat16} if table != torch.float16 else {table}:
            facts = *(cuda(each, dtype) for each in heads), *[cuda(layout[0], table, layout[1])] * 2
            for interleaved in (False, True):
                op = (rope, rope_backward)[(number + interleaved) % 2]
                compiles(op, (*facts, interleaved), arch, f"cuda:{kind}")
