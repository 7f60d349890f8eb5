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
      if (kind->name == text.kind) return *kind;
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
        text_(text),
        kind_(find_kind(op.schema.qualname(), text)),
        name_(implementation_name(op, text)),
        scope_{op.schema, op.all_symbols(),
               op.schema.qualname() + ", implementation '" + name_ + "'"} {}

  Implementation parse() {
    check_fields();
    Implementation result;
    result.name = name_;
    result.target = *device_type_from_name(text_.device);
    result.kind = &kind_;
    result.code = text_.code;
    result.file = text_.file;
    result.options = text_.options;
    result.include_dirs = text_.include_dirs;
    if (!kind_.compilers.empty()) result.compiler = trimmed(text_.compiler);
    result.signature = trimmed(text_.signature);
    result.priority = text_.priority;
    if (kind_.native) {
      result.launch.entry = spec::parse_entry(text_.entry, scope_);
      result.launch.args = parse_args();
    }
    if (kind_.kernel) parse_launch(result.launch);
    for (const std::string& requirement : text_.requires_)
      result.requires_.push_back(scope_.one(requirement, "requires", {Type::Bool}));
    kind_.check(scope_, result);
    result.needs_contiguous = needs_contiguous(result);
    result.hash = hash(result);
    return result;
  }

 private:
  static std::string implementation_name(const OpSpec& op, const ImplementationText& text) {
    const std::string name(trimmed(text.name));
    const auto allowed = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '_' || c == '-' || c == '.' || c == ':';
    };
    if (!std::all_of(name.begin(), name.end(), allowed)) {
      fail(ErrorKind::Declaration,
           op.schema.qualname() + ": implementation name '" + name +
               "' is not accepted; use letters, digits and _ - . :, as in 'cuda:vec4'");
    }
    return name.empty() ? text.device : name;
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
    refuse_unless(kind_.compiled, "include_dirs", join(text_.include_dirs), "");
    refuse_unless(!kind_.compilers.empty(), "compiler", text_.compiler, defaults.compiler);
    refuse_unless(kind_.takes_signature, "signature", text_.signature, "");
    refuse_unless(kind_.native, "entry", text_.entry, "");
    refuse_unless(kind_.native, "args", text_.args, "");
    check_compiler();
    if (!kind_.native) return;
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

  std::vector<Argument> parse_args() const {
    std::vector<Argument> args = spec::parse_arguments(text_.args, scope_);
    const std::vector<Expr> exprs = exprs_of(args);
    for (const Argument& arg : args) {
      if (kind_.compiled || arg.form == Argument::Form::Value) continue;
      scope_.fail("args", arg.text + " is a struct, and " + std::string(kind_.article) +
                              " does not tell how its fields lie in memory; give source, or pass "
                              "the fields in a tensor");
    }
    if (args.empty() && device_type_from_name(text_.device) == DeviceType::CUDA) {
      std::vector<std::string> names;
      for (const Symbol& symbol : scope_.symbols) names.push_back(symbol.name);
      scope_.fail("args", "empty; list the arguments of the function, in order; available are " +
                              join(names));
    }
    for (size_t i = op_.schema.args.size(); i < scope_.symbols.size(); ++i) {
      const auto passes = [&](const Expr& arg) {
        return arg.reads(static_cast<int>(i)) && (arg.type() == Type::Tensor || arg.reads_data());
      };
      if (std::none_of(exprs.begin(), exprs.end(), passes)) {
        scope_.fail("args", "output '" + scope_.symbols[i].name +
                                "' is not among them, so that nothing would write it; pass it");
      }
    }
    return args;
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
    launch.shared = scope_.one(text_.shared, "shared", {Type::Int});
    if (launch.shared.is_constant() && launch.shared.eval_int(nullptr) < 0)
      scope_.fail("shared", "'" + launch.shared.text() + "' is negative");
    launch.cooperative = text_.cooperative;
    launch.programmatic = text_.programmatic;
  }

  std::vector<Expr> parse_dims(const std::string& text, const char* field) const {
    std::vector<Expr> dims = scope_.list(text, field, {Type::Int});
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
    const LaunchRule& launch = result.launch;
    std::vector<Expr> all = launch.entry.template_args;
    const std::vector<Expr> args = exprs_of(launch.args);
    for (const auto* list :
         {&launch.grid, &launch.block, &launch.cluster, &args, &result.requires_})
      all.insert(all.end(), list->begin(), list->end());
    if (launch.shared) all.push_back(launch.shared);
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
    hash.field(result.signature).field(result.launch.entry.text());
    for (const auto* items : {&result.launch.grid, &result.launch.block, &result.launch.cluster})
      texts(*items);
    hash.field(result.launch.shared ? result.launch.shared.text() : "");
    hash.field(std::to_string(result.launch.args.size()));
    for (const Argument& arg : result.launch.args) hash.field(arg.text);
    hash.field(result.launch.cooperative ? "1" : "0").field(result.launch.programmatic ? "1" : "0");
    texts(result.requires_);
    hash.field(std::to_string(result.priority));
    return hash.hex();
  }

  const OpSpec& op_;
  const ImplementationText& text_;
  const Kind& kind_;
  const std::string name_;
  const Scope scope_;
};

}  // namespace

Implementation make_implementation(const OpSpec& op, const ImplementationText& text) {
  return ImplementationParser(op, text).parse();
}

}  // namespace opaq
