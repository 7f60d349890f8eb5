// A recursive-descent parser for Python's grammar of expressions; Builder checks types.
#include <algorithm>
#include <array>

#include "base/error.h"
#include "build.h"
#include "lexer.h"
#include "program.h"

namespace opaq {
namespace syntax {
namespace {

// nested parentheses, calls, conditionals; limits the depth of recursion
constexpr int kDeepest = 64;

constexpr std::string_view kKeywords[] = {"and",  "or",    "not",  "if",    "else", "in", "for",
                                          "true", "false", "True", "False", "None", "is"};

bool is_keyword(std::string_view text) {
  return std::ranges::find(kKeywords, text) != std::end(kKeywords);
}

class Parser {
 public:
  Parser(const Source& source, std::shared_ptr<const std::vector<Symbol>> symbols,
         std::span<const SymbolList> lists)
      : source_(source),
        symbols_(std::move(symbols)),
        lists_(lists.begin(), lists.end()),
        tokens_(tokenize(source)) {}

  bool at_end() const { return token().kind == Token::Kind::End; }

  // One expression of the text, up to the end or, in a list, the comma.
  Expr item(bool list) {
    const bool splice = list && accept("*");
    const size_t begin = token().at;
    Builder builder(source_, symbols_);
    builder_ = &builder;
    const int32_t root = expression();
    if (!at_end() && !(list && token().is(","))) {
      unexpected(list ? "expected an operator, ',' or the end" : "expected an operator or the end");
    }
    if (splice && builder.type(root) != Type::IntList) {
      source_.error(begin, "'*' takes int[], found " + std::string(name(builder.type(root))));
    }
    const int32_t integer = builder.type(root) == Type::Float ? builder.as_integer(root) : kNone;
    const Tree tree = builder.finish(root);
    auto program = compiled(tree, root, begin);
    if (integer != kNone) program->integer = compiled(tree, integer, begin);
    return Expr(std::move(program));
  }

  bool accept(std::string_view spelling) {
    if (!token().is(spelling)) return false;
    advance();
    return true;
  }

 private:
  // Counts nesting for the scope.
  class Nested {
   public:
    explicit Nested(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kDeepest)
        parser_.source_.error(parser_.token().at, "this expression is too deeply nested; split it");
    }
    ~Nested() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  std::shared_ptr<Program> compiled(const Tree& tree, int32_t root, size_t begin) const {
    auto program = flatten(tree, root);
    if (!program)
      source_.error(begin,
                    "this expression is too long or too deeply nested; split it, or give its parts "
                    "as arguments");
    program->tree = tree;
    program->tree.root = root;
    program->what = source_.what;
    program->text = source_.text.substr(begin, previous_end_ - begin);
    return std::make_shared<Program>(std::move(*program));
  }

  const Token& token(size_t ahead = 0) const {
    return tokens_[std::min(next_ + ahead, tokens_.size() - 1)];
  }

  const Token& advance() {
    const Token& taken = token();
    previous_end_ = taken.at + taken.text.size();
    if (!at_end()) ++next_;
    return taken;
  }

  [[noreturn]] void unexpected(const std::string& expected) const {
    std::string ending = expected;
    if (token().is("is"))
      ending = "write defined(argument) to ask whether an optional argument is given";
    source_.error(token().at, "found " + token().found() + ", " + ending);
  }

  void require(std::string_view spelling, std::string_view after) {
    if (!accept(spelling))
      unexpected("expected '" + std::string(spelling) + "' " + std::string(after));
  }

  int32_t expression() {
    const Nested nested(*this);
    const int32_t yes = disjunction();
    const size_t at = token().at;
    if (!accept("if")) return yes;
    const int32_t condition = disjunction();
    require("else", "after the condition of 'if'");
    const int32_t no = expression();
    return builder_->conditional(at, yes, condition, no);
  }

  int32_t disjunction() {
    int32_t left = conjunction();
    for (size_t at = token().at; accept("or"); at = token().at) {
      const int32_t right = conjunction();
      left = builder_->logical(Operation::Or, at, left, right);
    }
    return left;
  }

  int32_t conjunction() {
    int32_t left = inversion();
    for (size_t at = token().at; accept("and"); at = token().at) {
      const int32_t right = inversion();
      left = builder_->logical(Operation::And, at, left, right);
    }
    return left;
  }

  int32_t inversion() {
    const size_t at = token().at;
    if (!accept("not")) return comparison();
    const Nested nested(*this);
    return builder_->negation(at, inversion());
  }

