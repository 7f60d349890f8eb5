"""`opaq.custom_op` where it once differed from torch.library.custom_op, the reference; found by
trying PyTorch's own tests.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import forked
import pytest
import torch
from torch import Tensor

import opaq
from opaq.lowering.compat import pytorch

STOCK_AND_OURS = [torch.library.custom_op, opaq.custom_op]


@pytest.fixture(params=STOCK_AND_OURS, ids=["stock", "opaq"])
def custom_op(request: Any) -> Callable[..., Any]:
    return request.param


def test_defaults_arrive_as_they_were_written(custom_op: Any, unique: str) -> None:
    """Of a dtype, a layout and a memory format, a schema has the number."""
    seen: list[Any] = []

    @custom_op(unique, mutates_args=())
    def f(
        x: Tensor, d: torch.dtype = torch.float64, *, e: torch.dtype | None = torch.int32
    ) -> Tensor:
        seen.append((d, e))
        return x.to(d)

    f.register_fake(lambda x, d=torch.float64, *, e=torch.int32: torch.empty_like(x, dtype=d))
    f.register_autograd(lambda ctx, grad: (grad.float(), None))
    x = torch.ones(2)
    for run in (f, torch.compile(f, fullgraph=True), torch.compile(f, backend="opaq")):
        assert run(x).dtype == run(x.clone().requires_grad_()).dtype == torch.float64
        assert run(x, torch.float16).dtype == torch.float16
        assert run(x, torch.float16, e=torch.int8).dtype == torch.float16
    kinds = (torch.dtype, int) if custom_op is torch.library.custom_op else (torch.dtype,)
    assert all(isinstance(value, kinds) for pair in seen for value in pair)


@pytest.mark.parametrize("default", ["float64", "complex64", "float8_e5m2", "bool"])
def test_numbers_of_dtypes(unique: str, default: str) -> None:
    library = torch.library.Library(unique.split("::")[0], "FRAGMENT")
    library.define(f"{unique.split('::')[1]}(ScalarType d={default}, Layout l=strided) -> ()")
    overload = getattr(torch.ops.opaq_test, unique.split("::")[1]).default
    assert pytorch.default_values(overload) == [getattr(torch, default), torch.strided]
    library._destroy()


def test_generators_are_read_once(custom_op: Any, unique: str) -> None:
    @custom_op(
        unique,
        mutates_args=(name for name in ["x"]),
        device_types=(device for device in ["cpu"]),
    )
    def f(x: Tensor) -> None:
        x.add_(1)

    f.register_kernel((device for device in ["cpu"]), lambda x: x.add_(5) and None)
    x = torch.zeros(1)
    f._opoverload(x)
    assert f._opoverload._schema.is_mutable
    assert x.item() == 5


def test_a_context_keeps_what_setup_context_puts_there(custom_op: Any, unique: str) -> None:
    @custom_op(unique, mutates_args=())
    def f(x: Tensor, *, by: float) -> Tensor:
        return x * by

    needs: list[Any] = []

    def backward(ctx: Any, grad: Tensor) -> Any:
        needs.append(ctx.needs_input_grad)
        return grad * ctx.call

    def setup(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
        ctx.call = keyword_only_inputs["by"]

    f.register_fake(lambda x, *, by: torch.empty_like(x))
    f.register_autograd(backward, setup_context=setup)
    for run in (f, torch.compile(f, fullgraph=True)):
        x = torch.ones(2, requires_grad=True)
        run(x, by=3.0).sum().backward()
        assert x.grad.tolist() == [3, 3]
    assert set(needs) == {(True,)}  # nothing is asked about `by`


def test_it_may_take_the_place_of_the_function_in_torch(unique: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.library, "custom_op", opaq.custom_op)

    @torch.library.custom_op(unique, mutates_args={"x"})
    def f(x: Tensor) -> None:
        x.add_(1)

    x = torch.zeros(1)
    torch.compile(f, fullgraph=True)(x)
    assert x.item() == 1
    assert unique in str(opaq.report())


@pytest.mark.parametrize(
    ("results", "make"),
    [
        ("(Tensor, Tensor?)", lambda x: (x + 1, None)),
        ("(Tensor, int)", lambda x: (x + 1, 3)),
        ("(Tensor, Tensor[])", lambda x: (x + 1, [x + 2])),
    ],
)
def test_results_that_a_cpp_wrapper_loses(unique: str, results: str, make: Any) -> None:
    """Inductor's own call of such an op crashes or does not compile."""
    f = opaq.custom_op(unique, make, mutates_args=(), schema=f"(Tensor x) -> {results}")
    f.register_fake(make)
    x = torch.zeros(1)
    torch.testing.assert_close(torch.compile(f, fullgraph=True)(x), make(x))
    torch.compiler.reset()
    with pytest.raises(Exception, match=rf"returns {re.escape(results)}, .* or leave cpp_wrapper"):
        torch.compile(f, fullgraph=True, options={"cpp_wrapper": True})(x)


