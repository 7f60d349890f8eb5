// The contract check of one launch, with C++ lambdas in the place of kernels.
#include "check/check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "../fake_driver/fake_driver.h"
#include "base/error.h"
#include "kinds/kind.h"

namespace opaq {
namespace {

const int configured = setenv("OPAQ_DRIVER", OPAQ_FAKE_DRIVER, 1);  // before settings() are read

struct Matrix {  // floats with room around
  std::vector<float> memory;
  std::vector<int64_t> sizes, strides;
  int64_t offset;
  Matrix(size_t room, std::vector<int64_t> sizes, std::vector<int64_t> strides, int64_t offset)
      : memory(room), sizes(std::move(sizes)), strides(std::move(strides)), offset(offset) {
    std::iota(memory.begin(), memory.end(), 1.0f);
  }
  TensorView view() {
    TensorView v;
    v.data = memory.data() + offset;
    v.sizes = sizes.data();
    v.strides = strides.data();
    v.dim = static_cast<int32_t>(sizes.size());
    return v;
  }
  Storage storage() { return {memory.data(), static_cast<int64_t>(memory.size() * sizeof(float))}; }
};

class CheckTest : public ::testing::Test {
 protected:
  CheckTest() { implementation.name = "cpu"; }

  template <typename Launch>
  void run(Launch&& launch, const OpSpec& spec) {
    Matrix& result = in_place ? x : y;
    TensorView in = x.view(), out = result.view();
    in.device = out.device = device;
    const Arg args[] = {in, out};
    const Storage storages[] = {x.storage(), result.storage()};
    checked_launch({spec, args, storages, &implementation, device, nullptr,
                    [] { return std::string(" (here)"); }},
                   [&](const Arg* a) {
                     launch(static_cast<float*>(a[0].tensor.data),
                            static_cast<float*>(a[1].tensor.data));
                   });
  }

  template <typename Launch>
  std::string error(Launch&& launch, const OpSpec& spec) {
    try {
      run(launch, spec);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind, ErrorKind::Contract);
      return e.what();
    }
    return "none";
  }

  static OpSpec copying(bool partial = false) {
    return make_op("lib::f(Tensor x) -> (Tensor y)", {{.name = "",
                                                       .like = "x",
                                                       .shape = "",
                                                       .dtype = "",
                                                       .strides = "3, 1",
                                                       .device = "",
                                                       .partial = partial}});
  }
  static void copy(const float* x, float* y) {
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) y[3 * i + j] = x[4 * i + 2 * j];
  }

  Device device;
  Implementation implementation{.kind = kinds().front()};
  Matrix x{12, {2, 2}, {4, 2}, 1};
  Matrix y{6, {2, 2}, {3, 1}, 0};  // with gaps
  bool in_place = false;           // whether the result lies over x
};

TEST_F(CheckTest, FillsOnlyTheElementsOfAnOutput) {
  run(copy, copying());
  EXPECT_EQ(y.memory, (std::vector<float>{2, 4, 3, 6, 8, 6}));
}

TEST_F(CheckTest, APythonFunctionFillsTheOutputsThemselves) {
  implementation.name = "python";
  const auto is_python = [](const Kind* kind) { return kind->name == "python"; };
  implementation.kind = *std::ranges::find_if(kinds(), is_python);
  const float* filled = nullptr;
  run(
      [&](float* x, float* y) {
        filled = y;
        copy(x, y);
      },
      copying());
  EXPECT_EQ(filled, y.memory.data());
  EXPECT_EQ(y.memory, (std::vector<float>{2, 4, 3, 6, 8, 6}));
  const std::string text = error([](float* x, float*) { x[2] = 0; }, copying());
  EXPECT_NE(text.find("implementation `python` changed"), std::string::npos) << text;
}

TEST_F(CheckTest, FindsAChangedElementOfAnArgument) {
  const std::string text = error(
      [](float* x, float* y) {
        copy(x, y);
        x[6] = 0;
      },
      copying());
  EXPECT_EQ(text,
            "lib::f (here): argument `x` is not declared as written, but implementation `cpu` "
            "changed it: x[1, 1] had the bytes 00 00 00 41, and has "
            "00 00 00 00; declare it `Tensor(a!) x` in the schema, or correct the kernel");
}

TEST_F(CheckTest, FindsAChangeBesideAnArgument) {
  EXPECT_NE(error(
                [](float* x, float* y) {
                  copy(x, y);
                  x[-1] = 0;
                },
                copying())
                .find("wrote beside argument `x`, in the tensor that it is a view of: -2 bytes"),
            std::string::npos);
}

