"""Inductor's C++ wrapper: opaque ops are launched from C++, for every kind of argument; what has no
C++ form goes through the dispatcher.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
from unittest import mock

import forked
import pytest
import torch
from fake_cuda import cpp_part, wrapper_source
from torch._inductor import config as inductor_config
from torch._inductor.graph import GraphLowering
from torch._inductor.utils import run_and_get_code
from torch.utils import cpp_extension

import opaq
from opaq import _runtime, lowering

pytestmark = pytest.mark.usefixtures("kernels_as_users_have_them")

CPP = {"cpp_wrapper": True}
SOURCE = """template <typename T> __global__ void scale(const T* x, float by, T* out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = x[i] * by; }"""
PLUS = (
    "void plus(const float* x, float* out, long n) {{ for (long i = 0; i < n; ++i) out[i] = "
    "x[i] + {}; }}"
)


def test_a_dynamic_graph_of_direct_launches_equals_eager(unique: str) -> None:
    """Every kind of argument, a requirement decided at each launch, a mutation, and an op that has
    no C++ form, in one graph.
    """
    first = opaq.op(
        f"{unique}_first(Tensor x, Tensor? bias, int[] shape, *, ScalarType dtype, "
        "bool flip, str mode='plus', float? by=None) -> Tensor",
        outputs=opaq.like("x"),
    )
    body = """void NAME(
        const float* x, const float* bias, float* out, long n, int width, bool flip,
        double by, int kind) {
        for (long i = 0; i < n;
            ++i) out[i] = (flip ? -1 : 1) * (x[
                i] * by + (bias ? bias[i % width] : 0)) + KIND * kind; }"""
    args = (
        "x, bias, out, x.numel(), int32(shape[0]), flip, by if defined(by) else 1.0, 1 if "
        "mode == 'plus' and dtype == float32 else 2"
    )
    first.cpu(
        source=body.replace("NAME", "even").replace("KIND", "10"),
        entry="even",
        args=args,
        requires="x.size(0) % 2 == 0",
        name="cpu:even",
        priority=1,
    )
    first.cpu(source=body.replace("NAME", "any").replace("KIND", "20"), entry="any", args=args)
    add_ = opaq.op(f"{unique}_add_(Tensor(a!) total, Tensor x, SymInt times) -> ()")
    add_.cpu(
        source="void add(float* total, const float* x, int times, long n) { for (long i = 0; i "
        "< n; ++i) total[i] += x[i] * times; }",
        entry="add",
        args="total, x, times * 500000000, x.numel()",
    )
    python = opaq.op(f"{unique}_python(Tensor x) -> Tensor", outputs=opaq.like("x"))
    python.reference(lambda x: x + 1)

    def model(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = first(x, bias, [x.shape[1], 3], dtype=torch.float32, flip=True, by=0.5)
        y = y + first(y, None, [1], dtype=torch.float64, flip=False)
        add_(y, x, x.shape[0])
        return python(y)

    bias = torch.randn(6)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, options=CPP)
    _, code = run_and_get_code(compiled, torch.randn(2, 6), bias)
    for size in (4, 3):
        x = torch.randn(size, 6)
        torch.testing.assert_close(compiled(x, bias), model(x, bias), rtol=1e-5, atol=1e-4)
    source = "\n".join(code)
    assert re.search(
        rf"\n// {first.info['schema']}\n".replace("(", r"\(")
        .replace(")", r"\)")
        .replace("[", r"\[")
        .replace("]", r"\]")
        .replace("*", r"\*")
        .replace("?", r"\?"),
        source,
    )
    short = unique.split("::")[1]
    assert (
        len(re.findall(rf"static void opaq_{short}_first_\w+\(", source)) == 2
    )  # with a bias, and without
    assert re.search(
        rf"opaq_{short}_first_\w+\(\w+, \w+, std::initializer_list<int64_t>\{{\w+, 3L?\}}, "
        r"opaq_float32, true, .*, 0\.5, buf0, opaq_op\d\.calls\);",
        source,
    )
    report = opaq.report()
    nodes = {node.op: node for node in report.nodes if node.op.startswith(unique)}
    assert sum(node.op == f"{unique}_first" for node in report.nodes) == 2
    assert {node.calls for node in nodes.values()} == {3}
    assert nodes[f"{unique}_first"].implementation == "cpu:even or cpu"
    assert nodes[f"{unique}_first"].served_by == "cpu:even 2, cpu 1"
    assert nodes[f"{unique}_first"].reason == "checked at each launch: x.size(0) % 2 == 0"
    assert nodes[f"{unique}_add_"].served_by == nodes[f"{unique}_add_"].implementation == "cpu"
    assert nodes[f"{unique}_python"].implementation == "dispatcher"
    assert (
        "the reference is a Python function: Inductor's stock call"
        in nodes[f"{unique}_python"].reason
    )
    calls = {
        item.implementation: item.calls
        for item in report.implementations
        if item.op == f"{unique}_first"
    }
    assert calls == {"cpu:even": 4 + 2, "cpu": 2 + 2}  # from C++, and the eager ones
    assert "cpu:even or cpu, served by cpu:even 2, cpu 1" in str(report)
    with pytest.raises(
        RuntimeError,
        match=rf"{unique}_add_: argument 3 `times \* 500000000` is 2500000000, which does not "
        r"fit the kernel's parameter `int`",
    ):
        compiled(torch.randn(5, 6), bias)


def test_the_backend_takes_inductors_option(unique: str, tmp_path: pathlib.Path) -> None:
    """A function of a library is called directly, also inside the branches of torch.cond."""
    (tmp_path / "triple.c").write_text(
        "void triple(const float* x, float* out, long long n) { for (long long i = 0; i < n; "
        "++i) out[i] = x[i] * 3; }"
    )
    subprocess.run(
        ["gcc", "-shared", "-fPIC", tmp_path / "triple.c", "-o", tmp_path / "triple.so"], check=True
    )
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.library(tmp_path / "triple.so", symbol="triple", args="x, out, x.numel()", device="cpu")

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: op(op(x)), lambda x: -op(x), (x,))

    compiled = torch.compile(model, backend="opaq", dynamic=True, options=CPP)
    for size in (8, 5):
        x = torch.rand(size, 2)
        torch.testing.assert_close(compiled(x), x * 9)
    torch.testing.assert_close(compiled(-x), x * 3)
    nodes = [node for node in opaq.report().nodes if node.op == unique]
    assert {node.implementation for node in nodes} == {"library"}
    assert sorted((node.node.split("_")[0], node.calls) for node in nodes) == [
        ("false", 1),
        ("true", 2),
        ("true", 2),
    ]


# ---- in the report -------------------------------------------------------------------------------


def plus_op(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    return op.cpu(source=PLUS.format(1), entry="plus", args="x, out, x.numel()")


def calls_of(op: str) -> dict[tuple[str, str], int]:
    return {(node.graph, node.node): node.calls for node in opaq.report().nodes if node.op == op}


def test_each_node_of_each_graph_counts_its_own_calls(unique: str) -> None:
    """The nodes share one function; a call with an empty result is one, though it launches
    nothing."""
    op = plus_op(unique)
    twice = torch.compile(lambda x: op(op(x)) * 2, fullgraph=True, dynamic=True, options=CPP)
    once = torch.compile(lambda x: op(x) * 3, fullgraph=True, dynamic=True, options=CPP)
    python = torch.compile(lambda x: op(x) * 4, fullgraph=True, dynamic=True)
    for rows in (4, 5, 0):
        x = torch.ones(rows, 2)
        torch._dynamo.decorators.mark_unbacked(
            x, 0
        )  # or Dynamo makes a graph of its own for 0 rows
        torch.testing.assert_close(twice(x), (x + 2) * 2)
    torch.testing.assert_close(once(torch.ones(3, 2)), torch.full((3, 2), 6.0))
    torch.testing.assert_close(python(torch.ones(3, 2)), torch.full((3, 2), 8.0))
    calls = calls_of(unique)
    by_graph: dict[str, list[int]] = {}
    for (graph, _), count in calls.items():
        by_graph.setdefault(graph, []).append(count)
    assert len(calls) == 4  # names are unique in the process
    assert sorted(by_graph.values()) == [[1], [1], [3, 3]]
    torch.compiler.reset()
    assert calls_of(unique).keys() == calls.keys()


def test_a_graph_does_not_outlive_what_it_was_compiled_from(unique: str) -> None:
    op = plus_op(unique)
    compiled = torch.compile(op.overload, fullgraph=True, options=CPP)
    assert compiled(torch.zeros(4))[0] == 1
    op.cpu(source=PLUS.format(5), entry="plus", args="x, out, x.numel()", name="better", priority=1)
    assert compiled(torch.zeros(4))[0] == 5
    assert [node.implementation for node in opaq.report().nodes if node.op == unique] == [
        "cpu",
        "better",
    ]


PROGRAM = """
import json, sys
import torch
from torch._dynamo.utils import counters
import opaq