  // a < b <= c is a < b and b <= c.
  int32_t comparison() {
    int32_t left = sum(), result = kNone;
    for (;;) {
      const size_t at = token().at;
      int32_t outcome = kNone, right = kNone;
      if (const auto op = comparison_operator()) {
        right = sum();
        outcome = builder_->compare(*op, at, left, right);
      } else if (token().is("in") || (token().is("not") && token(1).is("in"))) {
        const bool absent = accept("not");
        advance();
        outcome = membership(at, left, absent);
      } else {
        return result == kNone ? left : result;
      }
      result = result == kNone ? outcome : builder_->logical(Operation::And, at, result, outcome);
      if (right == kNone) return result;
      left = right;
    }
  }

  std::optional<Operation> comparison_operator() {
    for (Operation op : {Operation::Eq, Operation::Ne, Operation::Lt, Operation::Le, Operation::Gt,
                         Operation::Ge}) {
      if (accept(spelling(op))) return op;
    }
    return std::nullopt;
  }

  // x in (a, b) is x == a or x == b.
  int32_t membership(size_t at, int32_t left, bool absent) {
    const std::string_view close = token().is("[") ? "]" : ")";
    if (!accept("(") && !accept("["))
      unexpected("expected the values in parentheses, as in 'x.dtype in (float16, bfloat16)'");
    int32_t result = kNone;
    do {
      if (result != kNone && token().is(close)) break;
      const int32_t value = expression();
      const int32_t one =
          builder_->compare(absent ? Operation::Ne : Operation::Eq, at, left, value);
      result = result == kNone
                   ? one
                   : builder_->logical(absent ? Operation::And : Operation::Or, at, result, one);
    } while (accept(","));
    require(close, "or ',' after a value of 'in'");
    return result;
  }

  int32_t sum() {
    int32_t left = product();
    while (token().is("+") || token().is("-")) {
      const size_t at = token().at;
      const Operation op = advance().is("+") ? Operation::Add : Operation::Sub;
      const int32_t right = product();
      left = builder_->arithmetic(op, at, left, right);
    }
    return left;
  }

  int32_t product() {
    int32_t left = unary();
    for (;;) {
      const size_t at = token().at;
      std::optional<Operation> op;
      for (Operation candidate :
           {Operation::Mul, Operation::Div, Operation::FloorDiv, Operation::Mod}) {
        if (!op && accept(spelling(candidate))) op = candidate;
      }
      if (!op) return left;
      const int32_t right = unary();
      left = builder_->arithmetic(*op, at, left, right);
    }
  }

  int32_t unary() {
    const size_t at = token().at;
    if (!accept("-")) return postfix();
    if (token().kind == Token::Kind::Integer) {  // so that -2^63 can be written
      return builder_->integer(at, static_cast<int64_t>(-advance().integer));
    }
    const Nested nested(*this);
    return builder_->negate(at, unary());
  }

  int32_t postfix() {
    int32_t value = primary();
    for (;;) {
      if (accept(".")) {
        const Token& member = token();
        if (member.kind != Token::Kind::Name) unexpected("expected the name of a member");
        advance();
        value = accept("(") ? builder_->method(member.at, value, member.text, arguments())
                            : builder_->member(member.at, value, member.text);
      } else if (token().is("[")) {
        value = subscript(value);
      } else {
        return value;
      }
    }
  }

  int32_t subscript(int32_t list) {
    const size_t at = advance().at;
    int32_t low = kNone, high = kNone;
    if (!token().is(":")) low = expression();
    if (accept("]")) return builder_->index(at, list, low);
    require(":", "or ']'");
    if (!token().is("]")) high = token().is(":") ? kNone : expression();
    if (token().is(":")) source_.error(token().at, "a slice has no step here; expected ']'");
    require("]", "after a slice");
    return builder_->slice(at, list, low, high);
  }

  std::vector<int32_t> arguments() {
    std::vector<int32_t> args;
    if (accept(")")) return args;
    do {
      if (!args.empty() && token().is(")")) break;
      args.push_back(expression());
    } while (accept(","));
    require(")", "or ',' after an argument");
    return args;
  }

  int32_t primary() {
    const Token& first = token();
    switch (first.kind) {
      case Token::Kind::Integer:
        if (first.integer > INT64_MAX)
          source_.error(first.at, std::string(first.text) + " does not fit a 64-bit integer");
        advance();
        return builder_->integer(first.at, static_cast<int64_t>(first.integer));
      case Token::Kind::Float:
        advance();
        return builder_->floating(first.at, first.floating);
      case Token::Kind::String:
        advance();
        return builder_->string(first.at, first.string);
      case Token::Kind::Name:
        return named();
      case Token::Kind::Punctuation:
        if (accept("(")) {
          const int32_t inner = expression();
          require(")", "to close '('");
          return inner;
        }
        [[fallthrough]];
      case Token::Kind::End:
        unexpected("expected a value");
    }
    unexpected("expected a value");
  }

