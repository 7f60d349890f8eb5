// What nvcc knows without any #include, since it includes <cuda_runtime.h> first, and NVRTC does
// not: included before a source which did not compile without (see compile/host_code.h).
#pragma once

#include <algorithm>
#include <cassert>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

using uint = unsigned int;
using ushort = unsigned short;
using ulong = unsigned long;
using ssize_t = long;

__host__ __device__ inline void abort() { __trap(); }
__host__ __device__ inline void exit(int) { __trap(); }
namespace std {
using ::abort;
using ::exit;
}  // namespace std

// What GCC, which nvcc works with, knows besides.
#define __asm__ asm
#define __const const
#define __extension__
#define __signed__ signed
#define __typeof__ decltype
#define __builtin_memcpy memcpy
#define __builtin_memset memset
__host__ __device__ inline int __builtin_clz(unsigned int x) { return __clz(static_cast<int>(x)); }
__host__ __device__ inline int __builtin_ctz(unsigned int x) {
  return __ffs(static_cast<int>(x)) - 1;
}
__host__ __device__ inline int __builtin_ffs(int x) { return __ffs(x); }
__host__ __device__ inline int __builtin_popcount(unsigned int x) {
  return __popc(static_cast<int>(x));
}
