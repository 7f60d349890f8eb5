// What is declared of a matrix product, and the matrices of one call.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "standalone/cublaslt.h"
#include "standalone/dlpack.h"

namespace opaq::standalone {

// Which tensor an item of the argument list is, and numbers beside them.
struct MatmulRule {
  enum Role {
    A,
    B,
    C,
    D,
    Bias,  // or the bias gradient, which is written
    Aux,   // what the activation's gradient needs: written by gelu and relu, read by theirs
    AScale,
    BScale,
    DScale,
    DOutScale,
    Amax,
    Workspace,
    Alpha,
    Beta,
    kRoles,
  };
  static constexpr const char* kNames[kRoles] = {
      "a",       "b",       "c",           "d",    "bias",      "aux",   "a_scale",
      "b_scale", "d_scale", "d_out_scale", "amax", "workspace", "alpha", "beta"};
  int item[kRoles];                 // of the argument list; -1: none
  bool transposed[kRoles] = {};     // of A and B: the last two dimensions are swapped
  bool rows[kRoles] = {};           // of A and B: all dimensions before the last are rows
  int32_t epilogue = lt::kNone;     // without Bias and Aux, which are added where these are given
  int32_t compute = 0;              // 0: by the dtypes
  int32_t scale_mode[kRoles] = {};  // of AScale, BScale, DOutScale: cublasLtMatmulMatrixScale_t
  bool fast_accum = false;
  int32_t algorithm = 0;  // which of those that the library names for a product, best first

  // The algorithm that a version of the library has named for one product. `algorithm` counts among
  // those of this version; for others it is the first.
  struct Known {
    uint64_t version = 0;  // 0: none is known
    uint64_t product = 0;  // MatmulKey::digest
    lt::Algorithm algorithm{};
  };
  Known known;

  MatmulRule() { std::fill(item, item + kRoles, -1); }

  // Of "a.r.t b d workspace; epilogue=32 compute=77 a_scale=3": the roles of the argument list in
  // order, `.r` and `.t` where `rows` and `transposed` hold, and numbers of cuBLASLt; "known=" and
  // the hexadecimal words of `known`. What is not given is as above. The text is made by
  // runtime/kinds/cublaslt.cpp, and is right.
  explicit MatmulRule(const char* text) : MatmulRule() {
    int at = 0;
    for (const char* word = text; *word;) {
      const char* end = word + std::strcspn(word, " ;");
      std::string name(word, end);
      const size_t equals = name.find('=');
      const int32_t number = equals == std::string::npos ? 0 : std::atoi(name.c_str() + equals + 1);
      const std::string role = name.substr(0, std::min(equals, name.find('.')));
      if (role == "epilogue") epilogue = number;
      if (role == "compute") compute = number;
      if (role == "algorithm") algorithm = number;
      if (role == "fast_accum") fast_accum = number != 0;
      if (role == "known") read_known(name.c_str() + equals + 1);
      for (int i = 0; i < kRoles; ++i) {
        if (role != kNames[i]) continue;
        if (equals != std::string::npos) {
          scale_mode[i] = number;
        } else {
          item[i] = at++;
          transposed[i] = name.find(".t") != std::string::npos;
          rows[i] = name.find(".r") != std::string::npos;
        }
      }
      word = end + std::strspn(end, " ;");
    }
  }

  // " known=1fcb8/9c...", as the constructor reads it.
  static std::string text_of(const Known& known) {
    std::string text = " known=";
    const auto add = [&](uint64_t word) {
      char digits[24];
      std::snprintf(digits, sizeof digits, "%llx/", static_cast<unsigned long long>(word));
      text += digits;
    };
    add(known.version);
    add(known.product);
    for (const uint64_t word : known.algorithm.data) add(word);
    text.pop_back();
    return text;
  }

