// Entry texts with expressions in braces.
#include "spec/entry_template.h"

#include "base/error.h"

namespace opaq {
namespace spec {
namespace {

// The end of the expression that begins at `begin`: the first `}` outside a string. npos when there
// is none, or another `{` comes first.
size_t expression_end(std::string_view text, size_t begin) {
  for (size_t i = begin; i < text.size();) {
    const char c = text[i];
    if (c == '}') return i;
    if (c == '{') break;
    i = c == '\'' || c == '"' ? string_end(text, i) : i + 1;
  }
  return std::string_view::npos;
}

}  // namespace

EntryTemplate parse_entry(std::string_view text, const Scope& scope) {
  text = trimmed(text);
  EntryTemplate entry;
  std::string piece;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c == '{' || c == '}') && i + 1 < text.size() && text[i + 1] == c) {
      piece += c;
      ++i;
    } else if (c == '}') {
      scope.fail("entry", "'}' closes nothing in '" + std::string(text) +
                              "'; a brace itself is written '}}'");
    } else if (c == '{') {
      const size_t end = expression_end(text, i + 1);
      if (end == std::string_view::npos) {
        scope.fail("entry", "'{' is not closed in '" + std::string(text) +
                                "'; a brace itself is written '{{'");
      }
      const std::string_view expression = trimmed(text.substr(i + 1, end - i - 1));
      if (expression.empty())
        scope.fail("entry", "'{}' holds no expression in '" + std::string(text) +
                                "'; write one, such as {x.dtype}");
      entry.pieces.push_back(std::move(piece));
      piece.clear();
      entry.template_args.push_back(
          scope.one(expression, "entry", {Type::Int, Type::Bool, Type::DType}));
      i = end;
    } else {
      piece += c;
    }
  }
  entry.pieces.push_back(std::move(piece));
  return entry;
}

}  // namespace spec

std::string EntryTemplate::fill(const std::vector<int64_t>& values, DeviceType target) const {
  if (values.size() != template_args.size()) {
    fail(ErrorKind::Internal, "entry '" + text() + "' has " + std::to_string(template_args.size()) +
                                  " template arguments, got " + std::to_string(values.size()) +
                                  " values");
  }
  std::string filled = pieces.empty() ? "" : pieces[0];
  for (size_t i = 0; i < template_args.size(); ++i) {
    switch (template_args[i].type()) {
      case Type::Bool:
        filled += values[i] ? "true" : "false";
        break;
      case Type::DType: {
        if (values[i] < 0 || values[i] >= kDTypeCount) {
          fail(ErrorKind::Internal,
               "entry '" + text() + "': " + std::to_string(values[i]) + " is no dtype");
        }
        const auto dtype = static_cast<DType>(values[i]);
        const std::string_view type =
            target == DeviceType::CUDA ? cuda_type(dtype) : host_type(dtype);
        if (type.empty()) {
          fail(ErrorKind::Launch, "entry '" + text() + "': {" + template_args[i].text() + "} is " +
                                      std::string(name(dtype)) + ", which has no type in " +
                                      (target == DeviceType::CUDA ? "CUDA C++" : "host C++") +
                                      "; exclude it with requires, or give an implementation whose "
                                      "kernel takes the bytes as uint8_t*");
        }
        filled += type;
        break;
      }
      default:
        filled += std::to_string(values[i]);
    }
    filled += pieces[i + 1];
  }
  return filled;
}

std::string EntryTemplate::text() const {
  std::string text;
  for (size_t i = 0; i < pieces.size(); ++i) {
    for (char c : pieces[i]) text.append(c == '{' || c == '}' ? 2 : 1, c);
    if (i < template_args.size()) text += "{" + template_args[i].text() + "}";
  }
  return text;
}

}  // namespace opaq
