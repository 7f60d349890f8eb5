// Default values of a schema's arguments. PyTorch's parser accepts more, but the further values
// have the wrong type at the call (int x=1.5, float? x=1, Device? x='cpu') or are read wrongly (int
// x=0x10 is 0).
#include "schema_default.h"

#include <algorithm>
#include <charconv>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "names.h"

namespace opaq::spec {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_literal_char(char c) { return is_name_char(c) || c == '.'; }

struct Number {
  std::string text;  // without blanks
  bool integral = false;
  size_t column = 0;
};

// Sign, digits, fraction, exponent; `text` is empty if there is no number here.
Number take_number(SchemaCursor& cursor, const std::string& expected) {
  Number number;
  number.column = cursor.at();
  const bool negative = cursor.take("-");
  cursor.skip_space();
  std::string digits(cursor.take_while(is_digit));
  number.integral = !digits.empty();
  if (cursor.position() < cursor.text().size() && cursor.text()[cursor.position()] == '.') {
    digits += cursor.take_while([](char c) { return c == '.'; });
    digits += cursor.take_while(is_digit);
    number.integral = false;
  }
  if (digits.empty()) {
    if (negative) cursor.fail_here(expected + ", found '-' and " + cursor.found());
    return number;
  }
  digits += cursor.take_while([](char c) { return c == 'e' || c == 'E'; });
  if (digits.back() == 'e' || digits.back() == 'E') {
    digits += cursor.take_while([](char c) { return c == '+' || c == '-'; });
    digits += cursor.take_while(is_digit);
    number.integral = false;
  }
  const std::string rest(cursor.take_while(is_literal_char));
  double value = 0;
  const char* end = digits.data() + digits.size();
  if (!rest.empty() || std::from_chars(digits.data(), end, value).ptr != end) {
    cursor.fail_at(number.column, expected + " in decimal, got " + digits + rest);
  }
  number.text = (negative ? "-" : "") + digits;
  return number;
}

std::string take_int(SchemaCursor& cursor, const std::string& expected) {
  const Number number = take_number(cursor, expected);
  if (!number.integral) {
    if (number.text.empty()) cursor.fail_here(expected + ", found " + cursor.found());
    cursor.fail_at(number.column, expected + ", got " + number.text);
  }
  int64_t value = 0;
  const char* end = number.text.data() + number.text.size();
  if (std::from_chars(number.text.data(), end, value).ec != std::errc()) {
    cursor.fail_at(number.column, expected + "; " + number.text + " does not fit 64 bits");
  }
  return std::to_string(value);
}

std::string take_float(SchemaCursor& cursor, const std::string& expected) {
  const Number number = take_number(cursor, expected);
  if (number.text.empty()) {
    const bool infinite = cursor.looking_at("inf") || cursor.looking_at("nan");
    cursor.fail_here(
        expected + ", found " + cursor.found() +
        (infinite ? "; PyTorch's schemas have no inf or nan: make it float? x=None" : ""));
  }
  double value = 0;
  if (std::from_chars(number.text.data(), number.text.data() + number.text.size(), value).ec !=
      std::errc()) {
    cursor.fail_at(number.column, expected + "; " + number.text + " does not fit a double");
  }
  if (!number.integral) return number.text;
  const bool negative =
      number.text[0] ==
      '-';  // an integer would reach a `float?` as an int, and Python reads no leading zeros
  const size_t first = number.text.find_first_not_of('0', negative ? 1 : 0);
  return (negative ? "-" : "") + (first == std::string::npos ? "0" : number.text.substr(first)) +
         ".0";
}

std::string in_quotes(const std::string& value) {
  std::string text = "'";
  for (char c : value) {
    switch (c) {
      case '\n':
        text += "\\n";
        break;
      case '\t':
        text += "\\t";
        break;
      case '\'':
      case '\\':
        text += '\\';
        [[fallthrough]];
      default:
        text += c;
    }
  }
  return text + "'";
}

std::string take_string(SchemaCursor& cursor, const std::string& expected) {
  const size_t column = cursor.at();
  const char quote = cursor.peek();
  if (quote != '\'' && quote != '"') cursor.fail_here(expected + ", found " + cursor.found());
  const std::string_view text = cursor.text();
  std::string value;
  size_t i = column + 1;
  for (; i < text.size() && text[i] != quote; ++i) {
    if (static_cast<unsigned char>(text[i]) < ' ' && text[i] != '\t') {
      cursor.fail_at(column, expected +
                                 "; a string holds no control characters and ends on the line on "
                                 "which it begins; write \\n for a line end");
    }
    if (text[i] != '\\') {
      value += text[i];
      continue;
    }
    const char escape = ++i < text.size() ? text[i] : '\0';
    switch (escape) {
      case 'n':
        value += '\n';
        break;
      case 't':
        value += '\t';
        break;
      case '\\':
      case '\'':
      case '"':
        value += escape;
        break;
      default:
        cursor.fail_at(i - 1,
                       expected + "; unknown escape, those accepted are \\n \\t \\\\ \\' \\\"");
    }
  }
  if (i >= text.size())
    cursor.fail_at(column, expected + "; the string that begins here has no end");
  cursor.take(text.substr(column, i + 1 - column));
  return in_quotes(value);
}

std::string take_device(SchemaCursor& cursor, const std::string& expected) {
  const size_t column = cursor.at();
  const std::string text = take_string(cursor, expected);
  if (!device_from_name(std::string_view(text).substr(1, text.size() - 2)))
    cursor.fail_at(column, expected + ", got " + text);
  return text;
}

std::string take_word(SchemaCursor& cursor, const std::string& expected,
                      const std::vector<std::string>& words) {
  const size_t column = cursor.at();
  const std::string given(cursor.take_while(is_literal_char));
  for (const std::string& word : words) {
    if (given == word) return word;
  }
  if (given.empty()) cursor.fail_here(expected + ", found " + cursor.found());
  cursor.fail_at(column, expected + ", got " + given + did_you_mean(given, words));
}

std::string take_dtype(SchemaCursor& cursor, const std::string& expected) {
  const size_t column = cursor.at();
  const std::string given(cursor.take_while(is_literal_char));
  if (given.empty()) cursor.fail_here(expected + ", found " + cursor.found());
  if (const auto dtype = dtype_from_name(given)) return std::string(name(*dtype));
  std::vector<std::string> names;
  for (int i = 0; i < kDTypeCount; ++i) names.emplace_back(name(static_cast<DType>(i)));
  cursor.fail_at(column, expected + ", got " + given + did_you_mean(given, names));
}

std::string take_ints(SchemaCursor& cursor, const SchemaType& type, const std::string& owner) {
  const std::string expected =
      owner + (type.list_size.empty() ? ": expected a list of integers such as [1, 2]"
                                      : ": expected an integer or a list of integers");
  if (!cursor.take("[")) {
    if (type.list_size.empty()) cursor.fail_here(expected + ", found " + cursor.found());
    const std::string value = take_int(cursor, expected);
    return "[" +
           join(std::vector<std::string>(static_cast<size_t>(std::stoi(type.list_size)), value)) +
           "]";
  }
  std::vector<std::string> values;
  if (!cursor.looking_at("]")) {
    do values.push_back(take_int(cursor, owner + ": expected integers in the list"));
    while (cursor.take(","));
  }
  cursor.expect("]", "after the list's items");
  return "[" + join(values) + "]";
}

std::string take_value(SchemaCursor& cursor, std::string_view base, const std::string& begin) {
  if (base == "float") return take_float(cursor, begin + "a number");
  if (base == "bool") return take_word(cursor, begin + "True or False", {"True", "False"});
  return take_string(cursor, begin + "a string in quotes");
}

// Of float[] and bool[].
std::string take_values(SchemaCursor& cursor, const SchemaType& type, const std::string& owner) {
  if (!cursor.take("["))
    cursor.fail_here(owner + ": expected a list in brackets, found " + cursor.found());
  std::vector<std::string> values;
  if (!cursor.looking_at("]")) {
    do values.push_back(take_value(cursor, type.base, owner + ": in the list, expected "));
    while (cursor.take(","));
  }
  cursor.expect("]", "after the list's items");
  return "[" + join(values) + "]";
}

}  // namespace

