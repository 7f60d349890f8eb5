// What differs between two declarations, for errors.
#include "differences.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kinds/kind.h"

namespace opaq {
namespace {

std::string texts(const std::vector<Expr>& items) {
  std::vector<std::string> out;
  for (const Expr& item : items) out.push_back(item.text());
  return join(out);
}

std::string texts(const std::vector<Argument>& items) {
  std::vector<std::string> out;
  for (const Argument& item : items) out.push_back(item.text);
  return join(out);
}

std::string text(const Expr& expr) { return expr ? expr.text() : ""; }

class Lines {
 public:
  void compare(const char* field, const std::string& before, const std::string& now) {
    if (before != now)
      lines_ += std::string("\n  ") + field + ": '" + before + "' before, '" + now + "' now";
  }
  std::string take() { return std::move(lines_); }

 private:
  std::string lines_;
};

std::string describe(const Schema& schema, const OutputRule& rule) {
  const std::string strides = rule.strides.empty() ? "contiguous" : texts(rule.strides);
  const bool known = rule.device_of >= 0 && rule.device_of < static_cast<int>(schema.args.size());
  const std::string device = known ? "of " + schema.args[static_cast<size_t>(rule.device_of)].name
                             : rule.device ? device_name(*rule.device)
                                           : "none";
  return "shape [" + texts(rule.shape) + "], dtype " + text(rule.dtype) + ", strides " + strides +
         ", device " + device;
}

}  // namespace

namespace {

std::string describe(const std::vector<ScratchRule>& scratch) {
  std::vector<std::string> out;
  for (const ScratchRule& rule : scratch) {
    const std::string content = rule.content == ScratchRule::Content::LeftAtZero ? ", zeros once"
                                : rule.content == ScratchRule::Content::Zeros    ? ", zeros"
                                : is_random(rule.content)
                                    ? ", " + std::string(random_name(rule.content))
                                    : "";
    out.push_back(rule.name + ": [" + texts(rule.shape) + "], " + text(rule.dtype) + content);
  }
  return join(out, "; ");
}

// Of the code and the launch rule. step: begins the names of fields, "step 2: ".
void compare_launches(Lines& lines, const Implementation& before, const Implementation& now,
                      const std::string& step) {
  const auto compare = [&](const char* field, const std::string& one, const std::string& other) {
    lines.compare((step + field).c_str(), one, other);
  };
  compare("kind", std::string(before.kind->name), std::string(now.kind->name));
  if (before.code != now.code)
    compare("code", before.kind->code_in_messages(before.code),
            now.kind->code_in_messages(now.code));
  compare("file", before.file, now.file);
  compare("options", join(before.options, " "), join(now.options, " "));
  compare("include_dirs", join(before.include_dirs), join(now.include_dirs));
  compare("compiler", before.compiler, now.compiler);
  compare("signature", before.signature, now.signature);
  const auto entry = [](const Implementation& one) {
    return one.steps.empty() ? one.launch.entry.text() : "";
  };
  compare("entry", entry(before), entry(now));
  compare("grid", texts(before.launch.grid), texts(now.launch.grid));
  compare("block", texts(before.launch.block), texts(now.launch.block));
  compare("cluster", texts(before.launch.cluster), texts(now.launch.cluster));
  compare("shared", text(before.launch.shared), text(now.launch.shared));
  compare("args", texts(before.launch.args), texts(now.launch.args));
  compare("cooperative", before.launch.cooperative ? "true" : "false",
          now.launch.cooperative ? "true" : "false");
  compare("programmatic", before.launch.programmatic ? "true" : "false",
          now.launch.programmatic ? "true" : "false");
}

// `now`, with the code of `before` where both have it from the same file.
Implementation with_files_of(const Implementation& before, Implementation now) {
  if (!now.file.empty() && now.file == before.file) now.code = before.code;
  for (size_t i = 0; i < std::min(before.steps.size(), now.steps.size()); ++i)
    now.steps[i] = std::make_shared<const Implementation>(
        with_files_of(*before.steps[i], Implementation(*now.steps[i])));
  return now;
}

}  // namespace

bool is_edited_file(const Implementation& before, const Implementation& now) {
  return !differences(before, now).empty() &&
         differences(before, with_files_of(before, now)).empty();
}

std::string differences(const Implementation& before, const Implementation& now) {
  Lines lines;
  lines.compare("device", std::string(device_type_name(before.target)),
                std::string(device_type_name(now.target)));
  compare_launches(lines, before, now, "");
  lines.compare("scratch", describe(before.scratch), describe(now.scratch));
  lines.compare("steps", std::to_string(before.steps.size()), std::to_string(now.steps.size()));
  for (size_t i = 0; i < std::min(before.steps.size(), now.steps.size()); ++i)
    compare_launches(lines, *before.steps[i], *now.steps[i],
                     "step " + std::to_string(i + 1) + ": ");
  lines.compare("requires", texts(before.requires_), texts(now.requires_));
  lines.compare("priority", std::to_string(before.priority), std::to_string(now.priority));
  return lines.take();
}

std::string differences(const OpSpec& before, const OpSpec& now) {
  if (before.schema.text != now.schema.text)
    return "\n  before: " + before.schema.text + "\n  now:    " + now.schema.text;
  Lines lines;
  for (size_t i = 0; i < before.returned && i < now.returned && i < now.outputs.size(); ++i) {
    lines.compare(("output '" + before.schema.returns[i] + "'").c_str(),
                  describe(before.schema, before.outputs[i]), describe(now.schema, now.outputs[i]));
  }
  const auto bounds = [](const OpSpec& spec) {
    std::vector<std::string> out;
    for (const CountRule& count : spec.counts) out.push_back(count.name + ": " + text(count.bound));
    return join(out);
  };
  lines.compare("counts", bounds(before), bounds(now));
  return "\n  schema: " + now.schema.text + lines.take();
}

}  // namespace opaq
