"""Inductor's compile caches across processes: an unchanged kernel hits, a changed one misses and is
never served stale.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest

# Twenty seconds and more each, and last in the part `oldest`.
pytestmark = pytest.mark.long

PROGRAM = """
import json, sys
import torch
from torch._dynamo.utils import counters
import opaq
from opaq import lowering

factor, strict, kind = sys.argv[1], sys.argv[2] == "strict", sys.argv[3]
SOURCE = '''void scale(const float* x, float* out, long n) {{
  for (long i = 0; i < n; ++i) out[i] = x[i] * {}; }}'''


def declare(name, factor):
    op = opaq.op(f"cachetest::{name}(Tensor x) -> Tensor", outputs=opaq.like("x"))
    return op.cpu(source=SOURCE.format(factor), entry="scale", args="x, out, x.numel()")


if kind == "backward":
    declare("scale_backward", factor)
    op = declare("scale", 2)
    op.backward(lambda ctx, grad: torch.ops.cachetest.scale_backward(grad),
        setup_context=lambda ctx, inputs, output: None)
elif kind == "mutation":
    op = opaq.op("cachetest::bump(Tensor(a!) x) -> ()")
    body = "{ for (long i = 0; i < n; ++i) x[i] *= %s; }" % factor
    op.cpu(source="void bump(float* x, long n) " + body, entry="bump", args="x, x.numel()")
else:
    op = declare("scale", factor)
if kind == "another opaq":
    from opaq.lowering import cache_key
    cache_key.own_digest = lambda: "another"

x = torch.ones(3, requires_grad=kind == "backward")
with lowering.options.use(strict=strict):
    if kind == "mutation":
        def model(x):
            y = x + 0
            op(y)
            return y
        result = torch.compile(model, fullgraph=True)(x)[0].item()
    else:
        result = torch.compile(lambda x: op(x), fullgraph=True)(x)
        if kind == "backward":
            result.sum().backward()
            result = x.grad
        result = result[0].item()
inductor, autograd = counters["inductor"], counters["aot_autograd"]
print(json.dumps({
    "result": result,
    "fx_hits": inductor["fxgraph_cache_hit"], "fx_misses": inductor["fxgraph_cache_miss"],
    "autograd_hits": autograd["autograd_cache_hit"],
    "autograd_misses": autograd["autograd_cache_miss"],
    "nodes": len(lowering.nodes()),
}))
"""


@pytest.fixture
def process(tmp_path: Path):
    """Runs PROGRAM in a process of its own; all share one cache folder."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(factor: int, strict: str = "", kind: str = "forward") -> dict:
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        done = forked.run(
            [sys.executable, program, factor, strict, kind],
            inductor=True,
            env=environment,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize("kind", ["forward", "mutation"])
def test_unchanged_hits_and_changed_misses(process, kind: str) -> None:
    first, again, changed = process(2, kind=kind), process(2, kind=kind), process(3, kind=kind)
    assert (first["result"], first["fx_misses"], first["autograd_misses"]) == (2, 1, 1)
    assert (again["result"], again["fx_misses"], again["autograd_hits"], again["nodes"]) == (
        2,
        0,
        1,
        1,
    )
    assert (changed["result"], changed["fx_hits"], changed["autograd_hits"]) == (3, 0, 0)


def test_a_changed_backward_kernel_misses_too(process) -> None:
    first, again, changed = (process(factor, kind="backward") for factor in (5, 5, 7))
    assert first["result"] == again["result"] == 5
    assert again["autograd_hits"] == 1
    assert changed["result"] == 7
    assert changed["fx_misses"] >= 1


def test_strict_is_part_of_the_key(process) -> None:
    process(2)
    assert process(2, strict="strict")["fx_hits"] == 0
    assert process(2, strict="strict")["autograd_hits"] == 1


def test_what_another_opaq_wrote_is_not_served(process) -> None:
    process(2)
    assert process(2, kind="another opaq")["fx_hits"] == 0
    assert process(2)["autograd_hits"] == 1


LOOK_ALIKE = """
import torch
from torch._inductor.codecache import FxGraphCache
import opaq

op = opaq.op("cachetest::aligned(Tensor x) -> Tensor", outputs=opaq.like("x"))
copy = "void k(const float* x, float* y, long n) { for (long i = 0; i < n; ++i) y[i] = x[i]; }"
op.cpu(source=copy, entry="k", args="x, out, x.numel()", requires="aligned(x, 16)")
add = opaq.op("cachetest::add(Tensor(a!) x, Tensor y) -> ()")
body = "{ for (long i = 0; i < n; ++i) x[i] += y[n - 1 - i]; }"
reversed_sum = "void k(float* x, const float* y, long n) " + body
add.cpu(source=reversed_sum, entry="k", args="x, y, x.numel()")


def run(program, *inputs):
    try:
        return program(*inputs).tolist()
    except opaq.LaunchError:
        return "refused"


def with_add(written, read):
    add(written, read)
    return written


for programs in (
    [lambda t: op(t[1:]), lambda t: op(t[1:] * 1), lambda t: op(t[1:] + 0)],
    [lambda t: with_add((z := t + 1), z), lambda t: with_add((z := t + 1), z * 1),
        lambda t: with_add((z := t + 1) + 0, z)],
    [lambda t: with_add(t, t), lambda t: with_add(t, t + 0), lambda t: with_add(t + 0, t),
        lambda t: with_add(t + 0, t * 1)],
):
    for order in programs, programs[::-1]:
        FxGraphCache.clear()
        for program in order:
            torch._dynamo.reset()
            t = torch.arange(16.0)
            got, want = run(torch.compile(program, fullgraph=True), t.clone()), run(program,
                t.clone())
            assert got == want, (programs.index(program), got, want)
"""


def test_programs_that_look_alike_after_inductor_dropped_their_copies_are_told_apart(
    tmp_path: Path,
) -> None:
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "OPAQ_CACHE_DIR": str(tmp_path / "opaq"),
    }
    subprocess.run([sys.executable, "-c", LOOK_ALIKE], env=environment, check=True, timeout=600)
