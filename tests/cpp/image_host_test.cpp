// Host C++ to functions that are called as kernels are.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <barrier>
#include <thread>

#include "image_test.h"

using opaq::compile_host;
using opaq::ErrorKind;
using opaq::HostRequest;
using opaq::ParamType;
using opaq_test::message_of;
using opaq_test::TemporaryFolder;
using Kind = ParamType::Kind;

namespace {

HostRequest request(std::string source, std::string entry, std::string file = "toy.cpp") {
  HostRequest r;
  r.source = std::move(source);
  r.entry = std::move(entry);
  r.file = std::move(file);
  return r;
}

template <class... A>
void call(const opaq::HostFunction& function, A... values) {
  void* arguments[] = {&values..., nullptr};
  function.invoke(arguments);
}

TEST(CompileHost, CallsWithPointersIntegersAndDoubles) {
  const auto function = compile_host(request(R"(
#include <cstdint>
extern "C" void axpy(float* y, const float* x, std::int64_t n, double a, bool on, unsigned char k) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = on ? a * x[i] + k : -1;
})",
                                             "axpy"));
  ASSERT_EQ(function->params.size(), 6u);
  EXPECT_EQ(function->params[0].text, "float*");
  EXPECT_EQ(function->params[1].pointee, "float");
  EXPECT_TRUE(function->params[1].pointee_const);
  EXPECT_EQ(function->params[2].kind, Kind::Int);
  EXPECT_EQ(function->params[2].size, 8);
  EXPECT_EQ(function->params[3].kind, Kind::Float);
  EXPECT_EQ(function->params[3].size, 8);
  EXPECT_EQ(function->params[4].kind, Kind::Bool);
  EXPECT_EQ(function->params[5].kind, Kind::UInt);
  EXPECT_EQ(function->params[5].size, 1);
  const float x[] = {1, 2, 3};
  float y[3] = {};
  call(*function, y, &x[0], int64_t{3}, 0.5, true, static_cast<unsigned char>(7));
  EXPECT_EQ(y[0], 7.5f);
  EXPECT_EQ(y[2], 8.5f);
}

TEST(CompileHost, TemplatesNamespacesStructsEnumerationsAndNoParameters) {
  const auto function = compile_host(request(R"(
struct Shape { long sizes[3]; int dim; };
enum class Mode : short { A, B };
namespace lib { template <class T, int N> void fill(T* y, Shape shape, Mode mode) noexcept {
  y[0] = N + shape.sizes[1] + static_cast<int>(mode); }
})",
                                             "lib::fill<double, 4>"));
  ASSERT_EQ(function->params.size(), 3u);
  EXPECT_EQ(function->params[0].text, "double*");
  EXPECT_EQ(function->params[1].kind, Kind::Struct);
  EXPECT_EQ(function->params[1].text, "Shape");
  EXPECT_EQ(function->params[1].size, 32);
  EXPECT_EQ(function->params[2].kind, Kind::Int);
  EXPECT_EQ(function->params[2].size, 2);
  struct {
    long sizes[3];
    int dim;
  } shape{{1, 20, 3}, 3};
  double y = 0;
  call(*function, &y, shape, static_cast<short>(1));
  EXPECT_EQ(y, 25);

  const auto none = compile_host(request("int counter; void nothing() { ++counter; }", "nothing"));
  EXPECT_TRUE(none->params.empty());
  call(*none);
}

TEST(CompileHost, HalfPrecision) {
  std::shared_ptr<const opaq::HostFunction> function;
  try {
    function =
        compile_host(request("void twice(_Float16* y, _Float16 a) { *y = a + a; }", "twice"));
  } catch (const opaq::Error& error) {  // clang before 15 on x86
    if (!opaq_test::contains(error.what(), "_Float16 is not supported on this target")) throw;
    GTEST_SKIP() << "this compiler has no _Float16";
  }
  EXPECT_EQ(function->params[0].pointee, "_Float16");
  EXPECT_EQ(function->params[1].kind, Kind::Float);
  EXPECT_EQ(function->params[1].size, 2);
  uint16_t y = 0;
  call(*function, &y, uint16_t{0x3C00});  // 1.0
  EXPECT_EQ(y, 0x4000);                   // 2.0
}

TEST(CompileHost, ErrorsNameTheUsersFileAndLine) {
  const std::string message = message_of(ErrorKind::Compile, [] {
    compile_host(
        request("void k(float* y) {\n  *y = 1;\n  *y = undefined_name;\n}", "k", "kernels/k.cpp"));
  });
  EXPECT_CONTAINS(message.substr(0, message.find('\n')), " could not compile k.cpp:");
  EXPECT_CONTAINS(message, "kernels/k.cpp:3:");
  EXPECT_CONTAINS(message, "undefined_name");
}

