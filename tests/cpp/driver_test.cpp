// The CUDA driver at run time, against the fake driver: absence, errors, devices, contexts,
// captures, modules, launches.
#include "driver/driver.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../fake_driver/fake_driver.h"
#include "base/error.h"

namespace opaq {
namespace {

const int configured = setenv("OPAQ_DRIVER", OPAQ_FAKE_DRIVER, 1);  // before settings() are read

const std::string kImage = std::string(
                               "\x7f"
                               "ELF") +
                           " _Z8rms_normPfPKfi plain";

CUstream stream_of(uintptr_t number) { return reinterpret_cast<CUstream>(number); }

Error error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "expected an error";
  return Error(ErrorKind::Internal, "");
}

// Runs in a process of its own, for what can happen only once in a process. It prints the error's
// message and exits with the error's kind.
void exit_with_error(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    std::cerr << error.what() << std::endl;
    _exit(static_cast<int>(error.kind));
  }
  _exit(99);
}
const auto exits_as_missing = testing::ExitedWithCode(static_cast<int>(ErrorKind::Missing));

class DriverTest : public ::testing::Test {
 protected:
  DriverTest() : fake(OPAQ_FAKE_DRIVER) {
    fake.reset();
    // the child starts anew: nothing is opened in it yet
    testing::FLAGS_gtest_death_test_style = "threadsafe";
  }
  Fake fake;
};

// ---- presence -----------------------------------------------------------------------------------

