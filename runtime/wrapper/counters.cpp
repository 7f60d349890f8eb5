// Prints what opaq.report() reads from a wrapper, and string literals.
#include "base/error.h"
#include "wrapper/wrapper.h"

namespace opaq {

std::string print_graph(std::string_view graph) {
  return "\n// What opaq.report() lists.\nstatic const char opaq_graph[] = " +
         string_literal(graph) + ";\n";
}

std::string print_counters(const std::string& node, const std::string& op,
                           const std::string& device,
                           const std::vector<std::string>& implementations,
                           const std::string& reason, bool timed) {
  std::vector<std::string> names;
  for (const std::string& name : implementations) names.push_back(string_literal(name));
  const std::vector<std::string> arguments = {
      "opaq_graph",           string_literal(node),    string_literal(op),
      string_literal(device), "{" + join(names) + "}", string_literal(reason)};
  const std::string count = "<" + std::to_string(implementations.size()) + "> ";
  std::string text = "static opaq_node" + count + "opaq_" + node + "(" + join(arguments) + ");\n";
  if (timed)
    text += "static opaq_node_timers" + count + "opaq_timers_" + node + "(opaq_graph, " +
            string_literal(node) + ");\n";
  return text;
}

std::string string_literal(std::string_view text) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string quotes = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        quotes += "\\\"";
        break;
      case '\\':
        quotes += "\\\\";
        break;
      case '\n':
        quotes += "\\n";
        break;
      case '\r':
        quotes += "\\r";
        break;
      case '\t':
        quotes += "\\t";
        break;
      case '\b':
        quotes += "\\b";
        break;
      case '\f':
        quotes += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          quotes += std::string("\\u00") + kDigits[c >> 4] + kDigits[c & 15];
        } else {
          quotes += c;
        }
    }
  }
  return quotes + '"';
}

}  // namespace opaq
