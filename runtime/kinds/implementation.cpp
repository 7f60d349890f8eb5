// The declaration of an implementation: the fields of each kind, the launch rule and requirements,
// the hash of its content.
#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/sha256.h"
#include "kinds/kind.h"
#include "spec/argument_list.h"
#include "spec/entry_template.h"
#include "spec/expressions.h"
#include "spec/scratch.h"
#include "spec/spec.h"

namespace opaq {
namespace {

using spec::Scope;
using spec::trimmed;

// Limits of every device with compute capability 7.0 or above (CUDA C++ Programming Guide, "Compute
// Capabilities").
constexpr int64_t kMaxBlock[3] = {1024, 1024, 64};
constexpr int64_t kMaxThreads = 1024, kMaxCluster = 16;

const Kind& find_kind(const std::string& op, const ImplementationText& text) {
  const std::optional<DeviceType> device = device_type_from_name(text.device);
  if (!device) {
    const std::vector<std::string> devices = {"cuda", "cpu"};
    fail(ErrorKind::Declaration, op + ": implementation on device '" + text.device +
                                     "' is not supported; expected one of " + join(devices) +
                                     did_you_mean(text.device, devices));
  }
  std::vector<std::string> names;
  const Kind* elsewhere = nullptr;
  for (const Kind* kind : kinds()) {
    if (kind->runs_on(*device)) {
      if (kind->name == text.kind) return kind->of_code(text.code);
      names.emplace_back(kind->name);
    } else if (kind->name == text.kind) {
      elsewhere = kind;
    }
  }
  const std::string hint = elsewhere ? "; '" + text.kind + "' (" + std::string(elsewhere->code) +
                                           ") is for " +
                                           std::string(device_type_name(elsewhere->devices.front()))
                                     : did_you_mean(text.kind, names);
  fail(ErrorKind::Declaration, op + ": implementation of kind '" + text.kind +
                                   "' is not supported on device '" + text.device +
                                   "'; expected one of " + join(names) + hint);
}

class ImplementationParser {
 public:
  ImplementationParser(const OpSpec& op, const ImplementationText& text)
      : op_(op),
        kind_(find_kind(op.schema.qualname(), text)),
        text_(kind_.completed(text, op.schema.qualname() + ", implementation '" +
                                        implementation_name(op, text) + "'")),
        name_(implementation_name(op, text)),
        scope_{op.schema, op.all_symbols(),
               op.schema.qualname() + ", implementation '" + name_ + "'"},
        rule_scope_(scope_) {
    scope_.values = rule_scope_.values = text_.values;
    rule_scope_.launched = device_type_from_name(text_.device) == DeviceType::CUDA;
  }

  Implementation parse() {
    check_values();
    check_fields();
    Implementation result = code_and_name();
    result.signature = trimmed(text_.signature);
    result.priority = text_.priority;
    std::vector<ScratchText> scratch = text_.scratch;
    for (ScratchText& each : scratch) each.shape = spec::with_values(each.shape, text_.values);
    result.scratch = spec::parse_scratch(op_, scope_.owner, scratch);
    rule_scope_.symbols = result.with_scratch(scope_.symbols);
    if (kind_.native && text_.steps.empty()) parse_rule(result.launch);
    for (size_t i = 0; i < text_.steps.size(); ++i) result.steps.push_back(parse_step(result, i));
    if (kind_.native) check_passed(result);
    for (const std::string& requirement : text_.requires_) {
      result.requires_.push_back(rule_scope_.one(requirement, "requires", {Type::Bool}));
      check_reads_no_scratch(result.requires_.back(), "requires",
                             "exists only when an implementation has been chosen");
    }
    for (size_t i = 0; i < result.step_count(); ++i)
      result.step(i).kind->check(rule_scope_, result.step(i));
    result.needs_contiguous = needs_contiguous(result);
    result.hash = hash(result);
    return result;
  }

