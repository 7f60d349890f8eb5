"""What opaque ops add to an AOTInductor package (time and bytes of an op), and to the time of the
C++ compiler for a first C++ wrapper.

It packages for the GPU where there is one; the C++ wrapper for CUDA is printed and compiled without
one. It needs the source tree, whose tests print that wrapper.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from typing import Any

import torch
from torch.utils import cpp_extension

from . import measure, result
from .cold import script
from .command import Unavailable
from .table import Progress

TITLE = "Packages and C++ wrappers"
OPS = 8
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


def packaging(device: str, rounds: int, progress: Progress) -> list[result.Record]:
    """The model with its opaque ops, and the same model without them."""
    sizes: dict[bool, list[dict[str, int]]] = {}

    def seconds(opaque: bool) -> float:
        with tempfile.TemporaryDirectory() as folder:
            text = (
                PACKAGE.replace("OPAQUE", str(opaque), 1)
                .replace("OPS", str(OPS), 1)
                .replace("DEVICE", repr(device), 1)
            )
            ms = script(text, TORCHINDUCTOR_CACHE_DIR=folder, OPAQ_CACHE_DIR=f"{folder}/opaq")
            sizes[opaque] = [contents(f"{folder}/{name}.pt2") for name in ("one", "all")]
            return ms

    names = {False: "without opaque ops", True: f"with {OPS} opaque ops"}
    turns = measure.in_turns(
        {name: lambda opaque=opaque: seconds(opaque) for opaque, name in names.items()},
        rounds,
        progress.of("packaging"),
    )
    case = f"a package for {device}"
    records = result.of_rounds(case, "packaging", "s", turns, to=names[False])
    added = [(a - b) / OPS for a, b in zip(turns[names[True]], turns[names[False]])]
    records += result.of_rounds(case, "packaging, one more op", "s", {"opaq": added})
    one, every = (
        {kind: size - without[kind] for kind, size in with_ops.items()}
        for with_ops, without in zip(sizes[True], sizes[False])
    )
    for kind, size in one.items():
        per_op = (every[kind] - size) / (OPS - 1)
        for metric, value in {"bytes of an op": per_op, "bytes once": size - per_op}.items():
            records.append(result.Record(case, kind, metric, "B", "less", round(value)))
    return records


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
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def wrapper(device: str, rounds: int, progress: Progress) -> list[result.Record]:
    """CPU seconds of the compiler. A first build compiles PyTorch's header, which later ones find
    precompiled."""
    source, command = wrapper_source(device), compiler(device)
    with tempfile.TemporaryDirectory() as folder:
        header = f"{folder}/header.h"
        with open(header, "w", encoding="utf-8") as stream:
            stream.write(f"#include <torch/csrc/inductor/cpp_wrapper/{device}.h>\n")
        texts = {
            "without opaq": without_headers(source),
            "with its headers": without_ops(source),
            "with two nodes": source,
        }
        commands = {}
        for i, (name, text) in enumerate(texts.items()):
            with open(f"{folder}/{i}.cpp", "w", encoding="utf-8") as stream:
                stream.write(text)
            files = ["-include", header, "-c", f"{folder}/{i}.cpp", "-o", f"{folder}/{i}.o"]
            commands[name] = [*command, *files]
        progress.step(f"C++ wrapper for {device}: precompile PyTorch's header")
        first = cpu_seconds([*command, "-x", "c++-header", header, "-o", f"{header}.gch"])
        turns = measure.in_turns(
            {name: lambda line=line: cpu_seconds(line) for name, line in commands.items()},
            rounds,
            progress.of(f"C++ wrapper for {device}"),
        )
    case, to = f"C++ wrapper for {device}", "without opaq"
    first_builds = {name: [first + each for each in times] for name, times in turns.items()}
    return [
        *result.of_rounds(case, "compiler, later builds", "s", turns, to=to),
        *result.of_rounds(case, "compiler, first build", "s", first_builds, to=to),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("packaging", "wrapper"), help="one part; default: both")
    parser.set_defaults(rounds=3)


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    if not os.path.isdir(TESTS):
        raise Unavailable("opaq bench package needs opaq's source tree; run it from a checkout")
    if arguments.part != "wrapper":
        progress.record(*packaging(arguments.device, arguments.rounds, progress))
    if arguments.part != "packaging":
        for device in ("cpu", "cuda"):
            progress.record(*wrapper(device, 2 * arguments.rounds, progress))
    return {"rounds": arguments.rounds, "ops": OPS}
