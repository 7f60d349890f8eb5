// Prints one launch of an implementation: its arguments, its geometry, the call.
#include "step.h"

#include <algorithm>

#include "tensor_map.h"

namespace opaq {
namespace {

// A C type without the quotes of a message.
std::string bare_type(std::string parameter) {
  parameter.erase(std::remove(parameter.begin(), parameter.end(), '`'), parameter.end());
  return parameter;
}

std::string int64(int64_t value) {
  if (value == INT64_MIN) return "INT64_MIN";
  if (value == INT64_MAX) return "INT64_MAX";
  return call("INT64_C", {std::to_string(value)});
}

Lines texts_of(const std::vector<CppText>& items) {
  Lines texts;
  for (const CppText& item : items) texts.push_back(item.text);
  return texts;
}

// The value of an argument in the low bytes of 64 bits.
std::string packed(const CppArgument& arg) {
  const Lines names = {string_literal(arg.where), string_literal(arg.parameter)};  // for messages
  Lines arguments{arg.cpp};
  if (arg.type == Type::Int && arg.precision != 0) {
    arguments = {call(in_standalone("exactly"),
                      {arg.cpp, std::to_string(arg.precision), names[0], names[1]})};
  }
  if (arg.type == Type::Tensor) return call("opaq_as_pointer", arguments);
  if (arg.encoding == "integer") append(arguments, {int64(arg.low), int64(arg.high)});
  if (arg.encoding != "double") append(arguments, names);
  return call(in_standalone("as_" + arg.encoding),
              arguments);  // integer, half, bfloat16, float, double
}

class StepBlock {
 public:
  explicit StepBlock(const StepToPrint& step) : step_(step) {}

  Lines lines() const {
    if (!step_.rule.matmul.empty()) return matmul_call();
    if (step_.rule.takes_tensors) return tvm_ffi_call();
    if (!step_.rule.library.empty()) return library_call();
    return step_.node.on_cuda() ? kernel_launch() : host_call();
  }

 private:
  // ---- code on the host -------------------------------------------------------------------------

  // A static variable: the function in its loaded library.
  std::string loaded_function(const std::string& type) const {
    const AttachedFile& file = step_.files.front();
    const std::string symbol = call(
        "opaq_symbol",
        string_literals({step_.op, step_.rule.entry, file.name, file.sha256, step_.rule.symbol}));
    const std::string loaded = "reinterpret_cast<" + type + ">(" + symbol + ")";
    if (!step_.node.on_cuda()) return "static const auto opaq_call = " + loaded + ";";
    const std::string check = call(in_standalone("check_not_capturing"),
                                   {linked_driver(), "opaq_device", "opaq_stream",
                                    string_literal(step_.op), string_literal(step_.rule.entry)});
    return "static const auto opaq_call = [&] { " + check + "; return " + loaded + "; }();";
  }

  std::string call_host(const std::string& function, const Lines& arguments) const {
    return call(in_standalone("call_host"),
                {string_literal(step_.op), string_literal(step_.rule.entry),
                 "[&] { " + call(function, arguments) + "; }"}) +
           ";";
  }

  static std::string make_context_current() {
    return "const " + in_standalone("ContextScope") + " opaq_context(" + linked_driver() +
           ", opaq_device);";
  }

  Lines library_call() const {
    Lines types, values;
    for (size_t i = 0; i < step_.rule.args.size(); ++i) {
      const CppArgument& arg = step_.rule.args[i];  // a void*: the pointee's type is not known here
      types.push_back(arg.type == Type::Tensor ? "void*" : bare_type(arg.parameter));
      values.push_back(call("opaq_from_bits<" + types.back() + ">", {slot(i)}));
    }
    Lines lines;
    if (step_.node.on_cuda()) {
      types.push_back("void*");
      values.push_back("opaq_stream");
      lines = {make_context_current()};
    }
    append(lines,
           {"using opaq_type = void (*)(" + join(types) + ");", loaded_function("opaq_type")});
    append(lines, packed_values());
    lines.push_back(call_host("opaq_call", values));
    return lines;
  }

  // A pointer to the tensor, which is filled into opaq_tensors.
  std::string whole_tensor(size_t i) const {
    const CppArgument& arg = step_.rule.args[i];
    const std::string device = step_.node.on_cuda() ? in_standalone("kDlCuda") + ", opaq_device"
                                                    : in_standalone("kDlCpu") + ", 0";
    return call("opaq_dl_tensor", {arg.cpp, arg.dlpack, "{" + device + "}",
                                   "opaq_tensors[" + std::to_string(i) + "]"});
  }

