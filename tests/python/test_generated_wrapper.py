"""The Python wrapper that Inductor generates around opaque ops: direct launches, readable, right
for every kind of argument.
"""

from __future__ import annotations

import ast
import re

import pytest
import torch
from fake_cuda import wrapper_source
from torch._inductor.utils import run_and_get_code

import opaq
from opaq import lowering

SOURCE = """extern "C" __global__ void scale(const float* x, float by, float* out, long long n) {
  for (long long i = threadIdx.x; i < n; i += blockDim.x) out[i] = x[i] * by; }"""


@pytest.fixture(autouse=True)
def active() -> None:
    lowering.activate()


def scale_op(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    return op.cuda(source=SOURCE, entry="scale", args="x, by, out, x.numel()", block=256)


def body(source: str) -> str:
    return source[source.index("def call(") :]


def test_cuda_launches_are_direct_on_the_current_stream(unique: str) -> None:
    op = scale_op(unique)
    short = unique.split("::")[1]
    source = wrapper_source(lambda x: op.overload(op.overload(x), 3.0), (16, 256))
    ast.parse(source)
    assert f"# {op.info['schema']}" in source
    assert (
        f'{short}_0 = opaq_graph.launch("{unique}", "{op.info["hash"]}", device="cuda:0", '
        'node="op0", implementation="cuda")' in source
    )
    assert re.search(
        rf"stream0 = get_raw_stream\(0\)\n +{short}_0\(x_1, 2\.0, buf0, (?:raw_)?stream0\)",
        body(source),
    )
    assert re.search(rf"{short}_1\(buf0, 3\.0, buf1, (?:raw_)?stream0\)", body(source))
    assert "torch.ops" not in body(source)
    assert "import Graph as OpaqGraph" in source.split("opaq_graph = ")[0]


def test_each_device_has_its_own_stream(unique: str) -> None:
    op = scale_op(unique)
    short = unique.split("::")[1]
    # with GPUs here, torch asks the named one for its properties
    index = 0 if torch.cuda.device_count() == 1 else 1
    source = wrapper_source(lambda x: op.overload(x), (8, 8), device=f"cuda:{index}")
    assert f'device="cuda:{index}"' in source
    assert re.search(
        rf"stream{index} = get_raw_stream\({index}\)\n +{short}_0\(x_1, 2\.0, buf0, "
        rf"(?:raw_)?stream{index}\)",
        body(source),
    )


def test_symbolic_sizes_allocate_by_symbol(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, SymInt n) -> Tensor",
        outputs=opaq.tensor("2 * x.size(0), n", dtype="x.dtype"),
    )
    op.cuda(
        source="__global__ void k(const float* x, float* out) {}",
        entry="k",
        args="x, out",
        block=32,
    )
    source = wrapper_source(lambda x: op.overload(x, x.shape[1] + 1), (6, 10), dynamic=True)
    symbols = re.search(r"empty_strided_cuda\(\(2\*(s\d+), 1 \+ (s\d+)\)", source)
    assert symbols, source
    assert re.search(rf"_0\(\w+, 1 \+ {symbols[2]}, buf0, (?:raw_)?stream0\)", body(source))


def test_a_decision_is_explained_in_the_header(unique: str) -> None:
    requires = ["x.size(-1) % 4 == 0", "aligned(x, 16)"]
    op = scale_op(unique).cuda(
        source=SOURCE,
        entry="scale",
        args="x, by, out, x.numel()",
        name="cuda:vec4",
        priority=1,
        requires=requires,
    )
    fits, falls = (wrapper_source(lambda x: op.overload(x), shape) for shape in ((2, 8), (2, 7)))
    assert (
        'implementation="cuda:vec4", reason="checked at each launch: aligned(x, 16)", '
        'chosen="at launch")' in fits
    )
    assert 'implementation="cuda", reason="cuda:vec4: x.size(-1) % 4 == 0 does not hold")' in falls


def test_mutation_prints_no_copy_and_no_output(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) cache, Tensor x) -> ()")
    op.cuda(
        source="__global__ void k(float* cache, const float* x) {}",
        entry="k",
        args="cache, x",
        block=32,
    )
    source = wrapper_source(lambda cache, x: op.overload(cache, x), (4, 8), (4, 8))
    assert re.search(r"_0\(cache_1, x_1, (?:raw_)?stream0\)", body(source))
    assert "empty_strided_cuda((" not in body(source)


def test_arguments_of_every_kind_are_printed_as_python(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, Tensor? bias, int i, float f, float g, bool flag, str mode, *, "
        "ScalarType dtype, Device device, int[] sizes, float? none=None) -> Tensor",
        outputs=opaq.like("x"),
    )
    op.cuda(
        source="__global__ void k(const float* x, float* out) {}",
        entry="k",
        args="x, out",
        block=32,
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        return op.overload(
            x,
            None,
            -3,
            float("inf"),
            float("nan"),
            True,
            'it\'s "so"',
            dtype=torch.bfloat16,
            device=torch.device("cuda", 0),
            sizes=[1, 2],
        )

    call = re.search(r"_0\((.*), buf0, (?:raw_)?stream0\)", body(wrapper_source(function, (4,))))[1]
    arguments = [ast.unparse(node) for node in ast.parse(f"f({call})").body[0].value.args]
    assert arguments == [
        "x_1",
        "None",
        "-3",
        "float('inf')",
        "float('nan')",
        "True",
        repr('it\'s "so"'),
        "torch.bfloat16",
        "torch.device(type='cuda', index=0)",
        "[1, 2]",
        "None",
    ]


def test_launch_objects_do_not_take_the_names_of_graph_inputs(unique: str) -> None:
    """A backward graph's inputs are named after forward nodes: `op7_1` is a tensor there when op7
    is called twice.
    """
    op = opaq.op(f"{unique}(Tensor x, Tensor y) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="void product(const float* x, const float* y, float* out, long n) { for (long i "
        "= 0; i < n; ++i) out[i] = x[i] * y[i]; }",
        entry="product",
        args="x, y, out, x.numel()",
    )
    op.backward(
        lambda ctx, grad: (
            op(grad, ctx.saved_tensors[1]),
            op(op(grad, ctx.saved_tensors[0]), ctx.saved_tensors[2]),
        ),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
    )

    def run(function) -> list[torch.Tensor]:
        torch.manual_seed(0)
        x, y = torch.randn(6, requires_grad=True), torch.randn(6, requires_grad=True)
        function(x, y).sum().backward()
        return [x.grad, y.grad]

    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return op(op(op(x, y), y), y)

    torch.testing.assert_close(run(torch.compile(model, fullgraph=True)), run(model))


def test_launches_inside_a_subgraph_share_the_header(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="void scale(const float* x, double by, float* out, long n) { for (long i = "
        "0; i < n; ++i) out[i] = x[i] * by; }",
        entry="scale",
        args="x, by, out, x.numel()",
    )

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: op(x), lambda x: op(x, -1.0), (x,))

    x = torch.ones(4)
    result, code = run_and_get_code(torch.compile(model, fullgraph=True), x)
    torch.testing.assert_close(result, x * 2)
    assert code[0].count("OpaqGraph(") == 1
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(-x), x)
