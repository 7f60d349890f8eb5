"""Host time of one opaque op in a chain of 50, for opaq and other ways to add a kernel, relative to
a raw cuLaunchKernel loop in the same run.

    python bench/boundary.py                (needs a GPU, nvcc's headers and g++)
    python bench/boundary.py --only opaq    (one of the ops, in a process without the others)

Every op computes a * b + a on 4096 floats and allocates its output. A figure is the median over
rounds; a ratio is the median of the rounds' ratios to the floor, the raw loop, which is measured
next to it; "quietest" is the best round. Calling a compiled function has a fixed cost, of which a
fiftieth is in the figure of the chain; "added_op" is the cost of one more op without it: the time
of the chain minus that of a chain of one op.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import sys
import tempfile

import torch
from common import arguments, host_us, save

OPS, SIZE, ROUNDS = 50, (16, 256), 15
KERNEL = """extern "C" __global__ void addmul(const float* a, const float* b, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i] * b[i] + a[i];
}"""
CPP = """
#include <torch/extension.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <cuda.h>
#include <algorithm>
#include <chrono>

static CUfunction function;

static void launch(const void* a, const void* b, void* out, int n, CUstream stream) {
  void* args[] = {&a, &b, &out, &n};
  CUresult result = cuLaunchKernel(function, (n + 255) / 256, 1, 1, 256, 1, 1, 0, stream, args,
      nullptr);
  TORCH_CHECK(result == CUDA_SUCCESS, "cuLaunchKernel: ", (int)result);
}

at::Tensor addmul(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor out = at::empty_like(a);
  launch(a.const_data_ptr(), b.const_data_ptr(), out.mutable_data_ptr(), (int)a.numel(),
      c10::cuda::getCurrentCUDAStream());
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
  const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
  return time.count() / launches;
}

// A package as a C++ process loads it.
namespace {
class Package {
 public:
  explicit Package(const std::string& path) : loader_(path) {}
  at::Tensor run(const at::Tensor& x, const at::Tensor& y) { return loader_.run({x, y})[0]; }
  // Median microseconds of a run that starts on an idle device.
  double us(const at::Tensor& x, const at::Tensor& y, int64_t repeats, int64_t warmups) {
    const c10::InferenceMode inference;
    std::vector<double> times;
    for (int64_t i = 0; i < warmups + repeats; ++i) {
      const std::vector<at::Tensor> inputs{x, y};
      c10::cuda::device_synchronize();
      const auto start = std::chrono::steady_clock::now();
      const std::vector<at::Tensor> outputs = loader_.run(inputs);
      const auto end = std::chrono::steady_clock::now();
      const std::chrono::duration<double, std::micro> time = end - start;
      if (i >= warmups) times.push_back(time.count());
    }
    std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
    return times[repeats / 2];
  }

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
};
}  // namespace

TORCH_LIBRARY(bench_cpp, m) { m.def("addmul(Tensor a, Tensor b) -> Tensor",
    {at::Tag::pt2_compliant_tag}); }
