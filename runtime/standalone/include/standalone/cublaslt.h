// cuBLASLt's C interface (cublasLt.h of 12.x and 13.x), as far as it is used here. Nothing of it is
// needed to build: the library is opened at run time.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "standalone/error.h"

namespace opaq::standalone {

// Numbers of cublasLt.h, cublas_api.h and library_types.h.
namespace lt {

enum Type : int32_t {  // cudaDataType
  kFloat32 = 0,
  kFloat64 = 1,
  kFloat16 = 2,
  kInt8 = 3,
  kInt32 = 10,
  kBFloat16 = 14,
  kFloat8E4M3 = 28,
  kFloat8E5M2 = 29,
  kFloat8E8M0 = 30,
  kFloat4E2M1 = 33,
  kNoType = -1,
};
enum Compute : int32_t {  // cublasComputeType_t
  kComputeFloat32 = 68,
  kComputeFloat64 = 70,
  kComputeInt32 = 72,
  kComputeFloat16Fast = 74,
  kComputeBFloat16Fast = 75,
  kComputeTF32 = 77,
};
enum Epilogue : int32_t {  // bits of cublasLtEpilogue_t
  kNone = 1,
  kRelu = 2,
  kBias = 4,
  kDRelu = 8,
  kBiasGradient = 16,
  kGelu = 32,
  kDGelu = 64,
  kAux = 128,
  kBiasGradientA = 256,
  kBiasGradientB = 512,
};
enum Desc : int32_t {  // cublasLtMatmulDescAttributes_t
  kTransA = 3,
  kTransB = 4,
  kEpilogue = 7,
  kBiasPointer = 8,
  kBiasBatchStride = 10,
  kAuxPointer = 11,
  kAuxLd = 12,
  kAuxBatchStride = 13,
  kAScalePointer = 17,
  kBScalePointer = 18,
  kDScalePointer = 20,
  kAmaxPointer = 21,
  kAuxType = 22,
  kFastAccum = 25,
  kBiasType = 26,
  kAScaleMode = 31,
  kBScaleMode = 32,
  kDScaleMode = 34,
  kDOutScalePointer = 36,
  kDOutScaleMode = 37,
};
enum Layout : int32_t { kBatchCount = 5, kBatchOffset = 6 };  // cublasLtMatrixLayoutAttribute_t
enum Preference : int32_t {  // cublasLtMatmulPreferenceAttributes_t
  kMaxWorkspace = 1,
  kMinAlignmentA = 5,
  kMinAlignmentB = 6,
  kMinAlignmentC = 7,
  kMinAlignmentD = 8,
};

// Descriptors in place, which need no allocation. They are larger than any version's.
struct MatmulDesc {
  uint64_t data[48];
};
struct MatrixLayout {
  uint64_t data[24];
};
struct MatmulPreference {
  uint64_t data[24];
};
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int32_t state;
  float waves;
  int32_t reserved[4];
};

using Handle = void*;

struct Library {
  int32_t (*create)(Handle*);
  size_t (*version)();
  const char* (*status_name)(int32_t);
  int32_t (*init_desc)(MatmulDesc*, size_t size, int32_t compute, int32_t scale_type);
  int32_t (*set_desc)(MatmulDesc*, int32_t attribute, const void*, size_t);
  int32_t (*init_layout)(MatrixLayout*, size_t size, int32_t type, uint64_t rows, uint64_t columns,
                         int64_t ld);
  int32_t (*set_layout)(MatrixLayout*, int32_t attribute, const void*, size_t);
  int32_t (*init_preference)(MatmulPreference*, size_t size);
  int32_t (*set_preference)(MatmulPreference*, int32_t attribute, const void*, size_t);
  int32_t (*heuristic)(Handle, MatmulDesc*, MatrixLayout* a, MatrixLayout* b, MatrixLayout* c,
                       MatrixLayout* d, MatmulPreference*, int requested, Heuristic*, int* found);
  // Whether an algorithm serves a product, and the workspace that it needs.
  int32_t (*check)(Handle, const MatmulDesc*, const MatrixLayout* a, const MatrixLayout* b,
                   const MatrixLayout* c, const MatrixLayout* d, const Algorithm*, Heuristic*);
  int32_t (*matmul)(Handle, const MatmulDesc*, const void* alpha, const void* a,
                    const MatrixLayout*, const void* b, const MatrixLayout*, const void* beta,
                    const void* c, const MatrixLayout*, void* d, const MatrixLayout*,
                    const Algorithm*, void* workspace, size_t workspace_bytes, void* stream);
};

// The functions of an opened library. Throws Missing.
inline Library functions_of(void* opened, const char* path) {
  Library found{};
  const auto find = [&](const char* symbol, auto& function) {
    void* address = dlsym(opened, symbol);
    if (!address)
      fail_with(ErrorKind::Missing,
                "%s has no symbol %s; opaq needs cuBLASLt of CUDA 12 or 13 (nvidia-cublas)", path,
                symbol);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
  find("cublasLtCreate", found.create);
  find("cublasLtGetVersion", found.version);
  find("cublasLtGetStatusName", found.status_name);
  find("cublasLtMatmulDescInit_internal", found.init_desc);
  find("cublasLtMatmulDescSetAttribute", found.set_desc);
  find("cublasLtMatrixLayoutInit_internal", found.init_layout);
  find("cublasLtMatrixLayoutSetAttribute", found.set_layout);
  find("cublasLtMatmulPreferenceInit_internal", found.init_preference);
  find("cublasLtMatmulPreferenceSetAttribute", found.set_preference);
  find("cublasLtMatmulAlgoGetHeuristic", found.heuristic);
  find("cublasLtMatmulAlgoCheck", found.check);
  find("cublasLtMatmul", found.matmul);
  return found;
}

// The copy that this process has loaded, PyTorch's in most; else that of `path`; else that of the
// loader's path. Throws Missing.
inline Library open_library(const char* path) {
  constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
  for (const char* name : kNames) {
    if (void* opened = dlopen(name, RTLD_NOW | RTLD_NOLOAD)) return functions_of(opened, name);
  }
  if (path) {
    if (void* opened = dlopen(path, RTLD_NOW)) return functions_of(opened, path);
  }
  for (const char* name : kNames) {
    if (void* opened = dlopen(name, RTLD_NOW)) return functions_of(opened, name);
  }
  fail_with(ErrorKind::Missing,
            "cuBLASLt was not found (libcublasLt.so.13 or .12); install nvidia-cublas, or add "
            "the folder of a CUDA toolkit to LD_LIBRARY_PATH");
}

}  // namespace lt
}  // namespace opaq::standalone
