"""Host time of one opaque op inside a chain of 50, for opaq and its peers, against a raw cuLaunchKernel loop of the same run.

    python bench/boundary.py                (needs a GPU, nvcc's headers and g++)
    python bench/boundary.py --only opaq    (one of the ops, in a process without the others)

Every op computes a * b + a on 4096 floats and allocates its output. A ratio is the median over rounds, each with the floor beside it; "quietest" is the best
round: other loads of the machine slow the interpreter and the allocator by more than the driver.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile

import torch
from common import host_us, save

OPS, SIZE, ROUNDS = 50, (16, 256), 15
KERNEL = """extern "C" __global__ void addmul(const float* a, const float* b, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i] * b[i] + a[i];
}"""
CPP = """
#include <torch/extension.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda.h>
#include <chrono>

static CUfunction function;

static void launch(const void* a, const void* b, void* out, int n, CUstream stream) {
  void* args[] = {&a, &b, &out, &n};
  CUresult result = cuLaunchKernel(function, (n + 255) / 256, 1, 1, 256, 1, 1, 0, stream, args, nullptr);
  TORCH_CHECK(result == CUDA_SUCCESS, "cuLaunchKernel: ", (int)result);
}

at::Tensor addmul(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor out = at::empty_like(a);
  launch(a.const_data_ptr(), b.const_data_ptr(), out.mutable_data_ptr(), (int)a.numel(), c10::cuda::getCurrentCUDAStream());
  return out;
}

void set_function(int64_t address) { function = (CUfunction)address; }

// Microseconds per launch of a loop that does nothing else.
double raw_loop(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out, int64_t launches) {
  const void *pa = a.const_data_ptr(), *pb = b.const_data_ptr();
  void* po = out.mutable_data_ptr();
  const int n = (int)a.numel();
  CUstream stream = c10::cuda::getCurrentCUDAStream();
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < launches; ++i) launch(pa, pb, po, n, stream);
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / launches;
}

