// What a generated C++ wrapper is made from: entry, parameters and launch rule of an implementation
// as C++ text.
#include "launch_fixture.h"

namespace opaq {
namespace {

class CppTest : public LaunchFixture {};

TEST_F(CppTest, ABinaryGivesItsRuleAndTheFormOfEachParameter) {
  auto prepared = copy({.grid = "ceil_div(x.numel(), 256)",
                        .block = "256, n",
                        .args = "y, x, x.numel() * n",
                        .requires_ = {"aligned(x, 16)"}});
  const std::vector<Arg> args = {x, Arg::of_int(2), y};
  const CppImplementation whole = prepared->cpp(args.data(), {});
  ASSERT_EQ(whole.steps.size(), 1u);
  const CppLaunch& made = whole.steps[0];
  EXPECT_EQ(made.entry, "k");
  EXPECT_EQ(made.symbol, "_Z1kPfPKfi");
  ASSERT_EQ(made.images.size(), 1u);
  ASSERT_EQ(made.grid.size(), 3u);
  EXPECT_EQ(made.grid[0].cpp, "opaq_ceil_div(x.numel(), 256)");
  EXPECT_EQ(made.grid[0].text, "ceil_div(x.numel(), 256)");
  EXPECT_EQ(made.grid[2].cpp, "1");
  EXPECT_EQ(made.block[1].cpp, "n");
  EXPECT_TRUE(made.cluster.empty());
  ASSERT_EQ(made.args.size(), 3u);
  EXPECT_EQ(made.args[0].encoding, "pointer");
  EXPECT_EQ(made.args[2].encoding, "integer");
  EXPECT_EQ(made.args[2].low, INT32_MIN);
  EXPECT_EQ(made.args[2].high, INT32_MAX);
  EXPECT_EQ(made.args[2].parameter, "`int`");
  EXPECT_EQ(whole.reads, (std::vector<std::string>{"x", "n", "y"}));
  EXPECT_EQ(whole.shaped, std::vector<std::string>{"x"});  // of y the address alone
  EXPECT_TRUE(whole.strided.empty());
}

TEST_F(CppTest, StridesAreNamedWhereAnExpressionReadsThem) {
  const std::vector<Arg> args = {x, Arg::of_int(2), y};
  EXPECT_EQ(copy({.args = "y, x, x.stride(0)"})->cpp(args.data(), {}).strided,
            std::vector<std::string>{"x"});
  EXPECT_EQ(
      copy({.args = "y, x, n", .requires_ = {"y.is_contiguous()"}})->cpp(args.data(), {}).strided,
      std::vector<std::string>{"y"});
}

TEST_F(CppTest, HostSourceBringsItsSharedObject) {
  const OpSpec spec = op("mylib::twice(Tensor x) -> (Tensor y)");
  auto prepared = prepare(spec, {.name = "cpu",
                                 .device = "cpu",
                                 .kind = "source",
                                 .code = "template <typename T> void twice(const T* x, T* y, long "
                                         "n) { while (n--) y[n] = 2 * x[n]; }",
                                 .entry = "twice<{x.dtype}>",
                                 .args = "x, y, x.numel()"});
  const Tensor in({4}, DType::Float64, 4096, kCpu), out({4}, DType::Float64, 8192, kCpu);
  const std::vector<Arg> args = {in, out};
  const CppLaunch made = prepared->cpp(args.data(), {}).steps.at(0);
  EXPECT_EQ(made.entry, "twice<double>");
  EXPECT_EQ(made.symbol, "opaq_invoke");
  ASSERT_TRUE(made.host);
  EXPECT_EQ(made.host->library.substr(1, 3), "ELF");
  EXPECT_TRUE(made.grid.empty());
}

TEST_F(CppTest, SourceForADeviceNeedsAnArch) {
  const OpSpec spec = op("mylib::f(Tensor x) -> (Tensor y)");
  auto prepared = prepare(spec, {.name = "cuda",
                                 .device = "cuda",
                                 .kind = "source",
                                 .code = "__global__ void f(float* y) {}",
                                 .entry = "f",
                                 .args = "y"});
  const std::vector<Arg> args = {x, y};
  const Error error = error_of([&] { prepared->cpp(args.data(), {}); });
  EXPECT_EQ(error.kind, ErrorKind::Declaration);
  EXPECT_STREQ(
      error.what(),
      "mylib::f: compiling for a device needs its architecture, such as \"sm_90a\"; got none");
}

}  // namespace
}  // namespace opaq
