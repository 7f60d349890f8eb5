"""Checks kernels without a GPU: each is compiled for the architectures named, its parameters are
compared with the argument list, and the report says what a launch takes. The same from a shell, for
CI: `opaq check check.py --arch sm_80,sm_90a` exits with 1 if there are problems.
"""

import torch

import opaq
from opaq import _runtime

SOURCE = """
#include <cuda_bf16.h>

template <typename T, int block>
__global__ void __launch_bounds__(block) softmax(const T* x, T* y, int width) {
  __shared__ float partial[block];
  const T* row = x + blockIdx.x * (long)width;
  float sum = 0;
  for (int i = threadIdx.x; i < width; i += block) sum += __expf(float(row[i]));
  partial[threadIdx.x] = sum;
  for (int half = block / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < width; i += block)
    y[blockIdx.x * (long)width + i] = T(__expf(float(row[i])) / partial[0]);
}
"""

softmax = opaq.op("examples::softmax(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
softmax.cuda(
    source=SOURCE,
    entry="softmax<{x.dtype}, 256>",
    grid="x.numel() // x.size(-1)",
    block=256,
    args="x, y, x.size(-1)",
)
# What `opaq check` uses. Tensors on any device stand for tensors on the implementation's.
softmax.example(torch.empty(64, 1024, dtype=torch.bfloat16, device="meta"))

wrong = opaq.op("examples::softmax_wrong(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
wrong.cuda(source=SOURCE, entry="softmax<{x.dtype}, 256>", args="x, y, x")  # not the width

if _runtime.doctor()["nvrtc"]["found"]:
    report = softmax.check(arch=["sm_80", "sm_90a"])
    print(report)
    assert report.ok
    kernel = report.implementations[0]
    assert kernel.entry == "softmax<__nv_bfloat16, 256>" and kernel.launch["grid"] == [64, 1, 1]
    assert [code["arch"] for code in kernel.code] == ["sm_80", "sm_90a"]
    assert all(code["resources"]["shared"] == 1024 for code in kernel.code)
    assert all(code["occupancy"]["warps"] == 64 for code in kernel.code)

    report = wrong.check(torch.empty(64, 1024), arch="sm_90a")
    assert "argument 3 `x` is Tensor, but parameter 3 is `int`" in report.problems[0]
