// Reads the declarations of a source from its tokens, without types or macros.
#include "host_code.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "words.h"

namespace opaq {

struct HostCodeFilter::Token {
  enum class Kind : uint8_t { Word, Mark, Literal } kind = Kind::Mark;
  size_t begin = 0, end = 0;
  std::string_view text;
};

namespace {

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)); }

template <size_t N>
bool any_of(std::string_view word, const std::array<std::string_view, N>& words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

constexpr std::array<std::string_view, 5> kDeviceMarks = {
    "__global__", "__device__", "__constant__", "__shared__", "__managed__"};
constexpr std::array<std::string_view, 4> kClassKeys = {"class", "struct", "union", "enum"};
// Words that may stand between the parameters and the body of a function.
constexpr std::array<std::string_view, 7> kAfterParameters = {
    "const", "noexcept", "override", "final", "volatile", "mutable", "try"};
// Words that begin a declaration or go on with one after a macro in parentheses.
constexpr std::array<std::string_view, 6> kWithArguments = {
    "__launch_bounds__", "__align__", "alignas", "__attribute__", "decltype", "__declspec"};

// Words that device code cannot use, or their beginnings (with a '*').
constexpr std::array<std::string_view, 16> kHostWords = {
    "TORCH_*", "AT_*",   "PYBIND11_*", "C10_CUDA_*", "cublas*", "cudnn*", "nccl*", "fprintf",
    "stderr",  "stdout", "fopen",      "perror",     "throw",   "fwrite", "fread", "gettimeofday"};
// Namespaces of the host's libraries, and members of std.
constexpr std::array<std::string_view, 6> kHostNamespaces = {"torch", "pybind11", "py",
                                                             "tvm",   "thrust",   "testing"};
constexpr std::array<std::string_view, 24> kHostStd = {
    "cout",      "cerr",         "endl",          "vector",        "string",
    "map",       "set",          "unordered_map", "ofstream",      "ifstream",
    "ostream",   "stringstream", "ostringstream", "runtime_error", "invalid_argument",
    "exception", "unique_ptr",   "shared_ptr",    "mutex",         "lock_guard",
    "thread",    "chrono",       "function",      "to_string"};
// Types and functions of PyTorch's, after at:: or c10::. (Device code may use others: at::Half.)
constexpr std::array<std::string_view, 12> kHostTorch = {
    "Tensor", "TensorList", "IntArrayRef", "ArrayRef", "ScalarType", "Scalar",
    "Device", "Generator",  "empty",       "zeros",    "optional",   "nullopt"};

// Functions of CUDA's runtime: "cudaMalloc". (Types such as cudaTextureObject_t end in "_t".)
bool of_runtime(std::string_view word) {
  return word.size() > 4 && word.starts_with("cuda") && word[4] >= 'A' && word[4] <= 'Z' &&
         !word.ends_with("TextureObject_t") && !word.ends_with("SurfaceObject_t") &&
         !word.starts_with("cudaTrigger") && !word.starts_with("cudaGridDependency");
}

bool is_host_word(std::string_view word) {
  return of_runtime(word) ||
         std::any_of(kHostWords.begin(), kHostWords.end(), [&](std::string_view host) {
           return host.ends_with('*') ? word.starts_with(host.substr(0, host.size() - 1))
                                      : word == host;
         });
}

}  // namespace

// The tokens of a text, and from them its declarations.
class HostCodeFilter::Parser {
 public:
  Parser(HostCodeFilter& code) : code_(code), text_(code.source_) {
    code_.directive_.assign(text_.size(), false);
    lex();
  }

  std::vector<Declaration> declarations() {
    std::vector<Declaration> found;
    while (at_ < tokens_.size()) {
      scope(found, false);
      ++at_;  // a '}' too many
    }
    return found;
  }

 private:
  using Kind = Token::Kind;

  // ---- tokens