 private:
  // Step `index` of `whole`, whose scratch tensors are known. Its code is that of the whole unless
  // it has its own.
  ImplementationParser(const ImplementationParser& whole, const ImplementationText& text,
                       size_t index)
      : op_(whole.op_),
        kind_(find_kind(whole.op_.schema.qualname(), text)),
        text_(text),
        name_(whole.name_),
        scope_{whole.op_.schema, whole.scope_.symbols,
               whole.scope_.owner + ", step " + std::to_string(index + 1)},
        rule_scope_{whole.op_.schema, whole.rule_scope_.symbols, scope_.owner} {
    scope_.values = rule_scope_.values = whole.scope_.values;
    rule_scope_.launched = whole.rule_scope_.launched;
  }

  std::shared_ptr<const Implementation> parse_step(const Implementation& whole,
                                                   size_t index) const {
    ImplementationText text = text_.steps[index];
    if (!text.roles.empty())
      scope_.fail("steps", "a matrix product by cuBLASLt is no step; give it to an op of its own");
    text.device = text_.device;
    if (text.code.empty()) {
      text.kind = text_.kind;
      text.code = text_.code;
      text.file = text_.file;
    }
    if (text.kind == text_.kind) text.compiler = text_.compiler;
    if (text.options.empty()) text.options = text_.options;
    if (text.include_dirs.empty()) text.include_dirs = text_.include_dirs;
    const ImplementationParser parser(*this, text, index);
    if (!text.steps.empty() || !text.scratch.empty() || !text.requires_.empty() || text.priority)
      parser.scope_.fail("steps", "a step has a launch rule and code, and nothing else");
    parser.check_fields();
    Implementation step = parser.code_and_name();
    parser.parse_rule(step.launch);
    step.needs_contiguous.assign(whole.with_scratch(scope_.symbols).size(), false);
    step.hash = hash(step);
    return std::make_shared<const Implementation>(std::move(step));
  }

  Implementation code_and_name() const {
    Implementation result;
    result.name = name_;
    result.target = *device_type_from_name(text_.device);
    result.kind = &kind_;
    result.code = text_.code;
    result.file = text_.file;
    result.options = text_.options;
    result.include_dirs = text_.include_dirs;
    result.function = text_.function;
    result.call = text_.call;
    if (!kind_.compilers.empty()) result.compiler = trimmed(text_.compiler);
    return result;
  }

  void parse_rule(LaunchRule& launch) const {
    launch.entry = spec::parse_entry(text_.entry, rule_scope_);
    for (const Expr& argument : launch.entry.template_args)
      check_reads_no_scratch(argument, "entry", "is not known when a kernel is compiled");
    launch.args = parse_args();
    if (kind_.kernel) parse_launch(launch);
  }

  static std::string implementation_name(const OpSpec& op, const ImplementationText& text) {
    const std::string name(trimmed(text.name));
    const auto allowed = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '_' || c == '-' || c == '.' || c == ':' || c == '=' || c == ',';
    };
    if (!std::all_of(name.begin(), name.end(), allowed)) {
      fail(ErrorKind::Declaration,
           op.schema.qualname() + ": implementation name '" + name +
               "' is not accepted; use letters, digits and _ - . :, as in 'cuda:vec4'");
    }
    return name.empty() ? text.device : name;
  }

  // A value has a name of its own, which an expression uses.
  void check_values() const {
    for (const auto& [name, value] : text_.values) {
      for (const Symbol& symbol : scope_.symbols) {
        if (symbol.name == name)
          scope_.fail("tune", "'" + name + "' is an argument or a result; choose another name");
      }
      if (!uses(text_, name))
        scope_.fail("tune", "no expression uses '" + name +
                                "'; write it where its value is meant, "
                                "as in block=\"" +
                                name + "\", or leave it out");
    }
  }

  static bool uses(const ImplementationText& text, const std::string& name) {
    std::string all = text.entry + ' ' + text.grid + ' ' + text.block + ' ' + text.cluster + ' ' +
                      text.shared + ' ' + text.args + ' ' + join(text.requires_, " ");
    for (const ScratchText& scratch : text.scratch) all += ' ' + scratch.shape;
    const bool here = spec::with_values(all, {{name, ""}}) != all;
    return here || std::any_of(text.steps.begin(), text.steps.end(),
                               [&](const ImplementationText& step) { return uses(step, name); });
  }