TEST_F(CheckTest, FindsAWriteBetweenTheElementsOfAnOutput) {
  EXPECT_NE(error(
                [](float* x, float* y) {
                  copy(x, y);
                  y[2] = 0;
                },
                copying())
                .find("wrote outside result `y`, 8 bytes from its first element, between elements"),
            std::string::npos);
}

TEST_F(CheckTest, FindsAnUnwrittenElementAndAllowsItWherePartial) {
  const auto one = [](float* x, float* y) { y[0] = y[1] = y[3] = x[0]; };
  EXPECT_NE(error(one, copying())
                .find("left an element of result `y` (4 elements) unwritten, the first at y[1, 1]"),
            std::string::npos);
  EXPECT_EQ(error(one, copying(true)), "none");
}

TEST_F(CheckTest, RepeatsInPlaceAResultThatLiesOverItsArgument) {
  const OpSpec spec =
      make_op("lib::f(Tensor x) -> (Tensor y)", {{.name = "", .like = "x", .may_overwrite = true}});
  int launches = 0;
  const auto twice = [&](float* from, float* to) {
    ++launches;
    for (int i = 0; i < 4; ++i) to[i] = 2 * from[i];
  };
  x = y = Matrix(4, {2, 2}, {2, 1}, 0);
  run(twice, spec);  // beside the argument
  EXPECT_EQ(launches, 1);
  in_place = true;
  run(twice, spec);
  EXPECT_EQ(launches, 3);
  EXPECT_EQ(x.memory, (std::vector<float>{2, 4, 6, 8}));

  const OpSpec apart = make_op("lib::f(Tensor x) -> (Tensor y)", {{.name = "", .like = "x"}});
  EXPECT_NE(error(twice, apart).find("result `y` shares memory with argument `x`"),
            std::string::npos);
  const auto writes_both = [&](float* from, float* to) {
    twice(from, to);
    from[0] = 0;
  };
  EXPECT_NE(error(writes_both, spec).find("argument `x` is not declared as written"),
            std::string::npos);
  const auto leaves_one = [](float* from, float* to) { to[0] = to[1] = to[2] = from[0]; };
  EXPECT_NE(error(leaves_one, spec).find("left an element of result `y`"), std::string::npos);
}

TEST_F(CheckTest, LaunchesAgainFromTheSameStateWhereAValueLooksUnwritten) {
  const OpSpec spec =
      make_op("lib::g(Tensor(a!) x) -> (Tensor y)", {{.name = "", .like = "x", .strides = "3, 1"}});
  uint32_t bits = 0xA5A5A5A5;
  float like_unwritten;
  std::memcpy(&like_unwritten, &bits, 4);
  int launches = 0;
  run(
      [&](float* x, float* y) {
        ++launches;
        x[0] += 1;
        copy(x, y);
        y[4] = like_unwritten;
      },
      spec);
  EXPECT_EQ(launches, 2);
  EXPECT_EQ(x.memory[1], 3);  // written once
  EXPECT_EQ(y.memory[0], 3);
}

TEST_F(CheckTest, FindsUnwrittenElementsAfterAViolationToo) {
  const auto beside = [](float* x, float* y) {
    copy(x, y);
    y[2] = 0;
  };
  const auto none = [](float*, float*) {};
  EXPECT_NE(error(beside, copying()), "none");
  EXPECT_NE(error(none, copying())
                .find("left 4 elements of result `y` (4 elements) unwritten, the first at y[0, 0]"),
            std::string::npos);
  EXPECT_NE(error(none, copying()).find("left 4 elements"), std::string::npos);
  EXPECT_EQ(error(copy, copying()), "none");
}

