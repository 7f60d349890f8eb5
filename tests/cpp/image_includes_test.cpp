// Include closures: no header that a compiler would read is missed.
#include <sys/wait.h>

#include <chrono>
#include <thread>

#include "../../runtime/compile/includes.h"
#include "../../runtime/compile/record.h"
#include "cache/cache.h"
#include "image_test.h"

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
  EXPECT_EQ(names("#include <a.h>\n#include \"b.h\"\n  #  include\t<c.h> // note\n"),
            (Names{"a.h", "b.h", "c.h"}));
  EXPECT_EQ(names("/* x */ #include <a.h>\n# /* y */ include /* z */ \"b.h\"\n"),
            (Names{"a.h", "b.h"}));
  EXPECT_EQ(names("/* begins\n ends */ #include <a.h>\n"), (Names{"a.h"}));
  EXPECT_EQ(names("#inc\\\nlude <a.h>\n#include \\\r\n <b.h>\n"), (Names{"a.h", "b.h"}));
  EXPECT_EQ(names("#include<b.h>\n#include\"c.h\"\n#import <d.h>\n"), (Names{"b.h", "c.h", "d.h"}));
  EXPECT_EQ(names("%:include <a.h>\n %: include \"b.h\"\n"), (Names{"a.h", "b.h"}));
  EXPECT_EQ(names("#if 0\n#include <a.h>\n#endif"), (Names{"a.h"}));
  EXPECT_EQ(
      names(
          "#if defined(__has_include) && __has_include ( <a.h> )\n#elif __has_include(\"b.h\")\n"),
      (Names{"a.h", "b.h"}));
  EXPECT_EQ(names("#include_next <a.h>"), (Names{"a.h"}));
}

TEST(ScanIncludes, ProseIsNoDirective) {
  EXPECT_EQ(names("// see #include <a.h>\nint x; // the #include\nconst char* s = \"#include "
                  "<b.h>\";\n#pragma once\n#define x(a) #a\n"),
            Names{});
  EXPECT_EQ(scan_includes("// remember to #include the header\n").computed, "");
}

TEST(ScanIncludes, ComputedIncludesAreNoticed) {
  EXPECT_EQ(scan_includes("int x;\n  #include HEADER\n").computed, "#include HEADER");
  EXPECT_EQ(scan_includes("#include CAT(<a, .h>)\n").computed, "#include CAT(<a, .h>)");
  EXPECT_EQ(scan_includes("#define HAS(x) __has_include(x)\n").computed,
            "#define HAS(x) __has_include(x)");
}

class Closure : public ::testing::Test {
 protected:
  std::string digest(const std::string& source) {
    const IncludeSearch search{folder_.path,
                               {folder_.path + "/first", folder_.path + "/second"},
                               {folder_.path + "/toolkit"}};
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
  EXPECT_EQ(include_closure("#include <a.h>", "k.cu", search, {}).computed,
            folder_.path + "/first/a.h: #include WHICH");
  EXPECT_EQ(include_closure("#include <t.h>", "k.cu", search, {}).computed, "");
}

TEST_F(Closure, ForcedHeadersCount) {
  const std::vector<std::string> forced{folder_.write("forced.h", "1")};
  const IncludeSearch search{folder_.path, {}, {}};
  const std::string before = include_closure("", "k.cu", search, forced).digest;
  folder_.write("forced.h", "2");
  EXPECT_NE(include_closure("", "k.cu", search, forced).digest, before);
}

// ---- what toolkit headers reach, remembered on disk ---------------------------------------------

namespace fs = std::filesystem;

// A toolkit of two folders that is large enough to be remembered, and a user's folder.
struct Installation {
  fs::path root;
  explicit Installation(const fs::path& place) : root(place) {
    write("cuda/top.h",
          "#include <lib/deep.h>\n#include \"beside.h\"\n/*" + std::string(300'000, ' ') + "*/\n");
    write("cuda/beside.h", "");
    write("cccl/lib/deep.h", "#include <lib/deeper.h>\n#if __has_include(<later.h>)\n#endif\n");
    write("cccl/lib/deeper.h", "1");
    write("cccl/lib/deepen.h", "not reached");
    write("user/own.h", "");
  }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name, std::ios::binary) << text;
  }
};

struct Outcome {
  char digest[65] = "";
  int64_t hits = 0, stores = 0, healed = 0;  // of the disk cache
};

std::string closure_of(const Installation& at) {
  const std::string root = at.root.string();
  const IncludeSearch search{root + "/user", {root + "/user"}, {root + "/cuda", root + "/cccl"}};
  return include_closure("#include <top.h>", "k.cu", search, {}).digest;
}

// Computes the closure in a process that remembers nothing but what is on disk.
class Elsewhere {
 public:
  explicit Elsewhere(const Installation& at) {
    if (pipe(ends_) != 0) std::abort();
    child_ = fork();
    if (child_ != 0) return;
    const opaq::CacheStats before = opaq::disk_cache().stats();
    const std::string digest = closure_of(at);
    const opaq::CacheStats after = opaq::disk_cache().stats();
    Outcome outcome{"", after.hits - before.hits, after.stores - before.stores,
                    after.healed - before.healed};
    digest.copy(outcome.digest, 64);
    _exit(write(ends_[1], &outcome, sizeof outcome) == static_cast<ssize_t>(sizeof outcome) ? 0
                                                                                            : 1);
  }
  Outcome outcome() {
    close(ends_[1]);
    Outcome outcome;
    EXPECT_EQ(read(ends_[0], &outcome, sizeof outcome), static_cast<ssize_t>(sizeof outcome))
        << "the other process failed";
    close(ends_[0]);
    waitpid(child_, nullptr, 0);
    return outcome;
  }