TEST_F(DriverTest, OpensWithoutInitialisingCuda) {
  EXPECT_EXIT(
      {
        const Driver& d = driver();
        const bool good = d.available && d.version == 13000 && d.path == OPAQ_FAKE_DRIVER &&
                          d.why_not.empty() && d.kernel_get_param_info != nullptr &&
                          fake.calls("cuInit") == 0 && fake.calls("cuDevicePrimaryCtxRetain") == 0;
        std::cerr << d.path << " " << d.why_not << std::endl;
        _exit(good ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(DriverTest, AMachineWithoutADriverSaysWhatToDo) {
  EXPECT_EXIT(exit_with_error([] {
                setenv("OPAQ_DRIVER", "/nowhere/libcuda.so.1", 1);
                if (driver().available) _exit(98);
                require_driver();
              }),
              exits_as_missing,
              "no CUDA driver: '/nowhere/libcuda.so.1' cannot be loaded: .*No such file or "
              "directory; install NVIDIA's driver for CUDA "
              "12.0 or newer, or set OPAQ_DRIVER to the path of its libcuda.so.1");
}

TEST_F(DriverTest, ALibraryThatIsNoDriverIsNamed) {
  EXPECT_EXIT(exit_with_error([] {
                setenv("OPAQ_DRIVER", "libm.so.6", 1);
                require_driver();
              }),
              exits_as_missing,
              "libm.so.6' is no CUDA driver: it lacks cuDriverGetVersion, cuInit, ");
}

TEST_F(DriverTest, AnOldDriverIsRefusedWithBothVersions) {
  EXPECT_EXIT(exit_with_error([this] {
                fake.set_version(11080);
                require_driver();
              }),
              exits_as_missing,
              "is a driver for CUDA 11.8, expected 12.0 or newer; install NVIDIA's driver");
}

TEST_F(DriverTest, ADriverWithoutDevicesSaysSo) {
  EXPECT_EXIT(exit_with_error([this] {
                fake.set_devices(0);
                require_driver();
              }),
              exits_as_missing,
              "the CUDA driver '.*' \\(CUDA 13.0\\) does not start: CUDA_ERROR_NO_DEVICE \\(no "
              "CUDA-capable device is detected\\); see "
              "`nvidia-smi` and CUDA_VISIBLE_DEVICES");
}

TEST_F(DriverTest, AForkedChildMayUseCudaIfItsParentOnlyAsked) {
  EXPECT_EXIT(
      {
        if (!driver().available) _exit(97);
        const pid_t child = fork();
        if (child == 0) {
          const ContextScope scope(0);
          _exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 96);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(DriverTest, AChildForkedAfterCudaWasUsedIsToldToSpawn) {
  const ContextScope parents(0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const Error error = error_of([] { const ContextScope scope(0); });
    _exit(error.kind == ErrorKind::Driver &&
                  std::strstr(error.what(), "start workers with the method 'spawn'") != nullptr
              ? 0
              : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// ---- errors -------------------------------------------------------------------------------------

TEST_F(DriverTest, ErrorsNameWhatFailedAndCudasNameAndText) {
  require_driver();
  EXPECT_NO_THROW(check(CUDA_SUCCESS, "launching rms_norm"));
  const Error error = error_of([] { check(CUDA_ERROR_INVALID_VALUE, "launching rms_norm"); });
  EXPECT_STREQ(error.what(), "launching rms_norm: CUDA_ERROR_INVALID_VALUE (invalid argument)");
  EXPECT_EQ(error.kind, ErrorKind::Driver);
  EXPECT_FALSE(error.sticky);
  EXPECT_STREQ(error_of([] { check(static_cast<CUresult>(998), "launching rms_norm"); }).what(),
               "launching rms_norm: CUDA error 998");
}

TEST_F(DriverTest, ErrorsThatLoseTheContextAreSticky) {
  for (const CUresult result :
       {CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_LAUNCH_TIMEOUT,
        CUDA_ERROR_ASSERT, CUDA_ERROR_HARDWARE_STACK_ERROR, CUDA_ERROR_ILLEGAL_INSTRUCTION,
        CUDA_ERROR_MISALIGNED_ADDRESS, CUDA_ERROR_INVALID_ADDRESS_SPACE, CUDA_ERROR_INVALID_PC,
        CUDA_ERROR_ECC_UNCORRECTABLE}) {
    const Error error = error_of([&] { check(result, "launching rms_norm"); });
    EXPECT_TRUE(error.sticky) << error.what();
    EXPECT_NE(std::string(error.what()).find("; the CUDA context is lost, restart the process"),
              std::string::npos)
        << error.what();
  }
  for (const CUresult result :
       {CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_DEVICE_UNAVAILABLE, CUDA_ERROR_NOT_FOUND,
        CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED}) {
    const Error error = error_of([&] { check(result, "launching rms_norm"); });
    EXPECT_FALSE(error.sticky) << error.what();
    EXPECT_EQ(std::string(error.what()).find("context is lost"), std::string::npos) << error.what();
  }
}

// ---- devices, contexts --------------------------------------------------------------------------

TEST_F(DriverTest, TheArchIsSpecificFromHopperOn) {
  fake.set_devices(16);
  const std::vector<std::pair<std::pair<int, int>, const char*>> expected = {
      {{7, 5}, "sm_75"},    {{8, 0}, "sm_80"},    {{8, 9}, "sm_89"},   {{9, 0}, "sm_90a"},
      {{10, 0}, "sm_100a"}, {{10, 3}, "sm_103a"}, {{12, 1}, "sm_121a"}};
  for (size_t i = 0; i < expected.size(); ++i) {
    // facts of a device are kept; no other test asks for these
    const int device = static_cast<int>(i) + 8;
    fake.set_capability(device, expected[i].first.first, expected[i].first.second);
    EXPECT_EQ(device_arch(device), expected[i].second);
  }
  const int asked = fake.calls("cuDeviceGetAttribute");
  EXPECT_EQ(device_arch(8), "sm_75");
  EXPECT_EQ(fake.calls("cuDeviceGetAttribute"), asked);
  EXPECT_EQ(fake.calls("cuDevicePrimaryCtxRetain"), 0) << "asking for the arch made a context";
}

TEST_F(DriverTest, ADeviceThatIsNotThereIsMissing) {
  const Error one = error_of([] { device_arch(5); });
  EXPECT_EQ(one.kind, ErrorKind::Missing);
  EXPECT_STREQ(one.what(),
               "there is no CUDA device 5: got 1 device, 0; CUDA_VISIBLE_DEVICES decides which a "
               "process sees");
  fake.set_devices(2);
  for (const int device : {-1, 5, 1000}) {
    const Error error = error_of([&] { const ContextScope scope(device); });
    EXPECT_EQ(error.kind, ErrorKind::Missing);
    EXPECT_EQ(error.what(),
              "there is no CUDA device " + std::to_string(device) +
                  ": got 2 devices, 0 to 1; CUDA_VISIBLE_DEVICES decides which a process sees");
  }
}

TEST_F(DriverTest, AScopeMakesThePrimaryContextCurrentAndPutsBackWhatWas) {
  fake.set_devices(2);
  EXPECT_EQ(fake.context_device(), -1);
  {
    const ContextScope zero(0);
    EXPECT_EQ(fake.context_device(), 0);
    {
      const ContextScope one(1);
      EXPECT_EQ(fake.context_device(), 1);
      const ContextScope again(1);
      EXPECT_EQ(fake.context_depth(), 2) << "a context that is current was pushed again";
    }
    EXPECT_EQ(fake.context_device(), 0);
  }
  EXPECT_EQ(fake.context_depth(), 0);
}

TEST_F(DriverTest, ASteadyScopeOnlyReadsTheCurrentContext) {
  const ContextScope outer(0);
  fake.reset();
  for (int i = 0; i < 10; ++i) const ContextScope inner(0);
  EXPECT_EQ(fake.calls("cuCtxGetCurrent"), 10);
  for (const char* function : {"cuInit", "cuDeviceGet", "cuDeviceGetCount",
                               "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuCtxPopCurrent"}) {
    EXPECT_EQ(fake.calls(function), 0) << function;
  }
}

TEST_F(DriverTest, EachThreadGetsTheContextForItself) {
  fake.set_devices(4);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const ContextScope scope((t + i) % 4);
        EXPECT_EQ(fake.context_device(), (t + i) % 4);
        EXPECT_FALSE(device_arch((t + i) % 4).empty());
      }
      EXPECT_EQ(fake.context_depth(), 0);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(DriverTest, AContextThatCannotBeHadIsAnError) {
  fake.set_devices(8);
  fake.fail("cuDevicePrimaryCtxRetain", CUDA_ERROR_OUT_OF_MEMORY, 1);
  const Error error = error_of([] { const ContextScope scope(7); });
  EXPECT_STREQ(
      error.what(),
      "retaining the primary context of CUDA device 7: CUDA_ERROR_OUT_OF_MEMORY (out of memory)");
  EXPECT_NO_THROW(ContextScope(7)) << "the failure was remembered";
}

// ---- capture ------------------------------------------------------------------------------------

TEST_F(DriverTest, TellsWhetherAStreamIsCaptured) {
  EXPECT_FALSE(is_capturing(stream_of(1)));
  fake.set_capture(stream_of(1), CU_STREAM_CAPTURE_STATUS_ACTIVE);
  fake.set_capture(stream_of(2), CU_STREAM_CAPTURE_STATUS_INVALIDATED);
  EXPECT_TRUE(is_capturing(stream_of(1)));
  EXPECT_TRUE(is_capturing(stream_of(2)));
  EXPECT_FALSE(is_capturing(stream_of(3)));
  fake.fail("cuStreamIsCapturing", CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 1);
  EXPECT_TRUE(is_capturing(nullptr)) << "the legacy stream is blocked by another's capture";
  fake.fail("cuStreamIsCapturing", CUDA_ERROR_INVALID_HANDLE, 1);
  EXPECT_STREQ(
      error_of([] { is_capturing(stream_of(1)); }).what(),
      "asking whether a stream is captured: CUDA_ERROR_INVALID_HANDLE (invalid resource handle)");
}

TEST_F(DriverTest, LoadingAndUnloadingLeaveAnotherThreadsCaptureIntact) {
  fake.set_capture(stream_of(1), CU_STREAM_CAPTURE_STATUS_ACTIVE);
  {
    const Module module(kImage);
  }
  EXPECT_EQ(fake.libraries(), 0);
  EXPECT_EQ(fake.capture(stream_of(1)), CU_STREAM_CAPTURE_STATUS_ACTIVE);
  EXPECT_THROW(Module("no image"), Error);

  // The thread's own mode is put back, after failure as well: an unprotected load breaks the
  // capture as before.
  CUlibrary library = nullptr;
  EXPECT_EQ(driver().library_load_data(&library, kImage.c_str(), nullptr, nullptr, 0, nullptr,
                                       nullptr, 0),
            CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  EXPECT_EQ(fake.capture(stream_of(1)), CU_STREAM_CAPTURE_STATUS_INVALIDATED);
}

// ---- modules ------------------------------------------------------------------------------------

TEST_F(DriverTest, AModuleGivesItsKernelsAndUnloadsWithIt) {
  {
    const Module module(kImage);
    EXPECT_NE(module.kernel("plain"), nullptr);
    EXPECT_EQ(module.kernel("plain"), module.kernel("plain"));
    EXPECT_NE(module.kernel("plain"), module.kernel("_Z8rms_normPfPKfi"));
    EXPECT_EQ(fake.libraries(), 1);
    const Error error = error_of([&] { module.kernel("absent"); });
    EXPECT_STREQ(
        error.what(),
        "finding kernel 'absent' in its image: CUDA_ERROR_NOT_FOUND (named symbol not found)");
  }
  EXPECT_EQ(fake.libraries(), 0);
  EXPECT_NO_THROW(Module(".version 8.3\n.target sm_90\n"));
}

TEST_F(DriverTest, AnImageThatCannotBeLoadedSaysWhy) {
  EXPECT_STREQ(error_of([] { const Module module("garbage"); }).what(),
               "loading a kernel image: CUDA_ERROR_INVALID_IMAGE (device kernel image is invalid)");
  fake.fail("cuLibraryLoadData", CUDA_ERROR_NO_BINARY_FOR_GPU, 1);
  EXPECT_STREQ(error_of([] { const Module module(kImage); }).what(),
               "loading a kernel image: CUDA_ERROR_NO_BINARY_FOR_GPU (no kernel image is available "
               "for execution on the device); the image "
               "was built for another arch: build it for this device's, or give PTX or source");
}

TEST_F(DriverTest, AModuleMayOutliveTheDriver) {
  auto module = std::make_unique<Module>(kImage);
  for (const char* function :
       {"cuCtxGetCurrent", "cuLibraryUnload", "cuThreadExchangeStreamCaptureMode"}) {
    fake.fail(function, CUDA_ERROR_DEINITIALIZED, -1);
  }
  EXPECT_NO_THROW(module.reset());
  EXPECT_EQ(fake.calls("cuLibraryUnload"), 0);
}

TEST_F(DriverTest, AForkedChildDoesNotUnloadItsParentsModule) {
  auto module = std::make_unique<Module>(kImage);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    module.reset();
    _exit(fake.calls("cuLibraryUnload"));
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// ---- what a launch needs ------------------------------------------------------------------------

TEST_F(DriverTest, LaunchesArriveWithTheirParameters) {
  const size_t sizes[] = {8, 4};
  fake.set_params("plain", 2, sizes);
  const Module module(kImage);
  const Driver& d = require_driver();
  const ContextScope scope(0);
  double first = 1.5;
  int second = 7;
  void* params[] = {&first, &second};
  const CUfunction function = reinterpret_cast<CUfunction>(module.kernel("plain"));
  check(d.launch_kernel(function, 4, 2, 1, 128, 1, 1, 1024, stream_of(3), params, nullptr),
        "launching plain");
  first = 0;  // what arrived are copies

  CUlaunchAttribute attributes[3] = {};
  attributes[0].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attributes[0].value.clusterDim = {2, 1, 1};
  attributes[1].id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
  attributes[1].value.cooperative = 1;
  attributes[2].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  attributes[2].value.programmaticStreamSerializationAllowed = 1;
  const CUlaunchConfig config{4, 1, 1, 64, 1, 1, 0, stream_of(4), attributes, 3};
  check(d.launch_kernel_ex(&config, function, params, nullptr), "launching plain");

  ASSERT_EQ(fake.launch_count(), 2);
  const FakeLaunch& launch = *fake.launch(0);
  EXPECT_STREQ(launch.kernel, "plain");
  EXPECT_EQ(launch.device, 0);
  EXPECT_EQ(launch.grid[0], 4u);
  EXPECT_EQ(launch.grid[1], 2u);
  EXPECT_EQ(launch.block[0], 128u);
  EXPECT_EQ(launch.shared, 1024u);
  EXPECT_EQ(launch.stream, stream_of(3));
  EXPECT_EQ(launch.cluster[0], 0u);
  ASSERT_EQ(launch.param_count, 2);
  EXPECT_EQ(*static_cast<const double*>(launch.params[0]), 1.5);
  EXPECT_EQ(*static_cast<const int*>(launch.params[1]), 7);
  const FakeLaunch& extended = *fake.launch(1);
  EXPECT_EQ(extended.cluster[0], 2u);
  EXPECT_TRUE(extended.cooperative);
  EXPECT_TRUE(extended.programmatic);
}

TEST_F(DriverTest, LaunchesThatADriverRefusesAreRefused) {
  const Module module(kImage);
  const Driver& d = require_driver();
  const CUkernel kernel = module.kernel("plain");
  const CUfunction function = reinterpret_cast<CUfunction>(kernel);
  const auto launch = [&](unsigned grid, unsigned block, unsigned shared) {
    return d.launch_kernel(function, grid, 1, 1, block, 1, 1, shared, nullptr, nullptr, nullptr);
  };
  EXPECT_EQ(launch(1, 1, 0), CUDA_ERROR_INVALID_CONTEXT);
  const ContextScope scope(0);
  EXPECT_EQ(launch(1, 1, 0), CUDA_SUCCESS);
  EXPECT_EQ(launch(0, 1, 0), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(launch(1, 2048, 0), CUDA_ERROR_INVALID_VALUE);
  EXPECT_EQ(launch(1, 1, 100'000), CUDA_ERROR_INVALID_VALUE);
  check(d.kernel_set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 100'000, kernel, 0),
        "allowing shared memory");
  EXPECT_EQ(fake.attribute("plain", CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 0), 100'000);
  EXPECT_EQ(launch(1, 1, 100'000), CUDA_SUCCESS);
  EXPECT_EQ(
      d.kernel_set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 1 << 20, kernel, 0),
      CUDA_ERROR_INVALID_VALUE);
}

TEST_F(DriverTest, ParameterSizesAreReadUntilTheyEnd) {
  const Module module(kImage);
  const size_t sizes[] = {1, 8, 20, 2};
  fake.set_params("plain", 4, sizes);
  const CUkernel kernel = module.kernel("plain");
  size_t offset = 0, size = 0;
  EXPECT_EQ(require_driver().kernel_get_param_info(kernel, 0, &offset, &size),
            CUDA_ERROR_INVALID_CONTEXT);
  const ContextScope scope(0);
  const auto layout = [&](const char* symbol) {
    std::string text;
    for (size_t i = 0;
         driver().kernel_get_param_info(module.kernel(symbol), i, &offset, &size) == CUDA_SUCCESS;
         ++i) {
      text += std::to_string(offset) + ":" + std::to_string(size) + " ";
    }
    return text;
  };
  EXPECT_EQ(layout("plain"), "0:1 8:8 16:20 36:2 ");
  EXPECT_EQ(layout("_Z8rms_normPfPKfi"), "0:8 8:8 16:8 ");
}

}  // namespace
}  // namespace opaq
