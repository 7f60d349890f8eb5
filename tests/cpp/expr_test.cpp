// Evaluation of expressions: values, short circuits, 64-bit arithmetic, many threads.
#include "expr/expr.h"

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/device_facts.h"
#include "base/error.h"

using namespace opaq;

namespace {

__extension__ using Wide = __int128;

// x: float16 [6, 4, 10], contiguous, 64-byte aligned.  t: float32 [10, 4] transposed, 4-byte
// aligned.  e: empty.  s: without dimensions.
class Call {
 public:
  Call() {
    args_ = {Arg(view(x_sizes_, x_strides_, 3, DType::Float16, 0)),
             Arg(view(t_sizes_, t_strides_, 2, DType::Float32, 4)),
             Arg(view(e_sizes_, t_strides_, 2, DType::Float32, 0)),
             Arg(view(nullptr, nullptr, 0, DType::Int64, 8)),
             Arg(),  // bias
             Arg::of_int(7),
             Arg::of_float(0.5),
             Arg::of_bool(true),
             Arg::of_dtype(DType::BFloat16),
             Arg::of_string("mean"),
             Arg::of_ints(list_, 4),
             Arg()};  // eps
    args_[2].tensor.data = nullptr;
  }

  const std::vector<Symbol>& symbols() const { return symbols_; }
  const Arg* args() const { return args_.data(); }
  void set(size_t i, const Arg& value) { args_[i] = value; }

  Value eval(std::string_view text) const {
    return parse(text, symbols_, "test").eval(args_.data());
  }
  int64_t integer(std::string_view text) const {
    return parse(text, symbols_, "test").eval_int(args_.data());
  }
  bool boolean(std::string_view text) const {
    return parse(text, symbols_, "test").eval_bool(args_.data());
  }
  double floating(std::string_view text) const {
    const Value v = eval(text);
    EXPECT_EQ(v.type, Type::Float) << text;
    return v.floating;
  }
  std::vector<int64_t> list(std::string_view text) const {
    const Value v = eval(text);
    EXPECT_EQ(v.type, Type::IntList) << text;
    return {v.ints.data, v.ints.data + v.ints.size};
  }
  // The message of the Launch error that evaluation gives.
  std::string launch_error(std::string_view text) const {
    try {
      eval(text);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind, ErrorKind::Launch) << error.what();
      return error.what();
    }
    return "no error";
  }

 private:
  TensorView view(const int64_t* sizes, const int64_t* strides, int dim, DType dtype, int offset) {
    TensorView v;
    v.data = buffer_ + offset;
    v.sizes = sizes, v.strides = strides, v.dim = dim, v.dtype = dtype;
    return v;
  }

  alignas(64) char buffer_[128];
  int64_t x_sizes_[3] = {6, 4, 10}, x_strides_[3] = {40, 10, 1};
  int64_t t_sizes_[2] = {10, 4}, t_strides_[2] = {1, 10};
  int64_t e_sizes_[2] = {0, 4};
  int64_t list_[4] = {3, 1, -4, 15};
  std::vector<Symbol> symbols_ = {
      {"x", Type::Tensor},    {"t", Type::Tensor},          {"e", Type::Tensor},
      {"s", Type::Tensor},    {"bias", Type::Tensor, true}, {"n", Type::Int},
      {"scale", Type::Float}, {"flag", Type::Bool},         {"out_dtype", Type::DType},
      {"mode", Type::String}, {"dims", Type::IntList},      {"eps", Type::Float, true}};
  std::vector<Arg> args_;
};

