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

using Implementations =
    std::vector<std::shared_ptr<const Implementation>>;  // best first: by priority, then in order
                                                         // of declaration

class Op {
 public:
  explicit Op(OpSpec spec);
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

  const OpSpec& spec() const { return spec_; }       // never changes for a given Op
  const std::string& name() const { return name_; }  // "mylib::rms_norm"

  // Same name and hash: nothing happens. Same name, another hash: Declaration error, unless
  // `replace`.
  void add(Implementation implementation, bool replace = false);

  // The same implementation as a new object, so that nothing that was made of the old one serves
  // further calls: its headers have changed. Nothing happens when there is none of this name.
  void renew(std::string_view implementation);

  // The current list; valid for the process's life (old lists are kept: a launch may be in flight).
  const Implementations& implementations() const {
    return *current_.load(std::memory_order_acquire);
  }

  // Of schema, output rules, every implementation, and what `extend_hash` added (reference).
  // Generated code is held to it. Inductor's cache keys hold it, and what may change under one
  // declaration: headers, Python functions (lowering/cache_key.py).
  std::string hash() const;
  void extend_hash(std::string_view key, std::string_view content);

  // The declaration that took this one's place (`replace`), with the same schema; nullptr while
  // this one is current.
  const Op* successor() const { return successor_.load(std::memory_order_acquire); }

 private:
  const OpSpec spec_;
  const std::string name_;
  std::vector<std::unique_ptr<const Implementations>> lists_;
  std::atomic<const Implementations*> current_;
  std::vector<std::pair<std::string, std::string>> extra_;
  std::atomic<const Op*> successor_{nullptr};
  friend Op& declare(OpSpec spec, bool replace);
};

// Identical declaration: the same Op. A different one of the same name: Declaration error that
// shows both and says `replace=True`. With `replace`, the name gets a new, empty Op if the schema
// is the same, even for an identical declaration; another schema is refused, since PyTorch's
// dispatcher keeps a schema for the process's life. Ops are never destroyed.
Op& declare(OpSpec spec, bool replace = false);
Op* find_op(std::string_view qualname);  // nullptr when there is none
Op& get_op(std::string_view qualname);   // Declaration error with the nearest name
std::vector<Op*> all_ops();              // in order of name

}  // namespace opaq