  // Fields that the kind does not use are refused: they would have no effect.
  void check_fields() const {
    const std::string kind = "kind '" + text_.kind + "' on device '" + text_.device + "'";
    const ImplementationText defaults;
    const auto refuse_unless = [&](bool takes, const char* field, const std::string& given,
                                   const std::string& unused) {
      if (!takes && trimmed(given) != unused)
        scope_.fail(field, kind + " takes no " + field + ", got '" + given + "'; leave it out");
    };
    refuse_unless(kind_.kernel, "grid", text_.grid, defaults.grid);
    refuse_unless(kind_.kernel, "block", text_.block, defaults.block);
    refuse_unless(kind_.kernel, "cluster", text_.cluster, "");
    refuse_unless(kind_.kernel, "shared", text_.shared, defaults.shared);
    refuse_unless(kind_.kernel, "cooperative", text_.cooperative ? "true" : "", "");
    refuse_unless(kind_.kernel, "programmatic", text_.programmatic ? "true" : "", "");
    refuse_unless(kind_.compiled, "options", join(text_.options), "");
    refuse_unless(kind_.source, "include_dirs", join(text_.include_dirs), "");
    refuse_unless(!kind_.compilers.empty(), "compiler", text_.compiler, defaults.compiler);
    refuse_unless(kind_.takes_signature, "signature", text_.signature, "");
    refuse_unless(kind_.native, "entry", text_.entry, "");
    refuse_unless(kind_.native, "args", text_.args, "");
    check_compiler();
    if (!kind_.native && (!text_.scratch.empty() || !text_.steps.empty()))
      scope_.fail("scratch", kind + " takes neither scratch nor steps; leave them out");
    if (!kind_.native) return;
    if (kind_.takes_roles && !text_.steps.empty())
      scope_.fail("steps", kind + " is one launch, and takes no steps; leave them out");
    if (!text_.steps.empty()) return check_fields_beside_steps(kind);
    if (text_.code.empty())
      scope_.fail("code", "empty; " + kind + " takes " + std::string(kind_.code));
    if (trimmed(text_.entry).empty())
      scope_.fail(
          "entry",
          "not given; name the function that is called, as in entry=\"rms_norm<{x.dtype}>\"");
  }

  void check_compiler() const {
    if (kind_.compilers.empty()) return;
    std::vector<std::string> names = {"auto"};
    names.insert(names.end(), kind_.compilers.begin(), kind_.compilers.end());
    const std::string given(trimmed(text_.compiler));
    if (std::find(names.begin(), names.end(), given) == names.end())
      scope_.fail("compiler", "got '" + given + "'; expected one of " + join(names) +
                                  did_you_mean(given, names));
  }

  // With steps, each step has its own launch rule.
  void check_fields_beside_steps(const std::string& kind) const {
    if (kind_.takes_signature)
      scope_.fail("steps", kind + " takes no steps; give each function to its own implementation");
    const ImplementationText defaults;
    const auto refuse = [&](const char* field, const std::string& given,
                            const std::string& unused) {
      if (trimmed(given) != unused)
        scope_.fail(field,
                    "got '" + given + "' beside steps; give " + field + " to each opaq.step(...)");
    };
    refuse("entry", text_.entry, "");
    refuse("args", text_.args, "");
    refuse("grid", text_.grid, defaults.grid);
    refuse("block", text_.block, defaults.block);
    refuse("cluster", text_.cluster, "");
    refuse("shared", text_.shared, defaults.shared);
    refuse("cooperative", text_.cooperative ? "true" : "", "");
    refuse("programmatic", text_.programmatic ? "true" : "", "");
    constexpr size_t kMostSteps = 16;
    if (text_.steps.size() > kMostSteps)
      scope_.fail("steps", std::to_string(text_.steps.size()) + " steps; at most " +
                               std::to_string(kMostSteps) + " are supported");
  }

