// What NVRTC gets in place of ATen/cuda/detail/KernelUtils.h: loops whose index cannot overflow
// while they run.
#pragma once

#include "torch_device.h"

#ifndef CUDA_KERNEL_LOOP
#define CUDA_KERNEL_LOOP_TYPE(i, n, index_type)                                   \
  int64_t opaq_##i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; \
  for (index_type i = static_cast<index_type>(opaq_##i); opaq_##i < (n);          \
       opaq_##i += static_cast<int64_t>(blockDim.x) * gridDim.x,                  \
                  i = static_cast<index_type>(opaq_##i))
#define CUDA_KERNEL_LOOP(i, n) CUDA_KERNEL_LOOP_TYPE(i, n, int)
#endif
