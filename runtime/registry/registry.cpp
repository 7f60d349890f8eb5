// All ops of the process by name.
#include "registry/registry.h"

#include <map>
#include <mutex>

#include "base/error.h"
#include "base/shared_state.h"
#include "differences.h"

namespace opaq {
namespace {

using Ops = std::map<std::string, Op*, std::less<>>;

// Ops whose names were declared again. They are kept, since launches of them may be in flight; this
// makes them known to leak checkers.
std::vector<Op*>& replaced() {
  static auto& instance = *new std::vector<Op*>;
  return instance;
}

// Guarded by shared_state(). Process-wide, since PyTorch's dispatcher is. Never destroyed: ops may
// be called while the process ends, after static destructors have begun.
Ops& ops() {
  static Ops& instance = *new Ops;
  return instance;
}

}  // namespace

std::string event_name(std::string_view op) {
  return "opaq::" + std::string(op.substr(0, op.find('[')));
}

Op& declare(OpSpec spec, bool replace) {
  const std::lock_guard lock(shared_state());
  const std::string name = spec.schema.qualname();
  const auto known = ops().find(name);
  if (known != ops().end()) {
    const OpSpec& before = known->second->spec();
    if (before.schema.text != spec.schema.text && replace) {
      fail(ErrorKind::Declaration, name +
                                       " is already declared with another schema, which PyTorch "
                                       "keeps for the life of the process:" +
                                       differences(before, spec) +
                                       "\nreplace=True cannot change a schema; choose another name "
                                       "or start the process anew");
    }
    if (!replace) {
      if (before.hash == spec.hash) return *known->second;
      fail(ErrorKind::Declaration,
           name + " is already declared, and differs:" + differences(before, spec) +
               (before.schema.text == spec.schema.text
                    ? "\nPass replace=True to take the new one"
                    : "\nPyTorch keeps a schema for the life of the process, so that replace=True "
                      "cannot change it; choose "
                      "another name or start the process anew"));
    }
  }
  Op* op = new Op(std::move(spec));  // never destroyed
  if (known != ops().end()) {
    known->second->successor_.store(op, std::memory_order_release);
    replaced().push_back(known->second);
  }
  ops()[name] = op;
  return *op;
}

Op* find_op(std::string_view qualname) {
  const std::lock_guard lock(shared_state());
  const auto found = ops().find(qualname);
  return found == ops().end() ? nullptr : found->second;
}

Op& get_op(std::string_view qualname) {
  if (Op* op = find_op(qualname)) return *op;
  std::vector<std::string> names;
  for (const Op* op : all_ops()) names.push_back(op->name());
  const std::string hint = names.empty() ? "; no op is declared" : did_you_mean(qualname, names);
  fail(ErrorKind::Declaration,
       "no op is named '" + std::string(qualname) + "'" + hint +
           (names.empty() || !hint.empty()
                ? ""
                : "; declare it with opaq.op(\"" + std::string(qualname) + "(...) -> ...\")"));
}

void forget(Op& op) {
  const std::lock_guard lock(shared_state());
  if (ops().erase(op.name()) != 0) replaced().push_back(&op);
}

std::vector<Op*> all_ops() {
  const std::lock_guard lock(shared_state());
  std::vector<Op*> all;
  for (const auto& [name, op] : ops()) all.push_back(op);
  return all;
}

}  // namespace opaq
