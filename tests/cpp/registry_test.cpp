// The registry: declaring twice, the order of implementations, and many threads.
#include "registry/registry.h"

#include <gtest/gtest.h>

#include <barrier>
#include <thread>

#include "kinds/kind.h"
#include "refusal.h"

namespace opaq {
namespace {

// Tests share the process's registry: each declares names of its own.
OpSpec spec(const std::string& name, const char* dtype = "x.dtype",
            const char* arguments = "Tensor x, int n") {
  return make_op(name + "(" + arguments + ") -> (Tensor y)", {{.like = "x", .dtype = dtype}});
}

Implementation implementation(const Op& op, const std::string& name, int priority = 0,
                              const char* grid = "n") {
  ImplementationText text;
  text.name = name;
  text.device = "cuda";
  text.kind = "source";
  text.code = "__global__ void f(float* y, const float* x) {}";
  text.entry = "f";
  text.grid = grid;
  text.args = "y, x";
  text.priority = priority;
  return make_implementation(op.spec(), text);
}

std::vector<std::string> names(const Op& op) {
  std::vector<std::string> out;
  for (const auto& item : op.implementations()) out.push_back(item->name);
  return out;
}

using Names = std::vector<std::string>;

TEST(Registry, TheSameDeclarationIsTheSameOp) {
  Op& op = declare(spec("registry::same"));
  EXPECT_EQ(&declare(spec("registry::same")), &op);
  EXPECT_EQ(op.name(), "registry::same");
  EXPECT_EQ(find_op("registry::same"), &op);
  EXPECT_EQ(&get_op("registry::same"), &op);
  EXPECT_EQ(find_op("registry::sam"), nullptr);
}

TEST(Registry, AnUnknownOpIsAnsweredWithTheNearest) {
  declare(spec("registry::rms_norm"));
  EXPECT_EQ(refusal([] { get_op("registry::rmsnorm"); }),
            "no op is named 'registry::rmsnorm'; did you mean 'registry::rms_norm'?");
  EXPECT_EQ(refusal([] { get_op("zzz"); }),
            "no op is named 'zzz'; declare it with opaq.op(\"zzz(...) -> ...\")");
}

TEST(Registry, APreferenceComesBeforePriority) {
  Op& op = declare(spec("registry::preferred"));
  for (const auto& [name, priority] :
       {std::pair{"cuda", 0}, {"library", 3}, {"cuda:vec4", 1}, {"cublaslt", 0}})
    op.add(implementation(op, name, priority));
  const Names by_priority = {"library", "cuda:vec4", "cuda", "cublaslt"};
  EXPECT_EQ(names(op), by_priority);
  const std::string hash = op.hash();
  op.prefer({"cublaslt", "cuda"});
  EXPECT_EQ(names(op), (Names{"cublaslt", "cuda:vec4", "cuda", "library"}));
  EXPECT_NE(op.hash(), hash);
  op.add(implementation(op, "cuda:vec8", 2));
  EXPECT_EQ(names(op), (Names{"cublaslt", "cuda:vec8", "cuda:vec4", "cuda", "library"}));
  op.prefer({});
  EXPECT_EQ(names(op), (Names{"library", "cuda:vec8", "cuda:vec4", "cuda", "cublaslt"}));
}

TEST(Registry, OpsAreListedByName) {
  declare(spec("registry_list::b"));
  declare(spec("registry_list::c"));
  declare(spec("registry_list::a"));
  Names listed;
  for (const Op* op : all_ops()) {
    if (op->name().starts_with("registry_list::")) listed.push_back(op->name());
  }
  EXPECT_EQ(listed, (Names{"registry_list::a", "registry_list::b", "registry_list::c"}));
}

TEST(Registry, ADifferentRuleNeedsReplace) {
  Op& before = declare(spec("registry::rule"));
  before.add(implementation(before, "cuda"));
  EXPECT_EQ(
      refusal([] { declare(spec("registry::rule", "float32")); }),
      "registry::rule is already declared, and differs:\n"
      "  schema: registry::rule(Tensor x, int n) -> (Tensor y)\n"
      "  output 'y': 'shape [x.shape], dtype x.dtype, strides contiguous, device of x' before, "
      "'shape [x.shape], dtype float32, strides contiguous, device of x' now\n"
      "Pass replace=True to take the new one");
  Op& now = declare(spec("registry::rule", "float32"), /*replace=*/true);
  EXPECT_NE(&now, &before);
  EXPECT_TRUE(now.implementations().empty());
  EXPECT_EQ(find_op("registry::rule"), &now);
  EXPECT_EQ(names(before), Names{"cuda"});  // what was compiled against it still finds it whole
  EXPECT_EQ(now.spec().outputs[0].dtype.text(), "float32");
}

TEST(Registry, ReplaceStartsAnewEvenWhenNothingChanged) {
  Op& before = declare(spec("registry::again"));
  before.add(implementation(before, "cuda"));
  Op& now = declare(spec("registry::again"), /*replace=*/true);
  EXPECT_NE(&now, &before);
  EXPECT_TRUE(now.implementations().empty());
}

TEST(Registry, ASchemaIsForTheLifeOfTheProcess) {
  declare(spec("registry::schema"));
  const auto other = [] {
    return spec("registry::schema", "x.dtype", "Tensor x, int n, float eps");
  };
  const std::string both =
      "\n  before: registry::schema(Tensor x, int n) -> (Tensor y)"
      "\n  now:    registry::schema(Tensor x, int n, float eps) -> (Tensor y)";
  EXPECT_EQ(refusal([&] { declare(other()); }),
            "registry::schema is already declared, and differs:" + both +
                "\nPyTorch keeps a schema for the life of the process, so that replace=True cannot "
                "change it; choose another name or start the "
                "process anew");
  EXPECT_EQ(
      refusal([&] { declare(other(), true); }),
      "registry::schema is already declared with another schema, which PyTorch keeps for the life "
      "of the process:" +
          both +
          "\nreplace=True cannot change a schema; choose another name or start the process anew");
}

TEST(Op, ImplementationsStandByPriorityThenDeclaration) {
  Op op(spec("m::order"));
  op.add(implementation(op, "cuda"));
  op.add(implementation(op, "cuda:slow", -1));
  op.add(implementation(op, "cuda:fast", 5));
  op.add(implementation(op, "cuda:2"));
  EXPECT_EQ(names(op), (Names{"cuda:fast", "cuda", "cuda:2", "cuda:slow"}));
}

TEST(Op, TheSameImplementationAgainChangesNothing) {
  Op op(spec("m::same"));
  op.add(implementation(op, "cuda"));
  const Implementations* list = &op.implementations();
  op.add(implementation(op, "cuda"));
  op.add(implementation(op, "cuda"), /*replace=*/true);
  EXPECT_EQ(&op.implementations(), list);
}

TEST(Op, ADifferentImplementationOfTheSameNameNeedsReplace) {
  Op op(spec("m::other"));
  op.add(implementation(op, "cuda:first"));
  op.add(implementation(op, "cuda"));
  const Implementations& before = op.implementations();
  Implementation changed = implementation(op, "cuda:first", 0, "n * 2");
  EXPECT_EQ(refusal([&] { op.add(changed); }),
            "m::other: implementation 'cuda:first' is already declared, and differs:\n"
            "  grid: 'n, 1, 1' before, 'n * 2, 1, 1' now\n"
            "To take the new one, declare the op anew with opaq.op(..., replace=True) and its "
            "implementations after it; to have both, give this one "
            "a name of its own, such as name='cuda:first:2'");
  op.add(changed, /*replace=*/true);
  EXPECT_EQ(names(op), (Names{"cuda:first", "cuda"}));  // its place is kept
  EXPECT_EQ(op.implementations()[0]->launch.grid[0].text(), "n * 2");
  EXPECT_EQ(before[0]->launch.grid[0].text(), "n");  // a list in use is never changed
}

TEST(Op, ADifferenceInCodeShowsSizesNotTheCode) {
  Op op(spec("m::code"));
  op.add(implementation(op, "cuda"));
  Implementation changed = implementation(op, "cuda");
  changed.code += "// one more line\n";
  changed.hash = "changed";
  const std::string message = refusal([&] { op.add(changed); });
  EXPECT_NE(message.find("\n  code: '46 bytes, SHA-256 "), std::string::npos) << message;
  EXPECT_EQ(message.find("__global__"), std::string::npos) << message;
}

TEST(Op, AnEditedFileNeedsNoReplace) {
  Op& op = declare(spec("registry::edited"));
  Implementation before = implementation(op, "cuda"), now = implementation(op, "cuda");
  before.file = now.file = "/kernels/k.cu";
  now.code += " // edited";
  now.hash = "edited";
  op.add(before);
  op.add(now);
  EXPECT_EQ(op.implementations().at(0)->code, now.code);

  Implementation elsewhere = before;  // the same name in another folder
  elsewhere.file = "/other/k.cu";
  EXPECT_NE(refusal([&] { op.add(elsewhere); }).find("file: '/kernels/k.cu' before"),
            std::string::npos);
  Implementation other_rule = before;
  other_rule.priority = 3;
  EXPECT_NE(refusal([&] { op.add(other_rule); }).find("priority: '0' before, '3' now"),
            std::string::npos);
}

TEST(Op, HashSeesImplementationsAndExtensions) {
  Op op(spec("m::hash"));
  const std::string empty = op.hash();
  EXPECT_EQ(empty.size(), 64u);
  op.add(implementation(op, "cuda"));
  const std::string one = op.hash();
  EXPECT_NE(one, empty);
  op.add(implementation(op, "cuda", 0, "n * 2"), true);
  EXPECT_NE(op.hash(), one);
  op.add(implementation(op, "cuda"), true);
  EXPECT_EQ(op.hash(), one);

  op.extend_hash("reference", "r");
  op.extend_hash("backward", "b");
  const std::string extended = op.hash();
  EXPECT_NE(extended, one);
  op.extend_hash("backward", "changed");
  EXPECT_NE(op.hash(), extended);
  op.extend_hash("backward", "b");
  EXPECT_EQ(op.hash(), extended);

  Op same(spec("m::hash"));  // the same in another order, and in another process
  same.extend_hash("backward", "b");
  same.extend_hash("reference", "r");
  same.add(implementation(same, "cuda"));
  EXPECT_EQ(same.hash(), extended);
  EXPECT_NE(Op(spec("m::hash", "float32")).hash(), empty);
}

TEST(Registry, RenewingAnImplementationMakesItAnotherObjectInItsPlace) {
  Op op(spec("m::renew"));
  op.add(implementation(op, "cuda"));
  op.add(implementation(op, "cuda:low", -1));
  const auto before = op.implementations();
  const std::string hash = op.hash();
  op.renew("no such name");
  EXPECT_EQ(op.implementations()[0], before[0]);
  op.renew("cuda");
  EXPECT_NE(op.implementations()[0], before[0]);
  EXPECT_EQ(op.implementations()[0]->hash, before[0]->hash);
  EXPECT_EQ(op.implementations()[1], before[1]);
  EXPECT_EQ(op.hash(), hash);
}

// ---- threads ------------------------------------------------------------------------------------

template <class F>
void on_threads(int count, F work) {
  std::barrier start(count);
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      start.arrive_and_wait();
      work(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

constexpr int kThreads = 8;

TEST(Threads, OneNameDeclaredByAllIsOneOp) {
  std::vector<Op*> ops(kThreads);
  on_threads(kThreads,
             [&](int i) { ops[static_cast<size_t>(i)] = &declare(spec("registry_threads::one")); });
  for (const Op* op : ops) EXPECT_EQ(op, ops[0]);
}

TEST(Threads, NamesAreFoundWhileOthersAreDeclared) {
  constexpr int kEach = 20;
  const auto name = [](int thread, int i) {
    return "registry_threads::op_" + std::to_string(thread) + "_" + std::to_string(i);
  };
  on_threads(kThreads, [&](int thread) {
    for (int i = 0; i < kEach; ++i) {
      Op& op = declare(spec(name(thread, i)));
      EXPECT_EQ(find_op(name(thread, i)), &op);
      const Op* other = find_op(name((thread + 1) % kThreads, i));
      EXPECT_TRUE(!other || other->name() == name((thread + 1) % kThreads, i));
    }
  });
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int i = 0; i < kEach; ++i) EXPECT_NE(find_op(name(thread, i)), nullptr);
  }
}

TEST(Threads, ReadersSeeWholeListsWhileWritersAdd) {
  Op& op = declare(spec("registry_threads::add"));
  constexpr int kWriters = 4, kEach = 10;
  std::atomic<int> writing{kWriters};
  on_threads(kThreads, [&](int thread) {
    if (thread < kWriters) {
      for (int i = 0; i < kEach; ++i)
        op.add(implementation(op, "cuda:" + std::to_string(thread * kEach + i), i));
      op.extend_hash("writer" + std::to_string(thread), "done");
      --writing;
      return;
    }
    size_t seen = 0;
    do {
      const Implementations& list = op.implementations();
      EXPECT_GE(list.size(), seen);
      seen = list.size();
      for (size_t i = 1; i < list.size(); ++i) EXPECT_GE(list[i - 1]->priority, list[i]->priority);
      EXPECT_EQ(op.hash().size(), 64u);
    } while (writing > 0);
  });
  EXPECT_EQ(op.implementations().size(), static_cast<size_t>(kWriters * kEach));
}

TEST(Threads, ReplacingAnOpLeavesReadersWithAWholeOne) {
  declare(spec("registry_threads::replaced"));
  on_threads(kThreads, [&](int thread) {
    for (int i = 0; i < 10; ++i) {
      if (thread % 2 == 0) {
        Op& op = declare(spec("registry_threads::replaced"), /*replace=*/true);
        op.add(implementation(op, "cuda"));
      } else {
        const Op& op = get_op("registry_threads::replaced");
        EXPECT_LE(op.implementations().size(), 1u);
        EXPECT_EQ(op.spec().schema.args.size(), 2u);
      }
    }
  });
}

}  // namespace
}  // namespace opaq
