// The C++ op of `opaq bench boundary`, and packages as a process without Python runs them.
// ON_CUDA: whether its tensors are on CUDA.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/extension.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "boundary_launch.h"

#if ON_CUDA
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace {

boundary::Kernel kernel;

void set_kernel(int64_t function, int64_t cu_launch_kernel) {
  kernel = {reinterpret_cast<void*>(function),
            reinterpret_cast<boundary::CuLaunchKernel>(cu_launch_kernel)};
}

void* stream() {
#if ON_CUDA
  return c10::cuda::getCurrentCUDAStream().stream();
#else
  return nullptr;
#endif
}

void synchronize() {
#if ON_CUDA
  c10::cuda::device_synchronize();
#endif
}

template <std::size_t>
using Tensor = const at::Tensor&;

template <typename>
struct Op;

template <std::size_t... I>
struct Op<std::index_sequence<I...>> {
  static std::string schema() {
    std::string arguments;
    ((arguments += (I == 0 ? "Tensor t" : ", Tensor t") + std::to_string(I)), ...);
    return name() + "(" + arguments + ") -> Tensor";
  }

  static std::string name() { return "addmul" + std::to_string(TENSORS); }

  static at::Tensor call(Tensor<I>... tensors) {
    const at::Tensor& first = std::get<0>(std::tie(tensors...));
    at::Tensor out = at::empty_like(first);
    kernel(stream(), out.mutable_data_ptr<float>(), first.numel(),
           tensors.template const_data_ptr<float>()...);
    return out;
  }
};
using Addmul = Op<boundary::Indices>;

class Package {
 public:
  explicit Package(const std::string& path) : loader_(path) {}

  at::Tensor run(std::vector<at::Tensor> inputs) { return loader_.run(inputs)[0]; }

  // Median microseconds of a run that starts on an idle device.
  double us(const std::vector<at::Tensor>& inputs, int64_t repeats, int64_t warmups) {
    const c10::InferenceMode inference;
    std::vector<double> times;
    for (int64_t i = 0; i < warmups + repeats; ++i) {
      synchronize();
      const auto start = std::chrono::steady_clock::now();
      const std::vector<at::Tensor> outputs = loader_.run(inputs);
      const std::chrono::duration<double, std::micro> time =
          std::chrono::steady_clock::now() - start;
      if (i >= warmups) times.push_back(time.count());
    }
    synchronize();
    std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
    return times[repeats / 2];
  }

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(bench_boundary_cpp, m) {
  m.def(Addmul::schema().c_str(), {at::Tag::pt2_compliant_tag});
}

#if ON_CUDA
TORCH_LIBRARY_IMPL(bench_boundary_cpp, CUDA, m) {
#else
TORCH_LIBRARY_IMPL(bench_boundary_cpp, CPU, m) {
#endif
  m.impl(Addmul::name().c_str(), &Addmul::call);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("set_kernel", &set_kernel);
  pybind11::class_<Package>(m, "Package")
      .def(pybind11::init<std::string>())
      .def("run", &Package::run)
      .def("us", &Package::us);
}
