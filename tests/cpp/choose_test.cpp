// Choosing: which implementation serves a call, and why the others do not.
#include "choose/choose.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/error.h"
#include "kinds/kind.h"

namespace opaq {
namespace {

// A tensor without memory: choosing reads sizes, strides and the address, never the data.
struct Tensor {
  Tensor(std::vector<int64_t> sizes, std::vector<int64_t> strides = {}, uintptr_t address = 4096,
         DType dtype = DType::Float32)
      : sizes(std::move(sizes)), strides(std::move(strides)), address(address), dtype(dtype) {
    if (!this->strides.empty()) return;
    this->strides.resize(this->sizes.size());
    int64_t step = 1;
    for (size_t i = this->sizes.size(); i-- > 0; step *= this->sizes[i]) this->strides[i] = step;
  }
  operator Arg() const {
    return TensorView{reinterpret_cast<void*>(address),   sizes.data(), strides.data(),
                      static_cast<int32_t>(sizes.size()), dtype,        Device{}};
  }
  std::vector<int64_t> sizes, strides;
  uintptr_t address;
  DType dtype;
};

ImplementationText source(std::string name, std::vector<std::string> requirements = {},
                          int priority = 0, std::string device = "cuda") {
  ImplementationText text;
  text.name = std::move(name);
  text.device = std::move(device);
  text.kind = "source";
  text.code = "// kernel k";
  text.entry = "k";
  if (text.device == "cuda") text.grid = "x.numel()";
  text.args = "y, x";
  text.requires_ = std::move(requirements);
  text.priority = priority;
  return text;
}

class ChooseTest : public testing::Test {
 protected:
  void add(const ImplementationText& text, bool replace = false) {
    op.add(make_implementation(op.spec(), text), replace);
  }
  std::string chosen(std::vector<Arg> args, DeviceType device = DeviceType::CUDA) {
    const Choice choice = chooser.choose(args.data(), device);
    return choice.launch ? choice.launch->implementation().name : "";
  }

