"""Compiled code is not reused after a change of something that affects its result: Python functions
of an op, its registrations, headers, files in Inductor's folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import forked
import pytest
import torch

import opaq

# Each kind is a small model whose gradient (or result) is a given number, which is in one part of
# the declaration.
PROGRAM = """
import contextlib, functools, json, sys
import torch
from torch._dynamo.utils import counters
import opaq
import helpers  # written beside this program: NUMBER, and scale(x)

number = float(sys.argv[1])
KINDS = {}
COPY = "void f(const float* x, float* o, long n) { for (long i = 0; i < n; ++i) o[i] = x[i]; }"
SCALE = '''void f(const float* x, float* o, long n) {
  for (long i = 0; i < n; ++i) o[i] = x[i] * %s; }'''


def kind(make):
    KINDS[make.__name__] = make
    return make


def copy_op(name, source=COPY):
    return opaq.op(f"stale::{name}(Tensor x) -> Tensor", outputs=opaq.like("x")).cpu(source=source,
        entry="f", args="x, out, x.numel()")


def copy_custom(name):
    made = opaq.custom_op(f"stale::{name}", copied, mutates_args=())
    made.register_fake(torch.empty_like)
    return made


def copied(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def nothing(ctx, inputs, output):
    pass


def keep_number(ctx, inputs, output):
    ctx.number = number


def by_kept(ctx, g):
    return g * ctx.number


@kind
def op_setup_context():
    op = copy_op("a")
    op.backward(by_kept, setup_context=keep_number)
    return op


@kind
def op_formula_captures():
    op = copy_op("b")
    k = number
    op.backward(lambda ctx, g: g * k, setup_context=nothing)
    return op


@kind
def op_formula_in_a_module():
    op = copy_op("c")
    op.backward(lambda ctx, g: helpers.scale(g), setup_context=nothing)
    return op


@kind
def op_formula_is_a_partial_of_a_method():
    class Formula:
        def __init__(self):
            self.number = number

        def run(self, k, ctx, g):
            return g * self.number * k

    op = copy_op("d")
    op.backward(functools.partial(Formula().run, 1.0), setup_context=nothing)
    return op


@kind
def op_formula_calls_an_op_by_name():
    copy_op("e_backward", SCALE % number)
    op = copy_op("e")
    op.backward(lambda ctx, g: torch.ops.stale.e_backward(g), setup_context=nothing)
    return op


@kind
def op_formula_calls_an_op_object():
    inner = copy_op("f_backward", SCALE % number)
    op = copy_op("f")
    op.backward(lambda ctx, g: inner(g), setup_context=nothing)
    return op


@kind
def op_named_backward():
    op = opaq.op("stale::g(Tensor x) -> (Tensor y)", outputs=opaq.like("x")).cpu(source=COPY,
        entry="f", args="x, y, x.numel()")
    back = opaq.op("stale::g_backward(Tensor grad_y) -> (Tensor grad_x)",
        outputs=opaq.like("grad_y"))
    op.backward("stale::g_backward")
    back.cpu(source=SCALE % number, entry="f",
        args="grad_y, grad_x, grad_y.numel()")  # later than it was named
    return op


@kind
def op_formula_by_torch_library():
    op = copy_op("h")
    torch.library.register_autograd("stale::h", lambda ctx, g: g * number, setup_context=nothing)
    return op


@kind
def custom_formula():
    op = copy_custom("m")
    op.register_autograd(lambda ctx, g: g * number)
    return op


@kind
def custom_setup_context():
    op = copy_custom("n")
    op.register_autograd(by_kept, setup_context=keep_number)
    return op


@kind
def custom_formula_calls_a_custom_op():
    inner = copy_custom("o_inner")
    inner.register_autograd(lambda ctx, g: g * number)
    op = copy_custom("o")
    op.register_autograd(lambda ctx, g: inner(g.detach().requires_grad_()) * 0 + number)
    return op


@kind
def custom_registered_by_name():
    op = copy_custom("p")
    torch.library.register_autograd("stale::p", lambda ctx, g: g * number)
    return op


@kind
def custom_fake():
    column_major = number != 2

    def relaid(x: torch.Tensor) -> torch.Tensor:
        return x.t().contiguous().t() if column_major else x.clone()

    op = opaq.custom_op("stale::q", relaid, mutates_args=())
    op.register_fake(lambda x: torch.empty_strided((2, 3), (1, 2) if column_major else (3, 1)))
    op.register_autograd(lambda ctx, g: g * 3)  # of an empty backward graph Inductor caches nothing
    return op, lambda y, x: {3: 2, 1: 5}[y.stride(0)]


@kind
def custom_kernel_for_a_device():
    op = copy_custom("r")
    op.register_autograd(lambda ctx, g: g * 3)  # of an empty backward graph Inductor caches nothing
    if number != 2:
        op.register_kernel("cpu")(lambda x: x * number)
    return op, lambda y, x: y[0, 0].item() + (number == 2)


results = {}
for name, make in KINDS.items():
    torch._dynamo.reset()
    counters.clear()
    if (made := make()) is None:
        continue
    op, read = made if isinstance(made, tuple) else (made, lambda y, x: x.grad[0, 0].item())
    x = torch.ones(2, 3, requires_grad=True)
    y = torch.compile(lambda x: op(x), fullgraph=True)(x)
    y.sum().backward()
    found = counters["aot_autograd"]
    results[name] = [read(y, x), found["autograd_cache_hit"], found["autograd_cache_miss"],
        found["autograd_cache_bypass"]]
print(json.dumps(results))
"""


def run(program: Path, *arguments: object, **environment: str) -> str:
    """Runs a program in a process of its own; returns the last line that it prints."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = forked.run(
        [sys.executable, program, *arguments],
        inductor=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_python_function_or_registration_is_served_stale(tmp_path: Path) -> None:
    program, cache = tmp_path / "program.py", str(tmp_path / "inductor")
    program.write_text(PROGRAM)

    def results(number: int) -> dict[str, list[float]]:
        (tmp_path / "helpers.py").write_text(
            f"NUMBER = {number}.0\n\ndef scale(x):\n    return x * NUMBER\n"
        )
        return json.loads(run(program, number, TORCHINDUCTOR_CACHE_DIR=cache))

    first, again, changed = results(2), results(2), results(5)
    for kind in first:
        assert (first[kind][0], again[kind][0], changed[kind][0]) == (2, 2, 5), kind
        assert again[kind][1:] == [1, 0, 0], f"{kind}: an unchanged program did not hit"
        assert changed[kind][1] == 0, kind


# ---- headers -------------------------------------------------------------------------------------

SOURCE = (
    '#include "factor.h"\nvoid f(const float* x, float* o, long n) { for (long i = 0; i < '
    "n; ++i) o[i] = x[i] * FACTOR; }"
)


def declare(name: str, folder: Path, **changes: object) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor x) -> Tensor", outputs=opaq.like("x"), **changes)
    return op.cpu(
        source=SOURCE,
        entry="f",
        args="x, out, x.numel()",
        include_dirs=[folder / "first", folder / "second"],
    )


