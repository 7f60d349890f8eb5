// Tests of base/device.h.
#include "base/device.h"

#include <gtest/gtest.h>

#include <string>

namespace {

using opaq::Device;
using opaq::device_from_name;
using opaq::device_name;
using opaq::DeviceType;

TEST(DeviceName, IsPyTorchs) {
  EXPECT_EQ(device_name({}), "cpu");
  EXPECT_EQ(device_name({DeviceType::CUDA, 0}), "cuda:0");
  EXPECT_EQ(device_name({DeviceType::CUDA, 12}), "cuda:12");
}

TEST(DeviceName, IsReadBack) {
  EXPECT_EQ(device_from_name("cpu"), Device{});
  EXPECT_EQ(device_from_name("cpu:1"), Device{});  // PyTorch has one CPU under every index
  EXPECT_EQ(device_from_name("cuda"), (Device{DeviceType::CUDA, 0}));
  EXPECT_EQ(device_from_name("cuda:3"), (Device{DeviceType::CUDA, 3}));
}

TEST(DeviceName, OfNothingElseIsADevice) {
  for (const char* name : {"", "cp", "CUDA", "cuda ", "cuda:", "cuda:-1", "cuda:+1", "cuda: 1",
                           "cuda:1x", "cuda:99999999999", "cuda:0:0", "meta", "cudax"})
    EXPECT_EQ(device_from_name(name), std::nullopt) << name;
}

}  // namespace
