// Checks an implementation without a device, for an example of a call or for none.
#include <string>

#include "args.h"
#include "base/device_facts.h"
#include "choose/choose.h"
#include "fake_args.h"
#include "functions.h"
#include "kinds/kind.h"

namespace opaq::python {
namespace {

// The arguments of a call of which nothing is known: defaults, where there are any; None elsewhere.
class NoArgs {
 public:
  explicit NoArgs(const Op& op) : room_(op.spec().schema.args.size()) {
    for (const ArgSpec& arg : op.spec().schema.args) {
      Arg& value = args_.emplace_back();
      if (!arg.has_default || arg.type == Type::Tensor) continue;
      defaults_.push_back(default_value(arg));
      value = read_scalar(op.name(), arg, defaults_.back().get(), room_);
    }
    args_.resize(args_.size() + op.spec().schema.returns.size());
  }
  const Arg* args() const { return args_.data(); }

 private:
  Args room_;
  std::vector<Ref> defaults_;
  std::vector<Arg> args_;
};

// What an implementation is compiled for, and serves.
struct Served {
  std::vector<std::string> archs;
  std::vector<std::string> refused;  // others that were asked for: "sm_80: arch(x) >= 90 does not
                                     // hold"
  std::string why_not;  // what the example does not meet on any; then `archs` disregard it

  bool any() const { return !archs.empty() || refused.empty(); }
};

// example: nullptr if there is none.
Served served_archs(const Op& op, const Implementation& implementation, const Arg* example,
                    const std::vector<std::string>& asked) {
  Served result;
  const auto misfit = [&](const std::string& arch) {
    const StandInDevice stand_in(arch);
    return example ? chooser(op).why_not(implementation.name, example, implementation.target) : "";
  };
  if (asked.empty()) result.why_not = misfit("");
  std::vector<std::string> fitting, misfits;
  for (const std::string& arch : asked) {
    if (const std::string requirement = implementation.refuses(arch); !requirement.empty()) {
      result.refused.push_back(arch + ": " + requirement + " does not hold");
      continue;
    }
    result.archs.push_back(arch);
    if (const std::string reasons = misfit(arch); reasons.empty()) {
      fitting.push_back(arch);
    } else {
      misfits.push_back(arch + ": " + reasons);
      result.why_not = reasons;
    }
  }
  if (fitting.empty()) return result;
  result.archs = std::move(fitting);
  result.refused.insert(result.refused.end(), misfits.begin(), misfits.end());
  result.why_not.clear();
  return result;
}

Ref occupancy_dict(const std::optional<Occupancy>& found) {
  if (!found) return none();
  return Dict()
      .set("blocks", found->blocks)
      .set("warps", found->warps)
      .set("most_warps", found->most_warps)
      .set("limit", found->limit)
      .take();
}

Ref code_dict(const CheckedCode& code) {
  return Dict()
      .set("arch", code.arch)
      .set("problem", code.problem)
      .set("parameters", code.params)
      .put("resources", resources(code.resources))
      .put("occupancy", occupancy_dict(code.occupancy))
      .set("bytes", code.bytes)
      .set("seconds", code.seconds)
      .set("from_cache", code.from_cache)
      .set("compiler", code.compiler)
      .set("log", code.log)
      .take();
}

}  // namespace

PyObject* check_code(PyObject*, PyObject* args) {
  return guarded([&]() -> PyObject* {
    const std::vector<Ref> items = to_items(args, "check_code");
    const Op& op = op_named(to_string(items.at(0).get(), "op"));
    const std::string name = to_string(items.at(1).get(), "implementation");
    const std::vector<std::string> archs = to_strings(items.at(3).get(), "archs");
    std::optional<FakeArgs> fake;
    std::optional<NoArgs> none_known;
    if (items.at(2).get() == Py_None)
      none_known.emplace(op);
    else
      fake.emplace(op, items.at(2).get());
    const Arg* values = fake ? fake->args() : none_known->args();
    PreparedLaunch* const found = chooser(op).find(name);
    if (!found) fail(ErrorKind::Declaration, op.name() + " has no implementation `" + name + "`");
    const Served served =
        served_archs(op, found->implementation(), fake ? fake->args() : nullptr, archs);
    if (!served.why_not.empty()) values = none_known.emplace(op).args();
    std::vector<LaunchCheck> steps;
    {
      AllowThreads allow;
      // One of its own, so that launches keep their images and counters.
      PreparedLaunch launch(op.name(),
                            std::make_shared<const Implementation>(found->implementation()),
                            op.spec().all_symbols());
      for (size_t i = 0; i < found->implementation().step_count(); ++i) {
        if (served.any())
          steps.push_back(launch.check_code(values, served.archs, i));
        else
          steps.push_back({.entry = found->implementation().step(i).launch.entry.text()});
      }
    }
    List list;
    for (const LaunchCheck& step : steps) {
      List code;
      for (const CheckedCode& each : step.code) {
        if (!each.problem.empty()) found->note_failure();
        code.add(code_dict(each));
      }
      list.add(Dict()
                   .set("why_not", served.why_not)
                   .set("refused", served.refused)
                   .set("entry", step.entry)
                   .set("problem", step.problem)
                   .set("assumed", step.assumed)
                   .set("unchecked", step.unchecked)
                   .put("launch", step.plan ? plan_dict(*step.plan) : none())
                   .put("code", code.take())
                   .take());
    }
    return list.take().release();
  });
}

}  // namespace opaq::python
