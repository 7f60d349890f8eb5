// Suggestions for misspelt names, and lists, as error messages use them.
#include "base/error.h"

#include <gtest/gtest.h>

#include <vector>

using namespace opaq;

namespace {

const std::vector<std::string> kNames = {"x",     "weight",        "eps",     "size",    "stride",
                                         "numel", "is_contiguous", "float32", "bfloat16"};

TEST(Nearest, FindsTypingMistakes) {
  EXPECT_EQ(nearest("wieght", kNames), "weight");  // swapped letters
  EXPECT_EQ(nearest("weigt", kNames), "weight");   // one missing
  EXPECT_EQ(nearest("sizes", kNames), "size");
  EXPECT_EQ(nearest("strides", kNames), "stride");
  EXPECT_EQ(nearest("Weight", kNames), "weight");  // case
  EXPECT_EQ(nearest("iscontiguous", kNames), "is_contiguous");
  EXPECT_EQ(nearest("bfloat", kNames), "bfloat16");
}

TEST(Nearest, SuggestsNothingWhenNothingIsClose) {
  EXPECT_EQ(nearest("bias", kNames), "");
  EXPECT_EQ(nearest("y", kNames), "");  // one letter that is not the one letter of "x"
  EXPECT_EQ(nearest("", kNames), "");
  EXPECT_EQ(nearest("weight", {}), "");
  EXPECT_EQ(nearest(std::string(100000, 'w'), kNames), "");
}

TEST(Nearest, TakesTheFirstOfEquallyCloseNames) {
  EXPECT_EQ(nearest("dims", std::vector<std::string>{"dim1", "dim2"}), "dim1");
}

TEST(DidYouMean, EndsAMessage) {
  EXPECT_EQ("unknown name 'wieght'" + did_you_mean("wieght", kNames),
            "unknown name 'wieght'; did you mean 'weight'?");
  EXPECT_EQ(did_you_mean("bias", kNames), "");
}

TEST(Join, PutsSeparatorsBetweenOnly) {
  EXPECT_EQ(join({}), "");
  EXPECT_EQ(join(std::vector<std::string>{"a"}), "a");
  EXPECT_EQ(join(std::vector<std::string>{"a", "", "c"}), "a, , c");
  EXPECT_EQ(join(std::vector<std::string>{"a", "b"}, " or "), "a or b");
}

TEST(Error, CarriesItsKind) {
  try {
    fail(ErrorKind::Launch, "x has rank 2");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind, ErrorKind::Launch);
    EXPECT_FALSE(e.sticky);
    EXPECT_STREQ(e.what(), "x has rank 2");
  }
  EXPECT_TRUE(Error(ErrorKind::Driver, "lost", true).sticky);
}

}  // namespace
