// Errors of wrong expressions: the text, a caret under the column, what was found and what is
// expected.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "expr/expr.h"

using namespace opaq;

namespace {

const std::vector<Symbol> kSymbols = {
    {"x", Type::Tensor},    {"weight", Type::Tensor}, {"bias", Type::Tensor, true},
    {"n", Type::Int},       {"flag", Type::Bool},     {"eps", Type::Float},
    {"k", Type::Int, true}, {"dims", Type::IntList},  {"mode", Type::String}};

template <class F>
std::string declaration_error(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::Declaration) << error.what();
    return error.what();
  }
  return "no error";
}
std::string error(std::string_view text) {
  return declaration_error([&] { parse(text, kSymbols, "grid of mylib::op"); });
}
std::string list_error(std::string_view text) {
  return declaration_error([&] { parse_list(text, kSymbols, "args of mylib::op"); });
}
// The same without the heading and the picture.
std::string reason(std::string_view text) {
  std::string message = error(text);
  const std::string heading = "grid of mylib::op: ";
  EXPECT_EQ(message.substr(0, heading.size()), heading);
  message.erase(0, heading.size());
  return message.substr(0, message.find('\n'));
}

TEST(ExprError, ShowsTheColumn) {
  EXPECT_EQ(error("wieght.numel() / 256"),
            "grid of mylib::op: unknown name 'wieght'; did you mean 'weight'?\n"
            "  wieght.numel() / 256\n"
            "  ^");
  EXPECT_EQ(error("  n * x.sizes(0) "),
            "grid of mylib::op: unknown method 'sizes' of Tensor x; did you mean 'size'?\n"
            "  n * x.sizes(0)\n"
            "        ^");
  EXPECT_EQ(error("min(n,"),
            "grid of mylib::op: found the end, expected a value\n"
            "  min(n,\n"
            "        ^");
  EXPECT_EQ(list_error("x, n, wieght"),
            "args of mylib::op: unknown name 'wieght'; did you mean 'weight'?\n"
            "  x, n, wieght\n"
            "        ^");
}

TEST(ExprError, ShowsTheLineAndCountsCharacters) {
  EXPECT_EQ(error("x.numel() +\n\tn + $ + 1\n + 2"),
            "grid of mylib::op: unexpected character '$'\n"
            "   n + $ + 1\n"
            "       ^");
  EXPECT_EQ(error("mode == 'é' + n"),
            "grid of mylib::op: '+' takes int or float, found str\n"
            "  mode == 'é' + n\n"
            "          ^");
  EXPECT_EQ(error("n + é"),
            "grid of mylib::op: unexpected character 'é'\n"
            "  n + é\n"
            "      ^");
}

TEST(ExprError, UnknownNames) {
  EXPECT_EQ(reason("bfloat == x.dtype"), "unknown name 'bfloat'; did you mean 'bfloat16'?");
  EXPECT_EQ(reason("quantity"),
            "unknown name 'quantity'; expected an argument (x, weight, bias, n, flag, eps, k, "
            "dims, mode) or a dtype");
  EXPECT_EQ(reason("ceildiv(n, 2)"), "unknown function 'ceildiv'; did you mean 'ceil_div'?");
  EXPECT_EQ(reason("sqrt(n)"),
            "unknown function 'sqrt'; expected one of min, max, ceil_div, abs, next_power_of_2, "
            "aligned, defined, len, arch, shared_memory, multiprocessors, int32, uint32, "
            "int64, uint64, float32, float64, bool");
  EXPECT_EQ(reason("ceil_div"), "unknown name 'ceil_div'; it is a function: write ceil_div(...)");
  EXPECT_EQ(reason("x.dtype == torch.flaot32"), "unknown name 'flaot32'; did you mean 'float32'?");
  EXPECT_EQ(reason("None"),
            "found 'None'; write defined(argument) to ask whether an optional argument is given");
  EXPECT_EQ(reason("bias is None"),
            "found 'is', write defined(argument) to ask whether an optional argument is given");
  EXPECT_EQ(declaration_error([] { parse("n", {}, "block"); }),
            "block: unknown name 'n'; there are no arguments here\n  n\n  ^");
}

