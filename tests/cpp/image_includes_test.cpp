// Include closures: no header that a compiler would read is missed.
#include "image_test.h"

#include "../../runtime/compile/includes.h"
#include "../../runtime/compile/record.h"

using opaq::Include;
using opaq::include_closure;
using opaq::IncludeSearch;
using opaq::scan_includes;
using opaq_test::TemporaryFolder;

namespace {

std::vector<std::string> names(const std::string& text) {
  std::vector<std::string> out;
  for (const Include& include : scan_includes(text).includes) out.push_back(include.name);
  return out;
}
using Names = std::vector<std::string>;

TEST(ScanIncludes, EverySpelling) {
  EXPECT_EQ(names("#include <a.h>\n#include \"b.h\"\n  #  include\t<c.h> // note\n"), (Names{"a.h", "b.h", "c.h"}));
  EXPECT_EQ(names("/* x */ #include <a.h>\n# /* y */ include /* z */ \"b.h\"\n"), (Names{"a.h", "b.h"}));
  EXPECT_EQ(names("/* begins\n ends */ #include <a.h>\n"), (Names{"a.h"}));
  EXPECT_EQ(names("#inc\\\nlude <a.h>\n#include \\\r\n <b.h>\n"), (Names{"a.h", "b.h"}));
  EXPECT_EQ(names("#include<b.h>\n#include\"c.h\"\n#import <d.h>\n"), (Names{"b.h", "c.h", "d.h"}));
  EXPECT_EQ(names("%:include <a.h>\n %: include \"b.h\"\n"), (Names{"a.h", "b.h"}));
  EXPECT_EQ(names("#if 0\n#include <a.h>\n#endif"), (Names{"a.h"}));
  EXPECT_EQ(names("#if defined(__has_include) && __has_include ( <a.h> )\n#elif __has_include(\"b.h\")\n"), (Names{"a.h", "b.h"}));
  EXPECT_EQ(names("#include_next <a.h>"), (Names{"a.h"}));
}

TEST(ScanIncludes, ProseIsNoDirective) {
  EXPECT_EQ(names("// see #include <a.h>\nint x; // the #include\nconst char* s = \"#include <b.h>\";\n#pragma once\n#define x(a) #a\n"),
            Names{});
  EXPECT_EQ(scan_includes("// remember to #include the header\n").computed, "");
}

TEST(ScanIncludes, ComputedIncludesAreNoticed) {
  EXPECT_EQ(scan_includes("int x;\n  #include HEADER\n").computed, "#include HEADER");
  EXPECT_EQ(scan_includes("#include CAT(<a, .h>)\n").computed, "#include CAT(<a, .h>)");
  EXPECT_EQ(scan_includes("#define HAS(x) __has_include(x)\n").computed, "#define HAS(x) __has_include(x)");
}

class Closure : public ::testing::Test {
 protected:
  std::string digest(const std::string& source) {
    const IncludeSearch search{folder_.path, {folder_.path + "/first", folder_.path + "/second"}, {folder_.path + "/toolkit"}};
    return include_closure(source, "k.cu", search, {}).digest;
  }
  TemporaryFolder folder_;
};

TEST_F(Closure, HeaderThatAppearsEarlierInTheSearchPathCounts) {
  folder_.write("second/a.h", "1");
  const std::string before = digest("#include <a.h>");
  folder_.write("first/a.h", "2");
  EXPECT_NE(digest("#include <a.h>"), before);
}

TEST_F(Closure, MissingHeaderThatAppearsCounts) {
  const std::string before = digest("#if __has_include(<later.h>)\n#include <later.h>\n#endif");
  folder_.write("second/later.h", "");
  EXPECT_NE(digest("#if __has_include(<later.h>)\n#include <later.h>\n#endif"), before);
}

TEST_F(Closure, QuotedNamesBesideTheIncluderComeFirst) {
  folder_.write("second/lib/a.h", "#include \"b.h\"\n");
  folder_.write("second/lib/b.h", "1");
  folder_.write("first/b.h", "not this");
  const std::string before = digest("#include <lib/a.h>");
  folder_.write("first/b.h", "not this either");
  EXPECT_EQ(digest("#include <lib/a.h>"), before);
  folder_.write("second/lib/b.h", "2");
  EXPECT_NE(digest("#include <lib/a.h>"), before);
}

TEST_F(Closure, IncludeNextReachesLaterFolders) {
  folder_.write("first/a.h", "#include_next <a.h>\n");
  folder_.write("second/a.h", "1");
  const std::string before = digest("#include <a.h>");
  folder_.write("second/a.h", "2");
  EXPECT_NE(digest("#include <a.h>"), before);
}

TEST_F(Closure, CyclesEnd) {
  folder_.write("a.h", "#include \"b.h\"\n");
  folder_.write("b.h", "#include \"a.h\"\n");
  EXPECT_EQ(digest("#include \"a.h\"").size(), 64u);
}

TEST_F(Closure, UsersFolderMayShadowAHeaderThatTheToolkitIncludes) {
  folder_.write("toolkit/fp.h", "#include <detail/types.h>\n");
  folder_.write("toolkit/detail/types.h", "toolkit");
  const std::string before = digest("#include <fp.h>");
  EXPECT_EQ(digest("#include <fp.h>"), before);
  folder_.write("first/detail/types.h", "user 1");
  const std::string shadowed = digest("#include <fp.h>");
  EXPECT_NE(shadowed, before);
  folder_.write("first/detail/types.h", "user 2");
  EXPECT_NE(digest("#include <fp.h>"), shadowed);
}

TEST_F(Closure, ComputedIncludeOfAUsersHeaderIsReportedAndOneOfTheToolkitIsNot) {
  folder_.write("first/a.h", "#include WHICH\n");
  folder_.write("toolkit/t.h", "#include SYSTEM_HEADER\n");
  const IncludeSearch search{folder_.path, {folder_.path + "/first"}, {folder_.path + "/toolkit"}};
  EXPECT_EQ(include_closure("#include <a.h>", "k.cu", search, {}).computed, folder_.path + "/first/a.h: #include WHICH");
  EXPECT_EQ(include_closure("#include <t.h>", "k.cu", search, {}).computed, "");
}

TEST_F(Closure, ForcedHeadersCount) {
  const std::vector<std::string> forced{folder_.write("forced.h", "1")};
  const IncludeSearch search{folder_.path, {}, {}};
  const std::string before = include_closure("", "k.cu", search, forced).digest;
  folder_.write("forced.h", "2");
  EXPECT_NE(include_closure("", "k.cu", search, forced).digest, before);
}

TEST(Record, RoundTripAndNothingElse) {
  opaq::Record record;
  record.entries.resize(2);
  opaq::Entry& entry = record.entries[0];
  entry.name = "k<\n\"odd\" 7\n>";
  entry.symbol = "_Z1k";
  entry.params_known = true;
  entry.params = opaq::parse_parameters("float const*, Shape");
  entry.resources = opaq::Resources{.registers = 32, .shared = 1200, .stack = 9512, .spill_stores = 11008, .spill_loads = int64_t{1} << 40};
  record.log = "two\nlines\n";
  record.files = {"/a b", "1 2"};
  const std::string text = opaq::write_record(record);
  const auto back = opaq::read_record(text);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->entries[0].name, entry.name);
  EXPECT_EQ(back->entries[0].params[0].text, "float const*");
  EXPECT_TRUE(back->entries[0].params[0].pointee_const);
  ASSERT_TRUE(back->entries[0].resources);
  EXPECT_EQ(back->entries[0].resources->registers, 32);
  EXPECT_EQ(back->entries[0].resources->shared, 1200);
  EXPECT_EQ(back->entries[0].resources->stack, 9512);
  EXPECT_EQ(back->entries[0].resources->spill_stores, 11008);
  EXPECT_EQ(back->entries[0].resources->spill_loads, int64_t{1} << 40);
  EXPECT_FALSE(back->entries[1].resources);
  EXPECT_EQ(back->log, record.log);
  EXPECT_EQ(back->files, record.files);
  for (size_t n = 0; n < text.size(); ++n) EXPECT_FALSE(opaq::read_record(text.substr(0, n))) << n;
  EXPECT_FALSE(opaq::read_record(text + "x"));
  EXPECT_FALSE(opaq::read_record("opaq record 2\n99999999999999999999 x\n"));
}

}  // namespace
