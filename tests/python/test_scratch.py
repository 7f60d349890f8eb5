"""Scratch tensors and steps of CPU implementations, in every form that a launch has."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda import cpp_part, wrapper_source

import opaq
from opaq import _runtime, lowering

FORMS = ["eager", "dispatcher", "Python wrapper", "C++ wrapper", "package"]
SOURCE = """
template <typename T>
void add_up(const T* x, T* partial, int* count, long parts, long n) {
  for (long p = 0; p < parts; ++p) {
    partial[p] = 0;
    for (long i = p; i < n; i += parts) partial[p] += x[i];
  }
  *count += 1;
}
void finish(const float* partial, float* total, const int* count, long parts) {
  *total = 0;
  for (long p = 0; p < parts; ++p) *total += partial[p];
  *total *= *count;  // 1: it was zero before
}
"""
SCRATCH = {
    "partial": opaq.tensor("ceil_div(x.numel(), 4) - less", dtype="x.dtype"),
    "count": opaq.zeros([], dtype=torch.int32),
}
STEPS = [
    opaq.step(entry="add_up<{x.dtype}>", args="x, partial, count, partial.size(0), x.numel()"),
    opaq.step(entry="finish", args="partial, total, count, partial.size(0)"),
]


def declare(name: str) -> opaq.Op:
    op = opaq.op(
        f"scratch_tests::{name}(Tensor x, SymInt less) -> (Tensor total)",
        outputs=opaq.tensor([], dtype="float32"),
    )
    return op.cpu(source=SOURCE, scratch=SCRATCH, steps=STEPS)


class Model(torch.nn.Module):
    """Numbers that vary from call to call are sizes of tensors: all forms take these."""

    def __init__(self, op: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor, less: torch.Tensor) -> torch.Tensor:
        return self.op(x * 2, less.size(0)) + self.op(x, less.size(0))


def arguments(size: int, less: int) -> tuple[torch.Tensor, ...]:
    return torch.arange(size, dtype=torch.float32), torch.empty(less, 0)


@pytest.fixture(scope="module", params=FORMS)
def call(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    form = request.param
    op = declare(f"form{FORMS.index(form)}")
    model: Callable[..., torch.Tensor] = Model(op if form != "dispatcher" else op.overload)
    if form == "package":
        dynamic = ({0: torch.export.Dim.DYNAMIC},) * 2
        program = torch.export.export(Model(op), arguments(50, 2), dynamic_shapes=dynamic)
        path = opaq.package(program, tmp_path_factory.mktemp("package") / "model.pt2")
        model = torch._inductor.aoti_load_package(path)
    elif form.endswith("wrapper"):
        options = {"cpp_wrapper": form == "C++ wrapper"}
        model = torch.compile(model, fullgraph=True, dynamic=True, options=options)
    return lambda size, less: model(*arguments(size, less))


@pytest.mark.parametrize(("size", "less"), [(50, 2), (50, 2), (1000, 3), (9, 2)])
def test_results(call: Callable[..., torch.Tensor], size: int, less: int) -> None:
    torch.testing.assert_close(call(size, less), 3 * arguments(size, less)[0].sum())


def test_a_negative_size_is_an_error(
    call: Callable[..., torch.Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError) as error:
        call(8, 5)
    text = str(error.value) + capfd.readouterr().err  # where a package prints the reason
    assert ": scratch 'partial' of implementation 'cpu': size 0 is -3; a size is 0 or more" in text


def test_inductor_plans_the_workspace_and_reuses_it() -> None:
    op = opaq.op("scratch_tests::planned(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    op.cpu(
        source="""void double_all(const float* x, float* copy, float* y, long n) {
          for (long i = 0; i < n; ++i) copy[i] = 2 * x[i];
          for (long i = 0; i < n; ++i) y[i] = copy[i]; }""",
        entry="double_all",
        scratch={"copy": opaq.like("x")},
        args="x, copy, y, x.numel()",
    )
    x = torch.randn(8, 16)
    compiled = torch.compile(lambda x: op(op(op(x))), fullgraph=True)
    result, (code,) = torch._inductor.utils.run_and_get_code(compiled, x)
    torch.testing.assert_close(result, 8 * x)
    allocated = code.count("= empty_strided_cpu((8, 16), (16, 1), torch.float32)")
    assert allocated < 6, code  # three results and three workspaces
    assert "# reuse" in code
    assert "workspace=True" in code


def test_a_launch_that_chooses_has_room_for_each_implementation() -> None:
    op = opaq.op("scratch_tests::chooses(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    for name, factor, priority in (("cpu:aligned", 3, 1), ("cpu", 2, 0)):
        op.cpu(
            source=f"""void f(const float* x, double* copy, float* more, float* y, long n) {{
              for (long i = 0; i < n; ++i) copy[i] = {factor} * x[i], more[i] = 1;
              for (long i = 0; i < n; ++i) y[i] = copy[i] * more[i]; }}""",
            entry="f",
            scratch={
                "copy": opaq.tensor("x.numel()", dtype="float64"),
                "more": opaq.like("x", shape=f"{factor} * x.numel()"),
            },
            args="x, copy, more, y, x.numel()",
            requires=["aligned(x, 16)"] if priority else (),
            priority=priority,
            name=name,
        )
    memory = torch.randn(65)
    for options in ({}, {"cpp_wrapper": True}):
        torch.compiler.reset()
        compiled = torch.compile(lambda x: op(x), fullgraph=True, dynamic=True, options=options)
        torch.testing.assert_close(compiled(memory[:64]), 3 * memory[:64])
        torch.testing.assert_close(compiled(memory[1:]), op(memory[1:]))
        torch.testing.assert_close(op(memory[1:]), 2 * memory[1:])


@pytest.mark.parametrize("form", ["Python wrapper", "C++ wrapper"])
def test_memory_of_a_size_that_only_the_launch_knows_is_allocated_there(form: str) -> None:
    op = opaq.op("scratch_tests::unplanned(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    op.cpu(
        source="""void f(const float* x, float* s, float* y, long padded, long n) {
          for (long i = 0; i < padded; ++i) s[i] = i < n ? x[i] : 0;
          for (long i = 0; i < n; ++i) y[i] = 2 * s[i]; }""",
        entry="f",
        scratch={"s": opaq.tensor("next_power_of_2(x.numel())", dtype="float32")},
        args="x, s, y, s.numel(), x.numel()",
    )
    compiled = torch.compile(
        lambda x: op(x), fullgraph=True, dynamic=True, options={"cpp_wrapper": form[0] == "C"}
    )
    x = torch.randn(100)
    result, (code,) = torch._inductor.utils.run_and_get_code(compiled, x)
    torch.testing.assert_close(result, 2 * x)
    assert "workspace=True" not in code


def test_the_manifest_of_a_package_lists_scratch_and_steps(tmp_path: Any) -> None:
    op = declare("listed")
    program = torch.export.export(Model(op), arguments(50, 2))
    path = opaq.package(program, tmp_path / "model.pt2")
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("opaq.json")]
        manifest = json.loads(archive.read(name))
    (implementation,) = manifest["ops"][0]["implementations"]
    assert [step["entry"] for step in implementation["steps"]] == ["add_up<float>", "finish"]
    assert [len(step["images"]) for step in implementation["steps"]] == [1, 1]
    assert implementation["scratch"] == [
        {"name": "count", "shape": [], "dtype": "int32", "zeros": True, "random": ""},
        {
            "name": "partial",
            "shape": ["ceil_div(x.numel(), 4) - less"],
            "dtype": "float32",
            "zeros": False,
            "random": "",
        },
    ]


def test_the_contract_check_does_not_take_scratch_for_a_result() -> None:
    op = declare("checked")
    x = torch.randn(40)
    compiled = torch.compile(
        lambda x: op(x, 1), fullgraph=True, backend="opaq", options={"check": "contract"}
    )
    torch.testing.assert_close(compiled(x), x.sum())


def test_a_changed_scratch_tensor_is_another_declaration() -> None:
    op = declare("again")
    assert declare("again") is op
    other = {**SCRATCH, "count": opaq.zeros(2, dtype="int32")}
    with pytest.raises(opaq.DeclarationError) as error:
        op.cpu(source=SOURCE, scratch=other, steps=STEPS)
    assert (
        "scratch: 'partial: [ceil_div(x.numel(), 4) - less], x.dtype; count: [], int32, zeros' "
        "before, 'partial: [ceil_div(x.numel(), 4) - less], x.dtype; count: [2], int32, zeros' now"
    ) in str(error.value)
    changed = [STEPS[0], opaq.step(entry="finish", args="partial, total, count, 1")]
    with pytest.raises(opaq.DeclarationError, match="step 2: args: 'partial, total, count"):
        op.cpu(source=SOURCE, scratch=SCRATCH, steps=changed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scratch": ["s"]}, r"scratch: got \['s'\] \(list\); expected a dict of opaq.tensor"),
        (
            {"scratch": {"s": opaq.tensor(1, dtype="int8", strides=1)}},
            "scratch 's': strides: got '1' .str.; expected none: scratch is row-major",
        ),
        ({"steps": "s"}, "steps: got 's' .str.; expected a list of opaq.step"),
        (
            {"source": None, "steps": [opaq.step(entry="f", args="y")]},
            "step 1 has no code; give it source=, or give source= to the implementation",
        ),
        (
            {"entry": "f", "steps": [opaq.step(entry="f", args="y")]},
            "got 'f' beside steps; give entry to each opaq.step",
        ),
        ({}, "entry of scratch_tests::refused, implementation 'cpu': not given"),
    ],
)
def test_declarations_that_are_refused(fields: dict[str, Any], message: str) -> None:
    op = opaq.op("scratch_tests::refused(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    with pytest.raises(opaq.DeclarationError, match=message):
        op.cpu(**{"source": "void f(float* y) {}", **fields})


def test_zeros_are_no_rule_of_a_result() -> None:
    with pytest.raises(opaq.DeclarationError, match="outputs: got Zeros"):
        opaq.op("scratch_tests::rule(Tensor x) -> (Tensor y)", outputs=opaq.zeros(1, dtype="int8"))


def test_what_a_node_on_cuda_prints() -> None:
    op = opaq.op("scratch_tests::cuda(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    op.cuda(
        source="""
        __global__ void first(const float* x, float* part, int* ticket) {}
        __global__ void second(const float* part, float* y) {}""",
        scratch={
            "part": opaq.tensor("x.size(0)", dtype="float32"),
            "ticket": opaq.zeros(1, dtype="int32", once=True),
        },
        steps=[
            opaq.step(entry="first", grid="part.size(0)", block=32, args="x, part, ticket"),
            opaq.step(entry="second", block=64, args="part, y", programmatic=True),
        ],
    )
    fake = [("float32", (8, 4), (4, 1), "cuda:0", 4096)]
    planned = _runtime.plan(op.name, fake)
    assert planned["workspace_bytes"] == 256 + 32
    assert [step["grid"] for step in planned["steps"]] == [[8, 1, 1], [1, 1, 1]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scratch is written without being marked in the schema
        compiled = _runtime.compile(op.name, fake, "sm_90a")
    assert [step["entry"] for step in compiled["steps"]] == ["first", "second"]

    lowering.activate()
    python = wrapper_source(lambda x: op.overload(x), (8, 4), dynamic=True)
    assert "empty_strided_cuda((260 + 4*" in python, python
    with lowering.options.use(archs=("sm_90a",)):
        cpp = cpp_part(wrapper_source(lambda x: op.overload(x), (8, 4), dynamic=True, cpp=True))
    start = cpp.index("// scratch_tests::cuda(")
    function = cpp[start : cpp.index("#endif", start)]
    tensor = (
        'const opaq_scratch opaq_memory_of_ticket(opaq_layout, "scratch_tests::cuda: scratch '
        "'ticket' of implementation 'cuda'\", opaq_int32, 4, {1});"
    )
    memory = (
        "const opaq_scratch_memory opaq_workspace(opaq_planned_workspace, opaq_layout.bytes(), "
        "aoti_torch_device_type_cuda(), opaq_device);"
    )
    zeros = (
        'opaq_zero("scratch_tests::cuda", opaq_workspace.data(), '
        "opaq_use.memory() ? 0 : opaq_kept_end, opaq_device, opaq_stream);"
    )
    second = (
        'opaq_declared = {"scratch_tests::cuda, step 2", {"1", "1", "1"}, {"64", "1", "1"}, '
        '{nullptr}, "0", false, true};'
    )
    views = [
        "const opaq_tensor part = opaq_memory_of_part.at(opaq_workspace.data());",
        "const opaq_tensor ticket = opaq_memory_of_ticket.at(opaq_kept);",
    ]
    for line in (tensor, memory, *views, zeros, second, "opaq_use.ended();"):
        assert line in function, function
    assert function.index("do {  // step 1") < function.index("do {  // step 2")
