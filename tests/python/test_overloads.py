"""Overloads: ops that differ in what stands after the dot of `mylib::f.two`."""

from __future__ import annotations

import pathlib

import pytest
import torch
from forms import OPTIONS, run_package

import opaq

SOURCE = (
    "void f(const float* x, double by, float* y, long n) {{ for (long i = 0; i < n; ++i) {}; }}"
)
ADD = "void f(float* x, double by, long n) { for (long i = 0; i < n; ++i) x[i] += by; }"


def overloads(name: str) -> tuple[opaq.Op, opaq.Op, opaq.Op]:
    """x + 1, x * by, x += by"""
    one = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x")).cpu(
        source=SOURCE.format("y[i] = x[i] + by"), entry="f", args="x, 1.0, out, x.numel()"
    )
    two = opaq.op(f"{name}.two(Tensor x, int n) -> Tensor", outputs=opaq.like("x")).cpu(
        source=SOURCE.format("y[i] = x[i] * by"), entry="f", args="x, n, out, x.numel()"
    )
    add = opaq.op(f"{name}.add_(Tensor(a!) x, float by) -> ()").cpu(
        source=ADD, entry="f", args="x, by, x.numel()"
    )
    return one, two, add


def model(x: torch.Tensor, ops: tuple[opaq.Op, opaq.Op, opaq.Op]) -> torch.Tensor:
    one, two, add = ops
    y = two(one(x), 3)
    add(y, 0.5)
    return one(y)


def expected(x: torch.Tensor) -> torch.Tensor:
    return (x + 1) * 3 + 1.5


class Model(torch.nn.Module):
    def __init__(self, ops: tuple[opaq.Op, opaq.Op, opaq.Op]) -> None:
        super().__init__()
        self.ops = ops

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return model(x, self.ops)


def test_overloads_are_ops_of_their_own(unique: str) -> None:
    name = unique
    one, two, add = overloads(name)
    namespace, short = name.split("::")
    packet = getattr(getattr(torch.ops, namespace), short)
    x = torch.randn(5)
    assert two.name == f"{name}.two" and two.overload is packet.two
    torch.testing.assert_close(two(x, 3), x * 3)
    torch.testing.assert_close(packet.two(x, 3), x * 3)
    torch.testing.assert_close(packet(x), x + 1)
    torch.testing.assert_close(packet(x, 3), x * 3)  # by the types of the arguments
    version = x._version
    packet(x, 0.5)
    assert x._version == version + 1
    torch.library.opcheck(two.overload, (x, 3))
    torch.library.opcheck(add.overload, (x, 3.0))
    again = opaq.op(f"{name}.two(Tensor x, int n) -> Tensor", outputs=opaq.like("x"))
    assert again is two
    with pytest.raises(opaq.DeclarationError, match=f"{name}.two: implementation `cpu`|declared"):
        two.cpu(source=SOURCE.format(""), entry="f", args="x, 1.0, out, x.numel()")


@pytest.mark.parametrize("form", ["inductor", "opaq", "cpp"])
def test_overloads_in_compiled_graphs(unique: str, form: str) -> None:
    ops = overloads(unique)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, **OPTIONS[form])
    for size in (4, 7):
        x = torch.randn(size)
        torch.testing.assert_close(model(x, ops), expected(x))
        torch.testing.assert_close(compiled(x, ops), expected(x))
    served = {node.op: node.implementation for node in opaq.report().nodes if unique in node.op}
    assert served == {op.name: "cpu" for op in ops}


@pytest.mark.life
def test_overloads_in_a_package(unique: str, tmp_path: pathlib.Path) -> None:
    x = torch.randn(4)
    torch.testing.assert_close(run_package(Model(overloads(unique)), x, tmp_path), expected(x))


def test_references_python_functions_gradients_and_lists_of_overloads(unique: str) -> None:
    one = opaq.op(f"{unique}.one(Tensor x) -> Tensor", outputs=opaq.like("x"))
    two = opaq.op(f"{unique}.two(Tensor x, int n) -> Tensor", outputs=opaq.like("x"))
    many = opaq.op(f"{unique}.many(Tensor[] xs) -> Tensor", outputs=opaq.like("xs[0]"))
    one.reference(lambda x: x + 1)
    two.reference(lambda x, n: x * n)
    many.cpu(
        source=SOURCE.format("y[i] = x[i] * by"), entry="f", args="xs[0], len(xs), out, out.numel()"
    )
    grad = opaq.op(
        f"{unique}_grad.two(Tensor grad_out, int n) -> Tensor", outputs=opaq.like("grad_out")
    )
    grad.reference(lambda grad, n: grad * n)
    two.backward(grad)
    x = torch.randn(3, requires_grad=True)
    for run in (two, torch.compile(lambda x, n: two(x, n), fullgraph=True)):
        (found,) = torch.autograd.grad(run(x, 4).sum(), x)
        torch.testing.assert_close(found, torch.full((3,), 4.0))
    x = x.detach()
    compiled = torch.compile(lambda x: one(two(many([x, x]), 3)), fullgraph=True)
    for run in (lambda x: one(two(many([x, x]), 3)), compiled):
        torch.testing.assert_close(run(x), x * 6 + 1)
    one.python(lambda x, out: [out.copy_(x - 1)].clear(), device="cpu")
    two.python(lambda x, n, out: [out.copy_(x - n)].clear(), device="cpu")
    torch.testing.assert_close(compiled(x), x * 2 - 4)
    torch.testing.assert_close(one.overload(two.overload(x, 1)), x - 2)
