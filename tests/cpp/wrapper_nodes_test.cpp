// Nodes that C++ wrappers register: names, counts, unloading, threads, and the layout of the struct
// in generated code.
#include "registry/wrapper_nodes.h"

#include <gtest/gtest.h>

#include <barrier>
#include <string>
#include <thread>
#include <vector>

#include "../../runtime/wrapper/prelude/nodes.h"
#include "../../runtime/wrapper/prelude/timers.h"

namespace opaq {
namespace {

using standalone::CallTimer;
using standalone::Counter;

// The contents of a loaded wrapper: a label with its own address, and nodes, which are registered
// as long as this object exists.
struct Wrapper {
  std::string label;
  const char* names[2] = {"cpu:even", "cpu"};
  Counter first_calls[3], second_calls[3];
  const WrapperNode first{label.c_str(),
                          "op0",
                          "mylib::scale",
                          "cpu",
                          "checked at each launch: x.size(0) % 2 == 0",
                          names,
                          first_calls,
                          2};
  const WrapperNode second{label.c_str(), "op1", "mylib::scale", "cpu", "", names, second_calls, 2};

  explicit Wrapper(const std::string& name) : label(name) {
    add_wrapper_node(first);
    add_wrapper_node(second);
  }
  ~Wrapper() {
    remove_wrapper_node(second);
    remove_wrapper_node(first);
  }
};

std::vector<std::string> graphs() {
  std::vector<std::string> names;
  for (const WrapperNodeFacts& node : wrapper_nodes()) names.push_back(node.graph);
  return names;
}

TEST(WrapperNodes, AreListedWithTheirCallsByImplementation) {
  Wrapper wrapper("counts");
  for (int i = 0; i < 3; ++i) wrapper.first_calls[0].add();
  wrapper.first_calls[2].add();
  for (int i = 0; i < 2; ++i) wrapper.second_calls[1].add();
  const std::vector<WrapperNodeFacts> nodes = wrapper_nodes();
  ASSERT_EQ(nodes.size(), 2u);
  EXPECT_EQ(nodes[0].graph, "counts");
  EXPECT_EQ(nodes[0].node, "op0");
  EXPECT_EQ(nodes[0].op, "mylib::scale");
  EXPECT_EQ(nodes[0].device, "cpu");
  EXPECT_EQ(nodes[0].reason, "checked at each launch: x.size(0) % 2 == 0");
  EXPECT_EQ(nodes[0].implementations, (std::vector<std::string>{"cpu:even", "cpu"}));
  EXPECT_EQ(nodes[0].calls, (std::vector<int64_t>{3, 0, 1}));
  EXPECT_EQ(nodes[1].node, "op1");
  EXPECT_EQ(nodes[1].calls, (std::vector<int64_t>{0, 2, 0}));
}

TEST(WrapperNodes, GraphsOfOneLabelHaveNamesOfTheirOwn) {
  EXPECT_EQ(unique_graph_name("model"), "model");  // a Python wrapper's
  Wrapper first("model"), second("model");
  EXPECT_EQ(graphs(),
            (std::vector<std::string>{"model (2)", "model (2)", "model (3)", "model (3)"}));
  EXPECT_EQ(unique_graph_name("model"), "model (4)");
}

TEST(WrapperNodes, LeaveWithTheirWrapper) {
  Wrapper stays("stays");
  {
    Wrapper unloaded("unloaded");
    EXPECT_EQ(wrapper_nodes().size(), 4u);
  }
  EXPECT_EQ(graphs(), (std::vector<std::string>{"stays", "stays"}));
  Wrapper again("unloaded");
  EXPECT_EQ(graphs().back(), "unloaded (2)");
}

TEST(WrapperNodes, AreCountedLoadedUnloadedAndReadByThreadsAtOnce) {
  constexpr int kThreads = 4, kCalls = 2000;
  Wrapper shared("shared");
  std::barrier start(kThreads + 1);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      start.arrive_and_wait();
      for (int i = 0; i < kCalls; ++i) {
        shared.first_calls[0].add();
        if (i % 100 == 0) Wrapper own("own");
      }
    });
  }
  start.arrive_and_wait();
  int64_t last = 0;
  for (int i = 0; i < 200; ++i) {
    for (const WrapperNodeFacts& node : wrapper_nodes()) {
      if (node.graph != "shared" || node.node != "op0") continue;
      EXPECT_GE(node.calls[0], last);
      last = node.calls[0];
    }
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<WrapperNodeFacts> nodes = wrapper_nodes();
  ASSERT_EQ(nodes.size(), 2u);
  EXPECT_EQ(nodes[0].calls[0], kThreads * kCalls);
  EXPECT_EQ(unique_graph_name("own"), "own (" + std::to_string(kThreads * kCalls / 100 + 1) + ")");
}

TEST(WrapperNodes, HaveTheTimesOfTheirTimers) {
  Wrapper wrapper("timed");
  CallTimer timers[2];
  const NodeTimers of_second{wrapper.label.c_str(), "op1", timers};
  add_node_timers(of_second);
  timers[1].add(CallTimer::now());  // the first call
  const int64_t begun = CallTimer::now();
  timers[1].add(begun);
  std::vector<WrapperNodeFacts> nodes = wrapper_nodes();
  EXPECT_TRUE(nodes.at(0).timed_calls.empty());
  EXPECT_EQ(nodes.at(1).timed_calls, (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(nodes.at(1).nanoseconds, (std::vector<int64_t>{0, timers[1].nanoseconds()}));
  remove_node_timers(of_second);
  EXPECT_TRUE(wrapper_nodes().at(1).timed_calls.empty());
}

TEST(CallTimer, LeavesOutTheFirstCallAndThoseThatBeganBeforeItEnded) {
  CallTimer timer;
  const int64_t early = CallTimer::now();
  timer.add(early - 1'000'000'000);  // loads code
  timer.add(early);
  EXPECT_EQ(timer.calls(), 0);
  const int64_t begun = CallTimer::now();
  while (CallTimer::now() < begun + 100'000) {
  }
  timer.add(begun);
  timer.add(CallTimer::now());
  EXPECT_EQ(timer.calls(), 2);
  EXPECT_GE(timer.nanoseconds(), 100'000);
  EXPECT_LT(timer.nanoseconds(), 1'000'000'000);
}

TEST(CallTimer, AddsUpTheCallsOfThreads) {
  constexpr int kThreads = 4, kCalls = 2000;
  CallTimer timer;
  timer.add(CallTimer::now());
  std::barrier start(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      start.arrive_and_wait();
      for (int i = 0; i < kCalls; ++i) timer.add(CallTimer::now());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(timer.calls(), kThreads * kCalls);
}

// ---- what generated code holds ------------------------------------------------------------------

TEST(WrapperNodes,
     OfGeneratedCodeDoWithoutTheRuntime) {  // this program has no module opaq._runtime
  opaq_node<2> node("graph", "op0", "mylib::scale", "cpu", {"cpu:even", "cpu"}, "");
  node.calls[1].add();
  std::thread([&] { node.calls[1].add(); }).join();
  EXPECT_EQ(node.calls[1].total(), 2);
  opaq_node_timers<2> timers("graph", "op0");
  for (int i = 0; i < 2; ++i) timers.by_implementation[0].add(CallTimer::now());
  EXPECT_EQ(timers.by_implementation[0].calls(), 1);
  EXPECT_TRUE(wrapper_nodes().empty());
}

}  // namespace
}  // namespace opaq
