// All ops of the process by name.
#include <algorithm>

#include "differences.h"
#include "opaq/error.h"
#include "opaq/registry.h"
#include "opaq/shared_state.h"

namespace opaq {
namespace {

using Ops = std::vector<Op*>;  // by name

struct Registry {  // writers hold shared_state()
  std::vector<std::unique_ptr<const Ops>> lists;
  std::atomic<const Ops*> current{nullptr};
};

// Process-wide, since PyTorch's dispatcher is. Never destroyed: ops may be called while the process ends, after static destructors have
// begun.
Registry& registry() {
  static Registry& instance = *new Registry;
  return instance;
}

struct ByName {
  bool operator()(const Op* op, std::string_view name) const { return op->name() < name; }
};

const Ops& current_ops() {
  static const Ops& none = *new Ops;
  const Ops* ops = registry().current.load(std::memory_order_acquire);
  return ops ? *ops : none;
}

}  // namespace

Op& declare(OpSpec spec, bool replace) {
  Registry& r = registry();
  const std::lock_guard lock(shared_state());
  const std::string name = spec.schema.qualname();
  Ops ops = current_ops();
  const auto it = std::lower_bound(ops.begin(), ops.end(), std::string_view(name), ByName{});
  const bool known = it != ops.end() && (*it)->name() == name;
  if (known) {
    const OpSpec& before = (*it)->spec();
    if (before.schema.text != spec.schema.text && replace) {
      fail(ErrorKind::Declaration,
           name + " is already declared with another schema, which PyTorch keeps for the life of the process:" + differences(before, spec) +
               "\nreplace=True cannot change a schema; choose another name or start the process anew");
    }
    if (!replace) {
      if (before.hash == spec.hash) return **it;
      fail(ErrorKind::Declaration,
           name + " is already declared, and differs:" + differences(before, spec) +
               (before.schema.text == spec.schema.text
                    ? "\nPass replace=True to take the new one"
                    : "\nPyTorch keeps a schema for the life of the process, so that replace=True cannot change it; choose "
                      "another name or start the process anew"));
    }
  }
  Op* op = new Op(std::move(spec));  // never destroyed, and one that is replaced is not either: launches of it may be in flight
  if (known) {
    *it = op;
  } else {
    ops.insert(it, op);
  }
  r.lists.push_back(std::make_unique<const Ops>(std::move(ops)));
  r.current.store(r.lists.back().get(), std::memory_order_release);
  return *op;
}

Op* find_op(std::string_view qualname) {
  const Ops& ops = current_ops();
  const auto it = std::lower_bound(ops.begin(), ops.end(), qualname, ByName{});
  return it != ops.end() && (*it)->name() == qualname ? *it : nullptr;
}

Op& get_op(std::string_view qualname) {
  if (Op* op = find_op(qualname)) return *op;
  std::vector<std::string> names;
  for (const Op* op : current_ops()) names.push_back(op->name());
  const std::string hint = names.empty() ? "; no op is declared" : did_you_mean(qualname, names);
  fail(ErrorKind::Declaration,
       "no op is named '" + std::string(qualname) + "'" + hint +
           (names.empty() || !hint.empty() ? "" : "; declare it with opaq.op(\"" + std::string(qualname) + "(...) -> ...\")"));
}

std::vector<Op*> all_ops() { return current_ops(); }

}  // namespace opaq
