"""`Op.check` and `Op.example`: what is told of each implementation without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import opaq
from opaq import _runtime, example_arguments

pytestmark = pytest.mark.skipif(
    not _runtime.doctor()["nvrtc"]["found"], reason="NVRTC is not installed"
)

SCALE = """
#include <cuda_fp16.h>
template <typename T> __global__ void scale(const T* x, float f, T* out, long n) {
  long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] * T(f);
}"""


def declare(unique: str, **changes: object) -> opaq.Op:
    op = opaq.op(f"{unique}(Tensor x, float f=2.0) -> Tensor", outputs=opaq.like("x"))
    rule = {
        "source": SCALE,
        "entry": "scale<{x.dtype}>",
        "grid": "ceil_div(x.numel(), 256)",
        "block": 256,
        "args": "x, f, out, x.numel()",
    }
    return op.cuda(**(rule | changes))


def test_an_example_gives_everything(unique: str) -> None:
    report = declare(unique).check(torch.empty(1000, dtype=torch.half), arch=["sm_80", "sm_90a"])
    assert report.ok and report.problems == []
    (kernel,) = report.implementations
    assert kernel.entry == "scale<__half>" and kernel.example == "x float16[1000]"
    assert kernel.launch["grid"] == [4, 1, 1] and kernel.launch["block"] == [256, 1, 1]
    for code, arch in zip(kernel.code, ["sm_80", "sm_90a"]):
        assert code["arch"] == arch and code["bytes"] > 1000
        assert code["parameters"] == ["__half const*", "float", "__half*", "long"]
        assert 4 <= code["resources"]["registers"] <= 32
        assert code["resources"]["shared"] == code["resources"]["spill_stores"] == 0
        assert code["occupancy"] == {"blocks": 8, "warps": 64, "most_warps": 64, "limit": "warps"}
    text = repr(report)
    assert "scale<__half>(__half const*, float, __half*, long)" in text
    assert "grid (4, 1, 1), block (256, 1, 1), dynamic shared memory 0 bytes" in text
    assert "100%: 64 of 64 warps in 8 blocks, limited by warps" in text
    assert text.endswith("no problems found")
    assert report.as_dict()["implementations"][0]["code"][0]["arch"] == "sm_80"


def test_without_an_example_a_dtype_is_assumed_and_the_rest_said(unique: str) -> None:
    op = declare(unique, requires="x.dtype in (float16, bfloat16) and x.size(-1) % 8 == 0")
    (kernel,) = op.check(arch="sm_90a").implementations
    assert kernel.entry == "scale<float>"  # the condition is about sizes too: it says nothing
    op = declare(unique + "_b", requires=["x.dtype in (float16, bfloat16)", "x.size(-1) % 8 == 0"])
    report = op.check(arch="sm_90a")
    (kernel,) = report.implementations
    assert report.ok and kernel.entry == "scale<__half>"
    assert kernel.assumed == ["x.dtype = float16"]
    assert kernel.unchecked == ["launch sizes: `ceil_div(x.numel(), 256)`"]
    assert kernel.code[0]["occupancy"]["blocks"] == 8  # the block is known
    assert "assumed, without an example: x.dtype = float16" in repr(report)


def test_template_arguments_that_need_an_example_are_named(unique: str) -> None:
    source = SCALE.replace("typename T", "typename T, int width")
    op = declare(unique, source=source, entry="scale<{x.dtype}, {x.size(-1)}>")
    report = op.check(arch="sm_90a")
    (kernel,) = report.implementations
    assert kernel.code == [] and kernel.entry == "scale<{x.dtype}, {x.size(-1)}>"
    assert "not compiled, for its template arguments: `x.size(-1)`" in kernel.unchecked
    (kernel,) = op.check(torch.empty(8, 64, device="meta"), arch="sm_90a").implementations
    assert kernel.entry == "scale<float, 64>" and kernel.code[0]["bytes"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"source": SCALE.replace("(i < n)", "(i < m)")}, 'identifier "m" is undefined'),
        ({"args": "x, f, out"}, "takes 4 parameters (float const*, float, float*, long); args"),
        ({"args": "x, out, f, x.numel()"}, "argument 2 `out` is Tensor, but parameter 2 is `fl"),
        ({"entry": "scael<{x.dtype}>"}, "names no kernel"),
        ({"block": "x.numel() * 100"}, "block.x `x.numel() * 100` is 100000"),
        ({"shared": "250 * 1024"}, "sm_90a: shared `250 * 1024` is 256000 bytes, but a block can"),
    ],
)
def test_problems_are_told_and_not_raised(
    unique: str, changes: dict[str, object], problem: str
) -> None:
    report = declare(unique, **changes).check(torch.empty(1000), arch="sm_90a")
    assert not report.ok
    assert len(report.problems) == 1 and problem in report.problems[0]
    assert f"PROBLEM: {unique}" in repr(report) and repr(report).endswith("1 problem found")


def test_a_problem_of_one_architecture_leaves_the_others(unique: str) -> None:
    op = declare(unique, cluster=2, grid="2 * ceil_div(x.numel(), 512)")
    report = op.check(torch.empty(1000), arch=["sm_80", "sm_90a"])
    old, new = report.implementations[0].code
    assert report.problems == [old["problem"]] and not new["problem"]
    assert "there are no clusters before sm_90" in old["problem"]
    report = declare(unique + "_b", args="x, out").check(arch=["sm_80", "sm_90a", "sm_100a"])
    assert len(report.problems) == 1  # the same for all


def test_every_implementation_is_checked_on_its_device(unique: str) -> None:
    op = declare(unique, requires="aligned(x, 512)")
    op.cpu(
        source="void f(const float* x, float* out, long n) { for (long i = 0; i < n; ++i) "
        "out[i] = x[i]; }",
        entry="f",
        args="x, out, x.numel()",
        requires="x.dtype == float32",
    )
    op.python(lambda x, f, out: None, device="cpu", name="by_hand", priority=-1)
    report = op.check(torch.ones(1000), arch="sm_90a")  # as if freshly allocated there
    cuda, cpu, python = report.implementations
    assert report.ok and not cuda.why_not and not cpu.why_not
    assert cpu.code[0]["parameters"] == ["float const*", "float*", "long"]
    assert "compiles, and its parameters fit" in repr(report)
    assert python.unchecked == ["a Python function: there is nothing to compile"]
    report = op.check(torch.ones(1000, dtype=torch.half)[1:], arch="sm_90a")
    cuda, cpu, python = report.implementations
    assert cuda.why_not == "aligned(x, 512) does not hold"
    assert cuda.assumed == ["x.dtype = float32"]  # checked as without an example
    assert report.problems == [
        (
            f"{unique}: no implementation for cuda fits this example, and there is no reference: "
            "x float16[999]"
        )
    ]


def test_arguments_that_a_launch_copies_fit(unique: str) -> None:
    report = declare(unique).check(torch.empty(64, 8).t(), arch="sm_90a")
    (kernel,) = report.implementations
    assert report.ok and kernel.why_not == ""
    assert kernel.example == "x float32[8, 64] with strides (1, 8)"


def test_examples_are_kept_and_each_is_checked(unique: str) -> None:
    op = declare(unique).example(torch.ones(3)).example(torch.ones(700, dtype=torch.half), 0.5)
    report = op.check(arch="sm_90a")
    assert [item.entry for item in report.implementations] == ["scale<float>", "scale<__half>"]
    assert report.implementations[1].example == "x float16[700], f 0.5"
    with pytest.raises(opaq.LaunchError, match="takes 2 arguments; got 3"):
        op.example(torch.ones(3), 1.0, 2.0)
    with pytest.raises(opaq.LaunchError, match="argument `x` is a int; expected a torch.Tensor"):
        op.check(3, arch="sm_90a")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a GPU")
def test_an_architecture_must_be_named(unique: str) -> None:
    op = declare(unique)
    with pytest.raises(opaq.DeclarationError, match='such as "sm_90a", as there is no GPU here'):
        op.check()
    with pytest.raises(opaq.DeclarationError, match="got '90a' .*; expected an architecture such"):
        op.check(arch="90a")
    with pytest.raises(opaq.DeclarationError, match="arch: got 90 "):
        op.check(arch=90)


def test_a_check_leaves_launches_and_reports_alone(unique: str) -> None:
    before = [item for item in opaq.report().implementations if item.op == unique]
    op = declare(unique)
    op.check(torch.ones(3), arch="sm_90a")
    after = [item for item in opaq.report().implementations if item.op == unique]
    assert before == [] and all(not item.compiled and not item.disk_hits for item in after)


def test_an_edited_header_is_noticed(unique: str, tmp_path: Path) -> None:
    header = tmp_path / "times.h"
    header.write_text("#define TIMES 2\n")
    source = '#include "times.h"\n' + SCALE.replace("T(f)", "T(f) * T(TIMES)")
    op = declare(unique, source=source, include_dirs=[tmp_path])
    assert op.check(arch="sm_90a").ok
    header.write_text("#define TIMES )\n")
    assert not op.check(arch="sm_90a").ok
    header.write_text("#define TIMES 3\n")
    assert op.check(arch="sm_90a").ok


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("float32[8, 4096], 1", "x float32[8, 4096], n 1, dtype None"),
        ("torch.bfloat16[3], n=-2, dtype=half", "x bfloat16[3], n -2, dtype float16"),
        ("int8[()]", "x int8[], n 5, dtype None"),
        ("", "argument x is missing"),
        ("float32[3], m=1", "the op has no argument m; it has x, n, dtype"),
        ("float32[3], 1, None, 4", "it has 4 arguments; the op takes 3"),
        ("float33[3]", "float33 is no dtype; write a tensor as float32[8, 4096]"),
        ("float32[-1]", "float32[-1] is no argument; write a tensor as float32[8, 4096], a number"),
        ("float32[3", "it is not written as the arguments of a call"),
        ("f(x)", "f(x) is no argument"),
    ],
)
def test_examples_as_text(unique: str, text: str, expected: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, int n=5, ScalarType? dtype=None) -> ()")
    try:
        values = example_arguments.parse(text, op.info)
        example = [example_arguments.example_argument(value) for value in values]
        shown = example_arguments.as_text(example, op.info)
    except ValueError as error:
        shown = str(error)
    assert shown.startswith(expected)


STEPS = """
__global__ void partial_sums(const float* x, float* partial, long n) { partial[blockIdx.x] = x[0]; }
__global__ void finish(const float* partial, float* total, long n) { total[0] = partial[n - 1]; }
"""


def test_each_step_is_checked(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor total)", outputs=opaq.tensor([], dtype="float32"))
    op.cuda(
        source=STEPS,
        scratch={"partial": opaq.tensor("ceil_div(x.numel(), 1024)", dtype="float32")},
        steps=[
            opaq.step(
                entry="partial_sums",
                grid="partial.size(0)",
                block=1024,
                args="x, partial, x.numel()",
            ),
            opaq.step(entry="finish", block=256, args="partial, total, partial.size(0)"),
        ],
    )
    report = op.check(torch.empty(5000, device="meta"), arch="sm_90a")
    first, second = report.implementations
    assert report.ok and (first.step, second.step) == (1, 2)
    assert first.launch["grid"] == [5, 1, 1] and second.launch["block"] == [256, 1, 1]
    assert "cuda (cuda), step 2: finish(float const*, float*, long)" in repr(report)
    report = op.check(arch="sm_90a")  # the sizes of the scratch tensor are not known either
    assert report.ok
    assert report.implementations[0].unchecked == ["launch sizes: `partial.size(0)`"]
    assert [item.code[0]["bytes"] > 0 for item in report.implementations] == [True, True]
