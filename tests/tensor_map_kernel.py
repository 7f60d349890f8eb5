"""A kernel that loads swizzled tiles through a tensor map in a struct and stores them through
another: compiled in tests/python, run in tests/gpu.
"""

from __future__ import annotations

import opaq

ROWS, COLUMNS = 16, 32  # of a tile: 128 bytes of a float row, as the swizzle needs
SOURCE = r"""
#include <cuda.h>
struct Params { float by; CUtensorMap x; int* loads; };

constexpr int kRows = 16, kColumns = 32;

__device__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__global__ void scale(const __grid_constant__ Params p, const __grid_constant__ CUtensorMap y) {
  __shared__ alignas(1024) float loaded[kRows * kColumns];
  __shared__ alignas(128) float stored[kRows * kColumns];
  __shared__ alignas(8) unsigned long long barrier;
  const int row = blockIdx.y * kRows, column = blockIdx.x * kColumns;
  const unsigned bar = shared_address(&barrier);
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar));
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar),
                 "r"(static_cast<unsigned>(sizeof loaded))
                 : "memory");
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(loaded)),
        "l"(reinterpret_cast<unsigned long long>(&p.x)), "r"(column), "r"(row), "r"(bar)
        : "memory");
    atomicAdd(p.loads, 1);
  }
  __syncthreads();
  unsigned done = 0;
  while (!done) {
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n"
        " selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(bar)
        : "memory");
  }
  for (int i = threadIdx.x; i < kRows * kColumns; i += blockDim.x) {
    const int r = i / kColumns, c = i % kColumns;
    // 128B swizzle: of 8 pieces of 16 bytes in a row, the number is changed by that of the row.
    stored[i] = loaded[r * kColumns + ((c / 4) ^ (r % 8)) * 4 + c % 4] * p.by;
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(
            reinterpret_cast<unsigned long long>(&y)),
        "r"(column), "r"(row), "r"(shared_address(stored))
        : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
}
"""


def declare(name: str) -> opaq.Op:
    """y = x * by for x of any rank, as a matrix of its last dimension; counts tiles in `loads`."""
    op = opaq.op(
        f"{name}(Tensor x, float by, Tensor(a!) loads) -> (Tensor y)", outputs=opaq.like("x")
    )
    matrix = ["x.numel() // x.size(-1)", "x.size(-1)"]
    x = opaq.tensor_map("x", box=[ROWS, COLUMNS], shape=matrix, swizzle="128B", l2_promotion="128B")
    return op.cuda(
        source=SOURCE,
        entry="scale",
        grid=[f"ceil_div(x.size(-1), {COLUMNS})", f"ceil_div({matrix[0]}, {ROWS})"],
        block=128,
        args=[
            opaq.struct("Params", by="by", x=x, loads="loads"),
            opaq.tensor_map("y", box=[ROWS, COLUMNS], shape=matrix),
        ],
    )