 private:
  void read_known(const char* text) {
    const auto next = [&] {
      char* end = nullptr;
      const uint64_t word = std::strtoull(text, &end, 16);
      text = *end ? end + 1 : end;
      return word;
    };
    known.version = next();
    known.product = next();
    for (uint64_t& word : known.algorithm.data) word = next();
  }
};

namespace lt {

inline int32_t type_of(DlDataType type) {
  const int bits = type.bits;
  switch (type.code) {  // DLDataTypeCode of dlpack.h
    case 0:
      return bits == 8 ? kInt8 : bits == 32 ? kInt32 : kNoType;
    case 2:
      return bits == 16 ? kFloat16 : bits == 32 ? kFloat32 : bits == 64 ? kFloat64 : kNoType;
    case 4:
      return kBFloat16;
    case 10:
      return kFloat8E4M3;
    case 12:
      return kFloat8E5M2;
    case 14:
      return kFloat8E8M0;
    case 17:
      return kFloat4E2M1;
    default:
      return kNoType;
  }
}

// A tensor as one matrix, or as equal matrices one after another.
struct Matrix {
  void* data = nullptr;
  int32_t type = kNoType;
  int64_t rows = 0, columns = 0, row_stride = 0, column_stride = 0, batch = 1, batch_stride = 0;
};

// Takes all matrices for one of more rows, if they lie so.
inline bool fold_batch(Matrix& m) {
  if (m.batch == 1) return true;
  if (m.rows != 1 && m.batch_stride != m.rows * m.row_stride) return false;
  if (m.rows == 1) m.row_stride = m.batch_stride;
  m.rows *= m.batch;
  m.batch = 1;
  return true;
}

inline Matrix matrix_of(const DlTensor& tensor, bool rows, bool transposed, const char* role) {
  if (tensor.ndim < 2)
    fail_with(ErrorKind::Launch, "`%s` has %d dimensions; a matrix product takes 2 or more", role,
              tensor.ndim);
  const int row = tensor.ndim - 2, column = tensor.ndim - 1;
  // Two values of four bits are one element.
  const int64_t packed = tensor.dtype.lanes == 2 ? 2 : 1;
  Matrix m{tensor.data,
           type_of(tensor.dtype),
           tensor.shape[row],
           tensor.shape[column] * packed,
           tensor.strides[row] * packed,
           tensor.strides[column]};
  for (int i = row; i-- > 0;) {  // from the innermost
    const int64_t size = tensor.shape[i], stride = tensor.strides[i] * packed;
    if (size == 1) continue;
    if (m.batch == 1)
      m.batch_stride = stride;
    else if (stride != m.batch * m.batch_stride)
      fail_with(ErrorKind::Launch,
                "the dimensions of `%s` before the last two are not evenly spaced in memory, which "
                "cuBLASLt needs; make it contiguous",
                role);
    m.batch *= size;
  }
  if (rows && !fold_batch(m))
    fail_with(ErrorKind::Launch,
              "the dimensions of `%s` before the last are not evenly spaced in memory, as rows of "
              "one matrix are; make it contiguous",
              role);
  if (transposed) {
    std::swap(m.rows, m.columns);
    std::swap(m.row_stride, m.column_stride);
  }
  return m;
}

inline int32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address);
  return bits == 0 ? 256 : static_cast<int32_t>(std::min<uintptr_t>(bits & (~bits + 1), 256));
}

inline const char* type_name(int32_t type) {
  switch (type) {
    case kFloat32:
      return "float32";
    case kFloat64:
      return "float64";
    case kFloat16:
      return "float16";
    case kBFloat16:
      return "bfloat16";
    case kInt8:
      return "int8";
    case kInt32:
      return "int32";
    case kFloat8E4M3:
      return "float8_e4m3fn";
    case kFloat8E5M2:
      return "float8_e5m2";
    case kFloat4E2M1:
      return "float4_e2m1fn_x2";
    default:
      return "a dtype that cuBLASLt does not take";
  }
}

}  // namespace lt
}  // namespace opaq::standalone
