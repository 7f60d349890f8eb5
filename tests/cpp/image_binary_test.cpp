// Images that the user brings: what is accepted, what is found in them, and that damage is an
// error, never a crash.
#include <random>

#include "fatbin_bytes.h"
#include "image_test.h"

using opaq::binary_image;
using opaq::ErrorKind;
using opaq::ParamType;
using opaq_test::fatbin;
using opaq_test::fatbin_part;
using opaq_test::message_of;
using Kind = ParamType::Kind;

namespace {

class Cubin : public opaq_test::NvrtcTest {
 protected:
  static std::string make(const std::string& arch = "sm_90a") {
    opaq::CudaRequest request;
    request.source = R"(
struct S { int a[5]; };
__device__ __noinline__ int helper(int x) { return x * 3; }
template <class T, int N> __global__ void rms_norm(T* y, const T* x, S s, long n) {
  y[0] = x[0] * N + s.a[0] + helper(n);
}
extern "C" __global__ void plain(float* y, int n) { y[n] = 1; })";
    request.entries = {"rms_norm<float, 4096>", "plain"};
    request.arch = arch;
    return opaq::compile_cuda(request)->bytes;
  }
};

TEST_F(Cubin, EntryBySymbolOrByName) {
  const std::string bytes = make();
  const std::string symbol = "_Z8rms_normIfLi4096EEvPT_PKS0_1Sl";
  for (const std::string& entry :
       {symbol, std::string("rms_norm<float, 4096>"), std::string("rms_norm<float,4096>")}) {
    const auto image = binary_image(bytes, "folder/k.cubin", entry);
    EXPECT_EQ(image->bytes, bytes);
    EXPECT_EQ(image->arch, "sm_90");  // a cubin does not tell that it is for sm_90a
    ASSERT_EQ(image->entries.size(), 1u);
    EXPECT_EQ(image->entries[0].name, entry);
    EXPECT_EQ(image->entries[0].symbol, symbol);
    ASSERT_TRUE(image->entries[0].params_known);
    ASSERT_EQ(image->entries[0].params.size(), 4u);
    EXPECT_EQ(image->entries[0].params[1].text, "float const*");
    EXPECT_EQ(image->entries[0].params[2].kind, Kind::Struct);
    EXPECT_EQ(image->entries[0].params[3].text, "long");
  }
}

TEST_F(Cubin, ExternCTellsTheSizesOfItsParametersAlone) {
  const auto image = binary_image(make(), "k.cubin", "plain");
  ASSERT_TRUE(image->entries[0].params_known);
  ASSERT_EQ(image->entries[0].params.size(), 2u);
  for (const int i : {0, 1}) {
    const ParamType& param = image->entries[0].params[static_cast<size_t>(i)];
    EXPECT_EQ(param.kind, Kind::Unknown);
    EXPECT_EQ(param.size, i == 0 ? 8 : 4);
    EXPECT_EQ(param.text, "");
  }
}

TEST_F(Cubin, UnknownEntryListsKernelsOnly) {
  const std::string message =
      message_of(ErrorKind::Compile, [] { binary_image(make(), "folder/k.cubin", "plian"); });
  EXPECT_CONTAINS(message, "entry 'plian' is not in k.cubin, which has ");
  EXPECT_CONTAINS(message, "rms_norm<float, 4096>");
  EXPECT_CONTAINS(message, "did you mean 'plain'?");
  EXPECT_LACKS(message, "helper");
}

TEST_F(Cubin, EveryTruncationIsAnError) {
  const std::string bytes = make();
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::string message = message_of(
        ErrorKind::Compile, [&] { binary_image(bytes.substr(0, size), "k.cubin", "plain"); });
    if (::testing::Test::HasFailure())
      FAIL() << "at " << size << " of " << bytes.size() << " bytes";
    EXPECT_CONTAINS(message, "k.cubin");
  }
}

TEST_F(Cubin, DamageNeverCrashes) {
  const std::string bytes = make();
  std::mt19937 random(1);
  for (int round = 0; round < 4000; ++round) {
    std::string damaged = bytes;
    for (int i = 0; i < 1 + round % 8; ++i)
      damaged[random() % (round % 2 ? 64 : damaged.size())] = static_cast<char>(random());
    try {
      binary_image(damaged, "k.cubin", "plain");
    } catch (const opaq::Error& error) {
      EXPECT_EQ(error.kind, ErrorKind::Compile);
    }
  }
}

