// Checks an implementation without a device: compiles, compares signatures, computes what a launch
// would take, as far as the arguments are known.
#include <array>

#include "base/device_facts.h"
#include "base/parallel.h"
#include "scratch.h"
#include "state.h"
#include "tensor_map.h"

namespace opaq {
namespace {

// Arguments of which some are not known: required ones that are None. A tensor that is not known
// may have an assumed dtype; then it has no other properties.
class KnownArgs {
 public:
  KnownArgs(const Subject& subject, const std::vector<Expr>& requirements, const Arg* args)
      : subject_(subject), requirements_(requirements), args_(args, args + subject.symbols.size()) {
    for (size_t i = 0; i < args_.size(); ++i)
      unknown_.push_back(is_unknown(subject.symbols[i], args_[i]));
  }

  const Arg* values() const { return args_.data(); }

  bool knows(const Expr& expr) const {
    if (expr.reads_device()) return false;
    for (size_t i = 0; i < args_.size(); ++i) {
      const int symbol = static_cast<int>(i);
      if (unknown_[i] && (has_dtype(i) ? expr.reads_beyond_dtype(symbol) : expr.reads(symbol)))
        return false;
    }
    return true;
  }

  bool knows(const std::vector<Expr>& exprs) const {
    for (const Expr& expr : exprs)
      if (!knows(expr)) return false;
    return true;
  }

  // Gives each tensor that is not known the first dtype, of those that kernels are mostly written
  // for, with which no requirement fails. Requirements about more than dtypes say nothing here.
  void assume_dtypes() {
    constexpr std::array kTried = {DType::Float32,      DType::Float16,   DType::BFloat16,
                                   DType::Float64,      DType::Int64,     DType::Int32,
                                   DType::Int8,         DType::UInt8,     DType::Bool,
                                   DType::Float8E4M3FN, DType::Float8E5M2};
    for (size_t i = 0; i < args_.size(); ++i) {
      if (!unknown_[i] || subject_.symbols[i].type != Type::Tensor) continue;
      for (const DType dtype : kTried) {
        args_[i] = with_dtype(dtype);
        if (may_hold()) break;
        args_[i] = with_dtype(kTried.front());
      }
    }
  }

  // "x.dtype = float32", of those that `exprs` read.
  std::vector<std::string> assumed(const std::vector<Expr>& exprs) const {
    std::vector<std::string> texts;
    for (size_t i = 0; i < args_.size(); ++i) {
      if (!unknown_[i] || !has_dtype(i)) continue;
      for (const Expr& expr : exprs) {
        if (!expr.reads(static_cast<int>(i))) continue;
        texts.push_back(subject_.symbols[i].name +
                        ".dtype = " + std::string(name(args_[i].tensor.dtype)));
        break;
      }
    }
    return texts;
  }

 private:
  static Arg with_dtype(DType dtype) {
    TensorView view;
    view.dtype = dtype;
    return view;
  }
  bool has_dtype(size_t i) const { return args_[i].kind == Arg::Kind::Tensor; }

  bool may_hold() const {
    for (const Expr& requirement : requirements_) {
      if (!knows(requirement)) continue;
      try {
        if (!requirement.eval_bool(args_.data())) return false;
      } catch (const Error&) {
        return false;
      }
    }
    return true;
  }

  const Subject& subject_;
  const std::vector<Expr>& requirements_;
  std::vector<Arg> args_;
  std::vector<bool> unknown_;
};

std::vector<std::string> texts(const std::vector<ParamType>& params) {
  std::vector<std::string> list;
  for (const ParamType& param : params)
    list.push_back(!param.text.empty() ? param.text
                   : param.size        ? std::to_string(param.size) + " bytes"
                                       : "?");
  return list;
}

// Checks the tensor maps in `args` whose tensors and numbers are known; `where` begins messages.
void check_tensor_maps(const std::vector<Argument>& args, const Subject& subject,
                       const KnownArgs& known, const std::string& where) {
  for (size_t i = 0; i < args.size(); ++i) {
    const Argument& argument = args[i];
    const std::string place = where.empty() ? argument_text(subject, i) : where;
    check_tensor_maps(argument.items, subject, known, place);
    if (!argument.map) continue;
    std::vector<Expr> exprs{argument.expr};
    argument.map->add_exprs(exprs);
    if (!known.knows(exprs)) continue;
    const Arg& tensor = known.values()[argument.expr.argument()];
    if (tensor.kind == Arg::Kind::Tensor)
      PreparedTensorMap(argument, place).check(known.values(), tensor.tensor);
  }
}

// Why no device of the architecture takes the arguments; "" where it may.
std::string argument_problem(const std::string& arch, const Subject& subject) {
  if (arch.empty() || arch_number(arch) >= 90) return "";
  const std::vector<Argument>& args = subject.implementation->launch.args;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].holds(Argument::Form::TensorMap))
      return argument_text(subject, i) + ": tensor maps need compute capability 9.0, and " + arch +
             " is older; declare another implementation for it, without them";
  }
  return "";
}

// Runs `work`. Returns the text of an error in the user's code, or about a missing component.
template <class Work>
std::string problem_of(const std::string& op, Work&& work) {
  try {
    work();
    return "";
  } catch (const Error& error) {
    if (error.kind == ErrorKind::Internal) throw;
    return naming(error, op).what();
  }
}

