// Resource use of kernels: read from the assembler's words, known after a compile and from the
// cache, and no trace of it in the log.
#include "../../runtime/compile/ptxas.h"
#include "image_test.h"

using opaq::compile_cuda;
using opaq::CudaRequest;
using opaq::ErrorKind;
using opaq::PtxasReport;
using opaq::read_ptxas;
using opaq::Resources;
using opaq_test::message_of;

namespace {

std::string text(const Resources& r) {
  const auto number = [](std::optional<int64_t> value) {
    return value ? std::to_string(*value) : "unknown";
  };
  return number(r.registers) + " registers, " + number(r.shared) + " shared, " + number(r.stack) +
         " stack, " + number(r.spill_stores) + " stored, " + number(r.spill_loads) + " loaded";
}

std::string text(const PtxasReport& report) {
  std::string out;
  for (const auto& [symbol, resources] : report.kernels)
    out += symbol + ": " + text(resources) + "\n";
  return out;
}

std::string text(const std::optional<Resources>& resources) {
  return resources ? text(*resources) : "unknown";
}

constexpr const char* kLog =
    R"(k.cu(11): warning #177-D: variable "unused" was declared but never referenced
  extern "C" __global__ void plain(float* y) { int unused; y[0] = 1; }
                                                   ^

Remark: The warnings can be suppressed with "-diag-suppress <warning-number>"

ptxas warning : Value of threads per SM for entry _Z1tILi3EEvPf is out of range. .minnctapersm will be ignored
ptxas info    : Overriding maximum register limit 256 for 'plain' with  32 of maxrregcount option
ptxas info    : 0 bytes gmem, 256 bytes cmem[3]
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in function 'plain'
ptxas info    : Compiling entry function '_Z1tILi3EEvPf' for 'sm_90a'
ptxas info    : Function properties for _Z1tILi3EEvPf
ptxas         .     9512 bytes stack frame, 11008 bytes spill stores, 22072 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 9512 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compile time = 17.081 ms
ptxas info    : Compiling entry function 'shared' for 'sm_90a'
ptxas info    : Function properties for shared
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 1200 bytes smem
ptxas info    : Compile time = 1.210 ms
ptxas info    : Compiling entry function 'calls' for 'sm_90a'
ptxas info    : Function properties for calls
ptxas         .     336 bytes stack frame, 8 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 336 bytes cumulative stack size
ptxas info    : Compile time = 22.436 ms
ptxas info    : Function properties for _Z5heavyPff
ptxas         .     0 bytes stack frame, 92 bytes spill stores, 96 bytes spill loads
ptxas info    : Function properties for _Z7recursePf
ptxas         .     400 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
)";

TEST(Ptxas, EveryKernelWithWhatItCalls) {
  EXPECT_EQ(text(read_ptxas(kLog)),
            "_Z1tILi3EEvPf: 32 registers, 0 shared, 9512 stack, 11008 stored, 22072 loaded\n"
            "calls: 32 registers, 0 shared, 400 stack, 100 stored, 100 loaded\n"
            "shared: 10 registers, 1200 shared, 0 stack, 0 stored, 0 loaded\n");
}

TEST(Ptxas, WarningsAndOtherNotesStay) {
  EXPECT_EQ(read_ptxas(kLog).rest,
            "k.cu(11): warning #177-D: variable \"unused\" was declared but never referenced\n"
            "  extern \"C\" __global__ void plain(float* y) { int unused; y[0] = 1; }\n"
            "                                                   ^\n"
            "\n"
            "Remark: The warnings can be suppressed with \"-diag-suppress <warning-number>\"\n"
            "\n"
            "ptxas warning : Value of threads per SM for entry _Z1tILi3EEvPf is out of range. "
            ".minnctapersm will be ignored\n"
            "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
            "serialized in function 'plain'");
  EXPECT_EQ(read_ptxas("").rest, "");
}

TEST(Ptxas, WhatIsNotToldInFullIsUnknown) {
  const std::string entry = "ptxas info    : Compiling entry function 'k' for 'sm_80'\n";
  const std::string properties =
      "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";
  const std::string used = "ptxas info    : Used 8 registers\n";
  EXPECT_EQ(text(read_ptxas(entry + properties + used)),
            "k: 8 registers, 0 shared, 0 stack, 0 stored, 0 loaded\n");
  for (const std::string& log : {entry + properties, entry + used, properties + used, entry})
    EXPECT_EQ(text(read_ptxas(log)), "") << log;
  // In words that this version does not know.
  for (const char* line :
       {"ptxas info    : Used many registers", "ptxas info    : Used registers: 8",
        "ptxas         .     no stack frame", "ptxas         .     0 bytes stack frame",
        "ptxas info    : Used 99999999999999999999 registers"}) {
    const PtxasReport report = read_ptxas(entry + line + "\n");
    EXPECT_EQ(report.rest, line);
    EXPECT_TRUE(report.kernels.empty()) << line;
  }
}

TEST(Ptxas, AnyPartOfALogIsRead) {
  const std::string_view log = kLog;
  for (size_t n = 0; n < log.size(); ++n) {
    EXPECT_LE(read_ptxas(log.substr(0, n)).kernels.size(), 3u);
    EXPECT_LE(read_ptxas(log.substr(n)).kernels.size(), 3u);
  }
}

// ---- compiled -----------------------------------------------------------------------------------

