// Random numbers for opaque ops: what PyTorch's generator draws for each launch.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include <cstdint>
#include <cstring>

// The elements of a scratch tensor as a tensor of PyTorch.
inline torch::aot_inductor::RAIIAtenTensorHandle opaq_elements(const opaq_tensor& of, int32_t dtype,
                                                               int32_t device_type,
                                                               int32_t device_index) {
  const int64_t count = of.numel(), stride = 1;
  AtenTensorHandle made = nullptr;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      of.data, 1, &count, &stride, 0, dtype, device_type, device_index, &made));
  return torch::aot_inductor::RAIIAtenTensorHandle(made);
}

// A seed and an offset. device_randint: aten::randint.low_out of the device
inline void opaq_draw_philox(const opaq_tensor& to, int32_t device_type, int32_t device_index,
                             AOTITorchError (*device_randint)(AtenTensorHandle, int64_t, int64_t,
                                                              const int64_t*, int64_t)) {
  const int64_t size = to.numel();
  const auto words = opaq_elements(to, aoti_torch_dtype_int64(), device_type, device_index);
  AOTI_TORCH_ERROR_CODE_CHECK(device_randint(words.get(), 0, int64_t{1} << 62, &size, 1));
}

// What exponential_() gives. It is called through the dispatcher, which takes the handle and gives
// another one, since the interface has no function that writes in place.
inline void opaq_draw_exponential(const opaq_tensor& to, int32_t device_type,
                                  int32_t device_index) {
  if (to.numel() == 0) return;
  const double rate = 1;
  auto elements = opaq_elements(to, to.dtype, device_type, device_index);
  StableIValue stack[] = {reinterpret_cast<StableIValue>(elements.release()), 0,
                          0};  // no generator
  std::memcpy(&stack[1], &rate, sizeof rate);
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_call_dispatcher("aten::exponential_", "", stack));
  AOTI_TORCH_ERROR_CODE_CHECK(
      aoti_torch_delete_tensor_object(reinterpret_cast<AtenTensorHandle>(stack[0])));
}
