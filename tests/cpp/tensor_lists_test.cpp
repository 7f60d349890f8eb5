// Lists of tensors: their values in expressions and argument lists, and the forms of ops that take
// them.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "refusal.h"
#include "registry/lists.h"
#include "spec/argument_list.h"
#include "spec/expressions.h"

namespace opaq {
namespace {

// Of "t::f(Tensor[] xs, Tensor[] ys, int n) -> ()" with three and two tensors.
struct Lists {
  Schema schema = with_lengths(parse_schema("t::f(Tensor[] xs, Tensor[] ys, int n) -> ()"),
                               std::vector<int64_t>{3, 2});
  std::vector<Symbol> symbols;
  std::vector<Arg> args;
  int64_t sizes[5] = {5, 7, 3, 2, 2}, strides[1] = {1};

  Lists() {
    for (const ArgSpec& arg : schema.args) symbols.push_back({arg.name, arg.type});
    for (int i = 0; i < 5; ++i) {
      TensorView view;
      view.sizes = sizes + i;
      view.strides = strides;
      view.dim = 1;
      args.emplace_back(view);
    }
    args.push_back(Arg::of_int(10));
  }
  spec::Scope scope() const { return {schema, symbols, "t::f"}; }
  int64_t number(const std::string& text) const {
    return scope().one(text, "grid", {Type::Int}).eval_int(args.data());
  }
  bool truth(const std::string& text) const {
    return scope().one(text, "requires", {Type::Bool}).eval_bool(args.data());
  }
  std::vector<std::string> arguments(const std::string& text) const {
    std::vector<std::string> texts;
    for (const Argument& arg : spec::parse_arguments(text, scope())) {
      const auto printed = [](const Argument& one) {
        return one.form == Argument::Form::Value ? one.expr.print_python() : one.text;
      };
      texts.push_back(printed(arg));
      for (const Argument& item : arg.items) {
        texts.push_back(printed(item));
        for (const Argument& inner : item.items) texts.push_back(printed(inner));
      }
    }
    return texts;
  }
};

TEST(TensorLists, ItemsAreArguments) {
  const Lists lists;
  EXPECT_EQ(lists.schema.qualname(), "t::f[3, 2]");
  Texts names;
  for (const ArgSpec& arg : lists.schema.args) names.push_back(arg.name);
  EXPECT_EQ(names, (Texts{"xs_0", "xs_1", "xs_2", "ys_0", "ys_1", "n"}));
  EXPECT_EQ(lists.number("xs[1].numel()"), 7);
  EXPECT_EQ(lists.number("xs[-1].size(0) + n"), 13);
  EXPECT_EQ(lists.number("len(xs) * len(ys)"), 6);
}

TEST(TensorLists, ValuesOfAll) {
  const Lists lists;
  EXPECT_EQ(lists.number("sum(x.numel() for x in xs)"), 15);
  EXPECT_EQ(lists.number("max(ceil_div(x.numel(), 2) for x in xs) + 1"), 5);
  EXPECT_EQ(lists.number("min(x.numel() for x in xs)"), 3);
  EXPECT_EQ(lists.number("max(sum(x.numel() for x in xs), n)"), 15);
  EXPECT_EQ(lists.number("sum(sum(y.numel() for y in ys) + x.numel() for x in xs)"), 27);
  EXPECT_TRUE(lists.truth("all(x.numel() > 2 for x in xs)"));
  EXPECT_FALSE(lists.truth("all(x.numel() > 3 for x in xs)"));
  EXPECT_TRUE(lists.truth("any(x.numel() == 7 for x in xs) and n == 10"));
  EXPECT_TRUE(lists.truth("all(y.dtype == xs[0].dtype for y in ys)"));
  EXPECT_TRUE(lists.truth("all(a.numel() == b.numel() for a, b in zip(ys, ys))"));
}

TEST(TensorLists, EmptyListsAndLongOnes) {
  const Schema schema = parse_schema("t::f(Tensor[] xs) -> ()");
  const Schema none = with_lengths(schema, std::vector<int64_t>{0});
  const auto empty = [&](const char* text) { return parse(text, {}, "grid", none.lists); };
  EXPECT_EQ(empty("sum(x.numel() for x in xs) + len(xs)").eval_int(nullptr), 0);
  EXPECT_TRUE(empty("all(x.dim() == 1 for x in xs)").eval_bool(nullptr));
  EXPECT_FALSE(empty("any(x.dim() == 1 for x in xs)").eval_bool(nullptr));
  EXPECT_REFUSED(empty("max(x.numel() for x in xs)"), "max of no items");

  const Schema many = with_lengths(schema, std::vector<int64_t>{1000});
  std::vector<Symbol> symbols;
  for (const ArgSpec& arg : many.args) symbols.push_back({arg.name, arg.type});
  const int64_t size = 2, stride = 1;
  TensorView view;
  view.sizes = &size;
  view.strides = &stride;
  view.dim = 1;
  const std::vector<Arg> args(1000, Arg(view));
  EXPECT_EQ(parse("sum(x.numel() for x in xs)", symbols, "grid", many.lists).eval_int(args.data()),
            2000);
}

TEST(TensorLists, WrongUsesAreExplained) {
  const Lists lists;
  const auto says = [&](const std::string& text, const std::string& part) {
    EXPECT_REFUSED(lists.scope().one(text, "grid", {Type::Int, Type::Bool}), part);
  };
  says("xs", "'xs' is a list; take an item, xs[0], its length, len(xs), or a value");
  says("xs.numel()", "'xs' is a list; take an item, xs[0]");
  says("xs[3].numel()", "xs has 3 items");
  says("xs[n].numel()", "an item of a list is given by a constant, as in xs[0]");
  says("sum(x.numel() for x in n)", "expected a list of tensors");
  says("sum(x.numel() for x, y in xs)", "2 names for the items of 1 lists");
  says("sum(x.numel() for x, y in zip(xs, ys))", "xs and ys have different lengths, 3 and 2");
  says("abs(x.numel() for x in xs)", "'for' belongs in sum(...), min(...), max(...), all(...)");
  says("sum(x.dtype for x in xs)", "'+' takes int or float, found dtype");
  says("sum(z.numel() for x in xs)", "unknown name 'z'");
  says("sum(x.numel() for x in xs if n)", "an item cannot be left out by 'if'");
  says("sum(x.numel() for x in xs for y in ys)", "there is one 'for'; nest sum(...)");
}

TEST(TensorLists, ArgumentLists) {
  const Lists lists;
  EXPECT_EQ(lists.arguments("*xs, n"), (Texts{"xs_0", "xs_1", "xs_2", "n"}));
  EXPECT_EQ(lists.arguments("*(n for n in ys), n"), (Texts{"ys_0", "ys_1", "n"}));
  EXPECT_EQ(lists.arguments("tensor_map(xs[1], box=[8])").size(), 1u);
  EXPECT_EQ(lists.arguments("*(y.numel() for y in ys)"),
            (Texts{"opaq.Numel(ys_0)", "opaq.Numel(ys_1)"}));
  EXPECT_EQ(lists.arguments("struct(p=ys, n=[y.numel() for y in ys])").size(), 7u);
  EXPECT_EQ(lists.arguments("struct(p=[*ys, ...])").size(), 4u);
  EXPECT_EQ(lists.arguments("struct(p=[*ys, *xs, n])").size(), 8u);
  EXPECT_REFUSED(spec::parse_arguments("*(a.numel() for a, b in zip(xs, ys))", lists.scope()),
                 "xs and ys have different lengths, 3 and 2");
  EXPECT_REFUSED(spec::parse_arguments("*(a.numel() for a in n)", lists.scope()),
                 "'n' is no list of tensors");
}

ImplementationText add_all() {
  ImplementationText text;
  text.device = "cpu";
  text.kind = "source";
  text.code = "struct T { const float* p[8]; int n; }; void f(T t) {}";
  text.entry = "f";
  text.args = "struct(p=[*xs, ...], n=len(xs))";
  return text;
}

TEST(TensorLists, AFormForEachLength) {
  Op& op = declare("lists::forms(Tensor[] xs) -> ()", {}, false);
  implement(op, add_all(), false);
  const std::vector<int64_t> three = {3}, four = {4};
  Op& form3 = form(op, three);
  EXPECT_EQ(&form(op, three), &form3);
  EXPECT_EQ(form3.name(), "lists::forms[3]");
  EXPECT_EQ(&form3.declared(), &op);
  EXPECT_EQ(&op_named("lists::forms[3]"), &form3);
  EXPECT_EQ(form3.implementations().size(), 1u);
  EXPECT_NE(form(op, four).hash(), form3.hash());
  const std::string before = form3.hash(), whole = op.hash();
  extend_hash(op, "effects", "random");
  EXPECT_NE(form3.hash(), before);
  EXPECT_NE(op.hash(), whole);

  // Another argument list is another declaration, also where it gives the same for short lists.
  ImplementationText other = add_all();
  other.args = "struct(p=[xs[0], xs[1], ...], n=len(xs))";
  EXPECT_REFUSED(implement(op, other, false), "is already declared, and differs");

  Op& again = declare("lists::forms(Tensor[] xs) -> ()", {}, true);
  EXPECT_EQ(form3.successor(), &again);
  EXPECT_REFUSED(op_named("lists::forms[x]"), "no op is named 'lists::forms[x]'");
}

TEST(TensorLists, ADeclarationMayNeedSeveralTensors) {
  Op& op = declare("lists::needs(Tensor[] xs) -> Tensor",
                   {{.shape = "xs[2].shape", .dtype = "xs[2].dtype"}}, false);
  EXPECT_EQ(typical_form(op).name(), "lists::needs[8]");
  const std::vector<int64_t> two = {2};
  try {
    form(op, two);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::Launch);
    EXPECT_NE(std::string(error.what())
                  .find("lists::needs: a call with lists of 2 items does not fit the declaration"),
              std::string::npos)
        << error.what();
  }
  EXPECT_REFUSED(declare("lists::wrong(Tensor[] xs) -> Tensor",
                         {{.shape = "x.shape", .dtype = "float32"}}, false),
                 "unknown name 'x'");
}

TEST(TensorLists, AFormThatIsMadeWhileAnImplementationIsAddedHasIt) {
  Op& op = declare("lists::added(Tensor[] xs) -> ()", {}, false);
  implement(op, add_all(), false);
  std::atomic<bool> stop{false};
  std::thread caller([&] {
    for (int64_t length = 1; length <= 8 && !stop; ++length) form(op, std::vector{length});
    stop = true;
  });
  for (int i = 0; !stop || i < 3; ++i) {
    ImplementationText text = add_all();
    text.name = "cpu:" + std::to_string(i);
    implement(op, text, false);
  }
  caller.join();
  const size_t expected = typical_form(op).implementations().size();
  for (const Op* each : forms(op)) EXPECT_EQ(each->implementations().size(), expected);
}

TEST(TensorLists, ThreadsGetTheSameForm) {
  Op& op = declare("lists::threads(Tensor[] xs) -> ()", {}, false);
  implement(op, add_all(), false);
  std::atomic<int> different{0};
  std::vector<std::thread> threads;
  const std::vector<int64_t> five = {5};
  std::atomic<Op*> first{nullptr};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      Op *made = &form(op, five), *expected = nullptr;
      if (!first.compare_exchange_strong(expected, made) && expected != made) ++different;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(different, 0);
}

}  // namespace
}  // namespace opaq
