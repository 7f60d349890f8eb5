// Tensor maps, from declarations to what the driver is asked to encode.
#include <thread>

#include "launch_fixture.h"

namespace opaq {
namespace {

constexpr size_t kMapBytes = sizeof(CUtensorMap);

class TensorMapTest : public LaunchFixture {
 protected:
  // A kernel (CUtensorMap, float*) of x and y.
  std::unique_ptr<PreparedLaunch> mapped(const std::string& map) {
    ImplementationText text;
    text.args = map + ", y";
    return binary("mylib::f(Tensor x, Tensor? other=None, int n=4) -> (Tensor y)",
                  {{"_Z1k14CUtensorMap_stPf", {kMapBytes, 8}}}, std::move(text));
  }
  std::vector<Arg> args(const Tensor& x, Arg other = {}) const {
    return {x, other, Arg::of_int(4), y};
  }
  FakeTensorMap map_of(PreparedLaunch& prepared, const std::vector<Arg>& args) {
    prepared.launch(args.data(), kCuda, nullptr);
    return param<FakeTensorMap>(last(), 0);
  }
};

TEST_F(TensorMapTest, IsEncodedFromTheTensor) {
  const auto prepared =
      mapped("tensor_map(x, box=[n * 2, 32], swizzle='128B', l2_promotion='256B', oob_fill='nan')");
  const FakeTensorMap map = map_of(*prepared, args(Tensor({40, 64}, DType::BFloat16)));
  EXPECT_EQ(map.address, 4096u);
  EXPECT_EQ(map.type, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
  EXPECT_EQ(map.dim, 2);
  EXPECT_EQ(map.sizes[0], 63u);
  EXPECT_EQ(map.sizes[1], 39u);
  EXPECT_EQ(map.strides[0], 128u);
  EXPECT_EQ(map.box[0], 32);
  EXPECT_EQ(map.box[1], 8);
  EXPECT_EQ(map.element_strides[1], 1);
  EXPECT_EQ(map.swizzle, CU_TENSOR_MAP_SWIZZLE_128B);
  EXPECT_EQ(map.l2_promotion, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
  EXPECT_EQ(map.oob_fill, CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA);
  EXPECT_EQ(map.interleave, CU_TENSOR_MAP_INTERLEAVE_NONE);
}

TEST_F(TensorMapTest, IsEncodedAgainOnlyWhereSomethingChanged) {
  const auto prepared = mapped("tensor_map(x, box=[n, 8])");
  const auto calls = [&] { return fake.calls("cuTensorMapEncodeTiled"); };
  EXPECT_EQ(map_of(*prepared, args(x)).address, 4096u);
  EXPECT_EQ(map_of(*prepared, args(x)).address, 4096u);
  EXPECT_EQ(calls(), 1);
  EXPECT_EQ(map_of(*prepared, args(Tensor({8, 16}, DType::Float32, 8192))).address, 8192u);
  EXPECT_EQ(calls(), 2);
  EXPECT_EQ(map_of(*prepared, args(Tensor({4, 16}, DType::Float32, 8192))).sizes[1], 3u);
  Tensor strided({4, 16}, DType::Float32, 8192);
  strided.strides[0] = 32;
  EXPECT_EQ(map_of(*prepared, args(strided)).strides[0], 128u);
  std::vector<Arg> wider = args(strided);
  wider[2] = Arg::of_int(2);
  EXPECT_EQ(map_of(*prepared, wider).box[1], 2);
  EXPECT_EQ(calls(), 5);
  fake.fail("cuTensorMapEncodeTiled", CUDA_ERROR_INVALID_VALUE, 1);
  EXPECT_EQ(message(*prepared, args(x), ErrorKind::Driver),
            "mylib::f: argument 1 `tensor_map(x, box=[n, 8])`: encoding the tensor map with sizes "
            "[8, 16], strides [16, 1], box [4, 8]: CUDA_ERROR_INVALID_VALUE (invalid argument)");
  EXPECT_EQ(map_of(*prepared, wider).box[1], 2);  // what was kept is still right
}

TEST_F(TensorMapTest, ThreadsNeverGetEachOthersMap) {
  const auto prepared = mapped("tensor_map(x, box=[n, 8])");
  constexpr int kThreads = 6, kRounds = 200;
  std::vector<std::thread> threads;
  for (uintptr_t i = 1; i <= kThreads; ++i) {
    threads.emplace_back([&, i] {
      const Tensor own({8, 16}, DType::Float32, 65536 * i), to({8, 16}, DType::Float32, 4096 * i);
      const std::vector<Arg> given{own, Arg{}, Arg::of_int(4), to};
      for (int round = 0; round < kRounds; ++round) prepared->launch(given.data(), kCuda, nullptr);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(fake.launch_count(), kThreads * kRounds);
  for (int i = 0; i < kThreads * kRounds; ++i) {
    const auto to = param<uint64_t>(fake.launch(i), 1);
    ASSERT_EQ(param<FakeTensorMap>(fake.launch(i), 0).address, to * 16);
  }
}

TEST_F(TensorMapTest, AShapeOfItsOwn) {
  const auto flat =
      mapped("tensor_map(x, box=[4, 8], shape=[x.numel() // x.size(-1), x.size(-1)])");
  const FakeTensorMap map = map_of(*flat, args(Tensor({2, 3, 4, 5, 6, 8})));
  EXPECT_EQ(map.dim, 2);
  EXPECT_EQ(map.sizes[1], 719u);
  EXPECT_EQ(map.strides[0], 32u);
  const auto every_second = mapped("tensor_map(x, box=[4, 8], shape=[4, 16], strides=[32, 1])");
  EXPECT_EQ(map_of(*every_second, args(x)).strides[0], 128u);
  EXPECT_EQ(message(*every_second, args(Tensor({4, 16}))),  // at the same address
            "mylib::f: argument 1 `tensor_map(x, box=[4, 8], shape=[4, 16], strides=[32, 1])`: "
            "shape [4, 16] with strides [32, 1] reaches to element 112, but `x` ends after 64");
  const auto outside = mapped("tensor_map(x, box=[4, 8], shape=[n + 5, 16])");
  EXPECT_EQ(message(*outside, args(x)),
            "mylib::f: argument 1 `tensor_map(x, box=[4, 8], shape=[n + 5, 16])`: shape [9, 16] "
            "with strides [16, 1] reaches to element 144, but `x` ends after 128");
}

TEST_F(TensorMapTest, StridesOfDimensionsOfSizeOneDoNotMatter) {
  Tensor odd({1, 3, 1, 8});
  odd.strides = {7, 8, 3, 1};
  const FakeTensorMap map = map_of(*mapped("tensor_map(x, box=[1, 1, 1, 8])"), args(odd));
  EXPECT_EQ(map.strides[0] % 16, 0u);
  EXPECT_EQ(map.strides[1], 32u);
  EXPECT_EQ(map.strides[2] % 16, 0u);
  Tensor column({4, 1});
  column.strides = {4, 9};
  EXPECT_EQ(map_of(*mapped("tensor_map(x, box=[4, 4])"), args(column)).strides[0], 16u);
}

TEST_F(TensorMapTest, AnAbsentTensorGivesZeros) {
  const auto prepared = mapped("tensor_map(other, box=[8, 8])");
  EXPECT_EQ(map_of(*prepared, args(x)).dim, 0);
  EXPECT_EQ(map_of(*prepared, args(x, Tensor({8, 16}))).dim, 2);
  EXPECT_EQ(map_of(*prepared, args(x)).dim, 0);
  EXPECT_EQ(fake.calls("cuTensorMapEncodeTiled"), 1);
}

TEST_F(TensorMapTest, WhatCudaCannotEncodeIsRefusedBefore) {
  const std::string box = "tensor_map(x, box=[4, 8])";
  const std::string where = "mylib::f: argument 1 `" + box + "`: ";
  const auto plain = mapped(box);
  EXPECT_EQ(message(*plain, args(Tensor({8}))),
            where + "box has 2 items, expected one for each of the 1 dimensions of the map");
  EXPECT_EQ(message(*plain, args(Tensor({1, 1, 1, 1, 8, 8}))),
            where +
                "`x` has 6 dimensions, but a tensor map has 1 to 5; write shape=[...] to map it "
                "with others");
  EXPECT_EQ(message(*plain, args(Tensor({8, 16}, DType::Float32, 4104))),
            where +
                "the address of `x` is not a multiple of 16 bytes; clone the tensor, or declare "
                "requires=\"aligned(x, 16)\" to leave such calls to another implementation");
  EXPECT_EQ(message(*plain, args(Tensor({0, 16}, DType::Float32, 0))),
            where +
                "dimension 0 of `x` has size 0, but a tensor map takes 1 to 2**32; give the "
                "launch a grid that is 0 for an empty tensor, or leave such calls to another "
                "implementation by requires=");
  EXPECT_EQ(message(*plain, args(Tensor({8, 15}))),
            where +
                "stride 0 of `x` is 15 elements of 4 bytes, but a tensor map needs a multiple of "
                "16 bytes below 2**40; pad the rows of the tensor");
  Tensor transposed({16, 16});
  transposed.strides = {1, 16};
  EXPECT_EQ(message(*plain, args(transposed)),
            where +
                "the innermost stride of `x` is 16, but a tensor map needs 1; pass the tensor "
                "row-major (it is, where no expression reads its strides)");
  EXPECT_EQ(message(*plain, args(Tensor({8, 16}, DType::Complex64))),
            where +
                "the tensor is complex64, which tensor maps do not have; pass "
                "torch.view_as_real(x)");
  EXPECT_EQ(message(*plain, args(Tensor({8, 16}, DType::UInt8))),
            where +
                "the last item of box is 8 elements of 1 bytes, but together they must be a "
                "multiple of 16 bytes");
  EXPECT_EQ(
      message(*plain, args(Tensor({8, 16}, DType::Float32, 4096, {DeviceType::CUDA, 1}))),
      "mylib::f: argument 1 `" + box +
          "` is on cuda:1, but the kernel runs on cuda:0; move the tensor, or pass the number "
          "it holds");
  EXPECT_EQ(message(*mapped("tensor_map(x, box=[n * 100, 8])"), args(x)),
            "mylib::f: argument 1 `tensor_map(x, box=[n * 100, 8])`: box is [400, 8], but an item "
            "is 1 to 256; load a larger tile in pieces");
  EXPECT_EQ(message(*mapped("tensor_map(x, box=[4, 16], swizzle=\"32B\")"), args(x)),
            "mylib::f: argument 1 `tensor_map(x, box=[4, 16], swizzle=\"32B\")`: the last item of "
            "box is 16 elements of 4 bytes, but swizzle=\"32B\" takes 32 bytes at most; make the "
            "box narrower");
  EXPECT_EQ(message(*mapped("tensor_map(x, box=[4, 8], type=\"tfloat32\")"),
                    args(Tensor({8, 16}, DType::Float16))),
            "mylib::f: argument 1 `tensor_map(x, box=[4, 8], type=\"tfloat32\")`: the tensor is "
            "float16, but type=\"tfloat32\" is for float32");
  EXPECT_EQ(fake.calls("cuTensorMapEncodeTiled"), 0);
  fake.set_capability(0, 8, 0);
  EXPECT_EQ(message(*plain, args(x)),
            where +
                "tensor maps need compute capability 9.0, but cuda:0 has 8.0; declare an "
                "implementation without them");
}

TEST_F(TensorMapTest, GoesWhereAMapIsTaken) {
  ImplementationText text;
  text.args = "tensor_map(x, box=[4, 8]), y, x.numel()";
  EXPECT_EQ(
      message(*copy(text), {x, Arg::of_int(1), y}, ErrorKind::Compile),
      "mylib::copy: argument 1 `tensor_map(x, box=[4, 8])` is a tensor map, but parameter 1 "
      "is `float*`; take it by value, as `const __grid_constant__ CUtensorMap`, and check the "
      "order of args");
  EXPECT_EQ(
      message(*mapped("x"), args(x), ErrorKind::Compile),
      "mylib::f: argument 1 `x` is Tensor, but parameter 1 is the struct `CUtensorMap` of 128 "
      "bytes; give a tensor map, such as opaq.tensor_map(\"x\", box=[64, 64])");
}

}  // namespace
}  // namespace opaq
