#include "standalone/counter.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace opaq {
namespace {

using standalone::Counter;

TEST(Counter, CountsCallsOfOneThread) {
  Counter counter;
  EXPECT_EQ(counter.total(), 0);
  for (int i = 0; i < 5; ++i) counter.add();
  EXPECT_EQ(counter.total(), 5);
}

TEST(Counter, LosesNothingWhenThreadsCountAtOnce) {
  constexpr int kThreads = 8, kCalls = 20000;
  Counter counter;
  counter.add();
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kCalls; ++i) counter.add();
    });
  }
  for (int i = 0; i < kCalls; ++i) counter.add();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter.total(), 1 + (kThreads + 1) * kCalls);
}

TEST(Counter, GoesOnWhenItsFirstThreadIsGone) {
  Counter counter;
  for (int t = 0; t < 50; ++t)
    std::thread([&] {
      counter.add();
    }).join();  // where the system reuses an address, a later thread takes its place
  counter.add();
  EXPECT_EQ(counter.total(), 51);
}

TEST(Counter, TotalsNeverFallWhileThreadsCount) {
  Counter counter;
  std::atomic<bool> done{false};
  std::thread reader([&] {
    for (int64_t last = 0; !done;) {
      const int64_t now = counter.total();
      EXPECT_GE(now, last);
      last = now;
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20000; ++i) counter.add();
    });
  }
  for (std::thread& thread : threads) thread.join();
  done = true;
  reader.join();
  EXPECT_EQ(counter.total(), 60000);
}

}  // namespace
}  // namespace opaq
