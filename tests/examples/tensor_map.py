"""A kernel for Hopper and newer that copies tiles by a tensor map (TMA): `opaq.tensor_map` encodes
the descriptor from the tensor, again only when its address or sizes change. Tensors that cannot be
mapped go to the plain kernel.
"""

import torch

import opaq

scale = opaq.op("examples::scale_tiles(Tensor x, float by) -> (Tensor y)", outputs=opaq.like("x"))
scale.cuda(
    name="cuda:tma",
    priority=1,
    source=r"""
    #include <cuda.h>
    constexpr int kRows = 16, kColumns = 64;

    __device__ unsigned shared_address(const void* p) {
      return static_cast<unsigned>(__cvta_generic_to_shared(p));
    }

    // One tile for each block. What lies outside of the matrix is loaded as 0.
    __global__ void scale(const __grid_constant__ CUtensorMap x, float by, float* y, int rows,
                          int columns) {
      __shared__ alignas(128) float tile[kRows][kColumns];
      __shared__ alignas(8) unsigned long long barrier;
      const int row = blockIdx.y * kRows, column = blockIdx.x * kColumns;
      const unsigned bar = shared_address(&barrier);
      if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar));
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                     ::"r"(bar), "r"(static_cast<unsigned>(sizeof tile)) : "memory");
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%2, %3}], [%4];"
            ::"r"(shared_address(tile)), "l"(reinterpret_cast<unsigned long long>(&x)),
              "r"(column), "r"(row), "r"(bar) : "memory");
      }
      __syncthreads();
      for (unsigned done = 0; !done;)
        asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n"
                     " selp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(bar) : "memory");
      for (int i = threadIdx.x; i < kRows * kColumns; i += blockDim.x) {
        const int r = i / kColumns, c = i % kColumns;
        if (row + r < rows && column + c < columns)
          y[(row + r) * columns + column + c] = tile[r][c] * by;
      }
    }
    """,
    entry="scale",
    grid="ceil_div(x.size(1), 64), ceil_div(x.size(0), 16)",
    block=128,
    args=[opaq.tensor_map("x", box=[16, 64]), "by", "y", "x.size(0)", "x.size(1)"],
    # What a tensor map needs of a tensor; other calls go to the next implementation.
    requires=["x.dim() == 2", "x.size(1) % 4 == 0", "aligned(x, 16)"],
)
scale.cuda(
    source="""
    __global__ void scale(const float* x, float by, float* y, long long n) {
      const long long i = blockIdx.x * 256ll + threadIdx.x;
      if (i < n) y[i] = x[i] * by;
    }
    """,
    entry="scale",
    grid="ceil_div(x.numel(), 256)",
    block=256,
    args="x, by, y, x.numel()",
)


@scale.reference
def _(x: torch.Tensor, by: float) -> torch.Tensor:
    return x * by


# Without a GPU: both kernels compile for Hopper, and the map fits this tensor.
report = scale.check(torch.empty(100, 260, device="meta"), 2.0, arch="sm_90a")
assert report.ok, report

hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
x = torch.randn(100, 260, device="cuda" if hopper else "cpu")
torch.testing.assert_close(scale(x, 2.0), x * 2)
torch.testing.assert_close(torch.compile(scale, fullgraph=True)(x, 3.0), x * 3)
