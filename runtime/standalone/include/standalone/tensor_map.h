// Tensor maps: the descriptors (CUtensorMap) by which kernels of compute capability 9.0 and newer
// copy tiles of a tensor. Checks what CUDA asks of them, with messages; encodes one, and keeps it
// while nothing changes. Dimensions are in the order of a tensor's sizes, the innermost last; CUDA
// counts them the other way round.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cinttypes>
#include <cstdint>
#include <cstring>
#include <string>

#include "standalone/driver.h"
#include "standalone/error.h"

namespace opaq::standalone {

constexpr int kMostTensorMapDims = 5;

// As declared. The modes are numbers of cuda.h's enumerations.
struct DeclaredTensorMap {
  const char* argument;  // for messages: "mylib::f: argument 2 `tensor_map(x, box=[64, 64])`"
  const char* tensor;    // "x"
  int interleave, swizzle, l2_promotion, oob_fill;
};

// Numbers that an expression gives for each dimension; size < 0: not given.
struct TensorMapList {
  const int64_t* items;
  int64_t size;
};

struct TensorMapSource {
  const void* address;
  int64_t dim;
  const int64_t *sizes, *strides;  // of the tensor, in elements
  int type;                        // CUtensorMapDataType
  int64_t item_bytes;
};

// What decides the bytes of a tensor map. All members have 64 bits, so that memcmp compares them.
struct TensorMapContent {
  int64_t address, type, item_bytes, dim;
  int64_t sizes[kMostTensorMapDims], strides[kMostTensorMapDims];  // strides in elements
  int64_t box[kMostTensorMapDims], element_strides[kMostTensorMapDims];
  int64_t elements;  // that the tensor reaches over, where the map has a layout of its own; else -1

  bool operator==(const TensorMapContent& other) const {
    return std::memcmp(this, &other, sizeof *this) == 0;
  }
};

// ---- checks -------------------------------------------------------------------------------------

[[gnu::cold, gnu::noinline]] inline std::string dims_text(const int64_t* items, int64_t count) {
  std::string text = "[";
  for (int64_t i = 0; i < count; ++i)
    text += format_text(i == 0 ? "%" PRId64 : ", %" PRId64, items[i]);
  return text + "]";
}

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_tensor_map(
    const DeclaredTensorMap& declared, const std::string& problem) {
  fail_with(ErrorKind::Launch, "%s: %s", declared.argument, problem.c_str());
}

// The number of dimensions, and one number for each of them.
inline void fill_tensor_map_list(const DeclaredTensorMap& declared, const char* what,
                                 const TensorMapList& list, int64_t dim, int64_t* to) {
  if (list.size != dim) {
    fail_tensor_map(declared, format_text("%s has %" PRId64 " items, expected one for each of the "
                                          "%" PRId64 " dimensions of the map",
                                          what, list.size, dim));
  }
  for (int64_t i = 0; i < dim; ++i) to[i] = list.items[i];
}

// Elements from the first to behind the last one.
inline int64_t span_of(const int64_t* sizes, const int64_t* strides, int64_t dim) {
  int64_t span = 1;
  for (int64_t i = 0; i < dim; ++i) {
    int64_t length;
    if (sizes[i] == 0) return 0;
    if (__builtin_mul_overflow(sizes[i] - 1, strides[i], &length) ||
        __builtin_add_overflow(span, length, &span))
      return INT64_MAX;
  }
  return span;
}

inline TensorMapContent tensor_map_content(const DeclaredTensorMap& declared,
                                           const TensorMapSource& source,
                                           const TensorMapList& shape, const TensorMapList& strides,
                                           const TensorMapList& box,
                                           const TensorMapList& element_strides) {
  TensorMapContent content{};
  content.address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(source.address));
  content.type = source.type;
  content.item_bytes = source.item_bytes;
  const int64_t dim = content.dim = shape.size < 0 ? source.dim : shape.size;
  if (dim < 1 || dim > kMostTensorMapDims) {
    fail_tensor_map(declared,
                    format_text("`%s` has %" PRId64
                                " dimensions, but a tensor map has 1 to 5; write shape=[...] "
                                "to map it with others",
                                declared.tensor, dim));
  }
  const auto fill = [&](const char* what, const TensorMapList& list, int64_t* to) {
    fill_tensor_map_list(declared, what, list, dim, to);
  };
  fill("shape", shape.size < 0 ? TensorMapList{source.sizes, source.dim} : shape, content.sizes);
  fill("box", box, content.box);
  if (strides.size >= 0) {
    fill("strides", strides, content.strides);
  } else if (shape.size < 0) {
    fill("strides", {source.strides, source.dim}, content.strides);
  } else {
    content.strides[dim - 1] = 1;
    for (int64_t i = dim - 1; i > 0; --i) {
      if (__builtin_mul_overflow(content.strides[i], content.sizes[i], &content.strides[i - 1]))
        fail_tensor_map(declared, "shape " + dims_text(content.sizes, dim) + " overflows 64 bits");
    }
  }
  for (int64_t i = 0; i < dim; ++i) content.element_strides[i] = 1;
  if (element_strides.size >= 0) fill("element_strides", element_strides, content.element_strides);
  const bool own_layout = shape.size >= 0 || strides.size >= 0;
  content.elements = own_layout ? span_of(source.sizes, source.strides, source.dim) : -1;
  return content;
}

