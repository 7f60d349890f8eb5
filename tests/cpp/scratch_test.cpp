// Scratch tensors and steps: declarations, their errors, and launches on a fake driver.
#include "launch/random.h"
#include "launch_fixture.h"

namespace opaq {
namespace {

constexpr auto kSums = "_Z4sumsPKfPfl";        // sums(float const*, float*, long)
constexpr auto kFinish = "_Z6finishPKfPfl";    // finish(float const*, float*, long)
constexpr auto kTicket = "_Z6ticketPfS_PiPl";  // ticket(float*, float*, int*, long*)

class ScratchTest : public LaunchFixture {
 protected:
  const OpSpec spec = make_op("mylib::sum(Tensor x, SymInt n) -> (Tensor y)",
                              {{.name = "y", .shape = "[]", .dtype = "float32"}});

  ImplementationText sums() {
    ImplementationText text{.name = "cuda", .device = "cuda", .kind = "binary"};
    text.file = "k.ptx";
    text.code = ptx({{kSums, {8, 8, 8}}, {kFinish, {8, 8, 8}}, {kTicket, {8, 8, 8, 8}}});
    return text;
  }
  ImplementationText two_steps() {
    ImplementationText text = sums();
    text.scratch = {{.name = "partial", .shape = "ceil_div(n, 4)", .dtype = "float32"}};
    text.steps = {
        {.entry = "sums", .grid = "partial.size(0)", .block = "64", .args = "x, partial, n"},
        {.entry = "finish", .args = "partial, y, partial.numel()", .programmatic = true}};
    return text;
  }
  ImplementationText three_tensors() {
    ImplementationText text = sums();
    text.scratch = {{.name = "a", .shape = "n", .dtype = "float32"},
                    {.name = "b", .shape = "3", .dtype = "int32", .zeros = true},
                    {.name = "c", .shape = "n, 2", .dtype = "int64", .zeros = true}};
    text.entry = "ticket";
    text.args = "y, a, b, c";
    return text;
  }
  std::string refused(const ImplementationText& text) {
    const Error error = error_of([&] { make_implementation(spec, text); });
    EXPECT_EQ(error.kind, ErrorKind::Declaration);
    return error.what();
  }
  std::vector<Arg> args(int64_t n) { return {x, Arg::of_int(n), scalar}; }

  static void* at(uintptr_t address) { return reinterpret_cast<void*>(address); }

