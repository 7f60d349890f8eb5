// Launches through the fake driver: parameters to the byte, geometry, function attributes, devices,
// captures, threads.
#include "launch/launch.h"

#include <atomic>
#include <cmath>
#include <thread>

#include "driver/driver.h"
#include "launch_fixture.h"

namespace opaq {
namespace {

class LaunchTest : public LaunchFixture {};

// ---- parameters ---------------------------------------------------------------------------------

TEST_F(LaunchTest, WritesEveryParameterInTheKernelsOwnType) {
  auto prepared =
      binary("mylib::f(Tensor x, int n, float eps, bool flag, Tensor? w=None) -> (Tensor y)",
             {{"_Z1kPfPKfixhfdbS1_j", {8, 8, 4, 8, 1, 4, 8, 1, 8, 4}}},
             {.args = "y, x, n, x.numel(), 7, eps, eps * 2, flag, w, n + 2"});
  const std::vector<Arg> args = {x, Arg::of_int(-2), Arg::of_float(0.1), Arg::of_bool(true), Arg(),
                                 y};
  prepared->launch(args.data(), kCuda, nullptr);
  const FakeLaunch* launch = last();
  EXPECT_EQ(param<uint64_t>(launch, 0), 8192u);
  EXPECT_EQ(param<uint64_t>(launch, 1), 4096u);
  EXPECT_EQ(param<int32_t>(launch, 2), -2);
  EXPECT_EQ(param<int64_t>(launch, 3), 128);
  EXPECT_EQ(param<uint8_t>(launch, 4), 7);
  EXPECT_EQ(param<float>(launch, 5), 0.1f);
  EXPECT_EQ(param<double>(launch, 6), 0.2);
  EXPECT_EQ(param<bool>(launch, 7), true);
  EXPECT_EQ(param<uint64_t>(launch, 8), 0u) << "an absent optional tensor is a null pointer";
  EXPECT_EQ(param<uint32_t>(launch, 9), 0u);
}

TEST_F(LaunchTest, RulesAskTheDeviceThatTheyAreLaunchedOn) {
  auto prepared = binary(
      "mylib::f(Tensor x) -> (Tensor y)", {{"_Z1kPfii", {8, 4, 4}}},
      {.grid = "min(x.numel(), multiprocessors(x))", .args = "y, arch(x), shared_memory(x)"});
  const Tensor long_x{{1 << 20}};
  prepared->launch(std::vector<Arg>{long_x, y}.data(), kCuda, nullptr);
  EXPECT_EQ(last()->grid[0], 132u);  // of the fake driver
  EXPECT_EQ(param<int32_t>(last(), 1), 90);
  EXPECT_EQ(param<int32_t>(last(), 2), 227 << 10);
}

TEST_F(LaunchTest, IntegersPassToFloatingParameters) {
  auto prepared = binary("mylib::f(Tensor x, int n) -> (Tensor y)", {{"_Z1kPffd", {8, 4, 8}}},
                         {.args = "y, n, n"});
  const std::vector<Arg> args = {x, Arg::of_int(3), y};
  prepared->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(param<float>(last(), 1), 3.0f);
  EXPECT_EQ(param<double>(last(), 2), 3.0);
}

TEST_F(LaunchTest, HalfParametersAreRoundedToNearestEven) {
  auto prepared = binary("mylib::f(Tensor x, float s) -> (Tensor y)",
                         {{"_Z1kPf6__half13__nv_bfloat16", {8, 2, 2}}}, {.args = "y, s, s"});
  const struct {
    double value;
    uint16_t half, bfloat16;
  } cases[] = {
      {1.0, 0x3c00, 0x3f80},         {-2.5, 0xc100, 0xc020},      {0.1, 0x2e66, 0x3dcd},
      {65504, 0x7bff, 0x4780},       {65519.9, 0x7bff, 0x4780},   {0x1p-24, 0x0001, 0x3380},
      {0x1p-25, 0x0000, 0x3300},     {0x1.8p-25, 0x0001, 0x3340}, {1 + 0x1p-11, 0x3c00, 0x3f80},
      {1 + 0x3p-11, 0x3c02, 0x3f80}, {-0.0, 0x8000, 0x8000},      {0x1p-133, 0x0000, 0x0001},
      {INFINITY, 0x7c00, 0x7f80},    {-INFINITY, 0xfc00, 0xff80}, {0x1.ffcp-15, 0x0400, 0x3880},
  };
  for (const auto& c : cases) {
    const std::vector<Arg> args = {x, Arg::of_float(c.value), y};
    prepared->launch(args.data(), kCuda, nullptr);
    EXPECT_EQ(param<uint16_t>(last(), 1), c.half) << c.value;
    EXPECT_EQ(param<uint16_t>(last(), 2), c.bfloat16) << c.value;
  }
  const std::vector<Arg> nan = {x, Arg::of_float(NAN), y};
  prepared->launch(nan.data(), kCuda, nullptr);
  EXPECT_EQ(param<uint16_t>(last(), 1) & 0x7fff, 0x7e00);
  EXPECT_EQ(param<uint16_t>(last(), 2) & 0x7fff, 0x7fc0);
  EXPECT_EQ(message(*prepared, {x, Arg::of_float(65520), y}),
            "mylib::f: argument 2 `s` is 65520, which does not fit the kernel's parameter "
            "`__half`; declare the parameter as float or double, "
            "whose range is wider");
}

TEST_F(LaunchTest, SizesPast32BitsReach64BitParameters) {
  auto prepared = binary("mylib::f(Tensor x) -> (Tensor y)", {{"_Z1kPfxm", {8, 8, 8}}},
                         {.args = "y, x.numel(), x.numel()"});
  const Tensor huge({1ll << 20, 1ll << 13});
  const std::vector<Arg> args = {huge, huge};
  prepared->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(param<int64_t>(last(), 1), 1ll << 33);
  EXPECT_EQ(param<uint64_t>(last(), 2), 1ull << 33);
}

TEST_F(LaunchTest, NarrowingThatLosesAValueIsAnError) {
  const Tensor huge({1ll << 16, 1ll << 16});
  EXPECT_EQ(message(*copy(), {huge, Arg::of_int(1), huge}),
            "mylib::copy: argument 3 `x.numel()` is 4294967296, which does not fit the kernel's "
            "parameter `int`; declare the parameter as "
            "int64_t");
  auto prepared = binary("mylib::f(Tensor x, int n, float s) -> (Tensor y)",
                         {{"_Z1kPfjfb", {8, 4, 4, 1}}}, {.args = "y, n, s, n"});
  EXPECT_EQ(message(*prepared, {x, Arg::of_int(-1), Arg::of_float(1), y}),
            "mylib::f: argument 2 `n` is -1, which does not fit the kernel's parameter `unsigned "
            "int`; declare the parameter as a signed "
            "type such "
            "as int64_t");
  EXPECT_EQ(message(*prepared, {x, Arg::of_int(1), Arg::of_float(1e300), y}),
            "mylib::f: argument 3 `s` is 1e+300, which does not fit the kernel's parameter "
            "`float`; declare the parameter as float or "
            "double, whose "
            "range is wider");
  EXPECT_EQ(message(*prepared, {x, Arg::of_int(2), Arg::of_float(1), y}),
            "mylib::f: argument 4 `n` is 2, which does not fit the kernel's parameter `bool`; "
            "declare the parameter as int64_t");
  EXPECT_EQ(fake.launch_count(), 0);
  const std::vector<Arg> infinite = {x, Arg::of_int(1), Arg::of_float(INFINITY), y};
  prepared->launch(infinite.data(), kCuda, nullptr);
  EXPECT_TRUE(std::isinf(param<float>(last(), 2))) << "an infinity is a value, not an overflow";
}

TEST_F(LaunchTest, ParametersOfWhichOnlyTheSizeIsKnown) {
  auto prepared =
      binary("mylib::f(Tensor x, int n, float s) -> (Tensor y)", {{"k", {8, 4, 8, 4, 8, 4, 4}}},
             {.args = "y, n, n, s, s, uint32(n + 2), float32(n)"});
  const std::vector<Arg> args = {x, Arg::of_int(-1), Arg::of_float(0.5), y};
  prepared->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(param<uint64_t>(last(), 0), 8192u);
  EXPECT_EQ(param<int32_t>(last(), 1), -1);
  EXPECT_EQ(param<int64_t>(last(), 2), -1);
  EXPECT_EQ(param<float>(last(), 3), 0.5f);
  EXPECT_EQ(param<double>(last(), 4), 0.5);
  EXPECT_EQ(param<uint32_t>(last(), 5), 1u);
  EXPECT_EQ(param<float>(last(), 6), -1.0f)
      << "a cast names the type of a parameter that is not known";

  EXPECT_EQ(message(*binary("mylib::g(Tensor x) -> (Tensor y)", {{"k", {8, 4}}}, {.args = "y, x"}),
                    {x, y}, ErrorKind::Compile),
            "mylib::g: argument 2 `x` is Tensor, but parameter 2 has 4 bytes; pass a number of it, "
            "such as x.numel(), or declare the "
            "parameter as a "
            "pointer");
  EXPECT_EQ(
      message(*binary("mylib::g(Tensor x) -> (Tensor y)", {{"k", {8, 2}}}, {.args = "y, 1.5"}),
              {x, y}, ErrorKind::Compile),
      "mylib::g: argument 2 `1.5` is float, but parameter 2 has 2 bytes; name the parameter's type "
      "by a cast, such as float32(1.5)");
}

TEST_F(LaunchTest, TakesMoreParametersThanFitTheStack) {
  PtxKernel kernel{"_Z1kPf" + std::string(99, 'i'), {8}};
  std::string args = "y";
  for (int i = 1; i < 100; ++i) {
    kernel.sizes.push_back(4);
    args += ", n + " + std::to_string(i);
  }
  auto prepared = binary("mylib::f(Tensor x, int n) -> (Tensor y)", {kernel}, {.args = args});
  const std::vector<Arg> values = {x, Arg::of_int(1000), y};
  prepared->launch(values.data(), kCuda, nullptr);
  ASSERT_EQ(last()->param_count, 100);
  EXPECT_EQ(param<uint64_t>(last(), 0), 8192u);
  for (int i = 1; i < 100; ++i) EXPECT_EQ(param<int32_t>(last(), i), 1000 + i);
}

TEST_F(LaunchTest, TensorsAreCheckedOnEveryLaunch) {
  auto prepared = copy();
  const std::vector<Arg> args = {x, Arg::of_int(1), y};
  prepared->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(message(*prepared, {Tensor({8, 16}, DType::Float16), Arg::of_int(1), y}),
            "mylib::copy: argument 2 `x` is float16, but parameter 2 is `float const*`; convert "
            "the tensor, make the element type a template "
            "parameter filled from .dtype, declare the parameter as void* to take any dtype, or, "
            "where the kernel reads its bytes as another type, write cast(\"float const*\", x)");
  EXPECT_EQ(message(*prepared, {Tensor({8, 16}, DType::Float32, 4096, kCpu), Arg::of_int(1), y}),
            "mylib::copy: argument 2 `x` is on cpu, but the kernel runs on cuda:0; move the "
            "tensor, or pass the number it holds");
  EXPECT_EQ(fake.launch_count(), 1);
}

// ---- geometry -----------------------------------------------------------------------------------

TEST_F(LaunchTest, EvaluatesGridBlockAndSharedPerCall) {
  auto prepared =
      copy({.grid = "ceil_div(x.size(0), 3), x.size(1), 2", .block = "32, n", .shared = "n * 128"});
  const std::vector<Arg> args = {x, Arg::of_int(4), y};
  const CUstream stream = reinterpret_cast<CUstream>(0x1234);
  prepared->launch(args.data(), kCuda, stream);
  const FakeLaunch* launch = last();
  EXPECT_STREQ(launch->kernel, "_Z1kPfPKfi");
  EXPECT_EQ(std::vector(launch->grid, launch->grid + 3), (std::vector<unsigned>{3, 16, 2}));
  EXPECT_EQ(std::vector(launch->block, launch->block + 3), (std::vector<unsigned>{32, 4, 1}));
  EXPECT_EQ(std::vector(launch->cluster, launch->cluster + 3), (std::vector<unsigned>{0, 0, 0}));
  EXPECT_EQ(launch->shared, 512u);
  EXPECT_EQ(launch->stream, stream);
  EXPECT_EQ(launch->cooperative, 0);
  EXPECT_EQ(launch->programmatic, 0);

  const LaunchPlan plan = prepared->plan(args.data());
  EXPECT_EQ(plan.entry, "k");
  EXPECT_EQ(std::vector(plan.grid, plan.grid + 3), (std::vector<int64_t>{3, 16, 2}));
  EXPECT_EQ(std::vector(plan.block, plan.block + 3), (std::vector<int64_t>{32, 4, 1}));
  EXPECT_EQ(plan.shared, 512);
  EXPECT_FALSE(plan.empty);
}

TEST_F(LaunchTest, NothingIsLaunchedOrCompiledForEmptyWork) {
  auto prepared = copy({.grid = "n"});
  const std::vector<Arg> none = {x, Arg::of_int(0), y};
  prepared->launch(none.data(), kCuda, nullptr);
  EXPECT_TRUE(prepared->plan(none.data()).empty);

  // An empty output: the grid need not even have a value.
  auto divides = copy({.grid = "x.numel() // x.size(-1)"});
  const Tensor empty({8, 0}, DType::Float32, 0);
  const std::vector<Arg> args = {empty, Arg::of_int(1), empty};
  divides->launch(args.data(), kCuda, nullptr);
  divides->warmup(args.data(), kCuda);
  EXPECT_TRUE(divides->plan(args.data()).empty);
  EXPECT_EQ(divides->stats().calls, 1);
  EXPECT_EQ(divides->stats().skipped_empty, 1);
  EXPECT_EQ(fake.launch_count(), 0);
  EXPECT_EQ(fake.calls("cuLibraryLoadData"), 0);
}

TEST_F(LaunchTest, GeometryOutOfRangeNamesExpressionValueAndLimit) {
  const auto fails = [&](ImplementationText text, int64_t n) {
    return message(*copy(std::move(text)), {x, Arg::of_int(n), y});
  };
  EXPECT_EQ(fails({.grid = "n"}, -3),
            "mylib::copy: grid.x `n` is -3; it must be between 0 and 2147483647");
  EXPECT_EQ(fails({.grid = "n"}, 1ll << 31),
            "mylib::copy: grid.x `n` is 2147483648; it must be between 0 and 2147483647");
  EXPECT_EQ(fails({.grid = "1, n * 2"}, 32768),
            "mylib::copy: grid.y `n * 2` is 65536; it must be between 0 and 65535");
  EXPECT_EQ(fails({.block = "n"}, 2048),
            "mylib::copy: block.x `n` is 2048; it must be between 1 and 1024");
  EXPECT_EQ(fails({.block = "1, 1, n"}, 65),
            "mylib::copy: block.z `n` is 65; it must be between 1 and 64");
  EXPECT_EQ(fails({.block = "n"}, 0),
            "mylib::copy: block.x `n` is 0; it must be between 1 and 1024");
  EXPECT_EQ(fails({.block = "64, n"}, 32),
            "mylib::copy: block (`64` = 64, `n` = 32, `1` = 1) has 2048 threads; at most 1024 fit "
            "a block");
  EXPECT_EQ(fails({.shared = "n"}, -1), "mylib::copy: shared `n` is -1; it is a size in bytes");
  EXPECT_EQ(fails({.grid = "10", .cluster = "n"}, 4),
            "mylib::copy: grid.x `10` is 10, which is not a multiple of cluster.x `n` is 4; round "
            "the grid up and let the extra blocks "
            "return early");
  EXPECT_EQ(
      fails({.grid = "64, 64", .cluster = "8, n"}, 4),
      "mylib::copy: cluster (`8` = 8, `n` = 4, `1` = 1) has 32 blocks; at most 16 fit a cluster");
  const std::string division = fails({.grid = "8 // n"}, 0);
  EXPECT_NE(division.find("mylib::copy"), std::string::npos) << division;
  EXPECT_NE(division.find("8 // n"), std::string::npos) << division;
}

// ---- attributes ---------------------------------------------------------------------------------

TEST_F(LaunchTest, SharedMemoryPast48KIsAllowedOnceAndGrows) {
  auto prepared = copy({.shared = "n"});
  const auto launch = [&](int64_t bytes) {
    const std::vector<Arg> args = {x, Arg::of_int(bytes), y};
    prepared->launch(args.data(), kCuda, nullptr);
    return fake.calls("cuKernelSetAttribute");
  };
  EXPECT_EQ(launch(48 * 1024), 0);
  EXPECT_EQ(launch(100000), 1);
  EXPECT_EQ(launch(100000), 1);
  EXPECT_EQ(launch(60000), 1) << "the attribute never shrinks";
  EXPECT_EQ(launch(200000), 2);
  EXPECT_EQ(fake.attribute("_Z1kPfPKfi", CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 0),
            200000);
  EXPECT_EQ(message(*prepared, {x, Arg::of_int(300000), y}),
            "mylib::copy: shared `n` is 300000 bytes, but cuda:0 allows a block at most 232448 "
            "bytes; use a smaller tile");
  EXPECT_EQ(fake.launch_count(), 5);
}

TEST_F(LaunchTest, ClusterCooperativeAndProgrammaticLaunches) {
  const std::vector<Arg> args = {x, Arg::of_int(2), y};
  copy({.grid = "8", .cluster = "n, 1, 1"})->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(std::vector(last()->cluster, last()->cluster + 3), (std::vector<unsigned>{2, 1, 1}));
  EXPECT_EQ(fake.calls("cuKernelSetAttribute"), 0) << "up to 8 blocks are portable";
  EXPECT_EQ(last()->cooperative, 0);

  copy({.cooperative = true})->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(last()->cooperative, 1);
  EXPECT_EQ(last()->programmatic, 0);
  copy({.programmatic = true})->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(last()->cooperative, 0);
  EXPECT_EQ(last()->programmatic, 1);

  auto wide = copy({.grid = "32", .cluster = "16"});
  for (int i = 0; i < 3; ++i) wide->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(fake.attribute("_Z1kPfPKfi", CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 0),
            1);
  EXPECT_EQ(fake.calls("cuKernelSetAttribute"), 1);
}

// ---- instances, devices, captures ---------------------------------------------------------------

class TemplateTest : public LaunchFixture {
 protected:
  TemplateTest() {
    prepared = binary("mylib::f(Tensor x) -> (Tensor y)",
                      {{"_Z1kIfEvPT_PKS0_i", {8, 8, 4}}, {"_Z1kI6__halfEvPT_PKS1_i", {8, 8, 4}}},
                      {.entry = "k<{x.dtype}>", .args = "y, x, x.numel()"});
  }
  const Tensor half{{8, 16}, DType::Float16};
  const std::vector<Arg> floats = {x, y}, halves = {half, half};
  std::unique_ptr<PreparedLaunch> prepared;
};

TEST_F(TemplateTest, EachSetOfTemplateValuesIsLoadedOnce) {
  for (int i = 0; i < 3; ++i) {
    prepared->launch(floats.data(), kCuda, nullptr);
    EXPECT_STREQ(last()->kernel, "_Z1kIfEvPT_PKS0_i");
    prepared->launch(halves.data(), kCuda, nullptr);
    EXPECT_STREQ(last()->kernel, "_Z1kI6__halfEvPT_PKS1_i");
  }
  EXPECT_EQ(fake.calls("cuLibraryLoadData"), 2);
  EXPECT_EQ(prepared->stats().calls, 6);
  EXPECT_EQ(prepared->plan(halves.data()).entry, "k<__half>");
}

TEST_F(TemplateTest, EveryDeviceGetsItsOwnContext) {
  fake.set_devices(3);
  for (const int device : {2, 0, 2, 1}) {
    const Tensor a({8, 16}, DType::Float32, 4096, {DeviceType::CUDA, device});
    const std::vector<Arg> args = {a, a};
    prepared->launch(args.data(), {DeviceType::CUDA, device}, nullptr);
    EXPECT_EQ(last()->device, device);
    EXPECT_EQ(fake.context_depth(), 0) << "the caller's context is put back";
  }
  EXPECT_EQ(fake.calls("cuLibraryLoadData"), 1) << "one image serves all devices";
  const Tensor a({8, 16}, DType::Float32, 4096, {DeviceType::CUDA, 7});
  const std::string text = message(*prepared, {a, a}, ErrorKind::Missing, {DeviceType::CUDA, 7});
  EXPECT_EQ(text.rfind("mylib::f: there is no CUDA device 7", 0), 0u) << text;
}

TEST_F(TemplateTest, LoadingDuringACaptureIsRefusedAndWarmLaunchesAreNot) {
  const CUstream stream = reinterpret_cast<CUstream>(0x77);
  prepared->launch(floats.data(), kCuda, stream);
  fake.set_capture(stream, CU_STREAM_CAPTURE_STATUS_ACTIVE);
  const Error error = error_of([&] { prepared->launch(halves.data(), kCuda, stream); });
  EXPECT_EQ(error.kind, ErrorKind::Capture);
  EXPECT_STREQ(error.what(),
               "mylib::f: `k<__half>` is not loaded on cuda:0 yet, and nothing can be loaded while "
               "a stream is captured; run it once with these arguments, or call opaq.warmup(...) "
               "with them, before the capture");
  prepared->launch(floats.data(), kCuda, stream);
  EXPECT_EQ(fake.launch_count(), 2);

  prepared->warmup(halves.data(), kCuda);
  prepared->launch(halves.data(), kCuda, stream);
  EXPECT_STREQ(last()->kernel, "_Z1kI6__halfEvPT_PKS1_i");
  EXPECT_EQ(fake.capture(stream), CU_STREAM_CAPTURE_STATUS_ACTIVE)
      << "nothing on the way broke the capture";
}

TEST_F(TemplateTest, WarmupRaisesAttributesAndLaunchesNothing) {
  auto large = copy({.shared = "100000"});
  const std::vector<Arg> args = {x, Arg::of_int(1), y};
  large->warmup(args.data(), kCuda);
  EXPECT_EQ(fake.launch_count(), 0);
  EXPECT_EQ(fake.calls("cuKernelSetAttribute"), 1);
  large->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(fake.calls("cuKernelSetAttribute"), 1);
  EXPECT_EQ(large->stats().calls, 1);
}

TEST_F(TemplateTest, ManyThreadsShareOnePreparedLaunch) {
  fake.set_devices(2);
  constexpr int kThreads = 4, kLaunches = 200;
  std::atomic<int> ready{0}, failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const Device device{DeviceType::CUDA, t % 2};
      const Tensor a({8, 16}, DType::Float32, 4096, device),
          b({8, 16}, DType::Float16, 4096, device);
      const std::vector<Arg> args[2] = {{a, a}, {b, b}};
      ++ready;
      while (ready < kThreads) std::this_thread::yield();
      try {
        for (int i = 0; i < kLaunches; ++i)
          prepared->launch(args[(i + t) % 2].data(), device, nullptr);
      } catch (const Error&) {
        ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(fake.launch_count(), kThreads * kLaunches);
  EXPECT_EQ(prepared->stats().calls, kThreads * kLaunches);
  EXPECT_EQ(fake.calls("cuLibraryLoadData"), 2);
}

// ---- errors of the driver, misuse, counters -----------------------------------------------------

TEST_F(LaunchTest, DriverErrorsNameOpEntryAndGeometry) {
  auto prepared = copy();
  const std::vector<Arg> args = {x, Arg::of_int(1), y};
  fake.fail("cuLaunchKernel", CUDA_ERROR_ILLEGAL_ADDRESS, 1);
  const Error sticky = error_of([&] { prepared->launch(args.data(), kCuda, nullptr); });
  EXPECT_EQ(sticky.kind, ErrorKind::Driver);
  EXPECT_TRUE(sticky.sticky);
  EXPECT_EQ(std::string(sticky.what())
                .rfind("mylib::copy: launching `k` on cuda:0 with grid (1, 1, 1), block (1, 1, 1), "
                       "0 bytes of dynamic shared "
                       "memory: CUDA_ERROR_ILLEGAL_ADDRESS",
                       0),
            0u)
      << sticky.what();
  fake.fail("cuLibraryLoadData", CUDA_ERROR_NO_BINARY_FOR_GPU, 1);
  const Error loading = error_of([&] { copy()->launch(args.data(), kCuda, nullptr); });
  EXPECT_FALSE(loading.sticky);
  EXPECT_EQ(std::string(loading.what()).rfind("mylib::copy: loading `k` on cuda:0: ", 0), 0u)
      << loading.what();
  prepared->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(prepared->stats().calls, 1) << "failed launches are not counted";
}

TEST_F(LaunchTest, AFailedLoadIsTriedAgain) {
  auto prepared = copy();
  const std::vector<Arg> args = {x, Arg::of_int(1), y};
  fake.fail("cuLibraryLoadData", CUDA_ERROR_OUT_OF_MEMORY, 1);
  message(*prepared, args, ErrorKind::Driver);
  prepared->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(fake.launch_count(), 1);
}

TEST_F(LaunchTest, RefusesWhatIsNotItsOwn) {
  EXPECT_EQ(message(*copy(), {x, Arg::of_int(1), y}, ErrorKind::Launch, kCpu),
            "mylib::copy: implementation `cuda` runs on cuda, but was asked to run on cpu");
  const OpSpec spec = op("mylib::f(Tensor x) -> (Tensor y)");
  EXPECT_EQ(message(*prepare(spec, {.name = "py", .device = "cuda", .kind = "python"}), {x, y},
                    ErrorKind::Internal),
            "mylib::f: implementation `py` is a Python function, which is called and not launched");
  std::string entry = "k<1";
  for (int i = 0; i < 17; ++i) entry += ", {x.size(0)}";
  const Error error = error_of([&] { copy({.entry = entry + ">"}); });
  EXPECT_STREQ(error.what(),
               "mylib::copy: entry of implementation `cuda` has 17 template arguments; at most 16 "
               "are supported");
}

TEST_F(LaunchTest, CountsCallsAlwaysAndTheTimeThatItIsToldOf) {
  auto prepared = copy();
  const std::vector<Arg> args = {x, Arg::of_int(1), y};
  prepared->launch(args.data(), kCuda, nullptr);
  prepared->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(prepared->stats().timed_calls, 0);
  EXPECT_EQ(prepared->stats().host_seconds, 0);
  prepared->add_host_time(1500);
  prepared->add_host_time(500);
  const LaunchStats stats = prepared->stats();
  EXPECT_EQ(stats.calls, 2);
  EXPECT_EQ(stats.timed_calls, 2);
  EXPECT_DOUBLE_EQ(stats.host_seconds, 2e-6);
  EXPECT_EQ(stats.compiled + stats.disk_hits, 0) << "a binary is not compiled";
}

}  // namespace
}  // namespace opaq
