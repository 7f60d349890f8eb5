// Compares one launch with its op's declaration, by memory before and after it, byte by byte.
#include "check/check.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <iterator>
#include <utility>
#include <vector>

#include "base/error.h"
#include "device_memory.h"
#include "kinds/kind.h"
#include "spans.h"
#include "spec/outputs.h"
#include "stand_in.h"

namespace opaq {
namespace {

using contract::DeviceMemory;
using contract::Fill;
using contract::Span;
using contract::StandIn;

std::string tuple(const int64_t* values, size_t count) {
  std::string text = "(";
  for (size_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + (count == 1 ? ",)" : ")");
}

std::string hex(const char* bytes, int64_t count) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (int64_t i = 0; i < count; ++i) {
    const auto byte = static_cast<unsigned char>(bytes[i]);
    if (i) text += ' ';
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

// Host memory of one check. It is kept for the thread's next check, which saves an allocation by
// the system. A check inside a check (a reference that calls other ops) has memory of its own.
class Room {
 public:
  Room() { std::swap(bytes_, spare()); }
  ~Room() {
    if (!restored_) filled().clear();
    std::swap(bytes_, spare());
  }
  Room(const Room&) = delete;
  std::vector<char>& before() { return bytes_[0]; }
  std::vector<char>& after() { return bytes_[1]; }

  // For outputs: all bytes are Fill::First, and are so again at the end of a check that succeeds.
  char* outputs(size_t size) {
    if (filled().size() < size) filled().assign(size, static_cast<char>(Fill::First));
    restored_ = false;
    return filled().data();
  }
  void outputs_restored() { restored_ = true; }

 private:
  using Bytes = std::array<std::vector<char>, 3>;
  static Bytes& spare() {
    thread_local Bytes bytes;
    return bytes;
  }
  std::vector<char>& filled() { return bytes_[2]; }
  Bytes bytes_;
  bool restored_ = true;
};

char* sized(std::vector<char>& bytes, size_t size) {
  if (bytes.size() < size) bytes.resize(size);
  return bytes.data();
}

struct Region {  // memory of arguments, with its content before the launch
  Span span;
  size_t offset;  // in Room::before()
};

class Check {
 public:
  explicit Check(const CheckedCall& call)
      : call_(call),
        schema_(call.spec.schema),
        memory_(call.device, call.stream, schema_.qualname().c_str()),
        inputs_(schema_.args.size()),
        count_(inputs_ + schema_.returns.size()),
        args_(call.args, call.args + count_) {}
  Check(const Check&) = delete;
  ~Check() {
    for (StandIn& s : stand_ins_) s.release();
  }

  void run(const std::function<void(const Arg*)>& launch) {
    for (size_t i = inputs_; i < count_; ++i) promised(i);
    aliases();
    requirements(call_.args);
    written_spans();
    snapshot();
    if (in_place()) {
      launch(call_.args);
      unchanged();
      return;
    }
    make_stand_ins();
    launch(args_.data());
    unchanged();
    const Unwritten suspects = hand_over(Fill::First);
    if (std::any_of(suspects.begin(), suspects.end(),
                    [](const auto& found) { return !found.empty(); })) {
      restore(written_);
      restore(overwritten_);
      for (StandIn& s : stand_ins_) s.fill(Fill::Second);
      launch(args_.data());
      unchanged();
      wholly_written(suspects, hand_over(Fill::Second));
    }
    room_.outputs_restored();
    if (!overwritten_.empty()) launch_in_place(launch);
  }

 private:
  // Results that lie over arguments were made beside them so far, for the checks above.
  void launch_in_place(const std::function<void(const Arg*)>& launch) {
    restore(written_);
    restore(overwritten_);
    launch(call_.args);
    written_.insert(written_.end(), overwritten_.begin(), overwritten_.end());
    written_ = contract::merged(std::move(written_));
    unchanged();
  }

  bool is_tensor(size_t i) const { return call_.args[i].kind == Arg::Kind::Tensor; }
  bool may_write(size_t i) const { return i >= inputs_ || schema_.args[i].mutated; }
  std::string symbol(size_t i) const {
    return i < inputs_ ? "argument `" + schema_.args[i].name + "`"
                       : "result `" + schema_.returns[i - inputs_] + "`";
  }
  // What is called with tensors, and not with addresses, fills the results where they are.
  bool in_place() const { return !call_.implementation || !call_.implementation->kind->native; }
  std::string running() const {
    return call_.implementation ? "implementation `" + call_.implementation->name + "`"
                                : "the reference";
  }

  [[noreturn]] void violated(const std::string& what) const {
    fail(ErrorKind::Contract,
         schema_.qualname() + (call_.where ? call_.where() : "") + ": " + what);
  }

  // The argument that result i lies over, if its rule allows it.
  std::optional<size_t> over(size_t i) const {
    const int j = call_.spec.outputs[i - inputs_].over;
    if (j < 0) return std::nullopt;
    const TensorView &result = call_.args[i].tensor,
                     &argument = call_.args[static_cast<size_t>(j)].tensor;
    const bool same = result.data && result.data == argument.data && result.dim == argument.dim &&
                      std::equal(result.sizes, result.sizes + result.dim, argument.sizes);
    return same ? std::optional(static_cast<size_t>(j)) : std::nullopt;
  }

  void promised(size_t i) {
    OutputShape shape;
    infer_output(call_.spec, i - inputs_, call_.args, shape);
    const TensorView& t = call_.args[i].tensor;
    const std::vector<int64_t> sizes(t.sizes, t.sizes + t.dim);
    bool same = sizes == shape.sizes && t.dtype == shape.dtype && t.device == call_.device;
    for (int32_t d = 0; same && t.numel() != 0 && d < t.dim; ++d)
      same = t.sizes[d] == 1 || t.strides[d] == shape.strides[d];
    if (same) return;
    violated(symbol(i) + " is " + std::string(name(t.dtype)) + " " + tuple(t.sizes, sizes.size()) +
             " with strides " + tuple(t.strides, sizes.size()) + " on " + device_name(t.device) +
             "; its output rule says " + std::string(name(shape.dtype)) + " " +
             tuple(shape.sizes.data(), shape.sizes.size()) + " with strides " +
             tuple(shape.strides.data(), shape.strides.size()) + " on " +
             device_name(call_.device) +
             ": correct the rule, or report a bug of opaq where it is right");
  }

  void aliases() {
    for (size_t i = inputs_; i < count_; ++i) {
      const Span output = contract::extent(call_.args[i].tensor);
      for (size_t j = 0; j < i; ++j) {
        if (!is_tensor(j) || !output.overlaps(contract::extent(call_.args[j].tensor))) continue;
        if (over(i) == j) continue;
        violated(symbol(i) + " shares memory with " + symbol(j) +
                 "; a result must have memory of its own");
      }
    }
  }

  void requirements(const Arg* args) {
    if (!call_.implementation || !call_.requirements) return;
    for (const Expr& requirement : call_.implementation->requires_) {
      bool holds = false;
      std::string why;
      try {
        holds = requirement.eval_bool(args);
      } catch (const Error& error) {
        why = std::string(": ") + error.what();
      }
      if (!holds)
        violated("requirement `" + requirement.text() + "` of " + running() +
                 " does not hold at the launch" + why +
                 "; another implementation should have been chosen");
    }
  }

  // ---- memory of arguments ----------------------------------------------------------------------

  void written_spans() {
    for (size_t i = 0; i < count_; ++i) {
      if (!is_tensor(i) || !may_write(i) || (i >= inputs_ && !in_place())) continue;
      const std::vector<Span> spans = contract::element_spans(call_.args[i].tensor);
      written_.insert(written_.end(), spans.begin(), spans.end());
    }
    written_ = contract::merged(std::move(written_));
    for (size_t i = inputs_; i < count_; ++i) {
      if (over(i)) overwritten_.push_back(contract::extent(call_.args[i].tensor));
    }
  }

  void snapshot() {
    std::vector<Span> spans;
    for (size_t i = 0; i < inputs_; ++i) {
      if (!is_tensor(i)) continue;
      spans.push_back(contract::extent(call_.args[i].tensor));
      if (char* data = static_cast<char*>(call_.storages[i].data))
        spans.push_back({data, data + call_.storages[i].bytes});
    }
    size_t total = 0;
    for (const Span& span : contract::merged(std::move(spans))) {
      regions_.push_back({span, total});
      total += static_cast<size_t>(span.end - span.begin);
    }
    char* before = sized(room_.before(), total);
    for (const Region& r : regions_)
      memory_.read(before + r.offset, r.span.begin, static_cast<size_t>(r.span.end - r.span.begin));
  }

  void restore(const std::vector<Span>& spans) {
    for (const Span& w : spans) {
      for (const Region& r : regions_) {
        if (w.begin >= r.span.begin && w.end <= r.span.end)
          memory_.write(w.begin, room_.before().data() + r.offset + (w.begin - r.span.begin),
                        static_cast<size_t>(w.end - w.begin));
      }
    }
  }

  void unchanged() {
    for (const Region& r : regions_) {
      const char* before = room_.before().data() + r.offset;
      const char* after = r.span.begin;
      const auto size = static_cast<size_t>(r.span.end - r.span.begin);
      if (!memory_.on_host()) {
        char* copy = sized(room_.after(), size);
        memory_.read(copy, r.span.begin, size);
        after = copy;
      }
      const char* at = r.span.begin;
      const auto compare = [&](const char* end) {
        const int64_t offset = at - r.span.begin;
        if (end > at &&
            std::memcmp(before + offset, after + offset, static_cast<size_t>(end - at)) != 0)
          changed(r, before, after, offset, end - r.span.begin);
      };
      for (const Span& w : written_) {
        if (w.end <= at || w.begin >= r.span.end) continue;
        compare(std::max(static_cast<const char*>(w.begin), at));
        at = std::min(w.end, r.span.end);
      }
      compare(r.span.end);
    }
  }

  [[noreturn]] void changed(const Region& r, const char* before, const char* after, int64_t from,
                            int64_t to) {
    while (from < to && before[from] == after[from]) ++from;
    const char* byte = r.span.begin + from;
    for (size_t i = 0; i < inputs_; ++i) {
      if (!is_tensor(i) || may_write(i)) continue;
      const TensorView& t = call_.args[i].tensor;
      const int64_t element = contract::element_at(t, byte);
      if (element < 0) continue;
      int64_t number = 0;
      int64_t start = 0;
      contract::for_each_element(t, [&](char* at) {
        start = at - r.span.begin;
        return number++ < element;
      });
      const int64_t size = itemsize(t.dtype);
      violated(symbol(i) + " is not declared as written, but " + running() +
               " changed it: " + schema_.args[i].name + contract::index_text(t, element) +
               " had the bytes " + hex(before + start, size) + ", and has " +
               hex(after + start, size) + "; declare it `Tensor(a!) " + schema_.args[i].name +
               "` in the schema, or correct the kernel");
    }
    for (size_t i = 0; i < inputs_; ++i) {
      if (!is_tensor(i)) continue;
      const Span own = contract::extent(call_.args[i].tensor);
      const auto* data = static_cast<const char*>(call_.storages[i].data);
      const bool inside = data ? byte >= data && byte < data + call_.storages[i].bytes
                               : byte >= own.begin && byte < own.end;
      if (!inside) continue;
      violated(running() + " wrote beside " + symbol(i) +
               ", in the tensor that it is a view of: " + std::to_string(byte - own.begin) +
               " bytes from its first element was " + hex(before + from, 1) + ", and is " +
               hex(after + from, 1) + "; correct the kernel's indices, strides or sizes");
    }
    violated(running() + " changed memory of its arguments that it does not declare as written");
  }

  // ---- outputs ----------------------------------------------------------------------------------

  // for each output, elements as offsets in bytes
  using Unwritten = std::vector<std::vector<int64_t>>;

  void make_stand_ins() {
    size_t total = 0;
    for (size_t i = inputs_; i < count_; ++i) total += StandIn::bytes_for(call_.args[i].tensor);
    char* host = room_.outputs(total);
    stand_ins_.reserve(count_ - inputs_);
    for (size_t i = inputs_; i < count_; ++i) {
      const TensorView& output = call_.args[i].tensor;
      stand_ins_.emplace_back(output, memory_, host);
      host += StandIn::bytes_for(output);
      args_[i] = Arg(stand_ins_.back().view());
    }
  }

  // Copies what a launch wrote to the outputs. Returns the elements that still hold the pattern.
  Unwritten hand_over(Fill fill) {
    Unwritten found(stand_ins_.size());
    for (size_t k = 0; k < stand_ins_.size(); ++k) {
      StandIn& s = stand_ins_[k];
      s.fetch();
      if (const std::string place = s.written_outside(fill); !place.empty()) {
        violated(running() + " wrote outside " + symbol(inputs_ + k) + ", " + place +
                 "; correct the kernel's indices, strides or sizes");
      }
      found[k] = s.hand_over(fill);
      const OutputRule& rule = call_.spec.outputs[k];
      if (rule.partial || !rule.counted.empty()) found[k].clear();
    }
    return found;
  }

  // An element that still holds its pattern after both launches was not written.
  void wholly_written(const Unwritten& first, const Unwritten& second) {
    for (size_t k = 0; k < first.size(); ++k) {
      std::vector<int64_t> never;
      std::set_intersection(first[k].begin(), first[k].end(), second[k].begin(), second[k].end(),
                            std::back_inserter(never));
      if (never.empty()) continue;
      const TensorView& t = call_.args[inputs_ + k].tensor;
      int64_t number = 0;
      contract::for_each_element(t, [&](const char* at) {
        const bool found =
            std::binary_search(never.begin(), never.end(), at - static_cast<const char*>(t.data));
        number += !found;
        return !found;
      });
      violated(running() + " left " +
               (never.size() == 1 ? "an element" : std::to_string(never.size()) + " elements") +
               " of " + symbol(inputs_ + k) + " (" + std::to_string(t.numel()) +
               " elements) unwritten, the first at " + schema_.returns[k] +
               contract::index_text(t, number) +
               "; write them, or declare the output with partial=True");
    }
  }

  const CheckedCall& call_;
  Room room_;
  const Schema& schema_;
  DeviceMemory memory_;
  const size_t inputs_, count_;
  std::vector<Arg> args_;          // with stand-ins for the outputs
  std::vector<Span> written_;      // memory of written arguments
  std::vector<Span> overwritten_;  // memory of arguments that results lie in, as their rules allow
  std::vector<Region> regions_;
  std::vector<StandIn> stand_ins_;
};

std::atomic<std::string (*)()> find_call_site{nullptr};
std::atomic<int> scopes{0};
thread_local int scope = -1;  // 0 and 1: whether calls are checked; -1: as configured

}  // namespace

CheckingScope::CheckingScope(bool check) : before_(std::exchange(scope, check)) {
  scopes.fetch_add(1, std::memory_order_relaxed);
}
CheckingScope::~CheckingScope() {
  scope = before_;
  scopes.fetch_sub(1, std::memory_order_relaxed);
}
bool checking(bool configured) {
  return scopes.load(std::memory_order_relaxed) == 0 || scope < 0 ? configured : scope != 0;
}

void set_call_site(std::string (*find)()) { find_call_site.store(find); }

std::string call_site() {
  std::string (*const find)() = find_call_site.load();
  return find ? find() : "";
}

void checked_launch(const CheckedCall& call, const std::function<void(const Arg*)>& launch) {
  Check(call).run(launch);
}

}  // namespace opaq
