// Expressions in other languages: the texts, and random expressions whose Python and C++ give what evaluation gives.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "opaq/error.h"
#include "opaq/expr.h"
#include "opaq/settings.h"

using namespace opaq;

namespace {

const std::vector<Symbol> kSymbols = {{"x", Type::Tensor},    {"y", Type::Tensor},     {"bias", Type::Tensor, true}, {"n", Type::Int},
                                      {"k", Type::Int, true}, {"eps", Type::Float},    {"flag", Type::Bool},
                                      {"mode", Type::String}, {"dims", Type::IntList}};

std::string python(std::string_view text) { return parse(text, kSymbols, "t").print_python(); }
std::string sympy(std::string_view text) { return parse(text, kSymbols, "t").print_sympy(); }
std::string cpp(std::string_view text) { return parse(text, kSymbols, "t").print_cpp(); }

TEST(ExprPrint, Python) {
  EXPECT_EQ(python("x.numel() / x.size(-1)"), "x.numel() // x.size(-1)");
  EXPECT_EQ(python("eps / 2"), "eps / 2.0");
  EXPECT_EQ(python("n * eps"), "n * eps");
  EXPECT_EQ(python("ceil_div(x.numel() + 1, 2 * n)"), "-(-(x.numel() + 1) // (2 * n))");
  EXPECT_EQ(python("min(n, min(n, 3), 4)"), "min(n, min(n, 3), 4)");
  EXPECT_EQ(python("max(n, 3, 4)"), "max(n, 3, 4)");
  EXPECT_EQ(python("next_power_of_2(n + 1)"), "1 << (max(int(n + 1), 1) - 1).bit_length()");
  EXPECT_EQ(python("x.dtype in (float16, torch.bfloat16)"), "x.dtype == torch.float16 or x.dtype == torch.bfloat16");
  EXPECT_EQ(python("x.shape[1:]"), "x.shape[1:]");
  EXPECT_EQ(python("dims[:n + 1][-1]"), "dims[:n + 1][-1]");
  EXPECT_EQ(python("x.shape == dims"), "tuple(x.shape) == tuple(dims)");
  EXPECT_EQ(python("defined(bias) and aligned(x, 16)"), "bias is not None and x.data_ptr() % 16 == 0");
  EXPECT_EQ(python("x.alignment"), "min(x.data_ptr() & -x.data_ptr() or 4096, 4096)");
  EXPECT_EQ(python("1 if not flag else -1"), "1 if not flag else -1");
  EXPECT_EQ(python("mode == \"it's\""), "mode == 'it\\'s'");
  EXPECT_EQ(python("int32(n) + int64(flag)"), "n + int(flag)");
  EXPECT_EQ(python("bool(n)"), "n != 0");
  EXPECT_EQ(python("1 < n <= 4"), "1 < n and n <= 4");
  EXPECT_EQ(python("64 * 4"), "256");
  EXPECT_EQ(python("eps * 1e-6 + 1e20"), "eps * 1e-06 + 1e+20");
}

TEST(ExprPrint, ParenthesesOnlyWhereNeeded) {
  for (const char* text :
       {"n - (n - 1)", "n - 1 - 2", "(n + 1) * 2", "n * (n // 2)", "n // 2 * 3", "-(n + 1)", "-n // 2", "-(n // 2)", "n % (2 * n)",
        "n + -1", "(n if flag else 2) + 1", "n if flag else 2 if n == 1 else 3", "(n if flag else 2) if flag else 3", "(n < 1) == flag",
        "not (flag and n < 2)", "(not flag) == flag", "flag and (flag or n == 1)", "(flag or flag) and flag"}) {
    EXPECT_EQ(python(text), text);
  }
}

TEST(ExprPrint, Sympy) {
  EXPECT_EQ(sympy("x.numel() / x.size(-1)"), "FloorDiv(x.numel(), x.size(-1))");
  EXPECT_EQ(sympy("x.numel() % 8 == 0 and x.stride(-1) == 1"), "And(Eq(Mod(x.numel(), 8), 0), Eq(x.stride(-1), 1))");
  EXPECT_EQ(sympy("not flag or n != 2"), "Or(Not(flag), Ne(n, 2))");
  EXPECT_EQ(sympy("0 < n <= max(n, 4, 5)"), "And(Lt(0, n), Le(n, Max(n, 4, 5)))");
  EXPECT_EQ(sympy("ceil_div(n, 2) if n >= 2 else next_power_of_2(n)"), "Where(Ge(n, 2), CeilDiv(n, 2), NextPowerOf2(n))");
  EXPECT_EQ(sympy("aligned(x, 16) and defined(bias)"), "And(Aligned(x, 16), Defined(bias))");
  EXPECT_EQ(sympy("x.dtype in (float16, bfloat16)"), "Or(Eq(x.dtype, torch.float16), Eq(x.dtype, torch.bfloat16))");
  EXPECT_EQ(sympy("x.shape[1:] == y.shape"), "Eq(tuple(x.shape[1:]), tuple(y.shape))");
  EXPECT_EQ(sympy("-(n + 1) * 2 - abs(n)"), "-(n + 1) * 2 - abs(n)");
  EXPECT_EQ(sympy("x.alignment >= 8 and x.data > 0"), "And(Ge(x.alignment, 8), Gt(x.data, 0))");
  EXPECT_EQ(sympy("int64(flag) + int32(eps) + int32(n)"), "Where(flag, 1, 0) + ToInt(eps) + n");
  EXPECT_EQ(sympy("bool(n)"), "Ne(n, 0)");
}

TEST(ExprPrint, Cpp) {
  EXPECT_EQ(cpp("x.numel() / x.size(-1)"), "opaq_floor_div(x.numel(), x.size(-1))");
  EXPECT_EQ(cpp("(n + 1) * 2 - (n - 1)"), "(n + 1) * 2 - (n - 1)");
  EXPECT_EQ(cpp("min(n, 3)"), "std::min<int64_t>(n, 3)");
  EXPECT_EQ(cpp("max(n, 3, len(dims))"), "std::max<int64_t>({n, 3, dims.size})");
  EXPECT_EQ(cpp("n / eps"), "opaq_divide(static_cast<double>(n), eps)");
  EXPECT_EQ(cpp("n % 8 == 0 and x.stride(-1) == 1 or flag"), "(opaq_mod(n, 8) == 0 && x.stride(-1) == 1) || flag");
  EXPECT_EQ(cpp("1 if not flag else n"), "!flag ? int64_t{1} : n");
  EXPECT_EQ(cpp("bias.size(0) if defined(bias) else k"), "bias.has_value() ? bias.value().size(0) : k.value()");
  EXPECT_EQ(cpp("x.dtype == bfloat16 and x.dim() > 1"), "x.dtype == opaq_bfloat16 && x.dim > 1");
  EXPECT_EQ(cpp("x.shape[1:] == dims[:-1]"), "x.shape().slice(1, INT64_MAX) == dims.slice(0, -1)");
  EXPECT_EQ(cpp("mode == 'a\"b'"), "mode == std::string_view(\"a\\\"b\")");
  EXPECT_EQ(cpp("aligned(x, 16)"), "opaq_mod(x.address(), 16) == 0");
  EXPECT_EQ(cpp("int32(n)"), "opaq_cast<int32_t>(n)");
  EXPECT_EQ(cpp("uint64(5)"), "static_cast<uint64_t>(5)");
  EXPECT_EQ(cpp("int32(n) + 1"), "static_cast<int64_t>(opaq_cast<int32_t>(n)) + 1");
  EXPECT_EQ(cpp("-9223372036854775808"), "INT64_MIN");
  EXPECT_EQ(cpp("x"), "x");
}

// Random texts of the language, by type.
class Generator {
 public:
  explicit Generator(uint64_t seed) : random_(seed) {}

