"""Host time of one opaque op inside a chain of 50, for opaq and its peers, against a raw cuLaunchKernel loop of the same run.

    python bench/boundary.py            (needs a GPU, nvcc's headers and g++)

Every op computes a * b + a on 4096 floats and allocates its output.
"""

from __future__ import annotations

import os
import sys
import tempfile

import torch
from common import host_us, save

OPS, SIZE = 50, (16, 256)
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


MODES = {
    "eager": None,
    "inductor": {},
    "inductor_cpp_wrapper": {"cpp_wrapper": True},
    "aoti": {},
    "cuda_graphs": {"triton.cudagraphs": True},
}
IN_CPP = {"inductor_cpp_wrapper": ["opaq", "cpp TORCH_LIBRARY"], "aoti": ["opaq", "cpp TORCH_LIBRARY"]}


def package(chain, x, y):
    class Model(torch.nn.Module):
        def forward(self, x, y):
            return chain(x, y)

    with tempfile.TemporaryDirectory() as folder:
        exported = torch.export.export(Model(), (x, y))
        return torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(exported, package_path=f"{folder}/model.pt2"))


def measure(name, op, x, y):
    """Microseconds per op: eager, compiled with the Python and the C++ wrapper, replayed as a CUDA graph, loaded from an AOTInductor package;
    each checked against PyTorch first. A mode that an op cannot have is left out."""

    def chain(x, y):
        for _ in range(OPS):
            x = op(x, y)
        return x

    expected = x
    for _ in range(OPS):
        expected = expected * y + expected
    found = {}
    with torch.no_grad():
        for mode, options in MODES.items():
            if name in IN_CPP.get(mode, [name]):
                torch.compiler.reset()
                run = chain if options is None else package(chain, x, y) if mode == "aoti" else torch.compile(chain, fullgraph=True, options=options)
                torch.testing.assert_close(run(x, y), expected)
                found[mode] = host_us(lambda: run(x, y), per=OPS, synchronize=torch.cuda.synchronize)
    return found


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("bench/boundary.py needs a GPU: torch.cuda.is_available() is False")
    x, y = (torch.rand(SIZE, device="cuda") * 0.01 for _ in range(2))
    kernel = torch.cuda._compile_kernel(KERNEL, "addmul")
    module, compiled_op = cpp_op(kernel)

    def raw() -> float:
        torch.cuda.synchronize()
        return sorted(module.raw_loop(x, y, torch.empty_like(x), 400) for _ in range(50))[25]

    raw()
    floors = [raw()]
    peers = {"opaq": opaq_op(), "cpp TORCH_LIBRARY": compiled_op, "torch.library.custom_op": python_op(kernel), "triton_op": triton_op()}
    results = {}
    for name, op in peers.items():
        results[name] = measure(name, op, x, y)
        floors.append(raw())
    floor = sorted(floors)[len(floors) // 2]
    table = {
        name: {mode: {"us": round(us, 3), "ratio": round(us / floor, 3)} for mode, us in times.items()} for name, times in results.items()
    }
    save("boundary", {"raw_cuLaunchKernel_us": round(floor, 3), "raw_all_us": [round(f, 3) for f in floors], "per_op": table}, what=__doc__.split("\n")[0])


if __name__ == "__main__":
    main()