TEST(ExprError, Members) {
  EXPECT_EQ(reason("x.numel"), "'numel' is a method; write x.numel()");
  EXPECT_EQ(reason("x.size"), "'size' is a method; write x.size(i)");
  EXPECT_EQ(reason("x.dtype()"), "'dtype' is not a method; write x.dtype");
  EXPECT_EQ(reason("x.size()"), "size takes 1 argument, found 0; all sizes are x.shape");
  EXPECT_EQ(reason("x.stride(0, 1)"), "stride takes 1 argument, found 2");
  EXPECT_EQ(reason("x.ndim"), "unknown member 'ndim' of Tensor x; write x.dim()");
  EXPECT_EQ(reason("x.data_ptr()"), "unknown method 'data_ptr' of Tensor x; write x.data");
  EXPECT_EQ(reason("x.element_size()"),
            "unknown method 'element_size' of Tensor x; write x.itemsize");
  EXPECT_EQ(reason("x.mean()"),
            "unknown method 'mean' of Tensor x; expected one of numel(), size(i), stride(i), "
            "dim(), dtype, itemsize, shape, "
            "is_contiguous(), data, alignment");
  EXPECT_EQ(reason("n.size(0)"), "'size' belongs to a Tensor argument, found n of type int");
  EXPECT_EQ(reason("(n + 1).dtype"), "'dtype' belongs to a Tensor argument, found int");
  EXPECT_EQ(reason("x.size(1.5)"), "a dimension takes int, found float");
  EXPECT_EQ(reason("x.5"), "found '.5', expected an operator or the end");
}

TEST(ExprError, Types) {
  EXPECT_EQ(reason("n + x.dtype"), "'+' takes int or float, found dtype");
  EXPECT_EQ(reason("x * 2"), "'*' takes int or float, found Tensor; write its numel() or size(i)");
  EXPECT_EQ(reason("n + flag"), "'+' takes int or float, found bool; convert it: int64(...)");
  EXPECT_EQ(reason("n % eps"), "'%' takes int, found float");
  EXPECT_EQ(reason("n // 2.0"), "'//' takes int, found float");
  EXPECT_EQ(reason("n and flag"), "'and' takes bool, found int; compare it, as in '... != 0'");
  EXPECT_EQ(reason("not bias"),
            "'not' takes bool, found Tensor; write defined(bias) to ask whether it is None");
  EXPECT_EQ(reason("1 if n else 2"),
            "the condition of 'if' takes bool, found int; compare it, as in '... != 0'");
  EXPECT_EQ(reason("n if flag else mode"),
            "the two values of 'if' and 'else' must have the same type, found int and str");
  EXPECT_EQ(reason("x.dtype < float16"),
            "'<' cannot compare dtype with dtype; expected int or float");
  EXPECT_EQ(reason("x.dtype == 'float16'"),
            "'==' cannot compare dtype with str; expected two values of the same type: int, float, "
            "bool, dtype, str or int[]");
  EXPECT_EQ(
      reason("x == weight"),
      "'==' cannot compare Tensor with Tensor; expected two values of the same type: int, float, "
      "bool, dtype, str or int[]");
  EXPECT_EQ(reason("x.dtype in (float16, 3)"),
            "'==' cannot compare dtype with int; expected two values of the same type: int, float, "
            "bool, dtype, str or int[]");
  EXPECT_EQ(
      reason("n in dims"),
      "found 'dims', expected the values in parentheses, as in 'x.dtype in (float16, bfloat16)'");
  EXPECT_EQ(reason("n[0]"), "'[...]' takes int[], found int");
  EXPECT_EQ(reason("dims[eps]"), "an index takes int, found float");
  EXPECT_EQ(reason("dims[::2]"), "a slice has no step here; expected ']'");
  EXPECT_EQ(reason("len(mode)"), "'len' takes int[], found str");
  EXPECT_EQ(reason("int32(mode)"), "int32 takes int, float or bool, found str");
  EXPECT_EQ(reason("min(n)"), "min takes 2 arguments or more, found 1");
  EXPECT_EQ(reason("ceil_div(n)"), "ceil_div takes 2 arguments, found 1");
  EXPECT_EQ(reason("aligned(n, 16)"),
            "'aligned' belongs to a Tensor argument, found n of type int");
  EXPECT_EQ(reason("aligned(x, 0)"), "an alignment is 1 byte or more, found 0");
  EXPECT_EQ(reason("defined(n + 1)"), "'defined' takes the name of an argument");
}

