"""opaq.explain(): what it tells of each opaque node, without running or changing anything."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import opaq
from opaq import _runtime

needs_nvrtc = pytest.mark.skipif(
    not _runtime.doctor()["nvrtc"]["found"], reason="NVRTC is not installed"
)
SCALE = """void f(const float* x, float* out, long n) {
  for (long i = 0; i < n; ++i) out[i] = x[i] * 2; }"""
CUDA_SCALE = """__global__ void f(const float* x, float* out, long n) {
  long i = blockIdx.x * 256L + threadIdx.x;
  if (i < n) out[i] = x[i] * 2; }"""


@pytest.fixture
def scale(unique: str) -> opaq.Op:
    """out = x * 2, with a gradient, on the CPU and on CUDA."""
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=SCALE, entry="f", args="x, out, x.numel()")
    grid = "ceil_div(x.numel(), 256)"
    op.cuda(source=CUDA_SCALE, entry="f", grid=grid, block=256, args="x, out, x.numel()")
    op.backward(lambda ctx, grad: op(grad * 1))
    return op


@pytest.fixture
def never_called(unique: str) -> Callable[[Any], Any]:
    """An op whose every call fails, were it run."""

    @opaq.custom_op(f"{unique}_function", mutates_args=())
    def function(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("opaq.explain ran a function")

    function.register_fake(torch.empty_like)
    return function


def test_a_node_is_told_with_its_place_and_implementation(scale: opaq.Op) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return scale(x + 1) - 1  # the line that is told

    found = opaq.explain(model, torch.zeros(2, 3))
    (graph,) = found.graphs
    (node,) = graph.nodes
    assert (graph.kind, found.breaks, found.remarks) == ("inference", [], [])
    assert (node.op, node.device, node.implementation) == (scale.name, "cpu", "cpu")
    line = model.__code__.co_firstlineno + 1
    assert node.place == f"{__file__}:{line}, in model"
    assert node.arguments == {"x": "float32[2, 3] strides [3, 1]"}
    roles = [(item.name, item.role, item.why) for item in node.implementations]
    assert roles == [("cpu", "serves", ""), ("cuda", "not used", "it is for cuda")]
    assert found.nodes == [node] and found.as_dict()["graphs"][0]["nodes"][0]["op"] == scale.name
    shown = str(found)
    assert "model: 1 graph, 1 opaque node, 0 graph breaks" in shown and "it is for cuda" in shown


def test_the_answer_is_that_of_compiling(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    facts = {"source": SCALE, "entry": "f", "args": "x, out, x.numel()"}
    op.cpu(name="cpu:wide", requires="x.numel() >= 1000", priority=2, **facts)
    op.cpu(name="cpu:even", requires="x.numel() % 2 == 0", priority=1, **facts)
    op.reference(lambda x: x * 2)

    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return op(x).sum() + op(y).sum()

    args = torch.zeros(5), torch.zeros(6, 8)[:, ::2]
    nodes = opaq.explain(model, *args).nodes
    torch.compile(model, backend="opaq")(*args)
    ran = [node for node in opaq.report().nodes if node.op == unique]
    assert [node.implementation for node in nodes] == [node.implementation for node in ran]
    assert [node.implementation for node in nodes] == ["reference", "cpu:even"]
    for node, compiled in zip(nodes, ran):
        for item in node.implementations:
            if item.name in compiled.reason:
                assert f"{item.name}: {item.why}" in compiled.reason
    assert "made contiguous: x" in ran[1].reason and nodes[1].made_contiguous == ["x"]
    assert [(i.name, i.role, i.why) for i in nodes[0].implementations] == [
        ("cpu:wide", "not used", "x.numel() >= 1000 does not hold"),
        ("cpu:even", "not used", "x.numel() % 2 == 0 does not hold"),
        ("reference", "serves", "where no implementation fits"),
    ]


def test_what_each_launch_checks_where_sizes_are_symbolic(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    facts = {"source": SCALE, "entry": "f", "args": "x, out, x.numel()"}
    op.cpu(name="cpu:even", requires=["x.numel() % 2 == 0", "aligned(x, 64)"], priority=1, **facts)
    op.cpu(**facts)
    x = torch.zeros(6, 3)
    torch._dynamo.mark_dynamic(x, 0)
    (node,) = opaq.explain(lambda x: op(x), x).nodes
    even, plain = node.implementations
    assert (even.role, plain.role) == ("may serve", "may serve")
    assert even.checked_at_launch == ["x.numel() % 2 == 0", "aligned(x, 64)"]
    assert even.why == "where x.numel() % 2 == 0 and aligned(x, 64)"
    assert plain.why == "where none before it fits"
    assert node.arguments["x"].startswith("float32[s")


def test_graph_breaks_have_places_and_reasons(scale: opaq.Op) -> None:
    def helper(x: torch.Tensor) -> torch.Tensor:
        y = scale(x)
        torch._dynamo.graph_break()
        return scale(y)

    found = opaq.explain(lambda x: helper(x) + 1, torch.zeros(4))
    assert len(found.nodes) == 2 and len(found.graphs) >= 2
    line = helper.__code__.co_firstlineno + 2
    assert any(each.place == f"{__file__}:{line}, in helper" for each in found.breaks)
    assert all(node.place.endswith(", in helper") for node in found.nodes)
    assert "graph break at" in str(found) and "graph_break" in str(found)


def test_code_that_needs_values_ends_it(scale: opaq.Op) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        y = scale(x)
        return scale(y) if y.sum() > 0 else y

    found = opaq.explain(model, torch.zeros(4))
    assert len(found.nodes) == 1
    line = model.__code__.co_firstlineno + 2
    (remark,) = found.remarks
    assert remark == (
        f"tracing ended at {__file__}:{line}, in model that needs the value of a tensor: what "
        "comes after it is not shown"
    )


def test_backward_graphs_are_told(scale: opaq.Op) -> None:
    weight = torch.nn.Parameter(torch.ones(4))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return scale(x * self.weight).sum()

    model = Model()
    found = opaq.explain(model, torch.zeros(4))
    assert [graph.kind for graph in found.graphs] == ["forward", "backward"]
    assert [len(graph.nodes) for graph in found.graphs] == [1, 1]
    assert found.nodes[1].place.endswith(", in forward")
    assert weight.grad is None and model.weight is weight
    with torch.no_grad():
        assert [graph.kind for graph in opaq.explain(model, torch.zeros(4)).graphs] == ["inference"]


def test_nothing_runs_and_nothing_changes(unique: str, never_called: Callable[..., Any]) -> None:
    op = opaq.op(f"{unique}(Tensor(a!) x) -> ()")
    op.cpu(source="void f(float* x) { x[0] = 7; }", entry="f", args="x")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))
            self.calls = 0

        def forward(self, x: torch.Tensor, values: dict[str, torch.Tensor]) -> torch.Tensor:
            self.calls += 1
            self.seen.add_(1)
            op(values["y"])
            torch._dynamo.graph_break()
            values["y"].mul_(3)
            op(x)
            return never_called(x) + self.seen

    model, x, y = Model(), torch.ones(3), torch.ones(3)
    versions = [tensor._version for tensor in (x, y, model.seen)]
    found = opaq.explain(model, x, values={"y": y})
    assert [node.implementation for node in found.nodes] == ["cpu", "cpu", "python"]
    assert versions == [tensor._version for tensor in (x, y, model.seen)]
    assert x.tolist() == y.tolist() == [1, 1, 1]
    assert model.seen.tolist() == [0, 0, 0] and model.calls == 0
    assert not [node for node in opaq.report().nodes if node.op.startswith(unique)]


def test_later_compilations_are_as_if_nothing_had_been_explained(scale: opaq.Op) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return scale(x) + 1

    def sizes_of(compiled_for: int) -> list[str]:
        seen: list[str] = []

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            seen.extend(
                str(node.meta["example_value"].shape)
                for node in graph.graph.nodes
                if node.op == "placeholder"
            )
            return graph

        torch.compile(model, backend=backend)(torch.zeros(compiled_for))
        return seen

    compiled = torch.compile(model, backend="opaq")
    before = compiled(torch.ones(4))
    opaq.explain(model, torch.zeros(6))
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(compiled(torch.ones(4)), before)
    torch._dynamo.reset()
    opaq.explain(model, torch.zeros(6))
    assert sizes_of(8) == ["torch.Size([8])"]  # of one size, not of any


def test_no_opaque_op(capsys: pytest.CaptureFixture[str]) -> None:
    found = opaq.explain(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    assert found.nodes == []
    assert str(found) == (
        "Linear: 2 graphs, 0 opaque nodes, 0 graph breaks: no opaque op is called in what is "
        "compiled"
    )


def test_an_op_that_another_kernel_serves(scale: opaq.Op) -> None:
    namespace, name = scale.name.split("::")
    library = torch.library.Library(namespace, "IMPL")
    library.impl(name, lambda x: x * 2, "CPU")
    (node,) = opaq.explain(lambda x: scale(x), torch.zeros(3)).nodes
    assert node.implementation == "dispatcher"
    assert node.reason == "another kernel is registered for it on cpu: Inductor's stock call"
    assert not [node for node in opaq.report().nodes if node.op == scale.name]


@needs_nvrtc
def test_cuda_without_a_gpu(scale: opaq.Op) -> None:
    with torch.device("meta"):
        layers = torch.nn.Linear(8, 8, dtype=torch.bfloat16), torch.nn.LayerNorm(8)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.scale = torch.nn.ModuleList(layers), scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            linear, norm = self.layers
            return self.scale(norm(linear(x).float())).relu().sum()

    with torch.device("cuda"):
        x = torch.empty(4, 8, device="meta", dtype=torch.bfloat16)
        found = opaq.explain(Model(), x)
    (node,) = found.nodes
    assert (node.device, node.implementation) == ("cuda:0", "cuda")
    cuda, cpu = node.implementations
    assert (cuda.launches[0].entry, cuda.launches[0].launch["block"]) == ("f", [256, 1, 1])
    if not torch.cuda.is_available():
        assert found.archs == cuda.launches[0].code == []
        assert [remark.split(":")[0] for remark in found.remarks] == [
            "backward graphs are not shown, and forward graphs are those without gradients",
            "registers, shared memory and image sizes of CUDA source are unknown",
        ]


def test_errors_name_the_line_and_the_cause(scale: opaq.Op, unique: str) -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return scale(x) @ torch.ones(7)

    line = wrong.__code__.co_firstlineno + 1
    with pytest.raises(opaq.Error, match=r"tracing .*wrong failed .*inconsistent") as raised:
        opaq.explain(wrong, torch.zeros(3))
    assert f"({__file__}:{line}, in wrong)" in str(raised.value)

    none = opaq.op(f"{unique}_none(Tensor(a!) x) -> ()")
    none.cpu(source="void f(float* x) {}", entry="f", args="x", requires="x.numel() == 1")

    def unserved(x: torch.Tensor) -> torch.Tensor:
        none(x)
        return x

    (node,) = opaq.explain(unserved, torch.zeros(3)).nodes
    assert node.implementation == "dispatcher"  # the call raises the error that eager raises
    assert "x.numel() == 1 does not hold" in node.reason
    with pytest.raises(opaq.DeclarationError, match="got int as the model; expected a Module or a"):
        opaq.explain(3)


def test_what_a_function_takes_from_around_it_is_copied(scale: opaq.Op) -> None:
    model, seen = torch.nn.BatchNorm1d(3), torch.zeros(3)

    def called(x: torch.Tensor) -> torch.Tensor:
        seen.add_(1)
        torch._dynamo.graph_break()
        seen.add_(1)
        return scale(model(x)) + seen

    found = opaq.explain(called, torch.ones(2, 3))
    assert [graph.kind for graph in found.graphs if graph.nodes] == ["forward", "backward"]
    assert seen.tolist() == [0, 0, 0] and model.num_batches_tracked == 0


@needs_nvrtc
def test_a_compiled_model_brings_its_options(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    facts = {"source": CUDA_SCALE, "entry": "f", "args": "x, out, x.numel()", "block": 256}
    op.cuda(name="cuda:wide", grid=1, priority=1, **facts)
    op.cuda(name="cuda:plain", grid=2, **facts)

    def model(x: torch.Tensor) -> torch.Tensor:
        return op(x)

    options = {"archs": ["sm_80", "sm_90a"], "prefer": [f"{unique}=cuda:plain"]}
    compiled = torch.compile(model, backend="opaq", options=options, dynamic=True)
    with torch.device("cuda"):
        found = opaq.explain(compiled, torch.empty(5, 7, device="meta"))
    (node,) = found.nodes
    assert node.implementation == "cuda:plain" and node.reason == "preferred by an option"
    assert node.arguments["x"].startswith("float32[s")
    assert found.archs == ["sm_80", "sm_90a"]
    (plain, wide) = node.implementations
    assert (wide.role, wide.why) == ("not used", "cuda:plain comes before it and always fits")
    (launch,) = plain.launches
    assert [code["arch"] for code in launch.code] == found.archs
    for code in launch.code:
        assert code["bytes"] > 0 and code["resources"]["registers"] > 0 and not code["problem"]
        assert code["resources"]["spill_stores"] == 0
    cells = str(found).split()
    assert "registers" in cells and "spills" in cells and str(launch.code[0]["bytes"]) in cells

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return model(x)

    whole = torch.compile(Model(), backend="opaq", fullgraph=True)
    with pytest.raises(opaq.Error, match="(?s)tracing .* failed .*graph_break"):
        opaq.explain(whole, torch.zeros(3))
    with pytest.raises(opaq.DeclarationError, match='option "strct" of|no option "strct"'):
        opaq.explain(torch.compile(model, backend="opaq", options={"strct": True}), torch.zeros(3))


def test_a_strict_graph_that_cannot_be_lowered(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source=SCALE, entry="f", args="x, out, x.numel()", requires="x.numel() == 1")
    op.reference(lambda x: x * 2)
    compiled = torch.compile(lambda x: op(x), backend="opaq", options={"strict": True})
    with pytest.raises(opaq.Error, match="strict: its first implementation does not fit"):
        opaq.explain(compiled, torch.zeros(3))


def test_a_model_that_cannot_be_copied() -> None:
    model = torch.nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(
        opaq.Error,
        match=r"copying them raised TypeError: cannot pickle .* copy.deepcopy\(model\) has to work",
    ):
        opaq.explain(model, torch.zeros(2))


def test_calls_outside_of_the_graphs_and_why_they_are(scale: opaq.Op) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = scale(x)
            torch._dynamo.graph_break()  # in a loop: torch.compile leaves the function to Python
        return x

    found = opaq.explain(model, torch.zeros(4))
    line = model.__code__.co_firstlineno + 2
    assert found.graphs == [] and "1 graph break: no opaque op is called" in str(found)
    assert [vars(call) for call in found.eager] == [
        {"op": scale.name, "place": f"{__file__}:{line}, in model", "calls": 3}
    ]
    assert f"{scale.name} is called outside of the graphs at {__file__}:{line}" in str(found)
    (at,) = found.breaks
    assert at.place == f"{__file__}:{line + 1}, in model"
    assert "Skipping the function and falling back to eager" in at.reason
    assert f"<td>{scale.name}</td><td class=number>3</td>" in found.html()


def test_scratch_memory(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(
        source="void f(const float* x, float* part, float* out, long n) { out[0] = x[0]; }",
        entry="f",
        args="x, part, out, x.numel()",
        scratch={"part": opaq.tensor("x.numel(), 2", dtype="float32")},
    )
    x = torch.zeros(6, 3)
    (node,) = opaq.explain(op, x).nodes
    assert node.workspace == 6 * 3 * 2 * 4 and "144 bytes" in str(opaq.explain(op, x))
    torch._dynamo.mark_dynamic(x, 0)
    (node,) = opaq.explain(op, x).nodes
    assert isinstance(node.workspace, str) and node.workspace.startswith("24*s")


def test_lists_of_tensors(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor[] xs) -> Tensor", outputs=opaq.like("xs[0]"))
    op.cpu(
        source="void f(const float* a, const float* b, float* out) { out[0] = a[0] + b[0]; }",
        entry="f",
        args="xs[0], xs[1], out",
    )
    (node,) = opaq.explain(lambda x: op([x, x + 1]), torch.zeros(1)).nodes
    assert (node.op, node.implementation) == (f"{unique}[2]", "cpu")
    assert len(node.arguments) == 2


def test_nothing_is_measured_where_a_model_is_tuned(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    facts = {"source": SCALE, "entry": "f", "args": "x, out, x.numel()"}
    op.cpu(name="cpu:a", **facts)
    op.cpu(name="cpu:b", **facts)
    compiled = torch.compile(lambda x: op(x), backend="opaq", options={"tune": "search"})
    (node,) = opaq.explain(compiled, torch.zeros(4)).nodes
    assert (node.implementation, node.reason) == ("cpu:a", "")
    calls = [each["calls"] for each in _runtime.implementation_stats() if each["op"] == unique]
    assert sum(calls) == 0


@pytest.mark.usefixtures("kernels_as_users_have_them")
def test_constants_of_flex_attention(scale: opaq.Op) -> None:
    """Inductor folds them before it makes its template of the score."""
    from torch.nn.attention.flex_attention import flex_attention

    def attention(x: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        def seen(score: torch.Tensor, b: Any, h: Any, row: Any, column: Any) -> torch.Tensor:
            return torch.where(column <= last[0], score, -float("inf"))

        found = flex_attention(x, x + 1, x + 2, score_mod=seen)
        assert isinstance(found, torch.Tensor)
        return scale(found)

    (node,) = opaq.explain(attention, torch.randn(1, 2, 16, 16), torch.tensor([5])).nodes
    assert node.implementation == "cpu"
