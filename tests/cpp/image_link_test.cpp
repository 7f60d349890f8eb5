// What is linked by nvJitLink, as its bytes tell, that damage is never a crash, and linking itself.
// (More of it: tests/python/test_lto.py, which makes its LTO-IR.)
#include <random>

#include "fatbin_bytes.h"
#include "image_test.h"

using opaq::ErrorKind;
using opaq::needs_linking;
using opaq_test::fatbin;
using opaq_test::fatbin_part;
using opaq_test::message_of;

namespace {

const std::string kLtoIr("\xED\x43\x4E\x7F\x01\x41\x02\x62", 8);
const std::string kPtx = "// made by hand\n.version 9.0\n.target sm_90\n";

std::string elf(uint16_t machine) {
  std::string bytes(64, '\0');
  std::memcpy(bytes.data(),
              "\x7F"
              "ELF",
              4);
  std::memcpy(bytes.data() + 18, &machine, 2);
  return bytes;
}

TEST(Linking, IsForLtoIrAndForFatbinsThatHoldSome) {
  EXPECT_TRUE(needs_linking(kLtoIr));
  EXPECT_TRUE(needs_linking(fatbin({fatbin_part(8, 90, 0, kLtoIr)})));
  EXPECT_TRUE(
      needs_linking(fatbin({fatbin_part(2, 80, 0, elf(190)), fatbin_part(8, 90, 0, "", 7)})));
  EXPECT_FALSE(
      needs_linking(fatbin({fatbin_part(1, 80, 0, kPtx), fatbin_part(2, 90, 0, elf(190))})));
  for (const std::string& bytes : {std::string(), std::string("\xED\x43\x4E", 3), kPtx, elf(190)})
    EXPECT_FALSE(needs_linking(bytes));
  EXPECT_EQ(
      opaq::image_archs(fatbin({fatbin_part(8, 90, 0x100000, ""), fatbin_part(8, 80, 0, "")})),
      "lto_90a,lto_80");
}

TEST(Linking, IsForListsOfAllThatNvJitLinkTakes) {
  const std::string fat = fatbin({fatbin_part(2, 90, 0, elf(190))});
  for (const std::string& bytes : {kLtoIr, kPtx, elf(190), elf(62), fat, std::string("!<arch>\n")})
    EXPECT_TRUE(needs_linking(opaq::write_link_inputs({{"", bytes}})));
  EXPECT_EQ(message_of(ErrorKind::Declaration,
                       [] { opaq::write_link_inputs({{"", kLtoIr}, {"folder/k.cu", "int k;"}}); }),
            "binary[1] (k.cu) is nothing that nvJitLink links: expected LTO-IR, a cubin, a fatbin, "
            "PTX, or an object or archive of nvcc; CUDA C++ is declared with source=");
}

TEST(Linking, OfDamagedBytesIsNeverACrash) {
  const std::string whole = opaq::write_link_inputs(
      {{"lib.a", "!<arch>\n" + fatbin({fatbin_part(8, 90, 0, kLtoIr)})}, {"k.ltoir", kLtoIr}});
  for (size_t n = 0; n <= whole.size(); ++n) needs_linking(whole.substr(0, n));
  const std::string fat = fatbin({fatbin_part(8, 90, 0, kLtoIr), fatbin_part(2, 90, 0, elf(190))});
  for (size_t n = 0; n <= fat.size(); ++n) needs_linking(fat.substr(0, n));
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string damaged = fat;
    for (int i = 0; i < 3; ++i) damaged[random() % damaged.size()] = static_cast<char>(random());
    needs_linking(damaged);
  }
}

TEST(Linking, TellsItsSourcesApartByBytesAndOptions) {
  const auto digest = [](const std::string& code, std::vector<std::string> options = {}) {
    opaq::LinkRequest request;
    request.code = code;
    request.options = std::move(options);
    return opaq::source_digest(request).digest;
  };
  const std::string one = opaq::write_link_inputs({{"/a/k.ltoir", kLtoIr}});
  EXPECT_EQ(digest(kLtoIr), digest(one));  // wherever it lies
  EXPECT_NE(digest(kLtoIr), digest(kLtoIr + "more"));
  EXPECT_NE(digest(kLtoIr), digest(kLtoIr, {"-maxrregcount=32"}));
  EXPECT_NE(digest(one), digest(opaq::write_link_inputs({{"", kLtoIr}, {"", kLtoIr}})));
}

// data/add_one.ltoir: by NVRTC 13.0 with -dlto -arch=compute_80, of
//   extern "C" __global__ void add_one(const float* x, float* out, int n)
class LinkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const opaq::NvJitLinkInfo info = opaq::nvjitlink_info();
    if (!info.found) GTEST_SKIP() << info.why_not;
    if (!info.version.starts_with("13.")) GTEST_SKIP() << "nvJitLink is " << info.version;
    request.file = std::string(OPAQ_TEST_DATA) + "/add_one.ltoir";
    std::ifstream stream(request.file, std::ios::binary);
    code.assign(std::istreambuf_iterator<char>(stream), {});
    request.code = code;
    request.entry = "add_one";
    request.arch = "sm_90a";
  }
  std::string code;
  opaq::LinkRequest request;
};

TEST_F(LinkTest, GivesACubinThatIsKept) {
  const auto image = opaq::link_image(request);
  EXPECT_EQ(opaq::image_suffix(image->bytes), ".cubin");
  EXPECT_EQ(image->arch, "sm_90a");
  EXPECT_EQ(image->compiler, "nvJitLink");
  EXPECT_EQ(image->sources, opaq::source_digest(request).digest);
  EXPECT_FALSE(image->from_cache);
  ASSERT_EQ(image->entries.size(), 1u);
  EXPECT_EQ(image->entries[0].symbol, "add_one");
  EXPECT_EQ(image->entries[0].params.size(), 3u);
  EXPECT_GT(image->entries[0].resources->registers, 0);
  EXPECT_EQ(image->entries[0].resources->spill_stores, 0);
  EXPECT_EQ(image->log, "");
  const auto again = opaq::link_image(request);
  EXPECT_TRUE(again->from_cache);
  EXPECT_EQ(again->bytes, image->bytes);
  request.arch = "compute_90";
  EXPECT_CONTAINS(opaq::link_image(request)->bytes, ".entry add_one");
}

TEST_F(LinkTest, SaysWhatFails) {
  const auto message = [&] {
    return message_of(ErrorKind::Compile, [&] { opaq::link_image(request); });
  };
  request.arch = "sm_75";
  EXPECT_CONTAINS(message(), "add_one.ltoir is compiled for a newer architecture than sm_75");
  request.arch = "sm_90a";
  request.entry = "add_two";
  EXPECT_CONTAINS(message(), "entry 'add_two' is not in add_one.ltoir, which has add_one");
  code.resize(code.size() / 2);
  request.code = code;
  EXPECT_CONTAINS(message(), "linking add_one.ltoir for sm_90a failed:\n");
}

}  // namespace
