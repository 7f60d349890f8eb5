// Prints the C++ function of a node: views of its arguments, then one block for each implementation
// that may serve. A name that begins with opaq_ and is no variable of the function is of
// runtime/wrapper/prelude; one in opaq::standalone is of runtime/standalone.
#include <algorithm>

#include "base/error.h"
#include "compiled.h"
#include "expr/identifier.h"
#include "print.h"
#include "step.h"
#include "tensor_map.h"

namespace opaq {
namespace {

// The parameter for WrapperFunction::workspace.
constexpr std::string_view kPlannedWorkspace = "opaq_planned_workspace";

// The names of prelude types and of values that are written more than once.
std::string tensor_type(bool optional) {
  return optional ? "std::optional<opaq_tensor>" : "opaq_tensor";
}
std::string handle(const std::string& name) { return "opaq_arg_" + name; }
std::string value_of(const Symbol& symbol) {
  return cpp_identifier(symbol.name) + (symbol.optional ? ".value()" : "");
}
std::string dtype_name(DType dtype) { return "opaq_" + std::string(name(dtype)); }
std::string count(size_t counter) {
  return "opaq_node_calls[" + std::to_string(counter) + "].add();";
}

// ---- parameters and views -----------------------------------------------------------------------

// A parameter that is not a tensor. Lists get another name, since they are read through a view.
std::string scalar_parameter(const ArgSpec& arg) {
  std::string type = arg.torch_type == "float"        ? "double"
                     : arg.torch_type == "bool"       ? "bool"
                     : arg.torch_type == "str"        ? "std::string_view"
                     : arg.torch_type == "ScalarType" ? "opaq_dtype"
                                                      : "int64_t";
  const bool list = arg.type == Type::IntList;
  if (list) type = "std::initializer_list<int64_t>";
  if (arg.optional) type = "std::optional<" + type + ">";
  return list ? "const " + type + "& " + handle(arg.name) : type + " " + cpp_identifier(arg.name);
}

std::string list_view(const ArgSpec& arg) {
  const auto view = [](const std::string& list) { return call("opaq_list", {list}); };
  const std::string given = handle(arg.name), name = cpp_identifier(arg.name);
  if (!arg.optional) return "const opaq_ints " + name + " = " + view(given) + ";";
  return "const auto " + name + " = " + given + " ? std::optional<opaq_ints>(" + view("*" + given) +
         ") : std::nullopt;";
}

// What expressions read of each argument and result, over all implementations. An argument that is
// copied or must be row-major is read with its strides.
struct Reads {
  explicit Reads(const CppNode::Compiled& node) {
    for (const CompiledLaunch& launch : node.launches) {
      any.insert(launch.rule.reads.begin(), launch.rule.reads.end());
      shapes.insert(launch.rule.shaped.begin(), launch.rule.shaped.end());
      strides.insert(launch.rule.strided.begin(), launch.rule.strided.end());
      for (const auto* symbols : {&launch.choice.row_major, &launch.choice.copied}) {
        for (const std::string& name : node.names(*symbols)) {
          for (auto* names : {&any, &shapes, &strides}) names->insert(name);
        }
      }
      if (launch.choice.up_to) {
        const std::string& name = node.symbols[launch.choice.up_to->argument].name;
        for (auto* names : {&any, &shapes}) names->insert(name);
      }
    }
  }
  std::set<std::string> any, shapes, strides;
};

// A view of a tensor that holds what is read of it.
std::string tensor_view(const Symbol& symbol, std::optional<DType> dtype, const Reads& reads) {
  const std::string declared = tensor_type(symbol.optional) + " " + cpp_identifier(symbol.name);
  if (!dtype) return "[[maybe_unused]] const " + declared + ";";
  Lines arguments{handle(symbol.name)};
  std::string function = "opaq_address_of";
  if (reads.shapes.count(symbol.name) || reads.strides.count(symbol.name)) {
    function = reads.strides.count(symbol.name) ? "opaq_strided_view" : "opaq_view";
    arguments.push_back(dtype_name(*dtype));
    arguments.push_back(std::to_string(itemsize(*dtype)));
  }
  return "const " + declared + " = " + call(function, arguments) + ";";
}

// ---- one implementation -------------------------------------------------------------------------

class LaunchBlock {
 public:
  LaunchBlock(const CppNode::Compiled& node, size_t index, const std::vector<AttachedFile>& files)
      : node_(node), launch_(node.launches[index]), code_(node.files[index]), files_(files) {}

