"""Declaring and calling ops: eager, through torch.ops, with gradients, scalars of every kind,
mutation, several outputs.
"""

from __future__ import annotations

import ctypes
import sys
import types
from unittest import mock

import forked
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import opaq
from opaq.lowering.compat import pytorch
from opaq.lowering.compat.pytorch import state

SCALE = (
    "template <class T> void scale(const T* x, double by, T* out, long n) { for (long i = "
    "0; i < n; ++i) out[i] = x[i] * by; }"
)


def scale_op(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    return op.cpu(source=SCALE, entry="scale<{x.dtype}>", args="x, by, out, x.numel()")


def test_one_declaration_serves_eager_and_torch_ops(unique: str) -> None:
    op = scale_op(unique)
    x = torch.randn(5, 7)
    torch.testing.assert_close(op(x), x * 2)
    torch.testing.assert_close(op(x, 3.0), x * 3)
    torch.testing.assert_close(op(x, by=3), x * 3)
    torch.testing.assert_close(op.overload(x, 3.0), x * 3)
    torch.testing.assert_close(op(x.double(), 3.0), x.double() * 3)


def test_symbolic_tracing_records_the_call(unique: str) -> None:
    op = scale_op(unique)
    traced = torch.fx.symbolic_trace(lambda x: op(x, by=3.0) + 1)
    assert op.overload in [node.target for node in traced.graph.nodes]
    x = torch.randn(5)
    torch.testing.assert_close(traced(x), x * 3 + 1)


def test_non_contiguous_arguments_are_handed_over_row_major(unique: str) -> None:
    op = scale_op(unique)
    x = torch.randn(6, 4).t()
    torch.testing.assert_close(op(x), x * 2)
    assert op(x).is_contiguous()
    torch.testing.assert_close(op(torch.randn(3, 8)[:, ::2][:0]), torch.empty(0, 4))


def test_negative_and_conjugate_bits_are_resolved(unique: str) -> None:
    op = scale_op(unique)
    z = torch.randn(4, dtype=torch.complex64)
    negative = z.conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(op(negative), negative * 2)


def test_tensors_without_memory(unique: str) -> None:
    op = scale_op(unique)
    torch.testing.assert_close(op(torch._efficientzerotensor(3)), torch.zeros(3))
    freed = torch.ones(3)
    freed.untyped_storage().resize_(0)
    with pytest.raises(
        RuntimeError, match=rf"{unique}: `x` has no memory: its storage was resized or freed"
    ):
        op(freed)
    launch = opaq._runtime.launcher(op.name, op.info["hash"], "cpu", "op0", "test")
    with pytest.raises(
        opaq.LaunchError,
        match=r"argument `x` cannot be launched on: it has no memory: its storage was resized "
        r"or freed",
    ):
        launch(freed, 2.0, torch.empty(3))
    assert op(torch.ones(0, 3)).shape == (0, 3)


def test_a_torch_whose_tensors_lie_otherwise_is_read_through_the_exchange_table(
    unique: str,
) -> None:
    with mock.patch.object(torch.Tensor, "_cdata", 0):
        assert pytorch.tensor_reader() == {"read_tensor": 0, "tensor_offset": 0}
    found = pytorch.tensor_reader()
    assert found["read_tensor"] and found["tensor_offset"] == object.__basicsize__
    code = f"""
import torch, opaq
from opaq import lowering, torch_objects
lowering.compat.pytorch.tensor_reader = lambda: {{"read_tensor": 0, "tensor_offset": 0}}
torch_objects.bind()
op = opaq.op("{unique}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
op.cpu(source={SCALE!r}, entry="scale<{{x.dtype}}>", args="x, by, out, x.numel()")
assert op(torch.ones(2, 3)[:, 1:]).tolist() == [[2, 2], [2, 2]]
"""
    forked.run([sys.executable, "-c", code], check=True)


def test_modes_and_profilers_see_eager_calls(unique: str) -> None:
    op, x = scale_op(unique), torch.randn(4)
    seen: list[str] = []

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(f"dispatch {function}")
            return function(*args, **(kwargs or {}))

    class Function(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(f"function {function}")
            return function(*args, **(kwargs or {}))

    with Dispatch():
        op(x)
    with Function():
        op(x)
    op(x)
    name = unique.replace("::", ".") + ".default"
    assert seen == [f"dispatch {name}", f"function {name}"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        op(x)
    assert unique in [event.name for event in profile.events()]


def test_a_torch_without_the_symbol_is_asked_through_python() -> None:
    address = state._address(
        types.SimpleNamespace(), "absent", ctypes.c_bool, torch.is_grad_enabled
    )
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            told = [
                ctypes.CFUNCTYPE(ctypes.c_bool)(a)()
                for a in (address, pytorch.state_addresses()["grad_enabled"])
            ]
            assert told == [enabled, enabled]


def test_each_call_gets_outputs_of_its_own_shape(unique: str) -> None:
    op = scale_op(unique)
    for shape in ((4,), (2, 3), (4,), (2, 3), (3, 2), (0, 3), (), (6,)):
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(shape, dtype=dtype)
            torch.testing.assert_close(op(x), x * 2)


def test_outputs_by_expression(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> (Tensor total, Tensor twice)",
        outputs={
            "total": opaq.tensor("x.shape[:-1]", dtype="float64"),
            "twice": opaq.tensor(["x.shape[:-1]", "2 * x.size(-1)"], dtype="x.dtype"),
        },
    )
    op.cpu(
        source="""
        void rows(const float* x, double* total, float* twice, long rows, long n) {
          for (long r = 0; r < rows; ++r) {
            total[r] = 0;
            for (long i = 0; i < n; ++i) { total[r] += x[r * n + i];
                twice[r * 2 * n + i] = twice[r * 2 * n + n + i] = x[r * n + i]; }
          }
        }""",
        entry="rows",
        args="x, total, twice, x.numel() / max(x.size(-1), 1), x.size(-1)",
    )
    x = torch.randn(2, 3, 5)
    total, twice = op(x)
    torch.testing.assert_close(total, x.double().sum(-1))
    torch.testing.assert_close(twice, torch.cat([x, x], -1))


def test_scalars_of_every_kind(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, int i, SymInt s, float f, bool b, int[] pads, ScalarType dtype, "
        "str mode, int? n=None, *, bool flip=False) -> Tensor",
        outputs=opaq.tensor("8", dtype="dtype"),
    )
    op.cpu(
        source="""
        void fill(double* out,
            int i, long s, double f, bool b, long p, long length, bool wide, long n, bool flip) {
          out[0] = i; out[1] = s; out[2] = f; out[3] = b; out[4] = p; out[5] = length;
          out[6] = wide; out[7] = flip ? -n : n;
        }""",
        entry="fill",
        args="out, i, s, f, b, pads[-1], len(pads), mode == 'wide', n if defined(n) else 7, flip",
    )
    x = torch.zeros(1)
    assert op(x, 1, 2, 0.5, True, [4, 9], torch.float64, "wide").tolist() == [
        1,
        2,
        0.5,
        1,
        9,
        2,
        1,
        7,
    ]
    assert op(x, 1, 2, 1, False, (5,), torch.float64, "thin", 3, flip=True).tolist() == [
        1,
        2,
        1,
        0,
        5,
        1,
        0,
        -3,
    ]
    assert op.overload(
        x, 1, 2, 0.5, True, [4, 9], torch.float64, "wide", None, flip=False
    ).tolist() == [1, 2, 0.5, 1, 9, 2, 1, 7]
    assert op.explain(x, 1, 2, 0.5, True, [4], torch.float64, "wide") == "cpu: chosen"
    with pytest.raises(opaq.LaunchError, match=r"argument `i` is a str; expected an int"):
        op(x, "one", 2, 0.5, True, [4], torch.float64, "wide")
    with pytest.raises(opaq.LaunchError, match=r"3000000000, which does not fit .*`int`"):
        op(x, 3_000_000_000, 2, 0.5, True, [4], torch.float64, "wide")


def test_optional_tensor(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, Tensor? bias=None) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="void add(const float* x, const float* bias, float* out, long n) { for (long i "
        "= 0; i < n; ++i) out[i] = x[i] + (bias ? bias[i] : 0); }",
        entry="add",
        args="x, bias, out, x.numel()",
    )
    x, bias = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(op(x), x)
    torch.testing.assert_close(op(x, bias), x + bias)
    torch.testing.assert_close(op.overload(x, None), x)
    torch.testing.assert_close(op.overload(x, bias), x + bias)


def add_into_op(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor(a!) cache, Tensor x) -> ()")
    return op.cpu(
        source="void add_into(float* cache, const float* x, long n) { for (long i = 0; i < n; "
        "++i) cache[i] += x[i]; }",
        entry="add_into",
        args="cache, x, x.numel()",
    )


def test_mutation_lands_and_is_noticed_by_autograd(unique: str) -> None:
    op = add_into_op(unique)
    cache, x = torch.zeros(4), torch.randn(4)
    assert op(cache, x) is None
    op.overload(cache, x)
    torch.testing.assert_close(cache, 2 * x)
    view = torch.zeros(4, 3)[:, 1]
    op(view, x)
    torch.testing.assert_close(view, x)

    for call in (op, op.overload):
        w = torch.randn(4, requires_grad=True)
        saved = torch.randn(4)
        loss = (w * saved).sum()
        call(saved, x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_gradient_by_name(unique: str) -> None:
    forward = opaq.op(f"{unique}(Tensor x, float by) -> (Tensor y)", outputs=opaq.like("x"))
    forward.cpu(source=SCALE, entry="scale<{x.dtype}>", args="x, by, y, x.numel()")
    backward = opaq.op(
        f"{unique}_backward(Tensor grad_y, float by) -> (Tensor grad_x)",
        outputs=opaq.like("grad_y"),
    )
    backward.cpu(
        source=SCALE, entry="scale<{grad_y.dtype}>", args="grad_y, by, grad_x, grad_y.numel()"
    )
    forward.backward(backward, saves="")
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: forward(x, 3.0), (x,))
    compiled = torch.compile(lambda x: forward(x, 3.0).sum(), fullgraph=True)
    compiled(x).backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 3.0))