  void lex() {
    struct Branch {
      int depth;
      bool skipped;
    };
    std::vector<Branch> branches;  // of #if
    int depth = 0;                 // of braces
    bool line_start = true;
    size_t i = 0;
    const auto skipped = [&] { return !branches.empty() && branches.back().skipped; };
    while (i < text_.size()) {
      const char c = text_[i];
      if (c == '\n') {
        line_start = true;
        ++i;
      } else if (is_space(c)) {
        ++i;
      } else if (text_.compare(i, 2, "//") == 0) {
        while (i < text_.size() && !(text_[i] == '\n' && text_[i - 1] != '\\')) ++i;
      } else if (text_.compare(i, 2, "/*") == 0) {
        const size_t end = text_.find("*/", i + 2);
        i = end == std::string::npos ? text_.size() : end + 2;
      } else if (c == '#' && line_start) {
        const size_t end = directive_end(i);
        std::fill(code_.directive_.begin() + static_cast<ptrdiff_t>(i),
                  code_.directive_.begin() + static_cast<ptrdiff_t>(end), true);
        const std::string_view line = std::string_view(text_).substr(i, end - i);
        const std::string_view word = first_word(line);
        if (word.starts_with("if")) {
          const bool never = word == "if" && condition_is_zero(line);
          branches.push_back({depth, never || skipped()});
        } else if (word.starts_with("el") && !branches.empty()) {
          // Where the branches open different numbers of braces, only the first one counts.
          const bool outer = branches.size() > 1 && branches[branches.size() - 2].skipped;
          branches.back().skipped = outer || depth != branches.back().depth;
        } else if (word == "endif" && !branches.empty()) {
          branches.pop_back();
        } else if (word == "define") {
          define(line);
        }
        i = end;
      } else {
        line_start = false;
        const size_t begin = i;
        const Kind kind = token(i);
        if (skipped()) continue;
        const std::string_view text = std::string_view(text_).substr(begin, i - begin);
        if (text == "{") ++depth;
        if (text == "}") --depth;
        tokens_.push_back({kind, begin, i, text});
      }
    }
  }

  size_t directive_end(size_t i) const {
    for (; i < text_.size(); ++i) {
      if (text_.compare(i, 2, "/*") == 0) {
        const size_t end = text_.find("*/", i + 2);
        i = end == std::string::npos ? text_.size() : end + 1;
      } else if (text_[i] == '\n') {
        size_t before = i;
        if (before > 0 && text_[before - 1] == '\r') --before;
        if (before == 0 || text_[before - 1] != '\\') return i;
      }
    }
    return std::min(i, text_.size());
  }

  static std::string_view first_word(std::string_view line) {
    size_t begin = 1;
    while (begin < line.size() && is_space(line[begin])) ++begin;
    size_t end = begin;
    while (end < line.size() && is_word_char(line[end])) ++end;
    return line.substr(begin, end - begin);
  }

  static bool condition_is_zero(std::string_view line) {
    std::string_view rest = line.substr(line.find("if") + 2);
    while (!rest.empty() && is_space(rest.front())) rest.remove_prefix(1);
    return rest.starts_with('0') && (rest.size() == 1 || !is_word_char(rest[1]));
  }

  // A macro that stands for a mark of device code.
  void define(std::string_view line) {
    const size_t name = line.find("define") + 6;
    size_t begin = name;
    while (begin < line.size() && is_space(line[begin])) ++begin;
    size_t end = begin;
    while (end < line.size() && is_word_char(line[end])) ++end;
    const std::string_view rest = line.substr(end);
    if (rest.find("__device__") != std::string_view::npos ||
        rest.find("__global__") != std::string_view::npos)
      device_macros_.insert(std::string(line.substr(begin, end - begin)));
  }

