// Parameter lists as demanglers and compilers print them.
#include "image_test.h"

using opaq::ParamType;
using opaq::parse_parameters;
using Kind = ParamType::Kind;

namespace {

struct Row {
  const char* text;
  Kind kind;
  int size;
  const char* spelled;
  const char* pointee = "";
  bool pointee_const = false;
};

class OneParameter : public ::testing::TestWithParam<Row> {};

TEST_P(OneParameter, IsRead) {
  const Row& row = GetParam();
  const auto params = parse_parameters("void f(" + std::string(row.text) + ")");
  ASSERT_EQ(params.size(), 1u);
  EXPECT_EQ(static_cast<int>(params[0].kind), static_cast<int>(row.kind)) << row.text;
  EXPECT_EQ(params[0].size, row.size) << row.text;
  EXPECT_EQ(params[0].text, row.spelled);
  EXPECT_EQ(params[0].pointee, row.pointee);
  EXPECT_EQ(params[0].pointee_const, row.pointee_const) << row.text;
}

INSTANTIATE_TEST_SUITE_P(
    Types, OneParameter,
    ::testing::Values(
        Row{"float*", Kind::Pointer, 8, "float*", "float"},
        Row{"float const*", Kind::Pointer, 8, "float const*", "float", true},
        Row{"const float *", Kind::Pointer, 8, "float const*", "float", true},
        Row{"float* const", Kind::Pointer, 8, "float*", "float"},
        Row{"float const* __restrict__", Kind::Pointer, 8, "float const*", "float", true},
        Row{"float const* const*", Kind::Pointer, 8, "float const* const*", "float const*", true},
        Row{"float**", Kind::Pointer, 8, "float**", "float*"},
        Row{"void*", Kind::Pointer, 8, "void*", "void"},
        Row{"void const*", Kind::Pointer, 8, "void const*", "void", true},
        Row{"long unsigned int*", Kind::Pointer, 8, "unsigned long*", "unsigned long"},
        Row{"__half const*", Kind::Pointer, 8, "__half const*", "__half", true},
        Row{"__nv_bfloat16*", Kind::Pointer, 8, "__nv_bfloat16*", "__nv_bfloat16"},
        Row{"void (*)(int, float)", Kind::Pointer, 8, "void (*)(int, float)", "void (int, float)"},
        Row{"int", Kind::Int, 4, "int"}, Row{"unsigned int", Kind::UInt, 4, "unsigned int"},
        Row{"unsigned", Kind::UInt, 4, "unsigned int"}, Row{"long", Kind::Int, 8, "long"},
        Row{"long int", Kind::Int, 8, "long"}, Row{"long long", Kind::Int, 8, "long long"},
        Row{"unsigned long long", Kind::UInt, 8, "unsigned long long"},
        Row{"short unsigned int", Kind::UInt, 2, "unsigned short"},
        Row{"char", Kind::Int, 1, "char"}, Row{"signed char", Kind::Int, 1, "signed char"},
        Row{"unsigned char", Kind::UInt, 1, "unsigned char"}, Row{"const int", Kind::Int, 4, "int"},
        Row{"bool", Kind::Bool, 1, "bool"}, Row{"float", Kind::Float, 4, "float"},
        Row{"double", Kind::Float, 8, "double"}, Row{"__half", Kind::Float, 2, "__half"},
        Row{"_Float16", Kind::Float, 2, "_Float16"},
        Row{"__nv_fp8_e4m3", Kind::Float, 1, "__nv_fp8_e4m3"},
        Row{"Args<float, 4>", Kind::Struct, 0, "Args<float, 4>"},
        Row{"CUtensorMap_st", Kind::Struct, 128, "CUtensorMap"},
        Row{"Traits<float>::type", Kind::Unknown, 0, "Traits<float>::type"},
        Row{"Traits<float>::type const*", Kind::Pointer, 8, "Traits<float>::type const*",
            "Traits<float>::type", true}));

TEST(ParseParameters, SplitsAtTheTopLevelOnly) {
  const auto params = parse_parameters(
      "void ns::k<float, std::pair<int, long>, 4>(float*, Box<int, (char)65> const*, void (*)(int, "
      "int), int)");
  ASSERT_EQ(params.size(), 4u);
  EXPECT_EQ(params[1].pointee, "Box<int, (char)65>");
  EXPECT_EQ(params[2].text, "void (*)(int, int)");
  EXPECT_EQ(params[3].text, "int");
}

TEST(ParseParameters, TakesBareAndParenthesisedLists) {
  EXPECT_EQ(parse_parameters("float*, int").size(), 2u);
  EXPECT_EQ(parse_parameters("(float*, int)").size(), 2u);
  EXPECT_EQ(parse_parameters("void (*)(int, int)").size(), 1u);
}

TEST(ParseParameters, NoParameters) {
  EXPECT_TRUE(parse_parameters("").empty());
  EXPECT_TRUE(parse_parameters("()").empty());
  EXPECT_TRUE(parse_parameters("void k()").empty());
  EXPECT_TRUE(parse_parameters("void").empty());
}

TEST(ParseParameters, SurvivesNonsense) {
  for (const char* text : {"(", ")", "f(", "f)", "<", ">", "const", "*", "&", ",", ",,", "f(,)",
                           "((((", "unsigned unsigned", "long long long", "f(...)"}) {
    parse_parameters(text);
  }
}

}  // namespace
