// Turns compilers' logs into messages about the user's source and entries.
#include "diagnostics.h"

#include <algorithm>
#include <cctype>
#include <regex>
#include <sstream>

#include "advice.h"
#include "base/error.h"
#include "words.h"

namespace opaq {
namespace {

std::string without_comments(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size();) {
    size_t end = i;
    if (source.substr(i, 2) == "//") end = std::min(source.find('\n', i), source.size());
    if (source.substr(i, 2) == "/*")
      end = std::min(source.find("*/", i + 2), source.size() - 2) + 2;
    out += end == i ? source[i] : ' ';
    i = std::max(end, i + 1);
  }
  return out;
}

// The name before the '(' of the declaration that follows `at`, attributes with arguments such as
// __launch_bounds__(256) left out.
std::string declared_name(const std::string& text, size_t at) {
  for (;;) {
    const size_t open = text.find_first_of("(;{", at);
    if (open == std::string::npos || text[open] != '(') return "";
    size_t end = open;
    while (end > at && std::isspace(static_cast<unsigned char>(text[end - 1]))) --end;
    size_t begin = end;
    while (begin > at && is_word_char(text[begin - 1])) --begin;
    std::string name = text.substr(begin, end - begin);
    if (!name.starts_with("__") && name != "alignas") return name;
    int depth = 0;
    size_t close = open;
    for (; close < text.size(); ++close) {
      if (text[close] == '(') ++depth;
      if (text[close] == ')' && --depth == 0) break;
    }
    at = std::min(close + 1, text.size());
  }
}

// Whether a declaration of a template goes on at `at`: "template <...> static" stands before it.
bool is_template(std::string_view text, size_t at) {
  text = text.substr(0, at);
  for (bool skipped = true; skipped;) {
    skipped = false;
    while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())))
      text.remove_suffix(1);
    for (std::string_view word : {"static", "inline", "constexpr", "extern"}) {
      if (!text.ends_with(word)) continue;
      text.remove_suffix(word.size());
      skipped = true;
    }
  }
  return text.ends_with('>');
}

// The functions called `name` that are declared after the whole word `word`.
struct Declarations {
  int count = 0;
  bool templates = false;
};
Declarations declarations_of(std::string_view source, std::string_view word,
                             const std::string& name) {
  const std::string text = without_comments(source);
  Declarations found;
  for (size_t at = 0; (at = text.find(word, at)) != std::string::npos; at += word.size()) {
    if (declared_name(text, at + word.size()) != name) continue;
    ++found.count;
    found.templates |= is_template(text, at);
  }
  return found;
}

// Why an entry whose name is right names no single function; "" where that is not known.
std::string ambiguity(const std::string& entry, const Declarations& found,
                      const std::string& file) {
  if (found.templates && entry.find('<') == std::string::npos)
    return "entry '" + entry + "' of " + file +
           " is a template: give its arguments, as in entry=\"" + entry + "<{x.dtype}>\"";
  if (found.count > 1 && !found.templates && entry.find('(') == std::string::npos)
    return "entry '" + entry + "' names " + std::to_string(found.count) + " functions of " + file +
           ": name one by its type, as in entry=\"(void (*)(const float*, float*, int))" + entry +
           "\"";
  return "";
}

std::vector<std::string> names_after(std::string_view source, std::string_view word) {
  const std::string text = without_comments(source);
  std::vector<std::string> names;
  for (size_t at = 0; (at = text.find(word, at)) != std::string::npos; at += word.size()) {
    const bool whole = (at == 0 || !is_word_char(text[at - 1])) &&
                       (at + word.size() >= text.size() || !is_word_char(text[at + word.size()]));
    if (!whole) continue;
    std::string name = declared_name(text, at + word.size());
    if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end())
      names.push_back(std::move(name));
  }
  return names;
}

// NVRTC's log consists of diagnostics, each followed by an empty line.
std::vector<std::string> blocks_of(const std::string& log) {
  std::vector<std::string> blocks;
  std::string block;
  for (size_t at = 0; at < log.size();) {
    const size_t end = std::min(log.find('\n', at), log.size());
    const std::string line = log.substr(at, end - at);
    at = end + 1;
    if (line.empty()) {
      if (!block.empty()) blocks.push_back(std::move(block));
      block.clear();
    } else {
      block += line + '\n';
    }
  }
  if (!block.empty()) blocks.push_back(std::move(block));
  return blocks;
}

