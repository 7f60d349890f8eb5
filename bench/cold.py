"""Cold starts in fresh processes: import, the first compile of a small kernel compared with NVRTC
alone, and the same kernel from the disk cache, with and without headers.

    python bench/cold.py                (needs NVRTC and CUDA's headers; no GPU)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from common import save

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
BARE = f"""
import ctypes, time
start = time.perf_counter()
nvrtc = ctypes.CDLL(PATH)
program, size = ctypes.c_void_p(), ctypes.c_size_t()
assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), {KERNEL.encode()!r}, b"toy.cu", 0, None,
    None) == 0
options = (ctypes.c_char_p * 2)(b"--gpu-architecture=sm_90a", b"-std=c++17")
assert nvrtc.nvrtcCompileProgram(program, 2, options) == 0
assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
image = ctypes.create_string_buffer(size.value)
assert nvrtc.nvrtcGetCUBIN(program, image) == 0
print((time.perf_counter() - start) * 1e3)
"""


def run(script: str, **environment: str) -> float:
    """Runs a script in a process of its own; returns the milliseconds that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    return float(done.stdout)


def main() -> None:
    from opaq import _runtime

    nvrtc = _runtime.doctor()["nvrtc"]
    if not nvrtc["found"]:
        sys.exit(f"bench/cold.py needs NVRTC: {nvrtc['why_not']}")
    rounds = 9
    with tempfile.TemporaryDirectory() as folder:
        cold, bare, cached, cached_headers, imports = [], [], [], [], []
        for _ in range(
            rounds
            # in turn, so that changes of the machine's speed affect all alike; without the
            # driver's cache, which NVRTC uses
        ):
            cold.append(
                run(OPAQ.replace("EXPECTED", "False"), OPAQ_CACHE_SIZE="0", CUDA_CACHE_DISABLE="1")
            )
            bare.append(run(BARE.replace("PATH", repr(nvrtc["path"])), CUDA_CACHE_DISABLE="1"))
            imports.append(run(IMPORT))
        for script in (OPAQ, OPAQ_HEADERS):
            run(script.replace("EXPECTED", "False"), OPAQ_CACHE_DIR=folder)
        for _ in range(rounds):
            cached.append(run(OPAQ.replace("EXPECTED", "True"), OPAQ_CACHE_DIR=folder))
            cached_headers.append(
                run(OPAQ_HEADERS.replace("EXPECTED", "True"), OPAQ_CACHE_DIR=folder)
            )
    medians = {
        name: round(statistics.median(times), 3)
        for name, times in (
            ("import_ms", imports),
            ("first_compile_ms", cold),
            ("bare_nvrtc_ms", bare),
            ("disk_cache_ms", cached),
            ("disk_cache_with_headers_ms", cached_headers),
        )
    }
    save(
        "cold",
        {
            **medians,
            "first_compile_over_bare_nvrtc": round(
                medians["first_compile_ms"] / medians["bare_nvrtc_ms"], 3
            ),
            "rounds": rounds,
        },
        what=__doc__,
    )


if __name__ == "__main__":
    main()