def write(file: Path, factor: int) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#define FACTOR {factor}\n")
    time.sleep(0.01)


def test_a_header_edited_while_the_process_runs(unique: str, tmp_path: Path) -> None:
    write(tmp_path / "second/factor.h", 2)
    op, x = declare(unique, tmp_path), torch.ones(2)
    model = torch.compile(lambda x: op(x) + 0, fullgraph=True)
    assert (op(x)[0].item(), model(x)[0].item()) == (2, 2)
    write(tmp_path / "second/factor.h", 3)
    assert op(x)[0].item() == model(x)[0].item() == 2, (
        "what is loaded stays, everywhere, until something is compiled"
    )
    torch.compiler.reset()
    assert (model(x)[0].item(), op(x)[0].item()) == (3, 3)
    write(tmp_path / "first/factor.h", 4)  # shadows the other
    torch.compiler.reset()
    assert (model(x)[0].item(), op(x)[0].item()) == (4, 4)
    write(tmp_path / "first/factor.h", 5)
    again = declare(unique, tmp_path, replace=True)
    assert (again(x)[0].item(), torch.compile(lambda x: again(x))(x)[0].item()) == (5, 5)


def test_kernels_of_one_op_never_come_from_two_versions_of_a_header(
    unique: str, tmp_path: Path
) -> None:
    (tmp_path / "k.h").write_text("#define FACTOR 2\n")
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x")).cpu(
        source='#include "k.h"\ntemplate <class T> void f(const T* x, T* o, long n) { for '
        "(long i = 0; i < n; ++i) o[i] = x[i] * FACTOR; }",
        entry="f<{x.dtype}>",
        args="x, out, x.numel()",
        include_dirs=[tmp_path],
    )
    assert op(torch.ones(1)).item() == 2
    (tmp_path / "k.h").write_text("#define FACTOR 30\n")
    with pytest.raises(
        opaq.CompileError,
        match=r"has changed since this process first compiled "
        r"it.*torch.compiler.reset\(\).*replace=True",
    ):
        op(torch.ones(1, dtype=torch.float64))
    torch.compiler.reset()
    assert torch.compile(lambda x: op(x))(torch.ones(1, dtype=torch.float64)).item() == 30
    assert op(torch.ones(1)).item() == 30


