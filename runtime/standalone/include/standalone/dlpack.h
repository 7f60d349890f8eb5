// The tensor of DLPack (dlpack.h, version 1.3), in which frameworks hand tensors to each other.
#pragma once

#include <cstdint>

namespace opaq::standalone {

struct DlDevice {
  int32_t type, index;
};
struct DlDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  int32_t ndim;
  DlDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

constexpr int32_t kDlCpu = 1, kDlCuda = 2, kDlCudaHost = 3;

}  // namespace opaq::standalone
