// Compilations that are interrupted, forked from, or that crash.
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/settings.h"
#include "base/wait.h"
#include "image_test.h"

using opaq::compile_host;
using opaq::ErrorKind;
using opaq::HostRequest;
using opaq_test::message_of;

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

std::atomic<bool> asked_to_stop{false};
std::thread::id stoppable;  // signals interrupt one thread only

// Takes the compiler at least a second: a hundred thousand templates.
HostRequest slow(const std::string& name) {
  HostRequest r;
  r.source = "// " + name + " " + std::to_string(getpid()) + R"(
template <int N, int M> struct A {
  static constexpr long v = A<N - 1, 2 * M>::v + A<N - 1, 2 * M + 1>::v;
};
template <int M> struct A<0, M> { static constexpr long v = M; };
void k(long* y) { *y = A<15, 1>::v; })";
  r.entry = "k";
  r.file = "slow.cpp";
  return r;
}

long call(const opaq::HostFunction& function) {
  long value = 0, *address = &value;
  void* arguments[] = {&address};
  function.invoke(arguments);
  return value;
}

constexpr long kValue = 1610596352;  // the sum of 32768 ... 65535

class LifeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    stoppable = std::this_thread::get_id();
    asked_to_stop = false;
    opaq::set_wait_hooks(
        {nullptr, [] { return asked_to_stop.load() && std::this_thread::get_id() == stoppable; },
         nullptr});
  }
  void TearDown() override { opaq::set_wait_hooks({}); }
};

TEST_F(LifeTest, AnInterruptStopsTheCompilerAtOnceAndTheNextCallCompilesAgain) {
  std::jthread signal([] {
    std::this_thread::sleep_for(200ms);
    asked_to_stop = true;
  });
  const HostRequest r = slow("interrupted");
  const auto start = Clock::now();
  EXPECT_THROW(compile_host(r), opaq::Interrupted);
  EXPECT_LT(Clock::now() - start, 5s);
  signal.join();
  asked_to_stop = false;
  EXPECT_EQ(call(*compile_host(r)), kValue);
}

TEST_F(LifeTest, AThreadThatWaitsForAnInterruptedOneTakesOver) {
  const HostRequest r = slow("taken over");
  std::jthread other([&] {
    std::this_thread::sleep_for(100ms);
    EXPECT_EQ(call(*compile_host(r)), kValue);
  });
  std::jthread signal([] {
    std::this_thread::sleep_for(400ms);
    asked_to_stop = true;
  });
  EXPECT_THROW(compile_host(r), opaq::Interrupted);
}

TEST_F(LifeTest, AWaitForAnotherThreadIsInterruptedToo) {
  const HostRequest r = slow("waited for");
  std::jthread other([&] { EXPECT_EQ(call(*compile_host(r)), kValue); });
  std::this_thread::sleep_for(200ms);
  asked_to_stop = true;
  EXPECT_THROW(compile_host(r), opaq::Interrupted);
}

TEST_F(LifeTest, AChildForkedWhileAThreadCompilesCompilesForItself) {
  const HostRequest r = slow("forked from");
  std::jthread other([&] { EXPECT_EQ(call(*compile_host(r)), kValue); });
  std::this_thread::sleep_for(200ms);
  const pid_t child = fork();
  if (child == 0) _exit(call(*compile_host(r)) == kValue ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST_F(LifeTest, ACompilerThatCrashesIsAnError) {
  HostRequest r;
  r.source = "void k() {}";
  r.entry = "k";
  r.file = "k.cpp";
  const std::string before = opaq::settings().compile_helper;
  opaq_test::TemporaryFolder folder;
  opaq::settings().compile_helper = folder.write("crashes", "#!/bin/sh\nkill -SEGV $$\n");
  std::filesystem::permissions(opaq::settings().compile_helper, std::filesystem::perms::owner_all);
  EXPECT_CONTAINS(message_of(ErrorKind::Compile, [&] { compile_host(r); }),
                  "the compiler ended without a result: signal 11");
  opaq::settings().compile_helper = folder.path + "/absent";
  const std::string message = message_of(ErrorKind::Missing, [&] { compile_host(r); });
  EXPECT_CONTAINS(message, "opaq's compile helper " + folder.path +
                               "/absent cannot be started: No such file or directory");
  EXPECT_CONTAINS(message, "OPAQ_COMPILE_HELPER");
  opaq::settings().compile_helper = before;
  EXPECT_NE(compile_host(r)->invoke, nullptr);
}

}  // namespace
