// Occupancy against NVIDIA's calculator, and what cannot be launched.
#include "launch/occupancy.h"

#include <cuda_occupancy.h>
#include <gtest/gtest.h>

namespace opaq {
namespace {

using standalone::DeclaredLaunch;
using standalone::Geometry;

struct Device {
  const char* arch;
  int major, minor, threads, shared;
};
constexpr Device kDevices[] = {{"sm_75", 7, 5, 1024, 64},   {"sm_80", 8, 0, 2048, 164},
                               {"sm_86", 8, 6, 1536, 100},  {"sm_89", 8, 9, 1536, 100},
                               {"sm_90a", 9, 0, 2048, 228}, {"sm_100a", 10, 0, 2048, 228},
                               {"sm_120", 12, 0, 1536, 100}};

int of_calculator(const Device& device, int registers, int shared, int threads, int dynamic) {
  const int reserved = device.major >= 8 ? 1024 : 0;
  cudaOccDeviceProp prop;
  prop.computeMajor = device.major;
  prop.computeMinor = device.minor;
  prop.maxThreadsPerBlock = 1024;
  prop.maxThreadsPerMultiprocessor = device.threads;
  prop.regsPerBlock = prop.regsPerMultiprocessor = 65536;
  prop.warpSize = 32;
  prop.sharedMemPerBlock = 48 << 10;
  prop.sharedMemPerMultiprocessor = static_cast<size_t>(device.shared) << 10;
  prop.numSms = 100;
  prop.sharedMemPerBlockOptin = prop.sharedMemPerMultiprocessor - reserved;
  prop.reservedSharedMemPerBlock = reserved;
  cudaOccFuncAttributes attributes;
  attributes.maxThreadsPerBlock = 1024;
  attributes.numRegs = registers;
  attributes.sharedSizeBytes = static_cast<size_t>(shared);
  attributes.partitionedGCConfig = PARTITIONED_GC_OFF;
  attributes.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  attributes.maxDynamicSharedSizeBytes = prop.sharedMemPerBlockOptin - attributes.sharedSizeBytes;
  attributes.numBlockBarriers = 1;
  cudaOccDeviceState state;
  state.cacheConfig = CACHE_PREFER_SHARED;
  cudaOccResult result;
  EXPECT_EQ(cudaOccMaxActiveBlocksPerMultiprocessor(&result, &prop, &attributes, &state, threads,
                                                    static_cast<size_t>(dynamic)),
            CUDA_OCC_SUCCESS);
  return result.activeBlocksPerMultiprocessor;
}

Geometry geometry(int64_t threads, int64_t dynamic) {
  Geometry made;
  made.block = {threads, 1, 1};
  made.shared = dynamic;
  return made;
}

TEST(Occupancy, IsThatOfNvidiasCalculator) {
  for (const Device& device : kDevices)
    for (const int registers : {8, 24, 32, 33, 40, 63, 64, 65, 96, 128, 168, 255})
      for (const int threads : {1, 32, 33, 96, 128, 160, 256, 384, 512, 768, 1000, 1024})
        for (const int shared : {0, 1, 4096, 16000, 40000})
          for (const int dynamic : {0, 127, 8192}) {
            const auto found = occupancy(device.arch, {.registers = registers, .shared = shared},
                                         geometry(threads, dynamic));
            ASSERT_EQ(found ? found->blocks : 0,
                      of_calculator(device, registers, shared, threads, dynamic))
                << device.arch << ": " << registers << " registers, " << threads << " threads, "
                << shared << " + " << dynamic << " bytes";
          }
}

TEST(Occupancy, SaysWhatLimitsIt) {
  const auto limit = [](int64_t registers, int64_t shared, int64_t threads) {
    return std::string(
        occupancy("sm_90a", {.registers = registers, .shared = shared}, geometry(threads, 0))
            ->limit);
  };
  EXPECT_EQ(limit(16, 0, 256), "warps");
  EXPECT_EQ(limit(16, 0, 32), "blocks");
  EXPECT_EQ(limit(128, 0, 256), "registers");
  EXPECT_EQ(limit(16, 100000, 256), "shared memory");
}

TEST(Occupancy, IsUnknownForPtxAndForNewArchitectures) {
  EXPECT_FALSE(occupancy("compute_90", {.registers = 16, .shared = 0}, geometry(256, 0)));
  EXPECT_FALSE(occupancy("sm_999", {.registers = 16, .shared = 0}, geometry(256, 0)));
  EXPECT_FALSE(occupancy("", {.registers = 16, .shared = 0}, geometry(256, 0)));
}

TEST(LaunchProblem, SaysWhatNoDeviceOfTheArchitectureCanLaunch) {
  DeclaredLaunch declared{.op = "mylib::f", .shared = "n * 4"};
  const auto problem = [&](const char* arch, Resources resources, Geometry launch) {
    return launch_problem(arch, resources, launch, declared);
  };
  EXPECT_EQ(problem("sm_90a", {.registers = 64}, geometry(1024, 0)), "");
  EXPECT_EQ(problem("sm_90a", {.registers = 64}, geometry(256, 200'000)), "");
  EXPECT_EQ(problem("sm_80", {.registers = 64}, geometry(256, 200'000)),
            "sm_80: shared `n * 4` is 200000 bytes, but a block can have at most 166912 bytes of "
            "shared memory; use a smaller tile");
  EXPECT_EQ(problem("sm_80", {.registers = 64, .shared = 40'000}, geometry(256, 150'000)),
            "sm_80: shared `n * 4` is 150000 bytes, but a block can have at most 166912 bytes of "
            "shared memory, of which the kernel declares 40000 itself; use a smaller tile");
  EXPECT_EQ(problem("sm_80", {.registers = 128}, geometry(1024, 0)),
            "sm_80: a block of 1024 threads with 128 registers each needs more than the 65536 "
            "registers of a block; use smaller blocks, or __launch_bounds__(1024) on the kernel");
  declared.cluster[0] = "2";
  EXPECT_EQ(problem("sm_90a", {.registers = 64}, geometry(256, 0)), "");
  EXPECT_EQ(
      problem("sm_89", {.registers = 64}, geometry(256, 0)),
      "sm_89: there are no clusters before sm_90; add an implementation without a cluster for "
      "older GPUs");
}

}  // namespace
}  // namespace opaq