  std::string integer(int depth) {
    if (depth == 0 || pick(5) == 0) {
      static const char* const leaves[] = {"n",          "x.numel()",    "x.size(-1)",     "x.size(0)",              "y.stride(0)",
                                           "x.dim()",    "len(dims)",    "dims[1]",        "k if defined(k) else 3", "x.size(n % 3)",
                                           "x.itemsize", "dims[-1:][0]", "x.shape[1:][0]"};
      return pick(3) == 0 ? std::to_string(static_cast<int>(pick(40)) - 10) : "(" + std::string(leaves[pick(std::size(leaves))]) + ")";
    }
    const std::string a = integer(depth - 1), b = integer(depth - 1);
    switch (pick(12)) {
      case 0: return a + " + " + group(b);
      case 1: return a + " - " + group(b);
      case 2: return group(a) + " * " + group(b);
      case 3: return group(a) + " // " + group(b);
      case 4: return group(a) + " / " + b;
      case 5: return group(a) + " % " + group(b);
      case 6: return "ceil_div(" + a + ", " + b + ")";
      case 7: return "min(" + a + ", " + b + ", " + integer(depth - 1) + ")";
      case 8: return "max(" + a + ", " + b + ")";
      case 9: return "-" + group(a);
      case 10: return pick(2) == 0 ? "abs(" + a + ")" : "next_power_of_2(" + a + ")";
      default: return "(" + a + " if " + boolean(depth - 1) + " else " + b + ")";
    }
  }