// the place of name expressions in NVRTC's diagnostics
constexpr std::string_view kNameMap = "__nv_name_map(";
constexpr std::string_view kNamePragma = "#pragma nv_mangled_name ";

bool is_count(const std::string& block) {
  return block.find("detected in the compilation of") != std::string::npos;
}
bool is_error(const std::string& block) { return block.find("error") != std::string::npos; }

std::string list_kernels(const std::vector<std::string>& kernels, const std::string& file) {
  if (kernels.empty()) return "no __global__ function was found in " + file;
  return file + " has " + (kernels.size() == 1 ? "the kernel " : "the kernels ") + join(kernels);
}

// What is wrong with an entry, which is all that a compiler complained of. `reason`: its first
// complaint.
CudaFailure entry_failure(const std::string& file, const std::string& entry,
                          std::string_view source, const std::string& compiler,
                          const std::string& reason, const std::string& advice) {
  const auto kernels = scan_kernels(source);
  const std::string name = base_name(entry);
  const std::string message = "entry '" + entry + "' names no kernel of " + file + ": ";
  if (std::find(kernels.begin(), kernels.end(), name) == kernels.end())
    return {message + list_kernels(kernels, file) + did_you_mean(name, kernels), true};
  // The name is right, so the error is in the rest of the entry.
  if (const std::string why = ambiguity(entry, declarations_of(source, "__global__", name), file);
      !why.empty())
    return {why, false};
  return {message + compiler + " says \"" + reason + "\"; " + list_kernels(kernels, file) +
              "; write the entry as C++ would name one function: namespaces, and template "
              "arguments that fit the declaration" +
              advice,
          false};
}

// Without nvcc's notes on functions that do not fit, of which torch's headers have dozens:
//   f.h(388): note #3326-D: function "c10::operator>(...)" does not match because ...
//     <the line, and a caret below it>
std::string without_notes(const std::string& block) {
  std::istringstream lines(block);
  std::string out;
  bool in_note = false;
  for (std::string line; std::getline(lines, line);) {
    const bool indented = line.starts_with("  ");
    in_note = line.find("): note #332") != std::string::npos ||
              (in_note && indented && !line.starts_with("          detected"));
    if (!in_note) out += line + '\n';
  }
  return out;
}

// The host compiler's first error where all are about the call of the entry; "" if any is not, or
// if it is one that explains itself (opaq's static_assert).
std::string complaint_about_call(const std::string& log) {
  std::istringstream lines(log);
  std::string first;
  for (std::string line; std::getline(lines, line);) {
    const size_t at = line.find("error: ");
    if (at == std::string::npos) continue;
    if (!line.starts_with(kCallPlace) || line.find("opaq: ", at) != std::string::npos) return "";
    if (first.empty()) first = line.substr(at + 7);
  }
  return first;
}

void remove_line_ends(std::string& text) {
  while (text.ends_with('\n')) text.pop_back();
}

}  // namespace

std::string base_name(std::string_view entry) {
  std::string_view name = entry.substr(0, entry.find('<'));
  while (!name.empty() && !is_word_char(name.back())) name.remove_suffix(1);
  size_t begin = name.size();
  while (begin > 0 && is_word_char(name[begin - 1])) --begin;
  return std::string(name.substr(begin));
}

std::vector<std::string> scan_kernels(std::string_view source) {
  return names_after(source, "__global__");
}
std::vector<std::string> scan_host_functions(std::string_view source) {
  return names_after(source, "void");
}

bool may_be_host_code(std::string_view log) {
  for (std::string_view part :
       {"in JIT mode", "is undefined", "has no member", "has no tag member",
        "must be a class or namespace name", "more than one instance of overloaded function",
        "required runtime APIs are not declared", "cannot open source file",
        "is not supported when compiling with NVRTC", "this declaration has no storage class",
        "incomplete type", "is not a template"}) {
    if (log.find(part) != std::string_view::npos) return true;
  }
  return false;
}

