"""`Op.python`: a Python function as an implementation, beside others."""

from __future__ import annotations

import pathlib
import traceback
from collections.abc import Callable

import pytest
import torch

import opaq

DOUBLE = (
    "void twice(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) out[i] = "
    "x[i] * 2; }"
)


def declared(name: str, function: Callable[..., None], **options: object) -> opaq.Op:
    op = opaq.op(
        f"{name}(Tensor x, int[] shape, *, float by=2.0, ScalarType dtype=float) -> (Tensor y)",
        outputs=opaq.like("x"),
    )
    return op.python(function, device="cpu", **options)  # type: ignore[arg-type]


def double(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(x, 2, out=out)


class Seen:
    """A function of the op above that keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __call__(
        self, x: torch.Tensor, shape: list[int], by: float, dtype: torch.dtype, y: torch.Tensor
    ) -> None:
        self.calls.append((type(x), x.stride(), list(shape), by, dtype, torch.is_grad_enabled()))
        torch.mul(x, by, out=y)


@pytest.mark.parametrize(
    "options", [None, {}, {"cpp_wrapper": True}], ids=["eager", "python", "cpp"]
)
def test_it_is_called_with_real_arguments_and_results(
    unique: str, options: dict[str, bool] | None
) -> None:
    seen = Seen()
    op = declared(unique, seen)

    def model(x: torch.Tensor) -> torch.Tensor:
        return op(x.t(), [3, 4]) + op(x.t(), [5], by=3.0, dtype=torch.float64)

    if options is not None:
        model = torch.compile(model, backend="opaq", options=options)
    x = torch.randn(2, 3)
    torch.testing.assert_close(model(x), x.t() * 5)
    tensor = (torch.Tensor, (1, 3))
    assert seen.calls == [
        (*tensor, [3, 4], 2.0, torch.float32, False),
        (*tensor, [5], 3.0, torch.float64, False),
    ]
    if options is not None:
        nodes = [node for node in opaq.report().nodes if node.op == unique]
        assert [(node.implementation, node.calls) for node in nodes] == [
            ("dispatcher" if options else "python", 1)
        ] * 2
    if options:
        assert "python is a Python function: Inductor's stock call" in nodes[0].reason
    stats = [item for item in opaq.report().implementations if item.op == unique]
    assert [(item.implementation, item.calls) for item in stats] == [("python", 2)]


@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}], ids=["python", "cpp"])
def test_each_call_takes_the_first_that_fits(unique: str, options: dict[str, bool]) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=DOUBLE, entry="twice", args="x, out, x.numel()")
    called: list[int] = []

    def counted(x: torch.Tensor, out: torch.Tensor) -> None:
        called.append(len(x))
        double(x, out)

    op.python(counted, device="cpu", requires="x.size(0) > 4", priority=1)
    assert op.explain(torch.ones(8)) == "python: chosen\ncpu: fits, but python comes first"
    assert "python: x.size(0) > 4 does not hold\ncpu: chosen" in op.explain(torch.ones(3))
    compiled = torch.compile(lambda x: op(x), dynamic=True, backend="opaq", options=options)
    for run in (op, compiled):
        for size in (8, 3, 5):
            x = torch.randn(size)
            torch.testing.assert_close(run(x), x * 2)
    assert called == [8, 5, 8, 5]
    op.warmup(torch.ones(8))  # nothing to compile
    assert called == [8, 5, 8, 5]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_what_it_raises_arrives(unique: str, compiled: bool) -> None:
    def fails(*values: object) -> None:
        raise KeyError("mine")

    op = declared(unique, fails)
    run = torch.compile(lambda x: op(x, []), backend="opaq") if compiled else lambda x: op(x, [])
    with pytest.raises(KeyError, match="mine") as error:
        run(torch.ones(3))
    assert f"raised by implementation `python` of {unique}" in error.value.__notes__
    assert "in fails" in "".join(traceback.format_exception(error.value))


def test_a_function_that_returns_results_is_told_to_fill_them(unique: str) -> None:
    op = declared(unique, lambda x, shape, by, dtype, y: x * by)
    with pytest.raises(
        opaq.LaunchError,
        match=rf"{unique}: implementation `python` returned Tensor; it fills its last arguments "
        r"\(y\) and returns nothing",
    ):
        op(torch.ones(3), [])


def test_writes_and_gradients_are_those_of_the_op(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) total, Tensor x) -> ()")

    def add(total: torch.Tensor, x: torch.Tensor) -> None:
        total.add_(x)

    op.python(add, device="cpu")
    total, x = torch.zeros(()), torch.tensor(2.0)
    op(total, x)
    torch.compile(lambda total, x: op(total, x), backend="opaq")(total, x)
    assert total == 4

    square = opaq.op(f"{unique}_square(Tensor x) -> Tensor", outputs=opaq.like("x"))

    def by_itself(x: torch.Tensor, out: torch.Tensor) -> None:
        torch.mul(x, x, out=out)

    square.python(by_itself, device="cpu")
    square.backward(
        lambda ctx, grad: grad * 2 * ctx.saved_tensors[0],
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )
    for run in (square, torch.compile(lambda x: square(x), backend="opaq")):
        x = torch.tensor([1.0, 3.0], requires_grad=True)
        run(x).sum().backward()
        torch.testing.assert_close(x.grad, torch.tensor([2.0, 6.0]))


def test_the_newest_function_of_a_name_is_called(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.python(lambda x, out: None, device="cpu")
    op(torch.ones(1))
    op.python(double, device="cpu")
    assert op(torch.ones(1)) == 2


def test_the_contract_check_finds_what_it_changes(unique: str) -> None:
    def careless(x: torch.Tensor, shape: object, by: float, dtype: object, y: torch.Tensor) -> None:
        y.copy_(x.mul_(by))

    op = declared(unique, careless)
    compiled = torch.compile(lambda x: op(x, []), backend="opaq", options={"check": "contract"})
    with pytest.raises(opaq.ContractError, match="implementation `python` changed"):
        compiled(torch.ones(3))


class Model(torch.nn.Module):
    def __init__(self, op: opaq.Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op.overload(x)


def test_a_package_takes_what_is_not_python_or_is_refused(
    unique: str, tmp_path: pathlib.Path
) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.python(double, device="cpu", priority=1)
    exported = torch.export.export(Model(op), (torch.ones(4),))
    with pytest.raises(Exception) as error:
        opaq.package(exported, tmp_path / "model.pt2")
    assert (
        "cannot go into a package: python: is a Python function, which a package cannot hold; "
        "give the op an implementation in CUDA or C++, or of a library" in str(error.value)
    )
    op.cpu(source=DOUBLE, entry="twice", args="x, out, x.numel()")
    path = opaq.package(exported, tmp_path / "model.pt2")
    x = torch.randn(4)
    torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), x * 2)


def test_mistakes_are_refused_by_name(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    with pytest.raises(
        opaq.DeclarationError,
        match=rf"{unique}: \.python\(\.\.\.\): function: got 3 \(int\); expected a function that "
        "is called with the op's arguments and the results to be filled",
    ):
        op.python(3, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(opaq.DeclarationError, match="device: got 'cpu:0'"):
        op.python(print, device="cpu:0")
    with pytest.raises(opaq.DeclarationError, match="implementation name 'my kernel' is not"):
        op.python(print, device="cpu", name="my kernel")
    assert not op.info["implementations"]


def test_names_that_differ_by_an_underscore(unique: str) -> None:
    """The dispatcher's ops that call Python functions are named after the op, each by its own."""
    short = unique.split("::")[1]
    names = [f"{short}_a::b", f"{short}::a_b", f"{short}__a::b", f"{short}::_a__b"]
    ops = []
    for i, name in enumerate(names):
        op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x"))
        op.python(
            lambda x, out, i=i: None if out.fill_(i) is out else None,
            device="cpu",
            requires="x.dim() == 1",
        )
        op.reference(lambda x, i=i: torch.full_like(x, 10 + i))
        ops.append(op)
    for i, op in enumerate(ops):
        assert op.overload(torch.zeros(1)).item() == i
        assert op.overload(torch.zeros(1, 1)).item() == 10 + i
