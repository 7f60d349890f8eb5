// The function of TVM-FFI of `opaq bench boundary`.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>

#include <tuple>

#include "boundary_launch.h"

namespace {

using tvm::ffi::TensorView;

boundary::Kernel kernel;

void set_kernel(int64_t function, int64_t cu_launch_kernel) {
  kernel = {reinterpret_cast<void*>(function),
            reinterpret_cast<boundary::CuLaunchKernel>(cu_launch_kernel)};
}

template <std::size_t>
using View = TensorView;

template <typename>
struct Function;

template <std::size_t... I>
struct Function<std::index_sequence<I...>> {
  static void call(View<I>... tensors, TensorView out) {
    const DLDevice device = out.device();
    kernel(TVMFFIEnvGetStream(device.device_type, device.device_id),
           static_cast<float*>(out.data_ptr()), out.numel(),
           static_cast<const float*>(tensors.data_ptr())...);
  }
};
using Addmul = Function<boundary::Indices>;

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(set_kernel, set_kernel);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(addmul, Addmul::call);