TORCH_LIBRARY(bench_cpp, m) { m.def("addmul(Tensor a, Tensor b) -> Tensor", {at::Tag::pt2_compliant_tag}); }
TORCH_LIBRARY_IMPL(bench_cpp, CUDA, m) { m.impl("addmul", addmul); }
"""


def opaq_op():
    import opaq

    op = opaq.op("bench_opaq::addmul(Tensor a, Tensor b) -> Tensor", outputs=opaq.like("a"))
    op.cuda(source=KERNEL, entry="addmul", grid="ceil_div(a.numel(), 256)", block=256, args="a, b, out, a.numel()")
    return op


def cpp_op(kernel):
    from torch.utils.cpp_extension import load_inline

    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    module = load_inline(
        "bench_boundary", [CPP], functions=["set_function", "raw_loop"], extra_include_paths=[f"{cuda}/include"],
        extra_ldflags=["-L" + f"{cuda}/lib64/stubs", "-lcuda", "-lc10_cuda"], extra_cflags=["-O2"],
    )  # fmt: skip
    module.set_function(kernel.func.value)
    op = torch.ops.bench_cpp.addmul.default
    torch.library.register_fake("bench_cpp::addmul", lambda a, b: torch.empty_like(a))
    return module, op


def python_op(kernel):
    @torch.library.custom_op("bench_python::addmul", mutates_args=())
    def addmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(a)
        kernel(grid=((a.numel() + 255) // 256, 1, 1), block=(256, 1, 1), args=(a, b, out, a.numel()))
        return out

    addmul.register_fake(lambda a, b: torch.empty_like(a))
    return addmul


def triton_op():
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(a, b, out, n, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        x = tl.load(a + at, mask=inside)
        tl.store(out + at, x * tl.load(b + at, mask=inside) + x, mask=inside)

    @torch.library.triton_op("bench_triton::addmul", mutates_args={})
    def addmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(a)
        torch.library.wrap_triton(kernel)[(triton.cdiv(a.numel(), 256),)](a, b, out, a.numel(), BLOCK=256)
        return out

    return addmul


IN_CPP = ("opaq", "cpp TORCH_LIBRARY")  # what can be launched from C++ wrappers without Python
_numbers = itertools.count()


def package(chain, x, y):
    """The chain as an AOTInductor package, loaded again."""

    class Model(torch.nn.Module):
        def forward(self, x, y):
            return chain(x, y)

    with tempfile.TemporaryDirectory() as folder:
        exported = torch.export.export(Model(), (x, y))
        return torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(exported, package_path=f"{folder}/model.pt2"))


def chain_of(op, count):
    """x -> op(op(...op(x, y)..., y), y), under a name of its own: torch.compile keeps the graphs of equal code together, and limits their number."""
    name = f"chain_{next(_numbers)}"
    scope = {"op": op, "count": count}
    source = f"def {name}(x, y):\n    for _ in range(count):\n        x = op(x, y)\n    return x"
    exec(compile(source, __file__, "exec"), scope)  # torch.compile wraps code that comes from no file, which would be measured too
    return scope[name]


def ways(name, op, x, y):
    """How a chain is run, by name; each checked against PyTorch first."""
    expected = x
    for _ in range(OPS):
        expected = expected * y + expected
    chains = {
        "eager": chain_of(op, OPS),
        "inductor": torch.compile(chain_of(op, OPS), fullgraph=True),
        "cuda_graphs": torch.compile(chain_of(op, OPS), fullgraph=True, options={"triton.cudagraphs": True}),
    }
    if name in IN_CPP:
        chains["inductor_cpp_wrapper"] = torch.compile(chain_of(op, OPS), fullgraph=True, options={"cpp_wrapper": True})
        chains["aoti"] = package(chain_of(op, OPS), x, y)
    for chain in chains.values():
        torch.testing.assert_close(chain(x, y), expected)
    chains["inductor_1_op"] = torch.compile(chain_of(op, 1), fullgraph=True)
    if name in IN_CPP:
        chains["inductor_cpp_wrapper_1_op"] = torch.compile(chain_of(op, 1), fullgraph=True, options={"cpp_wrapper": True})
        chains["aoti_1_op"] = package(chain_of(op, 1), x, y)
    return chains


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("bench/boundary.py needs a GPU: torch.cuda.is_available() is False")
    x, y = (torch.rand(SIZE, device="cuda") * 0.01 for _ in range(2))
    kernel = torch.cuda._compile_kernel(KERNEL, "addmul")
    module, compiled_op = cpp_op(kernel)
    out = torch.empty_like(x)

    def raw(launches: int = 400) -> float:
        """Microseconds per launch, median over loops that each start on an idle device."""
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            times.append(module.raw_loop(x, y, out, launches))
        return statistics.median(times)

    makers = {
        "opaq": opaq_op,
        "cpp TORCH_LIBRARY": lambda: compiled_op,
        "torch.library.custom_op": lambda: python_op(kernel),
        "triton_op": triton_op,
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=makers)
    parser.add_argument("--output", help="folder of the result; bench/results by default")
    only = parser.parse_args().only
    with torch.no_grad():
        peers = {name: ways(name, make(), x, y) for name, make in makers.items() if only in (None, name)}
        # The machine drifts: a round measures the floor beside every figure, and a figure's ratio is the median over rounds of its own ratios.
        times = {name: {way: [] for way in chains} for name, chains in peers.items()}
        ratios = {name: {way: [] for way in chains} for name, chains in peers.items()}
        floors, short_floors = [], []
        for _ in range(ROUNDS):
            for name, chains in peers.items():
                for way, chain in chains.items():
                    floor = raw()
                    per = 1 if way.endswith("_1_op") else OPS
                    us = host_us(lambda: chain(x, y), per=per, synchronize=torch.cuda.synchronize, repeats=30, warmups=5)
                    floors.append(floor)
                    times[name][way].append(us)
                    ratios[name][way].append(us / (floor + raw()) * 2)
            short_floors.append(raw(OPS))
    quietest = min(floors)
    table = {
        name: {
            way: {
                "us": round(statistics.median(found), 3), "ratio": round(statistics.median(ratios[name][way]), 3),
                "quietest_us": round(min(found), 3), "quietest_ratio": round(min(found) / quietest, 3),
            }
            for way, found in by_way.items()
        }
        for name, by_way in times.items()
    }  # fmt: skip
    for ways_of_op in table.values():  # what one more op costs, the cost of a call apart
        for way in [way for way in ways_of_op if f"{way}_1_op" in ways_of_op]:
            for key, per in (("us", "added_op_us"), ("quietest_us", "quietest_added_op_us")):
                ways_of_op[way][per] = round((OPS * ways_of_op[way][key] - ways_of_op[f"{way}_1_op"][key]) / (OPS - 1), 3)
    measured = {
        "raw_cuLaunchKernel_us": round(statistics.median(floors), 3),
        "raw_cuLaunchKernel_us_range": [round(min(floors), 3), round(max(floors), 3)],
        "raw_loop_of_50_us": round(statistics.median(short_floors), 3),
        "rounds": ROUNDS,
        "per_op": table,  # "..._1_op": one call of a graph that holds one op: what a call costs whatever is in it
    }
    save("boundary", measured, what=__doc__.split("\n")[0])


if __name__ == "__main__":
    main()
