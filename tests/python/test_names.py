"""Names of arguments and results: whatever PyTorch's schemas accept, in every form of a call."""

from __future__ import annotations

import inspect
import pathlib
from typing import Any

import pytest
import torch
from fake_cuda import cpp_part, wrapper_source
from forms import OPTIONS, run_package

import opaq
from opaq import lowering

# Keywords of C++ and of Python, types, and names that generated code might use.
# fmt: off
NAMES = [
    "default", "new", "register", "template", "this", "operator", "float", "int", "double",
    "bool", "float32", "from", "lambda", "try", "async", "default_", "opaq", "opaq_stream",
    "opaq_from", "errno", "INT64_MAX", "int64_t", "self", "args", "kwargs", "place", "error",
    "values", "add", "device", "names", "std", "torch", "len",
]
# fmt: on
FACTOR = sum(i * i for i in range(1, len(NAMES) + 1))


def strange_op(name: str) -> opaq.Op:
    numbers = ", ".join(f"float {each}" for each in NAMES)
    op = opaq.op(
        f"{name}(Tensor signed, int[] union, {numbers}, Tensor? delete=None, "
        "str const='on', ScalarType half=float32, int? export=3) -> (Tensor static, Tensor yield)",
        outputs={
            "static": opaq.tensor("signed.shape[:1], union[1]", dtype="signed.dtype"),
            "yield": opaq.like("signed"),
        },
    )
    total = " + ".join(f"{i} * {each}" for i, each in enumerate(NAMES, 1))
    return op.cpu(
        source="""void f(const float* x, double by, const float* bias, bool on, long extra,
                        float* first, long m, float* second, long n) {
          for (long i = 0; i < m; ++i) first[i] = on ? by : -1;
          for (long i = 0; i < n; ++i) second[i] = x[i] * by + (bias ? bias[0] : 0) + extra; }""",
        entry="f",
        args=f"signed, {total}, delete, const == 'on' and half == signed.dtype, export if "
        "defined(export) else 0, static, static.numel(), yield, yield.numel()",
        requires="signed.size(-1) % union[1] == 0 and from > 0.0",
    )


def expected(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((x.shape[0], 2), float(FACTOR)), x * FACTOR + 3


VALUES = [float(i) for i in range(1, len(NAMES) + 1)]


def call(op: Any, x: torch.Tensor) -> Any:
    return op(x, [1, 2], *VALUES)


def call_by_name(op: Any, x: torch.Tensor) -> Any:
    return op(x, [1, 2], **dict(zip(NAMES, VALUES)))


class Model(torch.nn.Module):
    def __init__(self, op: opaq.Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> Any:
        return call(self.op, x)


@pytest.mark.parametrize("run", [call, call_by_name])
@pytest.mark.parametrize("form", ["eager", "inductor", "opaq", "cpp"])
def test_names_that_languages_reserve(unique: str, form: str, run: Any) -> None:
    op = strange_op(unique)
    compiled = torch.compile(run, fullgraph=True, dynamic=True, **OPTIONS[form])
    for size in (4, 6):
        x = torch.randn(3, size)
        torch.testing.assert_close(run(op, x), expected(x))
        torch.testing.assert_close(run(op.overload, x), expected(x))
        torch.testing.assert_close(compiled(op, x), expected(x))


@pytest.mark.life
def test_such_names_in_a_package(unique: str, tmp_path: pathlib.Path) -> None:
    x = torch.randn(3, 4)
    got = run_package(Model(strange_op(unique)), x, tmp_path)
    torch.testing.assert_close(tuple(got), expected(x))


def test_such_names_in_references_gradients_and_python_functions(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor from, Tensor default, float lambda=2.0) -> (Tensor yield)",
        outputs=opaq.like("from"),
    )
    op.reference(lambda x, y, by=2.0: x * by + y)
    op.backward(
        lambda ctx, grad: (grad * ctx.by, grad, None),
        setup_context=lambda ctx, inputs, output: setattr(ctx, "by", inputs[2]),
    )
    x, y = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    for run in (
        lambda x, y: op(x, y, 3.0),
        lambda x, y: op(**{"default": y, "from": x, "lambda": 3.0}),
        torch.compile(lambda x, y: op(**{"default": y, "from": x, "lambda": 3.0}), fullgraph=True),
    ):
        grads = torch.autograd.grad(run(x, y).sum(), (x, y))
        torch.testing.assert_close(run(x, y), x * 3 + y)
        torch.testing.assert_close(grads, (torch.full((3,), 3.0), torch.ones(3)))
    torch.testing.assert_close(op(x, y), x * 2 + y)
    op.python(lambda x, y, by, out: [out.copy_(x * by - y)].clear(), device="cpu")
    torch.testing.assert_close(op(x.detach(), y.detach(), **{"lambda": 4.0}), (x * 4 - y).detach())
    assert list(inspect.signature(op).parameters) == ["from_", "default", "lambda_"]


def test_lists_and_written_arguments_of_such_names(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) new, Tensor[] register, *, float default=2.0) -> ()")
    op.cpu(
        source="void f(float* x, const float* a, const float* b, double by, long n) { for (long i "
        "= 0; i < n; ++i) x[i] += by * (a[i] - b[i]); }",
        entry="f",
        args="new, register[0], register[1], default, new.numel()",
    )
    for options in ({}, {"cpp_wrapper": True}):
        x, a, b = torch.randn(3, 4)
        model = torch.compile(lambda x, a, b: op(x, [a, b], default=3.0), options=options)
        wanted = x + 3 * (a - b)
        model(x, a, b)
        torch.testing.assert_close(x, wanted)


def test_scratch_and_tensor_names_do_not_meet_those_of_the_wrapper(unique: str) -> None:
    names = ["device", "stream", "dir", "place", "error", "values", "kernel", "NULL", "CUstream"]
    op = opaq.op(
        f"{unique}({', '.join(f'Tensor {name}' for name in names)}) -> (Tensor opaq_place)",
        outputs=opaq.like("device"),
    )
    op.cuda(
        source=f"__global__ void f({', '.join(f'const float* p{i}' for i in range(9))}, "
        "float* memory, float* out, int n) {}",
        entry="f",
        args=f"{', '.join(names)}, memory, opaq_place, device.numel()",
        scratch={"memory": opaq.like("device")},
    )
    lowering.activate()
    with lowering.options.use(archs=("sm_90a",)):
        source = wrapper_source(lambda *xs: op.overload(*xs), *[(4,)] * len(names), cpp=True)
    text = cpp_part(source)
    assert "const opaq_tensor NULL_ = opaq_address_of(opaq_arg_NULL);" in text
    assert "const opaq_tensor _opaq_place = opaq_address_of(opaq_arg_opaq_place);" in text
    assert "const opaq_scratch opaq_memory_of_memory(" in text


def test_names_that_no_call_could_give_are_refused(unique: str) -> None:
    with pytest.raises(opaq.DeclarationError, match="name 'true' is a literal of opaq's expr"):
        opaq.op(f"{unique}(Tensor true) -> Tensor", outputs=opaq.tensor("1", dtype="int"))
    with pytest.raises(
        opaq.DeclarationError,
        match=r"'from' is a keyword of Python, and compiled graphs name the arguments after '\*'; "
        r"choose another name, such as 'from_', or move it before the '\*'",
    ):
        opaq.op(f"{unique}(Tensor x, *, int from) -> Tensor", outputs=opaq.like("x"))
