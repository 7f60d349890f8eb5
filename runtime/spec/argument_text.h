// Texts of argument lists: items between commas, calls, strings. Private to runtime/spec.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace opaq::spec {

// The text between commas that are in no brackets and no string; a comma at the end is allowed.
std::vector<std::string_view> split(std::string_view text);

// Whether the item is a call of this name: `name(...)`.
bool is_call(std::string_view item, std::string_view name);

// What is in the parentheses of a call.
std::string_view inside(std::string_view call);

bool is_list(std::string_view item);  // [...]

bool is_string(std::string_view text);  // one string literal
std::string unquoted(std::string_view text);

// `n=x.numel()`: the name and the value. The name is "" for a text of another form.
struct Named {
  std::string name;
  std::string_view value;
};
Named named(std::string_view text);

// `p.numel() for p in ps`, or `... for p, g in zip(ps, gs)`: its value, the names of the items, and
// the lists. `value` is "" for a text of another form.
struct ForEach {
  std::string_view value;
  std::vector<std::string_view> names, lists;
};
ForEach for_each(std::string_view text);

}  // namespace opaq::spec