  // A literal, a function call, an argument or a dtype. A name before '(' is a function; an
  // argument hides a dtype of the same name.
  int32_t named() {
    const Token& first = token();
    if (first.is("true") || first.is("True")) return advance(), builder_->boolean(first.at, true);
    if (first.is("false") || first.is("False"))
      return advance(), builder_->boolean(first.at, false);
    if (first.is("None"))
      source_.error(
          first.at,
          "found 'None'; write defined(argument) to ask whether an optional argument is given");
    if (is_keyword(first.text)) unexpected("expected a value");
    advance();
    if (accept("(")) return called(first);
    for (size_t i = lists_.size(); i-- > 0;) {  // the innermost `for` first
      if (lists_[i].name != first.text) continue;
      return lists_[i].item ? argument(first.at, lists_[i].first) : item_of(first.at, lists_[i]);
    }
    for (size_t i = 0; i < symbols_->size(); ++i) {
      if ((*symbols_)[i].name == first.text) return argument(first.at, i);
    }
    if (first.text == "torch" && token().is(".") && token(1).kind == Token::Kind::Name) {
      advance();
      return dtype(advance());
    }
    return dtype(first);
  }

  int32_t argument(size_t at, size_t symbol) {
    return builder_->argument(at, static_cast<int32_t>(symbol));
  }

  int32_t called(const Token& function) {
    const size_t for_ = find_for();
    if (for_ != 0) return over_lists(function, for_);
    const SymbolList* list = token(1).is(")") ? list_named(token().text) : nullptr;
    if (function.is("len") && list && !list->item) {
      advance(), advance();
      return builder_->integer(function.at, static_cast<int64_t>(list->size));
    }
    return builder_->call(function.at, function.text, arguments());
  }

  const SymbolList* list_named(std::string_view name) const {
    const auto found = std::find_if(lists_.rbegin(), lists_.rend(),
                                    [&](const SymbolList& list) { return list.name == name; });
    return found == lists_.rend() ? nullptr : &*found;
  }

  // xs[i]: one of the items.
  int32_t item_of(size_t at, SymbolList list) {
    if (!accept("["))
      source_.error(at, "'" + list.name + "' is a list; take an item, " + list.name +
                            "[0], its length, len(" + list.name + "), or a value of all, max(x" +
                            ".numel() for x in " + list.name + ")");
    const size_t place = token().at;
    const bool negative = accept("-");
    const Token& index = token();
    if (index.kind != Token::Kind::Integer || !token(1).is("]"))
      source_.error(place, "an item of a list is given by a constant, as in " + list.name + "[0]");
    advance(), advance();
    const size_t i = negative ? list.size - index.integer : index.integer;
    if (i >= list.size)
      source_.error(place, list.name + " has " + std::to_string(list.size) + " item" +
                               (list.size == 1 ? "" : "s"));
    return argument(at, list.first + i);
  }

  // The position of the `for` that belongs to the parenthesis that was just opened; 0 if it has
  // none.
  size_t find_for() const {
    int depth = 0;
    for (size_t i = next_; i < tokens_.size(); ++i) {
      if (tokens_[i].is("(") || tokens_[i].is("[")) ++depth;
      if (tokens_[i].is(")") || tokens_[i].is("]")) {
        if (depth-- == 0) return 0;
      }
      if (depth == 0 && tokens_[i].is("for")) return i;
    }
    return 0;
  }

  // sum(e for x in xs) is xs[0]'s e + xs[1]'s e + ...; max, min, all and any likewise.
  int32_t over_lists(const Token& function, size_t for_) {
    constexpr std::string_view kFolds[] = {"sum", "min", "max", "all", "any"};
    if (std::ranges::find(kFolds, function.text) == std::end(kFolds))
      source_.error(function.at,
                    "'for' belongs in sum(...), min(...), max(...), all(...) or "
                    "any(...) here; found " +
                        std::string(function.text) + "(...)");
    const size_t body = next_;
    next_ = for_;
    const std::vector<SymbolList> over = for_clause();
    const size_t end = next_;
    if (token().is("if") || token().is("for"))
      source_.error(token().at,
                    "expected ')': an item cannot be left out by 'if', and there is one "
                    "'for'; nest sum(...) for several");
    const size_t count = over.front().size;
    std::vector<int32_t> values;
    builder_->set_over_lists(true);
    for (size_t i = 0; i < count; ++i) {
      for (const SymbolList& list : over) lists_.push_back({list.name, list.first + i, 1, true});
      next_ = body;
      values.push_back(expression());
      if (next_ != for_) unexpected("expected 'for'");
      lists_.resize(lists_.size() - over.size());
    }
    next_ = end;
    require(")", "after the list");
    const int32_t result = folded(function, values);
    builder_->set_over_lists(false);
    return result;
  }

