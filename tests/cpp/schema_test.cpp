// Schemas: how PyTorch's grammar is parsed, and the errors of what is refused.
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "spec/spec.h"

namespace opaq {
namespace {

std::string refusal(std::string_view schema) {
  try {
    return "accepted as " + parse_schema(schema).text;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::Declaration) << schema;
    return error.what();
  }
}

void expect_refusal(std::string_view schema, std::string_view part) {
  const std::string message = refusal(schema);
  EXPECT_NE(message.find(part), std::string::npos)
      << "for " << schema << "\nexpected: " << part << "\ngot: " << message;
}

// tests/python/test_schema_table.py compares the same lines with the installed PyTorch.
TEST(Schema, AcceptsAndRefusesAsTheTableSays) {
  std::ifstream file(OPAQ_TEST_DATA "/schemas.txt");
  ASSERT_TRUE(file) << "missing: " OPAQ_TEST_DATA "/schemas.txt";
  int cases = 0;
  std::string line, outcome;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    ASSERT_TRUE(line[0] == '+' || line[0] == '-') << line;
    ASSERT_TRUE(std::getline(file, outcome)) << line;
    const std::string schema = line.substr(2), expected = outcome.substr(2);
    if (outcome[0] == '=') {
      Schema parsed;
      ASSERT_NO_THROW(parsed = parse_schema(schema)) << schema;
      EXPECT_EQ(parsed.text, expected) << schema;
      EXPECT_EQ(parse_schema(parsed.text).text, parsed.text)
          << "the canonical text of " << schema << " is not its own";
    } else {
      expect_refusal(schema, expected);
    }
    ++cases;
  }
  EXPECT_GT(cases, 300);
}

TEST(Schema, TellsEverythingOfAnArgument) {
  const Schema schema = parse_schema(
      "mylib::f(Tensor x, Tensor(a!)? cache, Tensor? bias=None, SymInt n=1, int[2] pad=0, *, float "
      "eps=1e-6, str mode='mean', "
      "ScalarType? dtype=None, Device? device=None, bool flag=True, SymInt[]? sizes=None) -> "
      "(Tensor y, Tensor rstd)");
  EXPECT_EQ(schema.ns, "mylib");
  EXPECT_EQ(schema.name, "f");
  EXPECT_EQ(schema.qualname(), "mylib::f");
  EXPECT_EQ(schema.returns, (std::vector<std::string>{"y", "rstd"}));

  struct Expected {
    const char *name, *torch_type;
    Type type;
    bool optional, mutated, keyword_only;
    const char* default_text;  // nullptr: required
  };
  const Expected expected[] = {
      {"x", "Tensor", Type::Tensor, false, false, false, nullptr},
      {"cache", "Tensor", Type::Tensor, true, true, false, nullptr},
      {"bias", "Tensor", Type::Tensor, true, false, false, "None"},
      {"n", "SymInt", Type::Int, false, false, false, "1"},
      {"pad", "int[2]", Type::IntList, false, false, false, "[0, 0]"},
      {"eps", "float", Type::Float, false, false, true, "1e-6"},
      {"mode", "str", Type::String, false, false, true, "'mean'"},
      {"dtype", "ScalarType", Type::DType, true, false, true, "None"},
      {"device", "Device", Type::String, true, false, true, "None"},
      {"flag", "bool", Type::Bool, false, false, true, "True"},
      {"sizes", "SymInt[]", Type::IntList, true, false, true, "None"},
  };
  ASSERT_EQ(schema.args.size(), std::size(expected));
  for (size_t i = 0; i < std::size(expected); ++i) {
    const ArgSpec& arg = schema.args[i];
    EXPECT_EQ(arg.name, expected[i].name);
    EXPECT_EQ(arg.torch_type, expected[i].torch_type) << arg.name;
    EXPECT_EQ(arg.type, expected[i].type) << arg.name;
    EXPECT_EQ(arg.optional, expected[i].optional) << arg.name;
    EXPECT_EQ(arg.mutated, expected[i].mutated) << arg.name;
    EXPECT_EQ(arg.keyword_only, expected[i].keyword_only) << arg.name;
    EXPECT_EQ(arg.has_default, expected[i].default_text != nullptr) << arg.name;
    EXPECT_EQ(arg.default_text, expected[i].default_text ? expected[i].default_text : "")
        << arg.name;
  }
}

TEST(Schema, NumbersReturnsBehindArguments) {
  const Schema schema = parse_schema("m::f(Tensor x, int n) -> (Tensor y, Tensor)");
  EXPECT_EQ(schema.index_of("x"), 0);
  EXPECT_EQ(schema.index_of("n"), 1);
  EXPECT_EQ(schema.index_of("y"), 2);
  EXPECT_EQ(schema.index_of("out1"), 3);
  EXPECT_EQ(schema.index_of("z"), -1);
}

