// Reads compiler options as NVRTC, g++ and clang++ spell them.
#include "options.h"

#include <initializer_list>
#include <optional>
#include <string_view>

namespace opaq {
namespace {

// The value of "-Ix", "-I=x", "-I x"; `glued` when the value may follow without a separator.
std::optional<std::string> value_of(std::span<const std::string> options, size_t& i,
                                    std::string_view flag, bool glued) {
  const std::string& option = options[i];
  if (!option.starts_with(flag)) return std::nullopt;
  std::string_view rest = std::string_view(option).substr(flag.size());
  if (rest.empty()) return i + 1 < options.size() ? std::optional(options[++i]) : std::nullopt;
  if (rest.front() == '=') return std::string(rest.substr(1));
  if (!glued) return std::nullopt;
  while (!rest.empty() && rest.front() == ' ')
    rest.remove_prefix(1);  // "-I dir" given as one string
  return std::string(rest);
}

}  // namespace

OptionFacts read_options(std::span<const std::string> options) {
  struct Flag {
    std::string_view text;
    bool glued;
  };
  OptionFacts facts;
  std::vector<std::string> ptxas;
  for (size_t i = 0; i < options.size(); ++i) {
    bool taken = false;
    const auto collect = [&](std::initializer_list<Flag> flags, std::vector<std::string>& into) {
      for (const Flag& flag : flags) {
        if (taken) return;
        if (auto value = value_of(options, i, flag.text, flag.glued)) {
          into.push_back(std::move(*value));
          taken = true;
        }
      }
    };
    collect({{"--include-path", false},
             {"-isystem", true},
             {"-iquote", true},
             {"-idirafter", true},
             {"-I", true}},
            facts.dirs);
    collect({{"--pre-include", false}, {"-include", false}, {"-imacros", false}}, facts.forced);
    collect({{"--ptxas-options", false}, {"-Xptxas", false}}, ptxas);
    if (taken) continue;
    const std::string& option = options[i];
    for (std::string_view flag : {"--std", "-std"}) {
      if (auto value = value_of(options, i, flag, false)) {
        facts.standard = *value;
        break;
      }
    }
    facts.embeds_paths |=
        option == "-G" || option == "--device-debug" || option.starts_with("-g") ||
        option.find("lineinfo") != std::string::npos || option == "--generate-line-info";
    facts.native |= option.find("native") != std::string::npos;
    if (option.starts_with('@') || option.starts_with("-specs") ||
        option.starts_with("--options-file"))
      facts.opaque = option;
  }
  for (const std::string& value : ptxas)
    facts.ptxas_verbose |= value == "-v" || value == "--verbose";
  return facts;
}

std::vector<std::string> for_debug_information(std::vector<std::string> options) {
  std::erase_if(options, [](const std::string& option) {
    return option == "-G" || option == "--device-debug" || option == "--generate-line-info" ||
           option.find("lineinfo") != std::string::npos;
  });
  options.emplace_back("-G");
  return options;
}

}  // namespace opaq