TEST(Expr, FactsOfTensors) {
  const Call c;
  EXPECT_EQ(c.integer("x.numel()"), 240);
  EXPECT_EQ(c.integer("e.numel()"), 0);
  EXPECT_EQ(c.integer("s.numel()"), 1);
  EXPECT_EQ(c.integer("x.size(0)"), 6);
  EXPECT_EQ(c.integer("x.size(-1)"), 10);
  EXPECT_EQ(c.integer("x.size(-3)"), 6);
  EXPECT_EQ(c.integer("x.size(n - 5)"), 10);
  EXPECT_EQ(c.integer("t.stride(0)"), 1);
  EXPECT_EQ(c.integer("t.stride(x.dim() - 2)"), 10);
  EXPECT_EQ(c.integer("x.dim()"), 3);
  EXPECT_EQ(c.integer("x.itemsize"), 2);
  EXPECT_EQ(c.eval("x.dtype").dtype, DType::Float16);
  EXPECT_TRUE(c.boolean("x.is_contiguous()"));
  EXPECT_FALSE(c.boolean("t.is_contiguous()"));
  EXPECT_EQ(c.eval("x").tensor, &c.args()[0].tensor);
}

TEST(Expr, AddressesAndAlignment) {
  Call c;
  EXPECT_EQ(c.integer("x.data"),
            static_cast<int64_t>(reinterpret_cast<uintptr_t>(c.args()[0].tensor.data)));
  EXPECT_TRUE(c.boolean("aligned(x, 16)"));
  EXPECT_FALSE(c.boolean("aligned(t, 8)"));
  EXPECT_TRUE(c.boolean("aligned(t, t.itemsize)"));
  EXPECT_EQ(c.integer("t.alignment"), 4);
  EXPECT_GE(c.integer("x.alignment"), 64);
  EXPECT_EQ(c.integer("e.alignment"), 4096);  // an empty tensor has no address
  EXPECT_TRUE(c.boolean("aligned(e, 128)"));
  TensorView far = c.args()[0].tensor;
  far.data = reinterpret_cast<void*>(uintptr_t{1} << 40);
  c.set(0, Arg(far));
  EXPECT_EQ(c.integer("x.alignment"), 4096);  // never more than a page
}

TEST(Expr, Lists) {
  const Call c;
  using List = std::vector<int64_t>;
  EXPECT_EQ(c.list("x.shape"), (List{6, 4, 10}));
  EXPECT_EQ(c.list("x.shape[1:]"), (List{4, 10}));
  EXPECT_EQ(c.list("x.shape[:-1]"), (List{6, 4}));
  EXPECT_EQ(c.list("x.shape[-2:-1]"), (List{4}));
  EXPECT_EQ(c.list("x.shape[:]"), (List{6, 4, 10}));
  EXPECT_EQ(c.list("x.shape[1:][1:]"), (List{10}));
  EXPECT_EQ(c.list("x.shape[-99:99]"), (List{6, 4, 10}));
  EXPECT_EQ(c.list("x.shape[2:1]"), List{});
  EXPECT_EQ(c.list("s.shape"), List{});
  EXPECT_EQ(c.list("dims if flag else x.shape"), (List{3, 1, -4, 15}));
  EXPECT_EQ(c.integer("dims[-1] + dims[0]"), 18);
  EXPECT_EQ(c.integer("len(dims) + len(x.shape[1:]) + len(s.shape)"), 6);
  EXPECT_TRUE(c.boolean("x.shape[1:] != dims and x.shape[1:2] == t.shape[1:]"));
  EXPECT_FALSE(c.boolean("x.shape == t.shape"));
}

TEST(Expr, PythonsPrecedence) {
  const Call c;
  EXPECT_EQ(c.integer("2 + 3 * 4 - 6 // 4"), 13);
  EXPECT_EQ(c.integer("-7 // 2"), -4);
  EXPECT_EQ(c.integer("-(7 // 2)"), -3);
  EXPECT_EQ(c.integer("2 * 7 % 4 - - 1"), 3);
  EXPECT_EQ(c.integer("100 // 7 // 2"), 7);
  EXPECT_EQ(c.integer("1 if false else 2 if false else 3"), 3);
  EXPECT_TRUE(c.boolean("not 1 == 2 and true or false"));
  EXPECT_TRUE(c.boolean("true or false and false"));
  EXPECT_TRUE(c.boolean("not (true and False) == True"));
  EXPECT_TRUE(c.boolean("0 < n <= 7 < x.numel() != 3"));
  EXPECT_FALSE(c.boolean("0 < n < 7"));
}

