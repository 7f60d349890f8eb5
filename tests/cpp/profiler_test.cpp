// Launches as events of a profiler, which stands here for PyTorch's.
#include "call/profiler.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "registry/registry.h"
#include "spec/spec.h"

namespace opaq {
namespace {

struct Recorded {
  std::string name;
  std::map<std::string, std::string> facts;
  bool ended = false;
};

bool is_on = true, refuses = false;
int texts = 0;  // that exist
std::vector<Recorded> events;

const Profiler kRecorder = {
    [] { return is_on; },
    {[](const char* name, void* facts, void** event) -> int32_t {
       if (refuses) return 1;
       Recorded& recorded = events.emplace_back(Recorded{name, {}, false});
       for (const auto& [key, text] : *static_cast<std::unordered_map<std::string, void*>*>(facts))
         recorded.facts[key] = *static_cast<std::string*>(text);
       *event = reinterpret_cast<void*>(events.size());
       return 0;
     },
     [](void* event) -> int32_t {
       events.at(reinterpret_cast<size_t>(event) - 1).ended = true;
       return 0;
     },
     [](const char* text, void** value) -> int32_t {
       ++texts;
       *value = new std::string(text);
       return 0;
     },
     [](void* value) -> int32_t {
       --texts;
       delete static_cast<std::string*>(value);
       return 0;
     }}};

class ProfilerTest : public testing::Test {
 protected:
  ProfilerTest() {
    is_on = true;
    refuses = false;
    events.clear();
    profile_with(kRecorder);
  }
  ~ProfilerTest() override {
    profile_with({});
    EXPECT_EQ(texts, 0);
  }
  const Op op_{make_op("profiler_test::f(Tensor x) -> Tensor", {OutputText{.like = "x"}})};
};

TEST_F(ProfilerTest, AnEventHasTheNameOfTheOpAndWhatServedIt) {
  {
    const LaunchEvent event(op_, nullptr, {"model__0", "op3"});
    ASSERT_EQ(events.size(), 1u);
    EXPECT_FALSE(events[0].ended);
  }
  EXPECT_TRUE(events[0].ended);
  EXPECT_EQ(events[0].name, "opaq::profiler_test::f");
  EXPECT_EQ(events[0].facts,
            (std::map<std::string, std::string>{
                {"implementation", "reference"}, {"graph", "model__0"}, {"node", "op3"}}));
  {
    const LaunchEvent outside_of_graphs(op_, nullptr, {});
  }
  EXPECT_EQ(events[1].facts, (std::map<std::string, std::string>{{"implementation", "reference"}}));
}

TEST_F(ProfilerTest, NothingIsRecordedWhileNoProfilerIsOn) {
  is_on = false;
  EXPECT_FALSE(profiler_is_on());
  {
    const LaunchEvent event(op_, nullptr, {});
  }
  EXPECT_TRUE(events.empty());
  profile_with({});
  EXPECT_FALSE(profiler_is_on());
}

TEST_F(ProfilerTest, AnEventThatCannotBeginHasNoEnd) {
  refuses = true;
  {
    const LaunchEvent event(op_, nullptr, {"model__0", "op3"});
  }
  EXPECT_TRUE(events.empty());
}

TEST_F(ProfilerTest, FormsOfAnOpAreCalledAsItIs) {
  EXPECT_EQ(event_name("profiler_test::sgd[3, 3]"), "opaq::profiler_test::sgd");
}

}  // namespace
}  // namespace opaq