TEST(Binary, RandomBytesAreNoImage) {
  std::mt19937 random(2);
  for (int round = 0; round < 500; ++round) {
    std::string bytes(random() % 200, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    message_of(ErrorKind::Compile, [&] { binary_image(bytes, "k.bin", "k"); });
  }
  EXPECT_EQ(
      message_of(ErrorKind::Compile, [] { binary_image("", "folder/k.bin", "k"); }).substr(0, 29),
      "k.bin (0 bytes) is no image: ");
  EXPECT_CONTAINS(
      message_of(ErrorKind::Compile, [] { binary_image("__global__ void k() {}", "", "k"); }),
      "source=");
}

TEST(Binary, OnlyACubinTellsWhatAKernelUses) {
  for (const std::string bytes : {"", ".version 8.0\n.entry k() {}",
                                  "\x7f"
                                  "ELF\2\1"}) {
    const opaq::Resources found = opaq::cubin_resources(bytes, "k");
    for (const auto& fact :
         {found.registers, found.shared, found.stack, found.spill_stores, found.spill_loads})
      EXPECT_EQ(fact, std::nullopt);
  }
}

TEST(Binary, SharedLibraryIsNoCubin) {
  std::ifstream self("/proc/self/exe", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(self), {}};
  const std::string message =
      message_of(ErrorKind::Compile, [&] { binary_image(bytes, "libk.so", "k"); });
  EXPECT_CONTAINS(message, "libk.so is an ELF file, but not a cubin");
  EXPECT_CONTAINS(message, ".library(path, symbol=...)");
}

TEST_F(Cubin, InAFatbinIsReadAsOneAlone) {
  const std::string cubin = make();
  const std::string bytes = fatbin({fatbin_part(1, 80, 0, "packed", 100), fatbin_part(8, 90, 0, ""),
                                    fatbin_part(2, 90, 0x100000, cubin)});
  const auto image = binary_image(bytes, "k.fatbin", "rms_norm<float, 4096>"),
             alone = binary_image(cubin, "k.cubin", "rms_norm<float, 4096>");
  EXPECT_EQ(image->arch, "compute_80,lto_90,sm_90a");
  EXPECT_EQ(image->entries[0].symbol, alone->entries[0].symbol);
  EXPECT_EQ(image->entries[0].resources->registers, alone->entries[0].resources->registers);
  EXPECT_CONTAINS(message_of(ErrorKind::Compile, [&] { binary_image(bytes, "k.fatbin", "k"); }),
                  "entry 'k' is not in k.fatbin, which has");
}

TEST(Fatbin, IsAcceptedWithoutASymbolCheckButNotTruncated) {
  const std::string bytes = fatbin({fatbin_part(2, 90, 0x200000, "", 1)});
  EXPECT_EQ(opaq::image_archs(bytes), "sm_90f");
  const auto image = binary_image(bytes, "k.fatbin", "_Z1kPfi");
  EXPECT_EQ(image->entries[0].symbol, "_Z1kPfi");
  ASSERT_EQ(image->entries[0].params.size(), 2u);
  EXPECT_EQ(image->entries[0].params[0].text, "float*");
  EXPECT_FALSE(binary_image(bytes, "k.fatbin", "k")->entries[0].params_known);
  for (size_t n = 0; n < bytes.size(); ++n)
    message_of(ErrorKind::Compile, [&] { binary_image(bytes.substr(0, n), "k.fatbin", "k"); });
}

constexpr const char* kPtx = R"(//
// Generated by a compiler
//
.version 9.0
.target sm_90
.address_size 64
/* .entry not_this( */
.visible .entry plain(
  .param .u64 .ptr .global .align 4 plain_param_0,
  .param .u64 plain_param_1, // a comment, with a comma
  .param .u32 plain_param_2,
  .param .f32 plain_param_3,
  .param .align 8 .b8 plain_param_4[24]
)
.maxntid 256, 1, 1
{
  ret;
}
.entry _Z4tmplI6__halfEvPT_5Shape(.param .u64 a, .param .align 4 .b8 b[12]) { ret; }
.visible .entry nothing() { ret; }
)";

TEST(Ptx, ParametersOfAnExternCEntry) {
  const auto image = binary_image(kPtx, "k.ptx", "plain");
  ASSERT_TRUE(image->entries[0].params_known);
  const auto& params = image->entries[0].params;
  ASSERT_EQ(params.size(), 5u);
  EXPECT_EQ(params[0].kind, Kind::Pointer);
  EXPECT_EQ(params[1].kind, Kind::Unknown);  // an integer or an address
  EXPECT_EQ(params[1].size, 8);
  EXPECT_EQ(params[2].kind, Kind::Unknown);
  EXPECT_EQ(params[2].size, 4);
  EXPECT_EQ(params[3].kind, Kind::Float);
  EXPECT_EQ(params[4].kind, Kind::Struct);
  EXPECT_EQ(params[4].size, 24);
}

TEST(Ptx, MangledNamesTellTypesAndPtxTheSizes) {
  const auto image = binary_image(kPtx, "k.ptx", "tmpl<__half>");
  const auto& params = image->entries[0].params;
  ASSERT_EQ(params.size(), 2u);
  EXPECT_EQ(params[0].text, "__half*");
  EXPECT_EQ(params[1].text, "Shape");
  EXPECT_EQ(params[1].size, 12);
  const auto nothing = binary_image(kPtx, "k.ptx", "nothing");
  EXPECT_TRUE(nothing->entries[0].params_known);
  EXPECT_TRUE(nothing->entries[0].params.empty());
}

TEST(Ptx, UnknownEntry) {
  const std::string message =
      message_of(ErrorKind::Compile, [] { binary_image(kPtx, "k.ptx", "not_this"); });
  EXPECT_CONTAINS(message,
                  "entry 'not_this' is not in k.ptx, which has plain, tmpl<__half>, nothing");
}

TEST(Ptx, DamageNeverCrashes) {
  const std::string text = kPtx;
  for (size_t n = 0; n < text.size(); ++n) {
    try {
      binary_image(text.substr(0, n), "k.ptx", "plain");
    } catch (const opaq::Error& error) {
      EXPECT_EQ(error.kind, ErrorKind::Compile);
    }
  }
}

}  // namespace
