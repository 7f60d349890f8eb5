// Scratch tensors of opaque ops, in the memory that the graph has planned for a node.
#include <cstdint>
#include <initializer_list>

#include "standalone/scratch.h"

// The memory of one launch: what the graph has planned, or its own where nothing is planned, or
// too little (a launch on copies may need more).
class opaq_scratch_memory {
 public:
  opaq_scratch_memory(AtenTensorHandle planned, int64_t bytes, int32_t device_type,
                      int32_t device_index) {
    void* data = nullptr;
    if (planned && size_of(planned) >= bytes) {
      AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(planned, &data));
    } else {
      const int64_t stride = 1;
      AtenTensorHandle made = nullptr;
      AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
          1, &bytes, &stride, aoti_torch_dtype_uint8(), device_type, device_index, &made));
      own_ = torch::aot_inductor::RAIIAtenTensorHandle(made);
      AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(made, &data));
    }
    data_ = static_cast<char*>(data);
  }
  char* data() const { return data_; }

 private:
  static int64_t size_of(AtenTensorHandle tensor) {
    int64_t count = 0;
    int32_t dtype = 0;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(tensor, &count));
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
    return count * static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  }

  torch::aot_inductor::RAIIAtenTensorHandle own_;
  char* data_ = nullptr;
};

// An item of a shape: a size, or a list of sizes.
struct opaq_scratch_size {
  int64_t one = 0;
  opaq_ints list{nullptr, -1};
  opaq_scratch_size(int64_t size) : one(size) {}
  opaq_scratch_size(opaq_ints sizes) : list(sizes) {}
};

class opaq_scratch {
 public:
  opaq_scratch(opaq::standalone::ScratchLayout& layout, const char* place, opaq_dtype dtype,
               int64_t itemsize, std::initializer_list<opaq_scratch_size> shape)
      : dtype_(dtype), itemsize_(itemsize) {
    for (const opaq_scratch_size& item : shape) {
      if (item.list.size < 0) shape_.add(item.one, place);
      for (int64_t i = 0; i < item.list.size; ++i) shape_.add(item.list.data[i], place);
    }
    offset_ = layout.add(shape_.finish(itemsize, place), place);
  }
  opaq_scratch(const opaq_scratch&) = delete;  // views point into it
  opaq_tensor at(char* memory) const {
    return {memory + offset_, shape_.sizes, shape_.strides, shape_.rank, dtype_, itemsize_};
  }

 private:
  opaq_dtype dtype_;
  int64_t itemsize_, offset_ = 0;
  opaq::standalone::ScratchShape shape_;
};
