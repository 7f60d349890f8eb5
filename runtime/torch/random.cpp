// Random numbers for kernels, drawn by PyTorch's default generators.
#include "launch/random.h"

#include <cstring>

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

// Words of 62 random bits.
void draw_words(TensorHandle to, DeviceType device, int64_t count) {
  const Status status = randint(device)(to, 0, int64_t{1} << 62, &count, 1);
  check(shim().delete_tensor(to), "freeing a tensor");
  check(status, "drawing random numbers");
}

// Of exponential_, the interface has no function that writes in place, so that it is called through
// the dispatcher, which takes the handle and gives another one.
void draw_exponential(TensorHandle to) {
  const double rate = 1;
  StableIValue stack[] = {reinterpret_cast<StableIValue>(to), 0, 0};  // the generator is None
  std::memcpy(&stack[1], &rate, sizeof rate);
  check(shim().call_dispatcher("aten::exponential_", "", stack, kBuildVersion),
        "drawing exponential random numbers");
  check(shim().delete_tensor(reinterpret_cast<TensorHandle>(stack[0])), "freeing a tensor");
}

void draw(ScratchRule::Content content, const TensorView& to, void* stream) {
  const Shim& s = shim();
  const bool cuda = to.device.type == DeviceType::CUDA;
  if (cuda && current_cuda_stream(to.device.index) != stream)
    fail(ErrorKind::Launch,
         "random numbers are drawn on the current CUDA stream of the device, and the launch is on "
         "another; make the stream of the launch current, with torch.cuda.stream(...)");
  const bool exponential = content == ScratchRule::Content::Exponential;
  const DType dtype = exponential ? to.dtype : DType::Int64;  // randint draws no uint64
  const int64_t count = to.numel(), stride = 1;
  TensorHandle tensor = nullptr;
  check(s.from_blob(to.data, 1, &count, &stride, 0, s.dtype_code[static_cast<int>(dtype)],
                    cuda ? s.device_cuda : s.device_cpu, cuda ? to.device.index : 0, &tensor),
        "making a tensor for random numbers");
  if (exponential)
    draw_exponential(tensor);
  else
    draw_words(tensor, to.device.type, count);
}

}  // namespace

void draw_with_torch() { set_draw_random(draw); }

}  // namespace opaq
