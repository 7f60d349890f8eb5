// Implementations for generated C++ wrappers: code compiled ahead, launch rules printed as C++.
#include <algorithm>

#include "driver/driver.h"
#include "parameters.h"
#include "scratch.h"
#include "state.h"
#include "tensor_map.h"

namespace opaq {
namespace {

std::string_view encoding_name(Encoding encoding) {
  switch (encoding) {
    case Encoding::Pointer:
      return "pointer";
    case Encoding::Integer:
      return "integer";
    case Encoding::Half:
      return "half";
    case Encoding::BFloat16:
      return "bfloat16";
    case Encoding::Float:
      return "float";
    case Encoding::Double:
      return "double";
    case Encoding::Unknown:
      break;
  }
  return "";
}

CppText printed(const Expr& expr) { return {expr.text(), expr.print_cpp(), expr.place()}; }

std::vector<CppText> dims(const std::vector<Expr>& exprs) {
  std::vector<CppText> texts(3, CppText{"1", "1", ""});
  for (size_t i = 0; i < exprs.size(); ++i) texts[i] = printed(exprs[i]);
  return texts;
}

CppArgument printed_map(const Subject& subject, const PlacedValue& value, const Arg* args) {
  const TensorMapRule& rule = *value.argument->map;
  const Arg& tensor = args[value.argument->expr.argument()];
  CppTensorMap map;
  map.tensor = subject.symbols[static_cast<size_t>(value.argument->expr.argument())].name;
  map.interleave = rule.interleave;
  map.swizzle = rule.swizzle;
  map.l2_promotion = rule.l2_promotion;
  map.oob_fill = rule.oob_fill;
  if (tensor.kind == Arg::Kind::Tensor)
    map.type = tensor_map_type(rule, tensor.tensor.dtype, value.text);
  const auto texts = [](const std::vector<Expr>& exprs) {
    std::vector<CppText> texts;
    for (const Expr& expr : exprs) texts.push_back(printed(expr));
    return texts;
  };
  map.shape = texts(rule.shape);
  map.strides = texts(rule.strides);
  map.box = texts(rule.box);
  map.element_strides = texts(rule.element_strides);
  CppArgument argument;
  argument.text = value.argument->text;
  argument.where = value.text;
  argument.map = std::make_shared<const CppTensorMap>(std::move(map));
  return argument;
}

CppArgument printed(const Subject& subject, const PlacedValue& value, const Arg* args) {
  if (value.argument->map) return printed_map(subject, value, args);
  const Destination to = destination(value.argument->expr, value.type);
  const Expr passed = as_passed(value.argument->expr, to);
  return {{value.argument->text, passed.print_cpp(), passed.place()},
          passed.type(),
          std::string(encoding_name(to.encoding)),
          to.low,
          to.high,
          precision(to.encoding),
          parameter_text(value.type),
          value.text,
          "",
          nullptr,
          0,
          {}};
}

std::vector<CppArgument> arguments(const Subject& subject, const std::vector<ParamType>& params,
                                   const Arg* given) {
  const Packer checked(subject, params);  // throws if the encoding of a parameter is not known
  const std::vector<Argument>& list = subject.implementation->launch.args;
  std::vector<CppArgument> args(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].form == Argument::Form::Value) continue;
    args[i].text = list[i].text;
    args[i].size = params[i].size;
  }
  for (const PlacedValue& value : placed_values(subject, params)) {
    if (value.offset < 0)
      args[value.parameter] = printed(subject, value, given);
    else
      args[value.parameter].fields.push_back({printed(subject, value, given), value.offset,
                                              value.type.size, value.count,
                                              value.argument->rest_is_zero});
  }
  return args;
}

// Whether a tensor map is made of the tensor, with its sizes and strides.
bool is_mapped(const std::vector<Argument>& args, int tensor) {
  return std::any_of(args.begin(), args.end(), [&](const Argument& arg) {
    return (arg.map && arg.expr.argument() == tensor) || is_mapped(arg.items, tensor);
  });
}

void note_reads(const Implementation& implementation, const std::vector<Symbol>& symbols,
                CppImplementation& out) {
  std::vector<Expr> all = implementation.requires_;
  for (size_t i = 0; i < implementation.step_count(); ++i) {
    const LaunchRule& rule = implementation.step(i).launch;
    const std::vector<Expr> args = exprs_of(rule.args);
    for (const auto* list : {&rule.grid, &rule.block, &rule.cluster, &args})
      all.insert(all.end(), list->begin(), list->end());
    if (rule.shared) all.push_back(rule.shared);
  }
  for (const ScratchRule& rule : implementation.scratch)
    all.insert(all.end(), rule.shape.begin(), rule.shape.end());
  for (size_t s = 0; s < symbols.size(); ++s) {
    bool read = false, shaped = false, strided = false;
    for (const Expr& expr : all) {
      if (!expr.reads(static_cast<int>(s))) continue;
      read = true;
      const bool alone = expr.argument() == static_cast<int>(s);
      const bool whole = implementation.kind->takes_tensors && alone;
      shaped |= whole || !alone;
      strided |= whole || expr.reads_strides(static_cast<int>(s));
    }
    for (size_t i = 0; i < implementation.step_count(); ++i) {
      if (is_mapped(implementation.step(i).launch.args, static_cast<int>(s)))
        shaped = strided = true;
    }
    if (read) out.reads.push_back(symbols[s].name);
    if (shaped && symbols[s].type == Type::Tensor) out.shaped.push_back(symbols[s].name);
    if (strided) out.strided.push_back(symbols[s].name);
  }
}

