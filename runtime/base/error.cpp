// Suggestions and lists for error messages.
#include "base/error.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace opaq {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// Edit distance with adjacent transpositions (optimal string alignment), ignoring case.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), previous(b.size() + 1), row(b.size() + 1);
  std::iota(previous.begin(), previous.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = lower(a[i - 1]) == lower(b[j - 1]);
      row[j] = std::min({previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (same ? 0 : 1)});
      if (i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) &&
          lower(a[i - 2]) == lower(b[j - 1])) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before.swap(previous);
    previous.swap(row);
  }
  return previous[b.size()];
}

}  // namespace

std::string nearest(std::string_view given, std::span<const std::string> valid) {
  // A third of the letters may differ, but not all of them: a suggestion that has nothing in common
  // with what was written would mislead.
  constexpr size_t kLongest = 256;  // longer than any name; limits the quadratic cost
  if (given.empty() || given.size() > kLongest) return "";
  std::string best;
  size_t best_distance = SIZE_MAX;
  for (const std::string& candidate : valid) {
    if (candidate.empty() || candidate.size() > kLongest) continue;
    const size_t longer = std::max(given.size(), candidate.size());
    const size_t allowed = std::max<size_t>(1, (longer + 1) / 3);
    size_t d = distance(given, candidate);
    // "sizes" and "weight_scale" written for "size" and "weight": one begins with the other.
    const size_t shorter = std::min(given.size(), candidate.size());
    const bool prefix =
        shorter >= 3 && given.substr(0, shorter) == std::string_view(candidate).substr(0, shorter);
    if (d > allowed && !prefix) continue;
    if (d >= longer) continue;
    if (d < best_distance) {
      best_distance = d;
      best = candidate;
    }
  }
  return best;
}

std::string did_you_mean(std::string_view given, std::span<const std::string> valid) {
  const std::string name = nearest(given, valid);
  return name.empty() ? "" : "; did you mean '" + name + "'?";
}

std::string join(std::span<const std::string> items, std::string_view separator) {
  std::string out;
  for (const std::string& item : items) {
    if (&item != items.data()) out += separator;
    out += item;
  }
  return out;
}

}  // namespace opaq