def test_an_op_that_is_declared_again_is_lowered_again(unique: str) -> None:
    def declare(by: int) -> Any:
        @opaq.custom_op(unique, mutates_args=())
        def f(x: Tensor) -> Tensor:
            return x + by

        f.register_fake(torch.empty_like)
        return f

    declare(0)
    for by in (1, 2):
        op = declare(by)
        assert torch.compile(lambda x: op(x), fullgraph=True)(torch.zeros(1)).item() == by
        assert any(unique in row and "python" in row for row in str(opaq.report()).splitlines()), (
            opaq.report()
        )
        torch.compiler.reset()


def test_where_a_fake_was_registered(unique: str) -> None:
    @opaq.custom_op(unique, mutates_args=())
    def f(x: Tensor) -> Tensor:
        return x + 1

    source = torch._library.simple_registry.singleton.find(unique).fake_impl.kernel.source
    assert source.rpartition(":")[0] == __file__


@pytest.mark.skipif(not hasattr(torch.Tag, "out"), reason="torch 2.15 has the tags inplace and out")
def test_an_out_variant_has_no_gradient(unique: str) -> None:
    @opaq.custom_op(unique, mutates_args={"out"}, tags=torch.Tag.out)
    def f(x: Tensor, *, out: Tensor) -> Tensor:
        return out.copy_(x * 2)

    with pytest.raises(opaq.DeclarationError, match="Out variants do not support autograd"):
        f.register_autograd(lambda ctx, grad: grad)
    with pytest.raises(opaq.LaunchError, match="is an out variant .* but `x` requires grad; call"):
        f(torch.ones(2, requires_grad=True), out=torch.zeros(2))
    assert f(torch.ones(2), out=torch.zeros(2)).tolist() == [2, 2]


FIRST = """
import opaq, torch
from torch import Tensor

@opaq.custom_op("first::f", mutates_args={"x"}, tags=torch.Tag.inplace)
def f(x: Tensor, y: Tensor) -> Tensor:
    return x.add_(y)

def g(x, y):
    z = x * 2
    return f(z, y) + z, z

x, y = torch.zeros(3), torch.ones(3)
got = torch.compile(g, fullgraph=True)(x, y)
print([value[0].item() for value in got])
"""

CHECKED = """
from __future__ import annotations
import opaq, torch
from torch import Tensor

@opaq.custom_op("checked::f", mutates_args=())
def f(x: Tensor) -> Tensor:
    return x + 1

print(f(torch.zeros(2)).tolist())
"""


def programs() -> Iterator[Any]:
    inplace = pytest.mark.skipif(not hasattr(torch.Tag, "inplace"), reason="since torch 2.15")
    yield pytest.param(FIRST, {}, "[2.0, 1.0]", id="an inplace op comes first", marks=inplace)
    yield pytest.param(CHECKED, {"OPAQ_CHECK": "contract"}, "[1.0, 1.0]", id="annotations as text")


@pytest.mark.parametrize(("program", "environment", "output"), programs())
def test_programs(
    program: str, environment: dict[str, str], output: str, monkeypatch: Any, tmp_path: Any
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "program.py"  # torch reads the source of a custom op's function
    path.write_text(program)
    done = forked.run([sys.executable, str(path)], inductor="torch.compile" in program)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == output
