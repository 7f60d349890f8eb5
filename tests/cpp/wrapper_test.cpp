// What is printed into generated C++ wrappers: functions that launch, counters, manifest entries.
#include "wrapper/wrapper.h"

#include <fstream>

#include "launch_fixture.h"

namespace opaq {
namespace {

class WrapperTest : public LaunchFixture {
 protected:
  // Declares an op of one implementation. Each test names its own: ops stay in the process.
  static Op& declared(const std::string& schema, ImplementationText text) {
    Op& declared = declare(op(schema));
    declared.add(make_implementation(declared.spec(), text));
    return declared;
  }

  static ImplementationText kernel(const PtxKernel& kernel, ImplementationText text) {
    text.name = text.device = "cuda";
    text.kind = "binary";
    text.file = "k.ptx";
    text.code = ptx({kernel});
    text.entry = "k";
    return text;
  }

  // What may serve a node of which these conditions are left to the launch.
  static std::vector<NodeLaunch> left_to_launch(
      const Op& op, const std::map<std::string, std::vector<Truth>, std::less<>>& requirements,
      const std::vector<Truth>& row_major = {}, DeviceType device = DeviceType::CUDA) {
    return chooser(op).choose_for_node({requirements, row_major}, device).launches;
  }

  static WrapperFunction print(const CppNode& node, const std::set<std::string>& never_empty = {}) {
    AttachedFiles attached;
    for (const auto& files : node.files()) {
      attached.emplace_back();
      for (const CodeFile& file : files)
        attached.back().push_back({"/cache/k" + file.suffix, file.bytes ? "5ac4a2" : ""});
    }
    return node.print(attached, never_empty);
  }

  static std::string renamed(const WrapperFunction& function) {
    std::string definition = function.definition;
    return definition.replace(definition.find(function.name), function.name.size(), "NAME");
  }

  static std::string read(const std::string& path) {
    std::ifstream stream(path);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  static bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  }

