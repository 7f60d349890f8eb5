// Prints JSON: what the manifest of a package says of one function.
#include <algorithm>

#include "base/error.h"
#include "compiled.h"
#include "kinds/kind.h"

namespace opaq {
namespace {

class JsonObject {
 public:
  JsonObject& raw(const std::string& key, const std::string& json) {
    fields_.push_back(string_literal(key) + ": " + json);
    return *this;
  }
  JsonObject& set(const std::string& key, const std::string& value) {
    return raw(key, string_literal(value));
  }
  JsonObject& set(const std::string& key, bool value) { return raw(key, value ? "true" : "false"); }
  JsonObject& set(const std::string& key, int64_t value) { return raw(key, std::to_string(value)); }
  JsonObject& set(const std::string& key, const std::vector<std::string>& values) {
    std::vector<std::string> items;
    for (const std::string& value : values) items.push_back(string_literal(value));
    return raw(key, list(items));
  }
  std::string text() const { return "{" + join(fields_) + "}"; }

  static std::string list(const std::vector<std::string>& items) { return "[" + join(items) + "]"; }

 private:
  std::vector<std::string> fields_;
};

std::vector<std::string> texts(const std::vector<CppText>& items) {
  std::vector<std::string> texts;
  for (const CppText& item : items) texts.push_back(item.text);
  return texts;
}

std::string rule(const CppLaunch& rule, const LaunchRule& launch, bool on_cuda) {
  JsonObject json;
  json.set("args", texts({rule.args.begin(), rule.args.end()}));
  if (on_cuda) {
    json.set("grid", texts(rule.grid))
        .set("block", texts(rule.block))
        .set("cluster", texts(rule.cluster))
        .set("shared", rule.shared.text)
        .set("cooperative", launch.cooperative)
        .set("programmatic", launch.programmatic);
  }
  return json.text();
}

std::string scratch(const CppScratch& tensor) {
  return JsonObject()
      .set("name", tensor.name)
      .set("shape", texts(tensor.shape))
      .set("dtype", std::string(name(tensor.dtype)))
      .set("zeros", holds_zeros(tensor.content))
      .set("random", std::string(random_name(tensor.content)))
      .text();
}

std::string image(const CodeFile& file, const AttachedFile& attached) {
  JsonObject json;
  json.set("arch", file.arch)
      .set("file", attached.name.substr(attached.name.rfind('/') + 1))
      .set("sha256", attached.sha256)
      .raw("bytes", file.bytes ? std::to_string(file.bytes->size()) : "null");
  if (const std::optional<Resources>& resources = file.resources) {
    const auto set = [&](const char* name, const std::optional<int64_t>& value) {
      json.raw(name, value ? std::to_string(*value) : "null");
    };
    set("registers", resources->registers);
    set("shared", resources->shared);
    set("stack", resources->stack);
    set("spill_stores", resources->spill_stores);
    set("spill_loads", resources->spill_loads);
  }
  return json.text();
}

}  // namespace

std::string print_manifest_entry(const CppNode::Compiled& node, const AttachedFiles& attached) {
  std::vector<std::string> implementations;
  for (size_t i = 0; i < node.launches.size(); ++i) {
    const CompiledLaunch& launch = node.launches[i];
    JsonObject json;
    json.set("name", launch.implementation->name)
        .set("kind", std::string(launch.implementation->kind->name));
    const std::vector<std::string> conditions = launch.choice.conditions(node.symbols);
    size_t file = 0;
    const auto add_step = [&](JsonObject& to, size_t k) {
      const CppLaunch& step = launch.rule.steps[k];
      std::vector<std::string> images;
      for (size_t j = 0; j < file_count(step); ++j, ++file)
        images.push_back(image(node.files[i][file], attached[i][file]));
      to.set("entry", step.entry).set("symbol", step.symbol);
      if (&to == &json) to.set("checked_at_launch", conditions);
      to.raw("rule", rule(step, launch.implementation->step(k).launch, node.on_cuda()))
          .raw("images", JsonObject::list(images));
    };
    if (launch.rule.steps.size() == 1) {
      add_step(json, 0);
    } else {
      json.set("checked_at_launch", conditions);
      std::vector<std::string> steps;
      for (size_t k = 0; k < launch.rule.steps.size(); ++k) {
        JsonObject step;
        add_step(step, k);
        steps.push_back(step.text());
      }
      json.raw("steps", JsonObject::list(steps));
    }
    if (!launch.rule.scratch.empty()) {
      std::vector<std::string> tensors;
      for (const CppScratch& tensor : launch.rule.scratch) tensors.push_back(scratch(tensor));
      json.raw("scratch", JsonObject::list(tensors));
    }
    implementations.push_back(json.text());
  }
  return JsonObject()
      .set("op", node.op.name())
      .set("schema", node.op.spec().schema.text)
      .set("device", std::string(node.on_cuda() ? "cuda" : "cpu"))
      .raw("implementations", JsonObject::list(implementations))
      .text();
}

}  // namespace opaq