def test_gradient_errors(unique: str) -> None:
    op = scale_op(unique)
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(
        opaq.DeclarationError,
        match=r"has no autograd formula, but a gradient was asked for; declare it with \.backward",
    ):
        op(x).sum().backward()
    opaq.op(f"{unique}_bad(Tensor grad_z) -> Tensor", outputs=opaq.like("grad_z"))
    with pytest.raises(
        opaq.DeclarationError, match=r"argument `grad_z` .* accepted: grad_out, x, by, out"
    ):
        op.backward(f"{unique}_bad")


def test_reference_serves_what_no_implementation_fits(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source=SCALE,
        entry="scale<{x.dtype}>",
        args="x, by, out, x.numel()",
        requires="x.dtype in (float32, float64)",
    )
    ints = torch.arange(4)
    with pytest.raises(
        RuntimeError,
        match=r"(?s)no implementation fits this call, and there is no reference:.*cpu: x.dtype "
        r"in \(float32, float64\) does not hold",
    ):
        op(ints)

    @op.reference
    def _(x: torch.Tensor, by: float = 2.0) -> torch.Tensor:
        return (x * by).to(x.dtype)

    torch.testing.assert_close(op(ints), ints * 2)
    torch.testing.assert_close(
        torch.compile(lambda x: op(x) + 1, fullgraph=True)(ints), ints * 2 + 1
    )