  // first, last: what its body begins and ends with.
  Lines lines(const Lines& first, const Lines& last) const {
    Lines body = first;
    append(body, copies());
    append(body, scratch());
    append(body, steps());
    if (keeps_zeros()) body.push_back("opaq_use.ended();");
    append(body, last);
    const Lines conditions = this->conditions();
    Lines lines{(conditions.empty() ? "" : "if (" + join(conditions, " && ") + ") ") + "{  // " +
                launch_.implementation->name};
    append_indented(lines, body);
    append(lines, {"  return;", "}"});
    return lines;
  }

 private:
  const std::string& op() const { return node_.op.name(); }

  Lines conditions() const {
    Lines conditions;
    for (const size_t index : launch_.choice.requirements)
      conditions.push_back(
          call("opaq_holds",
               {"[&] { return " + launch_.implementation->requires_[index].print_cpp() + "; }"}));
    for (const uint32_t symbol : launch_.choice.row_major)
      conditions.push_back(value(symbol) + ".is_contiguous()");
    if (const auto& limit = launch_.choice.up_to)
      conditions.push_back(limit->text(value(limit->argument)));
    return conditions;
  }

  std::string value(uint32_t symbol) const { return value_of(node_.symbols[symbol]); }

  // Row-major copies, which hide the arguments that they are of for the rest of the block.
  Lines copies() const {
    Lines made, views;
    for (const uint32_t symbol : launch_.choice.copied) {
      const Symbol& argument = node_.symbols[symbol];
      const std::string copy = "opaq_copy_of_" + argument.name;
      made.push_back("const opaq_row_major " + call(copy, {handle(argument.name), value(symbol)}) +
                     ";");
      views.push_back("const " + tensor_type(argument.optional) + " " +
                      cpp_identifier(argument.name) + " = " + copy + ".view;");
    }
    append(made, views);
    return made;
  }

  // Views of the scratch tensors, which lie in the workspace that the caller has planned, and what
  // zeroes them.
  Lines scratch() const {
    using Content = ScratchRule::Content;
    const std::vector<CppScratch>& tensors = launch_.rule.scratch;
    if (tensors.empty()) return {};
    Lines lines{in_standalone("ScratchLayout") + " opaq_layout;"}, views;
    const auto offset = [&](const std::string& name, const std::string& of) {
      lines.push_back("const int64_t " + name + " = opaq_layout." + of + "();");
    };
    size_t next = 0;
    const auto declare = [&](auto... contents) {
      for (; next < tensors.size() && ((tensors[next].content == contents) || ...); ++next) {
        lines.push_back(declared(tensors[next]));
        const bool kept = node_.on_cuda() && tensors[next].content == Content::LeftAtZero;
        views.push_back("[[maybe_unused]] const opaq_tensor " + cpp_identifier(tensors[next].name) +
                        " = " + memory_of(tensors[next]) +
                        (kept ? ".at(opaq_kept);" : ".at(opaq_workspace.data());"));
      }
    };
    declare(Content::Zeros);
    if (next > 0) offset("opaq_zeros_end", "bytes");
    const size_t zeros = next;
    const bool keeps = next < tensors.size() && tensors[next].content == Content::LeftAtZero;
    if (keeps) offset("opaq_kept_begin", "next");
    declare(Content::LeftAtZero);
    if (keeps) offset("opaq_kept_end", "bytes");
    declare(Content::Undefined);
    const size_t drawn = next;
    declare(Content::Philox, Content::Exponential);
    lines.push_back(
        "const " +
        call("opaq_scratch_memory opaq_workspace",
             {std::string(kPlannedWorkspace), "opaq_layout.bytes()",
              node_.on_cuda() ? "aoti_torch_device_type_cuda()" : "aoti_torch_device_type_cpu()",
              node_.on_cuda() ? "opaq_device" : "0"}) +
        ";");
    const std::string zeros_end = zeros > 0 ? "opaq_zeros_end" : "0";
    if (keeps && node_.on_cuda()) {
      append(lines, kept());
      append(lines, zero("opaq_use.memory() ? " + zeros_end + " : opaq_kept_end"));
    } else if (zeros > 0 || keeps) {
      append(lines, zero(keeps ? "opaq_kept_end" : zeros_end));
    }
    for (size_t i = drawn; i < tensors.size(); ++i) lines.push_back(draw(tensors[i]));
    append(lines, views);
    return lines;
  }

