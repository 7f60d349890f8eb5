// One pass over an output finds unwritten elements, copies, and fills again, in blocks that fit the
// processor's cache.
#include "stand_in.h"

#include <algorithm>
#include <cstring>

namespace opaq::contract {
namespace {

constexpr int64_t kGuard = 1024;  // bytes before and after
// up to this, a stand-in has the alignment of its output, so requirements give the same
constexpr uintptr_t kAlign = 256;
constexpr int64_t kBlock = 16384;

template <typename Word>
bool holds_word(const char* from, const char* to, Fill fill) {
  Word pattern;
  std::memset(&pattern, static_cast<int>(fill), sizeof pattern);
  Word hits = 0;  // without an early exit, so that compilers use vector instructions
  for (; from < to; from += sizeof(Word)) {
    Word word;
    std::memcpy(&word, from, sizeof word);
    hits |= word == pattern;
  }
  return hits != 0;
}

// Whether an element of `size` bytes may hold the pattern.
bool may_hold(const char* from, const char* to, int size, Fill fill) {
  switch (size) {
    case 1:
      return std::memchr(from, static_cast<int>(fill), static_cast<size_t>(to - from)) != nullptr;
    case 2:
      return holds_word<uint16_t>(from, to, fill);
    case 4:
      return holds_word<uint32_t>(from, to, fill);
    default:
      return holds_word<uint64_t>(from, to, fill);
  }
}

}  // namespace

size_t StandIn::bytes_for(const TensorView& output) {
  const Span own = extent(output);
  return static_cast<size_t>(2 * kGuard + (own.end - own.begin) + static_cast<int64_t>(kAlign));
}

StandIn::StandIn(const TensorView& output, const DeviceMemory& memory, char* host)
    : memory_(&memory),
      output_(output),
      view_(output),
      host_(host),
      device_(host),
      bytes_(static_cast<int64_t>(bytes_for(output))),
      spans_(element_spans(output)) {
  const Span own = contract::extent(output);
  extent_ = own.end - own.begin;
  if (!memory.on_host()) device_ = static_cast<char*>(memory.allocate(static_cast<size_t>(bytes_)));
  const uintptr_t first = reinterpret_cast<uintptr_t>(device_) + kGuard;
  start_ =
      kGuard + static_cast<int64_t>((reinterpret_cast<uintptr_t>(output.data) - first) % kAlign);
  if (output.data) view_.data = device_ + start_;
  if (!memory.on_host()) memory.write(device_, host_, static_cast<size_t>(bytes_));
}

void StandIn::release() noexcept {
  if (device_ != host_) memory_->release(device_);
}

void StandIn::fill(Fill fill) {
  std::memset(host_, static_cast<int>(fill), static_cast<size_t>(bytes_));
  if (device_ != host_) memory_->write(device_, host_, static_cast<size_t>(bytes_));
}

void StandIn::fetch() {
  if (device_ != host_) memory_->read(host_, device_, static_cast<size_t>(bytes_));
}

std::string StandIn::changed(int64_t from, int64_t to, Fill fill) const {
  const auto is_fill = [&](int64_t i) {
    return static_cast<unsigned char>(host_[i]) == static_cast<unsigned char>(fill);
  };
  if (from >= to || (is_fill(from) && std::memcmp(host_ + from, host_ + from + 1,
                                                  static_cast<size_t>(to - from - 1)) == 0))
    return "";
  while (is_fill(from)) ++from;
  const int64_t off = from - start_;
  if (off < 0) return std::to_string(-off) + " bytes before its first element";
  if (off >= extent_) return std::to_string(off - extent_) + " bytes past its last element";
  return std::to_string(off) + " bytes from its first element, between elements";
}

std::string StandIn::written_outside(Fill fill) const {
  int64_t at = 0;
  for (const Span& span : spans_) {
    const int64_t begin = start_ + (span.begin - static_cast<char*>(output_.data));
    if (std::string place = changed(at, begin, fill); !place.empty()) return place;
    at = begin + (span.end - span.begin);
  }
  return changed(at, bytes_, fill);
}

std::vector<int64_t> StandIn::hand_over(Fill fill) {
  std::vector<int64_t> found;
  const int size = itemsize(output_.dtype);
  char pattern[16];
  std::memset(pattern, static_cast<int>(fill), sizeof pattern);
  for (const Span& span : spans_) {
    char* const elements = host_ + start_ + (span.begin - static_cast<char*>(output_.data));
    char* const end = elements + (span.end - span.begin);
    if (device_ != host_) memory_->write(span.begin, elements, static_cast<size_t>(end - elements));
    for (char* block = elements; block < end; block += kBlock) {
      char* const block_end = std::min(block + kBlock, end);
      if (may_hold(block, block_end, size, fill)) {
        for (const char* at = block; at < block_end; at += size) {
          if (std::memcmp(at, pattern, static_cast<size_t>(size)) == 0)
            found.push_back(at - host_ - start_);
        }
      }
      if (device_ == host_)
        std::memcpy(span.begin + (block - elements), block, static_cast<size_t>(block_end - block));
      std::memset(block, static_cast<int>(Fill::First), static_cast<size_t>(block_end - block));
    }
  }
  if (fill != Fill::First)
    std::memset(host_, static_cast<int>(Fill::First), static_cast<size_t>(bytes_));
  return found;
}

}  // namespace opaq::contract
