// CUDA C++ to images: what users see of NVRTC, of the cache and of their mistakes.
#include "image_test.h"

#include <barrier>
#include <chrono>
#include <thread>

using opaq::compile_cuda;
using opaq::compile_stats;
using opaq::CudaRequest;
using opaq::ErrorKind;
using opaq::ParamType;
using opaq_test::message_of;
using opaq_test::TemporaryFolder;
using Kind = ParamType::Kind;

namespace {

class CompileCuda : public opaq_test::NvrtcTest {
 protected:
  TemporaryFolder folder_;
};

CudaRequest request(std::string source, std::vector<std::string> entries,
                    std::string file = "toy.cu") {
  CudaRequest r;
  r.source = std::move(source);
  r.entries = std::move(entries);
  r.file = std::move(file);
  r.arch = "sm_90a";
  r.compiler = opaq::CudaCompiler::Nvrtc;
  return r;
}

// A kernel that no other test compiles, so that the cache cannot know it.
std::string unique_kernel(const std::string& name) {
  return "extern \"C\" __global__ void " + name +
         "(float* y) { y[threadIdx.x] = " + std::to_string(getpid()) + "; }\n";
}

TEST_F(CompileCuda, TemplateByNameExpression) {
  const auto image = compile_cuda(request(R"(
template <typename T, int N> __global__ void rms_norm(T* y, const T* x, float eps, long long rows) {
  if (threadIdx.x < rows) y[threadIdx.x] = x[threadIdx.x] * T(N) + T(eps);
})",
                                          {"rms_norm<float, 4096>", "rms_norm<double, 8>"}));
  ASSERT_EQ(image->entries.size(), 2u);
  EXPECT_EQ(image->arch, "sm_90a");
  EXPECT_EQ(image->bytes.substr(0, 4), "\177ELF");
  EXPECT_EQ(image->key.size(), 64u);
  const auto& entry = image->entries[0];
  EXPECT_EQ(entry.name, "rms_norm<float, 4096>");
  EXPECT_EQ(entry.symbol, "_Z8rms_normIfLi4096EEvPT_PKS0_fx");
  ASSERT_TRUE(entry.params_known);
  ASSERT_EQ(entry.params.size(), 4u);
  EXPECT_EQ(entry.params[0].text, "float*");
  EXPECT_FALSE(entry.params[0].pointee_const);
  EXPECT_EQ(entry.params[1].pointee, "float");
  EXPECT_TRUE(entry.params[1].pointee_const);
  EXPECT_EQ(entry.params[2].kind, Kind::Float);
  EXPECT_EQ(entry.params[3].text, "long long");
  EXPECT_EQ(image->entries[1].params[0].text, "double*");
}

TEST_F(CompileCuda, ExternCHasParameterTypesToo) {
  const auto image =
      compile_cuda(request("extern \"C\" __global__ void scale(float* __restrict__ y, unsigned "
                           "char n, bool on, double a) {}",
                           {"scale"}));
  const auto& entry = image->entries[0];
  EXPECT_EQ(entry.symbol, "scale");
  ASSERT_EQ(entry.params.size(), 4u);
  EXPECT_EQ(entry.params[0].text, "float*");
  EXPECT_EQ(entry.params[1].kind, Kind::UInt);
  EXPECT_EQ(entry.params[1].size, 1);
  EXPECT_EQ(entry.params[2].kind, Kind::Bool);
  EXPECT_EQ(entry.params[3].size, 8);
}

TEST_F(CompileCuda, NamespacesDefaultsDependentTypesStructsAndEnumerations) {
  const auto image = compile_cuda(request(R"(
struct Shape { long long sizes[3]; int dim; };
enum class Mode : unsigned char { Fast, Exact };
template <class T> struct Accumulate { using type = T; };
template <> struct Accumulate<float> { using type = double; };
namespace lib { namespace {
template <class T = float, int N = 4>
__global__ void __launch_bounds__(256) reduce(typename Accumulate<T>::type* y,
                                              typename Accumulate<T>::type start,
                                              const __grid_constant__ Shape shape, Mode mode) {
  y[0] = start + shape.sizes[N - 4] + int(mode);
}
} }
__global__ void nothing() {})",
                                          {"lib::reduce<>", "nothing"}));
  const auto& params = image->entries[0].params;
  ASSERT_EQ(params.size(), 4u);
  EXPECT_EQ(params[0].text, "double*");
  EXPECT_EQ(params[1].kind, Kind::Float);
  EXPECT_EQ(params[1].size, 8);
  EXPECT_EQ(params[2].kind, Kind::Struct);
  EXPECT_EQ(params[2].text, "Shape");
  EXPECT_EQ(params[2].size, 32);
  EXPECT_EQ(params[3].kind, Kind::Int);
  EXPECT_EQ(params[3].size, 1);
  EXPECT_TRUE(image->entries[1].params_known);
  EXPECT_TRUE(image->entries[1].params.empty());
}