TEST(Expr, SlashOfIntsIsAFloatAndWhereAnIntIsNeededTheirExactQuotient) {
  const Call c;
  EXPECT_EQ(c.integer("x.numel() // 7"), 34);
  EXPECT_EQ(c.integer("-n // 2"), -4);
  EXPECT_EQ(c.floating("n / 2"), 3.5);
  EXPECT_EQ(c.integer("int64(14 / n)"), 2);
  EXPECT_EQ(c.integer("(6 * n / 2 + 1) // 2"), 11);
  EXPECT_EQ(c.floating("n / 2.0"), 3.5);
  EXPECT_EQ(c.floating("scale / 4"), 0.125);
  EXPECT_EQ(c.floating("1e-6 + .5 + 1. + 2e+1"), 21.500001);
}

TEST(Expr, IntsMeetFloatsAsFloats) {
  const Call c;
  EXPECT_EQ(c.floating("n * scale - 1"), 2.5);
  EXPECT_EQ(c.floating("min(n, scale)"), 0.5);
  EXPECT_EQ(c.floating("max(n, scale, 9)"), 9.0);
  EXPECT_EQ(c.floating("n if flag else scale"), 7.0);
  EXPECT_EQ(c.floating("abs(-scale)"), 0.5);
  EXPECT_TRUE(c.boolean("scale < 1 and n == 7.0"));
}

TEST(Expr, Functions) {
  const Call c;
  EXPECT_EQ(c.integer("min(n, 3, x.size(1))"), 3);
  EXPECT_EQ(c.integer("max(n, x.size(0))"), 7);
  EXPECT_EQ(c.integer("ceil_div(x.numel(), 256)"), 1);
  EXPECT_EQ(c.integer("ceil_div(e.numel(), 256)"), 0);
  EXPECT_EQ(c.integer("ceil_div(-n, 2)"), -3);
  EXPECT_EQ(c.integer("ceil_div(n, -2)"), -3);
  EXPECT_EQ(c.integer("ceil_div(-n, -2)"), 4);
  EXPECT_EQ(c.integer("abs(n - 10)"), 3);
  EXPECT_EQ(c.integer("next_power_of_2(n)"), 8);
  EXPECT_EQ(c.integer("next_power_of_2(n + 1)"), 8);
  EXPECT_EQ(c.integer("next_power_of_2(n - 7)"), 1);
  EXPECT_EQ(c.integer("next_power_of_2(-n)"), 1);
  EXPECT_EQ(c.integer("next_power_of_2(4611686018427387904)"), int64_t{1} << 62);
}

TEST(Expr, DTypesAndStrings) {
  const Call c;
  EXPECT_TRUE(c.boolean("x.dtype == float16"));
  EXPECT_TRUE(c.boolean("x.dtype == torch.half"));
  EXPECT_TRUE(c.boolean("x.dtype in (float16, bfloat16)"));
  EXPECT_TRUE(c.boolean("t.dtype not in [float16, bfloat16,]"));
  EXPECT_FALSE(c.boolean("x.dtype != float16"));
  EXPECT_TRUE(c.boolean("x.size(-1) in (1, 10)"));
  EXPECT_TRUE(c.boolean("mode == 'mean' and mode != \"sum\" and mode in ('mean', 'sum')"));
  EXPECT_TRUE(c.boolean("'it\\'s\\n' == \"it's\\n\""));
  EXPECT_EQ(c.eval("out_dtype if flag else x.dtype").dtype, DType::BFloat16);
  EXPECT_EQ(c.eval("'a' if not flag else mode").string, "mean");
}