// What the library of a product chooses for a call like this one, if there is a device.
std::string known_algorithm(const Subject& subject, const std::vector<ParamType>& params,
                            const Arg* args) {
  if (!driver().available) return "";
  try {
    const Packer packer(subject, params);
    Parameters parameters(packer.room(), packer.size());
    Device device{DeviceType::CUDA, 0};
    for (size_t i = 0; i < subject.symbols.size(); ++i)
      if (args[i].kind == Arg::Kind::Tensor && args[i].tensor.device.type == DeviceType::CUDA)
        device = args[i].tensor.device;
    packer.pack(subject, args, device, parameters.values(), parameters.pointers());
    const ContextScope scope(device.index);
    const Implementation& implementation = *subject.implementation;
    return implementation.kind->known_algorithm(implementation, parameters.pointers());
  } catch (const Error&) {
    return "";  // the launch asks, and says what is wrong
  }
}

// One step. `args` holds the scratch tensors, too.
CppLaunch launch_of(PreparedLaunch::State& state, const Arg* args,
                    const std::vector<std::string>& archs) {
  const Implementation& implementation = *state.subject.implementation;
  const Kind& kind = *implementation.kind;
  CppLaunch out;
  out.entry = state.entry(state.template_args(args));
  std::vector<ParamType> params;
  if (kind.kernel) {
    if (kind.compiled && archs.empty())
      fail(ErrorKind::Declaration,
           state.subject.op +
               ": compiling for a device needs its architecture, such as \"sm_90a\"; got none");
    out.images = state.images(
        out.entry, kind.compiled ? archs : kind.archs(*state.subject.implementation), args);
    const Entry& entry = find_entry(state.subject, *out.images.front(), out.entry);
    out.symbol = entry.symbol;
    params = entry.params;
    if (!entry.params_known) params.assign(implementation.launch.args.size(), ParamType{});
  } else {
    WrapperHostCode code = state.wrapper_code(out.entry, args);
    out.host = std::move(code.function);
    out.library = std::move(code.path);
    out.symbol = std::move(code.symbol);
    out.matmul = std::move(code.matmul);
    params = std::move(code.params);
    if (!out.matmul.empty()) out.matmul += known_algorithm(state.subject, params, args);
  }
  out.args = arguments(state.subject, params, args);
  out.takes_tensors = kind.takes_tensors;
  for (size_t i = 0; kind.takes_tensors && i < out.args.size(); ++i) {
    if (out.args[i].type != Type::Tensor) continue;
    const TensorView* tensor = implementation.launch.args[i].expr.eval(args).tensor;
    const standalone::DlDataType type = dlpack_type(tensor ? tensor->dtype : DType::Float32);
    out.args[i].dlpack = "{" + std::to_string(type.code) + ", " + std::to_string(type.bits) + ", " +
                         std::to_string(type.lanes) + "}";
  }
  if (kind.kernel) {
    out.grid = dims(implementation.launch.grid);
    out.block = dims(implementation.launch.block);
    if (!implementation.launch.cluster.empty()) out.cluster = dims(implementation.launch.cluster);
    out.shared = implementation.launch.shared ? printed(implementation.launch.shared)
                                              : CppText{"0", "0", ""};
  }
  return out;
}

}  // namespace

CppImplementation PreparedLaunch::cpp(const Arg* given, const std::vector<std::string>& archs) try {
  const Implementation& implementation = *implementation_;
  const Kind& kind = *implementation.kind;
  if (!kind.native)
    fail(ErrorKind::Declaration, op_ + ": implementation `" + implementation.name + "` is " +
                                     std::string(kind.article) + ", which has no C++ form");
  const ScratchArgs scratch(*scratch_, given, {implementation.target, 0});
  CppImplementation out;
  for (size_t i = 0; i < implementation.step_count(); ++i)
    out.steps.push_back(launch_of(state(i), scratch.args(), archs));
  for (const ScratchRules::Rule& each : scratch_->rules()) {
    CppScratch made{.name = each.rule->name, .place = each.place};
    for (const Expr& item : each.rule->shape) {
      made.shape.push_back(printed(item));
      made.lists.push_back(item.type() == Type::IntList);
    }
    made.dtype = each.rule->dtype.eval(given).dtype;
    made.content = each.rule->content;
    out.scratch.push_back(std::move(made));
  }
  note_reads(implementation, symbols_, out);
  return out;
} catch (const Error& error) {
  throw naming(error, op_);
}

}  // namespace opaq