  Op op{make_op("mylib::f(Tensor x, Tensor? w=None) -> (Tensor y)", {OutputText{.like = "x"}})};
  Chooser chooser{op};
  const Tensor plain{{8, 16}};
  const Tensor misaligned{{8, 16}, {}, 4100};
  const Tensor transposed{{8, 16}, {1, 8}};
};

TEST_F(ChooseTest, TakesTheBestImplementationWhoseRequirementsHold) {
  add(source("cuda"));
  add(source("cuda:vec4", {"x.size(-1) % 4 == 0", "aligned(x, 16)"}, 1));
  EXPECT_EQ(chosen({plain, Arg(), plain}), "cuda:vec4");
  EXPECT_EQ(chosen({misaligned, Arg(), plain}), "cuda");
  EXPECT_EQ(chosen({Tensor({8, 15}), Arg(), plain}), "cuda");
}

TEST_F(ChooseTest, WhatWasMeasuredComesFirstForItsProblem) {
  add(source("cuda:vec4", {"aligned(x, 16)"}, 1));
  add(source("cuda"));
  std::vector<Arg> args = {plain, Arg(), plain};
  const Schema& schema = op.spec().schema;
  const uint64_t key = problem_key(schema, args.data(), DeviceType::CUDA);
  const Tensor other({16, 8}), strided({8, 16}, {32, 1}), half({8, 16}, {}, 4096, DType::Float16);
  for (const Tensor* each : {&other, &strided, &half}) {
    const std::vector<Arg> others = {*each, Arg(), *each};
    EXPECT_NE(problem_key(schema, others.data(), DeviceType::CUDA), key);
  }
  EXPECT_EQ(problem_text(schema, args.data()), "x float32[8x16]");
  chooser.set_fastest({{key, "cuda"}});
  EXPECT_EQ(chosen(args), "cuda");
  EXPECT_EQ(chosen({other, Arg(), other}), "cuda:vec4");
  EXPECT_EQ(chooser.explain(args.data(), DeviceType::CUDA),
            "cuda:vec4: fits, but cuda comes first\ncuda: chosen, since it was measured to be the "
            "fastest");
  op.prefer({"cuda:vec4"});
  EXPECT_EQ(chosen(args), "cuda:vec4");
  op.prefer({});
  chooser.set_fastest({{key, "gone"}});
  EXPECT_EQ(chosen(args), "cuda:vec4");
  chooser.set_fastest({{key, "cuda:vec4"}});
  EXPECT_EQ(chosen({misaligned, Arg(), plain}), "cuda");  // what does not fit is passed over
}

TEST_F(ChooseTest, ANodeTriesWhatWasMeasuredByRangesOfASize) {
  add(source("cuda:vec4", {"aligned(x, 16)"}, 1));
  add(source("cuda"));
  const MeasuredSizes measured{
      {{{0, 0, 8}, "cuda"}, {{0, 0, 64}, "cuda:vec4"}, {{0, 0, 70}, "gone"}}, "cuda"};
  for (const auto& [rows, expected] : std::map<int64_t, std::string>{
           {8, "cuda"}, {9, "cuda:vec4"}, {64, "cuda:vec4"}, {65, "cuda:vec4"}, {71, "cuda"}}) {
    const Tensor x({rows, 16});
    const std::vector<Arg> args = {x, Arg(), x};
    EXPECT_EQ(
        chooser.choose(args.data(), DeviceType::CUDA, &measured).launch->implementation().name,
        expected);
  }
  KnownConditions known;
  known.requirements = {{"cuda", {}}, {"cuda:vec4", {Truth::AtLaunch}}};
  known.measured = measured;
  const NodeChoice node = chooser.choose_for_node(known, DeviceType::CUDA);
  std::vector<std::string> tried;
  for (const NodeLaunch& launch : node.launches)
    tried.push_back(launch.implementation->name + " if " +
                    join(launch.conditions(op.spec().all_symbols()), ", "));
  EXPECT_EQ(tried,
            (std::vector<std::string>{"cuda if x.size(0) <= 8",
                                      "cuda:vec4 if aligned(x, 16), x.size(0) <= 64", "cuda if "}));
  EXPECT_TRUE(node.always_fits());
  op.prefer({"cuda:vec4"});
  const std::vector<Arg> args = {plain, Arg(), plain};
  EXPECT_EQ(chooser.choose(args.data(), DeviceType::CUDA, &measured).launch->implementation().name,
            "cuda:vec4");
  op.prefer({});
}

TEST_F(ChooseTest, NeverCrossesDevices) {
  add(source("cpu", {}, 5, "cpu"));
  EXPECT_EQ(chosen({plain, Arg(), plain}, DeviceType::CUDA), "");
  EXPECT_EQ(chosen({plain, Arg(), plain}, DeviceType::CPU), "cpu");
}

TEST_F(ChooseTest, PythonFunctionsAreCalledAndNotLaunched) {
  ImplementationText text;
  text.name = "python";
  text.device = "cuda";
  text.kind = "python";
  text.requires_ = {"x.size(-1) > 15"};
  text.priority = 1;
  add(text);
  add(source("cuda"));
  std::vector<Arg> args = {plain, Arg(), plain};
  Choice choice = chooser.choose(args.data(), DeviceType::CUDA);
  EXPECT_EQ(choice.launch, nullptr);
  ASSERT_NE(choice.python, nullptr);
  EXPECT_EQ(choice.python, choice.serving());
  EXPECT_EQ(choice.python->implementation().name, "python");
  EXPECT_EQ(chooser.explain(args.data(), DeviceType::CUDA),
            "python: chosen\ncuda: fits, but python comes first");
  args = {transposed, Arg(), plain};  // a Python function takes any strides
  EXPECT_EQ(chooser.choose(args.data(), DeviceType::CUDA).python, choice.python);
  const Tensor narrow({8, 15});
  args = {narrow, Arg(), plain};
  choice = chooser.choose(args.data(), DeviceType::CUDA);
  EXPECT_EQ(choice.python, nullptr);
  ASSERT_NE(choice.launch, nullptr);
  EXPECT_EQ(choice.launch->implementation().name, "cuda");
}

TEST_F(ChooseTest, RequirementThatCannotBeEvaluatedDoesNotHold) {
  add(source("cuda:3d", {"x.size(2) == 4"}, 1));
  add(source("cuda"));
  const std::vector<Arg> args = {plain, Arg(), plain};
  EXPECT_EQ(chosen(args), "cuda");
  const std::string text = chooser.explain(args.data(), DeviceType::CUDA);
  EXPECT_EQ(text.rfind("cuda:3d: x.size(2) == 4 does not hold: ", 0), 0u) << text;
  EXPECT_NE(text.find("x.size(2)", 30), std::string::npos)
      << "the reason names the expression: " << text;
  EXPECT_NE(text.find("\ncuda: chosen"), std::string::npos) << text;
}

TEST_F(ChooseTest, StridedArgumentIsOfferedToBeMadeContiguous) {
  add(source("cuda"));
  std::vector<Arg> args = {transposed, Arg(), plain};
  const Choice choice = chooser.choose(args.data(), DeviceType::CUDA);
  EXPECT_EQ(choice.launch, nullptr);
  ASSERT_NE(choice.if_contiguous, nullptr);
  EXPECT_EQ(choice.if_contiguous->implementation().name, "cuda");
  EXPECT_EQ(choice.make_contiguous, 1u);
  EXPECT_EQ(
      chooser.explain(args.data(), DeviceType::CUDA),
      "cuda: x must be contiguous, since no expression reads its strides; its shape is (8, 16) "
      "with strides (1, 8)");
}

TEST_F(ChooseTest, ImplementationThatReadsStridesNeedsNoCopy) {
  add(source("cuda", {}, 1));
  ImplementationText strided = source("cuda:strided");
  strided.args = "y, x, x.stride(0), x.stride(1)";
  add(strided);
  std::vector<Arg> args = {transposed, Arg(), plain};
  const Choice choice = chooser.choose(args.data(), DeviceType::CUDA);
  ASSERT_NE(choice.launch, nullptr);
  EXPECT_EQ(choice.launch->implementation().name, "cuda:strided");
  EXPECT_EQ(choice.if_contiguous, nullptr);
  EXPECT_EQ(choice.make_contiguous, 0u);
}

TEST_F(ChooseTest, CopyIsNotOfferedWhenSomethingElseStandsInTheWay) {
  add(source("cuda", {"x.size(0) == 9"}));
  std::vector<Arg> args = {transposed, Arg(), plain};
  const Choice choice = chooser.choose(args.data(), DeviceType::CUDA);
  EXPECT_EQ(choice.launch, nullptr);
  EXPECT_EQ(choice.if_contiguous, nullptr);
  const std::string text = chooser.explain(args.data(), DeviceType::CUDA);
  EXPECT_NE(text.find("x.size(0) == 9 does not hold; x must be contiguous"), std::string::npos)
      << text;
}

TEST(ChooseMutation, WhatTheOpWritesIsNamedLikeAnyOtherArgument) {  // the caller copies it back
  Op op(make_op("mylib::scale_(Tensor(a!) x, Tensor w) -> ()", {}));
  ImplementationText text = source("cuda");
  text.args = "x, w";
  op.add(make_implementation(op.spec(), text));
  Chooser chooser(op);
  const Tensor plain({8, 16}), transposed({8, 16}, {1, 8});
  std::vector<Arg> args = {transposed, plain};
  EXPECT_EQ(chooser.choose(args.data(), DeviceType::CUDA).make_contiguous, 1u);
  args = {plain, transposed};
  EXPECT_EQ(chooser.choose(args.data(), DeviceType::CUDA).make_contiguous, 2u);
}

TEST_F(ChooseTest, AbsentAndEmptyTensorsAreContiguous) {
  add(source("cuda"));
  EXPECT_EQ(chosen({Tensor({0, 16}, {1, 8}), Arg(), Tensor({0, 16})}), "cuda");
}

TEST_F(ChooseTest, ExplainSaysWhoComesFirst) {
  add(source("cuda:vec4", {"aligned(x, 16)"}, 1));
  add(source("cuda"));
  add(source("cpu", {}, 0, "cpu"));
  std::vector<Arg> args = {plain, Arg(), plain};
  EXPECT_EQ(chooser.explain(args.data(), DeviceType::CUDA),
            "cuda:vec4: chosen\ncuda: fits, but cuda:vec4 comes first\ncpu: runs on cpu, the "
            "arguments are on cuda");
  args[0] = misaligned;
  EXPECT_EQ(chooser.explain(args.data(), DeviceType::CUDA),
            "cuda:vec4: aligned(x, 16) does not hold\ncuda: chosen\ncpu: runs on cpu, the "
            "arguments are on cuda");
}

TEST_F(ChooseTest, OpWithoutImplementationsSaysSo) {
  const std::vector<Arg> args = {plain, Arg(), plain};
  EXPECT_EQ(chosen(args), "");
  EXPECT_EQ(chooser.explain(args.data(), DeviceType::CUDA), "mylib::f has no implementations");
}

TEST_F(ChooseTest, FollowsTheOpAndKeepsWhatIsPrepared) {
  add(source("cuda"));
  EXPECT_EQ(chosen({plain, Arg(), plain}), "cuda");
  PreparedLaunch* const before = chooser.find("cuda");
  add(source("cuda:fast", {}, 1));
  EXPECT_EQ(chosen({plain, Arg(), plain}), "cuda:fast");
  EXPECT_EQ(chooser.find("cuda"), before)
      << "what is compiled and loaded survives another declaration";
  EXPECT_EQ(chooser.find("cuda:slow"), nullptr);
  ASSERT_EQ(chooser.all().size(), 2u);
  EXPECT_EQ(chooser.all()[0], chooser.find("cuda:fast"));

  ImplementationText other = source("cuda");
  other.code = "// another kernel k";
  add(other, true);
  EXPECT_NE(chooser.find("cuda"), before);
  EXPECT_EQ(before->implementation().code, "// kernel k") << "a launch in flight keeps its own";
}

// What a compiled graph knows of a call before it is made.
class NodeChoiceTest : public ChooseTest {
 protected:
  std::string chosen_for_node(std::map<std::string, std::vector<Truth>, std::less<>> requirements,
                              Truth x_is_row_major) {
    const NodeChoice choice =
        chooser.choose_for_node({std::move(requirements), {x_is_row_major}}, DeviceType::CUDA);
    std::string text;
    for (const NodeLaunch& launch : choice.launches) {
      text += (text.empty() ? "" : ", ") + launch.implementation->name;
      if (!launch.requirements.empty()) text += " if required";
      if (!launch.row_major.empty()) text += " if row-major";
      if (!launch.copied.empty()) text += " on copies";
    }
    for (const uint32_t symbol : choice.placed_copies)
      text += "; graph copies " + std::to_string(symbol);
    for (const std::string& why : choice.skipped) text += "; " + why;
    return text;
  }
  void SetUp() override {
    add(source("cuda:vec4", {"aligned(x, 16)"}, 1));
    add(source("cuda"));
  }
};

TEST_F(NodeChoiceTest, EndsWithTheFirstThatAlwaysFits) {
  EXPECT_EQ(chosen_for_node({{"cuda:vec4", {Truth::Yes}}, {"cuda", {}}}, Truth::Yes), "cuda:vec4");
  EXPECT_EQ(chosen_for_node({{"cuda:vec4", {Truth::AtLaunch}}, {"cuda", {}}}, Truth::Yes),
            "cuda:vec4 if required, cuda");
  EXPECT_EQ(chosen_for_node({{"cuda:vec4", {Truth::No}}, {"cuda", {}}}, Truth::Yes),
            "cuda; cuda:vec4: aligned(x, 16) does not hold");
}

TEST_F(NodeChoiceTest, LeavesCopiesToTheGraphWhereOneImplementationAlwaysServes) {
  EXPECT_EQ(chosen_for_node({{"cuda:vec4", {Truth::No}}, {"cuda", {}}}, Truth::No),
            "cuda; graph copies 0; cuda:vec4: aligned(x, 16) does not hold");
  EXPECT_EQ(chosen_for_node({{"cuda:vec4", {Truth::AtLaunch}}, {"cuda", {}}}, Truth::No),
            "cuda:vec4 if required on copies, cuda on copies; "
            "cuda: x would have to be made contiguous");
}

TEST_F(NodeChoiceTest, TriesArgumentsAsTheyAreFirstWhereTheLayoutIsUnknown) {
  EXPECT_EQ(chosen_for_node({{"cuda:vec4", {Truth::No}}, {"cuda", {}}}, Truth::AtLaunch),
            "cuda if row-major, cuda on copies; cuda:vec4: aligned(x, 16) does not hold");
}

TEST_F(NodeChoiceTest, SaysThatThereIsNoneForTheDevice) {
  const NodeChoice choice = chooser.choose_for_node({{}, {}}, DeviceType::CPU);
  EXPECT_FALSE(choice.always_fits());
  EXPECT_EQ(choice.skipped, std::vector<std::string>{"no implementation for cpu"});
}

TEST_F(NodeChoiceTest, RefusesWhatNeedsALibraryThatThisMachineLacks) {
  struct Lacking : Kind {
    using Kind::Kind;
    std::string missing_library() const override { return "libfast was not found; install it"; }
  };
  static const Lacking lacking(KindFacts{.name = "source", .devices = {DeviceType::CUDA}});
  Implementation fast = make_implementation(op.spec(), source("fast", {"aligned(x, 16)"}, 2));
  fast.kind = &lacking;
  op.add(std::move(fast));
  KnownConditions known;
  known.requirements = {{"fast", {Truth::Yes}}, {"cuda", {}}};
  try {
    chooser.choose_for_node(known, DeviceType::CUDA);
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::Missing);
    EXPECT_STREQ(error.what(), "mylib::f: fast would run, but libfast was not found; install it");
  }
  known.requirements["fast"] = {Truth::No};
  EXPECT_EQ(chooser.choose_for_node(known, DeviceType::CUDA).launches.size(), 1U);
  known.requirements["fast"] = {Truth::Yes};
  known.packaged = true;  // the machine that loads the package may have it
  EXPECT_EQ(chooser.choose_for_node(known, DeviceType::CUDA).launches.size(), 1U);
}

TEST_F(NodeChoiceTest, APackageTakesWhatIsNotPython) {
  ImplementationText text;
  text.name = "python";
  text.device = "cuda";
  text.kind = "python";
  text.priority = 3;
  add(text);
  KnownConditions known{{{"python", {}}, {"cuda", {}}}, {Truth::Yes}};
  NodeChoice choice = chooser.choose_for_node(known, DeviceType::CUDA);
  ASSERT_EQ(choice.launches.size(), 1u);
  EXPECT_EQ(choice.launches[0].implementation->name, "python");
  known.packaged = true;
  choice = chooser.choose_for_node(known, DeviceType::CUDA);
  ASSERT_EQ(choice.launches.size(), 1u);
  EXPECT_EQ(choice.launches[0].implementation->name, "cuda");
  EXPECT_EQ(choice.skipped,
            std::vector<std::string>{"python: is a Python function, which a package cannot hold"});
}

TEST_F(NodeChoiceTest, FindsWhatACallFindsWhereAllIsKnown) {
  add(source("cuda:even", {"x.size(0) % 2 == 0"}, 2));
  for (const Tensor& x : {plain, misaligned, transposed, Tensor({7, 16}), Tensor({7, 16}, {1, 7}),
                          Tensor({8, 16}, {1, 8}, 4100)}) {
    const std::vector<Arg> args = {x, Arg(), plain};
    const auto truth = [](bool holds) { return holds ? Truth::Yes : Truth::No; };
    const Choice call = chooser.choose(args.data(), DeviceType::CUDA);
    const NodeChoice node = chooser.choose_for_node({{{"cuda:even", {truth(x.sizes[0] % 2 == 0)}},
                                                      {"cuda:vec4", {truth(x.address % 16 == 0)}},
                                                      {"cuda", {}}},
                                                     {truth(args[0].tensor.is_contiguous())}},
                                                    DeviceType::CUDA);
    ASSERT_EQ(node.launches.size(), 1u);
    const PreparedLaunch* launch = call.launch ? call.launch : call.if_contiguous;
    EXPECT_EQ(node.launches[0].implementation->name, launch->implementation().name);
    EXPECT_EQ(node.placed_copies.empty(), call.make_contiguous == 0);
  }
}

TEST_F(NodeChoiceTest, RefusesAnswersThatDoNotMatchTheRequirements) {
  EXPECT_THROW(chosen_for_node({{"cuda:vec4", {}}, {"cuda", {}}}, Truth::Yes), Error);
}

TEST_F(ChooseTest, OneChooserPerOp) {
  const Op other(make_op("mylib::g(Tensor x) -> (Tensor y)", {OutputText{.like = "x"}}));
  EXPECT_EQ(&opaq::chooser(op), &opaq::chooser(op));
  EXPECT_NE(&opaq::chooser(op), &opaq::chooser(other));
}

TEST_F(ChooseTest, ManyThreadsChooseWhileImplementationsAreAdded) {
  add(source("cuda"));
  std::atomic<int> ready{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      ++ready;
      while (ready < 5) std::this_thread::yield();
      const std::vector<Arg> args = {plain, Arg(), plain};
      for (int i = 0; i < 2000; ++i)
        wrong += chooser.choose(args.data(), DeviceType::CUDA).launch == nullptr;
    });
  }
  ++ready;
  while (ready < 5) std::this_thread::yield();
  for (int i = 0; i < 20; ++i) add(source("cuda:" + std::to_string(i), {"x.size(-1) == 16"}, i));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(chosen({plain, Arg(), plain}), "cuda:19");
}

}  // namespace
}  // namespace opaq
