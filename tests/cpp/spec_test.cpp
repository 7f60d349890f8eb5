// Output rules and implementations: how declarations are parsed, and the errors of what is refused.
// Schemas: schema_test.cpp.
#include "spec/spec.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace opaq {
namespace {

constexpr const char* kSchema =
    "mylib::f(Tensor x, Tensor? bias, Tensor(a!) cache, int n, float eps, str mode, ScalarType? "
    "dtype, Device device, int[] pad) -> "
    "(Tensor y)";

template <class F>
std::string refusal(F&& declare) {
  try {
    declare();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::Declaration) << error.what();
    return error.what();
  }
  return "accepted";
}

#define EXPECT_REFUSED(statement, part)                                  \
  do {                                                                   \
    const std::string message = refusal([&] { statement; });             \
    EXPECT_NE(message.find(part), std::string::npos)                     \
        << #statement << "\nexpected: " << part << "\ngot: " << message; \
  } while (false)

std::vector<std::string> texts(const std::vector<Expr>& items) {
  std::vector<std::string> out;
  for (const Expr& item : items) out.push_back(item.text());
  return out;
}

OutputRule rule_of(const OutputText& text, const char* schema = kSchema) {
  return make_op(schema, {text}).outputs.at(0);
}

using Texts = std::vector<std::string>;

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
                 "'device' is of type Device; expected a tensor argument");
  EXPECT_REFUSED(rule_of({.like = "x", .device = "cuda"}),
                 "device of mylib::f, output 'y': no argument is named 'cuda'");
  EXPECT_REFUSED(rule_of({.shape = "4", .dtype = "int32"}, "m::f(int n, Tensor? t) -> Tensor"),
                 "device of m::f, output 'out': an output takes its device from a tensor argument "
                 "that is not optional; give the op one");
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

// ---- implementations ----------------------------------------------------------------------------

const OpSpec& op() {
  static const OpSpec spec = make_op(kSchema, {{.like = "x"}});
  return spec;
}

ImplementationText cuda_text() {
  ImplementationText text;
  text.device = "cuda";
  text.kind = "source";
  text.code = "template <class T, int N> __global__ void f(T* y, const T* x, float eps) {}";
  text.file = "/home/a/f.cu";
  text.entry = "f<{x.dtype}, {x.size(-1)}>";
  text.grid = "x.numel() // x.size(-1)";
  text.block = "256";
  text.args = "y, x, eps";
  return text;
}

template <class Edit>
Implementation cuda_with(Edit edit) {
  ImplementationText text = cuda_text();
  edit(text);
  return make_implementation(op(), text);
}

TEST(Implementation, HoldsTheLaunchRule) {
  const Implementation cuda = cuda_with([](ImplementationText& t) {
    t.name = "cuda:vec4";
    t.block = "32, 4";
    t.cluster = "2";
    t.shared = "4 * x.size(-1)";
    t.requires_ = {"x.stride(-1) == 1", "aligned(x, 16)"};
    t.priority = 3;
    t.cooperative = true;
  });
  EXPECT_EQ(cuda.name, "cuda:vec4");
  EXPECT_EQ(cuda.target, DeviceType::CUDA);
  EXPECT_EQ(cuda.kind, CodeKind::CudaSource);
  EXPECT_EQ(texts(cuda.launch.grid), (Texts{"x.numel() // x.size(-1)", "1", "1"}));
  EXPECT_EQ(texts(cuda.launch.block), (Texts{"32", "4", "1"}));
  EXPECT_EQ(texts(cuda.launch.cluster), (Texts{"2", "1", "1"}));
  EXPECT_EQ(cuda.launch.shared.text(), "4 * x.size(-1)");
  EXPECT_EQ(texts(cuda.launch.args), (Texts{"y", "x", "eps"}));
  EXPECT_EQ(texts(cuda.requires_), (Texts{"x.stride(-1) == 1", "aligned(x, 16)"}));
  EXPECT_EQ(cuda.priority, 3);
  EXPECT_TRUE(cuda.launch.cooperative);
  EXPECT_FALSE(cuda.launch.programmatic);
}

TEST(Implementation, IsNamedAfterItsDeviceUnlessNamed) {
  EXPECT_EQ(make_implementation(op(), cuda_text()).name, "cuda");
  EXPECT_TRUE(make_implementation(op(), cuda_text()).launch.cluster.empty());
  EXPECT_REFUSED(
      cuda_with([](auto& t) { t.name = "my kernel"; }),
      "mylib::f: implementation name 'my kernel' is not accepted; use letters, digits and _ - . :");
}

