// Every property of a CUDA launch, in both forms that a launch has: PreparedLaunch, which eager
// calls and Python wrappers make, and PackagedKernel, which C++ wrappers and packages are printed
// with (their printed text: tests/python/test_cuda_prelude.py; on a GPU: tests/gpu).
#include <atomic>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/sha256.h"
#include "driver/driver.h"
#include "launch_fixture.h"
#include "standalone/packaged_kernel.h"

namespace opaq {
namespace {

// Items are numbers or `n`, the argument of the op.
struct Rule {
  std::string grid = "1", block = "32", cluster, shared = "0";
  bool cooperative = false, programmatic = false;
};

class Launcher {
 public:
  virtual ~Launcher() = default;
  virtual void launch(int64_t n, int device = 0, CUstream stream = nullptr) = 0;
};

class Prepared : public Launcher {
 public:
  explicit Prepared(std::unique_ptr<PreparedLaunch> prepared) : prepared_(std::move(prepared)) {}
  void launch(int64_t n, int index, CUstream stream) override {
    const Device device{DeviceType::CUDA, index};
    const Tensor x({8, 16}, DType::Float32, 4096, device);
    const std::vector<Arg> args = {x, Arg::of_int(n), x};
    prepared_->launch(args.data(), device, stream);
  }

 private:
  std::unique_ptr<PreparedLaunch> prepared_;
};

class Packaged : public Launcher {
 public:
  Packaged(const Rule& rule, const std::string& image) {
    file_ = std::filesystem::temp_directory_path() /
            ("opaq_everywhere." + std::to_string(getpid()) + ".ptx");
    std::ofstream(file_) << image;
    digest_ = Sha256().update(image).hex();
    image_[0] = {"compute_90", file_.c_str(), digest_.c_str()};
    declared_ = {"mylib::copy", {}, {}, {}, "", rule.cooperative, rule.programmatic};
    fill(grid_, rule.grid, declared_.grid);
    fill(block_, rule.block, declared_.block);
    fill(cluster_, rule.cluster, declared_.cluster);
    if (rule.cluster.empty()) declared_.cluster[0] = nullptr;
    shared_ = rule.shared;
    declared_.shared = shared_.c_str();
  }
  ~Packaged() override { std::filesystem::remove(file_); }

  // As runtime/wrapper prints it.
  void launch(int64_t n, int device, CUstream stream) override {
    standalone::Geometry geometry;
    if (!standalone::set_grid(declared_, geometry, values(grid_, n))) return;
    standalone::set_block(declared_, geometry, values(block_, n));
    if (declared_.cluster[0]) standalone::set_cluster(declared_, geometry, values(cluster_, n));
    standalone::set_shared(declared_, geometry, value(shared_, n));
    uint64_t args[3] = {4096, 4096, 128};
    void* pointers[3] = {&args[0], &args[1], &args[2]};
    kernel_.launch(geometry, device, std::nullopt, stream, pointers);
  }

 private:
  using Texts = std::array<std::string, 3>;
  static void fill(Texts& texts, const std::string& list, const char* (&to)[3]) {
    std::istringstream items(list);
    for (int i = 0; i < 3; ++i) {
      std::string item;
      texts[i] = std::getline(items >> std::ws, item, ',') ? item : "1";
      to[i] = texts[i].c_str();
    }
  }
  static int64_t value(const std::string& text, int64_t n) {
    return text == "n" ? n : std::stoll(text);
  }
  static standalone::Dim3 values(const Texts& texts, int64_t n) {
    return {value(texts[0], n), value(texts[1], n), value(texts[2], n)};
  }

  std::filesystem::path file_;
  std::string digest_, shared_;
  Texts grid_, block_, cluster_;
  standalone::DeclaredLaunch declared_;
  standalone::PackagedImage image_[1];
  standalone::PackagedKernel<1> kernel_{require_driver(), declared_, "k", "_Z1kPfPKfi", image_};
};

class LaunchEverywhere : public LaunchFixture, public testing::WithParamInterface<const char*> {
 protected:
  static constexpr const char* kSymbol = "_Z1kPfPKfi";

  std::unique_ptr<Launcher> launcher(const Rule& rule = {}) {
    auto prepared = copy({.grid = rule.grid,
                          .block = rule.block,
                          .cluster = rule.cluster,
                          .shared = rule.shared,
                          .cooperative = rule.cooperative,
                          .programmatic = rule.programmatic});
    if (std::string(GetParam()) == "runtime")
      return std::make_unique<Prepared>(std::move(prepared));
    return std::make_unique<Packaged>(rule, prepared->implementation().code);
  }

