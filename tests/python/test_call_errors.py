"""Errors of calls have opaq's type and the same text in eager, through torch.ops and compiled; an
exception of user code keeps its type.
"""

from __future__ import annotations

import re
import traceback

import pytest
import torch

import opaq

ADD = (
    "void add(float* y, const float* x, const float* w, long n) { for (long i = 0; i < n; "
    "++i) y[i] = x[i] + w[i]; }"
)
INC = "void inc(float* c, long n) { for (long i = 0; i < n; ++i) c[i] += 1; }"


def add_op(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x, Tensor w) -> (Tensor y)", outputs=opaq.like("x"))
    return op.cpu(
        source=ADD, entry="add", args="y, x, w, x.numel()", requires="w.numel() == x.numel()"
    )


def inc_op(name: str) -> opaq.Op:
    return opaq.op(f"{name}(Tensor(a!) c) -> ()").cpu(source=INC, entry="inc", args="c, c.numel()")


def calls(op: opaq.Op) -> dict[str, object]:
    packet = getattr(torch.ops.opaq_test, op.name.split("::")[1])
    return {
        "eager": op,
        "torch.ops": packet,
        "overload": op.overload,
        "compiled": torch.compile(op, fullgraph=True),
    }


def test_no_implementation_fits(unique: str) -> None:
    op = add_op(unique)
    texts = set()
    for name, call in calls(op).items():
        with pytest.raises(opaq.LaunchError) as caught:
            call(torch.ones(2, 3), torch.ones(4))
        text = str(caught.value)
        texts.add(text)
        assert "cpu: w.numel() == x.numel() does not hold" in text, name
        assert "x float32[2, 3] strides [3, 1]" in text and "w float32[4] strides [1]" in text, name
        assert (
            unique in text
            and "relax a requirement, add an implementation, or declare a reference" in text
        )
    assert len(texts) == 1


def test_errors_pass_through_autograd(unique: str) -> None:
    op = add_op(unique)
    for call in (op, op.overload):
        with pytest.raises(opaq.LaunchError, match=r"w\.numel\(\) == x\.numel\(\) does not hold"):
            call(torch.ones(2, requires_grad=True), torch.ones(4))


def test_none_for_a_tensor(unique: str) -> None:
    op = add_op(unique)
    for call in (op, op.overload, op.warmup):
        for args, name in (((torch.ones(2), None), "w"), ((None, torch.ones(2)), "x")):
            with pytest.raises(
                opaq.LaunchError,
                match=rf"^{unique}: argument `{name}` is None; expected a torch\.Tensor$",
            ):
                call(*args)


@pytest.mark.parametrize(
    ("tensor", "overlap"),
    [
        (lambda: torch.zeros(1, 3).expand(2, 3), True),
        (lambda: torch.zeros(8).as_strided((3, 3), (1, 1)), True),
        (lambda: torch.zeros(8).as_strided((3, 2), (2, 3)), False),
        (lambda: torch.zeros(4, 3).t(), False),
        (lambda: torch.zeros(1, 3).expand(2, 3)[:0], False),
        (lambda: torch.zeros(3).expand(1, 3), False),
    ],
)
def test_a_written_tensor_may_not_overlap_itself(
    unique: str, tensor: object, overlap: bool
) -> None:
    op = inc_op(unique)
    for call in (op, op.overload, op.warmup):
        given = tensor()
        if overlap:
            shape, strides = (re.escape(str(tuple(v))) for v in (given.shape, given.stride()))
            with pytest.raises(
                opaq.LaunchError,
                match=rf"^{unique}: argument `c` is written, but elements of it share memory: "
                rf"its shape is {shape} with strides {strides}; pass a copy",
            ):
                call(given)
        else:
            call(given)
            if call != op.warmup:
                torch.testing.assert_close(given, torch.ones_like(given))
    launch = opaq._runtime.launcher(op.name, op.info["hash"], "cpu", "op0", "test")
    if overlap:
        with pytest.raises(opaq.LaunchError, match="elements of it share memory"):
            launch(tensor())


