"""What counts as a place that computes a pattern, and when it is left as it is."""

from __future__ import annotations

from typing import Any

import pytest
import substituting
import torch
import torch.nn.functional as F
from substituting import found_in

from opaq import extern_kernels
from opaq.lowering.substitute import apply

extern_kernels.load_patterns()
Tensor = torch.Tensor


def applied(function: Any, *arguments: Any, **settings: Any) -> list[str]:
    return [each.pattern for each in found_in(function, *arguments, **settings) if each.applied]


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 8), torch.randn(4, 8)


SPELLINGS = {
    "methods": lambda g, u: F.silu(g).mul(u),
    "functions": lambda g, u: torch.mul(u, F.silu(g)),
    "factors the other way": lambda g, u: u * F.silu(g),
    "a module": lambda g, u: torch.nn.SiLU()(g) * u,
    "sigmoid": lambda g, u: u * (torch.sigmoid(g) * g),
    "aten": lambda g, u: torch.ops.aten.mul.Tensor(torch.ops.aten.silu.default(g), u),
}


@pytest.mark.parametrize("function", SPELLINGS.values(), ids=SPELLINGS)
def test_how_it_is_written_does_not_matter(function: Any, pair: Any) -> None:
    assert applied(function, *pair) == ["silu_mul"]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: torch.reshape(input=x, shape=(2, 16)),
        lambda x: torch.squeeze(input=x[None], dim=0),
        lambda x: torch.unbind(input=torch.unsqueeze(input=x, dim=0), dim=0)[0],
        lambda x: torch.flatten(input=x),
        lambda x: torch.select(input=x, dim=0, index=1),
    ],
)
def test_tensors_given_by_name(view: Any, pair: Any) -> None:
    def block(g: Tensor, u: Tensor) -> Tensor:
        return torch.mul(input=F.silu(input=view(g)), other=view(u))

    assert applied(block, *pair) == ["silu_mul"]


def test_casts_inside_are_passed_over() -> None:
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return (F.silu(gate.float()) * up.float()).to(gate.dtype)

    pair = [torch.randn(4, 8).bfloat16() for _ in range(2)]
    assert applied(swiglu, *pair) == ["silu_mul"]


def test_a_result_that_is_kept_in_a_wider_dtype_is_left(pair: Any) -> None:
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate.float()) * up.float()

    (place,) = found_in(swiglu, *(each.bfloat16() for each in pair))
    assert not place.applied
    assert place.reason == "output reads the result in float32, which the op does not give"


def test_a_value_that_was_rounded_before_is_not_taken_from_before(pair: Any) -> None:
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        gate = gate.bfloat16()
        return F.silu(gate) * up.bfloat16()

    (place,) = found_in(swiglu, *pair)
    assert place.applied


def test_other_computations_are_not_found(pair: Any) -> None:
    assert applied(lambda g, u: F.silu(g) + u, *pair) == []
    assert applied(lambda g, u: F.gelu(g) * u, *pair) == []
    assert applied(lambda g, u: torch.sigmoid(g) * u * u, *pair) == []
    assert applied(lambda g, u: torch.sigmoid(g + 1) * g * u, *pair) == []


