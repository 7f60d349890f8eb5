// What device code may use of PyTorch's headers, which NVRTC gets in place of all of them: CUDA's
// headers that they include, macros, and the number types where PyTorch's own headers are found.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "nvcc_names.h"

#if __has_include(<torch/headeronly/util/BFloat16.h>)
#include <torch/headeronly/macros/Macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
namespace at {
using c10::BFloat16;
using c10::Half;
}  // namespace at
namespace torch {
using c10::BFloat16;
using c10::Half;
}  // namespace torch
#else
#define C10_HOST_DEVICE __host__ __device__
#define C10_DEVICE __device__
#define C10_HOST __host__
#define C10_WARP_SIZE 32
#define C10_LAUNCH_BOUNDS_1(threads) __launch_bounds__(threads)
#define C10_LAUNCH_BOUNDS_2(threads, blocks) __launch_bounds__(threads, blocks)
#endif
