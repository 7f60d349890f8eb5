// Default values of a schema's arguments. Private to runtime/spec.
#pragma once

#include <string>

#include "schema_cursor.h"
#include "schema_type.h"

namespace opaq::spec {

// Reads the text after `=` and returns it in canonical form, which PyTorch's parser and Python read
// as the same value: 7, 1e-6, 1.0, True, None, 'mean', [1, 1], float32, strided. int[2] x=1 gives
// [1, 1].
std::string take_default(SchemaCursor& cursor, const SchemaType& type, const std::string& owner);

}  // namespace opaq::spec