TEST(CompileHost, UnknownEntry) {
  const std::string message = message_of(
      ErrorKind::Compile, [] { compile_host(request("void scale(float* y) {}", "scael")); });
  EXPECT_EQ(message.substr(0, message.find('\n')),
            "entry 'scael' names no function of toy.cpp: toy.cpp has scale; did you mean 'scale'?");
}

TEST(CompileHost, AnEntryThatNamesNoSingleFunctionIsAnsweredInOneLine) {
  const auto error = [](const std::string& source, const std::string& entry) {
    return message_of(ErrorKind::Compile, [&] { compile_host(request(source, entry)); });
  };
  const std::string scale = "template <class T>\nstatic inline void scale(T* y) {}";
  EXPECT_EQ(error(scale, "scale"),
            "entry 'scale' of toy.cpp is a template: give its arguments, as in "
            "entry=\"scale<{x.dtype}>\"");
  EXPECT_EQ(error("void k(float*) {}\nvoid k(double*) {}", "k"),
            "entry 'k' names 2 functions of toy.cpp: name one by its type, as in "
            "entry=\"(void (*)(const float*, float*, int))k\"");
  EXPECT_EQ(compile_host(request("void k(float*) {}\nvoid k(double*) {}", "(void (*)(double*))k"))
                ->params.at(0)
                .pointee,
            "double");
  const std::string wrong = error(scale, "scale<float, 3>");
  EXPECT_CONTAINS(wrong, "entry 'scale<float, 3>' names no function of toy.cpp: ");
  EXPECT_CONTAINS(wrong, " says \"");
  EXPECT_CONTAINS(wrong, "toy.cpp has scale; write the entry as C++ would name one function");
  EXPECT_LACKS(wrong, "\n");
  EXPECT_EQ(error("struct k {};", "k"),
            "entry 'k' names no function of toy.cpp: no function returning void was found");
  EXPECT_LACKS(error("void scale(float* y) {}", "scael"), "\n");
}

TEST(CompileHost, VectorInstructionsWithoutTheirOptionAreExplained) {
#if defined(__x86_64__)
  const std::string source =
      "#include <immintrin.h>\n"
      "void k(float* y) { _mm256_storeu_ps(y, _mm256_loadu_ps(y)); }";
  EXPECT_CONTAINS(message_of(ErrorKind::Compile, [&] { compile_host(request(source, "k")); }),
                  "vector instructions need their option, such as options=[\"-mavx2\"");
#endif
}

TEST(CompileHost, ResultsAndReferencesAreRefused) {
  EXPECT_CONTAINS(message_of(ErrorKind::Compile,
                             [] { compile_host(request("int k(float* y) { return 1; }", "k")); }),
                  "opaq: the entry returns a value; expected void");
  EXPECT_CONTAINS(
      message_of(ErrorKind::Compile, [] { compile_host(request("void k(const int& n) {}", "k")); }),
      "opaq: a parameter of the entry is a reference");
}

TEST(CompileHost, UndefinedSymbolIsAnErrorAtLoad) {
  const std::string message = message_of(ErrorKind::Compile, [] {
    compile_host(
        request("extern \"C\" void not_in_any_library(); void k() { not_in_any_library(); }", "k"));
  });
  EXPECT_CONTAINS(
      message,
      "the library compiled from toy.cpp cannot be loaded: undefined symbol: not_in_any_library");
}

TEST(CompileHost, HeadersBesideTheFileOptionsAndIncludeFolders) {
  TemporaryFolder folder;
  const std::string file = folder.write("src/k.cpp", "");
  folder.write("src/beside.h", "inline int beside() { return 1; }");
  folder.write("inc/apart.h", "inline int apart() { return 20; }");
  HostRequest r = request(
      "#include \"beside.h\"\n#include <apart.h>\nvoid k(int* y) { *y = beside() + apart() + "
      "EXTRA; }",
      "k", file);
  r.include_dirs = {folder.path + "/inc"};
  r.options = {"-DEXTRA=300"};
  int y = 0;
  call(*compile_host(r), &y);
  EXPECT_EQ(y, 321);

  folder.write("src/beside.h", "inline int beside() { return 2; }");
  call(*compile_host(r), &y);
  EXPECT_EQ(y, 322);
}