  const Tensor scalar{{}, DType::Float32, 8192};
};

TEST_F(ScratchTest, AScratchTensorIsAnAddressInTheWorkspace) {
  auto prepared = prepare(spec, three_tensors());
  const std::vector<Arg> given = args(10);
  EXPECT_TRUE(prepared->needs_workspace());
  // What is zeroed comes first; each tensor begins at a multiple of 256 bytes.
  EXPECT_EQ(prepared->workspace_bytes(given.data(), kCuda), 512 + 40);
  prepared->launch(given.data(), kCuda, at(77), at(65536));
  ASSERT_EQ(fake.launch_count(), 1);
  EXPECT_EQ(param<uint64_t>(last(), 0), 8192u);
  EXPECT_EQ(param<uint64_t>(last(), 1), 65536u + 512);
  EXPECT_EQ(param<uint64_t>(last(), 2), 65536u);
  EXPECT_EQ(param<uint64_t>(last(), 3), 65536u + 256);
  const FakeMemset* zeroed = fake.memset(0);
  ASSERT_TRUE(zeroed);
  EXPECT_EQ(zeroed->memory, 65536u);
  EXPECT_EQ(zeroed->bytes, 256u + 160);
  EXPECT_EQ(zeroed->value, 0);
  EXPECT_EQ(zeroed->stream, at(77));
  EXPECT_EQ(zeroed->launches_before, 0);
  EXPECT_EQ(fake.memset(1), nullptr);
}

struct Drawn {
  ScratchRule::Content content;
  void* memory;
  DType dtype;
  int64_t count;
  Device device;
  void* stream;
};
std::vector<Drawn> drawn;

void note_draw(ScratchRule::Content content, const TensorView& to, void* stream) {
  drawn.push_back({content, to.data, to.dtype, to.numel(), to.device, stream});
}

TEST_F(ScratchTest, RandomNumbersAreDrawnForEachLaunch) {
  ImplementationText text = three_tensors();
  text.scratch[1] = {.name = "b", .shape = "n", .dtype = "int32"};
  text.scratch[2] = {.name = "c", .shape = "2", .dtype = "int64", .random = "philox"};
  auto prepared = prepare(spec, text);
  const std::vector<Arg> given = args(10);
  drawn.clear();
  set_draw_random(nullptr);
  const Error missing = error_of([&] { prepared->launch(given.data(), kCuda, at(77), at(65536)); });
  EXPECT_EQ(missing.kind, ErrorKind::Missing);
  EXPECT_STREQ(missing.what(),
               "mylib::sum: draws random numbers with PyTorch, which is not loaded");
  set_draw_random(note_draw);
  EXPECT_EQ(prepared->workspace_bytes(given.data(), kCuda), 512 + 16);
  for (int launches = 1; launches <= 2; ++launches) {
    prepared->launch(given.data(), kCuda, at(77), at(65536));
    EXPECT_EQ(param<uint64_t>(last(), 3), 65536u + 512);
    ASSERT_EQ(drawn.size(), static_cast<size_t>(launches));
    EXPECT_EQ(drawn.back().content, ScratchRule::Content::Philox);
    EXPECT_EQ(drawn.back().memory, at(65536 + 512));
    EXPECT_EQ(drawn.back().dtype, DType::Int64);
    EXPECT_EQ(drawn.back().count, 2);
    EXPECT_EQ(drawn.back().device, kCuda);
    EXPECT_EQ(drawn.back().stream, at(77));
  }
  EXPECT_EQ(fake.memset(0), nullptr);
  // Where nothing is launched, nothing is drawn.
  text.grid = "n";
  prepared = prepare(spec, text);
  prepared->launch(args(0).data(), kCuda, at(77), at(65536));
  EXPECT_EQ(drawn.size(), 2u);
}

TEST_F(ScratchTest, SeveralTensorsOfRandomNumbersAreDrawnInOrder) {
  ImplementationText text = three_tensors();
  text.scratch[0] = {.name = "a", .shape = "n, 2", .dtype = "x.dtype", .random = "exponential"};
  text.scratch[1] = {.name = "b", .shape = "3", .dtype = "int32"};
  text.scratch[2] = {.name = "c", .shape = "2", .dtype = "int64", .random = "philox"};
  auto prepared = prepare(spec, text);
  drawn.clear();
  set_draw_random(note_draw);
  prepared->launch(args(40).data(), kCuda, at(77), at(65536));
  EXPECT_EQ(param<uint64_t>(last(), 2), 65536u) << "they come last in the workspace";
  ASSERT_EQ(drawn.size(), 2u);
  EXPECT_EQ(drawn[0].content, ScratchRule::Content::Exponential);
  EXPECT_EQ(drawn[0].memory, at(65536 + 256));
  EXPECT_EQ(drawn[0].dtype, DType::Float32);
  EXPECT_EQ(drawn[0].count, 80);
  EXPECT_EQ(drawn[1].content, ScratchRule::Content::Philox);
  EXPECT_EQ(drawn[1].memory, at(65536 + 256 + 512));
  prepared->launch(args(0).data(), kCuda, at(77), at(65536));
  ASSERT_EQ(drawn.size(), 3u) << "nothing is drawn for a tensor without elements";
  EXPECT_EQ(drawn[2].content, ScratchRule::Content::Philox);
  const Tensor ints({4, 16}, DType::Int32);
  const std::vector<Arg> other = {ints, Arg::of_int(4), scalar};
  const Error dtype = error_of([&] { prepared->workspace_bytes(other.data(), kCuda); });
  EXPECT_EQ(dtype.kind, ErrorKind::Launch);
  EXPECT_STREQ(dtype.what(),
               "mylib::sum: scratch 'a' of implementation 'cuda': dtype 'int32'; PyTorch draws "
               "exponential random numbers as float32, float64, float16 or bfloat16");
}

TEST_F(ScratchTest, MemoryThatIsLeftAtZeroIsZeroedOnceForEachStream) {
  ImplementationText text = three_tensors();
  text.scratch[2].once = true;  // c, of 16 * n bytes
  auto prepared = prepare(spec, text);
  const auto launch = [&](int64_t n, void* stream) {
    prepared->launch(args(n).data(), kCuda, stream, at(65536));
    EXPECT_EQ(param<uint64_t>(last(), 1), 65536u + 512 + (n > 16 ? 256 : 0));
    EXPECT_EQ(param<uint64_t>(last(), 2), 65536u);
    return param<uint64_t>(last(), 3);
  };
  const uint64_t first = launch(10, at(77));
  EXPECT_NE(first, 65536u + 256);
  ASSERT_TRUE(fake.memset(1));
  EXPECT_EQ(fake.memset(0)->memory, first) << "once";
  EXPECT_EQ(fake.memset(0)->bytes, 160u);
  EXPECT_EQ(fake.memset(1)->memory, 65536u) << "of b, at each launch";
  EXPECT_EQ(fake.memset(1)->bytes, 12u);
  EXPECT_EQ(launch(10, at(77)), first);
  EXPECT_EQ(launch(3, at(77)), first);
  EXPECT_EQ(fake.allocations(), 1);
  EXPECT_EQ(fake.calls("cuMemsetD8Async"), 4);

  EXPECT_NE(launch(10, at(78)), first) << "another stream may run at the same time";
  EXPECT_EQ(fake.allocations(), 2);
  EXPECT_NE(launch(20, at(77)), first) << "more than before";
  EXPECT_EQ(fake.allocations(), 3) << "launches may still use the first one";
}

TEST_F(ScratchTest, ACapturedLaunchBorrowsMemoryUntilItsGraphIsGone) {
  ImplementationText text = three_tensors();
  text.scratch[1].once = text.scratch[2].once = true;
  auto prepared = prepare(spec, text);
  const auto stream = static_cast<CUstream>(at(77));
  const auto launch = [&](int64_t n = 10) {
    prepared->launch(args(n).data(), kCuda, at(77), at(65536));
    const uint64_t kept = param<uint64_t>(last(), 2);
    EXPECT_EQ(param<uint64_t>(last(), 3), kept + 256);
    EXPECT_NE(kept, 65536u);
    return kept;
  };
  const uint64_t of_stream = launch();
  fake.set_capture(stream, CU_STREAM_CAPTURE_STATUS_ACTIVE);
  const uint64_t first = launch();
  EXPECT_NE(first, of_stream);
  ASSERT_TRUE(fake.memset(1));
  EXPECT_EQ(fake.memset(1)->memory, first);
  EXPECT_EQ(fake.memset(1)->bytes, 256u + 160);
  EXPECT_NE(fake.memset(1)->stream, stream) << "now, and not by each replay";
  EXPECT_EQ(fake.calls("cuStreamSynchronize"), 1);
  EXPECT_EQ(fake.capture(stream), CU_STREAM_CAPTURE_STATUS_ACTIVE) << "it has not been broken";
  EXPECT_NE(launch(), first) << "replays of both launches may run at the same time";
  EXPECT_EQ(fake.allocations(), 3);

  fake.destroy_graph(stream);
  EXPECT_EQ(fake.calls("cuMemsetD8Async"), 3);
  launch();
  launch();
  EXPECT_EQ(fake.allocations(), 3) << "what was lent is used again";
  EXPECT_EQ(fake.calls("cuMemsetD8Async"), 3) << "and is zero";
  launch();
  EXPECT_EQ(fake.allocations(), 4);

  fake.destroy_graph(stream);
  launch(100);
  EXPECT_EQ(fake.allocations(), 5) << "others are too small";
  // Another thread's launch allocates without breaking the capture.
  prepared->launch(args(10).data(), kCuda, at(78), at(65536));
  EXPECT_EQ(fake.capture(stream), CU_STREAM_CAPTURE_STATUS_ACTIVE);
}

TEST_F(ScratchTest, ACapturedLaunchIsZeroedByEachReplayWhereTheDriverDoesNotTellTheGraph) {
  ImplementationText text = three_tensors();
  text.scratch[1].once = text.scratch[2].once = true;
  auto prepared = prepare(spec, text);
  const std::vector<Arg> given = args(10);
  prepared->launch(given.data(), kCuda, at(77), at(65536));
  fake.set_capture(static_cast<CUstream>(at(77)), CU_STREAM_CAPTURE_STATUS_ACTIVE);
  fake.fail("cuStreamGetCaptureInfo", CUDA_ERROR_INVALID_VALUE, 1);
  prepared->launch(given.data(), kCuda, at(77), at(65536));
  EXPECT_EQ(param<uint64_t>(last(), 2), 65536u);
  EXPECT_EQ(param<uint64_t>(last(), 3), 65536u + 256);
  ASSERT_TRUE(fake.memset(1));
  EXPECT_EQ(fake.memset(1)->memory, 65536u);
  EXPECT_EQ(fake.memset(1)->bytes, 256u + 160);
  EXPECT_EQ(fake.memset(1)->stream, at(77));
}

TEST_F(ScratchTest, WhatCannotBeLentToAGraphIsAnErrorAndIsUsedAgain) {
  ImplementationText text = three_tensors();
  text.scratch[1].once = text.scratch[2].once = true;
  auto prepared = prepare(spec, text);
  const std::vector<Arg> given = args(10);
  const auto launch = [&] { prepared->launch(given.data(), kCuda, at(77), at(65536)); };
  launch();
  fake.set_capture(static_cast<CUstream>(at(77)), CU_STREAM_CAPTURE_STATUS_ACTIVE);
  fake.fail("cuGraphRetainUserObject", CUDA_ERROR_OUT_OF_MEMORY, 1);
  const Error refused = error_of(launch);
  EXPECT_EQ(refused.kind, ErrorKind::Driver);
  EXPECT_NE(std::string(refused.what())
                .find("lending scratch memory to a CUDA graph: CUDA_ERROR_OUT_OF_MEMORY"),
            std::string::npos)
      << refused.what();
  launch();
  EXPECT_EQ(fake.allocations(), 2);
}

TEST_F(ScratchTest, AFailedLaunchHasItsMemoryZeroedAgain) {
  ImplementationText text = two_steps();
  text.scratch.push_back(
      {.name = "ticket", .shape = "1", .dtype = "int32", .zeros = true, .once = true});
  text.scratch.push_back({.name = "longs", .shape = "1", .dtype = "int64"});
  text.steps[0] = {.entry = "ticket", .args = "partial, partial, ticket, longs"};
  auto prepared = prepare(spec, text);
  const std::vector<Arg> given = args(10);
  const auto launch = [&] { prepared->launch(given.data(), kCuda, at(77), at(65536)); };
  launch();
  launch();
  EXPECT_EQ(fake.calls("cuMemsetD8Async"), 1);
  fake.fail("cuLaunchKernelEx", CUDA_ERROR_INVALID_VALUE, 1);  // the second step
  EXPECT_EQ(error_of(launch).kind, ErrorKind::Driver);
  launch();
  EXPECT_EQ(fake.calls("cuMemsetD8Async"), 2);
  fake.fail("cuMemAlloc", CUDA_ERROR_OUT_OF_MEMORY, 1);
  const Error none = error_of([&] { prepared->launch(given.data(), kCuda, at(78), at(65536)); });
  EXPECT_EQ(std::string(none.what())
                .rfind("mylib::sum: allocating 4 bytes of scratch memory that is "
                       "zeroed once: CUDA_ERROR_OUT_OF_MEMORY",
                       0),
            0u)
      << none.what();
}

TEST_F(ScratchTest, StepsAreLaunchedInOrderWithTheirOwnGeometry) {
  auto prepared = prepare(spec, two_steps());
  const std::vector<Arg> given = args(10);
  EXPECT_EQ(prepared->workspace_bytes(given.data(), kCuda), 12);
  EXPECT_FALSE(prepared->launch_if_loaded(given.data(), kCuda, at(77), at(65536)));
  EXPECT_EQ(fake.launch_count(), 0) << "nothing is launched before all is loaded";
  prepared->launch(given.data(), kCuda, at(77), at(65536));
  ASSERT_EQ(fake.launch_count(), 2);
  const FakeLaunch *first = fake.launch(0), *second = fake.launch(1);
  EXPECT_STREQ(first->kernel, kSums);
  EXPECT_EQ(first->grid[0], 3u);
  EXPECT_EQ(first->block[0], 64u);
  EXPECT_EQ(first->programmatic, 0);
  EXPECT_EQ(param<uint64_t>(first, 1), 65536u);
  EXPECT_STREQ(second->kernel, kFinish);
  EXPECT_EQ(second->grid[0], 1u);
  EXPECT_EQ(second->programmatic, 1);
  EXPECT_EQ(second->stream, at(77));
  EXPECT_EQ(param<uint64_t>(second, 0), 65536u);
  EXPECT_EQ(param<int64_t>(second, 2), 3);
  EXPECT_EQ(prepared->stats().calls, 1) << "the steps are one call";
  EXPECT_TRUE(prepared->launch_if_loaded(given.data(), kCuda, at(77), at(65536)));
}

TEST_F(ScratchTest, AStepWithAnEmptyGridIsLeftOut) {
  auto prepared = prepare(spec, two_steps());
  prepared->launch(args(0).data(), kCuda, nullptr, nullptr);
  ASSERT_EQ(fake.launch_count(), 1);
  EXPECT_STREQ(last()->kernel, kFinish);
  EXPECT_EQ(prepared->stats().skipped_empty, 0);
}

TEST_F(ScratchTest, AWorkspaceIsNotNeededWhereNothingIsWritten) {
  const OpSpec like = op("mylib::sum(Tensor x, SymInt n) -> (Tensor y)");
  auto prepared = prepare(like, two_steps());
  const Tensor none({0, 16}), empty({0, 16});
  const std::vector<Arg> given = {none, Arg::of_int(5), empty};
  EXPECT_EQ(prepared->workspace_bytes(given.data(), kCuda), 0);
  prepared->launch(given.data(), kCuda, nullptr);
  EXPECT_EQ(fake.launch_count(), 0);
  EXPECT_EQ(prepared->stats().skipped_empty, 1);
}

TEST_F(ScratchTest, ErrorsOfALaunchNameTheScratchTensorAndTheStep) {
  auto prepared = prepare(spec, two_steps());
  const Error negative = error_of([&] { prepared->workspace_bytes(args(-5).data(), kCuda); });
  EXPECT_STREQ(
      negative.what(),
      "mylib::sum: scratch 'partial' of implementation 'cuda': size 0 is -1; a size is 0 or "
      "more");
  ImplementationText text = two_steps();
  text.steps[1].block = "n";
  EXPECT_EQ(message(*prepare(spec, text), args(8000), ErrorKind::Internal),
            "mylib::sum: launched without its workspace of 8000 bytes");
  auto wrong = prepare(spec, text);
  const Error block =
      error_of([&] { wrong->launch(args(2000).data(), kCuda, nullptr, at(65536)); });
  EXPECT_STREQ(block.what(),
               "mylib::sum, step 2: block.x `n` is 2000; it must be between 1 and 1024");
  EXPECT_EQ(fake.launch_count(), 0) << "nothing is launched unless all steps fit";
  text.steps[1] = {.entry = "finish", .args = "partial, y, x"};
  const Error signature =
      error_of([&] { prepare(spec, text)->launch(args(4).data(), kCuda, nullptr, at(65536)); });
  EXPECT_EQ(signature.kind, ErrorKind::Compile);
  EXPECT_EQ(std::string(signature.what()).rfind("mylib::sum, step 2: argument 3 `x` is Tensor", 0),
            0u)
      << signature.what();
}

TEST_F(ScratchTest, DeclarationsThatCannotBeMeantAreRefused) {
  const std::string where = " of mylib::sum, implementation 'cuda'";
  const auto scratch = [&](ScratchText tensor) {
    ImplementationText text = two_steps();
    text.scratch.push_back(std::move(tensor));
    return refused(text);
  };
  EXPECT_EQ(scratch({.name = "x", .shape = "4", .dtype = "int32"}),
            "name" + where + ", scratch 'x': 'x' is an argument of the op; choose another name");
  EXPECT_EQ(scratch({.name = "y", .shape = "4", .dtype = "int32"}),
            "name" + where + ", scratch 'y': 'y' is a result of the op; choose another name");
  EXPECT_EQ(scratch({.name = "partial", .shape = "4", .dtype = "int32"}),
            "name" + where + ", scratch 'partial': 'partial' is declared twice");
  EXPECT_EQ(scratch({.name = "a b", .shape = "4", .dtype = "int32"}),
            "name" + where + ", scratch 'a b': 'a b' is no name; use letters, digits and _");
  EXPECT_EQ(scratch({.name = "z", .shape = "x.data", .dtype = "int32"}),
            "shape" + where +
                ", scratch 'z': 'x.data' depends on an address, which is not known when memory is "
                "planned");
  EXPECT_EQ(scratch({.name = "z", .shape = "-4", .dtype = "int32"}),
            "shape" + where + ", scratch 'z': '-4' is negative");
  EXPECT_EQ(scratch({.name = "z", .like = "X"}),
            "like" + where +
                ", scratch 'z': no tensor that is never None is named 'X'; there are x, y; did you "
                "mean 'x'?");
  EXPECT_EQ(
      scratch({.name = "z", .shape = "4", .dtype = "int32"}),
      "args" + where +
          ": scratch 'z' is not among those of any step; pass it, or leave it out of scratch");
  EXPECT_EQ(scratch({.name = "z", .shape = "2", .dtype = "int32", .random = "philox"}),
            "dtype" + where +
                ", scratch 'z': 'int32'; a seed and an offset are int64 or uint64, as the kernel's "
                "parameter says");
  EXPECT_EQ(scratch({.name = "z", .shape = "4", .dtype = "uint8", .random = "exponential"}),
            "dtype" + where +
                ", scratch 'z': 'uint8'; PyTorch draws exponential random numbers as float32, "
                "float64, float16 or bfloat16");
  EXPECT_EQ(scratch({.name = "z", .shape = "4", .dtype = "float32", .random = "normal"}),
            "random" + where + ", scratch 'z': 'normal'; expected philox or exponential");
  ImplementationText text = two_steps();
  text.grid = "7";
  EXPECT_EQ(refused(text),
            "grid" + where + ": got '7' beside steps; give grid to each opaq.step(...)");
  text = two_steps();
  text.steps[1].args = "partial, partial, n";
  EXPECT_EQ(refused(text), "args" + where +
                               ": output 'y' is not among those of any step, so that nothing would "
                               "write it; pass it");
  text = two_steps();
  text.steps[1].entry = "";
  EXPECT_EQ(refused(text), "entry" + where +
                               ", step 2: not given; name the function that is called, as in "
                               "entry=\"rms_norm<{x.dtype}>\"");
  text = two_steps();
  text.requires_ = {"partial.size(0) > 1"};
  EXPECT_EQ(refused(text), "requires" + where +
                               ": 'partial.size(0) > 1' reads the scratch tensor 'partial', which "
                               "exists only when an implementation has been chosen; read arguments "
                               "and results instead");
  text = two_steps();
  text.steps[0].entry = "sums<{partial.dtype}>";
  EXPECT_EQ(refused(text),
            "entry" + where +
                ", step 1: 'partial.dtype' reads the scratch tensor 'partial', which "
                "is not known when a kernel is compiled; read arguments and results "
                "instead");
  text = two_steps();
  text.steps[0].grid = "0";
  EXPECT_EQ(refused(text), "grid" + where + ", step 1: '0' is less than 1: nothing would ever run");
}

TEST_F(ScratchTest, ScratchAndStepsAreInTheHash) {
  const std::string before = make_implementation(spec, two_steps()).hash;
  EXPECT_EQ(make_implementation(spec, two_steps()).hash, before);
  std::vector<ImplementationText> changed(6, two_steps());
  changed[0].scratch[0].shape = "n";
  changed[1].scratch[0].dtype = "float64";
  changed[2].scratch[0].zeros = true;
  changed[3].steps[1].block = "2";
  std::swap(changed[4].steps[0], changed[4].steps[1]);
  changed[5].scratch[0].random = "exponential";
  for (const ImplementationText& text : changed)
    EXPECT_NE(make_implementation(spec, text).hash, before);
}

}  // namespace
}  // namespace opaq
