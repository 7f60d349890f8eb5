// Seeds and offsets for kernels, drawn by PyTorch's default generators.
#include "launch/philox.h"

#include "base/error.h"
#include "shim.h"
#include "torch/dispatcher.h"

namespace opaq {
namespace {

using namespace opaq::torch;

// aten::randint.low_out
using RandInt = Status (*)(TensorHandle out, int64_t low, int64_t high, const int64_t* size,
                           int64_t dim);

RandInt randint(DeviceType device) {
  if (device == DeviceType::CUDA) {
    static const auto on_cuda =
        reinterpret_cast<RandInt>(cuda_function("aoti_torch_cuda_randint_low_out"));
    return on_cuda;
  }
  static const auto on_cpu =
      reinterpret_cast<RandInt>(cpu_function("aoti_torch_cpu_randint_low_out"));
  return on_cpu;
}

void draw(void* memory, Device device, void* stream) {
  const Shim& s = shim();
  const bool cuda = device.type == DeviceType::CUDA;
  if (cuda && current_cuda_stream(device.index) != stream)
    fail(ErrorKind::Launch,
         "random numbers are drawn on the current CUDA stream of the device, and the launch is on "
         "another; make the stream of the launch current, with torch.cuda.stream(...)");
  constexpr int64_t kSize = 2, kStride = 1, kHigh = int64_t{1} << 62;
  TensorHandle words = nullptr;
  check(s.from_blob(memory, 1, &kSize, &kStride, 0, s.dtype_code[static_cast<int>(DType::Int64)],
                    cuda ? s.device_cuda : s.device_cpu, cuda ? device.index : 0, &words),
        "making a tensor for random numbers");
  const Status status = randint(device.type)(words, 0, kHigh, &kSize, 1);
  check(s.delete_tensor(words), "freeing a tensor");
  check(status, "drawing random numbers");
}

}  // namespace

void draw_with_torch() { set_draw_philox(draw); }

}  // namespace opaq
