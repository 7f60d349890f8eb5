"""Choice by measurement: what is measured, kept and used. Times are not asserted: slow
implementations do their work a hundred times.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

import opaq
from opaq import _runtime, package_contents, tuning_store
from opaq.options import split

SOURCE = """
#include <cstdint>
template <int TIMES, int BY>
void scale(const float* x, int64_t n, float* y) {
  for (int t = 0; t < TIMES; ++t)
    for (int64_t i = 0; i < n; ++i) {
      volatile float value = x[i];
      y[i] = value * BY;
    }
}
"""


@pytest.fixture(autouse=True)
def _store_of_its_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests measure ops of the same names."""
    settings = {**_runtime.settings(), "cache_dir": str(tmp_path)}
    monkeypatch.setattr(_runtime, "settings", lambda: settings)


def scale_op(name: str, **more: Any) -> opaq.Op:
    """The first implementation is slow; one is wrong."""
    op = opaq.op(f"{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), **more)
    for label, times, by, priority in (("slow", 100, 2, 1), ("fast", 1, 2, 0), ("wrong", 1, 3, 0)):
        op.cpu(
            source=SOURCE,
            entry=f"scale<{{{times}}}, {{{by}}}>",
            args="x, x.numel(), y",
            requires="x.dtype == float32",
            priority=priority,
            name=f"cpu:{label}",
        )
    return op


def chosen(op: opaq.Op, *args: Any) -> str:
    lines = [line for line in op.explain(*args).splitlines() if ": chosen" in line]
    return lines[0].partition(": chosen")[0]


def test_the_fastest_of_those_that_agree_is_kept_for_equal_calls(unique: str) -> None:
    op = scale_op(unique)
    x, other = torch.randn(40, 50), torch.randn(3)
    assert chosen(op, x) == "cpu:slow"
    found = opaq.tune(op, x)
    assert found.fastest == "cpu:fast" and found.speedup > 2 and not found.stored
    assert found.problem == "x float32[40x50]"
    assert found.out["cpu:wrong"].startswith("its results differ: Tensor-likes are not close!")
    assert "<- chosen" in str(found)
    assert chosen(op, x) == "cpu:fast" and torch.equal(op(x), x * 2)
    assert chosen(op, other) == "cpu:slow"
    again = opaq.tune(op, torch.randn(40, 50))
    assert again.stored and again.fastest == "cpu:fast" and again.us == found.us
    assert opaq.tune(op, other, search=False).us == {}


def test_defaults_and_keyword_arguments_are_part_of_the_call(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor x, int n=3, *, bool many=False) -> (Tensor y)", outputs=opaq.like("x")
    )
    source = SOURCE.replace("int64_t n,", "int64_t n, int64_t, bool,")
    for label, times in (("slow", 100), ("fast", 1)):
        op.cpu(
            source=source,
            entry=f"scale<{{{times}}}, {{2}}>",
            args="x, x.numel(), n, many, y",
            name=f"cpu:{label}",
        )
    x = torch.randn(40, 50)
    assert opaq.tune(op, x).problem == "x float32[40x50], n 3, many False"
    found = opaq.tune(op, x, many=True)
    assert found.problem.endswith("many True") and found.fastest == "cpu:fast"


def test_what_is_stored_serves_another_process_and_is_a_miss_if_damaged(unique: str) -> None:
    op = scale_op(unique)
    x = torch.randn(40, 50)
    opaq.tune(op, x)
    path = pathlib.Path(tuning_store.Store(op.name, op.info["hash"], _runtime.cuda_driver()).path)
    assert path.parent.name == "tune" and path.stat().st_mode & 0o077 == 0
    kept = path.read_text()
    _runtime.set_fastest(op.name, {})  # as in a new process
    assert chosen(op, x) == "cpu:slow"
    assert opaq.tune(op, x, search=False).fastest == "cpu:fast"
    assert chosen(op, x) == "cpu:fast"
    content = json.loads(kept)
    (choice,) = content["choices"].values()
    unknown = {"f": {**choice, "fastest": "cpu:gone"}}
    for damaged in (
        kept[:-20],
        "[]",
        '{"choices": 3}',
        kept.replace(op.info["hash"], "0" * 64),
        kept.replace('"device": "', '"device": "another '),
        json.dumps({**content, "choices": dict.fromkeys(content["choices"], 5)}),
        json.dumps({**content, "choices": dict.fromkeys(content["choices"], unknown["f"])}),
        json.dumps(
            {**content, "choices": dict.fromkeys(content["choices"], {**choice, "us": ["a"]})}
        ),
    ):
        path.write_text(damaged)
        assert opaq.tune(op, x, search=False).us == {}, damaged


