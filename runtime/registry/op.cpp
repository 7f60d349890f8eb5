// One op and its implementations.
#include <algorithm>

#include "base/error.h"
#include "base/sha256.h"
#include "base/shared_state.h"
#include "differences.h"
#include "registry/registry.h"

namespace opaq {

Op::Op(OpSpec spec, const Op* form_of)
    : spec_(std::move(spec)), name_(spec_.schema.qualname()), declared_(form_of ? form_of : this) {
  lists_.push_back(std::make_unique<const Implementations>());
  current_.store(lists_.back().get(), std::memory_order_release);
}

void Op::add(Implementation implementation, bool replace) {
  auto added = std::make_shared<const Implementation>(std::move(implementation));
  const std::lock_guard lock(shared_state());
  Implementations& list = by_priority_;
  const auto same = std::find_if(list.begin(), list.end(),
                                 [&](const auto& other) { return other->name == added->name; });
  if (same == list.end()) {
    list.push_back(std::move(added));
  } else {
    // Declared again, perhaps with the same code in another folder: the list keeps the first.
    if ((*same)->hash == added->hash) return;
    if (!replace && !is_edited_file(**same, *added)) {
      fail(ErrorKind::Declaration,
           name_ + ": implementation '" + added->name +
               "' is already declared, and differs:" + differences(**same, *added) +
               "\nTo take the new one, declare the op anew with opaq.op(..., replace=True) and its "
               "implementations after it; to have both, give this "
               "one a name of its own, such as name='" +
               added->name + ":2'");
    }
    *same = std::move(added);  // keeps its place among implementations of equal priority
  }
  std::stable_sort(list.begin(), list.end(),
                   [](const auto& a, const auto& b) { return a->priority > b->priority; });
  publish();
}

void Op::publish() {
  Implementations list = by_priority_;
  const auto rank = [&](const auto& implementation) {
    const auto names = [&](const std::string& name) {
      return implementation->name == name || implementation->name.starts_with(name + ":");
    };
    return std::find_if(preferred_.begin(), preferred_.end(), names) - preferred_.begin();
  };
  std::stable_sort(list.begin(), list.end(),
                   [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  lists_.push_back(std::make_unique<const Implementations>(std::move(list)));
  current_.store(lists_.back().get(), std::memory_order_release);
}

void Op::prefer(std::vector<std::string> names) {
  const std::lock_guard lock(shared_state());
  if (names == preferred_) return;
  preferred_ = std::move(names);
  has_preference_.store(!preferred_.empty(), std::memory_order_release);
  publish();
}

void Op::renew(std::string_view implementation) {
  const std::lock_guard lock(shared_state());
  const auto same = std::find_if(by_priority_.begin(), by_priority_.end(),
                                 [&](const auto& other) { return other->name == implementation; });
  if (same == by_priority_.end()) return;
  *same = std::make_shared<const Implementation>(**same);
  publish();
}

std::string Op::hash() const {
  const std::lock_guard lock(shared_state());
  Sha256 hash;
  hash.field("opaq registered op 1")
      .field(spec_.hash)
      .field(std::to_string(implementations().size()));
  for (const auto& implementation : implementations()) hash.field(implementation->hash);
  for (const auto& [key, content] : extra_) hash.field(key).field(content);
  return hash.hex();
}

void Op::extend_hash(std::string_view key, std::string_view content) {
  const std::lock_guard lock(shared_state());
  // Sorted by key, so that the order of decorators in the user's module does not matter.
  auto it = std::lower_bound(extra_.begin(), extra_.end(), key,
                             [](const auto& entry, std::string_view k) { return entry.first < k; });
  if (it != extra_.end() && it->first == key) {
    it->second = content;
  } else {
    extra_.insert(it, {std::string(key), std::string(content)});
  }
}

}  // namespace opaq