std::string asked_of(std::string_view log, const std::set<std::string>& names) {
  constexpr std::string_view kBefore = "identifier \"";
  for (size_t at = 0; (at = log.find(kBefore, at)) != std::string_view::npos;) {
    at += kBefore.size();
    const std::string_view rest = log.substr(at);
    if (const auto found = names.find(std::string(rest.substr(0, rest.find('"'))));
        found != names.end())
      return *found;
  }
  return "";
}

CudaFailure cuda_failure(const std::string& file, const std::string& arch, const std::string& log,
                         std::string_view source, std::span<const std::string> entries) {
  std::string in_source, about_entries;
  bool source_fails = false;
  for (const std::string& block : blocks_of(log)) {
    if (is_count(block)) continue;
    if (block.starts_with(kNameMap)) {
      about_entries += block;
    } else {
      in_source += block + '\n';
      source_fails |= is_error(block);
    }
  }
  remove_line_ends(in_source);
  if (source_fails || about_entries.empty())
    return {"NVRTC could not compile " + file + " for " + arch + ":\n" +
                (in_source.empty() ? log : in_source) + cuda_advice(log),
            false};

  std::string unknown = entries.empty() ? "" : entries[0];
  for (const std::string& entry : entries) {
    if (about_entries.find(std::string(kNamePragma) + entry + '\n') != std::string::npos) {
      unknown = entry;
      break;
    }
  }
  std::string reason = about_entries.substr(about_entries.find("): ") + 3);
  reason = reason.substr(0, reason.find('\n'));
  return entry_failure(file, unknown, source, "NVRTC", reason, cuda_advice(about_entries));
}

CudaFailure nvcc_failure(const std::string& file, const std::string& arch, const std::string& log,
                         std::string_view source, const std::string& entry) {
  std::string in_source, reason;
  bool source_fails = false;
  for (const std::string& block : blocks_of(log)) {
    if (is_count(block)) continue;
    if (block.starts_with(kEntryPlace)) {
      const size_t at = block.find(": ", kEntryPlace.size());
      if (reason.empty() && is_error(block))
        reason = block.substr(at + 2, block.find('\n', at) - at - 2);
    } else {
      in_source += without_notes(block) + '\n';
      source_fails |= is_error(block);
    }
  }
  remove_line_ends(in_source);
  if (source_fails || reason.empty())
    return {"nvcc could not compile " + file + " for " + arch + ":\n" +
                (in_source.empty() ? log : in_source) + nvcc_advice(log),
            false};
  return entry_failure(file, entry, source, "nvcc", reason, "");
}

std::string both_failures(const std::string& nvrtc, const std::string& nvcc) {
  // nvcc numbers its errors: "k.cu(3): error #20: identifier ..."
  static const std::regex number(R"re(error #\d+(-D)?: )re");
  bool same = true;
  std::istringstream lines(nvcc);
  for (std::string line; std::getline(lines, line);) {
    if (line.size() > 4096 || line.find("): error") == std::string::npos) continue;
    same = same && nvrtc.find(std::regex_replace(line, number, "error: ")) != std::string::npos;
  }
  if (same && nvcc.find("): error") != std::string::npos) return nvrtc + "\nnvcc says the same";
  return nvrtc + "\n\nNVRTC failed as said above, and so did nvcc, which was tried next: " + nvcc;
}

std::string list_kernels(std::string_view source, const std::string& file) {
  return list_kernels(scan_kernels(source), file);
}

std::string host_failure(const std::string& file, const std::string& compiler,
                         const std::string& log, std::string_view source,
                         const std::string& entry) {
  std::string message = compiler + " could not compile " + file + ":\n" + log;
  remove_line_ends(message);
  const std::string reason = complaint_about_call(log);
  if (reason.empty()) return message + host_advice(log);

  const auto functions = scan_host_functions(source);
  const std::string name = base_name(entry);
  const std::string has =
      functions.empty() ? "no function returning void was found" : file + " has " + join(functions);
  const std::string head = "entry '" + entry + "' names no function of " + file + ": ";
  if (std::find(functions.begin(), functions.end(), name) == functions.end())
    return head + has + did_you_mean(name, functions);
  const std::string why = ambiguity(entry, declarations_of(source, "void", name), file);
  if (!why.empty()) return why;
  return head + compiler + " says \"" + reason + "\"; " + has +
         "; write the entry as C++ would name one function: namespaces, and template arguments "
         "that fit the declaration";
}

}  // namespace opaq