def served(op: opaq.Op) -> set[str]:
    """The implementations in graphs that are alive."""
    return {node["implementation"] for node in _runtime.node_stats() if node["op"] == op.name}


@pytest.mark.parametrize("mode", ["off", "stored", "search"])
def test_graphs(unique: str, mode: str) -> None:
    op = scale_op(unique)
    x = torch.randn(40, 50)
    if mode == "stored":
        opaq.tune(op, x)
        _runtime.set_fastest(op.name, {})
    compiled = torch.compile(lambda x: op(x) + 1, backend="opaq", options={"tune": mode})
    assert torch.equal(compiled(x), x * 2 + 1)
    assert served(op) == {"cpu:slow" if mode == "off" else "cpu:fast"}
    if mode != "off":
        assert "times as fast as cpu:slow" in str(opaq.report())


CROSSING = """
#include <cstdint>
template <bool SMALL>
void scale(const float* x, int64_t n, float* y) {
  const int times = SMALL == (n < 2000 || n > 12000) ? 1 : 100;
  for (int t = 0; t < times; ++t)
    for (int64_t i = 0; i < n; ++i) {
      volatile float value = x[i];
      y[i] = value * 2;
    }
}
"""


def crossing_op(name: str) -> opaq.Op:
    """Of its implementations one is fast for few elements and for many, and one between."""
    op = opaq.op(f"{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    for label, small in (("ends", "true"), ("middle", "false")):
        op.cpu(
            source=CROSSING, entry=f"scale<{small}>", args="x, x.numel(), y", name=f"cpu:{label}"
        )
    return op


@pytest.mark.parametrize("mode", ["stored", "search"])
def test_launches_choose_by_ranges_of_an_unknown_size(unique: str, mode: str) -> None:
    op = crossing_op(unique)
    if mode == "stored":
        for rows in (5, 25, 100, 400):
            opaq.tune(op, torch.randn(rows, 50))
        _runtime.set_fastest(op.name, {})
    compiled = torch.compile(lambda x: op(x) + 1, backend="opaq", options={"tune": mode})
    for rows, expected in ((10, "ends"), (32, "ends"), (51, "middle"), (500, "ends")):
        x = torch.randn(rows, 50)
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.equal(compiled(x), x * 2 + 1)
        assert served(op) == {f"cpu:{expected}"}, rows
    (row,) = [row for row in opaq.report().nodes if row.op == op.name]
    low, high = (50, 200) if mode == "stored" else (32, 128)
    assert row.reason == (
        f"measured by x.size(0): cpu:ends up to {low}, cpu:middle up to {high}, cpu:ends beyond"
    )


def test_ranges_in_c_wrappers_and_packages(unique: str, tmp_path: pathlib.Path) -> None:
    op = crossing_op(unique)
    for rows in (25, 100, 400):
        opaq.tune(op, torch.randn(2 * rows, 25))
    batch = torch.export.Dim("batch", min=2, max=1000)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return op(torch.cat([x, x])) + 1

    x = torch.randn(30, 25)
    options = {"tune": "stored", "cpp_wrapper": True}
    compiled = torch.compile(Model(), backend="opaq", options=options)
    for rows in (30, 50, 51, 200, 201):
        x = torch.randn(rows, 25)
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.equal(compiled(x), torch.cat([x, x]) * 2 + 1)
    (node,) = [node for node in _runtime.wrapper_nodes() if node["op"] == op.name]
    assert node["served"] == {"cpu:ends": 3, "cpu:middle": 2} and node["calls"] == 5
    program = torch.export.export(Model(), (x,), dynamic_shapes={"x": {0: batch}})
    path = opaq.package(program, str(tmp_path / "model.pt2"), tune="stored")
    assert "x.size(0) <= 100" in str(package_contents.read(path))
    loaded = torch._inductor.aoti_load_package(path)
    for rows in (2, 200):
        x = torch.randn(rows, 25)
        assert torch.equal(loaded(x), torch.cat([x, x]) * 2 + 1)
    with pytest.raises(opaq.DeclarationError, match='tune: got "?\'?fast.*expected one of "off"'):
        opaq.package(program, path, tune="fast")


def test_numbers_that_are_not_known_before_the_call_are_not_measured(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x, SymInt[] sizes) -> (Tensor y)", outputs=opaq.like("x"))
    source = SOURCE.replace("int64_t n,", "int64_t n, int64_t,")
    op.cpu(source=source, entry="scale<{1}, {2}>", args="x, x.numel(), len(sizes), y")
    compiled = torch.compile(
        lambda x, n: op(x, [n, n + 1]), backend="opaq", dynamic=True, options={"tune": "search"}
    )
    x = torch.randn(4)
    assert torch.equal(compiled(x, 7), 2 * x)


def test_a_choice_is_part_of_the_compile_cache_key(unique: str) -> None:
    op = scale_op(unique)
    x = torch.randn(40, 50)

    def compiled() -> Any:
        torch.compiler.reset()
        function = torch.compile(lambda x: op(x) + 1, backend="opaq", options={"tune": "stored"})
        function(x)
        return function

    before = compiled()
    assert served(op) == {"cpu:slow"}
    opaq.tune(op, x)
    after = compiled()
    assert served(op) == {"cpu:slow", "cpu:fast"}
    assert torch.equal(before(x), after(x))


def test_a_preference_comes_before_what_was_measured(unique: str) -> None:
    op = scale_op(unique)
    x = torch.randn(40, 50)
    opaq.tune(op, x)
    compiled = torch.compile(lambda x: op(x) + 1, backend="opaq", options={"tune": "stored"})
    with opaq.prefer(op.name, ["cpu:wrong", "cpu"]):
        assert chosen(op, x) == "cpu:wrong" and torch.equal(op(x), x * 3)
        assert torch.equal(compiled(x), x * 3 + 1)
        with opaq.prefer(op, "cpu:slow"):
            assert chosen(op, x) == "cpu:slow"
        assert chosen(op, x) == "cpu:wrong"
    assert chosen(op, x) == "cpu:fast"
    assert torch.equal(compiled(x), x * 2 + 1)
    refused = pytest.raises(opaq.DeclarationError, match="got 'cuda' .* implementations are cpu:sl")
    with refused, opaq.prefer(op, ["cuda"]):
        pass


@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}], ids=str)
def test_an_option_prefers_implementations(unique: str, options: dict[str, Any]) -> None:
    op = scale_op(unique)
    x = torch.randn(40, 50)
    opaq.tune(op, x)
    given = {**options, "tune": "stored", "prefer": [f"{op.name} = cpu:wrong, cpu"]}
    compiled = torch.compile(lambda x: op(x) + 1, backend="opaq", options=given)
    assert torch.equal(compiled(x), x * 3 + 1)
    assert "preferred by an option" in str(opaq.report())
    for wrong, message in (
        (op.name, 'expected an op and its implementations, "mylib::op=cublaslt,cuda"'),
        ("a::b=c", "no op is named 'a::b'"),
        (f"{op.name}=cuda", "names: got 'cuda'.* implementations are cpu:slow"),
    ):
        with pytest.raises(opaq.DeclarationError, match=message):
            split({"prefer": [wrong]}, [])


