// Structs by value, from CUDA source to the bytes that a launch passes.
#include "launch_fixture.h"

namespace opaq {
namespace {

constexpr const char* kSource = R"(
struct Inner { double d; bool on[3]; };
template <class T> struct Params { const T* x; T* y; int n; Inner inner; unsigned short h; };
template <class T> __global__ void k(const __grid_constant__ Params<T> p, int n, short2 s) {
  p.y[0] = p.x[0] + p.inner.d + n + s.y; }
struct Table { const float* x[400]; float* y; };
__global__ void table(Table t) { *t.y = *t.x[3]; }
)";

struct Inner {
  double d;
  bool on[3];
};
struct Params {
  uint64_t x, y;
  int n;
  Inner inner;
  unsigned short h;
};

class StructTest : public LaunchFixture {
 protected:
  void SetUp() override {
    if (!nvrtc_info().found) GTEST_SKIP() << nvrtc_info().why_not;
  }
  std::unique_ptr<PreparedLaunch> source(const std::string& entry, const std::string& args) {
    ImplementationText text;
    text.name = text.device = "cuda";
    text.kind = "source";
    text.code = kSource;
    text.entry = entry;
    text.args = args;
    return prepare(op("mylib::f(Tensor x, int n, float eps=0.5) -> (Tensor y)"), text);
  }
  std::vector<Arg> args(int64_t n) const { return {x, Arg::of_int(n), Arg::of_float(0.25), y}; }
};

TEST_F(StructTest, ALaunchPassesItsBytes) {
  const auto prepared = source("k<{x.dtype}>",
                               "struct('Params', x=x, y=y, n=n, inner=struct(d=eps, on=[n > 2, "
                               "true, ...]), h=7), n + 1, [n, 3]");
  const size_t sizes[] = {sizeof(Params), 4, 4};
  fake.set_params("_Z1kIfEv6ParamsIT_Ei6short2", 3, sizes);
  for (const int n : {3, 2}) {
    prepared->launch(args(n).data(), kCuda, nullptr);
    const auto passed = param<Params>(last(), 0);
    EXPECT_EQ(passed.x, 4096u);
    EXPECT_EQ(passed.y, 8192u);
    EXPECT_EQ(passed.n, n);
    EXPECT_EQ(passed.inner.d, 0.25);
    EXPECT_EQ(passed.inner.on[0], n > 2);
    EXPECT_TRUE(passed.inner.on[1]);
    EXPECT_FALSE(passed.inner.on[2]);
    EXPECT_EQ(passed.h, 7);
    EXPECT_EQ(param<int>(last(), 1), n + 1);
    EXPECT_EQ(param<int>(last(), 2), n | 3 << 16);
  }
  EXPECT_EQ(message(*prepared, args(40000)),
            "mylib::f: argument 3, field `x`: `n` is 40000, which does not fit the kernel's "
            "parameter `short`; declare the parameter as int64_t");
  std::vector<Arg> half = args(1);
  half[0] = Tensor({8, 16}, DType::Float32, 4096, {DeviceType::CUDA, 1});
  EXPECT_EQ(message(*prepared, half),
            "mylib::f: argument 1, field `x`: `x` is on cuda:1, but the kernel runs on cuda:0; "
            "move the tensor, or pass the number it holds");
}

TEST_F(StructTest, LargeOnesAreNoSpecialCase) {
  const auto prepared = source("table", "struct(x=[x, 0, 0, x, ...], y=y)");
  const size_t sizes[] = {401 * 8};
  fake.set_params("_Z5table5Table", 1, sizes);
  prepared->launch(args(1).data(), kCuda, nullptr);
  const auto passed = param<std::array<uint64_t, 401>>(last(), 0);
  EXPECT_EQ(passed[0], 4096u);
  EXPECT_EQ(passed[1], 0u);
  EXPECT_EQ(passed[3], 4096u);
  EXPECT_EQ(passed[4], 0u);
  EXPECT_EQ(passed[400], 8192u);
}

TEST_F(StructTest, ACppWrapperGetsOffsetsAndWidths) {
  const auto prepared =
      source("k<{x.dtype}>",
             "struct(x=x, y=y, n=n, inner=struct(d=eps, on=[true, ...]), h=7), n, "
             "[n, 3]");
  const CppLaunch launch = prepared->cpp(args(1).data(), {"sm_90a"}).steps.at(0);
  ASSERT_EQ(launch.args.size(), 3u);
  EXPECT_EQ(launch.args[0].size, static_cast<int64_t>(sizeof(Params)));
  ASSERT_EQ(launch.args[0].fields.size(), 6u);
  const CppField& d = launch.args[0].fields[3];
  EXPECT_EQ(d.offset, 24);
  EXPECT_EQ(d.width, 8);
  EXPECT_EQ(d.value.encoding, "double");
  EXPECT_EQ(d.value.where, "mylib::f: argument 1, field `inner.d`: `eps`");
  EXPECT_EQ(launch.args[1].size, 0);
}

}  // namespace
}  // namespace opaq
