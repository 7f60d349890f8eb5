// Output rules: what a declaration says, and what is refused with which words. Schemas:
// schema_test.cpp; implementations: kinds_test.cpp.
#include "spec/spec.h"

#include "refusal.h"
#include "spec/outputs.h"

namespace opaq {
namespace {

OutputRule rule_of(const OutputText& text, const char* schema = kSchema) {
  return make_op(schema, {text}).outputs.at(0);
}

// ---- outputs ------------------------------------------------------------------------------------

TEST(OutputRule, LikeGivesShapeDtypeAndDevice) {
  const OutputRule rule = rule_of({.like = "cache"});
  EXPECT_EQ(texts(rule.shape), Texts{"cache.shape"});
  EXPECT_EQ(rule.dtype.text(), "cache.dtype");
  EXPECT_TRUE(rule.strides.empty());  // contiguous, whatever the argument's are
  EXPECT_EQ(rule.device_of, 2);
}

TEST(OutputRule, WhatIsGivenReplacesWhatLikeWouldGive) {
  const OutputRule rule = rule_of({.like = "cache",
                                   .shape = "x.shape[:-1], 2 * x.size(-1)",
                                   .dtype = "float32",
                                   .device = "x"});
  EXPECT_EQ(texts(rule.shape), (Texts{"x.shape[:-1]", "2 * x.size(-1)"}));
  EXPECT_EQ(rule.shape[0].type(), Type::IntList);
  EXPECT_EQ(rule.shape[1].type(), Type::Int);
  EXPECT_EQ(rule.dtype.text(), "float32");
  EXPECT_EQ(rule.device_of, 0);
}

TEST(OutputRule, MayOverwriteTheArgumentThatItIsLike) {
  EXPECT_EQ(rule_of({.like = "x"}).over, -1);
  EXPECT_EQ(rule_of({.like = "x", .may_overwrite = true}).over, 0);
  const char* schema = "m::f(Tensor x) -> (Tensor y)";
  EXPECT_NE(make_op(schema, {{.like = "x"}}).hash,
            make_op(schema, {{.like = "x", .may_overwrite = true}}).hash);
}

TEST(OutputRule, TensorNeedsNoLike) {
  const OutputRule rule = rule_of({.shape = "n, x.size(0)", .dtype = "x.dtype", .strides = "1, n"});
  EXPECT_EQ(texts(rule.shape), (Texts{"n", "x.size(0)"}));
  EXPECT_EQ(texts(rule.strides), (Texts{"1", "n"}));
  EXPECT_EQ(rule.device_of, 0);  // the first tensor that is not optional
  EXPECT_EQ(rule_of({.shape = "4", .dtype = "int32"}, "m::f(int n, Tensor? t, Tensor x) -> Tensor")
                .device_of,
            2);
}

TEST(OutputRule, ScalarOutputsAreWrittenAsEmptyLists) {
  EXPECT_TRUE(rule_of({.shape = "[]", .dtype = "float32"}).shape.empty());
  EXPECT_TRUE(rule_of({.like = "x", .shape = " () "}).shape.empty());
}

// ---- counts -------------------------------------------------------------------------------------

OutputText counted(const char* shape, std::vector<CountText> counts) {
  OutputText text{.shape = shape, .dtype = "float32"};
  text.counts = std::move(counts);
  return text;
}

TEST(Counts, AreResultsOfALaunchThatPyTorchDoesNotGet) {
  const OpSpec op =
      make_op("m::f(Tensor x) -> (Tensor y)", {counted("n, 3", {{"n", "x.numel()"}})});
  EXPECT_EQ(op.schema.returns, (Texts{"y", "n"}));
  EXPECT_EQ(op.returned, 1u);
  EXPECT_TRUE(op.reads_counts());
  EXPECT_EQ(op.schema.text, "m::f(Tensor x) -> (Tensor y)");
  EXPECT_EQ(texts(op.outputs[0].shape), (Texts{"x.numel()", "3"}));  // memory for the bound
  ASSERT_EQ(op.outputs[0].counted.size(), 1u);
  EXPECT_EQ(op.outputs[0].counted[0].dim, 0);
  EXPECT_TRUE(op.outputs[1].shape.empty());
  EXPECT_EQ(op.outputs[1].dtype.text(), "int64");
}

TEST(Counts, AfterAListOfSizesAreCountedFromTheEnd) {
  const OpSpec op =
      make_op("m::f(Tensor x) -> (Tensor y)", {counted("x.shape, n, 2", {{"n", "x.numel()"}})});
  EXPECT_EQ(op.outputs[0].counted.at(0).dim, -2);
}

TEST(Counts, ThatTheOpReturnsLeaveResultsAsTheyAre) {
  const OpSpec op =
      make_op("m::f(Tensor x) -> (Tensor y, Tensor n)", {counted("n", {{"n", "x.numel()"}})});
  EXPECT_FALSE(op.reads_counts());
  EXPECT_TRUE(op.outputs[0].counted.empty());
  EXPECT_TRUE(op.outputs[0].partial);
  EXPECT_TRUE(op.outputs[1].shape.empty());
}

TEST(Counts, AreSharedByAllResultsAndHashed) {
  const char* schema = "m::f(Tensor x) -> (Tensor y, Tensor z)";
  const auto with = [&](const char* bound) {
    OutputText y = counted("n", {{"n", bound}}), z = counted("2, n", {});
    y.name = "y";
    z.name = "z";
    return make_op(schema, {y, z});
  };
  EXPECT_EQ(with("x.numel()").outputs[1].counted.at(0).dim, 1);
  EXPECT_NE(with("x.numel()").hash, with("x.size(0)").hash);
}

TEST(Counts, RefuseWhatCannotBeRead) {
  const auto message = [](const char* shape, std::vector<CountText> counts) {
    return refusal([&] { make_op("m::f(Tensor x) -> (Tensor y)", {counted(shape, counts)}); });
  };
  EXPECT_EQ(message("n", {{"n", "x.numel()"}, {"n", "4"}}),
            "m::f: count 'n' has two bounds, `x.numel()` and `4`; give it once");
  EXPECT_EQ(message("n", {{"2", "4"}}),
            "m::f: count '2' is no name; write counts={\"n\": \"x.numel()\"}");
  EXPECT_EQ(message("n + 1", {{"n", "4"}}),
            "shape of m::f, output 'y': 'n + 1' computes with the count 'n'; a count is a size by "
            "itself: declare another one for this size");
  OutputText two = counted("n", {{"n", "4"}}), n{.name = "n", .shape = "[]", .dtype = "int32"};
  two.name = "y";
  EXPECT_EQ(refusal([&] { make_op("m::f(Tensor x) -> (Tensor y, Tensor n)", {two, n}); }),
            "m::f: 'n' is a count, a 0-d tensor of int64; leave its rule out, or the count");
}

TEST(OutputRule, DtypeMayBeAnyNameOfPyTorchOrAnExpression) {
  const auto dtype = [](const char* text) {
    return rule_of({.shape = "n", .dtype = text}).dtype.text();
  };
  EXPECT_EQ(dtype("bfloat16"), "bfloat16");
  EXPECT_EQ(dtype("torch.float16"), "float16");
  EXPECT_EQ(dtype("half"), "float16");
  EXPECT_EQ(dtype("dtype if defined(dtype) else x.dtype"), "dtype if defined(dtype) else x.dtype");
  EXPECT_EQ(
      rule_of({.shape = "2", .dtype = "t"}, "m::f(Tensor x, ScalarType t) -> Tensor").dtype.text(),
      "t");
}

TEST(OutputRule, SeveralOutputsAreGivenByName) {
  const OpSpec op = make_op("m::f(Tensor x, Tensor w) -> (Tensor y, Tensor)",
                            {{.name = "out1", .like = "w"}, {.name = "y", .like = "x"}});
  ASSERT_EQ(op.outputs.size(), 2u);
  EXPECT_EQ(op.outputs[0].dtype.text(), "x.dtype");
  EXPECT_EQ(op.outputs[1].dtype.text(), "w.dtype");
  EXPECT_EQ(make_op("m::f(Tensor x) -> Tensor", {{.name = "out", .like = "x"}}).outputs.size(), 1u);
  EXPECT_TRUE(make_op("m::f(Tensor(a!) x) -> ()", {}).outputs.empty());
}

TEST(OutputRule, RefusesRulesThatMatchNoOutput) {
  const char* two = "m::f(Tensor x) -> (Tensor query, Tensor key)";
  EXPECT_REFUSED(
      make_op(two, {{.name = "qeury", .like = "x"}}),
      "m::f: no output is named 'qeury'; outputs of m::f are query, key; did you mean 'query'?");
  EXPECT_REFUSED(make_op(two, {{.like = "x"}}),
                 "m::f: a single output rule was given for several outputs; give one by name for "
                 "each; outputs of m::f are query, key");
  EXPECT_REFUSED(make_op(two, {{.name = "query", .like = "x"}}),
                 "m::f: output 'key' has no rule; give outputs=opaq.like(\"x\") or "
                 "opaq.tensor(shape, dtype), in a dict by name: query, key");
  EXPECT_REFUSED(make_op(two, {{.name = "key", .like = "x"}, {.name = "key", .like = "x"}}),
                 "m::f: output 'key' has two rules; give one");
  EXPECT_REFUSED(
      make_op("m::f(Tensor x) -> Tensor", {}),
      "m::f: output 'out' has no rule; give outputs=opaq.like(\"x\") or opaq.tensor(shape, dtype)");
  EXPECT_REFUSED(make_op("m::f(Tensor(a!) x) -> ()", {{.like = "x"}}),
                 "an op that returns nothing takes no output rules, got 1; leave outputs out");
}

TEST(OutputRule, RefusesWhatCannotSupplyIt) {
  EXPECT_REFUSED(rule_of({.like = "cahce"}),
                 "like of mylib::f, output 'y': no argument is named 'cahce'; tensor arguments are "
                 "x, cache; did you mean 'cache'?");
  EXPECT_REFUSED(rule_of({.like = "n"}),
                 "like of mylib::f, output 'y': 'n' is of type int; expected a tensor argument; "
                 "tensor arguments are x, cache");
  EXPECT_REFUSED(rule_of({.like = "y"}),
                 "'y' is an output; expected an argument; tensor arguments are x, cache");
  EXPECT_REFUSED(rule_of({.like = "bias"}),
                 "'bias' may be None; use opaq.tensor(shape, dtype) with expressions; tensor "
                 "arguments are x, cache");
  EXPECT_REFUSED(
      rule_of({.like = "x", .device = "bias"}),
      "device of mylib::f, output 'y': 'bias' may be None; name a tensor that is not optional");
  EXPECT_REFUSED(rule_of({.like = "x", .device = "device"}),
                 "'device' is for an op without tensors; the results of this one are on the device "
                 "of its tensors (x, cache): leave device out");
  EXPECT_REFUSED(rule_of({.like = "x", .device = "cuda"}),
                 "device of mylib::f, output 'y': 'cuda' is for an op without tensors; the results "
                 "of this one are on the device of its tensors (x");
  EXPECT_REFUSED(rule_of({.shape = "4", .dtype = "int32"}, "m::f(int n, Tensor? t) -> Tensor"),
                 "device of m::f, output 'out': not given, and no tensor argument is always given, "
                 "whose device the output could share; write device=\"cpu\"");
}

TEST(OutputRule, AnOpThatMayHaveNoTensorNamesADevice) {
  const auto device = [](const char* text) {
    const OpSpec op = make_op("m::f(Tensor? t, Device? d) -> Tensor",
                              {{.shape = "4", .dtype = "int32", .device = text}});
    EXPECT_TRUE(op.names_device);
    return op.outputs[0];
  };
  EXPECT_EQ(device("d").device_of, 1);
  EXPECT_EQ(device("cpu").device, Device{});
  EXPECT_EQ(device("cuda").device, (Device{DeviceType::CUDA, -1}));
  EXPECT_EQ(device("cuda:2").device, (Device{DeviceType::CUDA, 2}));
  EXPECT_EQ(device("cuda:2").device_of, -1);

  const OpSpec op = make_op("m::f(Tensor? t, Device? d) -> Tensor",
                            {{.shape = "4", .dtype = "int32", .device = "d"}});
  TensorView tensor;
  tensor.device = {DeviceType::CUDA, 3};
  const auto of_call = [&](const Arg& t, const Arg& d) {
    const Arg args[] = {t, d};
    return device_of_call(op, args);
  };
  const Arg current = Arg::of_device({DeviceType::CUDA, -1});
  EXPECT_EQ(of_call({}, {}), Device{});
  EXPECT_EQ(of_call(tensor, {}), tensor.device);
  EXPECT_EQ(of_call(tensor, current), tensor.device);
  EXPECT_EQ(of_call({}, current), current.device);
  EXPECT_EQ(of_call(tensor, Arg::of_device({})), Device{});
  EXPECT_THROW(of_call({}, Arg::of_string("another device")), Error);
}

TEST(OutputRule, RefusesIncompleteAndIllTypedRules) {
  EXPECT_REFUSED(rule_of({.dtype = "float32"}),
                 "shape of mylib::f, output 'y': not given; give shape, or like=\"x\" (a 0-d "
                 "output is shape=\"[]\")");
  EXPECT_REFUSED(rule_of({.shape = "n"}),
                 "dtype of mylib::f, output 'y': not given; give dtype, such as \"x.dtype\" or "
                 "\"float32\", or like=\"x\"");
  EXPECT_REFUSED(rule_of({.shape = "x", .dtype = "x.dtype"}),
                 "shape of mylib::f, output 'y': 'x' has type Tensor, expected int or int[]; say "
                 "which of its numbers is meant: x.numel(), "
                 "x.size(0), x.dim()");
  EXPECT_REFUSED(rule_of({.shape = "n * eps", .dtype = "x.dtype"}),
                 "'n * eps' has type float, expected int or int[]");
  EXPECT_REFUSED(rule_of({.shape = "x.shpae", .dtype = "x.dtype"}), "did you mean 'shape'?");
  EXPECT_REFUSED(rule_of({.shape = "-1", .dtype = "x.dtype"}),
                 "shape of mylib::f, output 'y': '-1' is negative");
  EXPECT_REFUSED(
      rule_of({.shape = "n", .dtype = "x"}),
      "dtype of mylib::f, output 'y': 'x' has type Tensor, expected dtype; write x.dtype");
  EXPECT_REFUSED(rule_of({.shape = "n", .dtype = "flaot32"}), "did you mean 'float32'?");
  EXPECT_REFUSED(rule_of({.shape = "n", .dtype = "dtype"}),
                 "'dtype' may be None; write \"dtype if defined(dtype) else x.dtype\"");
  EXPECT_REFUSED(
      rule_of({.shape = "x.alignment", .dtype = "x.dtype"}),
      "'x.alignment' depends on an address, which is not known when outputs are planned");
  EXPECT_REFUSED(rule_of({.shape = "n, n", .dtype = "x.dtype", .strides = "1"}),
                 "strides of mylib::f, output 'y': got 1 for a shape of 2 dimensions; give one for "
                 "each, or none for a contiguous output");
  EXPECT_REFUSED(rule_of({.shape = "y.size(0)", .dtype = "x.dtype"}),
                 "unknown name 'y'");  // outputs do not exist yet
}

TEST(OutputRule, RefusesToReadADevice) {
  EXPECT_REFUSED(rule_of({.shape = "n if device == 'cuda' else 1", .dtype = "x.dtype"}),
                 "shape of mylib::f, output 'y': 'device' is a Device, which expressions cannot "
                 "read and kernels cannot take; only a "
                 "Python implementation "
                 "sees it (an output is on the device of a tensor argument)");
  EXPECT_NO_THROW(rule_of({.shape = "n if mode == 'device' else 1",
                           .dtype = "x.dtype"}));  // a string, not the argument
}

TEST(OpSpec, SymbolsAreArgumentsThenOutputs) {
  const OpSpec op = make_op(kSchema, {{.like = "x"}});
  const std::vector<Symbol> inputs = op.input_symbols(), all = op.all_symbols();
  ASSERT_EQ(inputs.size(), 9u);
  ASSERT_EQ(all.size(), 10u);
  EXPECT_EQ(all[1].name, "bias");
  EXPECT_TRUE(all[1].optional);
  EXPECT_FALSE(all[1].written);
  EXPECT_TRUE(all[2].written);  // Tensor(a!)
  EXPECT_EQ(all[6].type, Type::DType);
  EXPECT_EQ(all[9].name, "y");
  EXPECT_EQ(all[9].type, Type::Tensor);
  EXPECT_TRUE(all[9].written);
}

TEST(OpSpec, HashCoversSchemaAndRulesAndNothingElse) {
  const auto hash = [](const char* schema, const OutputText& rule) {
    return make_op(schema, {rule}).hash;
  };
  const std::string base = hash("m::f(Tensor x, int n) -> Tensor", {.like = "x"});
  EXPECT_EQ(base.size(), 64u);
  EXPECT_EQ(hash("m::f( Tensor x,int n )->Tensor", {.name = "out", .like = " x "}), base);
  EXPECT_EQ(hash("m::f(Tensor x, int n) -> Tensor",
                 {.shape = "x.shape", .dtype = "x.dtype", .device = "x"}),
            base);
  EXPECT_NE(hash("m::f(Tensor x, int n) -> (Tensor y)", {.like = "x"}), base);
  EXPECT_NE(hash("m::f(Tensor x, int n=1) -> Tensor", {.like = "x"}), base);
  EXPECT_NE(hash("m::f(Tensor x, int n) -> Tensor", {.like = "x", .dtype = "float32"}), base);
  EXPECT_NE(hash("m::f(Tensor x, int n) -> Tensor", {.like = "x", .shape = "n"}), base);
  EXPECT_NE(hash("m::f(Tensor x, int n) -> Tensor", {.like = "x", .strides = "x.shape"}), base);
}

}  // namespace
}  // namespace opaq
