"""Rules that decide where and how often compiled graphs make the calls of opaque ops."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import fake_cuda
import pytest
import torch
import torch.fx.traceback
from torch._functorch import config as functorch_config
from torch._inductor import compile_fx
from torch._inductor import config as inductor_config
from torch._library.effects import EffectType

import opaq
from opaq import lowering

TORCH_2_11 = torch.__version__.startswith("2.11")
KERNEL = 'extern "C" __global__ void f(const float* x, float* out, int n) {}'
COUNT = (
    "void count(const float* x, long a, float* y, long n) { long v = ++*(long*)a; for "
    "(long i = 0; i < n; ++i) y[i] = x[i] * v; }"
)


def cuda_op(schema: str, x: str = "x", **options: Any) -> opaq.Op:
    op = opaq.op(f"{schema} -> Tensor", outputs=opaq.like(x), **options)
    op.cuda(source=KERNEL, entry="f", grid=1, block=64, args=f"{x}, out, {x}.numel()")
    return op


def python_op(name: str) -> Any:
    op = opaq.custom_op(name, lambda x: x * 2, mutates_args=(), schema="(Tensor x) -> Tensor")
    op.register_fake(lambda x: torch.empty_like(x))
    return op


def test_a_size_that_is_read_is_no_tensor_argument_of_a_cuda_graph(unique: str) -> None:
    """A CUDA graph is recorded when a size comes again, and takes tensors and ints only."""
    op = opaq.op(
        f"{unique}(Tensor x) -> (Tensor y)",
        outputs=opaq.tensor("n", dtype="x.dtype", counts={"n": "x.numel()"}),
    )
    source = "__global__ void f(const float* x, int n, float* y, long long* count) {}"
    op.cuda(source=source, entry="f", grid=1, block=32, args="x, x.numel(), y, n")
    options = {"triton.cudagraphs": True, "graph_partition": True}
    with (
        inductor_config.patch(options),
        torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True),
    ):
        source = fake_cuda.wrapper_source(
            lambda x: op(x * 2).sum() + (x + 1).sum(), (100,), mixed=True
        )
    absent = set(re.findall(r"^ +(buf\d+) = None", source, re.MULTILINE))
    taken = re.findall(r"partition\d_args = \[(.*)\]", source)
    assert absent and len(taken) == 2
    assert not absent & set(", ".join(taken).replace(",", "").split())


@pytest.mark.parametrize("kind", ["op", "list", "overload", "custom_op"])
def test_ops_kept_out_of_cuda_graphs_by_name(unique: str, kind: str) -> None:
    around = cuda_op(f"{unique}_around(Tensor x)")
    make: dict[str, Callable[[], Any]] = {
        "op": lambda: cuda_op(f"{unique}(Tensor x)"),
        "list": lambda: cuda_op(f"{unique}(Tensor[] x)", "x[0]"),
        "overload": lambda: cuda_op(f"{unique}.two(Tensor x)"),
        "custom_op": lambda: python_op(unique),
    }
    op = make[kind]()
    names = [f"{unique}.two"] if kind == "overload" else [f"{unique}.default"]
    for listed, partitions in (([], 1), ([f"{unique}_other"], 1), (names, 2), ([unique], 2)):
        options = {
            "triton.cudagraphs": True,
            "graph_partition": True,
            "custom_should_partition_ops": listed,
        }
        with inductor_config.patch(options):
            source = fake_cuda.wrapper_source(
                lambda x: around(op([around(x)] if kind == "list" else around(x))), (8,), mixed=True
            )
        assert len(re.findall(r"^def partition_\d", source, re.MULTILINE)) == partitions, listed


@pytest.mark.skipif(TORCH_2_11, reason="Inductor of torch 2.11 knows no streams of the program")
def test_streams_and_pools_of_the_program(unique: str) -> None:
    op = cuda_op(f"{unique}(Tensor x)")

    def source(**annotation: int) -> str:
        def model(x: torch.Tensor) -> torch.Tensor:
            first = op(x)
            with torch.fx.traceback.preserve_node_meta(), torch.fx.traceback.annotate(annotation):
                second = op(first)
            return op(second)

        with lowering.options.use(archs=("sm_90a",)):
            text = fake_cuda.wrapper_source(model, (8,))
        return re.sub(r" *#.*\n", "", text)

    allocate = r"\s+buf1 = empty_strided_cuda\(.*\)"
    assert re.search(
        rf"with stream1:{allocate}\s+raw_stream = get_raw_stream\(0\)"
        r"\s+\w+\(buf0, buf1, raw_stream\)\s+with default_stream:\s+buf2 = .*"
        r"\s+\w+\(buf1, buf2, raw_stream0\)",
        source(stream=3),
    )
    assert re.search(
        rf"with torch.cuda.use_mem_pool\(get_external_object_by_index\(7\), device=0\):{allocate}",
        source(mempool=7, mempool_device=0),
    )


@pytest.mark.parametrize("tag", ["flexible_layout", "needs_fixed_stride_order"])
def test_arguments_have_eagers_strides_under_every_layout_tag(unique: str, tag: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x) -> Tensor",
        outputs=opaq.tensor("x.dim()", dtype="int64"),
        tags=getattr(torch.Tag, tag),
    )
    op.cpu(
        source="void f(long* out, long a, long b) { out[0] = a; out[1] = b; }",
        entry="f",
        args="out, x.stride(0), x.stride(1)",
    )
    x = torch.randn(4, 8)
    for view in (lambda x: x.t(), lambda x: x[:, ::2]):
        compiled = torch.compile(lambda x: op(view(x)), fullgraph=True)  # noqa: B023
        assert compiled(x).tolist() == op(view(x)).tolist() == list(view(x).stride())


@pytest.mark.parametrize("declared", ["op", "custom_op"])
@pytest.mark.parametrize("tag", ["flexible_layout", "needs_fixed_stride_order"])
def test_writes_are_those_of_eager_under_every_layout_tag(
    unique: str, declared: str, tag: str
) -> None:
    tags = getattr(torch.Tag, tag)
    write: Any
    if declared == "op":
        write = opaq.op(f"{unique}(Tensor(a!) x, Tensor y) -> ()", tags=tags)
        write.cpu(
            source="void f(float* x, const float* y, long n) {"
            "  for (long i = 0; i < n; ++i) x[i] *= 2;"
            "  for (long i = 0; i < n; ++i) x[i] += y[i]; }",
            entry="f",
            args="x, y, x.numel()",
        )
    else:

        def function(x: torch.Tensor, y: torch.Tensor) -> None:
            x.mul_(2).add_(y)

        write = opaq.custom_op(unique, function, mutates_args=("x",), tags=(tags,))

    def model(x: torch.Tensor) -> Any:
        x = x + 1
        a, b = x.clone(), x * 1
        write(a, x)
        write(x, b)
        write(x[0], x[1])
        return a, x

    x = torch.randn(4, 5)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def counting(name: str, kind: str, state: torch.Tensor) -> Callable[[torch.Tensor], Any]:
    """An op that counts its calls in `state`, and needs its result for the gradient."""
    random = kind.startswith("random")
    if "custom_op" in kind:
        tags = (torch.Tag.nondeterministic_seeded,) if random else ()

        def function(x: torch.Tensor, address: int) -> torch.Tensor:
            state.add_(1)
            return x * state

        op: Any = opaq.custom_op(name, function, mutates_args=(), tags=tags)
        op.register_fake(lambda x, address: torch.empty_like(x))
        if not random:
            op.register_effect(EffectType.ORDERED)
    else:
        op = opaq.op(
            f"{name}(Tensor x, int address) -> Tensor",
            outputs=opaq.like("x"),
            effects="random" if random else "ordered",
        )
        op.cpu(source=COUNT, entry="count", args="x, address, out, x.numel()")

    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.save_for_backward(output / inputs[0])

    op.register_autograd(
        lambda ctx, grad: (grad * ctx.saved_tensors[0], None), setup_context=setup_context
    )
    address = state.data_ptr()
    return lambda x: op(x, address)


@pytest.mark.parametrize("kind", ["random", "ordered", "random custom_op", "ordered custom_op"])
def test_a_memory_budget_does_not_repeat_effects(unique: str, kind: str) -> None:
    if kind.startswith("ordered") and TORCH_2_11:
        pytest.skip("torch 2.11 fails, with an error, on a memory budget for ops with effects")
    state = torch.zeros(1, dtype=torch.int64)
    op = counting(unique, kind, state)

    def model(x: torch.Tensor) -> torch.Tensor:
        y = op(x.sin())
        return (op(y.cos()) * y).sin()

    x = torch.linspace(0.1, 1, 5, requires_grad=True)
    expected = torch.autograd.grad(model(x).sum(), x)
    for budget in (0, 0.5):
        torch._dynamo.reset()
        state.zero_()
        with functorch_config.patch(activation_memory_budget=budget):
            got = torch.autograd.grad(torch.compile(model, fullgraph=True)(x).sum(), x)
        assert state.item() == 2
        torch.testing.assert_close(got, expected)


def test_a_memory_budget_recomputes_an_op(unique: str) -> None:
    state = torch.zeros(1, dtype=torch.int64)
    op = opaq.op(f"{unique}(Tensor x, int address) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=COUNT.replace("* v", "* 3"), entry="count", args="x, address, out, x.numel()")
    op.backward(lambda ctx, grad: (grad * 3, None))
    x, address = torch.linspace(0.1, 1, 5, requires_grad=True), state.data_ptr()
    with functorch_config.patch(activation_memory_budget=0.1):
        torch.compile(lambda x: op(x.sin(), address).sin(), fullgraph=True)(x).sum().backward()
    assert state.item() == 2
    torch.testing.assert_close(x.grad, (3 * x.sin()).cos() * 3 * x.cos())


READS_BEFORE_A_WRITE = {
    "sum": lambda n: n + 5,
    "of a view": lambda n: n.view(-1).expand(3)[1:] * 2 + 5,
    "two in a row": lambda n: n.exp() * n.cos(),
    "copy": lambda n: n.clone(),
}


@pytest.mark.parametrize("budget", [1, 0.5, 0])
@pytest.mark.parametrize("read", READS_BEFORE_A_WRITE)
@pytest.mark.parametrize("writer", ["op", "custom_op"])
def test_gradients_use_what_was_read_before_a_write(
    unique: str, writer: str, read: str, budget: float
) -> None:
    if TORCH_2_11 and read == "copy":
        pytest.xfail("torch 2.11 replaces a copy of an input by the input, which is then written")
    if TORCH_2_11 and budget < 1:
        pytest.xfail("torch 2.11 makes the call that writes again in the backward graph")
    if writer == "op":
        write = opaq.op(f"{unique}(Tensor(a!) n) -> ()")
        write.cpu(source="void f(float* n) { n[0] += 1; }", entry="f", args="n")
    else:

        @opaq.custom_op(unique, mutates_args=("n",))
        def write(n: torch.Tensor) -> None:
            n.add_(1)

    def model(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        before = READS_BEFORE_A_WRITE[read](n)
        write(n)
        return (x * before).sin() * n

    def run(call: Any) -> tuple[torch.Tensor, ...]:
        x, n = torch.ones(1, requires_grad=True), torch.full((1,), 0.25)
        y = call(x, n)
        y.sum().backward()
        assert x.grad is not None
        return y.detach(), x.grad, n

    expected = run(model)
    torch._dynamo.reset()
    with functorch_config.patch(activation_memory_budget=budget):
        got = run(torch.compile(model, fullgraph=True))
    torch.testing.assert_close(got, expected)


def test_graphs_are_compiled_in_the_process_that_has_the_ops(
    unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has not declared them; PyTorch compiles here where it cannot send a graph."""
    monkeypatch.setattr(compile_fx, "fx_compile_mode", compile_fx.FxCompileMode.SERIALIZE)
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="void f(const float* x, float* y, long n) { for (long i = 0; i < n; ++i) "
        "y[i] = x[i] * 2; }",
        entry="f",
        args="x, out, x.numel()",
    )
    x = torch.randn(4)
    for call in (op, python_op(unique + "_python")):
        compiled = torch.compile(lambda x: call(x.sin()) + 1, fullgraph=True)  # noqa: B023
        torch.testing.assert_close(compiled(x), x.sin() * 2 + 1)