  std::string floating(int depth) {
    if (depth == 0) return pick(2) == 0 ? "eps" : "2.5";
    const std::string a = floating(depth - 1), b = pick(2) == 0 ? floating(depth - 1) : group(integer(depth - 1));
    switch (pick(7)) {
      case 0: return a + " + " + group(b);
      case 1: return group(b) + " - " + group(a);
      case 2: return group(a) + " * " + group(b);
      case 3: return group(b) + " / " + group(a);
      case 4: return "min(" + a + ", " + b + ")";
      case 5: return "abs(" + a + ")";
      default: return "(" + a + " if " + boolean(depth - 1) + " else " + b + ")";
    }
  }

  std::string boolean(int depth) {
    if (depth == 0) {
      static const char* const leaves[] = {"flag",          "x.dtype == float16",     "aligned(x, 16)",
                                           "mode != 'sum'", "x.shape[1:] == y.shape", "defined(bias)"};
      return leaves[pick(std::size(leaves))];
    }
    static const char* const comparisons[] = {" == ", " != ", " < ", " <= ", " > ", " >= "};
    switch (pick(6)) {
      case 0: return boolean(depth - 1) + " and " + boolean(depth - 1);
      case 1: return boolean(depth - 1) + " or " + boolean(depth - 1);
      case 2: return "not " + boolean(depth - 1);
      case 3: return floating(depth - 1) + comparisons[pick(6)] + group(integer(depth - 1));
      case 4: return "(" + boolean(depth - 1) + ") == (" + boolean(depth - 1) + ")";
      default: return integer(depth - 1) + comparisons[pick(6)] + integer(depth - 1);
    }
  }

  uint64_t pick(uint64_t n) { return random_() % n; }