TORCH_LIBRARY_IMPL(bench_cpp, CUDA, m) { m.impl("addmul", addmul); }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("set_function", &set_function);
  m.def("raw_loop", &raw_loop);
  py::class_<Package>(m, "Package").def(py::init<std::string>()).def("run", &Package::run).def("us",
      &Package::us);
}
"""
REPEATS, WARMUPS = 30, 5


def opaq_op():
    import opaq

    op = opaq.op("bench_opaq::addmul(Tensor a, Tensor b) -> Tensor", outputs=opaq.like("a"))
    op.cuda(
        source=KERNEL,
        entry="addmul",
        grid="ceil_div(a.numel(), 256)",
        block=256,
        args="a, b, out, a.numel()",
    )
    return op


def cpp_op(kernel):
    from torch.utils.cpp_extension import load_inline

    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    module = load_inline(
        "bench_boundary",
        [CPP],
        extra_include_paths=[f"{cuda}/include"],
        extra_ldflags=["-L" + f"{cuda}/lib64/stubs", "-lcuda", "-lc10_cuda"],
        extra_cflags=["-O2"],
    )
    module.set_function(kernel.func.value)
    op = torch.ops.bench_cpp.addmul.default
    torch.library.register_fake("bench_cpp::addmul", lambda a, b: torch.empty_like(a))
    return module, op


def python_op(kernel):
    @torch.library.custom_op("bench_python::addmul", mutates_args=())
    def addmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(a)
        kernel(
            grid=((a.numel() + 255) // 256, 1, 1), block=(256, 1, 1), args=(a, b, out, a.numel())
        )
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
        torch.library.wrap_triton(kernel)[(triton.cdiv(a.numel(), 256),)](
            a, b, out, a.numel(), BLOCK=256
        )
        return out

    return addmul


# those that C++ wrappers can launch without Python
IN_CPP = (
    "opaq",
    "cpp TORCH_LIBRARY",
    "triton_op",
)
_numbers = itertools.count()


def package(chain, x, y, load):
    """The chain as an AOTInductor package, loaded again for Python and for C++."""

    class Model(torch.nn.Module):
        def forward(self, x, y):
            return chain(x, y)

    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(
            torch.export.export(Model(), (x, y)), package_path=f"{folder}/model.pt2"
        )
        return torch._inductor.aoti_load_package(path), load(path)


def chain_of(op, count):
    """x -> op(op(...op(x, y)..., y), y), as a function with its own code: torch.compile limits the
    number of graphs for the same code.
    """
    name = f"chain_{next(_numbers)}"
    scope = {"op": op, "count": count}
    source = f"def {name}(x, y):\n    for _ in range(count):\n        x = op(x, y)\n    return x"
    # code without a file gets a wrapper from torch.compile, which would be measured too
    exec(compile(source, __file__, "exec"), scope)
    return scope[name]


def ways(name, op, x, y, load):
    """The ways to run chains of OPS ops and of one op ("..._1_op"), by name: functions that measure
    microseconds per op. The result of each is compared with PyTorch's first.
    """
    found = {}
    for count, suffix in ((OPS, ""), (1, "_1_op")):
        expected = x
        for _ in range(count):
            expected = expected * y + expected
        chains = {
            "eager": chain_of(op, count),
            "inductor": torch.compile(chain_of(op, count), fullgraph=True),
            "cuda_graphs": torch.compile(
                chain_of(op, count), fullgraph=True, options={"triton.cudagraphs": True}
            ),
        }
        if name in IN_CPP:
            chains["inductor_cpp_wrapper"] = torch.compile(
                chain_of(op, count), fullgraph=True, options={"cpp_wrapper": True}
            )
            chains["aoti"], in_cpp = package(chain_of(op, count), x, y, load)
            torch.testing.assert_close(in_cpp.run(x, y), expected)
            found["aoti_from_cpp" + suffix] = lambda package=in_cpp, count=count: (
                package.us(x, y, REPEATS, WARMUPS) / count
            )
        for way, chain in chains.items():
            torch.testing.assert_close(chain(x, y), expected)
            call = functools.partial(chain, x, y)
            found[way + suffix] = functools.partial(
                host_us,
                call,
                per=count,
                synchronize=torch.cuda.synchronize,
                repeats=REPEATS,
                warmups=WARMUPS,
            )
    return found


def with_floor(measure, raw):
    """(a figure, the floor), both in microseconds. The floor is measured before and after it, since
    the machine's speed changes.
    """
    before = raw()
    return measure(), (before + raw()) / 2


def row(chain, one_op):
    """The reported figures of one way to run, from the (microseconds per op, floor) of all rounds,
    for the chain and for one op.
    """
    added = [
        ((OPS * us - call) / (OPS - 1), floor)
        for (us, floor), (call, _) in zip(chain, one_op, strict=True)
    ]

    def median(values):
        return round(statistics.median(values), 3)

    return {
        "us": median(us for us, _ in chain),
        "ratio": median(us / floor for us, floor in chain),
        "quietest_us": round(min(us for us, _ in chain), 3),
        "added_op_us": median(us for us, _ in added),
        "added_op_ratio": median(us / floor for us, floor in added),
        "call_of_1_op_us": median(us for us, _ in one_op),
    }


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("bench/boundary.py needs a GPU: torch.cuda.is_available() is False")
    x, y = (torch.rand(SIZE, device="cuda") * 0.01 for _ in range(2))
    kernel = torch.cuda._compile_kernel(KERNEL, "addmul")
    module, compiled_op = cpp_op(kernel)
    out = torch.empty_like(x)

    def raw() -> float:
        """Microseconds per launch, median over loops of 400 that each start on an idle device."""
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            times.append(module.raw_loop(x, y, out, 400))
        return statistics.median(times)

    makers = {
        "opaq": opaq_op,
        "cpp TORCH_LIBRARY": lambda: compiled_op,
        "torch.library.custom_op": lambda: python_op(kernel),
        "triton_op": triton_op,
    }
    parser = argparse.ArgumentParser(parents=[arguments()])
    parser.add_argument("--only", choices=makers)
    only = parser.parse_args().only
    with torch.no_grad():
        peers = {
            name: ways(name, make(), x, y, module.Package)
            for name, make in makers.items()
            if only in (None, name)
        }
        found = {name: {way: [] for way in measures} for name, measures in peers.items()}
        for _ in range(ROUNDS):
            for name, measures in peers.items():
                for way, measure in measures.items():
                    found[name][way].append(with_floor(measure, raw))
    floors = [floor for by_way in found.values() for pairs in by_way.values() for _, floor in pairs]
    measured = {
        "raw_cuLaunchKernel_us": round(statistics.median(floors), 3),
        "raw_cuLaunchKernel_us_range": [round(min(floors), 3), round(max(floors), 3)],
        "rounds": ROUNDS,
        "per_op": {
            name: {
                way: row(by_way[way], by_way[f"{way}_1_op"])
                for way in sorted(by_way)
                if not way.endswith("_1_op")
            }
            for name, by_way in found.items()
        },
    }
    save("boundary", measured, what=__doc__)


if __name__ == "__main__":
    main()