def test_a_part_that_is_used_elsewhere_is_left(pair: Any) -> None:
    def both(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        activated = F.silu(gate)
        return activated * up, activated

    (place,) = found_in(both, *pair)
    assert place.reason == "activated, a part of it, is used elsewhere (output)"


def test_what_is_written_between_its_parts_is_seen(pair: Any) -> None:
    def written(gate: Tensor, up: Tensor) -> Tensor:
        activated = F.silu(gate)
        gate = gate.clone()
        up = up.clone()
        up.add_(1)
        return activated * up

    (place,) = found_in(written, *pair)
    assert not place.applied and place.reason.startswith("something may be written to memory")

    def written_before(gate: Tensor, up: Tensor) -> Tensor:
        up = up.clone()
        up.add_(1)
        return F.silu(gate) * up

    assert applied(written_before, *pair) == ["silu_mul"]


def test_what_writes_without_an_underscore_in_its_name_is_seen(pair: Any) -> None:
    def limited(table: Tensor, up: Tensor) -> Tensor:
        activated = F.silu(table)
        F.embedding(torch.arange(4), table, max_norm=0.5)
        return activated * up

    def called(gate: Tensor, up: Tensor) -> Tensor:
        gate = gate.clone()
        activated = F.silu(gate)
        gate.__iadd__(1)
        return activated * up

    for function in (limited, called):
        table, up = pair[0].clone(), pair[1]
        expected = function(table.clone(), up)
        compiled = torch.compile(function, backend="opaq", options={"substitute": ["silu_mul"]})
        with apply.collected() as found:
            torch.testing.assert_close(compiled(table, up), expected)
        assert [each.applied for each in found] == [False]


def test_an_argument_that_is_written_afterwards_is_not_kept_for_the_gradient() -> None:
    def loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits * 2
        mean = F.cross_entropy(logits, target)
        logits.view(-1).div_(2)
        return mean, logits

    target = torch.tensor([0, 3, 7, 1])
    logits = torch.randn(4, 8)
    assert applied(loss, logits, target) == ["cross_entropy"]
    logits.requires_grad_()
    (place,) = found_in(loss, logits, target)
    assert place.reason.startswith("div_ writes to an argument")


def test_a_result_may_be_copied_into_another_tensor() -> None:
    """As the keys of DeepSeek's latent attention are."""

    def joined(x: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
        y = F.rms_norm(x, (8,), weight, 1e-6)
        buffer = buffer * 1
        buffer[..., :8].copy_(y.expand(3, 4, 8))
        buffer[..., 8:] = x
        return buffer

    def written(x: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
        y = F.rms_norm(x, (8,), weight, 1e-6)
        y.copy_(buffer)
        return y

    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    assert applied(joined, x, weight, torch.randn(3, 4, 16)) == ["rms_norm"]
    (place,) = found_in(written, x, weight, torch.randn(4, 8))
    assert place.reason.startswith("copy_ writes to a result")


def test_results_have_gradients_where_those_of_the_model_have() -> None:
    def block(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, (8,), weight, 1e-6), total

    names = ["add_rms_norm", "rms_norm"]
    x, residual, weight = torch.randn(4, 8), torch.randn(4, 8), torch.randn(8)
    assert applied(block, x, residual, weight, names=names) == ["add_rms_norm"]
    weight.requires_grad_()
    assert applied(block, x, residual, weight, names=names) == ["rms_norm"]
    with torch.no_grad():
        assert applied(block, x, residual, weight, names=names) == ["add_rms_norm"]
    x.requires_grad_()
    assert applied(block, x, residual, weight, names=names) == ["add_rms_norm"]


def test_kernels_that_keep_the_strides_of_an_argument_are_seen() -> None:
    def normalized(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * torch.ones(8)

    x = torch.randn(2, 5, 3, 8).transpose(1, 2)
    kernel = torch.randn(4, 3, 3, 3)
    last = torch.randn(2, 3, 6, 8).to(memory_format=torch.channels_last)
    sees: list[tuple[Any, Tensor]] = [
        (lambda x: F.scaled_dot_product_attention(normalized(x), x, x), x),
        (lambda x: normalized(x).sort(1)[0], x),
        (lambda x: F.conv2d(normalized(x), kernel), last),
    ]
    for function, argument in sees:
        (place,) = found_in(function, argument)
        assert place.reason == "output sees that the op lays out its result in another way"
    assert applied(lambda x: F.linear(normalized(x), torch.ones(4, 8)), x) == ["rms_norm"]
    assert applied(lambda x: normalized(x).sort(1)[0], x.contiguous()) == ["rms_norm"]


def test_a_cast_before_a_write_keeps_the_old_values() -> None:
    def late(gate: Tensor, up: Tensor) -> Tensor:
        gate = gate.clone()
        old = gate.float()
        gate.add_(1)
        return (F.silu(old) * up.float()).bfloat16() + gate

    torch.manual_seed(0)  # a unit in the last place of a large product is more than the bound
    pair = [torch.randn(4, 8).bfloat16() for _ in range(2)]
    expected = late(*pair)
    compiled = torch.compile(late, backend="opaq", options={"substitute": ["silu_mul"]})
    # gate + 1 in place of gate would be off by about 1
    torch.testing.assert_close(compiled(*pair), expected, atol=0.05, rtol=0)


def test_arguments_that_the_op_does_not_serve_are_left() -> None:
    wide = torch.randn(4, 8)
    (place,) = found_in(lambda g, u: F.silu(g) * u, wide, torch.randn(8))
    assert place.reason == "gate and up have different shapes"
    (place,) = found_in(lambda x, w: F.rms_norm(x, (8,), w, 1e-6), wide, torch.randn(8).double())
    assert place.reason == "the weight has another dtype than x"

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (8,), weight.float(), bias.float()).to(x.dtype)

    half, weight = wide.bfloat16(), torch.randn(8)
    (place,) = found_in(norm, half, weight.half(), weight.half())
    assert place.reason == "the weight has another dtype than x"
    (place,) = found_in(norm, half, weight.bfloat16(), weight)
    assert place.reason == "weight and bias have different dtypes"


def test_rms_norm_whose_eps_is_pytorchs() -> None:
    for dtype in (torch.float32, torch.float64):  # of which eps is the smallest of that dtype
        small = torch.full((4, 8), 1e-4 if dtype == torch.float32 else 1e-8, dtype=dtype)
        assert applied(torch.nn.RMSNorm(8, dtype=dtype), small) == ["rms_norm"]
        assert applied(lambda x: F.rms_norm(x, (8,)), small) == ["rms_norm"]
    half = torch.full((4, 8), 1e-4).bfloat16()  # of float32
    assert applied(lambda x: F.rms_norm(x, (8,)), half) == ["rms_norm"]


def test_rms_norm_whose_weight_is_around_zero() -> None:
    def gemma(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        normalized = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (normalized * (1.0 + weight.float())).type_as(x)

    assert applied(gemma, torch.randn(4, 8).bfloat16(), torch.randn(8).bfloat16()) == ["rms_norm"]


def test_layer_norm_in_its_spellings() -> None:
    x = torch.randn(4, 8)
    assert applied(torch.nn.LayerNorm(8), x) == ["layer_norm"]
    assert applied(torch.nn.LayerNorm(8, bias=False), x) == ["layer_norm"]
    assert applied(torch.nn.LayerNorm(8, elementwise_affine=False), x) == ["layer_norm"]
    assert applied(torch.nn.LayerNorm((4, 8)), x) == []

    def divided_by(variance: Any) -> list[str]:
        def normalized(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance(x) + 1e-6) * w + b

        return applied(normalized, x, torch.randn(8), torch.randn(8))

    for variance in (
        lambda x: x.var(-1, False, True),
        lambda x: x.var(dim=-1, correction=0, keepdim=True),
        lambda x: torch.var(x, (1,), keepdim=True, unbiased=False),
    ):
        assert divided_by(variance) == ["layer_norm"]
    assert divided_by(lambda x: x.var(-1, keepdim=True)) == []
    assert divided_by(lambda x: x.var(0, keepdim=True, unbiased=False)) == []
    assert divided_by(lambda x: x.var(False)) == []


def test_a_layout_that_something_sees_is_kept(pair: Any) -> None:
    (place,) = found_in(lambda g, u: F.silu(g.t()) * u.t(), *pair)
    assert place.reason == "output sees that the op lays out its result in another way"
    (place,) = found_in(lambda g, u: (F.silu(g.t()) * u.t()).t().view(-1), *pair)
    assert place.reason == "view sees that the op lays out its result in another way"
    assert applied(lambda g, u: (F.silu(g.t()) * u.t()).contiguous().view(-1), *pair) == [
        "silu_mul"
    ]


def test_casts_of_a_result_stay_tensors_of_their_own(pair: Any) -> None:
    def written(gate: Tensor, up: Tensor) -> Tensor:
        wide = F.silu(gate.float()) * up.float()
        one, other = wide.bfloat16(), wide.bfloat16()
        one.add_(1)
        return other

    found_in(written, *(each.bfloat16() for each in pair))

    def cut(gate: Tensor, up: Tensor) -> Tensor:
        wide = F.silu(gate.float()) * up.float()
        with torch.no_grad():
            narrow = wide.bfloat16()
        return narrow

    given = [each.bfloat16().requires_grad_() for each in pair]
    compiled = torch.compile(cut, backend="opaq", options={"substitute": ["silu_mul"]})
    assert not compiled(*given).requires_grad


def test_equal_reads_before_and_after_a_write(pair: Any) -> None:
    def reads(x: Tensor, up: Tensor, rows: Tensor) -> Tensor:
        x = x.clone()
        before = x[rows]
        x.add_(1)
        return before * torch.sigmoid(x[rows]) * up

    assert applied(reads, *pair, torch.arange(4)) == []


def test_strides_are_kept_behind_other_operations(pair: Any) -> None:
    for after in (lambda y: y + 1, lambda y: F.relu(y).t().view(-1)):
        (place,) = found_in(lambda g, u, after=after: after(F.silu(g.t()) * u.t()), *pair)
        assert "sees that the op lays out its result in another way" in place.reason


def test_many_ways_to_one_reader_are_walked_once(pair: Any) -> None:
    def diamonds(gate: Tensor, up: Tensor) -> Tensor:
        y = F.silu(gate.t()) * up.t()
        for _ in range(40):  # 2^40 ways
            y = y.sin() + y.cos()
        return y.contiguous()

    with apply.collected() as found:
        result = torch.compile(diamonds, backend=substituting.backend("silu_mul"))(*pair)
    assert [each.applied for each in found] == [True]
    torch.testing.assert_close(result, diamonds(*pair))


@pytest.mark.parametrize("names", ["all", ["rope"]])
def test_numbers_that_only_a_call_knows(names: Any) -> None:
    x = torch.randn(2, 3, 8)
    for function in (
        lambda x, dim=1: x.unsqueeze(dim) * 2,
        lambda x, start=0: x.narrow(0, start, 1) * 2,
        lambda x, dim=1: x.split(1, dim)[0] * 2,
    ):
        assert found_in(function, x, names=names, dynamic=True) == []


def test_bits_that_are_read_as_another_dtype() -> None:
    def loss(x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(x.float().view(torch.float32), target)

    found_in(loss, torch.randn(4, 8).bfloat16(), torch.tensor([0, 1, 5, 7]))


def test_modes_between_its_parts() -> None:
    def halves(gate: Tensor, up: Tensor) -> Tensor:
        with torch.no_grad():
            activated = F.silu(gate)
        return activated * up

    pair = [torch.randn(4, 8, requires_grad=True) for _ in range(2)]
    (place,) = found_in(halves, *pair)
    assert not place.applied


def test_a_write_without_gradients_leaves_those_of_the_value() -> None:
    def doubled(gate: Tensor, up: Tensor) -> Tensor:
        gate = gate @ gate.t() * 1
        with torch.no_grad():
            gate.mul_(2)
        return F.silu(gate) * up

    gate, up = torch.randn(8, 8, requires_grad=True), torch.randn(8, 8)
    doubled(gate, up).sum().backward()
    expected, gate.grad = gate.grad, None
    compiled = torch.compile(doubled, backend="opaq", options={"substitute": ["silu_mul"]})
    compiled(gate, up).sum().backward()
    torch.testing.assert_close(gate.grad, expected)


def test_a_view_made_in_a_transform_sees_a_later_write() -> None:
    def viewed(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        made = gate * 1
        rows = torch.func.vmap(lambda row: row.view(2, 4))(made)
        made.mul_(2)
        return F.silu(made) * up, rows

    found_in(viewed, torch.randn(4, 8), torch.randn(4, 8))


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f, x, v: torch.func.jvp(f, (x,), (v,))[1],
        lambda f, x, v: torch.func.grad(lambda x: torch.func.grad(f)(x).mul(v).sum())(x),
        lambda f, x, v: torch.func.vmap(torch.func.grad(f))(torch.stack([x, v])),
    ],
    ids=["jvp", "grad of grad", "vmap of grad"],
)
def test_places_inside_transforms_are_left(transformed: Any) -> None:
    """Forward mode and second derivatives, which PyTorch has and our op has not."""
    x, v, target = torch.randn(8, 16), torch.randn(8, 16), torch.randint(0, 16, (8,))

    def loss(x: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x * 2, target)

    options = {"substitute": ["cross_entropy"]}
    compiled = torch.compile(lambda x, v: transformed(loss, x, v), backend="opaq", options=options)
    torch.testing.assert_close(compiled(x, v), transformed(loss, x, v))


def test_checkpointed_layers_are_searched_too(pair: Any) -> None:
    def layer(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def model(gate: Tensor, up: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(layer, gate, up, use_reentrant=False)

    pair = [each.requires_grad_() for each in pair]
    assert applied(model, *pair) == ["silu_mul"]


def test_a_compiled_layer_in_a_checkpoint(pair: Any) -> None:
    """The first call, which compiles, saves what the recomputation does."""
    compiled = torch.compile(lambda g, u: F.silu(g) * u, backend=substituting.backend("silu_mul"))
    pair = [each.requires_grad_() for each in pair]
    with apply.collected() as found:
        result = torch.utils.checkpoint.checkpoint(compiled, *pair, use_reentrant=False)
    got = torch.autograd.grad(result.sum(), pair)
    torch.testing.assert_close(got, torch.autograd.grad((F.silu(pair[0]) * pair[1]).sum(), pair))
    assert [each.applied for each in found] == [True]


def test_a_graph_in_which_every_size_is_unknown(pair: Any) -> None:
    assert applied(lambda g, u: F.silu(g) * u, *pair, dynamic=True) == ["silu_mul"]


def test_under_autocast(pair: Any) -> None:
    linear = torch.nn.Linear(8, 16)

    def model(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            gate, up = linear(x).chunk(2, -1)
            return F.silu(gate) * up

    assert applied(model, pair[0]) == ["silu_mul"]