TEST_F(CheckTest, FindsUnwrittenElementsOfEverySizeAndPlace) {
  for (const auto& [dtype, size] :
       {std::pair{"uint8", 1}, {"int16", 2}, {"float32", 4}, {"float64", 8}, {"complex128", 16}}) {
    const OpSpec spec =
        make_op("lib::h(Tensor x) -> (Tensor y)", {{.name = "", .like = "x", .dtype = dtype}});
    for (const int64_t count : {1, 3, 20000}) {
      std::vector<char> from(static_cast<size_t>(count) * 4), to(static_cast<size_t>(count * size));
      const int64_t one = 1;
      TensorView in, out;
      in.sizes = out.sizes = &count;
      in.strides = out.strides = &one;
      in.dim = out.dim = 1;
      in.data = from.data();
      out.data = to.data();
      out.dtype = *dtype_from_name(dtype);
      const Arg args[] = {in, out};
      const Storage storages[] = {{from.data(), static_cast<int64_t>(from.size())},
                                  {to.data(), static_cast<int64_t>(to.size())}};
      for (const int64_t left : {int64_t{-1}, int64_t{0}, count / 2, count - 1}) {
        std::string text = "none";
        try {
          checked_launch({spec, args, storages, &implementation, Device{}, nullptr, nullptr},
                         [&](const Arg* a) {
                           auto* bytes = static_cast<unsigned char*>(a[1].tensor.data);
                           for (int64_t i = 0; i < count * size; ++i) {
                             if (i / size != left)
                               // much of it looks unwritten
                               bytes[i] = i % 3 ? 0xA5 : static_cast<unsigned char>(i);
                           }
                         });
        } catch (const Error& e) {
          text = e.what();
        }
        const std::string wanted = "left an element of result `y` (" + std::to_string(count) +
                                   " elements) unwritten, the first at y[" + std::to_string(left) +
                                   "]";
        EXPECT_TRUE(left < 0 ? text == "none" : text.find(wanted) != std::string::npos) << text;
      }
    }
  }
}

// ---- on a device, whose memory the fake driver has in the host's --------------------------------

class CheckOnDeviceTest : public CheckTest {
 protected:
  CheckOnDeviceTest() : fake(OPAQ_FAKE_DRIVER) {
    fake.reset();
    device = {DeviceType::CUDA, 0};
  }
  ~CheckOnDeviceTest() override { EXPECT_EQ(fake.allocations(), 0); }
  Fake fake;
};

TEST_F(CheckOnDeviceTest, FillsOnlyTheElementsOfAnOutput) {
  for (int i = 0; i < 2; ++i) {
    run(copy, copying());
    EXPECT_EQ(y.memory, (std::vector<float>{2, 4, 3, 6, 8, 6}));
  }
}

TEST_F(CheckOnDeviceTest, FindsViolations) {
  EXPECT_NE(error(
                [](float* x, float* y) {
                  copy(x, y);
                  x[6] = 0;
                },
                copying())
                .find("changed it: x[1, 1] had the bytes 00 00 00 41, and has 00 00 00 00"),
            std::string::npos);
  x.memory[7] = 8;
  EXPECT_NE(error(
                [](float* x, float* y) {
                  copy(x, y);
                  y[5] = 0;
                },
                copying())
                .find("wrote outside result `y`, 0 bytes past its last element"),
            std::string::npos);
  EXPECT_NE(error([](float* x, float* y) { y[0] = y[1] = y[3] = x[0]; }, copying())
                .find("unwritten, the first at y[1, 1]"),
            std::string::npos);
  run(copy, copying());
  EXPECT_EQ(y.memory, (std::vector<float>{2, 4, 3, 6, 8, 6}));
}

TEST_F(CheckOnDeviceTest, RefusesCapture) {
  fake.set_capture(nullptr, CU_STREAM_CAPTURE_STATUS_ACTIVE);
  try {
    run(copy, copying());
    FAIL() << "expected an error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, ErrorKind::Capture);
    EXPECT_STREQ(e.what(),
                 "lib::f: the contract check reads memory back to the host, which a CUDA graph "
                 "cannot capture; run the check without CUDA graphs, or turn it off");
  }
}

// ---- two tensors --------------------------------------------------------------------------------

TEST(CompareTest, NumbersTheFirstDifferenceInRowMajorOrder) {
  Matrix a{12, {2, 3}, {1, 2}, 0}, b{24, {2, 3}, {12, 3}, 1};
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      b.memory[static_cast<size_t>(1 + 12 * i + 3 * j)] = a.memory[static_cast<size_t>(i + 2 * j)];
  EXPECT_EQ(compare(a.view(), b.view(), false).kind, Comparison::Kind::SameBits);
  EXPECT_EQ(compare(a.view(), a.view(), true).kind, Comparison::Kind::SameLayout);
  b.memory[1 + 12 + 3] *= 1.00001f;
  EXPECT_EQ(compare(a.view(), b.view(), false).kind, Comparison::Kind::Close);
  EXPECT_EQ(compare(a.view(), b.view(), true).element, 4);
  b.memory[1 + 6] += 1;
  EXPECT_EQ(compare(a.view(), b.view(), false).element, 2);
}

}  // namespace
}  // namespace opaq