std::string take_default(SchemaCursor& cursor, const SchemaType& type, const std::string& owner) {
  const size_t column = cursor.at();
  if (!type.alias.empty() && !type.optional)
    cursor.fail_at(
        column,
        owner +
            ": a mutated tensor may not have a default; the caller must pass what is written to");
  if (cursor.looking_at("None")) {
    cursor.take("None");
    if (cursor.position() < cursor.text().size() &&
        is_name_char(cursor.text()[cursor.position()])) {
      cursor.fail_at(column, owner + ": unknown default value");
    }
    if (!type.optional)
      cursor.fail_at(column, owner + ": None is no value of " + type.text() + "; write " +
                                 type.text() + "? if it may be absent");
    return "None";
  }
  const std::string begin = owner + ": expected ";
  if (type.base == "Tensor" && !type.optional) {
    cursor.fail_here(owner + ": a Tensor has no default, got " + cursor.found() +
                     "; write Tensor? with =None if it may be absent");
  }
  if (type.base == "Tensor")
    cursor.fail_here(begin + "None, the only default of Tensor?, found " + cursor.found());
  if (type.optional && (type.list || type.base == "Device")) {
    cursor.fail_here(begin + "None, the only default that PyTorch converts for " + type.text() +
                     ", found " + cursor.found());
  }
  if (type.list && type.type() == Type::IntList) return take_ints(cursor, type, owner);
  if (type.list) return take_values(cursor, type, owner);
  if (type.base == "int" || type.base == "SymInt") return take_int(cursor, begin + "an integer");
  if (type.base == "float" || type.base == "bool" || type.base == "str")
    return take_value(cursor, type.base, begin);
  if (type.base == "ScalarType")
    return take_dtype(cursor, begin + "the name of a dtype, such as float32");
  if (type.base == "Layout")
    return take_word(cursor, begin + "strided, the only layout that PyTorch's schemas name",
                     {"strided"});
  if (type.base == "MemoryFormat") {
    return take_word(
        cursor, begin + "contiguous_format, the only memory format that PyTorch's schemas name",
        {"contiguous_format"});
  }
  return take_device(cursor, begin + "a device in quotes, such as 'cpu' or 'cuda:0'");
}

}  // namespace opaq::spec