  std::string refused(const Rule& rule, int64_t n) {
    const Error error = error_of([&] { launcher(rule)->launch(n); });
    EXPECT_EQ(error.kind, ErrorKind::Launch);
    return error.what();
  }
};

INSTANTIATE_TEST_SUITE_P(Forms, LaunchEverywhere, testing::Values("runtime", "wrapper"),
                         [](const auto& form) { return std::string(form.param); });

TEST_P(LaunchEverywhere, GeometryOutOfRangeNamesExpressionValueAndLimit) {
  EXPECT_EQ(refused({.grid = "n"}, -3),
            "mylib::copy: grid.x `n` is -3; it must be between 0 and 2147483647");
  EXPECT_EQ(refused({.grid = "1, n"}, 65536),
            "mylib::copy: grid.y `n` is 65536; it must be between 0 and 65535");
  EXPECT_EQ(refused({.block = "1, 1, n"}, 65),
            "mylib::copy: block.z `n` is 65; it must be between 1 and 64");
  EXPECT_EQ(refused({.block = "64, n"}, 32),
            "mylib::copy: block (`64` = 64, `n` = 32, `1` = 1) has 2048 threads; at most 1024 fit "
            "a block");
  EXPECT_EQ(refused({.shared = "n"}, -1), "mylib::copy: shared `n` is -1; it is a size in bytes");
  EXPECT_EQ(refused({.grid = "10", .cluster = "n"}, 17),
            "mylib::copy: cluster.x `n` is 17; it must be between 1 and 16");
  EXPECT_EQ(refused({.grid = "10", .cluster = "n"}, 4),
            "mylib::copy: grid.x `10` is 10, which is not a multiple of cluster.x `n` is 4; round "
            "the grid up and let the extra blocks return early");
  EXPECT_EQ(
      refused({.grid = "64, 64", .cluster = "8, n"}, 4),
      "mylib::copy: cluster (`8` = 8, `n` = 4, `1` = 1) has 32 blocks; at most 16 fit a cluster");
  EXPECT_EQ(fake.launch_count(), 0);
}

TEST_P(LaunchEverywhere, AnEmptyGridLoadsAndLaunchesNothing) {
  // Nothing else is evaluated: a block of 0 threads is no error.
  const auto empty = launcher({.grid = "4, n", .block = "n"});
  empty->launch(0);
  EXPECT_EQ(fake.launch_count(), 0);
  EXPECT_EQ(fake.calls("cuLibraryLoadData"), 0);
}

TEST_P(LaunchEverywhere, SharedMemoryPast48KIsAllowedOnceAndGrows) {
  const auto shared = launcher({.shared = "n"});
  const auto attributes_set = [&](int64_t bytes) {
    shared->launch(bytes);
    return fake.calls("cuKernelSetAttribute");
  };
  EXPECT_EQ(attributes_set(48 * 1024), 0);
  EXPECT_EQ(attributes_set(100000), 1);
  EXPECT_EQ(attributes_set(60000), 1) << "the attribute never shrinks";
  EXPECT_EQ(attributes_set(200000), 2);
  EXPECT_EQ(fake.attribute(kSymbol, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 0), 200000);
  EXPECT_STREQ(error_of([&] { shared->launch(300000); }).what(),
               "mylib::copy: shared `n` is 300000 bytes, but cuda:0 allows a block at most 232448 "
               "bytes; use a smaller tile");
}

TEST_P(LaunchEverywhere, ClustersCooperativeAndProgrammaticLaunches) {
  launcher({.grid = "8", .cluster = "n, 1, 1"})->launch(2);
  EXPECT_EQ(std::vector(last()->cluster, last()->cluster + 3), (std::vector<unsigned>{2, 1, 1}));
  EXPECT_EQ(last()->cooperative, 0);
  launcher({.cooperative = true})->launch(1);
  EXPECT_EQ(last()->cooperative, 1);
  EXPECT_EQ(last()->programmatic, 0);
  launcher({.programmatic = true})->launch(1);
  EXPECT_EQ(last()->cooperative, 0);
  EXPECT_EQ(last()->programmatic, 1);
  EXPECT_EQ(fake.calls("cuKernelSetAttribute"), 0) << "clusters of up to 8 blocks are portable";
  const auto wide = launcher({.grid = "32", .cluster = "16"});
  for (int i = 0; i < 3; ++i) wide->launch(1);
  EXPECT_EQ(fake.attribute(kSymbol, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 0), 1);
  EXPECT_EQ(fake.calls("cuKernelSetAttribute"), 1);
}

TEST_P(LaunchEverywhere, EveryDeviceGetsItsOwnContext) {
  fake.set_devices(3);
  const auto on = launcher();
  for (const int device : {2, 0, 2, 1}) {
    on->launch(1, device);
    EXPECT_EQ(last()->device, device);
    EXPECT_EQ(fake.context_depth(), 0) << "the caller's context is put back";
  }
  EXPECT_EQ(fake.calls("cuLibraryLoadData"), 1) << "one image serves all devices";
  const Error missing = error_of([&] { on->launch(1, 7); });
  EXPECT_EQ(missing.kind, ErrorKind::Missing);
  EXPECT_STREQ(missing.what(),
               "mylib::copy: there is no CUDA device 7: got 3 devices, 0 to 2; "
               "CUDA_VISIBLE_DEVICES decides which a process sees");
}

TEST_P(LaunchEverywhere, NothingIsLoadedDuringACapture) {
  const auto stream = reinterpret_cast<CUstream>(77);
  fake.set_capture(stream, CU_STREAM_CAPTURE_STATUS_ACTIVE);
  const auto cold = launcher();
  const Error error = error_of([&] { cold->launch(1, 0, stream); });
  EXPECT_EQ(error.kind, ErrorKind::Capture);
  EXPECT_STREQ(error.what(),
               "mylib::copy: `k` is not loaded on cuda:0 yet, and nothing can be loaded while a "
               "stream is captured; run it once with these arguments, or call opaq.warmup(...) "
               "with them, before the capture");
  EXPECT_EQ(fake.calls("cuLibraryLoadData"), 0);
  cold->launch(1);  // another stream: its loading does not break the capture
  EXPECT_EQ(fake.capture(stream), CU_STREAM_CAPTURE_STATUS_ACTIVE);
  cold->launch(1, 0, stream);
  EXPECT_EQ(last()->stream, stream);
  EXPECT_EQ(fake.capture(stream), CU_STREAM_CAPTURE_STATUS_ACTIVE);
}

TEST_P(LaunchEverywhere, ErrorsOfTheDriverNameOpEntryAndGeometry) {
  const auto failing = launcher({.grid = "4", .cluster = "2"});
  fake.fail("cuLaunchKernelEx", CUDA_ERROR_ILLEGAL_ADDRESS, 1);
  const Error sticky = error_of([&] { failing->launch(1); });
  EXPECT_EQ(sticky.kind, ErrorKind::Driver);
  EXPECT_TRUE(sticky.sticky);
  EXPECT_EQ(
      std::string(sticky.what())
          .rfind("mylib::copy: launching `k` on cuda:0 with grid (4, 1, 1), block (32, 1, 1), "
                 "cluster (2, 1, 1), 0 bytes of dynamic shared memory: CUDA_ERROR_ILLEGAL_ADDRESS",
                 0),
      0u)
      << sticky.what();
}

TEST_P(LaunchEverywhere, AFailedLoadSaysWhereAndIsTriedAgain) {
  const auto failing = launcher();
  fake.fail("cuLibraryLoadData", CUDA_ERROR_OUT_OF_MEMORY, 1);
  const Error error = error_of([&] { failing->launch(1); });
  EXPECT_EQ(error.kind, ErrorKind::Driver);
  EXPECT_EQ(std::string(error.what())
                .rfind("mylib::copy: loading `k` on cuda:0: loading a kernel image: "
                       "CUDA_ERROR_OUT_OF_MEMORY",
                       0),
            0u)
      << error.what();
  failing->launch(1);
  EXPECT_EQ(fake.launch_count(), 1);
}

TEST_P(LaunchEverywhere, ManyThreadsLoadOnce) {
  fake.set_devices(2);
  constexpr int kThreads = 4, kLaunches = 100;
  const auto shared = launcher({.shared = "n"});
  std::atomic<int> ready{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      ++ready;
      while (ready < kThreads) std::this_thread::yield();
      for (int i = 0; i < kLaunches; ++i) shared->launch(i % 2 ? 100 : 100000, t % 2);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(fake.launch_count(), kThreads * kLaunches);
  EXPECT_EQ(fake.calls("cuLibraryLoadData"), 1);
  EXPECT_EQ(fake.calls("cuKernelSetAttribute"), 2) << "once for each device";
}

}  // namespace
}  // namespace opaq
