// The functions of the host in CUDA C++ sources are found, whatever surrounds them, and lines stay.
#include "../../runtime/compile/host_code.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "../../runtime/compile/device_code.h"

using opaq::HostCodeFilter;
using opaq::lines_of_errors;

namespace {

// What is left, without the lines that are empty.
std::string left(const std::string& source, const std::set<int>& lines = {}) {
  HostCodeFilter code(source);
  code.leave_out_obvious();
  if (!lines.empty()) code.leave_out(lines);
  EXPECT_EQ(std::count(source.begin(), source.end(), '\n'),
            std::count(code.text().begin(), code.text().end(), '\n'));
  EXPECT_EQ(source.size(), code.text().size());
  std::string kept, line;
  for (char c : code.text() + '\n') {
    if (c != '\n') {
      line += c;
      continue;
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    if (!line.empty()) kept += line + '\n';
    line.clear();
  }
  return kept;
}

constexpr const char* kKernel = "__global__ void k(float* y) { y[0] = 1; }\n";

TEST(HostCodeFilter, LaunchersAndMainAreLeftOut) {
  EXPECT_EQ(left(std::string(kKernel) + "void launch(float* y) {\n  k<<<1, 1>>>(y);\n}\n" +
                 "int main(int argc, char** argv) {\n  return 0;\n}\n"),
            kKernel);
}

TEST(HostCodeFilter, FunctionsOfTorchAndTheirPrototypes) {
  EXPECT_EQ(
      left(std::string(kKernel) + "torch::Tensor f(torch::Tensor x);\n" +
           "std::vector<at::Tensor> g(const at::Tensor& x, double eps = 1e-5) { return {x}; }\n" +
           "void h(int n) { AT_DISPATCH_FLOATING_TYPES(n, \"h\", [&] { run<scalar_t>(); }); }\n" +
           "PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def(\"f\", &f); }\n"),
      kKernel);
}

TEST(HostCodeFilter, MarkedForTheHostAlone) {
  EXPECT_EQ(
      left(std::string(kKernel) + "__host__ inline int ceil_div(int a, int b) { return a / b; }\n" +
           "__host__ __device__ int both(int a) { return a; }\n"),
      std::string(kKernel) + "__host__ __device__ int both(int a) { return a; }\n");
}

TEST(HostCodeFilter, HelpersThatMayBeDeviceCodeStay) {
  const std::string source =
      "static int helper(int a) { return a + 1; }\nconstexpr int kWidth = helper(3);\n"
      "struct Params { float* x; int n; Params() : x{nullptr}, n{0} {} };\n";
  EXPECT_EQ(left(source), source);
}

TEST(HostCodeFilter, ExplicitInstantiationsOfHostFunctions) {
  const std::string kept =
      "template <int N> __global__ void k(float* y) {}\n"
      "template __global__ void k<3>(float*);\ntemplate struct S<float>;\n";
  EXPECT_EQ(left(kept + "template void launch<float>(float*, int);\n"), kept);
}

TEST(HostCodeFilter, BracesInStringsCommentsAndLiteralsDoNotCount) {
  EXPECT_EQ(
      left("void a() { puts(\"}\"); puts(\"\\\"}\"); x<<<1, 1>>>('}', '\\''); }\n"
           "void b() { /* } */ // }\n  x<<<1, 1>>>(R\"(})\", R\"x(}))\" )x\", 1'000'000); }\n" +
           std::string(kKernel)),
      kKernel);
}

TEST(HostCodeFilter, NamespacesExternCAndTemplates) {
  EXPECT_EQ(left("namespace a::b {\nextern \"C\" {\n" + std::string(kKernel) +
                 "template <typename T, int N = (3 > 2), typename = std::enable_if_t<(N > 1)>>\n"
                 "void launch(T* y) { k<<<1, 1>>>(y); }\n}\n}  // end\nint z;\n"),
            "namespace a::b {\nextern \"C\" {\n" + std::string(kKernel) + "}\n}  // end\nint z;\n");
}

TEST(HostCodeFilter, MacrosThatStandAlone) {
  const std::string kept = "DEFINE_KERNEL(float)\n" + std::string(kKernel);
  EXPECT_EQ(left("DEFINE_KERNEL(float)\nvoid f() { k<<<1, 1>>>(0); }\n" + std::string(kKernel)),
            kept);
}

TEST(HostCodeFilter, MacrosThatMarkDeviceCode) {
  const std::string source =
      "#define FUNCTION __device__ \\\n  __forceinline__\n"
      "FUNCTION float f() { return std::string(); }\nMY_DEVICE float g() { return stderr; }\n";
  EXPECT_EQ(left(source, {3, 4}), source);
}

TEST(HostCodeFilter, DirectivesStayAndBranchesBalance) {
  EXPECT_EQ(left("#if A\nvoid f(int a) {\n#else\nvoid f(long a) {\n#endif\n"
                 "#define N 3\n  k<<<N, 1>>>(a);\n}\n" +
                 std::string(kKernel)),
            "#if A\n#else\n#endif\n#define N 3\n" + std::string(kKernel));
}

TEST(HostCodeFilter, WhatDidNotCompileGoesAndDeviceCodeStays) {
  const std::string source =
      "int good() { return 1; }\nint bad() {\n  return nope();\n}\n"
      "__device__ int device() { return nope(); }\nstatic std::mutex lock;\n";
  EXPECT_EQ(left(source, {3, 5, 6}),
            "int good() { return 1; }\n__device__ int device() { return nope(); }\n");
}

TEST(HostCodeFilter, MacrosNamedAfterDevicesAreMarksWithoutArgumentsOnly) {
  HostCodeFilter code("HOST_DEVICE int f(int a);\nREGISTER_DEVICE(f, CUDA, g);\n");
  EXPECT_TRUE(code.leave_out({1, 2}));
  EXPECT_EQ(code.text(), "HOST_DEVICE int f(int a);\n                            \n");
}

TEST(HostCodeFilter, OfClassesOnlyFunctionsGoUnlessAllOfItDoes) {
  EXPECT_EQ(left("struct P {\n  float* x;\n  int size() const { return nope(); }\n"
                 "  __device__ int n() const { return 1; }\n};\n",
                 {3}),
            "struct P {\n  float* x;\n  __device__ int n() const { return 1; }\n};\n");
  EXPECT_EQ(left("struct P {\n  float* x;\n  Nope y;\n};\nint z;\n", {3}), "int z;\n");
  // a member that a kernel's layout depends on
  const std::string kept = "struct P {\n  Nope y;\n  __device__ int n() const { return 1; }\n};\n";
  EXPECT_EQ(left(kept, {2}), kept);
}

TEST(HostCodeFilter, BrokenSourcesEnd) {
  for (const char* source : {"", "}", "}}}}", "{", "((((", "template <", "namespace", "\"", "R\"(",
                             "/*", "#if", "struct {", "void f(", "a::", "x = {", "#define", "'"}) {
    HostCodeFilter code(source);
    code.leave_out_obvious();
    code.leave_out({1});
    EXPECT_EQ(code.text().size(), std::string(source).size());
  }
}

TEST(LinesOfErrors, OfTheErrorAndOfWhereTemplatesAreUsed) {
  const auto lines = lines_of_errors(
      "k.cu(3): error: identifier \"a\" is undefined\n  a;\n  ^\n\n"
      "k.cu(9): warning #177-D: variable\n          at line 77 of k.cu\n\n"
      "/x/h.cuh(7): error: no\n          detected during:\n"
      "            instantiation of \"f\" at line 12 of k.cu\n"
      "            instantiation of \"g\" at line 20\n");
  EXPECT_EQ(lines.at("k.cu"), (std::set<int>{3, 12, 20}));
  EXPECT_EQ(lines.at("/x/h.cuh"), (std::set<int>{7}));
}

}  // namespace
