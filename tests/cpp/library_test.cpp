// Blocks of declarations that libraries give by <opaq/op.h>; those that are right need LibTorch,
// and are tested in tests/life/test_cpp_library.py.
#include "front/library.h"

#include <gtest/gtest.h>
#include <opaq/version.h>

#include <typeinfo>

#include "front/fields.h"
#include "refusal.h"
#include "registry/registry.h"

namespace opaq {
namespace {

opaq_field text(const char* key, std::string_view value) {
  return {key, value.data(), value.size(), nullptr, 0, nullptr};
}
opaq_field list(const char* key, const std::vector<opaq_field>& fields) {
  return {key, "", 0, fields.data(), fields.size(), nullptr};
}

// The message with which a block of one op is refused.
std::string refused(std::vector<opaq_field> op, const std::vector<opaq_field>& implementation = {},
                    std::string_view version = OPAQ_VERSION) {
  const std::vector<opaq_field> rule = {text("like", "x")}, outputs = {list("", rule)},
                                implementations = {list("", implementation)};
  op.push_back(text("schema", "front::f(Tensor x) -> Tensor"));
  op.push_back(text("place", "ops.cpp:5"));
  op.push_back(list("outputs", outputs));
  if (!implementation.empty()) op.push_back(list("implementations", implementations));
  const std::vector<opaq_field> ops = {list("", op)};
  const std::vector<opaq_field> block = {text("version", version), text("place", "ops.cpp:4"),
                                         list("ops", ops)};
  return refusal([&] {
    front::declare_block(list("", block), reinterpret_cast<const void*>(&front::declare_block));
  });
}

TEST(Library, OfOtherHeadersIsRefused) {
  const std::string message = refused({}, {}, "0.0.7");
  EXPECT_NE(message.find("was compiled with <opaq/op.h> of opaq 0.0.7"), std::string::npos)
      << message;
  EXPECT_TRUE(message.starts_with("ops.cpp:4: ")) << message;
}

TEST(Library, SaysWhereADeclarationIsWrong) {
  EXPECT_EQ(
      refused({text("effects", "none")}),
      "ops.cpp:5: front::f: got effects='none'; expected \"random\", \"ordered\", or none for "
      "a function of its arguments");
  std::vector<opaq_field> kernel = {
      text("place", "ops.cpp:7"), text("where", "front::f: .cuda(...)"),
      text("device", "cuda"),     text("kind", "source"),
      text("file", "no.cu"),      text("grid", "1")};
  EXPECT_EQ(refused({}, kernel),
            "ops.cpp:7: front::f: .cuda(...): block is not given; say how many, as in .block = "
            "\"ceil_div(x.numel(), 256)\", or .block = 1");
  kernel.push_back(text("block", "32"));
  EXPECT_NE(refused({}, kernel).find("ops.cpp:7: front::f: .cuda(...): cannot read "),
            std::string::npos);
  EXPECT_EQ(find_op("front::f"), nullptr);
}

TEST(Library, FunctionsAreCheckedAgainstTheArgumentList) {
  const std::string type = typeid(void(const float*, float)).name();
  std::vector<opaq_field> cpu = {
      text("place", "ops.cpp:8"),      text("where", "front::f: .cpu(...)"),
      text("device", "cpu"),           text("kind", "function"),
      text("mangled_signature", type), text("args", "x, out, x.numel()")};
  for (const char* key : {"function", "call"}) cpu.push_back({key, "", 0, nullptr, 0, [] {}});
  EXPECT_EQ(refused({}, cpu),
            "ops.cpp:8: signature of front::f, implementation 'cpu': 'void (float const*, float)' "
            "has 2 parameters; args lists 3");
}

TEST(Library, RandomNumbersNeedAnEffect) {
  const std::vector<opaq_field> rng = {text("name", "rng"), text("shape", "2"),
                                       text("dtype", "uint64"), text("random", "philox")},
                                scratch = {list("", rng)};
  const std::vector<opaq_field> cpu = {
      text("place", "ops.cpp:9"), text("where", "front::f: .cpu(...)"),
      text("device", "cpu"),      text("kind", "source"),
      text("code", "void f();"),  list("scratch", scratch)};
  EXPECT_NE(refused({}, cpu).find("ops.cpp:9: front::f: .cpu(...): scratch 'rng' holds random "
                                  "numbers; declare the op with opaq.op(..., effects=\"random\")"),
            std::string::npos);
}

}  // namespace
}  // namespace opaq
