"""The life of a notebook: cells that declare an op are run again, unchanged, mended or edited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import opaq
from opaq import _runtime

needs_nvrtc = pytest.mark.skipif(
    not _runtime.doctor()["nvrtc"]["found"], reason="NVRTC is not installed"
)
X = torch.ones(3)


def source(times: object, include: str = "") -> str:
    return (
        f"{include}\nvoid f(const float* x, float* y, long n) "
        f"{{ for (long i = 0; i < n; ++i) y[i] = x[i] * {times}; }}"
    )


def cell(name: str, code: object, replace: bool = False, **changes: object) -> opaq.Op:
    """What a notebook's cell holds."""
    op = opaq.op(f"{name}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), replace=replace)
    rule = {"source": code, "entry": "f", "args": "x, y, x.numel()"}
    return op.cpu(**(rule | changes))


def values(op: opaq.Op, compiled: object, overload: object) -> list[float]:
    """The first element of a call in each form."""
    return [float(call(X)[0]) for call in (op, compiled, overload)]


def nodes(op: opaq.Op) -> list[dict[str, object]]:
    return [node for node in _runtime.node_stats() if node["op"] == op.name]


# ---- a source that never compiled ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"source": source("no_such_name")}, "no_such_name"),
        ({"args": "x, x.numel(), y"}, "argument 2 `x.numel[(][)]` is int"),
        ({"entry": "g"}, "g"),
    ],
)
def test_it_is_mended_with_no_flag(unique: str, wrong: dict[str, object], message: str) -> None:
    op = cell(unique, source(2), **wrong)
    compiled = torch.compile(lambda x: op(x) + 0)
    for call in (op, op, compiled):
        with pytest.raises(Exception, match=message):
            call(X)
    assert cell(unique, source(3)) is op
    assert op(X).tolist() == compiled(X).tolist() == [3, 3, 3]
    assert opaq.report().implementations  # nothing of the broken one is left to be asked


@needs_nvrtc
def test_it_is_mended_after_a_check(unique: str) -> None:
    def cuda_cell(body: str) -> opaq.Op:
        op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
        kernel = f"__global__ void k(const float* x, float* y) {{ {body} }}"
        return op.cuda(source=kernel, entry="k", args="x, y")

    for body in ("y[0] = x[0]", "y[0] = z[0];"):  # wrong twice
        assert not cuda_cell(body).check(arch=["sm_80", "sm_90a"]).ok
    assert cuda_cell("y[0] = x[0];").check(arch=["sm_80", "sm_90a"]).ok


def test_one_that_was_not_tried_is_not_replaced(unique: str) -> None:
    """Two modules that declare one name: nothing was compiled yet, and the second is refused."""
    cell(unique, source("broken"))
    with pytest.raises(opaq.DeclarationError, match="is already declared, and differs"):
        cell(unique, source(2))


def test_one_that_has_compiled_is_not_replaced(unique: str) -> None:
    op = cell(unique, source(2))
    assert op(X)[0] == 2
    with pytest.raises(opaq.DeclarationError, match=r"declare the op anew with .*replace=True"):
        cell(unique, source(3))
    assert op(X)[0] == 2


# ---- edited files --------------------------------------------------------------------------------


def test_an_edited_file_is_taken_when_the_cell_is_run_again(unique: str, tmp_path: Path) -> None:
    (tmp_path / "k.cpp").write_text(source(2))
    op = cell(unique, opaq.file(tmp_path / "k.cpp"))
    compiled = torch.compile(lambda x: op(x) + 0)
    namespace, name = unique.split("::")
    overload = getattr(getattr(torch.ops, namespace), name)
    assert values(op, compiled, overload) == [2, 2, 2]
    (tmp_path / "k.cpp").write_text(source(3))
    assert values(op, compiled, overload) == [2, 2, 2]  # a declaration reads the file
    assert cell(unique, opaq.file(tmp_path / "k.cpp")) is op
    assert values(op, compiled, overload) == [3, 3, 3]


def test_a_file_edited_with_its_declaration_is_refused(unique: str, tmp_path: Path) -> None:
    (tmp_path / "k.cpp").write_text(source(2))
    op = cell(unique, opaq.file(tmp_path / "k.cpp"))
    assert op(X)[0] == 2
    (tmp_path / "k.cpp").write_text(source(3))
    with pytest.raises(opaq.DeclarationError, match="requires: '' before, 'x.dim"):
        cell(unique, opaq.file(tmp_path / "k.cpp"), requires="x.dim() == 1")
    (tmp_path / "other.cpp").write_text(source(3))
    with pytest.raises(opaq.DeclarationError, match=r"file: '.*k.cpp' before, '.*other.cpp' now"):
        cell(unique, opaq.file(tmp_path / "other.cpp"))


@pytest.mark.parametrize("from_file", [False, True])
def test_an_edited_header_is_taken_when_the_cell_is_run_again(
    unique: str, tmp_path: Path, from_file: bool
) -> None:
    (tmp_path / "times.h").write_text("#define TIMES 2\n")
    code: object = source("TIMES", '#include "times.h"')
    if from_file:
        (tmp_path / "k.cpp").write_text(str(code))
        code = opaq.file(tmp_path / "k.cpp")
    op = cell(unique, code, include_dirs=[tmp_path])
    compiled = torch.compile(lambda x: op(x) + 0)
    assert op(X)[0] == compiled(X)[0] == 2
    (tmp_path / "times.h").write_text("#define TIMES 3\n")
    cell(unique, code, include_dirs=[tmp_path])
    assert op(X)[0] == compiled(X)[0] == 3


# ---- a cell that is run again --------------------------------------------------------------------


def test_an_unchanged_cell_changes_nothing(unique: str) -> None:
    op = cell(unique, source(2))
    compiled = torch.compile(lambda x: op(x) + 0)
    compiled(X)
    (node,) = nodes(op)
    assert node["calls"] == 1
    assert cell(unique, source(2)) is op
    compiled(X)
    assert [node["calls"] for node in nodes(op)] == [2]  # the graph was not compiled again


def test_handles_and_compiled_code_follow_a_replacement(unique: str) -> None:
    old = cell(unique, source(2))

    def model(x: torch.Tensor) -> torch.Tensor:
        return old(x) + 0

    compiled = torch.compile(model)
    namespace, name = unique.split("::")
    overload = getattr(getattr(torch.ops, namespace), name)
    assert values(old, compiled, overload) == [2, 2, 2]
    for times in (3, 4):
        new = cell(unique, source(times), replace=True)
        assert new is old
        assert values(old, compiled, overload) == [times] * 3
        assert old.explain(X) == "cpu: chosen"


def test_a_changed_schema_is_refused_with_what_to_do(unique: str) -> None:
    cell(unique, source(2))
    for replace in (False, True):
        with pytest.raises(opaq.DeclarationError, match="choose another name or start the process"):
            opaq.op(
                f"{unique}(Tensor x, int n) -> (Tensor y)", outputs=opaq.like("x"), replace=replace
            )


def test_a_python_op_is_declared_again(unique: str) -> None:
    def cell(times: int) -> object:
        @opaq.custom_op(unique, mutates_args=())
        def scale(x: torch.Tensor) -> torch.Tensor:
            return x * times

        scale.register_fake(torch.empty_like)
        return scale

    old = cell(2)
    compiled = torch.compile(lambda x: old(x) + 0)
    assert old(X)[0] == compiled(X)[0] == 2
    new = cell(3)
    assert old(X)[0] == new(X)[0] == torch.compile(lambda x: new(x) + 0)(X)[0] == 3
    assert compiled(X)[0] == 3
