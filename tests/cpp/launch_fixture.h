// What tests of launches share: ops and implementations in a few words, tensors without memory, the
// fake driver.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../fake_driver/fake_driver.h"
#include "base/error.h"
#include "kinds/kind.h"
#include "launch/launch.h"

namespace opaq {

// The fake driver, and a disk cache of this process alone. Set before settings() are read, removed
// at the end.
class Surroundings : public testing::Environment {
 public:
  Surroundings()
      : cache_(std::filesystem::temp_directory_path() /
               ("opaq_launch_test." + std::to_string(getpid()))) {
    setenv("OPAQ_CACHE_DIR", cache_.c_str(), 1);
    setenv("OPAQ_DRIVER", OPAQ_FAKE_DRIVER, 1);
  }
  void TearDown() override { std::filesystem::remove_all(cache_); }

 private:
  const std::filesystem::path cache_;
};
inline testing::Environment* const surroundings =
    testing::AddGlobalTestEnvironment(new Surroundings);

inline Error error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "expected an error";
  return Error(ErrorKind::Internal, "");
}

// A contiguous tensor at an address that nothing reads.
struct Tensor {
  explicit Tensor(std::vector<int64_t> sizes, DType dtype = DType::Float32,
                  uintptr_t address = 4096, Device device = {DeviceType::CUDA, 0})
      : sizes(std::move(sizes)),
        strides(this->sizes.size()),
        address(address),
        dtype(dtype),
        device(device) {
    int64_t step = 1;
    for (size_t i = this->sizes.size(); i-- > 0; step *= this->sizes[i]) strides[i] = step;
  }
  operator Arg() const {
    return TensorView{reinterpret_cast<void*>(address),   sizes.data(), strides.data(),
                      static_cast<int32_t>(sizes.size()), dtype,        device};
  }
  std::vector<int64_t> sizes, strides;
  uintptr_t address;
  DType dtype;
  Device device;
};

inline constexpr Device kCuda{DeviceType::CUDA, 0}, kCpu{DeviceType::CPU, 0};

// PTX that declares kernels, whose mangled names tell the types: "_Z1kPfPKfi" is k(float*, float
// const*, int).
struct PtxKernel {
  std::string symbol;
  std::vector<size_t> sizes;
};
inline std::string ptx(const std::vector<PtxKernel>& kernels) {
  std::string text = ".version 8.0\n.target sm_90\n.address_size 64\n";
  for (const PtxKernel& kernel : kernels) {
    text += ".visible .entry " + kernel.symbol + "(";
    for (size_t i = 0; i < kernel.sizes.size(); ++i) {
      const std::string name = " p" + std::to_string(i);
      text += (i ? ", .param ." : ".param .") +
              (kernel.sizes[i] > 8 ? "b8" + name + "[" + std::to_string(kernel.sizes[i]) + "]"
                                   : "u" + std::to_string(kernel.sizes[i] * 8) + name);
    }
    text += ") { ret; }\n";
  }
  return text;
}

class LaunchFixture : public testing::Test {
 protected:
  LaunchFixture() : fake(OPAQ_FAKE_DRIVER) { fake.reset(); }

  static OpSpec op(const std::string& schema) {
    const Schema names = parse_schema(schema);
    std::vector<OutputText> outputs;
    for (const std::string& name : names.returns) outputs.push_back({.name = name, .like = "x"});
    return make_op(schema, outputs);
  }

  static std::unique_ptr<PreparedLaunch> prepare(const OpSpec& spec,
                                                 const ImplementationText& text) {
    return std::make_unique<PreparedLaunch>(
        spec.schema.qualname(),
        std::make_shared<const Implementation>(make_implementation(spec, text)),
        spec.all_symbols());
  }

  // One kernel of an op on x and whatever else; x goes to y unless `args` says otherwise.
  std::unique_ptr<PreparedLaunch> binary(const std::string& schema,
                                         const std::vector<PtxKernel>& kernels,
                                         ImplementationText text) {
    text.name = text.device = "cuda";
    text.kind = "binary";
    text.file = "k.ptx";
    text.code = ptx(kernels);
    if (text.entry.empty()) text.entry = "k";
    for (const PtxKernel& kernel : kernels)
      fake.set_params(kernel.symbol.c_str(), static_cast<int>(kernel.sizes.size()),
                      kernel.sizes.data());
    return prepare(op(schema), text);
  }
  std::unique_ptr<PreparedLaunch> copy(ImplementationText text = {}) {
    if (text.args.empty()) text.args = "y, x, x.numel()";
    return binary("mylib::copy(Tensor x, int n=1) -> (Tensor y)", {{"_Z1kPfPKfi", {8, 8, 4}}},
                  std::move(text));
  }

  template <class T>
  T param(const FakeLaunch* launch, int index) {
    T value{};
    if (!launch || index >= launch->param_count || launch->param_sizes[index] != sizeof(T)) {
      ADD_FAILURE() << "parameter " << index << " does not have " << sizeof(T) << " bytes";
      return value;
    }
    std::memcpy(&value, launch->params[index], sizeof(T));
    return value;
  }
  const FakeLaunch* last() { return fake.launch(fake.launch_count() - 1); }
  std::string message(PreparedLaunch& prepared, const std::vector<Arg>& args,
                      ErrorKind kind = ErrorKind::Launch, Device device = kCuda) {
    const Error error = error_of([&] { prepared.launch(args.data(), device, nullptr); });
    EXPECT_EQ(static_cast<int>(error.kind), static_cast<int>(kind)) << error.what();
    return error.what();
  }

  Fake fake;
  const Tensor x{{8, 16}}, y{{8, 16}, DType::Float32, 8192};
};

}  // namespace opaq