  const Tensor on_cpu{{4}, DType::Float32, 4096, kCpu};
};

TEST_F(WrapperTest, AKernelWithArgumentsOfManyKinds) {
  const Op& op = declared(
      "wrapper_test::many(Tensor x, Tensor? bias, int[] pads, int? n, float by) -> (Tensor y)",
      kernel({"_Z1kPfPKfS1_ixdf", {8, 8, 8, 4, 8, 8, 4}},
             {.grid = "ceil_div(x.numel(), 256), pads[0]",
              .block = "256",
              .cluster = "2",
              .shared = "x.stride(0) * 4",
              .args = "y, x, bias, n if defined(n) else 0, pads[1], by, by",
              .requires_ = {"aligned(x, 16)"},
              .programmatic = true}));
  const int64_t pads[] = {1, 2};
  const std::vector<Arg> args = {x, Arg(), Arg::of_ints(pads, 2), Arg(), Arg::of_float(2), y};
  const CppNode node(op, left_to_launch(op, {{"cuda", {Truth::AtLaunch}}}), args.data(), {kCuda});
  ASSERT_EQ(node.files().size(), 1u);
  ASSERT_EQ(node.files()[0].size(), 1u);
  EXPECT_EQ(node.files()[0][0].suffix, ".compute_90.ptx");
  EXPECT_EQ(node.files()[0][0].bytes->substr(0, 8), ".version");

  const WrapperFunction function = print(node);
  EXPECT_EQ(
      function.parameters,
      (std::vector<std::pair<std::string, std::string>>{
          {"x", "Tensor"}, {"pads", "int[]"}, {"n", "int"}, {"by", "float"}, {"y", "Tensor"}}));
  EXPECT_EQ(function.name.rfind("opaq_many_", 0), 0u);
  const std::string file = OPAQ_TEST_DATA "/wrapper_function.txt";
  EXPECT_EQ(renamed(function), read(file)) << "where the new text is right, copy it to " << file;
}

TEST_F(WrapperTest, AnArgumentIsCopiedInTheBlockOfTheImplementationThatNeedsIt) {
  Op& op = declared("wrapper_test::copied(Tensor x, Tensor? w) -> (Tensor y)",
                    kernel({"_Z1kPfPKfS1_", {8, 8, 8}}, {.args = "y, x, w"}));
  ImplementationText strided = kernel({"_Z1kPfPKfl", {8, 8, 8}}, {.args = "y, x, x.stride(0)"});
  strided.name = "cuda:strided";
  strided.priority = 1;
  strided.requires_ = {"aligned(x, 16)"};
  op.add(make_implementation(op.spec(), strided));
  const std::vector<Arg> args = {x, y, y};
  const CppNode node(op,
                     left_to_launch(op, {{"cuda:strided", {Truth::AtLaunch}}, {"cuda", {}}},
                                    {Truth::AtLaunch, Truth::No}),
                     args.data(), {kCuda});
  const std::string definition = print(node).definition;
  const size_t first =
      definition.find("if (opaq_holds([&] { return x.aligned(16); })) {  // cuda:strided");
  const size_t second = definition.find("    {  // cuda\n");
  const size_t copies = definition.find(
      "      const opaq_row_major opaq_copy_of_w(opaq_arg_w, w.value());\n"
      "      const opaq_row_major opaq_copy_of_x(opaq_arg_x, x);\n"
      "      const std::optional<opaq_tensor> w = opaq_copy_of_w.view;\n"
      "      const opaq_tensor x = opaq_copy_of_x.view;\n");
  ASSERT_NE(copies, std::string::npos) << definition;
  EXPECT_LT(first, second);
  EXPECT_LT(second, copies);
  EXPECT_TRUE(has(definition, "= opaq_strided_view(opaq_arg_w, opaq_float32, 4);"));
  EXPECT_FALSE(has(definition, "no implementation fits"));  // the last always fits
}

TEST_F(WrapperTest, AFunctionReturnsAtOnceWhereAllThatIsWrittenMayBeEmptyAndIs) {
  const Op& op = declared("wrapper_test::add_(Tensor(a!) x, Tensor w) -> (Tensor y)",
                          kernel({"_Z1kPfS_PKf", {8, 8, 8}}, {.args = "y, x, w"}));
  const std::vector<Arg> args = {x, y, y};
  const auto launches = left_to_launch(op, {{"cuda", {}}});
  const CppNode node(op, launches, args.data(), {kCuda});
  EXPECT_TRUE(has(print(node).definition,
                  "if (opaq_empty(opaq_arg_x) && opaq_empty(opaq_arg_y)) "
                  "return opaq_node_calls[1].add();"));
  EXPECT_TRUE(has(print(node, {"w"}).definition, "opaq_empty"));
  EXPECT_FALSE(has(print(node, {"x"}).definition, "opaq_empty"));
}

TEST_F(WrapperTest, APackageCountsNothing) {
  const Op& op = declared("wrapper_test::packed(Tensor x) -> (Tensor y)",
                          kernel({"_Z1kPfPKf", {8, 8}}, {.args = "y, x"}));
  const std::vector<Arg> args = {x, y};
  const auto launches = left_to_launch(op, {{"cuda", {}}});
  const std::string counted = print(CppNode(op, launches, args.data(), {kCuda})).definition;
  const std::string packed =
      print(CppNode(op, launches, args.data(), {.device = kCuda, .package = true})).definition;
  EXPECT_TRUE(has(counted, "opaq_node_calls[0].add();"));
  EXPECT_TRUE(has(packed, "if (opaq_empty(opaq_arg_y)) return;"));
  EXPECT_FALSE(has(packed, "opaq_node_calls"));
}

TEST_F(WrapperTest, LaunchesAreTimedAndProfiledWhereTheTargetSaysSo) {
  const Op& op = declared("wrapper_test::timed(Tensor x) -> (Tensor y)",
                          kernel({"_Z1kPfPKf", {8, 8}}, {.args = "y, x"}));
  const std::vector<Arg> args = {x, y};
  const auto launches = left_to_launch(op, {{"cuda", {}}});
  const WrapperFunction timed =
      print(CppNode(op, launches, args.data(), {.device = kCuda, .timed = true}));
  EXPECT_TRUE(has(timed.definition,
                  "opaq::standalone::Counter* opaq_node_calls, opaq::standalone::CallTimer* "
                  "opaq_node_timers) {"));
  EXPECT_TRUE(has(timed.definition,
                  "try {\n    const int64_t opaq_begun = opaq::standalone::CallTimer::now();\n"));
  EXPECT_TRUE(has(timed.definition, "opaq_node_timers[0].add(opaq_begun);\n      return;"));
  EXPECT_EQ(timed.prelude.back(), "timers");

  const WrapperFunction profiled =
      print(CppNode(op, launches, args.data(),
                    {.device = kCuda, .package = true, .timed = true, .profiled = true}));
  EXPECT_TRUE(has(profiled.definition, "opaq_dir, const char* opaq_node_name) {"));
  EXPECT_TRUE(has(profiled.definition,
                  "const opaq::standalone::ProfilerEvent opaq_event(opaq_profiler, "
                  "\"opaq::wrapper_test::timed\", {{\"implementation\", \"cuda\"}, {\"node\", "
                  "opaq_node_name}});"));
  EXPECT_FALSE(has(profiled.definition, "opaq_begun"));  // a package
  EXPECT_EQ(profiled.prelude.back(), "profiler");

  EXPECT_EQ(print_counters("op0", "t::f", "cpu", {"cpu"}, "", true),
            print_counters("op0", "t::f", "cpu", {"cpu"}, "") +
                "static opaq_node_timers<1> opaq_timers_op0(opaq_graph, \"op0\");\n");
}

TEST_F(WrapperTest, EqualFunctionsHaveEqualNames) {
  const Op& op = declared("wrapper_test::named(Tensor x, Tensor? w) -> (Tensor y)",
                          kernel({"_Z1kPfPKfS1_", {8, 8, 8}}, {.args = "y, x, w"}));
  const auto launches = left_to_launch(op, {{"cuda", {}}});
  const std::vector<Arg> with = {x, y, y}, larger = {Tensor({64, 16}), y, y}, without = {x, {}, y};
  const WrapperFunction first = print(CppNode(op, launches, with.data(), {kCuda}));
  EXPECT_EQ(first.name, print(CppNode(op, launches, larger.data(), {kCuda})).name);
  EXPECT_NE(first.name, print(CppNode(op, launches, without.data(), {kCuda})).name);
  EXPECT_EQ(first.name.size(), std::string("opaq_named_").size() + 8);
}

TEST_F(WrapperTest, HostSourceIsCalledThroughItsSharedObject) {
  const Op& op = declared("wrapper_test::host(Tensor x, float by) -> (Tensor y)",
                          {.name = "cpu",
                           .device = "cpu",
                           .kind = "source",
                           .code = "void k(const float* x, float by, float* y, long n) {}",
                           .entry = "k",
                           .args = "x, by * 2, y, x.numel()"});
  const std::vector<Arg> args = {on_cpu, Arg::of_float(2), on_cpu};
  const CppNode node(op, left_to_launch(op, {{"cpu", {}}}, {}, DeviceType::CPU), args.data(),
                     {kCpu});
  ASSERT_EQ(node.files().size(), 1u);
  EXPECT_EQ(node.files()[0][0].suffix, ".host");
  EXPECT_EQ(node.files()[0][0].bytes->substr(1, 3), "ELF");
  const WrapperFunction function = print(node);
  EXPECT_EQ(renamed(function),
            R"(// wrapper_test::host(Tensor x, float by) -> (Tensor y)
static void NAME(AtenTensorHandle opaq_arg_x, double by, AtenTensorHandle opaq_arg_y, opaq::standalone::Counter* opaq_node_calls) {
  const char* opaq_place = "";
  try {
    if (opaq_empty(opaq_arg_y)) return opaq_node_calls[1].add();
    const opaq_tensor x = opaq_view(opaq_arg_x, opaq_float32, 4);
    const opaq_tensor y = opaq_address_of(opaq_arg_y);
    {  // cpu
      opaq_node_calls[0].add();
      static const auto opaq_call = reinterpret_cast<opaq_invoke_type>(opaq_symbol("wrapper_test::host", "k", "/cache/k.host", "5ac4a2", "opaq_invoke"));
      uint64_t opaq_values[4];
      opaq_values[0] = opaq_as_pointer(x);
      opaq_place = "args of wrapper_test::host, implementation 'cpu': 'by * 2'";
      opaq_values[1] = opaq::standalone::as_float(opaq_mul(by, 2.0), "wrapper_test::host: argument 2 `by * 2`", "`float`");
      opaq_values[2] = opaq_as_pointer(y);
      opaq_place = "args of wrapper_test::host, implementation 'cpu': 'x.numel()'";
      opaq_values[3] = opaq::standalone::as_integer(x.numel(), INT64_MIN, INT64_MAX, "wrapper_test::host: argument 4 `x.numel()`", "`long`");
      void* opaq_pointers[] = {&opaq_values[0], &opaq_values[1], &opaq_values[2], &opaq_values[3]};
      opaq::standalone::call_host("wrapper_test::host", "k", [&] { opaq_call(opaq_pointers); });
      return;
    }
  } catch (const std::exception& opaq_error) {
    opaq_rethrow("wrapper_test::host", opaq_place, opaq_error);
  }
}
)");
}

TEST_F(WrapperTest, ALibraryIsCalledDirectlyAndPackedWithAPackage) {
  const std::string path = std::filesystem::temp_directory_path() /
                           ("opaq_wrapper_test." + std::to_string(getpid()) + ".so");
  const Op& op =
      declared("wrapper_test::library(Tensor x) -> (Tensor y)", {.name = "library",
                                                                 .device = "cuda",
                                                                 .kind = "library",
                                                                 .code = path,
                                                                 .entry = "k",
                                                                 .args = "x, y, x.numel()"});
  const std::vector<Arg> args = {x, y};
  const auto launches = left_to_launch(op, {{"library", {}}});
  const CppNode node(op, launches, args.data(), {kCuda});
  EXPECT_FALSE(node.files()[0][0].bytes);
  EXPECT_EQ(node.files()[0][0].path, path);
  EXPECT_TRUE(has(print(node).definition, R"(
      const opaq::standalone::ContextScope opaq_context(opaq::standalone::kLinkedDriver, opaq_device);
      using opaq_type = void (*)(void*, void*, long long, void*);
      static const auto opaq_call = [&] { opaq::standalone::check_not_capturing(opaq::standalone::kLinkedDriver, opaq_device, opaq_stream, "wrapper_test::library", "k"); return reinterpret_cast<opaq_type>(opaq_symbol("wrapper_test::library", "k", "/cache/k.host", "", "k")); }();
      uint64_t opaq_values[3];
      opaq_values[0] = opaq_as_pointer(x);
      opaq_values[1] = opaq_as_pointer(y);
      opaq_place = "args of wrapper_test::library, implementation 'library': 'x.numel()'";
      opaq_values[2] = opaq::standalone::as_integer(x.numel(), INT64_MIN, INT64_MAX, "wrapper_test::library: argument 3 `x.numel()`", "`long long`");
      opaq::standalone::call_host("wrapper_test::library", "k", [&] { opaq_call(opaq_from_bits<void*>(opaq_values[0]), opaq_from_bits<void*>(opaq_values[1]), opaq_from_bits<long long>(opaq_values[2]), opaq_stream); });
      return;
)")) << print(node).definition;

  const WrapperTarget package{.device = kCuda, .package = true};
  const Error error = error_of([&] { CppNode(op, launches, args.data(), package); });
  EXPECT_EQ(error.kind, ErrorKind::Missing);
  EXPECT_EQ(error.what(), "wrapper_test::library: the library " + path +
                              " cannot be read for the package: No such file or directory");
  std::ofstream(path) << "code";
  EXPECT_EQ(*CppNode(op, launches, args.data(), package).files()[0][0].bytes, "code");
  std::filesystem::remove(path);
}

TEST_F(WrapperTest, TheManifestTellsRuleAndFiles) {
  const Op& op =
      declared("wrapper_test::listed(Tensor x) -> (Tensor y)",
               kernel({"_Z1kPfPKf", {8, 8}},
                      {.grid = "x.size(0)", .args = "y, x", .requires_ = {"aligned(x, 4)"}}));
  const std::vector<Arg> args = {x, y};
  const CppNode node(op, left_to_launch(op, {{"cuda", {Truth::AtLaunch}}}), args.data(),
                     {.device = kCuda, .package = true});
  const std::string bytes = std::to_string(node.files()[0][0].bytes->size());
  const std::string expected =
      R"json({"op": "wrapper_test::listed", "schema": "wrapper_test::listed(Tensor x) -> (Tensor y)", )json"
      R"json("device": "cuda", "implementations": [{"name": "cuda", "kind": "binary", "entry": "k", )json"
      R"json("symbol": "_Z1kPfPKf", "checked_at_launch": ["aligned(x, 4)"], )json"
      R"json("rule": {"args": ["y", "x"], "grid": ["x.size(0)", "1", "1"], "block": ["1", "1", "1"], )json"
      R"json("cluster": [], "shared": "0", "cooperative": false, "programmatic": false}, )json"
      R"json("images": [{"arch": "compute_90", "file": "k.compute_90.ptx", "sha256": "5ac4a2", "bytes": )json";
  EXPECT_EQ(print(node).manifest_entry, expected + bytes + "}]}]}");
}

TEST_F(WrapperTest, ANodeHasItsTensorsOnOneDevice) {
  const Op& op = declared("wrapper_test::apart(Tensor x, Tensor w) -> (Tensor y)",
                          kernel({"_Z1kPfPKfS1_", {8, 8, 8}}, {.args = "y, x, w"}));
  const std::vector<Arg> args = {x, on_cpu, y};
  const auto launches = left_to_launch(op, {{"cuda", {}}});
  const Error error = error_of([&] { CppNode(op, launches, args.data(), {kCuda}); });
  EXPECT_EQ(error.kind, ErrorKind::Launch);
  EXPECT_STREQ(error.what(),
               "wrapper_test::apart: argument `w` is on cpu; this node was compiled for cuda:0; "
               "move the tensor, or pass the number it holds");
}

TEST_F(WrapperTest, SourceIsCompiledForTheArchsGivenElseForTheDevices) {
  ImplementationText source{.name = "cuda",
                            .device = "cuda",
                            .kind = "source",
                            .code = "__global__ void k(float* y, const float* x) {}",
                            .entry = "k",
                            .args = "y, x"};
  const Op& op = declared("wrapper_test::source(Tensor x) -> (Tensor y)", source);
  const Device absent{DeviceType::CUDA, 99};
  const Tensor there{{4}, DType::Float32, 4096, absent};
  const std::vector<Arg> args = {there, there};
  const auto launches = left_to_launch(op, {{"cuda", {}}});
  const Error error = error_of([&] { CppNode(op, launches, args.data(), {absent}); });
  EXPECT_EQ(error.kind, ErrorKind::Missing);
  EXPECT_TRUE(has(error.what(),
                  "no arch to compile CUDA source for: none is given, and there is "
                  "no device to ask ("))
      << error.what();
  EXPECT_TRUE(has(error.what(), "name them: opaq.package(..., archs=[\"sm_90a\"])"));
  if (!nvrtc_info().found) GTEST_SKIP() << nvrtc_info().why_not;
  const CppNode node(op, launches, args.data(),
                     {.device = absent, .archs = {"sm_90a", "sm_80"}, .ptx = true});
  std::vector<std::string> suffixes;
  for (const CodeFile& file : node.files()[0]) suffixes.push_back(file.suffix);
  EXPECT_EQ(suffixes,
            (std::vector<std::string>{".sm_90a.cubin", ".sm_80.cubin", ".compute_80.ptx"}));
  EXPECT_TRUE(node.files()[0][0].resources);
  EXPECT_FALSE(node.files()[0][2].resources);  // the driver compiles it for the device it meets
}

TEST_F(WrapperTest, AReportReadsTheGraphAndCountersOfEachNode) {
  EXPECT_EQ(
      print_graph("model \"a\""),
      "\n// What opaq.report() lists.\nstatic const char opaq_graph[] = \"model \\\"a\\\"\";\n");
  EXPECT_EQ(print_counters("op1", "mylib::f", "cuda:0", {"cuda:vec4", "cuda"}, "why"),
            "static opaq_node<2> opaq_op1(opaq_graph, \"op1\", \"mylib::f\", \"cuda:0\", "
            "{\"cuda:vec4\", \"cuda\"}, \"why\");\n");
}

TEST(StringLiteral, EscapesWhatCppAndJsonEscape) {
  EXPECT_EQ(string_literal("a\"b\\c\n\t\r\b\f\x01 é"), R"("a\"b\\c\n\t\r\b\f\u0001 é")");
}

}  // namespace
}  // namespace opaq
