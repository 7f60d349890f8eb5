"""An `opaq.op` takes the methods of what torch.library.custom_op returns, and torch.library's
functions take the op, its name and its overload.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._library.effects import EffectType
from torch.library import opcheck
from torch.testing import assert_close

import opaq
from opaq.lowering.compat import pytorch

SCALE = (
    "void scale(const float* x, double by, float* out, long n) { for (long i = 0; i < n; "
    "++i) out[i] = x[i] * by; }"
)


@pytest.fixture
def op(unique: str) -> opaq.Op:
    op = opaq.op(f"{unique}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    return op.cpu(source=SCALE, entry="scale", args="x, by, out, x.numel()")


def everywhere(op: opaq.Op, *args: Any) -> list[torch.Tensor]:
    """What a call gives in eager, through torch.ops, and compiled in three ways."""
    results = [op(*args), op.overload(*args)]
    for options in ({}, {"cpp_wrapper": True}):
        torch.compiler.reset()
        results.append(torch.compile(op, fullgraph=True, options=options)(*args))
    torch.compiler.reset()
    return [*results, torch.compile(op, fullgraph=True, backend="opaq")(*args)]


def identifiers(op: opaq.Op) -> list[Any]:
    return [op, op.name, op.overload]


def test_opcheck_takes_the_op(op: opaq.Op) -> None:
    op.register_autograd(
        lambda ctx, grad: (grad * ctx.by, None),
        setup_context=lambda ctx, inputs, output: setattr(ctx, "by", inputs[1]),
    )
    assert set(opcheck(op, (torch.randn(3, requires_grad=True), 3.0)).values()) == {"SUCCESS"}
    assert set(opcheck(op, (torch.randn(3, 2).t(),)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("which", range(3))
def test_a_registered_kernel_comes_first(op: opaq.Op, which: int) -> None:
    x = torch.randn(5)
    torch.library.register_kernel(
        identifiers(op)[which], "cpu", lambda x, by=2.0: (x * by + 100).flip(0).flip(0)
    )
    for result in everywhere(op, x, 3.0):
        assert_close(result, x * 3 + 100)
    assert "register_kernel:cpu: chosen" in op.explain(x)
    with op.set_kernel_enabled("cpu", False):
        for result in everywhere(op, x, 3.0):
            assert_close(result, x * 3)
    assert_close(op(x), x * 2 + 100)
    op.register_kernel("cpu")(lambda x, by=2.0: x - by)  # replaces it
    assert_close(op(x), x - 2)


def test_a_registered_kernel_of_an_op_that_writes(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) cache, Tensor[] xs) -> ()")

    @op.register_kernel(None)
    def _(cache: torch.Tensor, xs: list[torch.Tensor]) -> None:
        cache.add_(sum(xs))

    assert op.device_types == ("cpu", "cuda")
    xs = [torch.randn(3), torch.randn(3)]

    def step(cache: torch.Tensor) -> torch.Tensor:
        op(cache, xs)
        return cache * 2

    for run in (step, torch.compile(step, fullgraph=True)):
        cache = torch.ones(3)
        assert_close(run(cache), (1 + xs[0] + xs[1]) * 2)
        assert_close(cache, 1 + xs[0] + xs[1])


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (lambda x, by=2.0: x[:1], "the kernel for cpu of .* returned `out` as torch.float32 "),
        (lambda x, by=2.0: (x, x), "the kernel for cpu of .* returned 2 results"),
        (lambda x, by=2.0: x.to("meta"), "returned `out` on meta; the arguments are on cpu"),
        (lambda x, by=2.0: 7, "the kernel for cpu of .* returned `out` as int; expected a Tensor"),
    ],
)
def test_a_kernel_with_wrong_results(op: opaq.Op, kernel: Callable[..., Any], message: str) -> None:
    op.register_kernel("cpu", kernel)
    with pytest.raises(opaq.LaunchError, match=message):
        op(torch.ones(3))


@pytest.mark.parametrize("which", range(3))
def test_vmap_by_a_rule(op: opaq.Op, which: int) -> None:
    calls = []

    def rule(info: Any, in_dims: Any, x: torch.Tensor, by: float = 2.0) -> Any:
        calls.append(info.batch_size)
        return op(x, by), in_dims[0]

    torch.library.register_vmap(identifiers(op)[which], rule)
    x = torch.randn(4, 3)
    for run in (torch.vmap(op), torch.compile(torch.vmap(op), fullgraph=True)):
        assert_close(run(x), x * 2)
    assert set(calls) == {4}


def test_autocast_by_a_rule(op: opaq.Op) -> None:
    op.register_kernel("cpu", lambda x, by=2.0: x * by)
    op.register_autocast("cpu", torch.bfloat16)
    x = torch.randn(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert op(x).dtype == torch.bfloat16
        assert torch.compile(op, fullgraph=True)(x).dtype == torch.bfloat16
    assert op(x).dtype == torch.float32


def test_autocast_casts_every_tensor_and_gradients_keep_their_dtype(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, Tensor[] ws, *, Tensor b) -> Tensor", outputs=opaq.like("x"))
    op.reference(lambda x, ws, *, b: x * ws[0] + b)
    op.backward(
        lambda ctx, grad: (grad * ctx.saved_tensors[0], [grad * ctx.saved_tensors[1]], grad),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1][0], inputs[0]),
    )
    torch.library.register_autocast(op.name, "cpu", torch.float16)
    op.register_autocast("cpu", torch.bfloat16)  # the last one holds
    for call in (op, torch.compile(lambda x, ws, b: op(x, ws, b=b), fullgraph=True)):
        x, w, b = (torch.randn(3, requires_grad=True) for _ in range(3))
        with torch.autocast("cpu", torch.bfloat16):
            y = call(x, [w], b=b)
        assert y.dtype == torch.bfloat16
        y.sum().backward()
        assert {each.grad.dtype for each in (x, w, b)} == {torch.float32}
        assert_close(x.grad, w.bfloat16().float())


def test_autocast_of_written_arguments_is_refused(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) c, Tensor x) -> ()")
    python = opaq.custom_op(f"{unique}_python", mutates_args=("c",), schema="(Tensor(a!) c) -> ()")(
        lambda c: None
    )
    for each in (op, python):
        with pytest.raises(opaq.DeclarationError, match="writes to `c`, of which autocast would"):
            each.register_autocast("cpu", torch.bfloat16)


def test_a_rule_for_a_torch_dispatch_class(op: opaq.Op) -> None:
    class Wrapped(torch.Tensor):
        @staticmethod
        def __new__(cls, of: torch.Tensor) -> Any:
            return torch.Tensor._make_subclass(cls, of)

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            raise AssertionError("the rule is used instead")

    op.register_torch_dispatch(Wrapped, lambda mode, func, types, args, kwargs: torch.full((), 7.0))
    assert op(Wrapped(torch.ones(2))).item() == 7


def test_effects_registered_later(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    calls = []

    @op.register_kernel("cpu")
    def _(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x + len(calls)

    def unused(x: torch.Tensor) -> torch.Tensor:
        op(x)
        return x + 1

    counts = []
    for effect in (None, EffectType.ORDERED, None):
        op.register_effect(effect)
        calls.clear()
        assert torch.compile(unused, fullgraph=True)(torch.zeros(1)).item() == 1
        counts.append(len(calls))
    assert counts == [0, 1, 0]


def test_a_random_op_takes_no_other_effect(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"), effects="random")
    with pytest.raises(opaq.DeclarationError, match='is declared with effects="random"'):
        op.register_effect(EffectType.ORDERED)


def test_tags(unique: str) -> None:
    def declare(**keywords: Any) -> opaq.Op:
        return opaq.op(
            f"{unique}(Tensor x) -> Tensor",
            outputs=opaq.like("x"),
            effects="random",
            **keywords,
        )

    op = declare(tags=torch.Tag.cudagraph_unsafe)
    assert (
        set(op.tags)
        == set(op.overload.tags)
        == {
            torch.Tag.pt2_compliant_tag,
            torch.Tag.cudagraph_unsafe,
            torch.Tag.nondeterministic_seeded,
        }
    )
    assert declare(tags=[torch.Tag.cudagraph_unsafe, torch.Tag.pt2_compliant_tag]) is op
    with pytest.raises(opaq.DeclarationError, match=r"is declared with tags=.*; got \(\)"):
        declare()
    assert declare(replace=True).tags == (
        torch.Tag.pt2_compliant_tag,
        torch.Tag.nondeterministic_seeded,
    )


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("core", r"tags: got 'core' \(str\); expected torch.Tag.cudagraph_unsafe or another"),
        (torch.Tag.nondeterministic_seeded, 'write effects="random", which sets it'),
    ],
)
def test_wrong_tags(unique: str, tags: Any, message: str) -> None:
    with pytest.raises(opaq.DeclarationError, match=message):
        opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"), tags=tags)
    assert not pytorch.is_known(unique)  # nothing is half registered


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda op: op.register_fake(torch.empty_like), "register_fake.* is not taken: the rules"),
        (lambda op: torch.library.register_fake(op.name, torch.empty_like), "is not taken"),
        (lambda op: op.register_kernel("tpu", abs), r"got 'tpu' \(str\); expected \"cuda\" or"),
        (lambda op: op.register_autocast("cpu", torch.int8), r"cast_inputs: got torch.int8 .*a dt"),
        (lambda op: op.register_kernel("cpu", 3), "a function of the op's arguments that returns"),
        (
            lambda op: op.set_kernel_enabled("cpu", False).__enter__(),
            "one given to register_kernel: none",
        ),
    ],
)
def test_what_is_refused(op: opaq.Op, register: Callable[[opaq.Op], Any], message: str) -> None:
    with pytest.raises(opaq.DeclarationError, match=message):
        register(op)
    assert op(torch.ones(2)).tolist() == [2, 2]


def test_a_new_declaration_forgets_what_was_registered(op: opaq.Op) -> None:
    op.register_kernel("cpu", lambda x, by=2.0: x + 100)
    op.register_vmap(lambda info, in_dims, x, by=2.0: (x + 100, 0))
    op.register_autocast("cpu", torch.bfloat16)
    opaq.op(op.info["schema"], outputs=opaq.like("x"), replace=True)
    op.cpu(source=SCALE, entry="scale", args="x, by, out, x.numel()")
    x = torch.ones(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(op(x), x * 2)
    assert_close(torch.vmap(op)(x), x * 2)


def test_a_registered_kernel_cannot_go_into_a_package(unique: str, tmp_path: Any) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.register_kernel("cpu", lambda x: x + 100)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(x)

    exported = torch.export.export(Model(), (torch.ones(2),))
    with pytest.raises(Exception, match="cannot go into a package"):
        opaq.package(exported, tmp_path / "model.pt2")
