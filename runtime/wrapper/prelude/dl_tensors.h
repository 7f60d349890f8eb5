// Tensors of opaque ops as functions take them that get whole tensors.
#include <optional>

#include "standalone/dlpack.h"

// `tensor`: filled in. nullptr for an absent one.
inline const opaq::standalone::DlTensor* opaq_dl_tensor(const opaq_tensor& view,
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
  return &tensor;
}
inline const opaq::standalone::DlTensor* opaq_dl_tensor(const std::optional<opaq_tensor>& view,
                                                        opaq::standalone::DlDataType dtype,
                                                        opaq::standalone::DlDevice device,
                                                        opaq::standalone::DlTensor& tensor) {
  return view ? opaq_dl_tensor(*view, dtype, device, tensor) : nullptr;
}
