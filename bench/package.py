"""What opaque ops add to an AOTInductor package (time and bytes per op), and to the C++ compiler's
time for a first C++ wrapper.

    python bench/package.py

It packages for the GPU where there is one; the C++ wrapper for CUDA is printed and compiled without
one.
"""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import zipfile

import torch
from cold import run
from common import save
from torch.utils import cpp_extension

OPS, ROUNDS = 8, 3
IMAGES = (".cubin", ".host")
TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "python")

# A chain of matrix products, for which Inductor calls a library: an opaque op after each of them
# prevents no fusion.
PACKAGE = """
import os, sys, time, torch
opaque, ops, device, folder = OPAQUE, OPS, DEVICE, os.environ["TORCHINDUCTOR_CACHE_DIR"]

def declare(number):
    import opaq
    op = opaq.op(f"bench_package::op{number}(Tensor x, float by) -> Tensor", outputs=opaq.like("x"))
    body = f"out[i] = x[i] * by + {number};"
    op.cpu(
        source="void f(const float* x, float by, float* out, long n) { "
        "for (long i = 0; i < n; ++i) " + body + " }",
        entry="f",
        args="x, by, out, x.numel()",
    )
    op.cuda(source="__global__ void f(const float* x, float by, float* out, int n) { "
        "int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) " + body + " }",
            entry="f", grid="ceil_div(x.numel(), 256)", block=256, args="x, by, out, x.numel()")
    return op

class Model(torch.nn.Module):
    def __init__(self, functions):
        super().__init__()
        self.weight, self.functions = torch.nn.Parameter(torch.rand(64, 64,
            device=device)), functions
    def forward(self, x):
        for function in self.functions:
            x = function(x @ self.weight)
        return x

def package(functions, name):
    with torch.no_grad():
        exported = torch.export.export(Model(functions), (torch.rand(8, 64, device=device),),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    if "opaq" in sys.modules:
        make = sys.modules["opaq"].package
    else:
        def make(exported, path):
            return torch._inductor.aoti_compile_and_package(exported, package_path=path)
    start = time.perf_counter()
    make(exported, f"{folder}/{name}.pt2")
    return time.perf_counter() - start

package([torch.neg], "first")  # Inductor's own first steps in a process
functions = [(lambda x, op=declare(i): op(x, 0.5)) if opaque else (lambda x: x) for i in range(ops)]
print(package(functions, "all"))
package(functions[:1], "one")
"""


def packaging(device: str) -> dict[str, object]:
    """ "with" and "without": the model with its opaque ops, and the same model without them;
    medians over rounds.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    sizes: dict[bool, list[dict[str, int]]] = {}
    for _ in range(ROUNDS):
        for opaque, times in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                script = (
                    PACKAGE.replace("OPAQUE", str(opaque), 1)
                    .replace("OPS", str(OPS), 1)
                    .replace("DEVICE", repr(device), 1)
                )
                times.append(
                    run(script, TORCHINDUCTOR_CACHE_DIR=folder, OPAQ_CACHE_DIR=f"{folder}/opaq")
                )
                sizes[opaque] = [contents(f"{folder}/{name}.pt2") for name in ("one", "all")]
    extra = [(with_ops - without) / OPS for with_ops, without in zip(seconds[True], seconds[False])]
    one, every = (
        {kind: size - without[kind] for kind, size in with_ops.items()}
        for with_ops, without in zip(sizes[True], sizes[False])
    )
    per_op = {kind: (every[kind] - one[kind]) / (OPS - 1) for kind in one}
    return {
        "device": device,
        "ops": OPS,
        "rounds": ROUNDS,
        "with_s": round(statistics.median(seconds[True]), 3),
        "without_s": round(statistics.median(seconds[False]), 3),
        "s_per_op": round(statistics.median(extra), 4),
        "s_per_op_range": [round(min(extra), 4), round(max(extra), 4)],
        "bytes_per_op": {kind: round(size) for kind, size in per_op.items()},
        "bytes_once": {kind: round(one[kind] - size) for kind, size in per_op.items()},
    }


def contents(path: str) -> dict[str, int]:
    """Bytes of a package by kind; the file holds them uncompressed, each on a boundary of 64
    bytes."""
    sizes = {
        "package": os.path.getsize(path),
        "images": 0,
        "manifest": 0,
        "wrapper_library": 0,
        "sources_and_rest": 0,
    }
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = (
                "images"
                if info.filename.endswith(IMAGES)
                else "manifest"
                if info.filename.endswith("/opaq.json")
                else "sources_and_rest"
            )
            sizes["wrapper_library" if info.filename.endswith(".so") else kind] += (
                info.compress_size
            )
    return sizes


def wrapper_source(device: str) -> str:
    """The C++ wrapper of a graph of two nodes of one op."""
    sys.path.insert(0, TESTS)
    import fake_cuda
    from torch._inductor import config

    import opaq
    from opaq import lowering

    op = opaq.op(
        "bench_wrapper::scale(Tensor x, float by) -> Tensor", outputs=opaq.like("x"), replace=True
    )
    op.cpu(
        source="void f(const float* x, float by, float* out, long n) {}",
        entry="f",
        args="x, by, out, x.numel()",
    )
    op.cuda(
        source="__global__ void f(const float* x, float by, float* out, int n) {}",
        entry="f",
        grid="ceil_div(x.numel(), 256)",
        block=256,
        args="x, by, out, x.numel()",
    )
    lowering.activate()
    with lowering.options.use(archs=("sm_90a",)), config.patch(graph_partition=False):
        module = fake_cuda.wrapper_source(
            lambda x: op.overload(op.overload(x, 2.0), 3.0), (16, 256), device=device, cpp=True
        )
    return fake_cuda.cpp_part(module)


def without_ops(source: str) -> str:
    """The wrapper without the functions, calls and nodes of the ops, but with opaq's headers."""
    bare = re.sub(
        r"^#ifndef opaq_\w+_PRINTED\n.*?^#endif\n", "", source, flags=re.DOTALL | re.MULTILINE
    )
    return re.sub(
        r"^ *(?:opaq_\w+_[0-9a-f]{8}\(|static opaq_node<|static const char opaq_graph).*;\n",
        "",
        bare,
        flags=re.MULTILINE,
    )


