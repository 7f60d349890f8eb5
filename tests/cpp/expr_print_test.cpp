// The texts of expressions in other languages. tests/python/test_expression_agreement.py tests that
// they have the same values.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "expr/expr.h"
#include "expr/identifier.h"

using namespace opaq;

namespace {

const std::vector<Symbol> kSymbols = {
    {"x", Type::Tensor},  {"y", Type::Tensor},    {"bias", Type::Tensor, true},
    {"n", Type::Int},     {"k", Type::Int, true}, {"eps", Type::Float},
    {"flag", Type::Bool}, {"mode", Type::String}, {"dims", Type::IntList}};

std::string python(std::string_view text) { return parse(text, kSymbols, "t").print_python(); }
std::string cpp(std::string_view text) { return parse(text, kSymbols, "t").print_cpp(); }

TEST(ExprPrint, Python) {
  EXPECT_EQ(python("x.numel() // x.size(-1)"), "opaq.FloorDiv(opaq.Numel(x), opaq.Size(x, -1))");
  EXPECT_EQ(python("eps / 2"), "opaq.Div(opaq.ToFloat(eps), 2.0)");
  EXPECT_EQ(python("n * eps"), "opaq.Mul(opaq.ToFloat(n), opaq.ToFloat(eps))");
  EXPECT_EQ(python("max(n, 3, 4)"), "opaq.Max(opaq.Max(n, 3), 4)");
  EXPECT_EQ(python("x.dtype == bfloat16 or flag"),
            "opaq.Or(opaq.Eq(opaq.DType(x), opaq.torch.bfloat16), lambda: flag)");
  EXPECT_EQ(python("dims[:n + 1][-1]"), "opaq.Item(opaq.Slice(dims, None, opaq.Add(n, 1)), -1)");
  EXPECT_EQ(python("defined(bias) and aligned(x, 16)"),
            "opaq.And(opaq.Defined(bias), lambda: opaq.Aligned(x, 16))");
  EXPECT_EQ(python("bias.size(0) if defined(bias) else k"),
            "opaq.Where(opaq.Defined(bias), lambda: opaq.Size(opaq.Value(bias), 0), lambda: "
            "opaq.Value(k))");
  EXPECT_EQ(python("mode == \"it's\""), "opaq.Eq(mode, 'it\\'s')");
  EXPECT_EQ(python("int32(n)"), "opaq.Cast('int32', n)");
  EXPECT_EQ(python("64 * 4"), "256");
  EXPECT_EQ(python("eps + 1e20"), "opaq.Add(opaq.ToFloat(eps), 1e+20)");
}

TEST(ExprPrint, Cpp) {
  EXPECT_EQ(cpp("x.numel() / x.size(-1)"),
            "opaq_divide(static_cast<double>(x.numel()), static_cast<double>(x.size(-1)))");
  EXPECT_EQ(cpp("(n + 1) * 2 - (n - 1)"), "opaq_sub(opaq_mul(opaq_add(n, 1), 2), opaq_sub(n, 1))");
  EXPECT_EQ(parse("x.numel() / n", kSymbols, "t").as_integer().print_cpp(),
            "opaq_exact_div(x.numel(), n)");
  EXPECT_EQ(cpp("min(n, 3)"), "opaq_min(n, 3)");
  EXPECT_EQ(cpp("max(n, 3, len(dims))"), "opaq_max(opaq_max(n, 3), dims.size)");
  EXPECT_EQ(cpp("n / eps"), "opaq_divide(static_cast<double>(n), eps)");
  EXPECT_EQ(cpp("n % 8 == 0 and x.stride(-1) == 1 or flag"),
            "(opaq_mod(n, 8) == 0 && x.stride(-1) == 1) || flag");
  EXPECT_EQ(cpp("1 if not flag else n"), "!flag ? int64_t{1} : n");
  EXPECT_EQ(cpp("bias.size(0) if defined(bias) else k"),
            "bias.has_value() ? opaq_given(bias, \"bias\").size(0) : opaq_given(k, \"k\")");
  EXPECT_EQ(cpp("x.dtype == bfloat16 and x.dim() > 1"), "x.dtype == opaq_bfloat16 && x.dim > 1");
  EXPECT_EQ(cpp("x.shape[1:] == dims[:-1]"), "x.shape().slice(1, INT64_MAX) == dims.slice(0, -1)");
  EXPECT_EQ(cpp("mode == 'a\"b'"), "mode == std::string_view(\"a\\\"b\")");
  EXPECT_EQ(cpp("aligned(x, 16)"), "x.aligned(16)");
  EXPECT_EQ(cpp("int32(n)"), "opaq_cast<int32_t>(n)");
  EXPECT_EQ(cpp("uint64(5)"), "static_cast<uint64_t>(5)");
  EXPECT_EQ(cpp("int32(n) + 1"), "opaq_add(static_cast<int64_t>(opaq_cast<int32_t>(n)), 1)");
  EXPECT_EQ(cpp("-9223372036854775808"), "INT64_MIN");
  EXPECT_EQ(cpp("x"), "x");
}

TEST(ExprPrint, NamesThatLanguagesReserveGetOthers) {
  EXPECT_EQ(cpp_identifier("default"), "default_");
  EXPECT_EQ(cpp_identifier("default_"), "default__");
  EXPECT_EQ(cpp_identifier("from"), "from");
  EXPECT_EQ(cpp_identifier("INT64_MAX"), "INT64_MAX_");
  EXPECT_EQ(cpp_identifier("N"), "N");
  EXPECT_EQ(cpp_identifier("opaq_stream"), "_opaq_stream");
  EXPECT_EQ(cpp_identifier("_opaq_stream"), "__opaq_stream");
  EXPECT_EQ(cpp_identifier("_"), "_");
  EXPECT_EQ(python_identifier("from"), "from_");
  EXPECT_EQ(python_identifier("from_"), "from__");
  EXPECT_EQ(python_identifier("__debug__"), "__debug___");
  EXPECT_EQ(python_identifier("default"), "default");
  EXPECT_EQ(python_identifier("opaq"), "_opaq");
  const std::vector<Symbol> symbols = {{"from", Type::Tensor, true}, {"new", Type::Int}};
  const Expr expr = parse("from.size(0) + new if defined(from) else 1", symbols, "t");
  EXPECT_EQ(expr.print_python(),
            "opaq.Where(opaq.Defined(from_), lambda: opaq.Add(opaq.Size(opaq.Value(from_), 0), "
            "new), lambda: 1)");
  EXPECT_EQ(expr.print_cpp(),
            "from.has_value() ? opaq_add(opaq_given(from, \"from\").size(0), new_) : int64_t{1}");
}

}  // namespace
