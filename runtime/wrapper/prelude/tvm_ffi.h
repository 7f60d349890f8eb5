// Tensors of opaque ops as functions of TVM-FFI take them.
#include <optional>

#include "standalone/tvm_ffi.h"

// `tensor`: filled in, and referred to by the value.
inline opaq::standalone::TvmValue opaq_tvm_tensor(const opaq_tensor& view,
                                                  opaq::standalone::DlDataType dtype,
                                                  opaq::standalone::DlDevice device,
                                                  opaq::standalone::DlTensor& tensor) {
  tensor = {view.data,
            device,
            static_cast<int32_t>(view.dim),
            dtype,
            const_cast<int64_t*>(view.sizes),
            const_cast<int64_t*>(view.strides),
            0};
  return opaq::standalone::TvmValue(&tensor);
}
inline opaq::standalone::TvmValue opaq_tvm_tensor(const std::optional<opaq_tensor>& view,
                                                  opaq::standalone::DlDataType dtype,
                                                  opaq::standalone::DlDevice device,
                                                  opaq::standalone::DlTensor& tensor) {
  return view ? opaq_tvm_tensor(*view, dtype, device, tensor) : opaq::standalone::TvmValue();
}