  std::vector<Argument> parse_args() const {
    std::vector<Argument> args = spec::parse_arguments(text_.args, rule_scope_);
    using Form = Argument::Form;
    for (const Argument& arg : args) {
      if (arg.holds(Form::TensorMap) && !kind_.kernel)
        scope_.fail("args", arg.text + ": tensor maps go to CUDA kernels, and this is " +
                                std::string(kind_.article) +
                                "; pass the tensor, and where the function launches a kernel "
                                "itself, encode the map there");
      if (kind_.source || arg.form == Form::Value || arg.form == Form::TensorMap) continue;
      scope_.fail("args", arg.text + " is a struct, and " + std::string(kind_.article) +
                              " does not tell how its fields lie in memory; give source, or pass "
                              "the fields in a tensor");
    }
    if (args.empty() && device_type_from_name(text_.device) == DeviceType::CUDA) {
      std::vector<std::string> names;
      for (const Symbol& symbol : rule_scope_.symbols) names.push_back(symbol.name);
      scope_.fail("args", "empty; list the arguments of the function, in order; available are " +
                              join(names));
    }
    return args;
  }

  void check_reads_no_scratch(const Expr& expr, const char* field, const char* reason) const {
    for (size_t i = scope_.symbols.size(); i < rule_scope_.symbols.size(); ++i) {
      const std::string& name = rule_scope_.symbols[i].name;
      if (expr.reads(static_cast<int>(i)))
        scope_.fail(field, "'" + expr.text() + "' reads the scratch tensor '" + name + "', which " +
                               reason + "; read arguments and results instead");
    }
  }

  // Every result and every scratch tensor goes to a kernel.
  void check_passed(const Implementation& result) const {
    for (size_t i = op_.schema.args.size(); i < rule_scope_.symbols.size(); ++i) {
      const auto passes = [&](const Expr& arg) {
        return arg.reads(static_cast<int>(i)) && (arg.type() == Type::Tensor || arg.reads_data());
      };
      bool passed = false;
      for (size_t k = 0; k < result.step_count(); ++k) {
        const std::vector<Expr> args = exprs_of(result.step(k).launch.args);
        passed = passed || std::any_of(args.begin(), args.end(), passes);
      }
      if (passed) continue;
      const std::string where = result.steps.empty() ? "them" : "those of any step";
      const bool output = i < scope_.symbols.size();
      scope_.fail("args", (output ? "output '" : "scratch '") + rule_scope_.symbols[i].name +
                              "' is not among " + where +
                              (output ? ", so that nothing would write it; pass it"
                                      : "; pass it, or leave it out of scratch"));
    }
  }

  void parse_launch(LaunchRule& launch) const {
    launch.grid = parse_dims(text_.grid, "grid");
    launch.block = parse_dims(text_.block, "block");
    check_product(launch.block, "block", kMaxThreads, "threads");
    for (size_t i = 0; i < 3; ++i) {
      if (launch.block[i].is_constant() && launch.block[i].eval_int(nullptr) > kMaxBlock[i]) {
        scope_.fail("block", std::string("dimension ") + "xyz"[i] + " is " +
                                 launch.block[i].text() + "; the most is " +
                                 std::to_string(kMaxBlock[i]));
      }
    }
    if (!trimmed(text_.cluster).empty()) {
      launch.cluster = parse_dims(text_.cluster, "cluster");
      check_product(launch.cluster, "cluster", kMaxCluster, "blocks");
    }
    launch.shared = rule_scope_.one(text_.shared, "shared", {Type::Int});
    if (launch.shared.is_constant() && launch.shared.eval_int(nullptr) < 0)
      scope_.fail("shared", "'" + launch.shared.text() + "' is negative");
    launch.cooperative = text_.cooperative;
    launch.programmatic = text_.programmatic;
  }

  std::vector<Expr> parse_dims(const std::string& text, const char* field) const {
    std::vector<Expr> dims = rule_scope_.list(text, field, {Type::Int});
    if (dims.empty() || dims.size() > 3) {
      scope_.fail(field, "'" + text + "' has " + std::to_string(dims.size()) +
                             " items; expected 1 to 3: x, y, z");
    }
    for (const Expr& dim : dims) {
      if (dim.is_constant() && dim.eval_int(nullptr) < 1)
        scope_.fail(field, "'" + dim.text() + "' is less than 1: nothing would ever run");
    }
    while (dims.size() < 3) dims.push_back(scope_.one("1", field, {Type::Int}));
    return dims;
  }