def test_an_inference_tensor_written_outside_inference_mode(unique: str) -> None:
    op = inc_op(unique)
    with torch.inference_mode():
        tensor = torch.zeros(3)
        op(tensor)
        op.overload(tensor)
    for call in (op, op.overload):
        with pytest.raises(
            opaq.LaunchError,
            match=rf"^{unique}: argument `c` is an inference tensor and is written outside "
            r"torch\.inference_mode\(\)",
        ):
            call(tensor)
    assert tensor.tolist() == [2, 2, 2]


def test_a_reference_s_own_exception(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))

    @op.reference
    def looks_up(x: torch.Tensor) -> torch.Tensor:
        return {}["missing"]

    for name, call in calls(op).items():
        with pytest.raises(KeyError) as caught:
            call(torch.ones(2))
        lines = "".join(traceback.format_exception(caught.value))
        assert 'return {}["missing"]' in lines, name
        assert caught.value.__notes__ == [f"raised by the reference of {unique}"], name
    with pytest.raises(KeyError):
        op(torch.ones(2, requires_grad=True))


def test_a_kernel_s_own_exception(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    source = (
        "#include <stdexcept>\nvoid g(float* y, const float* x, long n) { if (n == 1) "
        'throw 3; throw std::out_of_range("boo"); }'
    )
    op.cpu(source=source, entry="g", args="y, x, x.numel()")
    for call in calls(op).values():
        with pytest.raises(opaq.LaunchError, match=rf"^{unique}: its function `g` threw: boo$"):
            call(torch.ones(5))
        with pytest.raises(
            opaq.LaunchError,
            match=rf"^{unique}: its function `g` threw something that is no std::exception$",
        ):
            call(torch.ones(1))


def test_an_output_rule_that_cannot_be_evaluated(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, Tensor w, int dim=0) -> (Tensor y)",
        outputs=opaq.tensor(["x.size(dim)"], dtype="x.dtype"),
    )
    op.cpu(source=ADD, entry="add", args="y, x, w, y.numel()")
    for call in (op, op.overload):
        with pytest.raises(opaq.LaunchError, match=unique):
            call(torch.ones(2), torch.ones(2), 5)


def test_many_arguments(unique: str) -> None:
    names = [f"a{i}" for i in range(65)]
    schema = f"({', '.join(f'Tensor {name}' for name in names)}) -> Tensor"
    with pytest.raises(
        opaq.DeclarationError,
        match=r"an op of 65 arguments, of which PyTorch takes at most 64; put numbers together "
        r"into an int\[\]",
    ):
        opaq.op(unique + schema, outputs=opaq.like("a0"))
    names.pop()
    op = opaq.op(
        f"{unique}({', '.join(f'Tensor {name}' for name in names)}) -> Tensor",
        outputs=opaq.like("a0"),
    )
    parameters = ", ".join(f"const float* {name}" for name in names)
    op.cpu(
        source=f"void f(float* out, {parameters}) {{ out[0] = "
        f"{' + '.join(f'{name}[0]' for name in names)}; }}",
        entry="f",
        args=f"out, {', '.join(names)}",
    )
    tensors = [torch.full((1,), float(i)) for i in range(64)]
    for call in (op, op.overload, torch.compile(op, fullgraph=True)):
        assert call(*tensors).item() == sum(range(64))


def test_warmup_refuses_what_a_call_refuses(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    source = "void g(float* y, const float* x, long n) { for (long i = 0; i < n; ++i) y[i] = 0; }"
    op.cpu(source=source, entry="g", args="y, x, x.numel()", requires="x.dim() == 2")
    opaq.warmup(op, torch.ones(2, 2))
    with pytest.raises(opaq.LaunchError, match="no implementation fits this call"):
        opaq.warmup(op, torch.ones(2))
    op.reference(lambda x: x.clone())
    opaq.warmup(op, torch.ones(2))  # the reference has nothing to compile