TEST_F(CompileCuda, HalfHeadersNeedNoFlag) {
  if (opaq::nvrtc_info().include_dirs.empty()) GTEST_SKIP() << "CUDA headers not found";
  const auto image = compile_cuda(request(R"(
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void mix(__half* h, const __nv_bfloat16* b, __half a) {
  h[0] = __float2half(__bfloat162float(b[0])) * a;
})",
                                          {"mix"}));
  const auto& params = image->entries[0].params;
  EXPECT_EQ(params[0].pointee, "__half");
  EXPECT_EQ(params[1].pointee, "__nv_bfloat16");
  EXPECT_EQ(params[2].kind, Kind::Float);
  EXPECT_EQ(params[2].size, 2);
}

TEST_F(CompileCuda, CubNeedsNoFlag) {
  bool found = false;
  for (const auto& dir : opaq::nvrtc_info().include_dirs)
    found |= std::filesystem::exists(dir + "/cub/cub.cuh");
  if (!found) GTEST_SKIP() << "CCCL (cub) not found";
  const auto image = compile_cuda(request(R"(
#include <cub/block/block_reduce.cuh>
#include <cuda/std/cstdint>
extern "C" __global__ void sum(float* y, const float* x, cuda::std::int64_t n) {
  using Reduce = cub::BlockReduce<float, 128>;
  __shared__ Reduce::TempStorage storage;
  const float total = Reduce(storage).Sum(threadIdx.x < n ? x[threadIdx.x] : 0.f);
  if (threadIdx.x == 0) y[0] = total;
})",
                                          {"sum"}));
  EXPECT_EQ(image->entries[0].params[2].size, 8);
}

TEST_F(CompileCuda, VirtualArchitectureGivesPtx) {
  CudaRequest r = request("extern \"C\" __global__ void k(int* y) { *y = 1; }", {"k"});
  r.arch = "compute_90";
  const auto image = compile_cuda(r);
  EXPECT_CONTAINS(image->bytes, ".visible .entry k(");
}

TEST_F(CompileCuda, UsersStandardWins) {
  CudaRequest r = request(
      "extern \"C\" __global__ void k(int* y) { *y = __cplusplus >= 202002L ? 20 : 0; "
      "static_assert(__cplusplus >= 202002L); }",
      {"k"});
  r.options = {"-std=c++20"};
  EXPECT_TRUE(compile_cuda(r)->log.empty());
  r.source =
      "extern \"C\" __global__ void k(int* y) { *y = 1; static_assert(__cplusplus < 201402L, "
      "\"\"); }";
  r.options = {"-std=c++11"};  // too old for the signature: the kernel still compiles
  EXPECT_FALSE(compile_cuda(r)->entries[0].params_known);
}

// ---- mistakes -----------------------------------------------------------------------------------

TEST_F(CompileCuda, DiagnosticsNameTheUsersFileAndLine) {
  const std::string file = folder_.write("kernels/rms_norm.cu", "");
  const std::string message = message_of(ErrorKind::Compile, [&] {
    compile_cuda(
        request("__global__ void k(int* y) {\n  *y = 1;\n  *y = undefined_name;\n}  // no line end",
                {"k"}, file));
  });
  EXPECT_EQ(message.substr(0, message.find('\n')),
            "NVRTC could not compile rms_norm.cu for sm_90a:");
  EXPECT_CONTAINS(message, file + "(3): error: identifier \"undefined_name\" is undefined");
  EXPECT_LACKS(message, "opaq_signature");
  EXPECT_LACKS(message, "__nv_name_map");
}

TEST_F(CompileCuda, SourceWithoutAFileHasLinesToo) {
  const std::string message = message_of(
      ErrorKind::Compile, [&] { compile_cuda(request("\n\n__device__ int x = ;\n", {}, "")); });
  EXPECT_CONTAINS(message, "NVRTC could not compile <opaq source> for sm_90a");
  EXPECT_CONTAINS(message, "<opaq source>(3): error");
}

TEST_F(CompileCuda, UnknownEntryListsTheKernels) {
  const std::string source = R"(
// __global__ void commented_out() {}
template <class T> __global__ void __launch_bounds__(128) rms_norm(T* y) {}
namespace ns { extern "C" __global__ void layer_norm(float* y) {} }
__device__ void helper() {})";
  const std::string message =
      message_of(ErrorKind::Compile, [&] { compile_cuda(request(source, {"rms_nrom<float>"})); });
  EXPECT_EQ(message,
            "entry 'rms_nrom<float>' names no kernel of toy.cu: toy.cu has the kernels rms_norm, "
            "layer_norm; did you mean 'rms_norm'?");
}