  // Checks constant dimensions; others are checked at the launch.
  void check_product(const std::vector<Expr>& dims, const char* field, int64_t most,
                     const char* unit) const {
    int64_t product = 1;
    for (const Expr& dim : dims) {
      if (!dim.is_constant()) continue;
      const int64_t size = dim.eval_int(nullptr);
      product = size > most ? size : product * size;
      if (product > most)
        scope_.fail(field, std::to_string(product) + " " + unit + "; a " + field + " has at most " +
                               std::to_string(most));
    }
  }

  // Outputs have the layouts of their rules, and a function that is called with whole tensors can
  // read strides itself: neither needs to be contiguous.
  std::vector<bool> needs_contiguous(const Implementation& result) const {
    std::vector<bool> needs(scope_.symbols.size(), false);
    if (!kind_.native) return needs;
    std::vector<Expr> all = result.requires_;
    for (size_t i = 0; i < result.step_count(); ++i) {
      const LaunchRule& launch = result.step(i).launch;
      const std::vector<Expr> args = exprs_of(launch.args);
      for (const auto* list :
           {&launch.entry.template_args, &launch.grid, &launch.block, &launch.cluster, &args})
        all.insert(all.end(), list->begin(), list->end());
      if (launch.shared) all.push_back(launch.shared);
    }
    for (const ScratchRule& scratch : result.scratch)
      all.insert(all.end(), scratch.shape.begin(), scratch.shape.end());
    for (size_t i = 0; i < op_.schema.args.size(); ++i) {
      const int symbol = static_cast<int>(i);
      needs[i] = op_.schema.args[i].type == Type::Tensor &&
                 std::none_of(all.begin(), all.end(),
                              [&](const Expr& expr) { return expr.reads_strides(symbol); });
    }
    return needs;
  }

  // Of the file's path, only the name is hashed: the same code in another folder is the same
  // implementation.
  static std::string hash(const Implementation& result) {
    Sha256 hash;
    const auto list = [&](const std::vector<std::string>& items) {
      hash.field(std::to_string(items.size()));
      for (const std::string& item : items) hash.field(item);
    };
    const auto texts = [&](const std::vector<Expr>& items) {
      hash.field(std::to_string(items.size()));
      for (const Expr& item : items) hash.field(item.text());
    };
    hash.field("opaq implementation 4").field(result.name);
    hash.field(std::to_string(static_cast<int>(result.target))).field(result.kind->name);
    hash.field(result.code)
        .field(std::string_view(result.file).substr(result.file.find_last_of('/') + 1));
    list(result.options);
    list(result.include_dirs);
    hash.field(result.compiler);
    hash.field(result.signature).field(result.steps.empty() ? result.launch.entry.text() : "");
    for (const auto* items : {&result.launch.grid, &result.launch.block, &result.launch.cluster})
      texts(*items);
    hash.field(result.launch.shared ? result.launch.shared.text() : "");
    hash.field(std::to_string(result.launch.args.size()));
    for (const Argument& arg : result.launch.args) hash.field(arg.text);
    hash.field(result.launch.cooperative ? "1" : "0").field(result.launch.programmatic ? "1" : "0");
    texts(result.requires_);
    hash.field(std::to_string(result.priority));
    for (const ScratchRule& scratch : result.scratch) {
      hash.field("scratch").field(scratch.name).field(scratch.dtype.text());
      hash.field(std::to_string(static_cast<int>(scratch.content)));
      texts(scratch.shape);
    }
    for (const auto& step : result.steps) hash.field("step").field(step->hash);
    return hash.hex();
  }

  const OpSpec& op_;
  const Kind& kind_;
  const ImplementationText text_;
  const std::string name_;
  Scope scope_;       // arguments and results
  Scope rule_scope_;  // the scratch tensors, too
};

}  // namespace

Implementation make_implementation(const OpSpec& op, const ImplementationText& text) {
  return ImplementationParser(op, text).parse();
}

}  // namespace opaq