TEST(Expr, ArgumentsHideDTypesButNotFunctions) {
  const std::vector<Symbol> symbols = {
      {"min", Type::Int}, {"half", Type::Int}, {"torch", Type::Tensor}};
  const std::vector<Arg> args = {Arg::of_int(3), Arg::of_int(4), Arg(TensorView())};
  EXPECT_EQ(parse("min(min, half) + half", symbols, "t").eval_int(args.data()), 7);
  EXPECT_TRUE(parse("torch.dtype == float32", symbols, "t").eval_bool(args.data()));
}

TEST(Expr, OptionalArguments) {
  Call c;
  EXPECT_FALSE(c.boolean("defined(bias) or defined(eps)"));
  EXPECT_TRUE(c.boolean("defined(x)"));
  EXPECT_EQ(c.eval("bias").tensor, nullptr);  // a null address in an argument list
  EXPECT_EQ(c.floating("eps if defined(eps) else 1e-6"), 1e-6);
  EXPECT_TRUE(c.boolean("not defined(bias) or bias.size(0) == x.size(-1)"));
  EXPECT_EQ(c.launch_error("eps * 2"),
            "test: 'eps * 2': optional argument 'eps' is None, and a value is needed; guard it: "
            "<value> if defined(eps) else <other>");
  EXPECT_EQ(
      c.launch_error("bias.numel()"),
      "test: 'bias.numel()': optional argument 'bias' is None, and a value is needed; guard it: "
      "<value> if defined(bias) else <other>");
  c.set(4, c.args()[0]);
  c.set(11, Arg::of_float(0.25));
  EXPECT_EQ(c.floating("eps * 2"), 0.5);
  EXPECT_TRUE(c.boolean("defined(bias) and bias.size(0) == 6"));
}

TEST(Expr, WhatIsNotReachedIsNotEvaluated) {
  const Call c;
  EXPECT_EQ(c.integer("1 // (n - 7) if n != 7 else 5"), 5);
  EXPECT_FALSE(c.boolean("n != 7 and 1 // (n - 7) == 0"));
  EXPECT_TRUE(c.boolean("n == 7 or x.size(9) == 0"));
  EXPECT_EQ(c.integer("1 // 0 if n != 7 else 5"), 5);  // constants too
  EXPECT_EQ(c.integer("5 if 0 == 0 else x.size(99)"), 5);
  EXPECT_EQ(c.launch_error("1 // 0 if n == 7 else 5"),
            "test: '1 // 0 if n == 7 else 5': division by zero: 1 // 0");
}

TEST(Expr, Casts) {
  const Call c;
  EXPECT_EQ(c.integer("int32(n)"), 7);
  EXPECT_EQ(c.integer("int64(flag) + uint64(n)"), 8);
  EXPECT_EQ(c.integer("int32(scale * 4)"), 2);
  EXPECT_TRUE(c.boolean("bool(n) and bool(scale) and not bool(n - 7)"));
  EXPECT_EQ(c.floating("float64(n)"), 7.0);
  EXPECT_EQ(c.floating("float32(0.1)"), static_cast<double>(0.1f));
  EXPECT_EQ(parse("int32(n)", c.symbols(), "t").cast(), DType::Int32);
  EXPECT_EQ(parse("(uint32(5))", c.symbols(), "t").cast(), DType::UInt32);
  EXPECT_EQ(parse("int32(n) + 1", c.symbols(), "t").cast(), std::nullopt);
  EXPECT_EQ(c.launch_error("int32(n * 1000000000)"),
            "test: 'int32(n * 1000000000)': 7000000000 does not fit int32");
  EXPECT_EQ(c.launch_error("uint32(-n)"), "test: 'uint32(-n)': -7 does not fit uint32");
  EXPECT_EQ(c.launch_error("uint64(-n)"), "test: 'uint64(-n)': -7 does not fit uint64");
  EXPECT_EQ(c.launch_error("int64(scale)"), "test: 'int64(scale)': 0.5 does not fit int64");
  EXPECT_EQ(c.launch_error("int64(scale * 1e30)"),
            "test: 'int64(scale * 1e30)': 5e+29 does not fit int64");
  EXPECT_EQ(c.launch_error("float32(scale * 1e300)"),
            "test: 'float32(scale * 1e300)': 5e+299 does not fit float32");
}

