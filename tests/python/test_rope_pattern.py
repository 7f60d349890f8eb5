"""Rotary position embedding as people write it: what is found in unmodified models, and what only
looks like it. Graphs run eagerly here; test_patterns.py compiles every spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import substituting
import torch

from opaq import extern_kernels
from opaq.lowering.substitute import apply

extern_kernels.load_patterns()
Tensor = torch.Tensor
B, T, H, K, D = 2, 5, 4, 2, 8


def run(function: Any, *arguments: Any, dynamic: bool = False) -> tuple[Any, list[str]]:
    """The results with what is found replaced, and "" for each place that was, else the reason."""
    torch.compiler.reset()
    for each in arguments:
        if isinstance(each, Tensor) and dynamic:
            torch._dynamo.mark_static(each, each.dim() - 1)  # the size of a head
    backend = substituting.backend("rope")
    with apply.collected() as found:
        result = torch.compile(function, backend=backend, dynamic=dynamic)(*arguments)
    return result, ["" if each.applied else each.reason for each in found]


def places(function: Any, *arguments: Any, **settings: Any) -> list[str]:
    """As `run`; results and gradients are compared with those of eager PyTorch."""

    def given() -> list[Any]:
        return [
            each.detach().clone().requires_grad_(each.requires_grad)
            if isinstance(each, Tensor)
            else each
            for each in arguments
        ]

    def gradients(results: Any, leaves: list[Any]) -> list[Tensor]:
        results = results if isinstance(results, tuple) else (results,)
        wanted = [each for each in leaves if isinstance(each, Tensor) and each.requires_grad]
        if not wanted:
            return []
        return list(torch.autograd.grad(sum(each.sin().sum() for each in results), wanted))

    ours, theirs = given(), given()
    expected = function(*theirs)
    result, found = run(function, *ours, **settings)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(gradients(result, ours), gradients(expected, theirs))
    return found


def tables(half: bool = False, batch: int | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin, [T, D] or [batch, T, D], of half the width or with equal halves."""
    angle = torch.randn(*([] if batch is None else [batch]), T, D // 2)
    angle = angle if half else torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


def heads(count: int = H, first: bool = False) -> Tensor:
    """Made by a projection: tokens first in memory, with a gradient."""
    x = torch.randn(B, T, count, D, requires_grad=True)
    return x.transpose(1, 2).detach().requires_grad_() if first else x


def complex_angles() -> Tensor:
    return torch.polar(torch.ones(T, D // 2), torch.randn(T, D // 2))


# ---- spellings, of one tensor with tokens first: x [B, T, heads, D] ------------------------------


def meta_llama(x: Tensor, angles: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    angles = angles.view(1, pairs.shape[1], 1, pairs.shape[-1])
    return torch.view_as_real(pairs * angles).flatten(3).type_as(x)


def gpt_fast(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    table = torch.stack((cos, sin), -1).view(1, T, 1, D // 2, 2)
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    turned = torch.stack(
        [
            pairs[..., 0] * table[..., 0] - pairs[..., 1] * table[..., 1],
            pairs[..., 1] * table[..., 0] + pairs[..., 0] * table[..., 1],
        ],
        -1,
    )
    return turned.flatten(3).type_as(x)


def unbound_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[None, :, None], sin[None, :, None]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).reshape(x.shape)


def chunks(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    one, two = torch.chunk(x, 2, dim=-1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


def nanochat(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    half = x.shape[3] // 2
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * cos + two * sin, one * (-sin) + two * cos], 3).to(x.dtype)


def split_by_view(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[:, None], sin[:, None]
    one, two = x.view(B, T, -1, 2, D // 2).unbind(-2)
    return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)


def deepseek_v3(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # of transformers
    cos, sin = cos[:, : D // 2].unsqueeze(1), sin[:, : D // 2].unsqueeze(1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


def deepseek_v3_before(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    x = x.view(B, T, -1, D // 2, 2).transpose(4, 3).reshape(x.shape)
    return x * cos + turned(x) * sin


def wan(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # of diffusers
    cos, sin = cos[None, :, None], sin[None, :, None]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out.type_as(x)


def written_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[None, :, None], sin[None, :, None]
    one, two = x.chunk(2, -1)
    out = torch.zeros_like(x)
    out[..., D // 2 :] = two * cos + one * sin
    out[..., : D // 2] = one * cos - two * sin
    return out


def scaled_by_one(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # rotary-embedding-torch
    cos, sin = cos[:, None], sin[:, None]
    return (x * cos * 1.0) + (1.0 * turned_in_pairs(x) * sin)


def turned_in_pairs(x: Tensor) -> Tensor:
    one, two = x.reshape(*x.shape[:-1], -1, 2).unbind(dim=-1)
    x = torch.stack((-two, one), dim=-1)
    return x.reshape(*x.shape[:-2], -1)


ONE: dict[str, tuple[Callable[..., Tensor], Callable[[], Any]]] = {
    "meta_llama": (meta_llama, lambda: (complex_angles(),)),
    "gpt_fast": (gpt_fast, lambda: tables(half=True)),
    "unbound_pairs": (unbound_pairs, lambda: tables(half=True)),
    "chunks": (chunks, lambda: tables(half=True)),
    "nanochat": (nanochat, lambda: tables(half=True)),
    "deepseek_v3": (deepseek_v3, tables),
    "wan": (wan, lambda: tables(half=True)),
    "written_halves": (written_halves, lambda: tables(half=True)),
    "scaled_by_one": (scaled_by_one, tables),
    "deepseek_v3_before": (deepseek_v3_before, tables),
    "split_by_view": (split_by_view, lambda: tables(half=True)),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ONE)
def test_tokens_first(name: str, dynamic: bool) -> None:
    of_one, make = ONE[name]
    angles = make()
    assert places(lambda q, *angles: of_one(q, *angles), heads(), *angles, dynamic=dynamic) == [""]

    def both(q: Tensor, k: Tensor, *angles: Tensor) -> Any:
        return of_one(q, *angles), of_one(k, *angles)

    found = places(both, heads(), heads(K), *angles)
    assert found and set(found) == {""}


def test_the_other_way_without_gradients_is_one_op() -> None:
    """The sine is not negated by a kernel of its own."""
    x, angles, targets = heads().detach(), tables(half=True), []
    backend = substituting.backend(
        "rope", seen=lambda graph: targets.extend(str(node.target) for node in graph.nodes)
    )
    torch.compiler.reset()
    result = torch.compile(nanochat, backend=backend)(x, *angles)
    torch.testing.assert_close(result, nanochat(x, *angles))
    assert any("rope_backward" in each for each in targets)
    assert not any("neg" in each for each in targets), targets


@pytest.mark.parametrize("name", ["meta_llama", "gpt_fast"])
def test_narrow_queries_with_angles_in_float32_are_rounded_once(name: str) -> None:
    of_one, make = ONE[name]
    x, angles = heads().detach().bfloat16(), make()
    result, found = run(of_one, x, *angles)
    wide = [each.to(torch.promote_types(each.dtype, torch.float64)) for each in angles]
    assert (found, result.dtype) == ([""], torch.bfloat16)
    if name == "meta_llama":
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        exact = torch.view_as_real(pairs * wide[0][:, None]).flatten(-2)
        torch.testing.assert_close(result.double(), exact, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(result, of_one(x, *angles))


# ---- spellings of queries and keys with heads first: [B, heads, T, D] ----------------------------


def turned(x: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    return torch.cat((-two, one), dim=-1)


def turned_pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def turned_backwards(x: Tensor) -> Tensor:  # nanochat of transformers
    one, two = x.chunk(2, dim=-1)
    return torch.cat((two, -one), dim=-1)


@pytest.mark.parametrize("turn", [turned, turned_backwards, turned_pairs])
@pytest.mark.parametrize("shape", [(T, D), (1, 1, T, D), (B, 1, T, D)])
def test_tables_that_are_broadcast_already(shape: Any, turn: Any) -> None:
    def both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return q * cos + turn(q) * sin, k * cos + turn(k) * sin

    cos, sin = torch.randn(shape), torch.randn(shape)
    assert places(
        both,
        torch.randn(B, H, T, D, requires_grad=True),
        torch.randn(B, K, T, D, requires_grad=True),
        cos,
        sin,
    ) == [""]


def test_tables_of_positions() -> None:
    def both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, ids: Tensor) -> Any:
        cos, sin = cos[ids].unsqueeze(1), sin[ids].unsqueeze(1)
        return q * cos + turned(q) * sin, k * cos + turned(k) * sin

    q, k = (torch.randn(B, count, T, D, requires_grad=True) for count in (H, K))
    ids = torch.randint(T, (B, T))
    assert places(both, q, k, *tables(), ids) == [""]


def test_images_without_a_batch() -> None:
    def vision(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        dtype = q.dtype
        q, k = q.float(), k.float()
        cos, sin = cos.unsqueeze(-2).float(), sin.unsqueeze(-2).float()
        return (q * cos + turned(q) * sin).to(dtype), (k * cos + turned(k) * sin).to(dtype)

    q, k = (torch.randn(T, H, D).bfloat16() for _ in range(2))
    assert places(vision, q, k, *(each.bfloat16() for each in tables())) == [""]


def test_only_the_first_columns() -> None:
    def partial(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos[None, None], sin[None, None]
        part, rest = q[..., :D], q[..., D:]
        return torch.cat((part * cos + turned(part) * sin, rest), dim=-1)

    assert places(partial, torch.randn(B, H, T, 3 * D, requires_grad=True), *tables()) == [""]


# ---- what is no rotary embedding, or one that is left --------------------------------------------


def wan_without_the_last(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = cos[:, : D // 2], sin[:, : D // 2]
    out = torch.zeros_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1 : D - 1 : 2] = (even * sin + odd * cos)[..., : D // 2 - 1]
    return out


NOT_ROPE: dict[str, Callable[..., Tensor]] = {
    "the sign of neither": lambda q, c, s: q * c + torch.cat((q[..., 4:], q[..., :4]), -1) * s,
    "the sign of both": lambda q, c, s: q * c + torch.cat((-q[..., 4:], -q[..., :4]), -1) * s,
    "the other half": lambda q, c, s: q * c + torch.cat((-q[..., :4], q[..., 4:]), -1) * s,
    "unequal parts": lambda q, c, s: q * c + torch.cat((-q[..., 2:], q[..., :2]), -1) * s,
    "neighbours into halves, backwards": lambda q, c, s: torch.cat(
        (
            q[..., ::2] * c[..., :4] + q[..., 1::2] * s[..., :4],
            q[..., 1::2] * c[..., :4] + q[..., ::2] * s[..., :4],
        ),
        -1,
    ),
    "scaled": lambda q, c, s: q * c + turned(q) * s * 1.5,
    "a part that is not written": lambda q, c, s: wan_without_the_last(q, c, s),
    "halves of pairs": lambda q, c, s: q * c + torch.cat((-q[..., 1::2], q[..., ::2]), -1) * s,
    "pairs of halves": lambda q, c, s: (
        q * c + torch.stack((-q[..., 4:], q[..., :4]), -1).flatten(-2) * s
    ),
    "pairs one further": lambda q, c, s: (
        q * c + torch.stack((-q[..., ::2], q[..., 1::2]), -1).flatten(-2) * s
    ),
    "every second, cut off": lambda q, c, s: (
        q * c + torch.cat((-q[..., 1:8:2], q[..., 0:7:2]), -1) * s
    ),
    "stacked the other way": lambda q, c, s: (
        q * c + torch.stack((-q[..., 1::2], q[..., ::2]), -2).flatten(-2) * s
    ),
    "another tensor": lambda q, c, s: q * c + turned(q + 1) * s,
}


@pytest.mark.parametrize("name", NOT_ROPE)
def test_what_only_looks_like_it(name: str) -> None:
    q, (cos, sin) = torch.randn(B, H, T, D), tables()
    assert places(NOT_ROPE[name], q, cos, sin) == []


def test_cos_and_sin_exchanged() -> None:
    def exchanged(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return q * sin + turned(q) * cos  # which is rope, by other angles

    assert places(exchanged, torch.randn(B, H, T, D), *tables()) == [""]


@pytest.mark.parametrize(
    "shape, reason",
    [
        ((H, T, D), "cos and sin have another shape than the tokens"),
        ((1, 1, 1, D), "cos and sin have another shape than the tokens"),
        ((D,), "cos and sin have another shape than the tokens"),
        ((T, 1), "cos and sin have another size than a head"),
    ],
)
def test_tables_of_other_shapes(shape: Any, reason: str) -> None:
    def one(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return q * cos + turned(q) * sin

    q = torch.randn(B, H, T, D)
    assert places(one, q, torch.randn(shape), torch.randn(shape)) == [reason]


def test_one_angle_for_a_token() -> None:
    def one(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return q * cos + turned(q) * sin

    reason = "cos and sin have not one to four dimensions"
    assert places(one, torch.randn(B, H, 1, D), torch.randn(()), torch.randn(())) == [reason]


def test_tables_with_gradients_or_more_digits() -> None:
    def one(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return (q * cos + turned(q) * sin).to(q.dtype)

    q, (cos, sin) = torch.randn(B, H, T, D), tables()
    assert places(one, q, cos.requires_grad_(), sin) == ["cos and sin need gradients"]
    wide = [each.detach().double() for each in (cos, sin)]
    assert places(one, q, *wide) == ["cos and sin have more digits than the op"]

    def by_numbers(q: Tensor, angles: Tensor) -> Tensor:
        return meta_llama(q, angles * 1)

    angles = complex_angles().requires_grad_()
    assert places(by_numbers, heads().detach(), angles) == ["cos and sin need gradients"]


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_as_many_tokens_as_a_mask_chooses() -> None:
    def chosen(q: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        q, cos, sin = q[mask], cos[mask][:, None], sin[mask][:, None]
        return q * cos + turned(q) * sin

    mask = torch.tensor([True, False, True, True, False])
    (reason,) = places(chosen, torch.randn(T, H, D), *tables(), mask)
    assert reason == "whether the op may stand there depends on values, known only when it runs"


def test_heads_of_other_sizes_are_replaced_one_by_one() -> None:
    def both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return q * cos + turned(q) * sin, k * cos + turned(k) * sin

    q, k = torch.randn(B, H, T, D), torch.randn(1, H, T, D)
    assert places(both, q, k, *tables()) == ["", ""]


ROTATIONS: list[Callable[..., Tensor]] = [
    lambda x, cos, sin: x * cos + turned(x) * sin,
    lambda x, cos, sin: x * cos + turned_pairs(x) * sin,
    lambda x, cos, sin: by_parts(x, cos, sin, x.chunk(2, -1)),
    lambda x, cos, sin: by_parts(x, cos, sin, x.unflatten(-1, (2, -1)).unbind(-2)),
]


def by_parts(x: Tensor, cos: Tensor, sin: Tensor, parts: Any) -> Tensor:
    (one, two), cos, sin = parts, cos[..., : D // 2], sin[..., : D // 2]
    return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)


@pytest.mark.parametrize("second", ROTATIONS)
@pytest.mark.parametrize("first", ROTATIONS)
def test_a_rotation_of_what_was_rotated(first: Any, second: Any) -> None:
    def twice(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return second(first(x, cos, sin), cos, sin)

    assert places(twice, torch.randn(B, H, T, D, requires_grad=True), *tables()) == ["", ""]


def test_a_part_that_is_read_elsewhere() -> None:
    def one(q: Tensor, cos: Tensor, sin: Tensor) -> Any:
        other = turned(q)
        return q * cos + other * sin, other

    (reason,) = places(one, torch.randn(B, H, T, D), *tables())
    assert "a part of it, is used elsewhere" in reason


@pytest.mark.parametrize("of_one", [chunks, unbound_pairs])
def test_writes_in_between(of_one: Any) -> None:
    def written(x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        x = x * 1
        c, s = cos[None, :, None], sin[None, :, None]
        if of_one is chunks:
            one, two = x.chunk(2, -1)
        else:
            one, two = x[..., ::2], x[..., 1::2]
        first = one * c - two * s
        x.add_(1)
        second = two * c + one * s
        if of_one is chunks:
            return torch.cat((first, second), -1)
        return torch.stack((first, second), -1).flatten(-2)

    (reason,) = places(written, heads().detach(), *tables(half=True))
    assert reason == "something may be written to memory, or a mode changes, between its parts"


def test_a_copy_of_pairs_before_a_write() -> None:
    def written(x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        x = (x * 1).transpose(1, 3)  # its pairs cannot be a view
        pairs = x.reshape(B, D, H, T, 1).transpose(1, 4).reshape(B, H * T, D // 2, 2)
        x.add_(1)
        even, odd = pairs.unbind(-1)
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)

    places(written, heads().detach(), *(torch.randn(H * T, D // 2) for _ in range(2)))


def test_only_forms_that_were_measured_are_replaced_unasked() -> None:
    def reason(function: Any, *arguments: Tensor) -> str:
        with apply.collected() as found:
            torch.compiler.reset()
            torch.compile(function, backend=substituting.backend("all"))(*arguments)
        (place,) = found  # not one more for the queries alone, and for the keys
        return place.reason

    def both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return q * cos + turned(q) * sin, k * cos + turned(k) * sin

    q, k, (cos, sin) = torch.randn(B, H, T, D), torch.randn(B, K, T, D), tables()
    rows, what = B * (H + K) * T, "it was not measured for"
    form = "halves, cos and sin, heads first"
    assert reason(both, q, k, cos, sin) == f"{what} {rows} x {D} values on cpu ({form})"
    form = "neighbours, complex numbers, tokens first, in float32, one tensor"
    rows, narrow = B * H * T, heads().detach().bfloat16()
    assert reason(meta_llama, narrow, complex_angles()) == (
        f"{what} {rows} x {D} values on cpu ({form})"
    )


# ---- tokens before the batch, as Megatron has them -----------------------------------------------


def megatron(t: Tensor, freqs: Tensor) -> Tensor:
    cos, sin = torch.cos(freqs).to(t.dtype), torch.sin(freqs).to(t.dtype)
    return t * cos + turned(t) * sin


@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_before_the_batch(batch: int) -> None:
    freqs = torch.randn(T, 1, 1, D // 2)
    freqs = torch.cat((freqs, freqs), dim=-1)
    q, k = (torch.randn(T, batch, count, D, requires_grad=True) for count in (H, K))
    both = lambda q, k, f: (megatron(q, f), megatron(k, f))  # noqa: E731
    assert places(both, q, k, freqs) == [""]  # cosines that are computed twice are one
    assert places(megatron, q, freqs) == [""]


def test_cosines_of_other_angles_are_not_taken_together() -> None:
    def layer(q: Tensor, k: Tensor, freqs: Tensor) -> tuple[Tensor, Tensor]:
        return megatron(q, freqs), megatron(k, freqs * 2)

    def written(q: Tensor, k: Tensor, freqs: Tensor) -> tuple[Tensor, Tensor]:
        freqs = freqs * 2
        first = megatron(q, freqs)
        freqs.mul_(2)
        return first, megatron(k, freqs)

    freqs = torch.randn(T, 1, 1, D // 2)
    freqs = torch.cat((freqs, freqs), dim=-1)
    q, k = (torch.randn(T, 3, count, D, requires_grad=True) for count in (H, K))
    assert places(layer, q, k, freqs) == ["", ""]
    assert places(written, q, k, freqs) == ["", ""]


# ---- by matrices, as FLUX has it -----------------------------------------------------------------


def matrices(ids: Tensor, sizes: tuple[int, ...], split: Any, wrong: str = "") -> Tensor:
    """EmbedND of FLUX: of each axis, some of the pairs."""

    def rope(pos: Tensor, dim: int) -> Tensor:
        omega = 1.0 / (10000 ** (torch.arange(0, dim, 2, dtype=pos.dtype) / dim))
        out = torch.einsum("...n,d->...nd", pos, omega)
        sin = torch.sin(out + 1) if wrong == "angle" else torch.sin(out)
        rows = [torch.cos(out), -torch.sin(out), sin, torch.cos(out)]
        if wrong == "sign":
            rows[1] = torch.sin(out)
        return split(torch.stack(rows, dim=-1)).float()

    axes = [rope(ids[..., axis], size) for axis, size in enumerate(sizes)]
    return torch.cat(axes, dim=-3).unsqueeze(1)


def flux(q: Tensor, k: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
    def apply_rope(x: Tensor) -> Tensor:
        x_ = x.float().reshape(*x.shape[:-1], -1, 1, 2)
        out = pe[..., 0] * x_[..., 0] + pe[..., 1] * x_[..., 1]
        return out.reshape(*x.shape).type_as(x)

    return apply_rope(q), apply_rope(k)


def queries_and_keys(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    q, k = (torch.randn(B, H, T, D, dtype=dtype) for _ in range(2))
    return q.requires_grad_(), k.requires_grad_()


SPLITS = {
    "view": lambda out: out.view(*out.shape[:-1], 2, 2),
    "unflatten": lambda out: out.unflatten(-1, (2, 2)),
}


@pytest.mark.parametrize("split", SPLITS)
def test_rotations_by_matrices(split: str) -> None:
    def layer(q: Tensor, k: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return flux(q, k, matrices(ids, (2, 4, 2), SPLITS[split]))

    ids = torch.rand(B, T, 3, dtype=torch.float64)
    assert places(layer, *queries_and_keys(), ids) == [""]
    q, k = queries_and_keys(torch.bfloat16)
    result, found = run(layer, q, k, ids)
    assert found == [""] and result[0].dtype == torch.bfloat16
    for one, other in zip(result, layer(q, k, ids), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("wrong", ["angle", "sign"])
def test_matrices_that_are_no_rotations_are_left(wrong: str) -> None:
    def layer(q: Tensor, k: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return flux(q, k, matrices(ids, (2, 4, 2), SPLITS["view"], wrong))

    assert places(layer, *queries_and_keys(), torch.rand(B, T, 3)) == []


def test_matrices_that_are_not_known_are_left() -> None:
    assert places(flux, *queries_and_keys(), torch.randn(B, 1, T, D // 2, 2, 2)) == []
