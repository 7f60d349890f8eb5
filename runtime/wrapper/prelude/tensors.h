// Opaque ops in a generated C++ wrapper: tensors of AOTInductor's C interface as the expressions of
// launch rules read them, and errors of these expressions. Comes after the prelude of expressions
// and PyTorch's AOTInductor headers.
#include <cstring>
#include <exception>
#include <initializer_list>
#include <optional>
#include <vector>

#include "standalone/error.h"

// Rethrows what was thrown, with the op's name: of an expression that cannot be evaluated with
// `place` in front, which names the op, the field and the expression.
[[noreturn, gnu::cold, gnu::noinline]] inline void opaq_rethrow(const char* op, const char* place,
                                                                const std::exception& error) {
  if (std::strncmp(error.what(), op, std::strlen(op)) == 0) throw;
  opaq::standalone::fail_with(opaq::standalone::ErrorKind::Launch, "%s: %s", *place ? place : op,
                              error.what());
}

// ---- tensors ------------------------------------------------------------------------------------

inline opaq_tensor opaq_address_of(AtenTensorHandle handle) {
  opaq_tensor view{};
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &view.data));
  return view;
}

inline opaq_tensor opaq_view(AtenTensorHandle handle, opaq_dtype dtype, int64_t itemsize) {
  opaq_tensor view = opaq_address_of(handle);
  int64_t* sizes;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &view.dim));
  view.sizes = sizes;
  view.dtype = dtype;
  view.itemsize = itemsize;
  return view;
}

inline opaq_tensor opaq_strided_view(AtenTensorHandle handle, opaq_dtype dtype, int64_t itemsize) {
  opaq_tensor view = opaq_view(handle, dtype, itemsize);
  int64_t* strides;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
  view.strides = strides;
  return view;
}

inline bool opaq_empty(AtenTensorHandle handle) {
  int64_t count = 0;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle, &count));
  return count == 0;
}

// A row-major copy of a tensor, where it is none itself; made on the current stream, and freed with
// the block.
struct opaq_row_major {
  torch::aot_inductor::RAIIAtenTensorHandle copy;
  opaq_tensor view;
  opaq_row_major(AtenTensorHandle handle, const opaq_tensor& tensor) : view(tensor) {
    if (tensor.is_contiguous()) return;
    std::vector<int64_t> strides(static_cast<size_t>(tensor.dim), 1);
    for (int64_t i = tensor.dim - 1; i > 0; --i) strides[i - 1] = strides[i] * tensor.sizes[i];
    int32_t device_type = 0, device_index = 0;
    AtenTensorHandle made = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &device_type));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &device_index));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        tensor.dim, tensor.sizes, strides.data(), tensor.dtype, device_type, device_index, &made));
    copy = torch::aot_inductor::RAIIAtenTensorHandle(made);
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(made, handle, 0));
    view = opaq_strided_view(made, tensor.dtype, tensor.itemsize);
  }
};

inline opaq_ints opaq_list(const std::initializer_list<int64_t>& values) {
  return {values.begin(), static_cast<int64_t>(values.size())};
}

// A requirement that cannot be evaluated (a dimension out of range) does not hold.
template <class F>
inline bool opaq_holds(F&& requirement) {
  try {
    return requirement();
  } catch (const std::exception&) {
    return false;
  }
}

inline void opaq_put_list(unsigned char* to, int width, int64_t count, bool may_have_fewer,
                          const opaq_ints& list, int64_t low, int64_t high, const char* argument,
                          const char* parameter) {
  opaq::standalone::put_list(to, width, count, may_have_fewer, list.data, list.size, low, high,
                             argument, parameter);
}

inline uint64_t opaq_as_pointer(const opaq_tensor& tensor) {
  return reinterpret_cast<uint64_t>(tensor.data);
}
inline uint64_t opaq_as_pointer(const std::optional<opaq_tensor>& tensor) {
  return tensor ? opaq_as_pointer(*tensor) : 0;
}