TEST_F(CompileCuda, EntryWithWrongTemplateArgumentsSaysWhatNvrtcSays) {
  const std::string message = message_of(ErrorKind::Compile, [&] {
    compile_cuda(request("template <class T, int N> __global__ void k(T* y) {}", {"k<float>"}));
  });
  EXPECT_CONTAINS(message, "entry 'k<float>' names no kernel of toy.cu: NVRTC says \"");
  EXPECT_CONTAINS(message, "toy.cu has the kernel k");
  EXPECT_CONTAINS(message, "template arguments that fit");
}

TEST_F(CompileCuda, TemplatesAndOverloadsAreAnsweredInOneLine) {
  EXPECT_EQ(
      message_of(
          ErrorKind::Compile,
          [&] { compile_cuda(request("template <class T> __global__ void k(T* y) {}", {"k"})); }),
      "entry 'k' of toy.cu is a template: give its arguments, as in "
      "entry=\"k<{x.dtype}>\"");
  EXPECT_CONTAINS(
      message_of(ErrorKind::Compile,
                 [&] {
                   compile_cuda(
                       request("__global__ void k(int*) {}\n__global__ void k(float*) {}", {"k"}));
                 }),
      "entry 'k' names 2 functions of toy.cu: name one by its type");
}

TEST_F(CompileCuda, EntryOfASourceWithoutKernels) {
  const std::string message = message_of(
      ErrorKind::Compile, [&] { compile_cuda(request("__device__ void k() {}", {"q"})); });
  EXPECT_CONTAINS(message, "no __global__ function was found in toy.cu");
}

TEST_F(CompileCuda, UnsupportedArchitecture) {
  CudaRequest r = request("extern \"C\" __global__ void k() {}", {"k"});
  r.arch = "sm_20";
  const std::string message = message_of(ErrorKind::Compile, [&] { compile_cuda(r); });
  EXPECT_CONTAINS(message, "cannot compile toy.cu for sm_20; it supports sm_");
  EXPECT_CONTAINS(message, ", sm_90");
  r.arch = "hopper";
  EXPECT_EQ(message_of(ErrorKind::Compile, [&] { compile_cuda(r); }),
            "toy.cu: unknown architecture 'hopper'; expected a name like 'sm_90a', 'sm_80' or "
            "'compute_90'");
}

TEST_F(CompileCuda, MissingHeaderSaysWhatBringsIt) {
  const std::string message = message_of(
      ErrorKind::Compile, [&] { compile_cuda(request("#include <projects/own.h>\n", {})); });
  EXPECT_CONTAINS(message,
                  "'projects/own.h' was not found: give the folder that holds it, as in "
                  "include_dirs=[\"/path/to/folder\"]");
}

TEST_F(CompileCuda, WrongOptionShowsNvrtcsWords) {
  CudaRequest r = request("extern \"C\" __global__ void k() {}", {"k"});
  r.options = {"--no-such-option"};
  EXPECT_CONTAINS(message_of(ErrorKind::Compile, [&] { compile_cuda(r); }), "no-such-option");
}

TEST_F(CompileCuda, ZeroByteIsNoSource) {
  EXPECT_CONTAINS(
      message_of(ErrorKind::Compile, [&] { compile_cuda(request(std::string("a\0b", 3), {})); }),
      "zero byte");
}

// ---- cache --------------------------------------------------------------------------------------

TEST_F(CompileCuda, SecondTimeComesFromDiskWithEqualBytes) {
  const auto before = compile_stats();
  const CudaRequest r =
      request(unique_kernel("second_time") + "#warning \"mind this\"\n", {"second_time"});
  const auto first = compile_cuda(r);
  const auto second = compile_cuda(r);
  EXPECT_FALSE(first->from_cache);
  EXPECT_GT(first->seconds, 0);
  EXPECT_TRUE(second->from_cache);
  EXPECT_EQ(second->seconds, 0);
  EXPECT_EQ(first->bytes, second->bytes);
  EXPECT_EQ(first->key, second->key);
  EXPECT_EQ(first->log, second->log);
  EXPECT_CONTAINS(second->log, "mind this");
  EXPECT_EQ(second->entries[0].symbol, "second_time");
  ASSERT_EQ(second->entries[0].params.size(), 1u);
  EXPECT_EQ(second->entries[0].params[0].text, "float*");
  EXPECT_EQ(compile_stats().compiled - before.compiled, 1);
  EXPECT_EQ(compile_stats().disk_hits - before.disk_hits, 1);
}

