// Words of the C++ that wrappers are printed in. Private to runtime/wrapper.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "wrapper/wrapper.h"

namespace opaq {

using Lines = std::vector<std::string>;

inline void append(Lines& lines, const Lines& more) {
  lines.insert(lines.end(), more.begin(), more.end());
}

inline void append_indented(Lines& lines, const Lines& more) {
  for (const std::string& line : more) lines.push_back("  " + line);
}

inline std::string call(const std::string& function, const Lines& arguments) {
  return function + "(" + join(arguments) + ")";
}

inline std::string braced(const Lines& items) { return "{" + join(items) + "}"; }

// A name of runtime/standalone
inline std::string in_standalone(const std::string& name) { return "opaq::standalone::" + name; }

inline std::string linked_driver() { return in_standalone("kLinkedDriver"); }

inline Lines string_literals(const Lines& texts) {
  Lines quotes;
  for (const std::string& text : texts) quotes.push_back(string_literal(text));
  return quotes;
}

inline bool can_fail(const std::string& cpp) { return cpp.find('(') != std::string::npos; }

// Records where an error in the expression that follows occurs, for its message.
inline std::string set_place(const std::string& place) {
  return "opaq_place = " + string_literal(place) + ";";
}

// The value of an expression. One that can fail is preceded by its place, for the message.
inline std::string evaluated(const CppText& item) {
  if (!can_fail(item.cpp)) return item.cpp;
  return "(opaq_place = " + string_literal(item.place) + ", " + item.cpp + ")";
}

}  // namespace opaq