 private:
  int ends_[2];
  pid_t child_;
};

Outcome closure_elsewhere(const Installation& at) { return Elsewhere(at).outcome(); }

class ToolkitRecord : public ::testing::Test {
 protected:
  Installation install(const std::string& name) const {
    return Installation(folder_.path + "/" + name);
  }

  // Files that were just written are not trusted to stay as they are.
  static void wait_until_settled() { std::this_thread::sleep_for(std::chrono::milliseconds(2100)); }

  static void forget() { fs::remove_all(opaq_test::cache_folder.path + "/cache"); }

  static fs::path only_record() {
    std::vector<fs::path> files;
    for (const auto& item : fs::directory_iterator(opaq_test::cache_folder.path + "/cache"))
      files.push_back(item.path());
    EXPECT_EQ(files.size(), 1u);
    return files.at(0);
  }

  void SetUp() override { forget(); }
  TemporaryFolder folder_;
};

TEST_F(ToolkitRecord, IsUsedByTheNextProcessAndGivesTheSameDigest) {
  const Installation at = install("a");
  const Outcome unsettled = closure_elsewhere(at);
  EXPECT_EQ(unsettled.stores, 0) << "a file that may change without its stamp changing was trusted";
  wait_until_settled();
  const Outcome first = closure_elsewhere(at), second = closure_elsewhere(at);
  EXPECT_EQ(first.hits, 0);
  EXPECT_EQ(first.stores, 1);
  EXPECT_EQ(second.hits, 1);
  EXPECT_EQ(second.stores, 0);
  EXPECT_STREQ(first.digest, unsettled.digest);
  EXPECT_STREQ(second.digest, first.digest);
  EXPECT_EQ(std::string(second.digest).size(), 64u);

  at.write("cuda/unrelated.h", "");
  at.write("user/unrelated.h", "");
  const Outcome unrelated = closure_elsewhere(at);
  EXPECT_EQ(unrelated.hits, 1);
  EXPECT_EQ(unrelated.stores, 0);
  EXPECT_STREQ(unrelated.digest, first.digest);
}

TEST_F(ToolkitRecord, AnyChangeOfWhatTheWalkSawCounts) {
  // Edits that leave no trace in size and time of modification, as tools that synchronise folders
  // can make them.
  const auto keeping_time = [](const fs::path& file, const auto& edit) {
    const auto time = fs::last_write_time(file);
    edit();
    fs::last_write_time(file, time);
  };
  const std::string deep = "#include <lib/deepen.h>\n#if __has_include(<later.h>)\n#endif\n";
  const std::vector<std::pair<std::string, std::function<void(const Installation&)>>> edits{
      {"edited", [](const Installation& at) { at.write("cccl/lib/deeper.h", "22"); }},
      {"edited with size and time kept",
       [&](const Installation& at) {
         keeping_time(at.root / "cccl/lib/deep.h", [&] { at.write("cccl/lib/deep.h", deep); });
       }},
      {"replaced with size and time kept",
       [&](const Installation& at) {
         keeping_time(at.root / "cccl/lib/deep.h", [&] {
           at.write("cccl/lib/new", deep);
           fs::rename(at.root / "cccl/lib/new", at.root / "cccl/lib/deep.h");
         });
       }},
      {"vanished", [](const Installation& at) { fs::remove(at.root / "cccl/lib/deeper.h"); }},
      {"became a folder",
       [](const Installation& at) {
         fs::remove(at.root / "cccl/lib/deeper.h");
         fs::create_directory(at.root / "cccl/lib/deeper.h");
       }},
      {"appeared in an earlier folder",
       [](const Installation& at) { at.write("cuda/lib/deeper.h", "1"); }},
      {"appeared where there was none",
       [](const Installation& at) { at.write("cccl/later.h", ""); }},
      {"appeared in the user's folder",
       [](const Installation& at) { at.write("user/lib/deeper.h", "1"); }},
  };
  std::vector<Installation> installations;
  for (const auto& [name, edit] : edits) installations.push_back(install(name));
  wait_until_settled();
  for (size_t i = 0; i < edits.size(); ++i) {
    SCOPED_TRACE(edits[i].first);
    const Installation& at = installations[i];
    const Outcome before = closure_elsewhere(at);
    EXPECT_EQ(before.stores, 1);
    EXPECT_EQ(closure_elsewhere(at).hits, 1);
    edits[i].second(at);
    const Outcome after = closure_elsewhere(at);
    EXPECT_STRNE(after.digest, before.digest);
    forget();
    EXPECT_STREQ(closure_elsewhere(at).digest, after.digest)
        << "the digest depends on whether there was a record";
  }
}

TEST_F(ToolkitRecord, OfAChangedToolkitIsReplaced) {
  const Installation at = install("a");
  wait_until_settled();
  closure_elsewhere(at);
  fs::last_write_time(at.root / "cccl/lib/deeper.h",
                      fs::file_time_type::clock::now() - std::chrono::hours(1));
  wait_until_settled();
  const Outcome renewed = closure_elsewhere(at);
  EXPECT_EQ(renewed.stores, 1);
  const Outcome next = closure_elsewhere(at);
  EXPECT_EQ(next.stores, 0);
  EXPECT_STREQ(next.digest, renewed.digest);
  only_record();
}

TEST_F(ToolkitRecord, DamageIsAMissThatHeals) {
  const Installation at = install("a");
  wait_until_settled();
  const Outcome whole = closure_elsewhere(at);
  const fs::path record = only_record();
  const auto size = fs::file_size(record);
  for (const auto& damage : std::vector<std::function<void()>>{
           [&] { fs::resize_file(record, size / 2); },
           [&] {
             std::fstream(record, std::ios::binary | std::ios::in | std::ios::out)
                 .seekp(200)
                 .put('\x7f');
           },
       }) {
    damage();
    const Outcome healing = closure_elsewhere(at);
    EXPECT_EQ(healing.hits, 0);
    EXPECT_EQ(healing.healed, 1);
    EXPECT_EQ(healing.stores, 1);
    EXPECT_STREQ(healing.digest, whole.digest);
    EXPECT_EQ(closure_elsewhere(at).hits, 1);
  }
  fs::permissions(record.parent_path(), fs::perms::others_write, fs::perm_options::add);
  const Outcome distrustful = closure_elsewhere(at);
  EXPECT_EQ(distrustful.hits, 0) << "a folder that others may write to was trusted";
  EXPECT_STREQ(distrustful.digest, whole.digest);
}

TEST_F(ToolkitRecord, ProcessesAndThreadsAtOnceAgree) {
  const Installation at = install("a");
  wait_until_settled();
  std::vector<Elsewhere> processes;
  for (int i = 0; i < 4; ++i) processes.emplace_back(at);
  std::vector<std::string> digests(8);
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < 4; ++i) threads.emplace_back([&, i] { digests[i] = closure_of(at); });
    for (size_t i = 0; i < 4; ++i) digests[4 + i] = processes[i].outcome().digest;
  }
  for (const std::string& digest : digests) EXPECT_EQ(digest, digests[0]);
  only_record();
}

TEST(Record, RoundTripAndNothingElse) {
  opaq::Record record;
  record.entries.resize(2);
  opaq::Entry& entry = record.entries[0];
  entry.name = "k<\n\"odd\" 7\n>";
  entry.symbol = "_Z1k";
  entry.params_known = true;
  entry.params = opaq::parse_parameters("float const*, Shape");
  entry.resources = opaq::Resources{.registers = 32,
                                    .shared = 1200,
                                    .stack = 9512,
                                    .spill_stores = 11008,
                                    .spill_loads = int64_t{1} << 40};
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