  // A balanced tree, since there may be hundreds of values.
  int32_t folded(const Token& function, std::span<const int32_t> values) {
    if (values.empty()) {
      if (function.is("sum")) return builder_->integer(function.at, 0);
      if (function.is("all") || function.is("any"))
        return builder_->boolean(function.at, function.is("all"));
      source_.error(function.at, std::string(function.text) + " of no items");
    }
    if (values.size() == 1) return values[0];
    const int32_t left = folded(function, values.first(values.size() / 2)),
                  right = folded(function, values.subspan(values.size() / 2));
    if (function.is("sum")) return builder_->arithmetic(Operation::Add, function.at, left, right);
    if (function.is("all") || function.is("any"))
      return builder_->logical(function.is("all") ? Operation::And : Operation::Or, function.at,
                               left, right);
    return builder_->call(function.at, function.text, std::array{left, right});
  }

  // `for x in xs` or `for x, y in zip(xs, ys)`: the lists, each by the name of its item.
  std::vector<SymbolList> for_clause() {
    require("for", "");
    std::vector<std::string> names;
    do {
      if (token().kind != Token::Kind::Name || is_keyword(token().text))
        unexpected("expected a name for the item");
      names.emplace_back(advance().text);
    } while (accept(","));
    require("in", "after the item's name");
    const size_t at = token().at;
    const bool zip = token().is("zip") && token(1).is("(");
    if (zip) advance(), advance();
    std::vector<SymbolList> over;
    do {
      const SymbolList* list = list_named(token().text);
      if (!list || list->item) unexpected("expected a list of tensors or values");
      advance();
      over.push_back(*list);
    } while (zip && accept(","));
    if (zip) require(")", "after the lists");
    if (const std::string why = why_not_together(over, names.size()); !why.empty())
      source_.error(at, why);
    for (size_t i = 0; i < over.size(); ++i) over[i].name = names[i];
    return over;
  }

  int32_t dtype(const Token& written) {
    if (const auto dtype = dtype_from_name(written.text))
      return builder_->dtype(written.at, *dtype);
    std::vector<std::string> arguments, valid;
    for (const Symbol& symbol : *symbols_) arguments.push_back(symbol.name);
    for (const SymbolList& list : lists_) arguments.push_back(list.name);
    valid = arguments;
    for (int i = 0; i < kDTypeCount; ++i) valid.emplace_back(name(static_cast<DType>(i)));
    const std::span<const std::string> functions = function_names();
    const bool function = std::ranges::find(functions, written.text) != functions.end();
    std::string ending = function
                             ? "; it is a function: write " + std::string(written.text) + "(...)"
                             : did_you_mean(written.text, valid);
    if (ending.empty() && arguments.empty()) ending = "; there are no arguments here";
    if (ending.empty()) ending = "; expected an argument (" + join(arguments) + ") or a dtype";
    source_.error(written.at, "unknown name '" + std::string(written.text) + "'" + ending);
  }

  const Source& source_;
  std::shared_ptr<const std::vector<Symbol>> symbols_;
  std::vector<SymbolList> lists_;  // and, within `for`, its items
  std::vector<Token> tokens_;
  size_t next_ = 0, previous_end_ = 0;
  int depth_ = 0;
  Builder* builder_ = nullptr;  // of the item being parsed
};

std::string_view trim(std::string_view text) {
  constexpr std::string_view spaces = " \t\r\n";
  const size_t begin = text.find_first_not_of(spaces);
  return begin == std::string_view::npos
             ? std::string_view()
             : text.substr(begin, text.find_last_not_of(spaces) + 1 - begin);
}

}  // namespace
}  // namespace syntax

std::string why_not_together(std::span<const SymbolList> lists, size_t names) {
  if (lists.size() != names)
    return std::to_string(names) + " names for the items of " + std::to_string(lists.size()) +
           " lists";
  for (const SymbolList& list : lists) {
    if (list.size != lists[0].size)
      return lists[0].name + " and " + list.name + " have different lengths, " +
             std::to_string(lists[0].size) + " and " + std::to_string(list.size);
  }
  return "";
}

Expr parse(std::string_view text, std::span<const Symbol> symbols, std::string_view what,
           std::span<const SymbolList> lists) {
  const syntax::Source source{syntax::trim(text), what};
  return syntax::Parser(source,
                        std::make_shared<const std::vector<Symbol>>(symbols.begin(), symbols.end()),
                        lists)
      .item(false);
}

std::vector<Expr> parse_list(std::string_view text, std::span<const Symbol> symbols,
                             std::string_view what, std::span<const SymbolList> lists) {
  const syntax::Source source{syntax::trim(text), what};
  syntax::Parser parser(
      source, std::make_shared<const std::vector<Symbol>>(symbols.begin(), symbols.end()), lists);
  std::vector<Expr> items;
  while (!parser.at_end()) {  // a comma at the end is allowed, as in Python
    items.push_back(parser.item(true));
    parser.accept(",");
  }
  return items;
}

}  // namespace opaq