TEST(CompileHost, DigestOfSourcesTakesInHeadersAndOptionsButNoEntry) {
  TemporaryFolder folder;
  folder.write("own.h", "#define K 2\n");
  HostRequest r = request("#include \"own.h\"\nvoid f(int* x) { *x = K; }", "f");
  r.include_dirs = {folder.path};
  const std::string before = opaq::source_digest(r).digest;
  r.entry = "g";
  EXPECT_EQ(opaq::source_digest(r).digest, before);
  r.entry = "f";
  EXPECT_EQ(compile_host(r)->sources, before);
  folder.write("own.h", "#define K 3\n#if __has_include(\"later.h\")\n#endif\n");
  const std::string edited = opaq::source_digest(r).digest;
  EXPECT_NE(edited, before);
  EXPECT_EQ(compile_host(r)->sources, edited);
  folder.write("later.h", "");
  EXPECT_NE(opaq::source_digest(r).digest, edited);
  r.options = {"-DX"};
  EXPECT_NE(opaq::source_digest(r).digest, edited);
  EXPECT_EQ(opaq::source_digest(r).unknown, "");
  r.source = "#define NAME \"own.h\"\n#include NAME\n";
  EXPECT_EQ(opaq::source_digest(r).unknown, "toy.cpp: #include NAME");
}

TEST(CompileHost, ManyLibrariesDoNotTakeEachOthersPlace) {
  for (int i = 0; i < 5; ++i) {
    int y = 0;
    call(*compile_host(request("void k(int* y) { *y = " + std::to_string(i) + "; }", "k")), &y);
    EXPECT_EQ(y, i);
  }
}

TEST(CompileHost, SameRequestIsCompiledOnceAndSharedByThreads) {
  const auto before = opaq::compile_stats();
  const HostRequest r = request("void once(int* y) { *y = 42; }", "once");
  constexpr int kThreads = 4;
  std::barrier start(kThreads);
  std::vector<std::shared_ptr<const opaq::HostFunction>> functions(kThreads);
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        start.arrive_and_wait();
        functions[i] = compile_host(r);
      });
    }
  }
  for (const auto& function : functions) EXPECT_EQ(function, functions[0]);
  EXPECT_EQ(compile_host(r), functions[0]);
  EXPECT_EQ(opaq::compile_stats().compiled - before.compiled, 1);
}

// Another process finds what this one compiled. A fork before anything of the kind was compiled
// stands for it.
TEST(CompileHost, AnotherProcessTakesItFromDisk) {
  const HostRequest r = request("#include <cmath>\nvoid root(double* y) { *y = std::sqrt(*y) + " +
                                    std::to_string(getpid()) + "; }",
                                "root");
  for (const bool expect_hit : {false, true}) {
    const pid_t child = fork();
    if (child == 0) {
      int code = 1;
      try {
        const auto function = compile_host(r);
        double y = 9;
        call(*function, &y);
        code = function->from_cache == expect_hit &&
                       y == 3.0 + std::stod(r.source.substr(r.source.find("+ ") + 2))
                   ? 0
                   : 2;
      } catch (...) {
      }
      _exit(code);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(WEXITSTATUS(status), 0) << (expect_hit ? "second process" : "first process");
  }
}

int work_folders() {
  int n = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(opaq_test::cache_folder.path + "/cache"))
    n += entry.path().filename().string().starts_with(".opaq-work-") ? 1 : 0;
  return n;
}

TEST(CompileHost, NoTemporaryFilesStay) {
  compile_host(request("void clean(int* y) { *y = 5; }", "clean"));
  EXPECT_THROW(compile_host(request("broken", "clean")), opaq::Error);
  EXPECT_EQ(work_folders(), 0);
}

TEST(CompileHost, WhatADeadOwnerLeftIsRemovedAndWhatALivingOneUsesIsNot) {
  compile_host(request("void before(int* y) { *y = 5; }", "before"));
  const std::string dead = opaq_test::cache_folder.path + "/cache/.opaq-work-dead",
                    living = opaq_test::cache_folder.path + "/cache/.opaq-work-living";
  std::filesystem::create_directories(dead + "/inner");
  std::filesystem::create_directories(living);
  const int owner = open(living.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_EQ(flock(owner, LOCK_EX | LOCK_NB), 0);
  compile_host(request("void after(int* y) { *y = 6; }", "after"));
  EXPECT_FALSE(std::filesystem::exists(dead));
  EXPECT_TRUE(std::filesystem::exists(living));
  close(owner);
  compile_host(request("void last(int* y) { *y = 7; }", "last"));
  EXPECT_FALSE(std::filesystem::exists(living));
}

}  // namespace