op = opaq.op("cached_wrapper::plus(Tensor x) -> Tensor", outputs=opaq.like("x"))
SOURCE = '''void plus(const float* x, float* out, long n) {
  for (long i = 0; i < n; ++i) out[i] = x[i] + 1; }'''
op.cpu(source=SOURCE, entry="plus", args="x, out, x.numel()", name="cpu:even", priority=1,
    requires="x.size(0) % 2 == 0")
op.cpu(source=SOURCE, entry="plus", args="x, out, x.numel()")


@opaq.custom_op("cached_wrapper::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


twice.register_fake(torch.empty_like)
mixed = torch.compile(lambda x: twice(op(x)), fullgraph=True, dynamic=True,
    options={"cpp_wrapper": True})
alone = torch.compile(lambda x: op(x), fullgraph=True, dynamic=False,
    options={"cpp_wrapper": True})
for size in (4, 5, 6):
    torch.testing.assert_close(mixed(torch.ones(size)), torch.full((size,), 4.0))
torch.testing.assert_close(alone(torch.ones(8)), torch.full((8,), 2.0))
print(json.dumps({"hits": counters["inductor"]["fxgraph_cache_hit"],
    "nodes": opaq.report().as_dict()["nodes"]}))
"""


@pytest.mark.long
def test_a_wrapper_out_of_inductors_cache_is_listed_and_counted(tmp_path: pathlib.Path) -> None:
    """It also runs, without counting, in a process without opaq."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }

    def process(program: str) -> str:
        done = forked.run([sys.executable, "-c", program], env=environment, inductor=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    first, again = json.loads(process(PROGRAM)), json.loads(process(PROGRAM))
    assert (first["hits"], again["hits"]) == (0, 2)
    assert first["nodes"] == again["nodes"]
    plus, twice, alone = again["nodes"]
    assert plus["graph"] == twice["graph"] != alone["graph"]
    assert (plus["op"], plus["device"], plus["implementation"]) == (
        "cached_wrapper::plus",
        "cpu",
        "cpu:even or cpu",
    )
    assert (plus["calls"], plus["served_by"], plus["reason"]) == (
        3,
        "cpu:even 2, cpu 1",
        "checked at each launch: x.size(0) % 2 == 0",
    )
    assert (twice["op"], twice["implementation"], twice["calls"]) == (
        "cached_wrapper::twice",
        "dispatcher",
        3,
    )
    assert (alone["implementation"], alone["served_by"], alone["calls"], alone["reason"]) == (
        "cpu:even",
        "cpu:even",
        1,
        "",
    )

    texts = {path: path.read_text() for path in tmp_path.glob("*/*.py")}
    wrappers = [
        path
        for path, text in texts.items()
        if "cpp_wrapper_src" in text and "cached_wrapper::twice" not in text
    ]
    without = f"""if True:
        import runpy, sys, torch
        sys.modules["opaq"] = None
        (result,) = runpy.run_path({str(wrappers[0])!r})["call"]([torch.ones(8)])
        torch.testing.assert_close(result, torch.full((8,), 2.0))
        print("equal")
    """
    assert len(wrappers) == 1 and process(without) == "equal"


# ---- CUDA, as text -------------------------------------------------------------------------------


def scale_op(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x, float by=2.0) -> Tensor", outputs=opaq.like("x"))
    return op.cuda(
        source=SOURCE,
        entry="scale<{x.dtype}>",
        args="x, by, out, x.numel()",
        grid="ceil_div(x.numel(), 256)",
        block=256,
    )


def cuda_source(function, *shapes, archs=("sm_90a",), ptx=False, **kwargs) -> str:
    lowering.activate()
    with lowering.options.use(archs=tuple(archs), ptx=ptx):
        return wrapper_source(function, *shapes, **kwargs)


def entry_body(source: str) -> str:
    """The text after the definitions: the calls."""
    return source[source.rindex("_PRINTED") :]


def test_one_named_function_serves_the_nodes_of_an_op(unique: str) -> None:
    op = scale_op(unique)
    short = unique.split("::")[1]
    source = cuda_source(lambda x: op.overload(op.overload(x), 3.0), (16, 256), cpp=True)
    assert f"// {op.info['schema']}\nstatic void opaq_{short}_" in source
    assert source.count(f"static void opaq_{short}_") == 1
    assert (
        "if (!opaq::standalone::set_grid(opaq_declared, opaq_geometry, "
        f"{{(opaq_place = \"grid of {unique}, implementation 'cuda': 'ceil_div(x.numel(), 256)'\", "
        "opaq_ceil_div(x.numel(), 256)), 1, 1})) return;" in source
    )
    assert re.search(
        r"static opaq::standalone::PackagedKernel<1> opaq_kernel\("
        r'opaq::standalone::kLinkedDriver, opaq_declared, "scale<float>", '
        r'"_Z5scaleIfEvPKT_fPS0_i", opaq_images\);',
        source,
    )
    assert re.search(
        rf"opaq_{short}_\w+\(x_1, 2\.0, buf0, 0, opaq_current_stream\(0\), std::nullopt, "
        r"opaq_op0\.calls\);",
        source,
    )
    assert re.search(
        rf"opaq_{short}_\w+\(buf0, 3\.0, buf1, 0, opaq_current_stream\(0\), std::nullopt, "
        r"opaq_op1\.calls\);",
        source,
    )
    assert (
        f'static opaq_node<1> opaq_op1(opaq_graph, "op1", "{unique}", "cuda:0", {{"cuda"}}, "");'
        in source
    )
    assert (
        "aoti_torch_call_dispatcher(" not in source
        and "aoti_torch_proxy_executor_call_function" not in entry_body(source)
    )


def test_a_launch_reads_of_its_tensors_what_its_rule_needs(unique: str) -> None:
    op = scale_op(unique)
    source = cuda_source(lambda x: op.overload(x), (16, 256), cpp=True)
    assert (
        "const opaq_tensor x = opaq_view(opaq_arg_x, opaq_float32, 4);" in source
        and "const opaq_tensor out = opaq_address_of(opaq_arg_out);" in source
    )
    assert "if (opaq_empty(opaq_arg_out))" not in source  # known while compiling
    op.cuda(
        source=SOURCE,
        entry="scale<{x.dtype}>",
        args="x, by, out, x.size(0) * x.stride(0)",
        grid=1,
        block=256,
        name="cuda:strides",
        priority=1,
    )
    source = cuda_source(lambda x: op.overload(x), (16, 256), dynamic=True, cpp=True)
    assert "const opaq_tensor x = opaq_strided_view(opaq_arg_x, opaq_float32, 4);" in source
    assert "if (opaq_empty(opaq_arg_out)) return opaq_node_calls[1].add();" in source


def test_a_condition_on_sizes_is_a_guard_where_the_reference_would_run(unique: str) -> None:
    """Sizes that the kernel does not take get a graph of their own."""
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    requires = ["x.size(0) < 100", "x.size(0) % 2 == 0"]
    op.cpu(source=PLUS.format(5), entry="plus", args="x, out, x.numel()", requires=requires)
    op.reference(lambda x: x + 5)
    compiled = torch.compile(lambda x: op(x), fullgraph=True, dynamic=True, options=CPP)
    codes: list[str] = []
    save = mock.patch.object(GraphLowering, "save_output_code", codes.append)
    # The second graph serves all sizes: in a cache, it would be found for the first ones, too.
    with save, inductor_config.patch(force_disable_caches=True):
        for rows, graphs in [(10, 1), (24, 1), (98, 1), (101, 2), (102, 2), (7, 2), (12, 2)]:
            x = torch.randn(rows, 3)
            torch.testing.assert_close(compiled(x), x + 5)
            assert len(codes) == graphs
    launch = f"static void opaq_{unique.split('::')[1]}_"
    assert [launch in code for code in codes] == [True, False]


@pytest.mark.parametrize("order", ["opaque first", "Triton first"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_no_stream_is_used_before_its_declaration(unique: str, order: str, dynamic: bool) -> None:
    op = scale_op(unique)
    short = unique.split("::")[1]

    def model(x: torch.Tensor) -> torch.Tensor:
        return (
            torch.sin(op.overload(x)) + 1
            if order == "opaque first"
            else op.overload(torch.sin(x) + 1)
        )

    for language in ("cpp", "package"):
        body = entry_body(
            cuda_source(model, (16, 256), dynamic=dynamic, mixed=True, **{language: True})
        )
        launches = re.findall(rf"(?:opaq_{short}_|call_triton)\w+\(.*\);", body)
        assert len(launches) == 2
        for launch in launches:
            used = re.search(r"\bstream\d+\b", launch)
            assert used is None or re.search(rf"\b{used[0]};", body[: body.index(launch)])
        ours = next(launch for launch in launches if launch.startswith("opaq_"))
        assert (
            "this->device_idx_, stream, this->cubin_dir_"
            if language == "package"
            else "0, opaq_current_stream(0), std::nullopt"
        ) in ours


@pytest.mark.parametrize("language", ["cpp", "package"])
def test_the_whole_text_compiles_against_torchs_headers(unique: str, language: str) -> None:
    """Arguments of every kind, a requirement left to the launch, clusters, and sizes that are
    symbols.
    """
    op = opaq.op(
        f"{unique}(Tensor x, Tensor? bias, int n, float f, bool b, int[] pads, ScalarType "
        "dtype, str mode, Tensor(a!) sums) -> (Tensor y, Tensor z)",
        outputs={"y": opaq.like("x"), "z": opaq.tensor("x.size(0), n", dtype="dtype")},
    )
    source = """template <typename T, int N> __global__ void many(
        const T* x, const T* bias, int n, float f, bool b, long long pad,
        double* z, T* y, float* sums) {}"""
    rule = dict(
        source=source,
        entry="many<{x.dtype}, {n}>",
        args="x, bias, n, f, b, pads[0], z, y, sums",
        block="32, 2",
    )
    op.cuda(
        **rule,
        name="cuda:wide",
        priority=1,
        requires=["aligned(x, 16)", "mode == 'fast'", "x.size(0) * 4 <= shared_memory(x)"],
        grid="2 * min(x.size(0), multiprocessors(x))",
        cluster=2,
        shared="x.size(0) * 4",
    )
    op.cuda(**rule, grid="x.size(0), ceil_div(x.numel(), 64)", cooperative=True)

    def model(x: torch.Tensor, bias: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        y, _ = op.overload(x, bias, 4, 0.5, True, [1, 2], torch.float64, "fast", sums)
        return op.overload(
            y, None, 8, float("inf"), False, [x.size(0), 3], torch.float64, "fast", sums
        )[1]

    with torch._inductor.config.patch(graph_partition=False):
        text = cuda_source(model, (16, 256), (256,), (16,), dynamic=True, **{language: True})
    if language == "cpp":
        text = cpp_part(text)
    cuda = [
        f"{cpp_extension.CUDA_HOME}/include",
        *_runtime.doctor()["nvrtc"]["include_dirs"],
    ]  # of the wheels, some lack crt/
    folders = [sysconfig.get_path("include"), *cpp_extension.include_paths(), *cuda]
    command = [
        "g++",
        "-std=c++20",
        "-fsyntax-only",
        "-DUSE_CUDA",
        *(f"-I{folder}" for folder in folders),
        "-x",
        "c++",
        "-",
    ]
    if subprocess.run(
        command, input=b"#include <cuda_runtime_api.h>", stderr=subprocess.DEVNULL, check=False
    ).returncode:
        pytest.skip(
            "CUDA's runtime headers are not whole here: install a toolkit, or nvidia-cuda-crt "
            "beside nvidia-cuda-runtime"
        )
    built = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr


def test_a_package_holds_an_image_for_each_arch(unique: str) -> None:
    op = scale_op(unique)
    source = cuda_source(
        lambda x: op.overload(x), (16, 256), archs=["sm_80", "sm_90a"], ptx=True, package=True
    )
    images = re.search(r"opaq_images\[\] = \{(.*)\};", source)[1]
    found = re.findall(r'\{"(\w+)", "(\w+)\.(\w+)\.(\w+)", "([0-9a-f]{64})"\}', images)
    assert (
        "opaq_node" not in source and "Counter" not in source
    )  # counting is for wrappers of this process
    assert [(arch, suffix) for arch, _, _, suffix, _ in found] == [
        ("sm_80", "cubin"),
        ("sm_90a", "cubin"),
        ("compute_80", "ptx"),
    ]
    assert all(
        arch == named and digest.startswith(stem.rsplit("_", 1)[1])
        for arch, stem, named, _, digest in found
    )


def test_what_only_the_launch_knows_is_tried_in_order(unique: str) -> None:
    op = scale_op(unique)
    op.cuda(
        source=SOURCE,
        entry="scale<{x.dtype}>",
        args="x, by, out, x.numel()",
        name="cuda:vec4",
        priority=1,
        requires="aligned(x, 16)",
        block=64,
    )
    source = cuda_source(lambda x: op.overload(x), (16, 256), cpp=True)
    first, second = (
        source.index("if (opaq_holds([&] { return x.aligned(16); })) {  // cuda:vec4"),
        source.index("{  // cuda\n"),
    )
    assert first < second
    assert "no implementation fits this call" not in source


def test_options_are_checked() -> None:
    with pytest.raises(
        Exception, match=r'option "archs" of backend="opaq": got \'sm_90a\'; expected a list of str'
    ):
        torch.compile(lambda x: x + 1, backend="opaq", options={"archs": "sm_90a"})(torch.ones(1))


def test_the_configuration_of_a_backward_graph(unique: str) -> None:
    """A backward graph is compiled later than its forward graph, as a C++ wrapper all the same."""
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.reference(lambda x: x.sin())
    op.backward(lambda ctx, grad: op(grad))
    seen = []
    original = GraphLowering.codegen_with_cpp_wrapper

    def codegen(self):
        seen.append((inductor_config.triton.store_cubin, inductor_config.cpp_wrapper))
        return original(self)

    x = torch.randn(8, requires_grad=True)
    watched = mock.patch.object(GraphLowering, "codegen_with_cpp_wrapper", codegen)
    with watched, inductor_config.patch(force_disable_caches=True):
        result = torch.compile(lambda x: op(x), options={"cpp_wrapper": True})(x)
        assert seen == [(True, True)]
        result.sum().backward()
    assert seen == [(True, True)] * 2
    torch.testing.assert_close(x.grad, torch.ones(8).sin())