def test_values_to_choose_among_are_implementations(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    op.cuda(
        source="template <int B> __global__ void f(const float* x, float* y, int n) {}",
        entry="f<{BLOCK}>",
        grid="ceil_div(x.numel(), BLOCK * VEC)",
        block="BLOCK",
        args="x, y, x.numel()",
        requires="x.numel() % VEC == 0",
        tune={"BLOCK": [128, 256], "VEC": [1, 4]},
    )
    names = [each["name"] for each in op.info["implementations"]]
    assert names == [f"cuda:BLOCK={b},VEC={v}" for b in (128, 256) for v in (1, 4)]
    plans = [
        opaq._runtime.compile(op.name, [("float32", [1024], [1], "cuda:0", 256)], "sm_90a", name)
        for name in names[::3]
    ]
    assert [plan["entry"] for plan in plans] == ["f<128>", "f<256>"]


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (5, r"tune: got 5 \(int\); expected integers by name"),
        ({"a b": [1]}, "expected integers by name"),
        ({"BLOCK": []}, r"tune\['BLOCK'\]: got \[\].*; expected a list of integers"),
        ({"BLOCK": ["x"]}, "expected a list of integers"),
        ({"BLOCK": list(range(200))}, "at most 128 combinations, not 200"),
        ({"WARPS": [1]}, "no expression uses 'WARPS'"),
    ],
)
def test_wrong_values_are_refused(unique: str, tune: Any, message: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    with pytest.raises(opaq.DeclarationError, match=message):
        op.cuda(source="", entry="f", grid=1, block="BLOCK + 1", args="x, y", tune=tune)


def test_what_cannot_be_measured_is_refused(unique: str) -> None:
    op = scale_op(unique)
    with pytest.raises(opaq.LaunchError, match="nothing to tune: no implementation that is launc"):
        opaq.tune(op, torch.randn(3, dtype=torch.float64))
    other = opaq.op(f"{unique}_r(Tensor x) -> Tensor", outputs=opaq.like("x"), effects="random")
    with pytest.raises(opaq.LaunchError, match="effects='random' cannot be tuned"):
        opaq.tune(other, torch.randn(3))