 private:
  std::string group(const std::string& text) { return pick(3) == 0 ? text : "(" + text + ")"; }  // else precedence decides
  std::mt19937_64 random_;
};

// An expression that evaluates without an error, and its value as a literal that Python and C++ share.
struct Sample {
  Expr expr;
  std::string value;
};

std::vector<Sample> samples(size_t count) {
  static const int64_t x_sizes[] = {6, 4, 10}, x_strides[] = {40, 10, 1}, y_sizes[] = {4, 10}, y_strides[] = {1, 4}, dims[] = {3, -7, 5};
  TensorView x, y;
  x.data = reinterpret_cast<void*>(uintptr_t{4096}), y.data = reinterpret_cast<void*>(uintptr_t{4100});
  x.sizes = x_sizes, x.strides = x_strides, x.dim = 3, x.dtype = DType::Float16;
  y.sizes = y_sizes, y.strides = y_strides, y.dim = 2;
  const Arg args[] = {Arg(x), Arg(y),  Arg(), Arg::of_int(-11), Arg(), Arg::of_float(0.375), Arg::of_bool(true),
                      Arg::of_string("mean"), Arg::of_ints(dims, 3)};
  Generator generate(20261124);
  std::vector<Sample> out;
  while (out.size() < count) {
    const auto depth = static_cast<int>(1 + generate.pick(4));
    const uint64_t type = generate.pick(3);
    const std::string text = type == 0 ? generate.integer(depth) : type == 1 ? generate.floating(depth) : generate.boolean(depth);
    try {
      const Expr expr = parse(text, kSymbols, "sample");
      const Value value = expr.eval(args);
      char literal[64];
      if (value.type == Type::Float) std::snprintf(literal, sizeof literal, "%.17g", value.floating);
      else std::snprintf(literal, sizeof literal, "%lld", static_cast<long long>(value.type == Type::Bool ? value.boolean : value.integer));
      out.push_back({expr, literal});
    } catch (const Error&) {  // an overflow or a division by zero: not the same in Python, which has no bounds
    }
  }
  return out;
}

// Writes `text` to a file that ends in `suffix`, runs `command` with $FILE replaced by its path, and gives what that printed.
std::string output_of(const std::string& text, const std::string& suffix, std::string command) {
  std::string path = testing::TempDir() + "opaq_expr_XXXXXX" + suffix;
  const int fd = mkstemps(path.data(), static_cast<int>(suffix.size()));
  if (fd < 0) return "no temporary file";
  close(fd);
  std::ofstream(path) << text;
  for (size_t at; (at = command.find("$FILE")) != std::string::npos;) command.replace(at, 5, path);
  std::string out;
  FILE* pipe = popen(("{ " + command + "; } 2>&1").c_str(), "r");
  char buffer[4096];
  while (pipe != nullptr && std::fgets(buffer, sizeof buffer, pipe) != nullptr) out += buffer;
  if (pipe != nullptr) pclose(pipe);
  unlink(path.c_str());
  return out;
}

constexpr const char* kPythonWorld = R"(
class Tensor:
    def __init__(self, shape, strides, dtype, itemsize, address):
        self.shape, self.strides, self.dtype, self.itemsize, self.address = shape, strides, dtype, itemsize, address
    def numel(self):
        n = 1
        for s in self.shape: n *= s
        return n
    def size(self, i): return self.shape[i]
    def stride(self, i): return self.strides[i]
    def dim(self): return len(self.shape)
    def data_ptr(self): return self.address
class torch: float16, float32 = "float16", "float32"
x = Tensor((6, 4, 10), (40, 10, 1), torch.float16, 2, 4096)
y = Tensor((4, 10), (1, 4), torch.float32, 4, 4100)
bias, n, k, eps, flag, mode, dims = None, -11, None, 0.375, True, "mean", [3, -7, 5]
def check(text, value):
    got = eval(text)
    if got != value: print(text, "is", got, "not", value)
)";

// Where is eager here, as in a symbolic trace: the branch not taken is evaluated, so its errors give None.
constexpr const char* kSympyWorld = R"(
FloorDiv, Mod, CeilDiv, Min, Max = lambda a, b: a // b, lambda a, b: a % b, lambda a, b: -(-a // b), min, max
NextPowerOf2 = lambda a: 1 << (max(a, 1) - 1).bit_length()
Eq, Ne, Lt, Le = lambda a, b: a == b, lambda a, b: a != b, lambda a, b: a < b, lambda a, b: a <= b
Gt, Ge, And, Or = lambda a, b: a > b, lambda a, b: a >= b, lambda a, b: a and b, lambda a, b: a or b
Not, Where, Aligned, Defined = lambda a: not a, lambda c, a, b: a if c else b, lambda x, n: x.address % n == 0, lambda a: a is not None
def check_sympy(text, value):
    try: got = eval(text)
    except (ZeroDivisionError, IndexError, TypeError): return
    if got != value: print(text, "is", got, "not", value)
    global checked
    checked += 1
