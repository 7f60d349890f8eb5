"""Graphs that one process saves and another loads: packages (caching_precompile), artifacts of all
caches, torch.compiler.precompile. An op that has changed in between is compiled again, or its graph
is refused. Graphs that worker processes compile; with OPAQ_LIFE=long, those of every start method.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import forked
import pytest
import torch
from programs import LONG

# kernel, formula: numbers in the op's kernel and in the gradient of a Python function
PROGRAM = """
import pathlib, sys
import torch
from torch._dynamo.utils import counters
import opaq

doing, kind, backend, kernel, formula = sys.argv[1:]
saved = pathlib.Path(__file__).with_name("saved")
source = '''void f(const float* x, float* o, long n) {
  for (long i = 0; i < n; ++i) o[i] = x[i] * %s; }''' % kernel
scale = opaq.op("saved::scale(Tensor x) -> Tensor", outputs=opaq.like("x"))
scale.cpu(source=source, entry="f", args="x, out, x.numel()")
scale.backward(lambda ctx, grad: grad)


@opaq.custom_op("saved::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


double.register_fake(torch.empty_like)
factor = float(formula)
double.register_autograd(lambda ctx, grad: grad * factor)


def model(x):
    return torch.ops.saved.double(torch.ops.saved.scale(x + 1)).sin() * 3


def values(call):
    x = torch.ones(4, requires_grad=kind != "capture")
    y = call(x)
    if x.requires_grad:
        y.sum().backward()
    return y.detach(), x.grad


torch._dynamo.config.caching_precompile = kind == "package"
if kind == "capture":
    paths = {"artifact_path": str(saved) + ".py", "cache_path": str(saved) + ".cache"}
    if doing == "save":
        with torch.compiler.precompile.capture(model, **paths) as captured:
            values(captured)
        sys.exit()
    call = torch.compiler.precompile.load(*paths.values())
else:
    if doing == "load":
        torch.compiler.load_cache_artifacts(saved.read_bytes())
    call = torch.compile(model, backend=backend)
torch.testing.assert_close(values(call), values(model))
if kind == "package":
    torch._dynamo.precompile_context.PrecompileContext.save_to_dynamo_cache()
if doing == "save":
    saved.write_bytes(torch.compiler.save_cache_artifacts()[0])
hits = counters["aot_autograd"]["autograd_cache_hit"]
print("compiled" if not hits and counters["frames"]["total"] else "served")
"""


def run(
    folder: pathlib.Path, *arguments: str, text: str = PROGRAM, failing: bool = False
) -> subprocess.CompletedProcess[str]:
    program = folder / "program.py"
    program.write_text(text)
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "_".join(arguments))}
    done = forked.run(
        [sys.executable, program, *arguments],
        inductor=True,
        timeout=300,
        env=environment,
    )
    assert (done.returncode != 0) == failing, done.stderr[-4000:]
    return done


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "backend", "changed", "why"),
    [
        ("package", "inductor", "2 5", "saved::double has changed since this graph was compiled"),
        ("package", "opaq", "5 2", "saved::scale has changed since this graph was compiled"),
        ("artifacts", "inductor", "5 2", ""),
    ],
)
def test_a_changed_op_is_compiled_again(
    tmp_path: pathlib.Path, kind: str, backend: str, changed: str, why: str
) -> None:
    assert run(tmp_path, "save", kind, backend, "2", "2").stdout == "compiled\n"
    assert run(tmp_path, "load", kind, backend, "2", "2").stdout == "served\n"
    done = run(tmp_path, "load", kind, backend, *changed.split())
    assert done.stdout == "compiled\n" and why in done.stderr


@pytest.mark.long
@pytest.mark.skipif(
    not hasattr(torch.compiler, "precompile"), reason="torch.compiler.precompile is of torch 2.15"
)
def test_a_captured_graph_refuses_another_kernel(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "save", "capture", "inductor", "2", "2")
    assert run(tmp_path, "load", "capture", "inductor", "2", "2").stdout == "served\n"
    done = run(tmp_path, "load", "capture", "inductor", "5", "2", failing=True)
    assert "saved::scale has changed since this code was generated" in done.stderr
    assert "compile the model again" in done.stderr


WORKERS = """
import sys
import torch
import torch._inductor.config as config

if __name__ == "__main__":
    import opaq

    config.worker_start_method, config.compile_threads = sys.argv[1], 2
    op = opaq.op("workers::double(Tensor x) -> Tensor", outputs=opaq.like("x"))
    op.cpu(source="void f(const float* x, float* o, long n) {"
           "for (long i = 0; i < n; ++i) o[i] = x[i] * 2; }", entry="f", args="x, out, x.numel()")
    op(torch.ones(4))
    for backend in ("inductor", "opaq"):
        torch.compiler.reset()
        model = torch.compile(lambda x: op(op(x.sin()).cos() + 1) * 3, backend=backend)
        x = torch.ones(40)
        torch.testing.assert_close(model(x), ((x.sin() * 2).cos() + 1) * 6)
"""


@pytest.mark.long
@pytest.mark.parametrize("method", ["subprocess", "fork", "spawn"] if LONG else ["subprocess"])
def test_workers_compile(tmp_path: pathlib.Path, method: str) -> None:
    run(tmp_path, method, text=WORKERS)
