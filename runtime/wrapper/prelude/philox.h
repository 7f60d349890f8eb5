// Random numbers for opaque ops: PyTorch's generator draws a seed and an offset for each launch.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include <cstdint>

// randint: aten::randint.low_out of the device
using opaq_randint = AOTITorchError (*)(AtenTensorHandle, int64_t, int64_t, const int64_t*,
                                        int64_t);

inline void opaq_draw_philox(opaq_randint randint, void* memory, int32_t device_type,
                             int32_t device_index) {
  const int64_t size = 2, stride = 1;
  AtenTensorHandle made = nullptr;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      memory, 1, &size, &stride, 0, aoti_torch_dtype_int64(), device_type, device_index, &made));
  const torch::aot_inductor::RAIIAtenTensorHandle words(made);
  AOTI_TORCH_ERROR_CODE_CHECK(randint(words.get(), 0, int64_t{1} << 62, &size, 1));
}
