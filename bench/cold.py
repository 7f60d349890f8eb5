"""Cold starts: import, the first compile of a small kernel beside NVRTC alone, start from the disk
cache, and a hundred kernels at once.

Each figure is of a fresh process. The driver's own cache, which NVRTC uses, is off.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from typing import Any

from . import measure, result
from .table import Progress

TITLE = "Cold starts"
KERNEL = """extern "C" __global__ void addmul(const float* a, const float* b, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i] * b[i] + a[i];
}"""
IMPORT = """
import time, torch
start = time.perf_counter(); import opaq; print((time.perf_counter() - start) * 1e3)
"""
OPAQ = f"""
import time, opaq
from opaq import _runtime
op = opaq.op("bench::addmul(Tensor a, Tensor b) -> Tensor", outputs=opaq.like("a"))
op.cuda(source={KERNEL!r}, entry="addmul", grid="ceil_div(a.numel(), 256)", block=256,
    args="a, b, out, a.numel()")
fake = ("float32", [4096], [1], "cuda:0", 4096)
start = time.perf_counter(); made = _runtime.compile("bench::addmul", [fake, fake],
    "sm_90a"); seconds = time.perf_counter() - start
assert made["from_cache"] == EXPECTED, made
print(seconds * 1e3)
"""
OPAQ_HEADERS = OPAQ.replace(
    repr(KERNEL), repr("#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n" + KERNEL)
)
MANY = """
import os, time, torch, opaq
from concurrent.futures import ThreadPoolExecutor
from opaq import _runtime
def declare(i):
    op = opaq.op(f"bench::addmul{i}(Tensor a, Tensor b) -> Tensor", outputs=opaq.like("a"))
    op.cuda(source=KERNEL + f"// {i}", entry="addmul",
        grid="ceil_div(a.numel(), 256)", block=256, args="a, b, out, a.numel()")
    return op.name
names = [declare(i) for i in range(COUNT)]
fake = ("float32", [4096], [1], "cuda:0", 4096)
start = time.perf_counter()
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(lambda name: _runtime.compile(name, [fake, fake], "sm_90a"), names))
print((time.perf_counter() - start) * 1e3)
"""
BARE = """
import ctypes, time
start = time.perf_counter()
nvrtc = ctypes.CDLL(PATH)
for i in range(COUNT):
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    source = (KERNEL + f"// {i}").encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"toy.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 2)(b"--gpu-architecture=sm_90a", b"-std=c++17")
    assert nvrtc.nvrtcCompileProgram(program, 2, options) == 0
    assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    image = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetCUBIN(program, image) == 0
print((time.perf_counter() - start) * 1e3)
"""


class Failed(Exception):
    """A script ended with an error."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernels", type=int, default=100, help="compiled at once; default: 100")
    parser.set_defaults(rounds=9)


def script(text: str, **environment: str) -> float:
    """Runs it in a process of its own; returns the milliseconds that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Failed(done.stderr.strip().splitlines()[-1])
    return float(done.stdout)


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    from opaq import _runtime

    nvrtc = _runtime.doctor()["nvrtc"]

    def compare(case: str, to: str, ways: dict[str, Any]) -> None:
        turns = measure.in_turns(ways, arguments.rounds, progress.of(case))
        progress.record(*result.of_rounds(case, "time", "ms", turns, to=to))

    compare("import, after torch", "", {"opaq": functools.partial(script, IMPORT)})
    if not nvrtc["found"]:
        why = nvrtc["why_not"]
        for case in ("first compile", "from the disk cache", f"{arguments.kernels} kernels"):
            progress.record(result.without_value(case, "opaq", "time", "ms", "absent", why))
        return {"rounds": arguments.rounds}
    cold = {"OPAQ_CACHE_SIZE": "0", "CUDA_CACHE_DISABLE": "1"}

    def of(count: int, text: str) -> str:
        return f"KERNEL, COUNT, PATH = {KERNEL!r}, {count}, {nvrtc['path']!r}\n{text}"

    first = OPAQ.replace("EXPECTED", "False")
    compare(
        "first compile",
        "bare NVRTC",
        {
            "bare NVRTC": lambda: script(of(1, BARE), **cold),
            "opaq": lambda: script(first, **cold),
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        cached = {}
        for name, text in {"opaq": OPAQ, "opaq, with headers": OPAQ_HEADERS}.items():
            script(text.replace("EXPECTED", "False"), OPAQ_CACHE_DIR=folder)
            cached[name] = functools.partial(
                script, text.replace("EXPECTED", "True"), OPAQ_CACHE_DIR=folder
            )
        compare("from the disk cache", "", cached)
    compare(
        f"{arguments.kernels} kernels",
        "bare NVRTC, one after another",
        {
            "bare NVRTC, one after another": lambda: script(of(arguments.kernels, BARE), **cold),
            "opaq, in threads": lambda: script(of(arguments.kernels, MANY), **cold),
        },
    )
    return {"rounds": arguments.rounds}