std::string unknown_without(const std::vector<Expr>& exprs, const KnownArgs& known,
                            const std::string& what) {
  std::vector<std::string> parts;
  for (const Expr& expr : exprs)
    if (!known.knows(expr)) parts.push_back("`" + expr.text() + "`");
  return what + ": " + join(parts);
}

LaunchPlan plan_of(const Geometry& geometry, const std::string& entry) {
  LaunchPlan plan;
  plan.entry = entry;
  for (int i = 0; i < 3; ++i) {
    plan.grid[i] = geometry.grid[i];
    plan.block[i] = geometry.block[i];
    plan.cluster[i] = geometry.cluster[i];
  }
  plan.shared = geometry.shared;
  return plan;
}

}  // namespace

LaunchCheck PreparedLaunch::check_code(const Arg* given, const std::vector<std::string>& archs,
                                       size_t step) {
  State& state = this->state(step);
  const Implementation& implementation = *state.subject.implementation;
  const Kind& kind = *implementation.kind;
  const LaunchRule& rule = implementation.launch;
  LaunchCheck check;

  // The arguments, and the scratch tensors where their sizes are known.
  std::vector<Arg> values(given, given + symbols_.size());
  bool complete = true;
  for (size_t i = 0; i < values.size(); ++i) complete &= !is_unknown(symbols_[i], values[i]);
  values.resize(state.subject.symbols.size());
  std::optional<ScratchArgs> scratch;
  if (complete) {
    check.problem = problem_of(op_, [&] {
      scratch.emplace(*scratch_, given, Device{implementation.target, 0});
      values.assign(scratch->args(), scratch->args() + values.size());
    });
    if (!check.problem.empty()) return check;
  }
  const Arg* const args = values.data();
  KnownArgs known(state.subject, implementation_->requires_, args);
  known.assume_dtypes();
  check.assumed = known.assumed(rule.entry.template_args);

  // The launch's geometry. Where the grid is not known, the block may be.
  std::optional<Geometry> block;
  if (kind.kernel) {
    const bool all = known.knows(rule.grid) && known.knows(rule.block) &&
                     known.knows(rule.cluster) && (!rule.shared || known.knows(rule.shared));
    check.problem = problem_of(op_, [&] {
      Geometry geometry;
      if (all) {
        const bool empty = !state.geometry.eval(known.values(), geometry);
        check.plan = plan_of(geometry, "");
        check.plan->empty = empty;
        if (!empty) block = geometry;
      } else if (known.knows(rule.block) && (!rule.shared || known.knows(rule.shared))) {
        state.geometry.eval_block(known.values(), geometry);
        block = geometry;
      }
      if (!check.plan || !check.plan->empty) check_tensor_maps(rule.args, state.subject, known, "");
    });
    if (!all) {
      std::vector<Expr> exprs = rule.grid;
      exprs.insert(exprs.end(), rule.block.begin(), rule.block.end());
      exprs.insert(exprs.end(), rule.cluster.begin(), rule.cluster.end());
      if (rule.shared) exprs.push_back(rule.shared);
      check.unchecked.push_back(unknown_without(exprs, known, "launch sizes"));
    }
  }

  if (!known.knows(rule.entry.template_args)) {
    check.entry = rule.entry.text();
    check.unchecked.push_back(unknown_without(rule.entry.template_args, known,
                                              "not compiled, for its template arguments"));
    return check;
  }
  const std::string wrong =
      problem_of(op_, [&] { check.entry = state.entry(state.template_args(known.values())); });
  if (!wrong.empty()) {
    check.entry = rule.entry.text();
    check.problem += (check.problem.empty() ? "" : "\n") + wrong;
    return check;
  }
  if (check.plan) check.plan->entry = check.entry;

  if (!kind.kernel) {
    CheckedCode& code = check.code.emplace_back();
    code.problem = problem_of(op_, [&] {
      const HostCode host = state.host_code(check.entry, args);
      code.params = texts(host.params);
      code.seconds = host.function->seconds;
      code.from_cache = host.function->from_cache;
    });
    return check;
  }
  const std::vector<std::string> wanted = archs.empty() ? std::vector<std::string>{""} : archs;
  check.code.resize(wanted.size());
  in_parallel(wanted.size(), [&](size_t i) {
    CheckedCode& code = check.code[i];
    code.arch = wanted[i];
    code.problem = problem_of(op_, [&] {
      const std::shared_ptr<const Image> image = state.image_for(check.entry, code.arch, args);
      const Entry& entry = find_entry(state.subject, *image, check.entry);
      if (entry.params_known) code.params = texts(entry.params);
      code.resources = entry.resources;
      code.bytes = static_cast<int64_t>(image->bytes.size());
      code.seconds = image->seconds;
      code.from_cache = image->from_cache;
      code.compiler = image->compiler;
      code.log = image->log;
    });
    if (code.problem.empty()) code.problem = argument_problem(code.arch, state.subject);
    if (!code.problem.empty() || !code.resources || !block) return;
    code.occupancy = occupancy(code.arch, *code.resources, *block);
    const std::string cannot =
        launch_problem(code.arch, *code.resources, *block, state.geometry.declared());
    if (!cannot.empty()) code.problem = op_ + ": " + cannot;
  });
  return check;
}

}  // namespace opaq