  // Fills a tensor with random numbers.
  std::string draw(const CppScratch& tensor) const {
    const bool cuda = node_.on_cuda();
    Lines arguments{memory_of(tensor) + ".at(opaq_workspace.data())",
                    cuda ? "aoti_torch_device_type_cuda()" : "aoti_torch_device_type_cpu()",
                    cuda ? "opaq_device" : "0"};
    if (tensor.content == ScratchRule::Content::Philox)
      arguments.push_back(cuda ? "aoti_torch_cuda_randint_low_out"
                               : "aoti_torch_cpu_randint_low_out");
    return call("opaq_draw_" + std::string(random_name(tensor.content)), arguments) + ";";
  }

  static std::string memory_of(const CppScratch& tensor) { return "opaq_memory_of_" + tensor.name; }

  static std::string declared(const CppScratch& tensor) {
    Lines sizes;
    for (const CppText& item : tensor.shape) sizes.push_back(evaluated(item));
    return "const opaq_scratch " +
           call(memory_of(tensor),
                {"opaq_layout", string_literal(tensor.place), dtype_name(tensor.dtype),
                 std::to_string(itemsize(tensor.dtype)), braced(sizes)}) +
           ";";
  }

  // The addresses of the tensors that the kernels leave at zero.
  Lines kept() const {
    return {"static " + in_standalone("KeptZeros") + " opaq_zeros;",
            "const " + in_standalone("ContextScope") + " opaq_context(" + linked_driver() +
                ", opaq_device);",
            "auto opaq_use = " +
                call("opaq_zeros.use", {linked_driver(), string_literal(op()), "opaq_device",
                                        "opaq_stream", "opaq_kept_end - opaq_kept_begin"}) +
                ";",
            "char* const opaq_kept = opaq_use.memory() ? opaq_use.memory() - opaq_kept_begin : "
            "opaq_workspace.data();"};
  }

  Lines zero(const std::string& bytes) const {
    if (!node_.on_cuda())
      return {"std::memset(opaq_workspace.data(), 0, static_cast<size_t>(" + bytes + "));"};
    return {call("opaq_zero", {string_literal(op()), "opaq_workspace.data()", bytes, "opaq_device",
                               "opaq_stream"}) +
            ";"};
  }

  bool keeps_zeros() const {
    const auto keeps = [](const CppScratch& tensor) {
      return tensor.content == ScratchRule::Content::LeftAtZero;
    };
    const std::vector<CppScratch>& all = launch_.rule.scratch;
    return node_.on_cuda() && std::any_of(all.begin(), all.end(), keeps);
  }

