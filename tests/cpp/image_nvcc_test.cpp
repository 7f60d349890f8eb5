// CUDA sources as their authors wrote them, compiled by nvcc.
#include <chrono>
#include <cstdio>

#include "image_test.h"

using opaq::compile_cuda;
using opaq::CudaCompiler;
using opaq::CudaRequest;
using opaq::ErrorKind;
using opaq::ParamType;
using opaq_test::message_of;

namespace {

// What NVRTC does not take: headers of the host and a launcher.
constexpr const char* kSource = R"(#include <vector>
#include "scale.h"
namespace ns {
template <class T, int N> __global__ void k(T* y, const T* x, long long n, Options options) {
  static_assert(sizeof(std::vector<T>) > 1, "NVRTC does not know its size");
  if (threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x] * T(N) + T(options.offset);
}
}
static __global__ void hidden(float* y) { *y = 1; }
namespace { __global__ void nameless(float* y) { *y = 1; } }
__global__ void overloaded(float* y) { *y = 1; }
__global__ void overloaded(int* y) { *y = 1; }
extern "C" __global__ void plain(double* y) { *y = 1; }
__device__ void no_kernel(float* y) { *y = 1; }
void launch(float* y) {
  std::vector<float> values(3);
  ns::k<float, 3><<<1, 32>>>(y, y, 3, {1});
}
)";

class Nvcc : public ::testing::Test {
 protected:
  void SetUp() override {
    const opaq::NvccInfo info = opaq::nvcc_info();
    if (!info.found || !info.why_not.empty()) {
      const char* required = std::getenv("OPAQ_REQUIRE_NVCC");
      if (required != nullptr && std::string(required) == "1")
        FAIL() << "OPAQ_REQUIRE_NVCC=1, but: " << info.why_not;
      GTEST_SKIP() << info.why_not;
    }
    folder_.write("scale.h", "struct Options { int offset; };\n");
  }

  CudaRequest request(const std::string& entry, const std::string& source = kSource) const {
    CudaRequest r;
    r.source = source;
    r.file = folder_.path + "/scale.cu";
    r.entries = {entry};
    r.arch = "sm_90a";
    r.compiler = CudaCompiler::Nvcc;
    return r;
  }

  std::string symbol(const std::string& entry) const {
    return compile_cuda(request(entry))->entries.at(0).symbol;
  }
  std::string error(const CudaRequest& r) const {
    return message_of(ErrorKind::Compile, [&] { compile_cuda(r); });
  }

  opaq_test::TemporaryFolder folder_;
};

TEST_F(Nvcc, AnInstanceHasItsSymbolSignatureAndResources) {
  const auto image = compile_cuda(request("ns::k<double, 7>"));
  ASSERT_EQ(image->entries.size(), 1u);
  const opaq::Entry& entry = image->entries[0];
  EXPECT_EQ(entry.symbol, "_ZN2ns1kIdLi7EEEvPT_PKS1_x7Options");
  ASSERT_TRUE(entry.params_known);
  ASSERT_EQ(entry.params.size(), 4u);
  EXPECT_EQ(entry.params[0].text, "double*");
  EXPECT_TRUE(entry.params[1].pointee_const);
  EXPECT_EQ(entry.params[2].size, 8);
  EXPECT_EQ(entry.params[3].kind, ParamType::Kind::Struct);
  EXPECT_EQ(entry.params[3].size, 4);
  ASSERT_TRUE(entry.resources);
  EXPECT_GT(entry.resources->registers, 0);
  EXPECT_EQ(image->compiler, "nvcc");
  EXPECT_EQ(image->arch, "sm_90a");
  EXPECT_EQ(opaq::binary_image(image->bytes, "k.cubin", entry.symbol)->entries[0].symbol,
            entry.symbol);
  EXPECT_EQ(image->bytes.find("opaq_entry"), std::string::npos);
  EXPECT_EQ(image->bytes.find("_ZN2ns1kIfLi3EEE"), std::string::npos);  // the launcher's instance
}

TEST_F(Nvcc, EveryKindOfEntryIsFound) {
  EXPECT_EQ(symbol("plain"), "plain");
  EXPECT_EQ(symbol("hidden"), "_Z6hiddenPf");
  EXPECT_EQ(symbol("(void (*)(int*))overloaded"), "_Z10overloadedPi");
  EXPECT_TRUE(symbol("nameless").ends_with("8namelessEPf")) << symbol("nameless");
}

TEST_F(Nvcc, PtxForAVirtualArchitecture) {
  CudaRequest r = request("plain");
  r.arch = "compute_90";
  const auto image = compile_cuda(r);
  EXPECT_CONTAINS(image->bytes, ".entry plain(");
  EXPECT_LACKS(image->bytes, "opaq_entry");
}