  // Reads one token and moves `i` to its end.
  Kind token(size_t& i) const {
    const char c = text_[i];
    if (is_word_char(c)) {
      const size_t begin = i;
      while (i < text_.size() &&
             (is_word_char(text_[i]) || (text_[i] == '\'' && digit_at(begin) &&
                                         i + 1 < text_.size() && is_word_char(text_[i + 1]))))
        ++i;
      if (i < text_.size() && (text_[i] == '"' || text_[i] == '\'') && i - begin <= 3) {
        const std::string_view prefix = std::string_view(text_).substr(begin, i - begin);
        if (prefix.ends_with('R') && text_[i] == '"') return raw_string(i);
        if (prefix == "L" || prefix == "u" || prefix == "U" || prefix == "u8") return quoted(i);
      }
      return digit_at(begin) ? Kind::Literal : Kind::Word;
    }
    if (c == '"' || c == '\'') return quoted(i);
    for (std::string_view mark : {"<<<", ">>>", "::", "->"}) {
      if (text_.compare(i, mark.size(), mark) == 0) {
        i += mark.size();
        return Kind::Mark;
      }
    }
    ++i;
    return Kind::Mark;
  }

  bool digit_at(size_t i) const { return std::isdigit(static_cast<unsigned char>(text_[i])); }

  Kind quoted(size_t& i) const {
    const char quote = text_[i++];
    while (i < text_.size() && text_[i] != quote && text_[i] != '\n') i += text_[i] == '\\' ? 2 : 1;
    i = std::min(i + 1, text_.size());
    return Kind::Literal;
  }

  Kind raw_string(size_t& i) const {
    const size_t open = text_.find('(', i);
    if (open == std::string::npos) return quoted(i);
    const std::string close = ")" + text_.substr(i + 1, open - i - 1) + "\"";
    const size_t end = text_.find(close, open);
    i = end == std::string::npos ? text_.size() : end + close.size();
    return Kind::Literal;
  }

  // ---- declarations

  std::string_view peek(size_t ahead = 0) const {
    return at_ + ahead < tokens_.size() ? tokens_[at_ + ahead].text : std::string_view();
  }
  bool word_at(size_t i) const { return i < tokens_.size() && tokens_[i].kind == Kind::Word; }

  // The position after the bracket that closes the one at `i`.
  size_t after_brackets(size_t i) const {
    int depth = 0;
    for (; i < tokens_.size(); ++i) {
      const std::string_view text = tokens_[i].text;
      if (text == "(" || text == "[" || text == "{") ++depth;
      if ((text == ")" || text == "]" || text == "}") && --depth == 0) return i + 1;
    }
    return i;
  }

  // The position after the '>' of the template parameters or arguments that begin at `i`.
  size_t after_angles(size_t i) const {
    int depth = 0;
    while (i < tokens_.size()) {
      const std::string_view text = tokens_[i].text;
      if (text == "(" || text == "[" || text == "{") {
        i = after_brackets(i);
        continue;
      }
      if (text == ";") return i;
      if (text == "<") ++depth;
      if (text == ">") --depth;
      if (text == ">>>") depth -= 3;
      ++i;
      if (depth <= 0) return i;
    }
    return i;
  }

  // Reads declarations up to the '}' of the scope, or the end.
  void scope(std::vector<Declaration>& found, bool members) {
    while (at_ < tokens_.size() && peek() != "}") {
      if (peek() == ";") {
        ++at_;
      } else if (members && word_at(at_) && peek(1) == ":" && any_of(peek(), kAccess)) {
        at_ += 2;
      } else if (const size_t open = namespace_brace(); open != 0) {
        at_ = open + 1;
        scope(found, false);
        if (at_ < tokens_.size()) ++at_;
      } else {
        found.push_back(declaration());
      }
    }
  }

  static constexpr std::array<std::string_view, 3> kAccess = {"public", "protected", "private"};