def test_a_reference_that_breaks_the_rule_is_refused(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.reference(lambda x: x.double())
    with pytest.raises(
        RuntimeError,
        match=r"returned `out` as torch.float64 \(3,\); the output rule says torch.float32",
    ):
        op(torch.randn(3))


def test_highest_priority_that_fits_runs(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    body = (
        "void f(const float*, float* out, long n) {{ for (long i = 0; i < n; ++i) out[i] = {}; }}"
    )
    op.cpu(name="plain", source=body.format(1), entry="f", args="x, out, x.numel()")
    op.cpu(
        name="even",
        source=body.format(2),
        entry="f",
        args="x, out, x.numel()",
        requires=["x.numel() % 2 == 0"],
        priority=1,
    )
    assert op(torch.zeros(3)).tolist() == [1, 1, 1]
    assert op(torch.zeros(2)).tolist() == [2, 2]
    assert "even: x.numel() % 2 == 0 does not hold" in op.explain(torch.zeros(3))


def test_declaring_again(unique: str) -> None:
    first = scale_op(unique)
    assert scale_op(unique) is first
    with pytest.raises(opaq.DeclarationError, match="replace=True"):
        first.cpu(source=SCALE + "\n", entry="scale<{x.dtype}>", args="x, by, out, x.numel()")
    x = torch.ones(3)
    compiled = torch.compile(lambda x: first(x), fullgraph=True)
    assert compiled(x).tolist() == [2, 2, 2]
    again = opaq.op(
        f"{unique}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"), replace=True
    )
    again.cpu(
        source=SCALE.replace("* by", "* by + 1"),
        entry="scale<{x.dtype}>",
        args="x, by, out, x.numel()",
    )
    assert again(x).tolist() == [3, 3, 3]
    assert torch.ops.opaq_test.__getattr__(unique.split("::")[1])(x).tolist() == [3, 3, 3]
    assert compiled(x).tolist() == [3, 3, 3]


def test_tensors_that_cannot_be_launched_on_are_refused_by_name(unique: str) -> None:
    op = scale_op(unique)
    with pytest.raises(RuntimeError, match=r"argument 'x'|`x`"):
        op("text")
    launch = opaq._runtime.launcher(op.name, op.info["hash"], "cpu", "op0", "test")
    out = torch.empty(3)
    fake = torch._subclasses.FakeTensorMode().from_tensor(torch.empty(3))
    for bad, reason in (
        (fake, r"`x` is a FakeTensor, which has no data of its own"),
        (torch.empty(3, device="meta"), r"`x` is on device meta; expected cpu or cuda"),
        (torch.eye(3).to_sparse(), r"`x` has layout torch.sparse_coo; expected torch.strided"),
        (3, r"`x` is a int; expected a torch.Tensor"),
    ):
        with pytest.raises(opaq.LaunchError, match=reason):
            launch(bad, 2.0, out)
    with pytest.raises(opaq.LaunchError, match=r"a launch takes 3 arguments and results; got 2"):
        launch(out, 2.0)
    with pytest.raises(opaq.LaunchError, match=r"has changed since this code was generated"):
        opaq._runtime.launcher(op.name, "0" * 64, "cpu", "op0", "test")


@pytest.mark.parametrize("dynamic", [False, True])
def test_opcheck(unique: str, dynamic: bool) -> None:
    op = scale_op(unique)
    torch.library.opcheck(op, (torch.randn(4, 3), 2.0))
    torch.library.opcheck(add_into_op(unique + "_into"), (torch.zeros(4), torch.randn(4)))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["inductor", "opaq"])
def test_compiled_is_eager(unique: str, backend: str, dynamic: bool) -> None:
    op = scale_op(unique)

    def model(x: torch.Tensor) -> torch.Tensor:
        return op(op(x.sin()).t() + 1, 0.5).relu()

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    for shape in ((4, 6), (5, 7), (1, 1), (0, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), model(x))
