// Ops in PyTorch's dispatcher, called through its C interface. Built without torch; the libtorch of
// the Python environment is opened at run time.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "../../runtime/torch/shim.h"
#include "launch_fixture.h"
#include "registry/registry.h"
#include "torch/dispatcher.h"

namespace opaq {
namespace {

using torch::shim;
using torch::StableIValue;

TEST(WithoutTorch, AnOpCannotBeDefinedUntilLibtorchIsLoaded) {
  const Error error = error_of([] { shim(); });
  EXPECT_EQ(error.kind, ErrorKind::Missing);
  EXPECT_STREQ(error.what(),
               "libtorch_cpu.so is not loaded in this process; `import torch`, or link libtorch, "
               "before opaq defines an op");
}

class TorchTest : public LaunchFixture {
 protected:
  static void SetUpTestSuite() {
    ASSERT_NE(dlopen(OPAQ_TEST_LIBTORCH, RTLD_NOW | RTLD_GLOBAL), nullptr) << dlerror();
  }

  // y = x * by, for tensors that meet `required`.
  static Op& scale(const std::string& name, const std::string& required = "") {
    Op& op = declare(LaunchFixture::op(name + "(Tensor x, float by) -> (Tensor y)"));
    ImplementationText text = {.name = "cpu",
                               .device = "cpu",
                               .kind = "source",
                               .code =
                                   "void k(const float* x, float by, float* y, long n) {\n"
                                   "  for (long i = 0; i < n; ++i) y[i] = x[i] * by; }",
                               .entry = "k",
                               .args = "x, by, y, x.numel()"};
    if (!required.empty()) text.requires_ = {required};
    op.add(make_implementation(op.spec(), text));
    define_with_torch(op);
    return op;
  }

  static torch::TensorHandle tensor(std::vector<int64_t> sizes, std::vector<int64_t> strides) {
    torch::TensorHandle made = nullptr;
    EXPECT_EQ(shim().empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                   shim().dtype_code[static_cast<int>(DType::Float32)],
                                   shim().device_cpu, 0, &made),
              0);
    return made;
  }
  static float* data(torch::TensorHandle tensor) {
    void* address = nullptr;
    EXPECT_EQ(shim().get_data_ptr(tensor, &address), 0);
    return static_cast<float*>(address);
  }

  // Takes the handle of x; the result's handle, or nullptr where the call failed.
  static torch::TensorHandle call(const std::string& op, torch::TensorHandle x, double by) {
    StableIValue stack[2] = {reinterpret_cast<StableIValue>(x), 0};
    std::memcpy(&stack[1], &by, sizeof by);
    if (shim().call_dispatcher(op.c_str(), "", stack, torch::kBuildVersion) != 0) return nullptr;
    return reinterpret_cast<torch::TensorHandle>(stack[0]);
  }
};

TEST_F(TorchTest, ACallRunsTheImplementation) {
  scale("torch_test::scale");
  torch::TensorHandle x = tensor({2, 3}, {3, 1});
  for (int i = 0; i < 6; ++i) data(x)[i] = static_cast<float>(i);
  const torch::TensorHandle y = call("torch_test::scale", x, 0.5);
  ASSERT_NE(y, nullptr);
  int64_t dim = 0, *sizes = nullptr;
  shim().get_dim(y, &dim);
  shim().get_sizes(y, &sizes);
  EXPECT_EQ(std::vector(sizes, sizes + dim), (std::vector<int64_t>{2, 3}));
  for (int i = 0; i < 6; ++i) EXPECT_EQ(data(y)[i], 0.5f * static_cast<float>(i));
  shim().delete_tensor(y);
}

TEST_F(TorchTest, ATransposedArgumentIsCopiedForAnImplementationThatReadsNoStrides) {
  scale("torch_test::row_major");
  torch::TensorHandle x = tensor({2, 3}, {1, 2});
  for (int i = 0; i < 6; ++i) data(x)[i] = static_cast<float>(i);
  const torch::TensorHandle y = call("torch_test::row_major", x, 2);
  ASSERT_NE(y, nullptr);
  int64_t* strides = nullptr;
  shim().get_strides(y, &strides);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      EXPECT_EQ(data(y)[i * strides[0] + j * strides[1]], 2.0f * static_cast<float>(i + 2 * j));
  shim().delete_tensor(y);
}

TEST_F(TorchTest, ACallThatNothingFitsFails) {
  scale("torch_test::refused", "x.size(0) > 2");
  EXPECT_EQ(call("torch_test::refused", tensor({2, 3}, {3, 1}), 1), nullptr);
  const torch::TensorHandle y = call("torch_test::refused", tensor({3, 3}, {3, 1}), 1);
  EXPECT_NE(y, nullptr) << "and the op can still be called";
  shim().delete_tensor(y);
}

TEST_F(TorchTest, DTypesAreTorchs) {
  for (const DType dtype : {DType::Float32, DType::BFloat16, DType::Int64, DType::Bool}) {
    const int32_t code = shim().dtype_code[static_cast<int>(dtype)];
    ASSERT_GE(code, 0);
    EXPECT_EQ(shim().dtype(code), dtype);
  }
}

}  // namespace
}  // namespace opaq
