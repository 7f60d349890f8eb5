"""opaq.custom_op: torch.library.custom_op by another name, called directly from compiled graphs."""

from __future__ import annotations

import torch
from torch._inductor.utils import run_and_get_code

import opaq


def test_an_opaque_python_function_is_called_directly(unique: str) -> None:
    seen = []

    @opaq.custom_op(unique, mutates_args=())
    def host_side(x: torch.Tensor, scale: float) -> torch.Tensor:
        seen.append(type(x))
        return torch.from_numpy(x.numpy() * scale)

    host_side.register_fake(lambda x, scale: torch.empty_like(x))
    x = torch.randn(4)
    torch.testing.assert_close(host_side(x, 2.0), x * 2)
    compiled = torch.compile(lambda x: host_side(x.sin(), 3.0) + 1, fullgraph=True)
    result, code = run_and_get_code(compiled, x)
    torch.testing.assert_close(result, x.sin() * 3 + 1)
    # its name stays in messages
    assert f"torch.ops.{unique.replace('::', '.')}.default(" not in code[0]
    assert set(seen) == {torch.Tensor}


def test_mutation_and_gradients(unique: str) -> None:
    @opaq.custom_op(unique, mutates_args={"out"})
    def fill(x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(x * 2)

    out = torch.zeros(3)
    torch.compile(lambda x, out: fill(x, out), fullgraph=True)(torch.ones(3), out)
    assert out.tolist() == [2, 2, 2]

    @opaq.custom_op(unique + "_cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3

    cube.register_fake(torch.empty_like)
    cube.register_autograd(
        lambda ctx, grad: grad * 3 * ctx.saved_tensors[0] ** 2,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cube, (x,))
    torch.compile(lambda x: cube(x).sum(), fullgraph=True)(x).backward()
    torch.testing.assert_close(x.grad, 3 * x.detach() ** 2)


def test_a_kernel_registered_for_a_device_is_what_runs_there(unique: str) -> None:
    @opaq.custom_op(unique, mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the CPU kernel must run")

    twice.register_fake(torch.empty_like)
    twice.register_kernel("cpu")(lambda x: x * 2)
    x = torch.randn(3)
    torch.testing.assert_close(twice(x), x * 2)
    torch.testing.assert_close(torch.compile(lambda x: twice(x), fullgraph=True)(x), x * 2)
