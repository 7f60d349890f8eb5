// Types of a schema's arguments and results: which are refused, and why. Private to runtime/spec.
#pragma once

#include <string>
#include <string_view>

#include "expr/expr.h"
#include "schema_cursor.h"

namespace opaq::spec {

struct SchemaType {
  std::string base;  // "Tensor", "SymInt", ...
  bool list = false;
  std::string list_size;  // "2" of int[2]; "" when open
  bool optional = false;
  bool item_optional = false;  // Tensor?[]
  std::string alias;           // "a" of Tensor(a!); "" when not mutated
  size_t column = 0;

  std::string text() const;        // canonical: "Tensor(a!)?", "int[2]"
  std::string torch_type() const;  // without a last `?` and alias marks
  Type type() const;               // how expressions see it
  Type item() const;               // of a list of the type List
};

// `owner` begins the messages: "argument 'x'".
SchemaType take_argument_type(SchemaCursor& cursor, const std::string& owner);
void take_result_type(SchemaCursor& cursor, const std::string& owner);  // accepts Tensor only

// Whether expressions can read an argument of this type: all but Device, Layout and MemoryFormat.
bool is_readable(std::string_view torch_type);

}  // namespace opaq::spec
