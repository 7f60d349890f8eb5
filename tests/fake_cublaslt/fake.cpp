// A cuBLASLt that computes nothing and records what it is asked. Descriptors hold the number of a
// record, so that copies of a descriptor are independent of it, as they are in the library.
#include "fake.h"

#include <cstring>
#include <mutex>

using namespace fake_cublaslt;

namespace {

std::mutex mutex;
constexpr int32_t kInvalid = 7, kNotSupported = 15;

// In place: a count of attributes, then (number, size, bytes).
struct Attributes {
  uint32_t count;
  struct {
    int32_t number;
    uint32_t size;
    char bytes[8];
  } items[20];
  std::map<int32_t, std::string> all() const {
    std::map<int32_t, std::string> found;
    for (uint32_t i = 0; i < count; ++i)
      found[items[i].number] = std::string(items[i].bytes, items[i].size);
    return found;
  }
  int32_t set(int32_t number, const void* bytes, size_t size) {
    if (!bytes || size > sizeof items[0].bytes) return kInvalid;
    uint32_t at = 0;
    while (at < count && items[at].number != number) ++at;
    if (at == 20) return kInvalid;
    if (at == count) ++count;
    items[at].number = number;
    items[at].size = static_cast<uint32_t>(size);
    std::memcpy(items[at].bytes, bytes, size);
    return 0;
  }
};
struct Desc {
  int32_t compute, scale_type;
  Attributes attributes;
};
struct LayoutData {
  int32_t type;
  uint64_t rows, columns;
  int64_t ld;
  struct {
    int32_t number;
    uint32_t size;
    char bytes[8];
  } items[4];
  uint32_t count;
};
struct Heuristic {
  uint64_t algorithm[8];
  size_t workspace;
  int32_t state;
  float waves;
  int32_t reserved[4];
};

Layout read(const LayoutData* data) {
  Layout layout{data->type, data->rows, data->columns, data->ld, {}};
  for (uint32_t i = 0; i < data->count; ++i)
    layout.attributes[data->items[i].number] =
        std::string(data->items[i].bytes, data->items[i].size);
  return layout;
}

}  // namespace

extern "C" {

Record* fake_cublaslt_record() {
  static Record record;
  return &record;
}

int32_t cublasLtCreate(void** handle) {
  const std::lock_guard lock(mutex);
  ++fake_cublaslt_record()->created;
  *handle = fake_cublaslt_record();
  return 0;
}
size_t cublasLtGetVersion() { return 130400; }
const char* cublasLtGetStatusName(int32_t status) {
  return status == 0               ? "CUBLAS_STATUS_SUCCESS"
         : status == kNotSupported ? "CUBLAS_STATUS_NOT_SUPPORTED"
                                   : "CUBLAS_STATUS_INVALID_VALUE";
}
int32_t cublasLtMatmulDescInit_internal(Desc* desc, size_t size, int32_t compute, int32_t scale) {
  if (size < sizeof *desc) return kInvalid;
  std::memset(static_cast<void*>(desc), 0, sizeof *desc);
  desc->compute = compute;
  desc->scale_type = scale;
  return 0;
}
int32_t cublasLtMatmulDescSetAttribute(Desc* desc, int32_t number, const void* bytes, size_t size) {
  return desc->attributes.set(number, bytes, size);
}
int32_t cublasLtMatrixLayoutInit_internal(LayoutData* layout, size_t size, int32_t type,
                                          uint64_t rows, uint64_t columns, int64_t ld) {
  if (size < sizeof *layout) return kInvalid;
  *layout = {type, rows, columns, ld, {}, 0};
  return 0;
}
int32_t cublasLtMatrixLayoutSetAttribute(LayoutData* layout, int32_t number, const void* bytes,
                                         size_t size) {
  auto& item = layout->items[layout->count++];
  item.number = number;
  item.size = static_cast<uint32_t>(size);
  std::memcpy(item.bytes, bytes, size);
  return 0;
}
int32_t cublasLtMatmulPreferenceInit_internal(void* preference, size_t size) {
  std::memset(preference, 0, size);
  const std::lock_guard lock(mutex);
  fake_cublaslt_record()->preference.clear();
  return 0;
}
int32_t cublasLtMatmulPreferenceSetAttribute(void*, int32_t number, const void* bytes,
                                             size_t size) {
  const std::lock_guard lock(mutex);
  fake_cublaslt_record()->preference[number] = std::string(static_cast<const char*>(bytes), size);
  return 0;
}
int32_t cublasLtMatmulAlgoGetHeuristic(void*, Desc*, LayoutData*, LayoutData*, LayoutData*,
                                       LayoutData*, void*, int requested, Heuristic* results,
                                       int* found) {
  const std::lock_guard lock(mutex);
  Record& record = *fake_cublaslt_record();
  ++record.heuristics;
  record.requested = requested;
  *found = record.has_algorithm ? 1 : 0;
  if (!record.has_algorithm) return kNotSupported;
  *results = {};
  results->algorithm[0] = static_cast<uint64_t>(record.heuristics);
  results->workspace = record.workspace;
  return 0;
}
int32_t cublasLtMatmulAlgoCheck(void*, const Desc*, const LayoutData*, const LayoutData*,
                                const LayoutData*, const LayoutData*, const uint64_t*,
                                Heuristic* result) {
  const std::lock_guard lock(mutex);
  Record& record = *fake_cublaslt_record();
  ++record.checks;
  *result = {};
  result->workspace = record.workspace;
  return record.has_algorithm ? 0 : kNotSupported;
}
int32_t cublasLtMatmul(void*, const Desc* desc, const void* alpha, const void* a,
                       const LayoutData* a_layout, const void* b, const LayoutData* b_layout,
                       const void* beta, const void* c, const LayoutData* c_layout, void* d,
                       const LayoutData* d_layout, const uint64_t* algorithm, void* workspace,
                       size_t workspace_bytes, void* stream) {
  const std::lock_guard lock(mutex);
  const auto bytes = [](const void* from) {
    return std::string(static_cast<const char*>(from), 8);
  };
  fake_cublaslt_record()->products.push_back(
      {desc->compute, desc->scale_type, desc->attributes.all(), read(a_layout), read(b_layout),
       read(c_layout), read(d_layout), bytes(alpha), bytes(beta), a, b, c, d, workspace, stream,
       workspace_bytes, algorithm[0]});
  return 0;
}

}  // extern "C"