// Throws Launch for what CUDA does not encode.
[[gnu::noinline]] inline void check_tensor_map(const DeclaredTensorMap& declared,
                                               const TensorMapContent& content) {
  const int64_t dim = content.dim, last = dim - 1;
  const char* const tensor = declared.tensor;
  const auto fail_map = [&](const std::string& problem) { fail_tensor_map(declared, problem); };
  const int64_t alignment = declared.interleave == CU_TENSOR_MAP_INTERLEAVE_32B ? 32 : 16;
  if (declared.interleave != CU_TENSOR_MAP_INTERLEAVE_NONE && dim < 3)
    fail_map(format_text("interleave needs 3 dimensions or more, got %" PRId64, dim));
  if (content.address % alignment != 0)
    fail_map(format_text("the address of `%s` is not a multiple of %" PRId64
                         " bytes; clone the tensor, or declare requires=\"aligned(%s, %" PRId64
                         ")\" to leave such calls to another implementation",
                         tensor, alignment, tensor, alignment));
  for (int64_t i = 0; i < dim; ++i) {
    const int64_t size = content.sizes[i], box = content.box[i];
    const int64_t step = content.element_strides[i];
    if (size < 1 || size > int64_t{1} << 32)
      fail_map(format_text("dimension %" PRId64 " of `%s` has size %" PRId64
                           ", but a tensor map takes 1 to 2**32%s",
                           i, tensor, size,
                           size == 0 ? "; give the launch a grid that is 0 for an empty tensor, or "
                                       "leave such calls to another implementation by requires="
                                     : ""));
    if (box < 1 || box > 256)
      fail_map(format_text("box is %s, but an item is 1 to 256; load a larger tile in pieces",
                           dims_text(content.box, dim).c_str()));
    if (step < 1 || step > 8)
      fail_map(format_text("element_strides is %s, but an item is 1 to 8",
                           dims_text(content.element_strides, dim).c_str()));
  }
  if (content.sizes[last] != 1 && content.strides[last] != 1)
    fail_map(format_text("the innermost stride of `%s` is %" PRId64
                         ", but a tensor map needs 1; pass the tensor row-major (it is, where no "
                         "expression reads its strides)",
                         tensor, content.strides[last]));
  for (int64_t i = 0; i < last; ++i) {
    if (content.sizes[i] == 1) continue;  // its stride is never used
    int64_t bytes = 0;
    if (__builtin_mul_overflow(content.strides[i], content.item_bytes, &bytes) || bytes < 0 ||
        bytes >= int64_t{1} << 40 || bytes % alignment != 0)
      fail_map(format_text("stride %" PRId64 " of `%s` is %" PRId64 " elements of %" PRId64
                           " bytes, but a tensor map needs a multiple of %" PRId64
                           " bytes below 2**40; pad the rows of the tensor",
                           i, tensor, content.strides[i], content.item_bytes, alignment));
  }
  const int64_t row = content.box[last] * content.item_bytes;  // bytes
  if (declared.interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && row % 16 != 0)
    fail_map(format_text("the last item of box is %" PRId64 " elements of %" PRId64
                         " bytes, but together they must be a multiple of 16 bytes",
                         content.box[last], content.item_bytes));
  const int64_t span = declared.swizzle == CU_TENSOR_MAP_SWIZZLE_NONE  ? INT64_MAX
                       : declared.swizzle == CU_TENSOR_MAP_SWIZZLE_32B ? 32
                       : declared.swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 64
                                                                       : 128;
  if (declared.interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && row > span)
    fail_map(format_text("the last item of box is %" PRId64 " elements of %" PRId64
                         " bytes, but swizzle=\"%" PRId64 "B\" takes %" PRId64
                         " bytes at most; make the box narrower",
                         content.box[last], content.item_bytes, span, span));
  const int64_t mapped = span_of(content.sizes, content.strides, dim);
  if (content.elements >= 0 && mapped > content.elements)
    fail_map(format_text(
        "shape %s with strides %s reaches to element %" PRId64 ", but `%s` ends after %" PRId64,
        dims_text(content.sizes, dim).c_str(), dims_text(content.strides, dim).c_str(), mapped,
        tensor, content.elements));
}

