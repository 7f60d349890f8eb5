// Prints the making of tensor maps.
#include "tensor_map.h"

#include <algorithm>

#include "expr/identifier.h"

namespace opaq {

Lines tensor_map_lines(const CppArgument& argument, const std::string& to) {
  const CppTensorMap& map = *argument.map;
  if (map.type < 0) return {};
  Lines fields{string_literal(argument.where), string_literal(map.tensor)};
  for (const int mode : {map.interleave, map.swizzle, map.l2_promotion, map.oob_fill})
    fields.push_back(std::to_string(mode));
  Lines values{to, "opaq_map", "opaq_declared_map", cpp_identifier(map.tensor),
               std::to_string(map.type)};
  for (const auto* list : {&map.shape, &map.strides, &map.box, &map.element_strides}) {
    Lines items;
    for (const CppText& item : *list) items.push_back(evaluated(item));
    values.push_back(braced(items));
  }
  values.push_back("opaq_device");
  return {"{",
          "  static constexpr " + in_standalone("DeclaredTensorMap") +
              " opaq_declared_map = " + braced(fields) + ";",
          "  static " + in_standalone("KeptTensorMap") + " opaq_map;",
          "  " + call("opaq_put_tensor_map", values) + ";", "}"};
}

bool has_tensor_map(const CppImplementation& implementation) {
  const auto in_field = [](const CppField& field) { return field.value.map != nullptr; };
  for (const CppLaunch& step : implementation.steps)
    for (const CppArgument& argument : step.args)
      if (std::any_of(argument.fields.begin(), argument.fields.end(), in_field)) return true;
  return false;
}

}  // namespace opaq
