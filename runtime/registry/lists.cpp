// Ops with lists of tensors, and their forms for lists of known lengths.
#include "registry/lists.h"

#include <charconv>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/sha256.h"
#include "base/shared_state.h"
#include "kinds/kind.h"

namespace opaq {
namespace {

using Lengths = std::vector<int64_t>;

// What was declared for one op.
struct Declared {
  std::string schema;
  std::vector<OutputText> outputs;
  std::vector<ImplementationText> implementations;         // in order of declaration
  std::vector<std::pair<std::string, std::string>> extra;  // of the hash
  std::vector<std::string> preferred;
  int64_t version = 0;  // counts changes of these two
  std::map<Lengths, Op*> forms;
  Lengths typical;
};

// Guarded by shared_state(); never destroyed, as ops are not.
std::map<const Op*, Declared>& declared() {
  static auto& all = *new std::map<const Op*, Declared>;
  return all;
}

Declared copy_of(const Op& op) {
  const std::lock_guard lock(shared_state());
  return declared().at(&op);
}

size_t list_count(const Schema& schema) {
  size_t count = 0;
  for (const ArgSpec& arg : schema.args) count += arg.type == Type::List;
  return count;
}

std::string digest(const ImplementationText& text) {
  Sha256 hash;
  for (const std::string* field :
       {&text.entry, &text.grid, &text.block, &text.cluster, &text.shared, &text.args})
    hash.field(*field);
  for (const std::string& requirement : text.requires_) hash.field(requirement);
  for (const ScratchText& scratch : text.scratch)
    hash.field(scratch.name).field(scratch.like).field(scratch.shape).field(scratch.dtype);
  for (const ImplementationText& step : text.steps) hash.field(digest(step));
  return hash.hex();
}

// The implementation for a form. Its hash holds the texts as declared: `*xs` and `xs[0], xs[1]` are
// the same for two tensors only.
Implementation make_for(const Op& form, const ImplementationText& text) {
  Implementation made = make_implementation(form.spec(), text);
  made.hash = Sha256().field(made.hash).field(digest(text)).hex();
  return made;
}

// Gives a form what was declared after its first `implementations` and `extra`.
void bring_up_to(Op& form, const Declared& all, size_t implementations, size_t extra) {
  for (size_t i = implementations; i < all.implementations.size(); ++i)
    form.add(make_for(form, all.implementations[i]), true);
  for (size_t i = extra; i < all.extra.size(); ++i)
    form.extend_hash(all.extra[i].first, all.extra[i].second);
  form.prefer(all.preferred);
}

std::unique_ptr<Op> make_form(const Op* op, const Declared& all, const Lengths& lengths) {
  auto made = std::make_unique<Op>(make_op(all.schema, all.outputs, lengths), op);
  bring_up_to(*made, all, 0, 0);
  return made;
}

// A declaration may read `xs[2]`, and need three tensors. The first lengths that fit it are typical
// of its calls.
Lengths typical_lengths(const Declared& all, size_t lists) {
  std::exception_ptr first;
  for (const int64_t length : {2, 8, 64}) {
    Lengths lengths(lists, length);
    try {
      make_form(nullptr, all, lengths);
      return lengths;
    } catch (const Error&) {
      if (!first) first = std::current_exception();
    }
  }
  std::rethrow_exception(first);
}

}  // namespace

Op& declare(std::string_view schema, const std::vector<OutputText>& outputs, bool replace) {
  OpSpec spec = make_op(schema, outputs);
  const size_t lists = list_count(spec.schema);
  if (lists == 0) return declare(std::move(spec), replace);
  Declared made;
  made.schema = schema;
  made.outputs = outputs;
  made.typical = typical_lengths(made, lists);
  Op& op = declare(std::move(spec), replace);
  const std::lock_guard lock(shared_state());
  declared().try_emplace(&op, std::move(made));
  return op;
}

std::string implement(Op& op, const ImplementationText& text, bool replace) {
  if (!op.spec().schema.has_lists()) {
    Implementation made = make_implementation(op.spec(), text);
    std::string hash = made.hash;
    op.add(std::move(made), replace);
    return hash;
  }
  Declared all = copy_of(op);
  all.implementations.push_back(text);
  all.typical = typical_lengths(all, list_count(op.spec().schema));
  Op& typical = form(op, all.typical);
  for (Op* each : forms(op)) make_for(*each, text);  // each has to fit, before any gets it
  Implementation made = make_for(typical, text);
  const std::string hash = made.hash, name = made.name;
  typical.add(std::move(made), replace);  // refuses another one of the same name
  {
    const std::lock_guard lock(shared_state());
    Declared& kept = declared().at(&op);
    kept.implementations = std::move(all.implementations);
    kept.typical = all.typical;
    ++kept.version;
  }
  for (Op* each : forms(op)) each->add(make_for(*each, text), true);
  extend_hash(op, "implementation " + name, hash);
  return hash;
}

struct DeclarationCheck::State {
  Op op;         // for an op without lists
  Declared all;  // for an op with lists
};

DeclarationCheck::DeclarationCheck(std::string_view schema, const std::vector<OutputText>& outputs)
    : state_(new State{Op(make_op(schema, outputs)), {}}) {
  const OpSpec& spec = state_->op.spec();
  if (const Op* known = find_op(spec.schema.qualname())) {
    if (known->spec().hash != spec.hash) declare(OpSpec(spec), false);  // says how they differ
    for (const auto& implementation : known->implementations()) state_->op.add(*implementation);
  }
  state_->all.schema = schema;
  state_->all.outputs = outputs;
  if (spec.schema.has_lists()) typical_lengths(state_->all, list_count(spec.schema));
}

DeclarationCheck::~DeclarationCheck() = default;

void DeclarationCheck::add(const ImplementationText& text) {
  const Schema& schema = state_->op.spec().schema;
  if (!schema.has_lists()) return state_->op.add(make_implementation(state_->op.spec(), text));
  state_->all.implementations.push_back(text);
  typical_lengths(state_->all, list_count(schema));
}

void prefer(Op& op, const std::vector<std::string>& names) {
  op.prefer(names);
  if (!op.spec().schema.has_lists()) return;
  {
    const std::lock_guard lock(shared_state());
    Declared& kept = declared().at(&op);
    kept.preferred = names;
    ++kept.version;
  }
  for (Op* each : forms(op)) each->prefer(names);
}

void extend_hash(Op& op, std::string_view key, std::string_view content) {
  op.extend_hash(key, content);
  if (!op.spec().schema.has_lists()) return;
  {
    const std::lock_guard lock(shared_state());
    Declared& kept = declared().at(&op);
    kept.extra.emplace_back(key, content);
    ++kept.version;
  }
  for (Op* each : forms(op)) each->extend_hash(key, content);
}

Op& form(const Op& op, std::span<const int64_t> lengths) {
  const Lengths key(lengths.begin(), lengths.end());
  {
    const std::lock_guard lock(shared_state());
    const Declared& all = declared().at(&op);
    if (const auto found = all.forms.find(key); found != all.forms.end()) return *found->second;
  }
  Declared all = copy_of(op);
  try {
    std::unique_ptr<Op> made = make_form(&op, all, key);
    for (;;) {
      {
        const std::lock_guard lock(shared_state());
        Declared& kept = declared().at(&op);
        if (kept.version == all.version) {
          const auto [place, is_new] = kept.forms.try_emplace(key, made.get());
          if (is_new) made.release();  // else another thread was faster
          return *place->second;
        }
      }
      // Something was declared meanwhile. To make the form anew might never end, since a thread
      // that goes on declaring can be faster.
      const size_t implementations = all.implementations.size(), extra = all.extra.size();
      all = copy_of(op);
      bring_up_to(*made, all, implementations, extra);
    }
  } catch (const Error& error) {
    if (error.kind != ErrorKind::Declaration) throw;
    std::vector<std::string> texts;
    for (const int64_t length : key) texts.push_back(std::to_string(length));
    fail(ErrorKind::Launch, op.name() + ": a call with lists of " + join(texts, " and ") +
                                " items does not fit the declaration: " + error.what());
  }
}

const Op& typical_form(const Op& op) {
  if (!op.spec().schema.has_lists()) return op;
  Lengths typical;
  {
    const std::lock_guard lock(shared_state());
    typical = declared().at(&op).typical;
  }
  return form(op, typical);
}

std::vector<Op*> forms(const Op& op) {
  if (!op.spec().schema.has_lists()) return {const_cast<Op*>(&op)};
  const std::lock_guard lock(shared_state());
  std::vector<Op*> all;
  for (const auto& [lengths, each] : declared().at(&op).forms) all.push_back(each);
  return all;
}

std::vector<Op*> all_forms() {
  std::vector<Op*> all;
  for (Op* op : all_ops()) {
    const std::vector<Op*> of_op = forms(*op);
    all.insert(all.end(), of_op.begin(), of_op.end());
  }
  return all;
}

Op& op_named(std::string_view qualname) {
  const size_t open = qualname.find('[');
  if (open == std::string_view::npos || !qualname.ends_with(']')) return get_op(qualname);
  Op& op = get_op(qualname.substr(0, open));
  Lengths lengths;
  const char *at = qualname.data() + open + 1, *end = qualname.data() + qualname.size() - 1;
  while (at < end) {
    int64_t length = -1;
    const auto [next, error] = std::from_chars(at, end, length);
    if (error != std::errc() || length < 0) break;
    lengths.push_back(length);
    at = next;
    while (at < end && (*at == ',' || *at == ' ')) ++at;
  }
  if (at != end || lengths.size() != list_count(op.spec().schema)) return get_op(qualname);
  return form(op, lengths);
}

}  // namespace opaq
