// Reads the lines of ptxas -v, as NVRTC 12.1 to 13.2 writes them:
//
//   ptxas info    : 0 bytes gmem
//   ptxas info    : Compiling entry function '_Z1kPf' for 'sm_90a'
//   ptxas info    : Function properties for _Z1kPf
//   ptxas         .     96 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
//   ptxas info    : Used 32 registers, used 1 barriers, 96 bytes cumulative stack size,
//                   1200 bytes smem                              (on the same line)
//   ptxas info    : Compile time = 17.081 ms
//
// Functions that a kernel calls and that are not inlined follow it, only with their properties.
#include "ptxas.h"

#include <algorithm>
#include <charconv>
#include <optional>

namespace opaq {
namespace {

constexpr std::string_view kInfo = "ptxas info    : ";
constexpr std::string_view kMore = "ptxas         . ";  // four spaces where nvcc runs ptxas

// The number before `unit`: 96 in "..., 96 bytes stack frame" for " bytes stack frame".
std::optional<int64_t> number_before(std::string_view line, std::string_view what) {
  const size_t end = line.find(what);
  if (end == std::string_view::npos) return std::nullopt;
  const size_t begin = line.find_last_not_of("0123456789", end - 1) +
                       1;  // a line begins with a word, and so does this part of it
  int64_t value = 0;
  const auto [stop, problem] = std::from_chars(line.data() + begin, line.data() + end, value);
  return problem == std::errc{} && stop == line.data() + end ? std::optional(value) : std::nullopt;
}

class Reader {
 public:
  // Whether the line is there because of -v.
  bool take(std::string_view line) {
    if (line.starts_with(kMore) || line.starts_with("    ")) return properties(line);
    if (!line.starts_with(kInfo)) return false;
    const std::string_view text = line.substr(kInfo.size());
    if (text.starts_with("Compiling entry function '")) return begin(text);
    if (text.starts_with("Used ")) return used(line);
    return text.starts_with("Function properties for ") || text.starts_with("Compile time = ") ||
           number_before(line, " bytes gmem") ||
           text.starts_with("Overriding maximum register limit ");
  }

  void end() {
    if (!symbol_.empty() && has_properties_ && has_used_) kernels[symbol_] = kernel_;
    symbol_.clear();
    kernel_ = {};
    has_properties_ = has_used_ = false;
  }

  std::map<std::string, Resources> kernels;

 private:
  bool begin(std::string_view text) {
    end();
    const size_t open = text.find('\''), close = text.find('\'', open + 1);
    symbol_ = text.substr(open + 1, close - open - 1);
    return true;
  }

  bool properties(std::string_view line) {
    const auto stack = number_before(line, " bytes stack frame"),
               stores = number_before(line, " bytes spill stores"),
               loads = number_before(line, " bytes spill loads");
    if (!stack || !stores || !loads) return false;
    kernel_.stack = std::max(kernel_.stack.value_or(0), *stack);
    kernel_.spill_stores = kernel_.spill_stores.value_or(0) + *stores;
    kernel_.spill_loads = kernel_.spill_loads.value_or(0) + *loads;
    return has_properties_ = true;
  }

  bool used(std::string_view line) {
    const auto registers = number_before(line, " registers");
    if (!registers) return false;
    kernel_.registers = *registers;
    kernel_.shared = number_before(line, " bytes smem").value_or(0);
    kernel_.stack = std::max(kernel_.stack.value_or(0),
                             number_before(line, " bytes cumulative stack size").value_or(0));
    return has_used_ = true;
  }

  std::string symbol_;
  Resources kernel_;
  bool has_properties_ = false, has_used_ = false;
};

}  // namespace

PtxasReport read_ptxas(std::string_view log) {
  Reader reader;
  std::string rest;
  for (size_t at = 0; at < log.size();) {
    const size_t end = std::min(log.find('\n', at), log.size());
    const std::string_view line = log.substr(at, end - at);
    at = end + 1;
    if (!reader.take(line)) rest.append(line).append("\n");
  }
  reader.end();
  while (rest.ends_with('\n')) rest.pop_back();
  return {std::move(reader.kernels), std::move(rest)};
}

}  // namespace opaq