  Lines tvm_ffi_call() const {
    const bool cuda = step_.node.on_cuda();
    const std::string device = cuda ? "opaq_device" : "0",
                      stream = cuda ? "opaq_stream" : "nullptr";
    Lines lines, values;
    if (cuda) lines = {make_context_current()};
    lines.push_back(loaded_function("void*"));
    const Lines loaded = {string_literal(step_.op), string_literal(step_.rule.entry), "opaq_call",
                          cuda ? "true" : "false"};
    lines.push_back("static const " +
                    call(in_standalone("TvmFunction") + " opaq_function", loaded) + ";");
    const std::string count = std::to_string(step_.rule.args.size());
    lines.push_back(in_standalone("DlTensor") + " opaq_tensors[" + count + "];");
    lines.push_back(in_standalone("TvmValue") + " opaq_values[" + count + "];");
    for (size_t i = 0; i < step_.rule.args.size(); ++i) {
      const CppArgument& arg = step_.rule.args[i];
      if (arg.type == Type::Tensor) {
        lines.push_back(slot(i) + " = " + call(in_standalone("TvmValue"), {whole_tensor(i)}) + ";");
        continue;
      }
      if (can_fail(arg.cpp)) lines.push_back(set_place(arg.place));
      const char* kind = arg.encoding == "double" ? "Float"
                         : arg.type == Type::Bool ? "Bool"
                                                  : "Int";
      lines.push_back(slot(i) + " = {" + in_standalone("TvmValue::") + kind + ", " + packed(arg) +
                      "};");
    }
    lines.push_back(call_host("opaq_function", {"opaq_values", count, device, stream}));
    return lines;
  }

  Lines matmul_call() const {
    const std::string count = std::to_string(step_.rule.args.size());
    const Lines constructed = {in_standalone("MatmulRule") + "(" +
                               string_literal(step_.rule.matmul) + ")"};
    Lines lines = {
        make_context_current(),
        "static const " + call(in_standalone("Matmul") + " opaq_matmul", constructed) + ";",
        in_standalone("DlTensor") + " opaq_tensors[" + count + "];",
        "const " + in_standalone("DlTensor") + "* opaq_operands[" + count + "];",
        "double opaq_numbers[" + count + "];"};
    for (size_t i = 0; i < step_.rule.args.size(); ++i) {
      const CppArgument& arg = step_.rule.args[i];
      const std::string at = "[" + std::to_string(i) + "]";
      if (arg.type == Type::Tensor) {
        lines.push_back("opaq_operands" + at + " = " + whole_tensor(i) + ";");
      } else {
        if (can_fail(arg.cpp)) lines.push_back(set_place(arg.place));
        lines.push_back("opaq_numbers" + at + " = " + arg.cpp + ";");
      }
    }
    lines.push_back("opaq_matmul(opaq_operands, opaq_numbers, opaq_stream);");
    return lines;
  }

  Lines host_call() const {
    Lines lines{loaded_function("opaq_invoke_type")};
    append(lines, values());
    lines.push_back(call_host("opaq_call", {"opaq_pointers"}));
    return lines;
  }

  static std::string slot(size_t argument) {
    return "opaq_values[" + std::to_string(argument) + "]";
  }

  // The arguments in 64 bits each.
  Lines packed_values() const {
    const size_t count = step_.rule.args.size();
    if (count == 0) return {};
    Lines lines{"uint64_t opaq_values[" + std::to_string(count) + "];"};
    for (size_t i = 0; i < count; ++i) {
      const CppArgument& arg = step_.rule.args[i];
      if (arg.size) {
        append(lines, packed_struct(i));
        continue;
      }
      if (arg.type != Type::Tensor && can_fail(arg.cpp)) lines.push_back(set_place(arg.place));
      lines.push_back(slot(i) + " = " + packed(arg) + ";");
    }
    return lines;
  }

  static std::string struct_of(size_t argument) {
    return "opaq_struct_" + std::to_string(argument);
  }

