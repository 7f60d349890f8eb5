// Ops and their implementations by name. Thread-safe; readers of an op's implementations take no
// lock.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "spec/spec.h"

namespace opaq {

// In the order in which they are tried: by priority, then in order of declaration.
using Implementations = std::vector<std::shared_ptr<const Implementation>>;

class Op {
 public:
  explicit Op(OpSpec spec, const Op* form_of = nullptr);
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

  const OpSpec& spec() const { return spec_; }       // never changes for a given Op
  const std::string& name() const { return name_; }  // "mylib::rms_norm"

  // Adds an implementation. If there is one with the same name and hash, nothing happens. One with
  // the same name and another hash is replaced if `replace`, or if only the content of the file
  // that it comes from has changed; else it is an error (Declaration).
  void add(Implementation implementation, bool replace = false);

  // Has implementations of these names tried first, in this order; "cuda" also means those whose
  // names begin with "cuda:". None: the order is by priority alone.
  void prefer(std::vector<std::string> names);
  bool has_preference() const { return has_preference_.load(std::memory_order_acquire); }

  // For an implementation whose headers have changed: replaces it by a new object with the same
  // content, so that what was compiled for the old object is no longer used. Nothing happens if
  // there is none of this name.
  void renew(std::string_view implementation);

  // The current list. Valid until the process ends: old lists are kept, since launches may use
  // them.
  const Implementations& implementations() const {
    return *current_.load(std::memory_order_acquire);
  }

  // Of schema, output rules, all implementations in their order, and what `extend_hash` added (a
  // reference, say). Generated code refuses an op with another hash. Inductor's cache keys contain
  // it, beside what may change while the declaration stays the same: headers, Python functions
  // (lowering/cache_key.py).
  std::string hash() const;
  void extend_hash(std::string_view key, std::string_view content);

  // The op of which this is a form for lists of certain lengths (registry/lists.h); else this op.
  const Op& declared() const { return *declared_; }

  // The declaration that has replaced this one, with the same schema; nullptr if none has. Of a
  // form: of the declared op.
  const Op* successor() const { return declared_->successor_.load(std::memory_order_acquire); }

 private:
  const OpSpec spec_;
  const std::string name_;
  const Op* const declared_;
  void publish();  // makes the current list
  Implementations by_priority_;
  std::vector<std::string> preferred_;
  std::atomic<bool> has_preference_{false};
  std::vector<std::unique_ptr<const Implementations>> lists_;
  std::atomic<const Implementations*> current_;
  std::vector<std::pair<std::string, std::string>> extra_;
  std::atomic<const Op*> successor_{nullptr};
  friend Op& declare(OpSpec spec, bool replace);
};

// How a profile calls the launches of an op, "opaq::mylib::rms_norm"; the forms of an op are called
// as it is.
std::string event_name(std::string_view op);

// Declares an op. An identical declaration returns the same Op; a different one of the same name
// throws Declaration, with both and the advice `replace=True`. With `replace`, the name gets a new
// Op without implementations, even for an identical declaration; another schema is refused, since
// PyTorch's dispatcher keeps a schema until the process ends. Ops are never destroyed.
Op& declare(OpSpec spec, bool replace = false);
Op* find_op(std::string_view qualname);  // nullptr if there is none
Op& get_op(std::string_view qualname);   // throws Declaration, with the nearest name
void forget(Op& op);                     // the name, as if it had never been declared
std::vector<Op*> all_ops();              // in order of name

}  // namespace opaq
