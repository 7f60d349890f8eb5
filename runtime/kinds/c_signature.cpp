// Parses and checks the signatures of C functions.
#include "c_signature.h"

#include <optional>

namespace opaq {
namespace {

// "void(const float*, int64_t)": the types of all parameters; nullopt for a text of another form.
std::optional<std::vector<ParamType>> parse_signature(std::string_view signature) {
  std::string_view rest = spec::trimmed(signature);
  if (!rest.starts_with("void")) return std::nullopt;
  rest = spec::trimmed(rest.substr(4));
  if (!rest.starts_with('(') || !rest.ends_with(')')) return std::nullopt;
  const std::string_view list = spec::trimmed(rest.substr(1, rest.size() - 2));
  if (list.empty()) return std::vector<ParamType>{};
  return parse_parameters(spelled_out(list));
}

// Whether values of the type can be passed: pointers, integers, floating point, bool.
bool can_be_passed(const ParamType& type) {
  using Kind = ParamType::Kind;
  return type.kind == Kind::Pointer || (type.kind == Kind::Bool && type.size == 1) ||
         ((type.kind == Kind::Int || type.kind == Kind::UInt) && type.size <= 8) ||
         (type.kind == Kind::Float && (type.size == 4 || type.size == 8));
}

}  // namespace

void check_c_signature(const spec::Scope& scope, const Implementation& implementation) {
  const std::string given = "'" + implementation.signature + "'";
  const auto parsed = parse_signature(implementation.signature);
  if (!parsed)
    scope.fail("signature", given +
                                " is not of the form void(types of the parameters), such as "
                                "void(const float*, float*, int64_t)");
  for (size_t i = 0; i < parsed->size(); ++i) {
    if (can_be_passed((*parsed)[i])) continue;
    scope.fail("signature", given + ": parameter " + std::to_string(i + 1) + ", '" +
                                (*parsed)[i].text +
                                "', is neither a pointer nor an integer, float, double or bool; "
                                "give types without the names of parameters");
  }
  const bool cuda = implementation.target == DeviceType::CUDA;
  const size_t arguments = implementation.launch.args.size();
  if (cuda && (parsed->empty() || parsed->back().kind != ParamType::Kind::Pointer))
    scope.fail("signature", given +
                                ": on CUDA the function is called with the stream last, as "
                                "cudaStream_t or void*");
  if (parsed->size() != arguments + cuda)
    scope.fail("signature", given + " has " + std::to_string(parsed->size()) +
                                " parameters; args lists " + std::to_string(arguments) +
                                (cuda ? ", and the stream comes last" : ""));
}

std::vector<ParamType> c_param_types(const Implementation& implementation) {
  std::vector<ParamType> types = *parse_signature(implementation.signature);
  types.resize(implementation.launch.args.size());  // without the stream
  return types;
}

}  // namespace opaq