TEST(ExprError, Syntax) {
  EXPECT_EQ(reason(""), "found the end, expected a value");
  EXPECT_EQ(reason("n n"), "found 'n', expected an operator or the end");
  EXPECT_EQ(reason("n, 1"), "found ',', expected an operator or the end");
  EXPECT_EQ(reason("(n, 1)"), "found ',', expected ')' to close '('");
  EXPECT_EQ(reason("n +"), "found the end, expected a value");
  EXPECT_EQ(reason("n + + 1"), "found '+', expected a value");
  EXPECT_EQ(reason("max(n 1)"), "found '1', expected ')' or ',' after an argument");
  EXPECT_EQ(reason("1 if flag"), "found the end, expected 'else' after the condition of 'if'");
  EXPECT_EQ(reason("x."), "found the end, expected the name of a member");
  EXPECT_EQ(reason("dims[1"), "found the end, expected ':' or ']'");
  EXPECT_EQ(reason("and"), "found 'and', expected a value");
  EXPECT_EQ(reason("flag && flag"), "found '&&'; write 'and'");
  EXPECT_EQ(reason("!flag"), "found '!'; write 'not'");
  EXPECT_EQ(reason("n ** 2"), "found '**'; there is no power operator; multiply");
  EXPECT_EQ(reason("flag ? 1 : 2"), "found '?'; write 'a if condition else b'");
  EXPECT_EQ(reason("n = 2"), "found '='; write '==' to compare");
  EXPECT_EQ(reason("mode == 'mean"), "this string has no closing '");
  EXPECT_EQ(reason("mode == '\\q'"),
            "unknown escape in a string; expected one of \\n \\t \\\\ \\' \\\"");
  EXPECT_EQ(list_error("n,, 1"), "args of mylib::op: found ',', expected a value\n  n,, 1\n    ^");
  EXPECT_EQ(list_error("*n"), "args of mylib::op: '*' takes int[], found int\n  *n\n   ^");
  EXPECT_EQ(list_error("n n"),
            "args of mylib::op: found 'n', expected an operator, ',' or the end\n  n n\n    ^");
}

TEST(ExprError, Numbers) {
  EXPECT_EQ(reason("9223372036854775808"), "9223372036854775808 does not fit a 64-bit integer");
  EXPECT_EQ(reason("99999999999999999999"), "99999999999999999999 does not fit a 64-bit integer");
  EXPECT_EQ(reason("1e999"), "1e999 does not fit a 64-bit float");
  EXPECT_EQ(reason("1e+"), "this number has no digits after its exponent");
  EXPECT_EQ(reason("2n"), "a number runs into a name; expected an operator between them");
  EXPECT_EQ(reason("010"), "an integer cannot begin with 0");
}

TEST(ExprError, ConstantsThatAlwaysFail) {
  EXPECT_EQ(error("n + 1 // 0"),
            "grid of mylib::op: division by zero: 1 // 0\n  n + 1 // 0\n        ^");
  EXPECT_EQ(reason("4611686018427387904 * 2"),
            "4611686018427387904 * 2 overflows a 64-bit integer");
  EXPECT_EQ(reason("int32(3000000000)"), "3000000000 does not fit int32");
  EXPECT_EQ(reason("eps * (1e300 * 1e300)"), "this constant does not fit a 64-bit float");
}

TEST(ExprError, EndlessExpressionsAreRefused) {
  const auto repeat = [](const std::string& text, int times) {
    std::string out;
    for (int i = 0; i < times; ++i) out += text;
    return out;
  };
  const std::string deep = "this expression is too deeply nested; split it";
  EXPECT_EQ(reason(repeat("(", 20000)), deep);
  EXPECT_EQ(reason(repeat("-", 20000) + "n"), deep);
  EXPECT_EQ(reason(repeat("not ", 20000) + "flag"), deep);
  EXPECT_EQ(reason(repeat("1 if flag else ", 20000) + "2"), deep);
  EXPECT_EQ(reason("n" + repeat(" + n", 20000)),
            "this expression is too long; split it, or give its parts as arguments");
  std::string doubling = "flag";
  for (int i = 0; i < 40; ++i)
    doubling = "(" + doubling + ") in (true, flag)";  // 2^40 copies of `flag` when spelled out
  EXPECT_EQ(
      reason(doubling),
      "this expression is too long or too deeply nested; split it, or give its parts as arguments");
  EXPECT_EQ(parse("n" + repeat(" + n", 300), kSymbols, "t").type(),
            Type::Int);  // what people write is far inside
}

}  // namespace
