// SHA-256 against the vectors of FIPS 180-4 and NIST's examples.
#include "base/sha256.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

using namespace opaq;

namespace {

std::string sha(std::string_view text) { return Sha256().update(text).hex(); }

TEST(Sha256, PublishedVectors) {
  EXPECT_EQ(sha(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqkl"
                "mnopqrlmnopqrsmnopqrstnopqrstu"),
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  EXPECT_EQ(sha(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, AnySplitGivesTheSameDigest) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += static_cast<char>(i * 7);
  for (size_t length = 0; length <= text.size(); ++length) {  // across every padding case
    const std::string_view whole = std::string_view(text).substr(0, length);
    Sha256 bytewise;
    for (char c : whole) bytewise.update({&c, 1});
    Sha256 halves;
    halves.update(whole.substr(0, length / 3)).update("").update(whole.substr(length / 3));
    const std::string expected = sha(whole);
    EXPECT_EQ(bytewise.hex(), expected) << length;
    EXPECT_EQ(halves.hex(), expected) << length;
  }
}

TEST(Sha256, DigestIsTheBytesOfHex) {
  const auto bytes = Sha256().update("abc").digest();
  EXPECT_EQ(bytes[0], 0xba);
  EXPECT_EQ(bytes[1], 0x78);
  EXPECT_EQ(bytes[31], 0xad);
}

TEST(Sha256, FieldsCannotRunIntoEachOther) {
  EXPECT_NE(Sha256().field("ab").field("c").hex(), Sha256().field("a").field("bc").hex());
  EXPECT_NE(Sha256().field("abc").hex(), Sha256().field("abc").field("").hex());
  EXPECT_NE(Sha256().field("abc").hex(), sha("abc"));
  EXPECT_EQ(Sha256().field("ab").field("c").hex(), Sha256().field("ab").field("c").hex());
  // Part of every cache key ever written: eight bytes of length, least significant first, then the
  // bytes.
  EXPECT_EQ(Sha256().field("abc").hex(), sha(std::string_view("\3\0\0\0\0\0\0\0abc", 11)));
}

}  // namespace