  Lines steps() const {
    Lines lines;
    size_t first_file = 0;
    const size_t count = launch_.rule.steps.size();
    for (size_t i = 0; i < count; ++i) {
      const CppLaunch& rule = launch_.rule.steps[i];
      const auto files_of = [&](const auto& all) {
        const auto begin = all.begin() + static_cast<std::ptrdiff_t>(first_file);
        return std::vector(begin, begin + static_cast<std::ptrdiff_t>(file_count(rule)));
      };
      const std::string step = "step " + std::to_string(i + 1);
      const Lines printed = print_step({.node = node_,
                                        .op = count == 1 ? op() : op() + ", " + step,
                                        .implementation = launch_.implementation->step(i),
                                        .rule = rule,
                                        .code = files_of(code_),
                                        .files = files_of(files_),
                                        .if_empty = count == 1 ? "return" : "break"});
      first_file += file_count(rule);
      if (count == 1) return printed;
      lines.push_back("do {  // " + step);
      append_indented(lines, printed);
      lines.push_back("} while (false);");
    }
    return lines;
  }

  const CppNode::Compiled& node_;
  const CompiledLaunch& launch_;
  const std::vector<CodeFile>& code_;
  const std::vector<AttachedFile>& files_;
};

// ---- the function -------------------------------------------------------------------------------

// Returns at once if all results are empty. Prints nothing if one of them never is.
Lines return_if_empty(const CppNode::Compiled& node, const std::set<std::string>& never_empty,
                      bool counted) {
  Lines empty;
  for (size_t i = 0; i < node.symbols.size(); ++i) {
    if (!node.symbols[i].written || !node.dtypes[i]) continue;
    if (never_empty.count(node.symbols[i].name)) return {};
    empty.push_back(call("opaq_empty", {handle(node.symbols[i].name)}));
  }
  if (empty.empty()) return {};
  return {"if (" + join(empty, " && ") + ") return" +
          (counted ? " " + count(node.launches.size()) : ";")};
}

// The event of PyTorch's profiler that a launch is.
std::string event(const CppNode::Compiled& node, size_t launch) {
  const Lines facts = {braced({string_literal("implementation"),
                               string_literal(node.launches[launch].implementation->name)}),
                       braced({string_literal("node"), "opaq_node_name"})};
  return "const " +
         call(in_standalone("ProfilerEvent") + " opaq_event",
              {"opaq_profiler", string_literal(event_name(node.op.name())), braced(facts)}) +
         ";";
}

// Throws if no implementation fits. Prints nothing if the last one always fits.
Lines refuse(const CppNode::Compiled& node) {
  if (node.launches.back().choice.always_fits()) return {};
  Lines unmet;
  for (const CompiledLaunch& launch : node.launches)
    unmet.push_back(launch.implementation->name + " requires " +
                    join(launch.choice.conditions(node.symbols), " and "));
  const std::string message =
      node.op.name() + ": no implementation fits this call: " + join(unmet, "; ") +
      "; change the argument, or add an implementation without the requirement";
  return {
      call(in_standalone("fail"), {in_standalone("ErrorKind::Launch"), string_literal(message)}) +
      ";"};
}

}  // namespace

void print_function(const CppNode::Compiled& node, const AttachedFiles& attached,
                    const std::set<std::string>& never_empty, WrapperFunction& result) {
  const Reads reads(node);
  const std::vector<ArgSpec>& args = node.op.spec().schema.args;
  const bool counted = !node.target.package, timed = counted && node.target.timed;
  Lines declared, views;
  for (size_t i = 0; i < node.symbols.size(); ++i) {
    const Symbol& symbol = node.symbols[i];
    const bool read = reads.any.count(symbol.name) != 0;
    if (symbol.type == Type::Tensor) {
      if (node.dtypes[i] && (read || symbol.written)) {
        result.parameters.emplace_back(symbol.name, "Tensor");
        declared.push_back("AtenTensorHandle " + handle(symbol.name));
      }
      if (read) views.push_back(tensor_view(symbol, node.dtypes[i], reads));
    } else if (read) {
      result.parameters.emplace_back(symbol.name, args[i].torch_type);
      declared.push_back(scalar_parameter(args[i]));
      if (args[i].type == Type::IntList) views.push_back(list_view(args[i]));
    }
  }
  const auto has_scratch = [](const CompiledLaunch& launch) {
    return !launch.rule.scratch.empty();
  };
  result.workspace = std::any_of(node.launches.begin(), node.launches.end(), has_scratch);
  if (result.workspace) declared.push_back("AtenTensorHandle " + std::string(kPlannedWorkspace));
  if (node.on_cuda())
    append(declared, {"int opaq_device", "CUstream opaq_stream",
                      "const " + in_standalone("Folder") + "& opaq_dir"});
  if (counted) declared.push_back(in_standalone("Counter") + "* opaq_node_calls");
  if (timed) declared.push_back(in_standalone("CallTimer") + "* opaq_node_timers");
  if (node.target.profiled) declared.push_back("const char* opaq_node_name");

  Lines body;
  if (timed) body.push_back("const int64_t opaq_begun = " + in_standalone("CallTimer::now();"));
  append(body, return_if_empty(node, never_empty, counted));
  append(body, views);
  for (size_t i = 0; i < node.launches.size(); ++i) {
    Lines first, last;
    if (counted) first.push_back(count(i));
    if (node.target.profiled) first.push_back(event(node, i));
    if (timed) last.push_back("opaq_node_timers[" + std::to_string(i) + "].add(opaq_begun);");
    append(body, LaunchBlock(node, i, attached[i]).lines(first, last));
  }
  append(body, refuse(node));

  result.prelude = {"errors", "expressions", "launch", "files"};
  const auto calls_library = [](const CompiledLaunch& launch) { return launch.calls_library(); };
  if (node.on_cuda()) result.prelude.push_back("cuda");
  if (std::any_of(node.launches.begin(), node.launches.end(),
                  [](const CompiledLaunch& launch) { return has_tensor_map(launch.rule); }))
    result.prelude.push_back("tensor_maps");
  if (!node.on_cuda() || std::any_of(node.launches.begin(), node.launches.end(), calls_library))
    result.prelude.push_back("host");
  const auto any_step = [&](const auto& test) {
    return std::any_of(node.launches.begin(), node.launches.end(),
                       [&](const auto& launch) { return test(launch.rule.steps.front()); });
  };
  const auto multiplies = [](const CppLaunch& step) { return !step.matmul.empty(); };
  if (any_step([](const CppLaunch& step) { return step.takes_tensors; }))
    result.prelude.push_back("dl_tensors");
  if (any_step([&](const CppLaunch& step) { return step.takes_tensors && !multiplies(step); }))
    result.prelude.push_back("tvm_ffi");
  if (any_step(multiplies)) result.prelude.push_back("matmul");
  if (result.workspace) result.prelude.push_back("scratch");
  if (result.workspace && node.on_cuda()) result.prelude.push_back("zeros");
  const auto draws = [](const CompiledLaunch& launch) {
    return std::any_of(launch.rule.scratch.begin(), launch.rule.scratch.end(),
                       [](const auto& one) { return is_random(one.content); });
  };
  if (std::any_of(node.launches.begin(), node.launches.end(), draws))
    result.prelude.push_back("random");
  if (counted) result.prelude.push_back("nodes");
  if (timed) result.prelude.push_back("timers");
  if (node.target.profiled) result.prelude.push_back("profiler");

  std::string& text = result.definition;
  text = "static void " + call(result.name, declared) + " {\n";
  text += "  const char* opaq_place = \"\";\n  try {\n";
  for (const std::string& line : body) text += "    " + line + "\n";
  text += "  } catch (const std::exception& opaq_error) {\n    " +
          call("opaq_rethrow", {string_literal(node.op.name()), "opaq_place", "opaq_error"}) +
          ";\n  }\n}\n";
}

}  // namespace opaq