TEST(Expr, FactsOfADeviceThatNeedNotBeThere) {
  Call c;
  TensorView on_cuda = c.args()[0].tensor;
  on_cuda.device = {DeviceType::CUDA, 0};
  c.set(0, Arg(on_cuda));
  const auto reason = [&](const char* text) -> std::string {
    try {
      c.integer(text);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  {
    const StandInDevice hopper("sm_90a");
    EXPECT_EQ(c.integer("arch(x)"), 90);
    EXPECT_EQ(c.integer("shared_memory(x)"), 227 << 10);
    {
      const StandInDevice ampere("sm_80"), same("");
      EXPECT_EQ(c.integer("min(arch(x), shared_memory(x))"), 80);
      EXPECT_EQ(c.integer("shared_memory(x) + 0"), 163 << 10);
    }
    EXPECT_EQ(c.integer("arch(x)"), 90);
    EXPECT_EQ(reason("multiprocessors(x)"),
              "test: 'multiprocessors(x)': `multiprocessors` of a device of sm_90, which only a "
              "launch can ask for");
    EXPECT_EQ(reason("arch(t)"),
              "test: 'arch(t)': arch of a tensor on cpu; only CUDA devices have it");
  }
  const StandInDevice any_newer("compute_90");
  EXPECT_EQ(reason("arch(x)"),
            "test: 'arch(x)': `arch` of a device of compute_90, which only a launch can ask for");
}

TEST(Expr, WhatAnExpressionReads) {
  const Call c;
  const auto get = [&](const char* text) { return parse(text, c.symbols(), "t"); };
  EXPECT_TRUE(get("x.stride(0) == 1").reads_strides(0));
  EXPECT_TRUE(get("x.stride(n) == 1").reads_strides(0));
  EXPECT_TRUE(get("x.is_contiguous()").reads_strides(0));
  EXPECT_FALSE(get("x.stride(0) == t.size(0)").reads_strides(1));
  EXPECT_TRUE(get("x.size(0) + n").reads(5));
  EXPECT_FALSE(get("x.size(0) + n").reads(1));
  EXPECT_TRUE(get("defined(bias)").reads(4));
  for (const char* text : {"x.data", "x.alignment", "aligned(x, 16)", "aligned(x, n)"})
    EXPECT_TRUE(get(text).reads_data()) << text;
  EXPECT_FALSE(get("x").reads_data());
  EXPECT_TRUE(get("n <= shared_memory(x)").reads_device());
  EXPECT_FALSE(get("n <= shared_memory(x)").reads_device_alone());
  EXPECT_TRUE(get("arch(x) >= 90 and 4 < multiprocessors(t)").reads_device_alone());
  EXPECT_FALSE(get("4 < 5").reads_device_alone());
  EXPECT_FALSE(get("arch(x)").is_constant());
  EXPECT_TRUE(get("4 * 64 if true else n").is_constant());
  EXPECT_FALSE(get("n * 0").is_constant());
  EXPECT_EQ(get("  x.numel()\n / 2 ").text(), "x.numel()\n / 2");
  EXPECT_EQ(get("x.shape").type(), Type::IntList);
  EXPECT_FALSE(Expr());
}

TEST(Expr, ListsOfExpressions) {
  const Call c;
  const auto items = parse_list("x, *dims, min(n, 2), x.shape[1:] ,", c.symbols(), "t");
  ASSERT_EQ(items.size(), 4u);
  EXPECT_EQ(items[0].type(), Type::Tensor);
  EXPECT_EQ(items[1].type(), Type::IntList);
  EXPECT_EQ(items[1].text(), "dims");
  EXPECT_EQ(items[2].eval_int(c.args()), 2);
  EXPECT_EQ(items[2].text(), "min(n, 2)");
  EXPECT_EQ(items[3].text(), "x.shape[1:]");
  EXPECT_TRUE(parse_list("", c.symbols(), "t").empty());
  EXPECT_TRUE(parse_list(" \n", c.symbols(), "t").empty());
}

TEST(Expr, LaunchErrorsNameTheExpression) {
  Call c;
  EXPECT_EQ(
      c.launch_error("x.size(3)"),
      "test: 'x.size(3)': dimension 3 is out of range: the tensor has rank 3, expected -3 to 2");
  EXPECT_EQ(
      c.launch_error("n + t.stride(-n)"),
      "test: 'n + t.stride(-n)': dimension -7 is out of range: the tensor has rank 2, expected "
      "-2 to 1");
  EXPECT_EQ(c.launch_error("s.size(0)"),
            "test: 's.size(0)': dimension 0 is out of range: the tensor has rank 0, so it has no "
            "dimensions");
  EXPECT_EQ(c.launch_error("dims[4]"),
            "test: 'dims[4]': index 4 is out of range: the list has length 4, expected -4 to 3");
  EXPECT_EQ(c.launch_error("n // e.numel()"), "test: 'n // e.numel()': division by zero: 7 // 0");
  EXPECT_EQ(c.launch_error("n % (n - 7)"), "test: 'n % (n - 7)': division by zero: 7 % 0");
  EXPECT_EQ(c.launch_error("ceil_div(n, n - 7)"),
            "test: 'ceil_div(n, n - 7)': division by zero: ceil_div(7, 0)");
  EXPECT_EQ(c.launch_error("1 / (scale - 0.5)"),
            "test: '1 / (scale - 0.5)': division by zero: 1.0 / 0.0");
  EXPECT_EQ(c.launch_error("n * 9223372036854775807"),
            "test: 'n * 9223372036854775807': 7 * 9223372036854775807 overflows a 64-bit integer");
  EXPECT_EQ(c.launch_error("aligned(x, n - 7)"),
            "test: 'aligned(x, n - 7)': alignment of 0 bytes; expected 1 or more");
  c.set(5, Arg::of_float(2.5));
  EXPECT_EQ(c.launch_error("n + 1"), "test: 'n + 1': argument 'n' is a float, expected int");
  c.set(0, Arg::of_ints(nullptr, 0));
  EXPECT_EQ(c.launch_error("x.dim()"),
            "test: 'x.dim()': argument 'x' is an int[], expected Tensor");
}

TEST(Expr, EdgesOf64Bits) {
  const std::vector<Symbol> symbols = {{"a", Type::Int}, {"b", Type::Int}};
  std::vector<Arg> args = {Arg::of_int(INT64_MIN), Arg::of_int(-1)};
  const auto value = [&](const char* text) {
    return parse(text, symbols, "t").eval_int(args.data());
  };
  EXPECT_EQ(value("-9223372036854775808"), INT64_MIN);
  EXPECT_EQ(value("9223372036854775807"), INT64_MAX);
  EXPECT_EQ(value("a % b"), 0);
  EXPECT_EQ(value("a // 2"), INT64_MIN / 2);
  EXPECT_EQ(value("a // (b - 1) + a % 3"), (int64_t{1} << 62) + 1);
  for (const char* text : {"a // b", "a / b", "ceil_div(a, b)", "-a", "abs(a)", "a - 1", "a + b",
                           "a * b", "a * 2", "next_power_of_2(-(a + 1))"}) {
    EXPECT_THROW(value(text), Error) << text;
  }
}

// Arithmetic of random operands against 128-bit arithmetic, and overflow exactly where the true
// result has no place.
TEST(Expr, ArithmeticIsExactOrAnError) {
  const std::vector<Symbol> symbols = {{"a", Type::Int}, {"b", Type::Int}};
  const auto floor_div = [](Wide a, Wide b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); };
  struct Case {
    const char* text;
    Wide (*expected)(Wide, Wide);
    bool divides;
  };
  static const auto floor = +floor_div;
  const Case cases[] = {
      {"a + b", [](Wide a, Wide b) { return a + b; }, false},
      {"a - b", [](Wide a, Wide b) { return a - b; }, false},
      {"a * b", [](Wide a, Wide b) { return a * b; }, false},
      {"a // b", [](Wide a, Wide b) { return floor(a, b); }, true},
      {"a % b", [](Wide a, Wide b) { return a - b * floor(a, b); }, true},
      {"ceil_div(a, b)", [](Wide a, Wide b) { return -floor(-a, b); }, true},
      {"min(a, b)", [](Wide a, Wide b) { return a < b ? a : b; }, false},
      {"max(a, b)", [](Wide a, Wide b) { return a > b ? a : b; }, false},
      {"abs(a)", [](Wide a, Wide) { return a < 0 ? -a : a; }, false},
      {"-a", [](Wide a, Wide) { return -a; }, false},
  };
  std::mt19937_64 random(20261124);
  const auto draw = [&]() -> int64_t {
    const auto bits = static_cast<int>(random() % 64);
    const int64_t value = static_cast<int64_t>(random()) >> bits;
    switch (random() % 8) {
      case 0:
        return static_cast<int64_t>(random() % 5) - 2;
      case 1:
        return random() % 2 != 0 ? INT64_MAX : INT64_MIN;
      default:
        return value;
    }
  };
  for (const Case& c : cases) {
    const Expr variable = parse(c.text, symbols, "t");
    int results = 0, overflows = 0;
    for (int i = 0; i < 20000; ++i) {
      const int64_t a = draw(), b = draw();
      const Arg args[] = {Arg::of_int(a), Arg::of_int(b)};
      if (c.divides && b == 0) {
        EXPECT_THROW(variable.eval_int(args), Error);
        continue;
      }
      const Wide expected = c.expected(a, b);
      const bool fits = expected >= INT64_MIN && expected <= INT64_MAX;
      ++(fits ? results : overflows);
      try {
        const int64_t got = variable.eval_int(args);
        ASSERT_TRUE(fits && got == static_cast<int64_t>(expected))
            << c.text << " with a = " << a << ", b = " << b << " gave " << got;
      } catch (const Error& error) {
        ASSERT_FALSE(fits) << error.what();
        ASSERT_NE(std::string(error.what()).find("overflows a 64-bit integer"), std::string::npos)
            << error.what();
      }
    }
    EXPECT_GT(results, 1000) << c.text;
  }
}

TEST(Expr, ManyThreadsShareOneExpression) {
  const std::vector<Symbol> symbols = {{"x", Type::Tensor}, {"n", Type::Int}};
  const Expr shared = parse("ceil_div(x.numel(), n) + (x.shape[1:][0] if n > 2 else 1 // (n - n))",
                            symbols, "grid of test");
  constexpr int kThreads = 8;
  std::barrier start(kThreads);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const int64_t sizes[] = {t + 1, 5}, strides[] = {5, 1};
      TensorView view;
      view.sizes = sizes, view.strides = strides, view.dim = 2;
      const Expr copy = shared;
      start.arrive_and_wait();
      for (int64_t n = 1; n < 2000; ++n) {
        const Arg args[] = {Arg(view), Arg::of_int(n)};
        try {
          if (copy.eval_int(args) != (5 * (t + 1) + n - 1) / n + 5 || n <= 2) ++wrong;
        } catch (const Error&) {
          if (n > 2) ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