def test_what_cannot_be_known_is_kept_in_no_cache(unique: str, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    (tmp_path / "factor.h").write_text("#define FACTOR 2\n")
    op = opaq.op(f"{unique}(Tensor x) -> Tensor", outputs=opaq.like("x")).cpu(
        source=f'#define NAME "{tmp_path}/factor.h"\n#include NAME\n' + SOURCE.split("\n", 1)[1],
        entry="f",
        args="x, out, x.numel()",
    )
    counters.clear()
    assert torch.compile(lambda x: op(x) + 0)(torch.ones(2))[0].item() == 2
    assert counters["inductor"]["fxgraph_cache_bypass"] == 1
    assert not counters["inductor"]["fxgraph_cache_miss"]


# ---- files in Inductor's folder ------------------------------------------------------------------

FILES = """
import sys, torch, opaq
op = opaq.op("stalefiles::scale(Tensor x) -> Tensor", outputs=opaq.like("x")).cpu(
    source='#include "factor.h"\\nvoid f(const float* x, float* o, long n) '
    '{ for (long i = 0; i < n; ++i) o[i] = x[i] * FACTOR; }',
    entry="f", args="x, out, x.numel()", include_dirs=[sys.argv[1]])
from torch._dynamo.utils import counters
y = torch.compile(lambda x: op(x), fullgraph=True,
    options={"cpp_wrapper": True})(torch.ones(1)).item()
print(y, counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_files_of_a_cpp_wrapper_heal_and_headers_count(tmp_path: Path) -> None:
    program, cache = tmp_path / "program.py", tmp_path / "inductor"
    program.write_text(FILES)
    (tmp_path / "factor.h").write_text("#define FACTOR 2\n")

    def result() -> str:
        return run(program, tmp_path, TORCHINDUCTOR_CACHE_DIR=str(cache))

    def file() -> Path:
        return next(cache.glob("opaq/*/scale_*.host"))

    assert (result(), result()) == ("2.0 0", "2.0 1")
    whole = file().read_bytes()
    file().write_bytes(whole[:1000])
    assert (result(), file().read_bytes() == whole) == ("2.0 0", True)
    path = file()
    path.unlink()
    path.mkdir()
    assert (result(), path.read_bytes() == whole) == ("2.0 0", True)
    (tmp_path / "factor.h").write_text("#define FACTOR 5\n")
    assert (result(), result()) == ("5.0 0", "5.0 1")


def test_code_is_written_where_no_whole_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opaq.lowering.activate()
    from opaq.lowering import cpp_files

    monkeypatch.setattr(cpp_files.inductor, "cache_dir", lambda: str(tmp_path))
    path, digest = cpp_files.write_code(b"code", "k", ".host")
    before = os.stat(path).st_ino
    assert cpp_files.write_code(b"code", "k", ".host") == (path, digest)
    assert os.stat(path).st_ino == before, "a whole file is left alone"
    for damage in (b"", b"cod", b"c0de"):
        Path(path).write_bytes(damage)
        with pytest.raises(
            OSError, match=r"mylib::k: the code .*_.*\.host is damaged .*; compile the model again"
        ):
            cpp_files.check_code(path, digest, "mylib::k")
        assert Path(cpp_files.write_code(b"code", "k", ".host")[0]).read_bytes() == b"code"
    cpp_files.check_code(path, digest, "mylib::k")
    os.unlink(path)
    with pytest.raises(OSError, match="cannot be read"):
        cpp_files.check_code(path, digest, "mylib::k")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cpp_files.inductor, "cache_dir", lambda: str(tmp_path / "file"))
    with pytest.raises(opaq.MissingError, match="set TORCHINDUCTOR_CACHE_DIR"):
        cpp_files.write_code(b"code", "k", ".host")
