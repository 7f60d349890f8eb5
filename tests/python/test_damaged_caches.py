"""Files in Inductor's cache folder that are damaged after they were written: a graph with opaque
ops never uses them, and they are written again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import forked

PROGRAM = """
import glob, os, sys
import torch, torch._functorch.config, torch._inductor.config, opaq
from torch._dynamo.utils import counters
from torch._inductor.codecache import PyCodeCache

torch._functorch.config.enable_autograd_cache = True
torch._inductor.config.compile_threads = 1

op = opaq.op("damaged_caches::scale(Tensor x, float by) -> Tensor", outputs=opaq.like("x"))
body = "{ for (long i = 0; i < n; ++i) y[i] = x[i] * by; }"
source = "void f(const float* x, float by, float* y, long n) " + body
op.cpu(source=source, entry="f", args="x, by, out, x.numel()")
folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]

def compiled():
    torch.compiler.reset(); PyCodeCache.cache_clear(); counters.clear()
    value = torch.compile(lambda x: op(x, 1.5), fullgraph=True)(torch.ones(1)).item()
    return value, counters[
        "inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"]

def files(pattern):
    return [path for path in glob.glob(f"{folder}/{pattern}",
        recursive=True) if os.path.isfile(path)]

def contents(paths):
    return [open(path, "rb").read() for path in paths]

assert compiled() == (1.5, 0, 0) and compiled() == (1.5, 1, 1)
(wrapper,), (graph,), (traced,) = files("*/*.py"), files("fxgraph/**"), files("aotautograd/**")
whole = dict(zip([wrapper, graph, traced], contents([wrapper, graph, traced])))
damages = {
    "another value": lambda content: content.replace(b"1.5", b"7.5"),
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    **{f"flipped at {part}/9": lambda content,
        at=part: bytes(byte ^ (i == len(content) * at // 9) for i,
            byte in enumerate(content)) for part in range(9)},
}
expected = {wrapper: (1.5, 1, 1), graph: (1.5, 0, 0), traced: (1.5, 1, 0)}
for path in expected:
    for what, damage in damages.items():
        for other, content in whole.items(): open(other, "wb").write(content)
        for other in (set(files("fxgraph/**") + files("aotautograd/**")) - set(whole)): os.unlink(
            other)  # compiled anew by the last round
        damaged = damage(whole[path])
        if path == graph: os.unlink(wrapper)  # or its text would not be taken from the graph
        if damaged == whole[path]: continue  # in AOTAutogradCache, which holds no code
        open(path, "wb").write(damaged)
        found = compiled()
        if found != expected[path]: print(what, path, found)
        if path == wrapper and contents([path]) != [whole[path]]: print(what, path, "stays")
        if path != wrapper and os.path.exists(path) and contents([path]) == [damaged]: print(what,
            path, "stays")

# Code that is written anew, and finds a damaged file of its name.
open(wrapper, "wb").write(damages["another value"](whole[wrapper]))
assert PyCodeCache.write(
    whole[wrapper].decode())[1] == wrapper and contents([wrapper]) == [whole[wrapper]]
print("healed")
"""


def test_pickles_and_wrappers_heal(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = forked.run([sys.executable, "-c", PROGRAM], timeout=300, env=environment, inductor=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "healed\n"
