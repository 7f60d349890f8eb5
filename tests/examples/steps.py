"""An implementation of two launches: the first kernel leaves a sum for each block in scratch
memory, the second adds these up. To users, reports and torch.compile it is one op.
"""

import torch

import opaq

mean_square = opaq.op(
    "examples::mean_square(Tensor x) -> (Tensor mean)",
    outputs=opaq.tensor([], dtype="float32"),
)
mean_square.cuda(
    source="""
    template <int kThreads>
    __device__ float block_sum(float value) {
      __shared__ float sums[kThreads];
      sums[threadIdx.x] = value;
      __syncthreads();
      for (int half = kThreads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
      }
      return sums[0];
    }
    template <typename T>
    __global__ void partial_sums(const T* x, float* partial, long n) {
      const long i = blockIdx.x * 1024L + threadIdx.x;
      const float value = i < n ? float(x[i]) : 0;
      const float sum = block_sum<1024>(value * value);
      if (threadIdx.x == 0) partial[blockIdx.x] = sum;
    }
    __global__ void finish(const float* partial, float* mean, long parts, long n) {
      float sum = 0;
      for (long p = threadIdx.x; p < parts; p += 256) sum += partial[p];
      sum = block_sum<256>(sum);
      if (threadIdx.x == 0) *mean = sum / n;
    }
    """,
    scratch={"partial": opaq.tensor("ceil_div(x.numel(), 1024)", dtype="float32")},
    steps=[
        opaq.step(
            entry="partial_sums<{x.dtype}>",
            grid="partial.size(0)",
            block=1024,
            args="x, partial, x.numel()",
        ),
        opaq.step(
            entry="finish",
            grid=1,
            block=256,
            args="partial, mean, partial.size(0), x.numel()",
        ),
    ],
)
mean_square.cpu(
    source="""
    template <typename T>
    void partial_sums(const T* x, float* partial, long parts, long n) {
      for (long p = 0; p < parts; ++p) {
        partial[p] = 0;
        for (long i = p; i < n; i += parts) partial[p] += float(x[i]) * float(x[i]);
      }
    }
    void finish(const float* partial, float* mean, long parts, long n) {
      float sum = 0;
      for (long p = 0; p < parts; ++p) sum += partial[p];
      *mean = sum / n;
    }
    """,
    scratch={"partial": opaq.tensor("ceil_div(x.numel(), 1024)", dtype="float32")},
    steps=[
        opaq.step(entry="partial_sums<{x.dtype}>", args="x, partial, partial.size(0), x.numel()"),
        opaq.step(entry="finish", args="partial, mean, partial.size(0), x.numel()"),
    ],
)

device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.randn(5000, device=device)
for function in (mean_square, torch.compile(mean_square)):
    torch.testing.assert_close(function(x), x.square().mean())
print("the mean of squares is PyTorch's")