  // A struct that is passed by value, byte by byte.
  Lines packed_struct(size_t i) const {
    const CppArgument& arg = step_.rule.args[i];
    Lines lines{"alignas(64) unsigned char " + struct_of(i) + "[" + std::to_string(arg.size) +
                "] = {};  // " + string_literal(arg.text)};
    for (const CppField& field : arg.fields) {
      const CppArgument& value = field.value;
      if (value.map) {
        append(lines, tensor_map_lines(value, struct_of(i) + " + " + std::to_string(field.offset)));
        continue;
      }
      if (value.type != Type::Tensor && can_fail(value.cpp))
        lines.push_back(set_place(value.place));
      const Lines to = {struct_of(i) + " + " + std::to_string(field.offset),
                        std::to_string(field.width)};
      Lines arguments = to;
      if (value.type == Type::IntList) {
        append(arguments, {std::to_string(field.count), field.may_have_fewer ? "true" : "false",
                           value.cpp, int64(value.low), int64(value.high),
                           string_literal(value.where), string_literal(value.parameter)});
        lines.push_back(call("opaq_put_list", arguments) + ";");
      } else {
        arguments.push_back(packed(value));
        lines.push_back(call(in_standalone("put"), arguments) + ";");
      }
    }
    return lines;
  }

  // And pointers to them.
  Lines values() const {
    if (step_.rule.args.empty()) return {"void** opaq_pointers = nullptr;"};
    Lines lines = packed_values(), pointers;
    for (size_t i = 0; i < step_.rule.args.size(); ++i)
      pointers.push_back(step_.rule.args[i].size ? struct_of(i) : "&" + slot(i));
    lines.push_back("void* opaq_pointers[] = " + braced(pointers) + ";");
    return lines;
  }

  // ---- kernels ----------------------------------------------------------------------------------

  Lines kernel_launch() const {
    Lines lines{declared_rule(), images()};
    append(lines, geometry());
    append(lines, values());
    const Lines constructed = {linked_driver(), "opaq_declared", string_literal(step_.rule.entry),
                               string_literal(step_.rule.symbol), "opaq_images"};
    lines.push_back("static " + in_standalone("PackagedKernel<") +
                    std::to_string(step_.files.size()) + "> " + call("opaq_kernel", constructed) +
                    ";");
    lines.push_back(
        "opaq_kernel.launch(opaq_geometry, opaq_device, opaq_dir, opaq_stream, opaq_pointers);");
    return lines;
  }

  // The texts of the launch rule, for messages.
  std::string declared_rule() const {
    Lines fields{string_literal(step_.op)};
    for (const auto* dims : {&step_.rule.grid, &step_.rule.block, &step_.rule.cluster})
      fields.push_back(dims->empty() ? "{nullptr}" : braced(string_literals(texts_of(*dims))));
    const LaunchRule& launch = step_.implementation.launch;
    fields.push_back(string_literal(step_.rule.shared.text));
    for (const bool flag : {launch.cooperative, launch.programmatic})
      fields.push_back(flag ? "true" : "false");
    return "static constexpr " + in_standalone("DeclaredLaunch") +
           " opaq_declared = " + braced(fields) + ";";
  }

  std::string images() const {
    Lines images;
    for (size_t i = 0; i < step_.files.size(); ++i)
      images.push_back(braced(
          string_literals({step_.code[i].arch, step_.files[i].name, step_.files[i].sha256})));
    return "static constexpr " + in_standalone("PackagedImage") +
           " opaq_images[] = " + braced(images) + ";";
  }

  Lines geometry() const {
    const auto set = [](const std::string& what, const std::string& value) {
      return call(in_standalone("set_" + what), {"opaq_declared", "opaq_geometry", value});
    };
    const auto set_dims = [&](const std::string& what, const std::vector<CppText>& items) {
      Lines values;
      for (const CppText& item : items) values.push_back(evaluated(item));
      return set(what, braced(values));
    };
    Lines lines{in_standalone("Geometry") + " opaq_geometry;"};
    lines.push_back("if (!" + set_dims("grid", step_.rule.grid) + ") " + step_.if_empty + ";");
    lines.push_back(set_dims("block", step_.rule.block) + ";");
    if (!step_.rule.cluster.empty()) {
      lines.push_back(set_dims("cluster", step_.rule.cluster) + ";");
    }
    lines.push_back(set("shared", evaluated(step_.rule.shared)) + ";");
    return lines;
  }

  const StepToPrint& step_;
};

}  // namespace

Lines print_step(const StepToPrint& step) { return StepBlock(step).lines(); }

}  // namespace opaq