  // The position of the '{' of a namespace or of extern "C"; 0 where none begins.
  size_t namespace_brace() const {
    size_t i = at_;
    if (peek() == "extern" && at_ + 2 < tokens_.size() && tokens_[at_ + 1].kind == Kind::Literal)
      return tokens_[at_ + 2].text == "{" ? at_ + 2 : 0;
    if (peek() == "inline") ++i;
    if (i >= tokens_.size() || tokens_[i].text != "namespace") return 0;
    for (++i; i < tokens_.size() && tokens_[i].text != ";" && tokens_[i].text != "="; ++i) {
      if (tokens_[i].text == "{") return i;
    }
    return 0;
  }

  // Macros of other files count by their names: HOST_DEVICE_INLINE, but not
  // REGISTER_DEVICE_IMPL(...).
  bool marks_device(std::string_view word) const {
    return any_of(word, kDeviceMarks) || device_macros_.contains(std::string(word)) ||
           (peek(1) != "(" && (word.find("DEVICE") != std::string_view::npos ||
                               word.find("GLOBAL") != std::string_view::npos));
  }

  Declaration declaration() {
    Declaration made;
    const size_t first = at_;
    bool host = false, class_key = false, enumeration = false, assigned = false, alias = false,
         parameters = false, initializers = false;
    size_t name = 0;  // of the word before the first parentheses
    bool body = false;
    while (at_ < tokens_.size() && peek() != "}") {
      const std::string_view text = peek();
      if (text == ";") {
        ++at_;
        break;
      }
      if (text == "template") {
        made.instance = peek(1) != "<";
        at_ = made.instance ? at_ + 1 : after_angles(at_ + 1);
        continue;
      }
      if (text == "[") {
        at_ = after_brackets(at_);
        continue;
      }
      if (text == "(") {
        const bool arguments_of_word = at_ > first && any_of(tokens_[at_ - 1].text, kWithArguments);
        if (!arguments_of_word && !parameters && !assigned) {
          parameters = true;
          name = at_ == first ? first : at_ - 1;
        }
        at_ = after_brackets(at_);
        if (!arguments_of_word && name == first && stands_alone()) break;
        continue;
      }
      if (text == "{") {
        const std::string_view before = at_ > first ? tokens_[at_ - 1].text : std::string_view();
        if (class_key && !parameters && !assigned) {
          made.class_type = true;
          members(made, enumeration);
          continue;
        }
        const bool braces_of_value =
            assigned || !parameters ||
            (initializers && before != ")" && before != "}" && !any_of(before, kAfterParameters));
        if (braces_of_value) {
          at_ = after_brackets(at_);
          continue;
        }
        at_ = after_brackets(at_);
        body = true;
        break;
      }
      if (text == "=") assigned = true;
      if (text == ":" && parameters) initializers = true;
      if (tokens_[at_].kind == Kind::Word) {
        if (marks_device(text)) made.device = true;
        if (text == "__host__") host = true;
        if (text == "virtual" || text == "override") made.is_virtual = true;
        if (text == "using" || text == "typedef" || text == "static_assert" || text == "friend")
          alias = true;
        if (any_of(text, kClassKeys) && !parameters) class_key = true;
        if (text == "enum") enumeration = true;
      }
      ++at_;
    }
    if (at_ == first) ++at_;  // never stands still
    const size_t last = std::min(at_, tokens_.size()) - 1;
    made.begin = tokens_[first].begin;
    made.end = tokens_[last].end;
    made.first_line = line_of(made.begin);
    made.last_line = line_of(made.end - 1);
    made.function = body;
    made.prototype = !body && parameters && !assigned && !alias && !made.class_type;
    made.host_alone = host && !made.device;
    if (parameters && word_at(name)) made.name = tokens_[name].text;
    for (const Declaration& member : made.members) made.device = made.device || member.device;
    return made;
  }

  void members(Declaration& made, bool enumeration) {
    if (enumeration) {
      at_ = after_brackets(at_);
      return;
    }
    ++at_;
    scope(made.members, true);
    if (at_ < tokens_.size()) ++at_;
  }

