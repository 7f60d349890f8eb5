"""Where the host time of one launch goes: from a raw cuLaunchKernel loop, step by step, to a
compiled chain of 50 opaque ops and to eager calls.

Each step launches a * b + a on 4096 floats, and does a little more than the one before.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch

from . import measure, result
from .boundary_kernel import Kernel
from .boundary_peers import of_opaq
from .boundary_ways import chain_of
from .command import Unavailable
from .table import Progress

TITLE = "Steps of one launch"
CASE = "a launch"
FLOOR = "C++ loop, cuModule"
OPS, SIZE = 50, (16, 256)
CPP = """
#include <torch/extension.h>
#include <cuda.h>
#include <atomic>

static CUfunction from_module, from_library;

static void check(CUresult result, const char* what) {
    TORCH_CHECK(result == CUDA_SUCCESS, what, ": ", (int)result); }

void load(const std::string& image) {
  CUmodule module;
  check(cuModuleLoadData(&module, image.data()), "cuModuleLoadData");
  check(cuModuleGetFunction(&from_module, module, "addmul"), "cuModuleGetFunction");
  CUlibrary library;
  CUkernel kernel;
  check(cuLibraryLoadData(&library, image.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
      "cuLibraryLoadData");
  check(cuLibraryGetKernel(&kernel, library, "addmul"), "cuLibraryGetKernel");
  check(cuKernelGetFunction(&from_library, kernel), "cuKernelGetFunction");
}

template <class Between>
static void launches(CUfunction function,
    int64_t a, int64_t b, int64_t out, int64_t count, Between between) {
  int n = 4096;
  void* args[] = {&a, &b, &out, &n};
  for (int64_t i = 0; i < count; ++i) {
    check(cuLaunchKernel(function, 16, 1, 1, 256, 1, 1, 0, nullptr, args, nullptr),
        "cuLaunchKernel");
    between();
  }
}
// 100 dependent multiplications: 0.1 us or so, in registers.
static void work() {
  uint64_t x = 1;
  for (int i = 0; i < 100; ++i) {
    x = x * 3 + 1;
    asm volatile("" : "+r"(x));
  }
}
static std::atomic<int64_t> counter{0};
void module_loop(int64_t a, int64_t b, int64_t out, int64_t count) {
    launches(from_module, a, b, out, count, [] {}); }
void library_loop(int64_t a, int64_t b, int64_t out, int64_t count) {
    launches(from_library, a, b, out, count, [] {}); }
void context_loop(int64_t a, int64_t b, int64_t out, int64_t count) {
  CUcontext context;
  launches(from_library, a, b, out, count, [&] { check(cuCtxGetCurrent(&context),
      "cuCtxGetCurrent"); });
}
void work_loop(int64_t a, int64_t b, int64_t out, int64_t count) {
    launches(from_library, a, b, out, count, work); }
void atomic_loop(int64_t a, int64_t b, int64_t out, int64_t count) {
  launches(from_library, a, b, out, count, [] {
    counter.fetch_add(1, std::memory_order_relaxed);
    work();
  });
}

// Calls of a Python callable without the interpreter between them.
void call_loop(py::object callable,
    py::object a, py::object b, py::object out, py::object stream, int64_t count) {
  PyObject* args[] = {a.ptr(), b.ptr(), out.ptr(), stream.ptr()};
  for (int64_t i = 0; i < count; ++i) {
    PyObject* result = PyObject_Vectorcall(callable.ptr(), args, 4, nullptr);
    if (!result) throw py::error_already_set();
    Py_DECREF(result);
  }
}
"""
FUNCTIONS = [
    "load",
    "module_loop",
    "library_loop",
    "context_loop",
    "work_loop",
    "atomic_loop",
    "call_loop",
]


def straight_line(count: int, statement: str, scope: dict[str, object]) -> Callable[[], None]:
    """A function that holds `statement` `count` times, {} in it replaced by the number; names come
    from `scope`.
    """
    body = "\n".join("    " + statement.replace("{}", str(i)) for i in range(count))
    exec(compile(f"def run():\n{body}", __file__, "exec"), scope)
    return scope["run"]


def steps(x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Ways to launch OPS times, each of which does a little more than the one before."""
    from torch.utils.cpp_extension import load_inline

    from opaq import _runtime, lowering

    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    module = load_inline(
        "bench_launch",
        [CPP],
        functions=FUNCTIONS,
        extra_include_paths=[f"{cuda}/include"],
        extra_ldflags=["-L" + f"{cuda}/lib64/stubs", "-lcuda"],
        extra_cflags=["-O2"],
    )
    op = of_opaq(Kernel(2, "cuda"))
    out = torch.empty_like(x)
    facts = [("float32", SIZE, x.stride(), "cuda:0", 256)] * 2
    choice = _runtime.choose(op.name, "cuda", {"cuda": []}, [])["handle"]
    node = _runtime.cpp_node(op.name, choice, facts, "cuda:0", [], False, False)
    ((image,),) = _runtime.cpp_code(node)
    module.load(image["bytes"])
    pointers = (x.data_ptr(), y.data_ptr(), out.data_ptr(), OPS)
    launchers = {
        f"launch_{i}": _runtime.launcher(op.name, op.info["hash"], "cuda:0", f"op{i}", "bench")
        for i in range(OPS)
    }
    scope = {"x": x, "y": y, "out": out, "op": op, **launchers}
    scope["allocate"] = lowering.compat.pytorch.empty_strided_cuda
    compiled = torch.compile(chain_of(op, 2, OPS), fullgraph=True)
    compiled(x, y)
    return {
        FLOOR: lambda: module.module_loop(*pointers),
        "C++ loop, cuLibrary": lambda: module.library_loop(*pointers),
        "C++ loop, cuLibrary, cuCtxGetCurrent": lambda: module.context_loop(*pointers),
        "C++ loop, cuLibrary, some work": lambda: module.work_loop(*pointers),
        "C++ loop, cuLibrary, an atomic addition and some work": lambda: module.atomic_loop(
            *pointers
        ),
        "C++ loop, one launch object": lambda: module.call_loop(
            launchers["launch_0"], x, y, out, 0, OPS
        ),
        "Python, one launch object": straight_line(OPS, "launch_0(x, y, out, 0)", dict(scope)),
        "Python, 50 launch objects": straight_line(OPS, "launch_{}(x, y, out, 0)", dict(scope)),
        "Python, 50 launch objects, allocations": straight_line(
            OPS,
            f"buf = allocate({SIZE}, {x.stride()}, x.dtype); launch_{{}}(x, y, buf, 0)",
            dict(scope),
        ),
        "compiled chain": lambda: compiled(x, y),
        "eager": straight_line(OPS, "op(x, y)", dict(scope)),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    if arguments.device != "cuda":
        raise Unavailable("opaq bench launch measures cuLaunchKernel, which needs a GPU")
    x, y = (torch.rand(SIZE, device="cuda") * 0.01 for _ in range(2))
    with torch.no_grad():
        progress.step("compile")
        timed = {
            name: lambda way=way: measure.host_us(
                way, per=OPS, synchronize=torch.cuda.synchronize, repeats=40, warmups=5
            )
            for name, way in steps(x, y).items()
        }
        turns = measure.in_turns(timed, arguments.rounds, progress.step)
    made = result.of_rounds(CASE, "host time", "us", turns, to=FLOOR, floor=FLOOR)
    progress.record(*made)
    return {"rounds": arguments.rounds, "ops": OPS}
