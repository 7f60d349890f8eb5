// Tensor maps of opaque ops.
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "standalone/tensor_map.h"

// Writes the tensor map of a tensor to `to`. An empty list is not given. An absent tensor leaves
// what is there.
inline void opaq_put_tensor_map(unsigned char* to, opaq::standalone::KeptTensorMap& kept,
                                const opaq::standalone::DeclaredTensorMap& declared,
                                const std::optional<opaq_tensor>& tensor, int type,
                                std::initializer_list<int64_t> shape,
                                std::initializer_list<int64_t> strides,
                                std::initializer_list<int64_t> box,
                                std::initializer_list<int64_t> element_strides, int device) {
  using namespace opaq::standalone;
  if (!tensor) return;
  const TensorMapSource source = {tensor->data,    tensor->dim, tensor->sizes,
                                  tensor->strides, type,        tensor->itemsize};
  const auto list = [](std::initializer_list<int64_t> items) {
    return TensorMapList{items.begin(),
                         items.size() == 0 ? -1 : static_cast<int64_t>(items.size())};
  };
  kept.put(to, kLinkedDriver, declared,
           tensor_map_content(declared, source, list(shape), list(strides), list(box),
                              list(element_strides)),
           device);
}