  // Whether a macro with arguments that began the declaration ends here, without a semicolon.
  bool stands_alone() const {
    return word_at(at_) && !any_of(peek(), kAfterParameters) && !any_of(peek(), kWithArguments);
  }

  int line_of(size_t position) {
    for (; counted_ < position; ++counted_) line_ += text_[counted_] == '\n';
    for (; counted_ > position; --counted_) line_ -= text_[counted_ - 1] == '\n';
    return line_;
  }

  HostCodeFilter& code_;
  const std::string& text_;
  std::vector<Token> tokens_;
  std::set<std::string> device_macros_;
  size_t at_ = 0;
  size_t counted_ = 0;
  int line_ = 1;
};

HostCodeFilter::HostCodeFilter(std::string_view text) : source_(text), text_(text) {
  declarations_ = Parser(*this).declarations();
}

void HostCodeFilter::blank(Declaration& declaration) {
  declaration.left_out = true;
  if (!declaration.name.empty()) names_.insert(declaration.name);
  for (size_t i = declaration.begin; i < declaration.end; ++i) {
    if (text_[i] != '\n' && !directive_[i]) text_[i] = ' ';
  }
}

// Words are looked for in comments and strings as well: to leave a function out is no loss.
bool HostCodeFilter::names_the_host(const Declaration& declaration) const {
  const std::string_view text =
      std::string_view(source_).substr(declaration.begin, declaration.end - declaration.begin);
  if (text.find("<<<") != std::string_view::npos) return true;
  std::string_view space, space_end;  // the word before "::", and where what follows begins
  for (size_t i = 0; i < text.size();) {
    size_t end = i;
    while (end < text.size() && is_word_char(text[end])) ++end;
    const std::string_view word = text.substr(i, end - i);
    i = std::max(end, i + 1);
    if (word.empty()) continue;
    if (is_host_word(word)) return true;
    const bool follows = space_end.data() == word.data();
    if (follows && space == "std" && any_of(word, kHostStd)) return true;
    if (follows && (space == "at" || space == "c10") &&
        (any_of(word, kHostTorch) || word == "cuda" || word.find("Guard") != word.npos))
      return true;
    if (text.substr(end, 2) == "::") {
      if (any_of(word, kHostNamespaces)) return true;
      space = word;
      space_end = text.substr(end + 2);
    }
  }
  return false;
}

bool HostCodeFilter::leave_out_obvious(Declaration& declaration, bool member) {
  bool any = false;
  for (Declaration& part : declaration.members) any |= leave_out_obvious(part, true);
  if (declaration.left_out || declaration.device || declaration.is_virtual) return any;
  const bool callable = declaration.function || (declaration.prototype && !member);
  const bool instance = declaration.instance && declaration.prototype;
  if (!callable && !instance) return any;
  if (!instance && !declaration.host_alone && declaration.name != "main" &&
      !names_the_host(declaration))
    return any;
  blank(declaration);
  return true;
}

bool HostCodeFilter::leave_out_obvious() {
  bool any = false;
  for (Declaration& declaration : declarations_) any |= leave_out_obvious(declaration, false);
  return any;
}

bool HostCodeFilter::leave_out(Declaration& declaration, const std::set<int>& lines, bool member) {
  const auto line = lines.lower_bound(declaration.first_line);
  if (declaration.left_out || line == lines.end() || *line > declaration.last_line) return false;
  bool any = false;
  for (Declaration& part : declaration.members) any |= leave_out(part, lines, true);
  if (any || declaration.device) return any;
  if (member && (!declaration.function || declaration.is_virtual)) return false;
  blank(declaration);
  return true;
}

bool HostCodeFilter::leave_out(const std::set<int>& lines) {
  bool any = false;
  for (Declaration& declaration : declarations_) any |= leave_out(declaration, lines, false);
  return any;
}

}  // namespace opaq