TEST_F(CompileCuda, EverythingThatMattersChangesTheKey) {
  const CudaRequest base =
      request(unique_kernel("a") + "extern \"C\" __global__ void b() {}", {"a"});
  const std::string key = compile_cuda(base)->key;
  CudaRequest other = base;
  other.source += " ";
  EXPECT_NE(compile_cuda(other)->key, key);
  other = base;
  other.arch = "sm_80";
  EXPECT_NE(compile_cuda(other)->key, key);
  other = base;
  other.options = {"-use_fast_math"};
  EXPECT_NE(compile_cuda(other)->key, key);
  other = base;
  other.entries = {"b"};
  EXPECT_NE(compile_cuda(other)->key, key);
  other = base;
  other.file = "moved/to/another/folder/toy.cu";  // the same file elsewhere
  EXPECT_EQ(compile_cuda(other)->key, key);
}

TEST_F(CompileCuda, EditedHeaderIsCompiledAgain) {
  const std::string file = folder_.write("k.cu", "");
  folder_.write("outer.h", "#include \"deep/inner.h\"\n");
  folder_.write("deep/inner.h", "#define VALUE 1\n");
  const CudaRequest r = request(
      "#include \"outer.h\"\nextern \"C\" __global__ void k(int* y) { *y = VALUE; }", {"k"}, file);
  const auto one = compile_cuda(r);
  folder_.write("deep/inner.h", "#define VALUE 2\n");
  const auto two = compile_cuda(r);
  EXPECT_NE(one->key, two->key);
  EXPECT_NE(one->bytes, two->bytes);
  folder_.write("deep/inner.h", "#define VALUE 1\n");
  EXPECT_EQ(compile_cuda(r)->key, one->key);
  EXPECT_EQ(compile_cuda(r)->bytes, one->bytes);
}

TEST_F(CompileCuda, ComputedIncludeIsNeverCached) {
  folder_.write("value.h", "#define VALUE 1\n");
  CudaRequest r = request(
      "#define HEADER <value.h>\n#include HEADER\nextern \"C\" __global__ void k(int* y) { *y = "
      "VALUE; }",
      {"k"});
  r.include_dirs = {folder_.path};
  const auto one = compile_cuda(r);
  EXPECT_CONTAINS(one->log, "not kept in the cache");
  EXPECT_CONTAINS(one->log, "toy.cu: #include HEADER");
  folder_.write("value.h", "#define VALUE 2\n");
  EXPECT_NE(compile_cuda(r)->bytes, one->bytes);
}

TEST_F(CompileCuda, ThreadsThatAskForTheSameCompileOnce) {
  constexpr int kThreads = 6;
  const auto before = compile_stats();
  const CudaRequest r = request(unique_kernel("asked_by_many"), {"asked_by_many"});
  std::barrier start(kThreads);
  std::vector<std::shared_ptr<const opaq::Image>> images(kThreads);
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        start.arrive_and_wait();
        images[i] = compile_cuda(r);
      });
    }
  }
  for (const auto& image : images) EXPECT_EQ(image->bytes, images[0]->bytes);
  EXPECT_EQ(compile_stats().compiled - before.compiled, 1);
}

TEST_F(CompileCuda, ThreadsThatAskForTheSameGetTheSameError) {
  constexpr int kThreads = 4;
  std::barrier start(kThreads);
  std::vector<std::string> messages(kThreads);
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        start.arrive_and_wait();
        messages[i] =
            message_of(ErrorKind::Compile, [] { compile_cuda(request("int broken(", {})); });
      });
    }
  }
  for (const auto& message : messages) EXPECT_EQ(message, messages[0]);
}

TEST_F(CompileCuda, SeveralAtOnceKeepTheirOrder) {
  std::vector<CudaRequest> requests;
  for (const char* name : {"k0", "k1", "k2", "k3"})
    requests.push_back(request(unique_kernel(name), {name}));
  std::vector<std::shared_ptr<const opaq::Image>> images(4);
  opaq::in_parallel(4, [&](size_t i) { images[i] = compile_cuda(requests[i]); });
  for (size_t i = 0; i < images.size(); ++i)
    EXPECT_EQ(images[i]->entries[0].name, "k" + std::to_string(i));
}

TEST_F(CompileCuda, SeveralAtOnceThrowTheFirstErrorAfterAllHaveEnded) {
  const std::vector<CudaRequest> requests{request(unique_kernel("good0"), {"good0"}),
                                          request("first bad", {}), request("second bad", {}),
                                          request(unique_kernel("good3"), {"good3"})};
  const std::string message = message_of(ErrorKind::Compile, [&] {
    opaq::in_parallel(4, [&](size_t i) { compile_cuda(requests[i]); });
  });
  EXPECT_CONTAINS(message, "first bad");
  EXPECT_TRUE(compile_cuda(requests[3])->from_cache);
}

TEST_F(CompileCuda, InfoTellsWhatIsInUse) {
  const auto info = opaq::nvrtc_info();
  EXPECT_TRUE(std::filesystem::exists(info.path)) << info.path;
  EXPECT_CONTAINS(info.version, ".");
  EXPECT_FALSE(info.archs.empty());
  EXPECT_EQ(info.why_not, "");
}

}  // namespace