checked = 0
)";

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) (c == '"' || c == '\\' ? out += '\\' : out) += c;
  return out + "\"";
}

TEST(ExprPrint, PythonGivesTheSameValues) {
  if (std::system("python3 -c '' >/dev/null 2>&1") != 0) GTEST_SKIP() << "no python3 here";
  std::ostringstream program;
  program << kPythonWorld << kSympyWorld;
  for (const Sample& sample : samples(3000)) {
    program << "check(" << quoted(sample.expr.print_python()) << ", " << sample.value << ")\n";
    program << "check_sympy(" << quoted(sample.expr.print_sympy()) << ", " << sample.value << ")\n";
  }
  program << "print('done' if checked > 2000 else checked)\n";
  EXPECT_EQ(output_of(program.str(), ".py", "python3 $FILE"), "done\n");
}

TEST(ExprPrint, CppGivesTheSameValues) {
  const std::string compiler = settings().cxx;
  if (compiler.empty()) GTEST_SKIP() << "no C++ compiler here";
  std::ostringstream program;
  program << cpp_prelude() << R"(
#include <cstdio>
static int64_t x_sizes[] = {6, 4, 10}, x_strides[] = {40, 10, 1}, y_sizes[] = {4, 10}, y_strides[] = {1, 4};
static int64_t dims_[] = {3, -7, 5};
static const opaq_tensor x{reinterpret_cast<void*>(4096), x_sizes, x_strides, 3, opaq_float16, 2};
static const opaq_tensor y{reinterpret_cast<void*>(4100), y_sizes, y_strides, 2, opaq_float32, 4};
static const std::optional<opaq_tensor> bias;
static const std::optional<int64_t> k;
static const int64_t n = -11;
static const double eps = 0.375;
static const bool flag = true;
static const std::string_view mode = "mean";
static const opaq_ints dims{dims_, 3};
template <class T> void check(const char* text, T got, T value) { if (got != value) std::printf("%s is not the value\n", text); }
int main() {
)";
  for (const Sample& sample : samples(200)) {
    const std::string text = sample.expr.print_cpp();
    const char* type = sample.expr.type() == Type::Float ? "double" : sample.expr.type() == Type::Bool ? "bool" : "int64_t";
    program << "  check<" << type << ">(" << quoted(text) << ", " << text << ", " << sample.value << ");\n";
  }
  program << R"(
  try { (void)opaq_cast<int32_t>(int64_t{1} << 40); } catch (const std::runtime_error& e) { std::puts(e.what()); }
  try { (void)opaq_floor_div(1, 0); } catch (const std::runtime_error& e) { std::puts(e.what()); }
  try { (void)x.size(3); } catch (const std::runtime_error& e) { std::puts(e.what()); }
}
)";
  const std::string options = " -std=c++17 -Wall -Wextra -Wno-unused -Wno-tautological-compare";
  EXPECT_EQ(output_of(program.str(), ".cpp", compiler + options + " $FILE -o $FILE.out && $FILE.out; rm -f $FILE.out"),
            "opaq: a value does not fit its type\nopaq: division by zero\nopaq: a dimension or an index is out of range\n");
}

// What Python prints as is also reads as our language, where the two share words.
TEST(ExprPrint, PythonReadsBack) {
  for (const char* text : {"x.numel() / x.size(-1)", "ceil_div(n, 3)", "x.dtype in (float16, bfloat16)", "n if flag else -n % 3",
                           "x.shape[1:]", "not (flag or n < 3) == flag", "min(n, 3, 4) * eps"}) {
    const std::string printed = python(text);
    EXPECT_EQ(python(printed), printed);
  }
}

}  // namespace