TEST(Implementation, EachKindHasItsCode) {
  const auto make = [](const char* device, const char* kind) {
    ImplementationText text;
    text.device = device;
    text.kind = kind;
    text.code = "code";
    if (std::string_view(kind) != "python") text.entry = "f", text.args = "y, x";
    return make_implementation(op(), text);
  };
  EXPECT_EQ(make("cuda", "source").kind, CodeKind::CudaSource);
  EXPECT_EQ(make("cuda", "binary").kind, CodeKind::CudaBinary);
  EXPECT_EQ(make("cuda", "library").kind, CodeKind::HostLibrary);
  EXPECT_EQ(make("cuda", "library").target, DeviceType::CUDA);
  EXPECT_EQ(make("cpu", "source").kind, CodeKind::HostSource);
  EXPECT_EQ(make("cpu", "library").kind, CodeKind::HostLibrary);
  EXPECT_EQ(make("cpu", "python").kind, CodeKind::Python);
  EXPECT_EQ(make("cpu", "source").target, DeviceType::CPU);
  EXPECT_REFUSED(
      make("gpu", "source"),
      "mylib::f: implementation on device 'gpu' is not supported; expected one of cuda, cpu");
  EXPECT_REFUSED(make("CUDA", "source"), "did you mean 'cuda'?");
  EXPECT_REFUSED(make("cuda", "sorce"),
                 "mylib::f: implementation of kind 'sorce' is not supported on device 'cuda'; "
                 "expected one of source, binary, library, python; "
                 "did you mean 'source'?");
  EXPECT_REFUSED(make("cpu", "binary"),
                 "expected one of source, library, python; a binary holds device code");
}

TEST(Implementation, RefusesWhatItsKindDoesNotUse) {
  ImplementationText cpu;
  cpu.device = "cpu";
  cpu.kind = "source";
  cpu.code = "void f(float*) {}";
  cpu.entry = "f";
  cpu.args = "y";
  ASSERT_NO_THROW(make_implementation(op(), cpu));
  const auto with = [&](auto edit) {
    ImplementationText text = cpu;
    edit(text);
    make_implementation(op(), text);
  };
  EXPECT_REFUSED(with([](auto& t) { t.grid = "2"; }),
                 "grid of mylib::f, implementation 'cpu': kind 'source' on device 'cpu' takes no "
                 "grid, got '2'; leave it out");
  EXPECT_REFUSED(with([](auto& t) { t.block = "256"; }), "takes no block, got '256'");
  EXPECT_REFUSED(with([](auto& t) { t.cluster = "2"; }), "takes no cluster, got '2'");
  EXPECT_REFUSED(with([](auto& t) { t.shared = "16"; }), "takes no shared, got '16'");
  EXPECT_REFUSED(with([](auto& t) { t.cooperative = true; }), "takes no cooperative");
  EXPECT_REFUSED(with([](auto& t) { t.kind = "library", t.options = {"-O3"}; }),
                 "kind 'library' on device 'cpu' takes no options, got '-O3'");
  EXPECT_REFUSED(with([](auto& t) { t.kind = "python"; }),
                 "kind 'python' on device 'cpu' takes no entry, got 'f'");
  EXPECT_REFUSED(with([](auto& t) { t.kind = "python", t.entry = ""; }), "takes no args, got 'y'");
  EXPECT_NO_THROW(
      with([](auto& t) { t.kind = "python", t.entry = "", t.args = "", t.requires_ = {"n > 1"}; }));
}

TEST(Implementation, RefusesWhatIsMissing) {
  EXPECT_REFUSED(cuda_with([](auto& t) { t.code = ""; }),
                 "code of mylib::f, implementation 'cuda': empty; kind 'source' on device 'cuda' "
                 "takes CUDA C++ source");
  EXPECT_REFUSED(
      cuda_with([](auto& t) { t.entry = " "; }),
      "entry of mylib::f, implementation 'cuda': not given; name the function that is called");
  EXPECT_REFUSED(
      cuda_with([](auto& t) { t.args = ""; }),
      "args of mylib::f, implementation 'cuda': empty; list the arguments of the "
      "function, in order; available are x, bias, cache, n, eps, mode, dtype, device, pad, y");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "x, eps"; }),
                 "output 'y' is not among them, so that nothing would write it; pass it");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "x, y.numel()"; }),
                 "output 'y' is not among them");
  EXPECT_NO_THROW(cuda_with([](auto& t) { t.args = "x, y.data"; }));
  EXPECT_REFUSED(cuda_with([](auto& t) { t.requires_ = {""}; }),
                 "requires of mylib::f, implementation 'cuda'");
}