TEST_F(Nvcc, TheNextCompilationComesFromTheDisk) {
  const CudaRequest r = request("ns::k<float, 11>");
  EXPECT_FALSE(compile_cuda(r)->from_cache);
  const auto again = compile_cuda(r);
  EXPECT_TRUE(again->from_cache);
  EXPECT_EQ(again->compiler, "nvcc");
  folder_.write("scale.h", "struct Options { int offset; };  // edited\n");
  EXPECT_FALSE(compile_cuda(r)->from_cache);
  CudaRequest other = r;
  other.options = {"-DNDEBUG"};
  EXPECT_NE(opaq::source_digest(other).digest, opaq::source_digest(r).digest);
}

TEST_F(Nvcc, AutoTriesNvrtcFirstAndRemembersThatItRefused) {
  CudaRequest r = request("ns::k<float, 13>");
  r.compiler = CudaCompiler::Auto;
  const auto image = compile_cuda(r);
  EXPECT_EQ(image->compiler, "nvcc");
  const int64_t before = opaq::compile_stats().compiled;
  EXPECT_TRUE(compile_cuda(r)->from_cache);
  EXPECT_EQ(opaq::compile_stats().compiled, before);
  EXPECT_EQ(image->sources, opaq::source_digest(r).digest);

  CudaRequest simple = request("k", "extern \"C\" __global__ void k(int* y) { *y = 13; }");
  simple.compiler = CudaCompiler::Auto;
  EXPECT_EQ(compile_cuda(simple)->compiler, opaq::nvrtc_info().found ? "NVRTC" : "nvcc");
  simple.compiler = CudaCompiler::Nvcc;
  EXPECT_EQ(compile_cuda(simple)->compiler, "nvcc");
}

// ---- mistakes -----------------------------------------------------------------------------------

TEST_F(Nvcc, DiagnosticsNameTheUsersFileAndLine) {
  const std::string message =
      error(request("k", "#include <vector>\n__global__ void k(int* y) {\n  *y = oops;\n}"));
  EXPECT_EQ(message.substr(0, message.find('\n')), "nvcc could not compile scale.cu for sm_90a:");
  EXPECT_CONTAINS(message, folder_.path + "/scale.cu(3): error: identifier \"oops\" is undefined");
  EXPECT_LACKS(message, "opaq-work");
}

TEST_F(Nvcc, WrongEntries) {
  EXPECT_EQ(error(request("ns::q<float, 1>")),
            "entry 'ns::q<float, 1>' names no kernel of scale.cu: scale.cu has the kernels k, "
            "hidden, nameless, overloaded, plain");
  EXPECT_CONTAINS(error(request("ns::k<float>")), "nvcc says \"");
  EXPECT_CONTAINS(error(request("overloaded")),
                  "entry 'overloaded' names 2 functions of scale.cu: name one by its type, as in "
                  "entry=\"(void (*)(const float*, float*, int))overloaded\"");
  EXPECT_CONTAINS(error(request("no_kernel")), "entry 'no_kernel' is no kernel: scale.cu has");
}

TEST_F(Nvcc, MissingHeadersAreAnsweredWithWhatBringsThem) {
  EXPECT_CONTAINS(error(request("k", "#include <nothing.h>\n")),
                  "'nothing.h' was not found: give the folder that holds it, as in include_dirs=");
  EXPECT_CONTAINS(error(request("k", "#include <cudnn_of_the_future.h>\n")),
                  "`pip install nvidia-cudnn-cu13` brings it");
  EXPECT_CONTAINS(error(request("k", "#include <ATen/of_the_future.h>\n")), "it is PyTorch's");
}

TEST_F(Nvcc, BothCompilersAreHeard) {
  if (!opaq::nvrtc_info().found) GTEST_SKIP();
  CudaRequest r = request("k", "__global__ void k(int* y) {\n  *y = oops;\n}");
  r.compiler = CudaCompiler::Auto;
  std::string message = error(r);
  EXPECT_TRUE(message.starts_with("NVRTC could not compile scale.cu")) << message;
  EXPECT_TRUE(message.ends_with("\nnvcc says the same")) << message;
  r.source =
      "#include <string>\n__global__ void k(int* y) { *y = sizeof(std::string); }\n"
      "void launch() { oops(); }";
  message = error(r);
  EXPECT_CONTAINS(message, "incomplete type \"std::string\"");
  EXPECT_CONTAINS(message,
                  "NVRTC failed as said above, and so did nvcc, which was tried next: nvcc could "
                  "not compile scale.cu for sm_90a:\n");
  EXPECT_CONTAINS(message, "scale.cu(3): error: identifier \"oops\" is undefined");
}

TEST_F(Nvcc, OptionsThatAskForAnotherKindOfOutput) {
  CudaRequest r = request("plain");
  r.options = {"--no-such-option"};
  EXPECT_CONTAINS(error(r), "Unknown option '--no-such-option'");
  r.options = {"--dryrun"};
  EXPECT_CONTAINS(error(r), "leave out those that ask for another kind of output");
}

}  // namespace