class KernelResources : public opaq_test::NvrtcTest {
 protected:
  static CudaRequest request(std::string arch = "sm_90a") {
    CudaRequest r;
    r.source = R"(
template <int N> __device__ __forceinline__ void keep(float* y) {
  float a[N];
#pragma unroll
  for (int i = 0; i < N; ++i) a[i] = y[i * 7 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) y[i] += a[N - 1 - i] * a[i];
}
template <int N> __device__ __noinline__ void kept_apart(float* y) { keep<N>(y); }
template <int N> __global__ void __launch_bounds__(1024, 1) spill(float* y) { keep<N>(y); }
extern "C" __global__ void __launch_bounds__(1024, 1) calls(float* y) {
  kept_apart<128>(y);
  kept_apart<128>(y + 1);
}
extern "C" __global__ void shared(float* y) {
  __shared__ float s[300];
  s[threadIdx.x] = y[0]; __syncthreads(); y[1] = s[threadIdx.x ^ 1];
}
extern "C" __global__ void local(float* y) {
  float a[64];
  for (int i = 0; i < 99; ++i) a[int(y[i]) & 63] = y[i];
  y[0] = a[threadIdx.x & 63];
}
)";
    r.entries = {"spill<128>", "calls", "shared", "local"};
    r.file = "resources.cu";
    r.arch = std::move(arch);
    return r;
  }
};

TEST_F(KernelResources, AreKnownAndTheLogIsSilentOfThem) {
  for (const char* arch : {"sm_80", "sm_90a"}) {
    const auto image = compile_cuda(request(arch));
    for (const auto& entry : image->entries)
      ASSERT_TRUE(entry.resources) << arch << ' ' << entry.name;
    const Resources &spill = *image->entries[0].resources, &calls = *image->entries[1].resources,
                    &shared = *image->entries[2].resources, &local = *image->entries[3].resources;
    EXPECT_EQ(spill.registers, 64) << "1024 threads share 65536";
    EXPECT_GT(spill.spill_stores, 0);
    EXPECT_GT(spill.spill_loads, 0);
    EXPECT_GE(spill.stack, 4);
    EXPECT_GT(calls.spill_stores, 0) << "in a function that is not inlined";
    EXPECT_EQ(shared.shared, 1200);
    EXPECT_EQ(shared.stack, 0);
    EXPECT_EQ(local.stack, 256);
    EXPECT_EQ(local.spill_stores, 0);
    EXPECT_EQ(image->log, "");
  }
}

TEST_F(KernelResources, AreKnownFromTheCacheToo) {
  const auto first = compile_cuda(request("sm_86")), second = compile_cuda(request("sm_86"));
  EXPECT_FALSE(first->from_cache);
  EXPECT_TRUE(second->from_cache);
  for (size_t i = 0; i < first->entries.size(); ++i) {
    EXPECT_EQ(text(second->entries[i].resources), text(first->entries[i].resources));
    EXPECT_NE(text(second->entries[i].resources), "unknown");
  }
}

TEST_F(KernelResources, AreReadOfACubinThatTheUserBringsAndUnknownOfPtx) {
  EXPECT_EQ(text(compile_cuda(request("compute_90"))->entries[2].resources), "unknown");
  const auto compiled = compile_cuda(request());
  for (const opaq::Entry& entry : compiled->entries) {
    const auto brought = opaq::binary_image(compiled->bytes, "k.cubin", entry.symbol);
    const Resources &told = *entry.resources, &read = *brought->entries[0].resources;
    EXPECT_EQ(read.registers, told.registers) << entry.name;
    EXPECT_EQ(read.shared, told.shared) << entry.name;
    if (read.stack) EXPECT_EQ(read.stack, told.stack) << entry.name;
    if (read.spill_stores) EXPECT_EQ(read.spill_stores, told.spill_stores) << entry.name;
  }
}

TEST_F(KernelResources, UsersOptionsForTheAssemblerHold) {
  CudaRequest r = request();
  for (const std::vector<std::string>& options :
       std::vector<std::vector<std::string>>{{"-Xptxas=-O1"}, {"--ptxas-options", "-O1"}}) {
    r.options = options;
    const auto image = compile_cuda(r);
    EXPECT_NE(text(image->entries[0].resources), "unknown");
    EXPECT_NE(image->bytes, compile_cuda(request())->bytes);
    EXPECT_EQ(image->log, "");
  }
  for (const std::vector<std::string>& options :
       std::vector<std::vector<std::string>>{{"-Xptxas=-v"}, {"--ptxas-options", "--verbose"}}) {
    r.options = options;  // asked for, so it is there to read
    const auto image = compile_cuda(r);
    EXPECT_CONTAINS(image->log, "Compiling entry function 'shared' for 'sm_90a'");
    EXPECT_EQ(text(image->entries[2].resources),
              text(compile_cuda(request())->entries[2].resources));
  }
  r.options = {"-Xptxas=-warn-spills"};
  EXPECT_CONTAINS(
      compile_cuda(r)->log,
      "ptxas warning : Registers are spilled to local memory in function '_Z5spillILi128EEvPf'");
  EXPECT_LACKS(compile_cuda(r)->log, "ptxas info");
}

TEST_F(KernelResources, AssemblersErrorsAreTold) {
  CudaRequest r = request();
  r.source =
      "extern \"C\" __global__ void k(float* y) { __shared__ float s[60000]; s[threadIdx.x] = *y; "
      "__syncthreads(); *y = s[5]; }";
  r.entries = {"k"};
  for (const std::vector<std::string>& options :
       std::vector<std::vector<std::string>>{{}, {"-Xptxas=-v"}}) {
    r.options = options;
    const std::string message = message_of(ErrorKind::Compile, [&] { compile_cuda(r); });
    EXPECT_CONTAINS(message,
                    "NVRTC could not compile resources.cu for sm_90a:\nptxas error   : Entry "
                    "function 'k' uses too much shared");
    EXPECT_LACKS(message, "ptxas info");
  }
}

}  // namespace