def without_headers(source: str) -> str:
    """The wrapper without anything of opaq."""
    bare = re.sub(
        r"^#ifndef OPAQ_\w+_PRINTED\n.*?^#endif\n",
        "",
        without_ops(source),
        flags=re.DOTALL | re.MULTILINE,
    )
    assert "opaq" not in re.sub(r"//.*", "", bare), bare
    return bare


def compiler(device: str) -> list[str]:
    """The g++ command of Inductor for a C++ wrapper, without the options that only its vectorised
    CPU kernels need.
    """
    from opaq import _runtime

    folders = [
        sysconfig.get_path("include"),
        *cpp_extension.include_paths(),
        *(_runtime.doctor()["nvrtc"]["include_dirs"] if device == "cuda" else []),
    ]
    standard = "c++20" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15) else "c++17"
    defines = [
        "TORCH_INDUCTOR_CPP_WRAPPER",
        "STANDALONE_TORCH_HEADER",
        "C10_USING_CUSTOM_GENERATED_MACROS",
        *(["USE_CUDA"] if device == "cuda" else []),
    ]
    options = [f"-std={standard}", "-O3", "-DNDEBUG", "-fPIC", "-march=native", "-fopenmp", "-w"]
    return [
        "g++",
        *options,
        *(f"-D{define}" for define in defines),
        *(f"-I{path}" for path in folders),
    ]


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command, which other load affects less than wall-clock time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def wrapper(device: str) -> dict[str, object]:
    """CPU seconds of the compiler. A first build compiles PyTorch's header, which later ones find
    precompiled.
    """
    source, command = wrapper_source(device), compiler(device)
    with tempfile.TemporaryDirectory() as folder:
        header = f"{folder}/header.h"
        with open(header, "w", encoding="utf-8") as stream:
            stream.write(f"#include <torch/csrc/inductor/cpp_wrapper/{device}.h>\n")
        texts = {"with": source, "headers": without_ops(source), "without": without_headers(source)}
        for name, text in texts.items():
            with open(f"{folder}/{name}.cpp", "w", encoding="utf-8") as stream:
                stream.write(text)
        first = cpu_seconds([*command, "-x", "c++-header", header, "-o", f"{header}.gch"])
        times: dict[str, list[float]] = {name: [] for name in texts}
        for _ in range(2 * ROUNDS):
            for name, found in times.items():
                found.append(
                    cpu_seconds(
                        [
                            *command,
                            "-include",
                            header,
                            "-c",
                            f"{folder}/{name}.cpp",
                            "-o",
                            f"{folder}/{name}.o",
                        ]
                    )
                )
    with_ops, headers, without = (
        statistics.median(times[name]) for name in ("with", "headers", "without")
    )
    return {
        "header_s": round(first, 3),
        "without_s": round(without, 3),
        "with_headers_s": round(headers, 3),
        "with_s": round(with_ops, 3),
        "headers_of_first_build": round((headers - without) / (first + without), 4),
        "ours_of_first_build": round((with_ops - without) / (first + without), 4),
        "ours_of_later_builds": round((with_ops - without) / without, 4),
        "rounds": 2 * ROUNDS,
    }


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measured = {
        "packaging": packaging(device),
        "wrapper_compile": {name: wrapper(name) for name in ("cpu", "cuda")},
    }
    save("package", measured, what=__doc__)


if __name__ == "__main__":
    main()