TEST(Implementation, ChecksTheTypesOfItsExpressions) {
  EXPECT_REFUSED(cuda_with([](auto& t) { t.grid = "x.numel() * 1.5"; }),
                 "grid of mylib::f, implementation 'cuda': 'x.numel() * 1.5' has type float, "
                 "expected int; ints stay ints under + - * // % and ceil_div(a, b); "
                 "int64(...) takes a float that is a whole number");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.shared = "x"; }),
                 "shared of mylib::f, implementation 'cuda': 'x' has type Tensor, expected int");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.requires_ = {"x.size(0)"}; }),
                 "'x.size(0)' has type int, expected bool");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "y, pad"; }),
                 "'pad' has type int[], expected Tensor or int or float or bool; take one of its "
                 "items: pad[0]");
  EXPECT_REFUSED(
      cuda_with([](auto& t) { t.args = "y, mode"; }),
      "'mode' has type str, expected Tensor or int or float or bool; compare it: mode == 'mean'");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "y, x.dtype"; }),
                 "dtypes belong in the entry: f<{x.dtype}>");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "y, device"; }),
                 "'device' is a Device, which expressions cannot read and kernels cannot take");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.args = "y, wieght"; }),
                 "args of mylib::f, implementation 'cuda': unknown name 'wieght'");
}

TEST(Implementation, ChecksConstantGeometry) {
  EXPECT_REFUSED(cuda_with([](auto& t) { t.grid = "1, 2, 3, 4"; }),
                 "grid of mylib::f, implementation 'cuda': '1, 2, 3, 4' has 4 items; expected 1 to "
                 "3: x, y, z");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.grid = ""; }), "'' has 0 items");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.grid = "0"; }),
                 "'0' is less than 1: nothing would ever run");
  EXPECT_REFUSED(
      cuda_with([](auto& t) { t.block = "2048"; }),
      "block of mylib::f, implementation 'cuda': 2048 threads; a block has at most 1024");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.block = "64, n, 32"; }),
                 "2048 threads; a block has at most 1024");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.block = "1, 1, 128"; }),
                 "dimension z is 128; the most is 64");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.cluster = "32"; }),
                 "32 blocks; a cluster has at most 16");
  EXPECT_REFUSED(cuda_with([](auto& t) { t.shared = "-1"; }), "'-1' is negative");
  EXPECT_NO_THROW(cuda_with([](auto& t) { t.block = "min(1024, next_power_of_2(n))"; }));
}

TEST(Implementation, AsksForContiguityWhereNoStrideIsRead) {
  const auto needs = [](auto edit) {
    const Implementation implementation = cuda_with(edit);
    Texts names;
    const std::vector<Symbol> symbols = op().all_symbols();
    EXPECT_EQ(implementation.needs_contiguous.size(), symbols.size());
    for (size_t i = 0; i < symbols.size(); ++i) {
      if (implementation.needs_contiguous[i]) names.push_back(symbols[i].name);
    }
    return names;
  };
  EXPECT_EQ(needs([](auto&) {}), (Texts{"x", "bias", "cache"}));  // not y: its rule lays it out
  EXPECT_EQ(needs([](auto& t) { t.args = "y, x, x.stride(0)"; }), (Texts{"bias", "cache"}));
  EXPECT_EQ(needs([](auto& t) { t.requires_ = {"x.stride(-1) == 1 and cache.is_contiguous()"}; }),
            Texts{"bias"});
  EXPECT_EQ(needs([](auto& t) { t.entry = "f<{bias.stride(0) == 1}>"; }), (Texts{"x", "cache"}));
  EXPECT_EQ(needs([](auto& t) { t.grid = "x.stride(0)", t.shared = "cache.stride(0)"; }),
            Texts{"bias"});

  ImplementationText python;  // a Python function reads strides by itself
  python.device = "cpu";
  python.kind = "python";
  EXPECT_EQ(make_implementation(op(), python).needs_contiguous, std::vector<bool>(10, false));
}