TEST(Schema, NamesUnnamedReturns) {
  EXPECT_EQ(parse_schema("m::f(Tensor x) -> Tensor").returns, (std::vector<std::string>{"out"}));
  EXPECT_EQ(parse_schema("m::f(Tensor x) -> (Tensor, Tensor)").returns,
            (std::vector<std::string>{"out0", "out1"}));
  EXPECT_TRUE(parse_schema("m::f(Tensor(a!) x) -> ()").returns.empty());
}

TEST(Schema, HasOneTextWhateverTheSpelling) {
  const std::string text =
      "m::f(Tensor x, Tensor(a!) c, int[2] pad=[1, 1], *, float eps=1.0, str mode='it\\'s', "
      "ScalarType t=float32) -> (Tensor y)";
  for (const char* spelling : {
           "m::f(Tensor x,Tensor(a!)c,int[2] pad=1,*,float eps=1,str mode=\"it's\",ScalarType "
           "t=float)->Tensor y",
           "m :: f ( Tensor x , Tensor ( a ! ) c , int [ 2 ] pad = [ 1,1 ] , * , float eps = 1.0 , "
           "str mode = 'it\\'s' , ScalarType t = "
           "float32 ) -> ( Tensor y )",
           "\n  m::f(  # the op\n    Tensor x,\n    Tensor(a!) c,\t# written to\n    int[2] "
           "pad=[1, 1],\n    *,\n    float eps=1.0, str "
           "mode='it\\'s',\r\n"
           "    ScalarType t=float32)\n  -> (Tensor y)\n",
       }) {
    EXPECT_EQ(parse_schema(spelling).text, text) << spelling;
  }
}

TEST(Schema, RefusalsPointAtTheirPlace) {
  EXPECT_EQ(refusal("mylib::f(Tensor x, Generator? g=None) -> Tensor"),
            "schema of mylib::f: argument 'g': type Generator is not supported: a kernel takes no "
            "Generator; leave the argument out and declare effects=\"random\": a scratch "
            "opaq.philox() gives it a seed and an offset, opaq.exponential(...) numbers, which "
            "the default generator draws; "
            "or make the op with opaq.custom_op, whose Python function takes and "
            "returns what PyTorch's ops do\n"
            "  mylib::f(Tensor x, Generator? g=None) -> Tensor\n"
            "                     ^");
  EXPECT_EQ(refusal("mylib::f(Tensor x,\n str é) -> Tensor"),
            "schema of mylib::f: expected the name of an argument of type str, found 'é'\n"
            "  mylib::f(Tensor x,  str é) -> Tensor\n"
            "                          ^");
  EXPECT_EQ(
      refusal("f(Tensor x) -> Tensor"),
      "schema: the name has no namespace: write 'mylib::f(...)', with a namespace of your own\n"
      "  f(Tensor x) -> Tensor\n"
      "  ^");
  EXPECT_EQ(refusal(""),
            "schema: expected a namespace, as in 'mylib::f(...)', found the end\n  \n  ^");
}

TEST(Schema, RefusesStringsThatPyTorchWouldReadOtherwise) {
  expect_refusal("m::f(str x='a\nb') -> Tensor",
                 "argument 'x': expected a string in quotes; a string holds no control characters "
                 "and ends on the line on which it begins");
  expect_refusal("m::f(str x='a\rb') -> Tensor", "a string holds no control characters");
  EXPECT_EQ(parse_schema("m::f(str x='a\tb') -> Tensor").args[0].default_text, "'a\\tb'");
}

TEST(Schema, EndsAnywhereWithAnErrorAndNeverACrash) {
  const std::string whole =
      "m::f(Tensor x, Tensor(a!)? c, int[2] pad=[0, -1], *, float eps=-1.5e-6, str mode='m\\'n', "
      "bool b=True, Device d='cpu') -> (Tensor "
      "y, Tensor)";
  ASSERT_NO_THROW(parse_schema(whole));
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_THROW(parse_schema(whole.substr(0, length)), Error) << whole.substr(0, length);
  }
  for (size_t i = 0; i < whole.size(); ++i) {
    for (char c :
         {'(', ')', '[', ',', '=', '\'', '\\', '*', '.', '-', '!', '?', '\0', '\xff', '9', 'e'}) {
      std::string damaged = whole;
      damaged[i] = c;
      try {
        parse_schema(damaged);
      } catch (const Error& error) {
        EXPECT_EQ(error.kind, ErrorKind::Declaration);
      }
    }
  }
}

}  // namespace
}  // namespace opaq