// ---- encoding -----------------------------------------------------------------------------------

// What check_tensor_map has passed. Throws Launch where the device has no tensor maps, Driver where
// CUDA refuses this one.
[[gnu::noinline]] inline CUtensorMap encode_tensor_map(const DriverApi& api,
                                                       const DeclaredTensorMap& declared,
                                                       const TensorMapContent& content,
                                                       int device) {
  if (const int capability = compute_capability(api, device); capability < 90)
    fail_tensor_map(declared,
                    format_text("tensor maps need compute capability 9.0, but cuda:%d has "
                                "%d.%d; declare an implementation without them",
                                device, capability / 10, capability % 10));
  const ContextScope context(api, device);
  const int64_t dim = content.dim;
  cuuint64_t sizes[kMostTensorMapDims], strides[kMostTensorMapDims];
  cuuint32_t box[kMostTensorMapDims], element_strides[kMostTensorMapDims];
  int64_t extent = 0;  // bytes of the dimensions within
  for (int64_t i = 0; i < dim; ++i) {
    const int64_t from = dim - 1 - i;
    sizes[i] = static_cast<cuuint64_t>(content.sizes[from]);
    box[i] = static_cast<cuuint32_t>(content.box[from]);
    element_strides[i] = static_cast<cuuint32_t>(content.element_strides[from]);
    // That of a dimension of size 1 is never used, and may be any number in a tensor.
    const int64_t stride = i == 0                     ? content.item_bytes
                           : content.sizes[from] == 1 ? (extent + 31) / 32 * 32
                                                      : content.strides[from] * content.item_bytes;
    if (i > 0) strides[i - 1] = static_cast<cuuint64_t>(stride);
    extent = stride * content.sizes[from];
  }
  CUtensorMap map;  // aligned as CUDA needs it, by its type
  const CUresult result = api.tensor_map_encode_tiled(
      &map, static_cast<CUtensorMapDataType>(content.type), static_cast<cuuint32_t>(dim),
      reinterpret_cast<void*>(static_cast<uintptr_t>(content.address)), sizes, strides, box,
      element_strides, static_cast<CUtensorMapInterleave>(declared.interleave),
      static_cast<CUtensorMapSwizzle>(declared.swizzle),
      static_cast<CUtensorMapL2promotion>(declared.l2_promotion),
      static_cast<CUtensorMapFloatOOBfill>(declared.oob_fill));
  if (result != CUDA_SUCCESS)
    throw_driver_error(
        api, result,
        format_text("%s: encoding the tensor map with sizes %s, strides %s, box %s",
                    declared.argument, dims_text(content.sizes, dim).c_str(),
                    dims_text(content.strides, dim).c_str(), dims_text(content.box, dim).c_str()));
  return map;
}

// The tensor map of one argument, encoded again only where its content changes. Thread-safe, and no
// call waits for another: one that finds it in use encodes its own.
class KeptTensorMap {
 public:
  KeptTensorMap() = default;
  KeptTensorMap(const KeptTensorMap&) = delete;
  KeptTensorMap& operator=(const KeptTensorMap&) = delete;

  // Writes the map's bytes.
  void put(unsigned char* to, const DriverApi& api, const DeclaredTensorMap& declared,
           const TensorMapContent& content, int device) {
    if (!in_use_.test_and_set(std::memory_order_acquire)) {
      const bool same = known_ && content == content_;
      if (same) std::memcpy(to, &map_, sizeof map_);
      in_use_.clear(std::memory_order_release);
      if (same) return;
    }
    check_tensor_map(declared, content);
    const CUtensorMap map = encode_tensor_map(api, declared, content, device);
    std::memcpy(to, &map, sizeof map);
    if (in_use_.test_and_set(std::memory_order_acquire)) return;
    content_ = content;
    map_ = map;
    known_ = true;
    in_use_.clear(std::memory_order_release);
  }

 private:
  std::atomic_flag in_use_ = ATOMIC_FLAG_INIT;
  bool known_ = false;
  TensorMapContent content_{};
  CUtensorMap map_{};
};

}  // namespace opaq::standalone