TEST(Implementation, HashCoversEveryFieldButTheFolder) {
  const std::string base = make_implementation(op(), cuda_text()).hash;
  EXPECT_EQ(base.size(), 64u);
  EXPECT_EQ(cuda_with([](auto&) {}).hash, base);
  EXPECT_EQ(cuda_with([](auto& t) { t.file = "/srv/b/f.cu"; }).hash, base);
  EXPECT_EQ(cuda_with([](auto& t) { t.args = "y,x,eps"; }).hash, base);

  std::vector<std::string> hashes = {base};
  const auto differs = [&](auto edit) {
    const std::string hash = cuda_with(edit).hash;
    EXPECT_EQ(std::count(hashes.begin(), hashes.end(), hash), 0) << "change " << hashes.size();
    hashes.push_back(hash);
  };
  differs([](auto& t) { t.name = "cuda:2"; });
  differs([](auto& t) { t.kind = "binary"; });
  differs([](auto& t) { t.code += "\n"; });
  differs([](auto& t) { t.code += '\0'; });
  differs([](auto& t) { t.file = "/home/a/g.cu"; });
  differs([](auto& t) { t.options = {"-DA", "-DB"}; });
  differs([](auto& t) { t.options = {"-DA-DB"}; });
  differs([](auto& t) { t.include_dirs = {"-DA", "-DB"}; });
  differs([](auto& t) { t.entry = "f<{x.dtype}, 8>"; });
  differs([](auto& t) { t.grid = "n"; });
  differs([](auto& t) { t.block = "128"; });
  differs([](auto& t) { t.cluster = "2"; });
  differs([](auto& t) { t.shared = "128"; });
  differs([](auto& t) { t.args = "y, x"; });
  differs([](auto& t) { t.requires_ = {"n > 1"}; });
  differs([](auto& t) { t.priority = 1; });
  differs([](auto& t) { t.cooperative = true; });
  differs([](auto& t) { t.programmatic = true; });
}

// ---- entry templates ----------------------------------------------------------------------------

EntryTemplate entry(const char* text) {
  return cuda_with([&](auto& t) { t.entry = text; }).launch.entry;
}

TEST(EntryTemplate, FillsInItsExpressions) {
  const EntryTemplate filled = entry(" f<{x.dtype}, { x.size(-1) }, {n > 1}> ");
  ASSERT_EQ(filled.template_args.size(), 3u);
  ASSERT_EQ(filled.pieces.size(), 4u);
  EXPECT_EQ(filled.text(), "f<{x.dtype}, {x.size(-1)}, {n > 1}>");
  const auto half = static_cast<int64_t>(DType::Float16);
  EXPECT_EQ(filled.fill({half, 4096, 1}, DeviceType::CUDA), "f<__half, 4096, true>");
  EXPECT_EQ(filled.fill({half, -1, 0}, DeviceType::CPU), "f<opaq::float16, -1, false>");
}

TEST(EntryTemplate, TakesPlainNamesAndEscapedBraces) {
  EXPECT_EQ(entry("ns::f").fill({}, DeviceType::CUDA), "ns::f");
  const EntryTemplate braces = entry("f<S{{{n}}}>");
  EXPECT_EQ(braces.fill({7}, DeviceType::CUDA), "f<S{7}>");
  EXPECT_EQ(braces.text(), "f<S{{{n}}}>");
  EXPECT_EQ(entry("f<{mode == '}'}>").template_args.size(), 1u);
}

TEST(EntryTemplate, RefusesBrokenExpressions) {
  EXPECT_REFUSED(entry("f<{x.dtype>"),
                 "entry of mylib::f, implementation 'cuda': '{' is not closed in 'f<{x.dtype>'; a "
                 "brace itself is written '{{'");
  EXPECT_REFUSED(entry("f<x.dtype}>"),
                 "'}' closes nothing in 'f<x.dtype}>'; a brace itself is written '}}'");
  EXPECT_REFUSED(entry("f<{ }>"),
                 "'{}' holds no expression in 'f<{ }>'; write one, such as {x.dtype}");
  EXPECT_REFUSED(entry("f<{eps}>"), "'eps' has type float, expected int or bool or dtype");
  EXPECT_REFUSED(entry("f<{x}>"), "'x' has type Tensor, expected int or bool or dtype");
  EXPECT_REFUSED(entry("f<{x.sixe(0)}>"), "did you mean 'size'?");
}

TEST(EntryTemplate, WrongValuesAreOurBug) {
  const EntryTemplate one = entry("f<{x.dtype}>");
  for (const std::vector<int64_t>& values : {std::vector<int64_t>{}, {1, 2}, {kDTypeCount}, {-1}}) {
    try {
      one.fill(values, DeviceType::CUDA);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind, ErrorKind::Internal);
    }
  }
}

}  // namespace
}  // namespace opaq
