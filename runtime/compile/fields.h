// Fields of any bytes in one string: each begins with its length, as text, and a space.
#pragma once

#include <charconv>
#include <string>
#include <string_view>
#include <system_error>

#include "base/error.h"

namespace opaq {

inline void put_field(std::string& out, std::string_view field) {
  out.append(std::to_string(field.size())).append(" ").append(field);
}

// Takes the first field off. Throws Internal where there is none.
inline std::string_view take_field(std::string_view& rest) {
  size_t size = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), size);
  const size_t digits = static_cast<size_t>(end - rest.data());
  if (error != std::errc{} || digits >= rest.size() || size > rest.size() - digits - 1)
    fail(ErrorKind::Internal, "a set of images is damaged");
  const std::string_view field = rest.substr(digits + 1, size);
  rest.remove_prefix(digits + 1 + size);
  return field;
}

}  // namespace opaq
