// Declares opaque ops in C++, in a shared library. Include it in one source file of the library
// (C++20), and link opaq::opaq and LibTorch. When the library is loaded, its ops are PyTorch's: the
// dispatcher calls them in eager, with or without Python; in Python, torch.compile takes them as
// opaq's.
//
//   OPAQ_OPS(mylib) {
//     op("scale(Tensor x, float factor=2.0) -> Tensor")
//         .outputs(opaq::like("x"))
//         .cuda({.source = opaq::file("scale.cu"), .entry = "scale<{x.dtype}>",
//                .grid = "ceil_div(x.numel(), 256)", .block = 256, .args = "x, factor, out,
//                x.numel()"})
//         .cpu(&scale, {.args = "x, factor, out, x.numel()", .requires_ = "x.dtype == float32"});
//   }
//
// Names and meaning are those of Python's opaq.op, whose documentation says more. Texts are parsed
// when the library is loaded: a wrong one ends the process with a message that says where and why;
// in Python it is opaq.DeclarationError.
#pragma once

#include <opaq/declare.h>
#include <opaq/version.h>

#include <concepts>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <source_location>
#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>
#include <vector>

// A function of LibTorch's stable C interface. Naming it makes the library depend on LibTorch,
// which the loader therefore starts first.
extern "C" int32_t aoti_torch_device_type_cpu();

#pragma GCC visibility push(hidden)  // two libraries may have been compiled with different headers
namespace opaq {

// ---- texts --------------------------------------------------------------------------------------

// A part of a declaration, as opaq_field.
struct Part {
  std::string key, text;
  std::vector<Part> parts = {};
  void (*function)() = nullptr;

  Part& set(std::string name, std::string value) {
    if (!value.empty()) parts.push_back({std::move(name), std::move(value)});
    return *this;
  }
  Part& flag(std::string name, bool value) { return set(std::move(name), value ? "1" : ""); }
  Part& list(std::string name, const std::vector<std::string>& items) {
    Part made{std::move(name), ""};
    for (const std::string& item : items) made.parts.push_back({"", item});
    if (!items.empty()) parts.push_back(std::move(made));
    return *this;
  }
  Part& list(std::string name, std::vector<Part> items) {
    if (!items.empty()) parts.push_back({std::move(name), "", std::move(items)});
    return *this;
  }
};

// An expression, an integer, or a list of them: "x.size(0)", 256, {"n", 2}.
class Expression {
 public:
  Expression() = default;
  Expression(const char* text) : text_(text) {}
  Expression(std::string text) : text_(std::move(text)) {}
  template <std::integral T>
    requires(!std::same_as<T, bool>)
  Expression(T value) : text_(std::to_string(value)) {}
  Expression(std::initializer_list<Expression> items) {
    for (const Expression& item : items) text_ += (text_.empty() ? "" : ", ") + item.text_;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// One text or several: "x.stride(-1) == 1", or {"-O3", "-std=c++20"}.
class Texts {
 public:
  Texts() = default;
  Texts(const char* one) : items_{one} {}
  Texts(std::string one) : items_{std::move(one)} {}
  Texts(std::initializer_list<std::string> items) : items_(items) {}
  const std::vector<std::string>& items() const { return items_; }

 private:
  std::vector<std::string> items_;
};

// ---- code ---------------------------------------------------------------------------------------

struct File {
  std::string path;
};

// Code from a file, which is read when the library is loaded. A relative path begins at the folder
// of the library.
inline File file(std::string path) { return {std::move(path)}; }

// Source text, or a file.
class Source {
 public:
  Source() = default;
  Source(const char* text) : Source(std::string(text)) {}
  Source(std::string text) : parts_{{"code", std::move(text)}, {"kind", "source"}} {}
  Source(File file) : parts_{{"file", std::move(file.path)}, {"kind", "source"}} {}
  const std::vector<Part>& parts() const { return parts_; }

 private:
  std::vector<Part> parts_;
};

// A cubin, fatbin or PTX: its bytes or a file; or files by target, {{"sm_90a",
// opaq::file("k.cubin")}}.
class Binary {
 public:
  Binary() = default;
  Binary(std::string bytes) : parts_{{"code", std::move(bytes)}, {"kind", "binary"}} {}
  Binary(File file) : parts_{{"file", std::move(file.path)}, {"kind", "binary"}} {}
  Binary(std::initializer_list<std::pair<std::string, File>> images) : parts_{{"kind", "binary"}} {
    Part set{"images", ""};
    for (const auto& [arch, file] : images) set.parts.push_back({arch, file.path});
    parts_.push_back(std::move(set));
  }
  const std::vector<Part>& parts() const { return parts_; }

 private:
  std::vector<Part> parts_;
};

// ---- rules for results and scratch memory -------------------------------------------------------

struct RuleOptions {
  std::string dtype = {};
  Expression shape = {}, strides = {};
  std::string device = {};  // not of like
  bool partial = false;
  bool may_overwrite = false;  // of like: the result may be given in the argument's memory
  // Sizes that only the kernel knows, by the names that it writes them to, and their bounds:
  // {{"n", "x.numel()"}}.
  std::vector<std::pair<std::string, Expression>> counts = {};
};

class Rule {  // made by like, tensor, zeros, philox, exponential
 public:
  explicit Rule(Part part) : part_(std::move(part)) {}
  Part named(std::string name) const {
    Part made = part_;
    return made.set("name", std::move(name));
  }

 private:
  Part part_;
};

inline Part rule_part(const RuleOptions& options) {
  Part part;
  part.set("dtype", options.dtype)
      .set("shape", options.shape.text())
      .set("strides", options.strides.text())
      .set("device", options.device)
      .flag("partial", options.partial)
      .flag("may_overwrite", options.may_overwrite);
  std::vector<Part> counts;
  for (const auto& [name, bound] : options.counts) counts.push_back({name, bound.text()});
  return part.list("counts", std::move(counts));
}

// The shape, dtype and device of an argument: like("x"), like("x", {.dtype = "float32"}).
inline Rule like(std::string argument, const RuleOptions& options = {}) {
  return Rule(rule_part(options).set("like", std::move(argument)));
}

// tensor("x.shape[:-1]", {.dtype = "float32"}); "[]" is the shape of a 0-d tensor.
inline Rule tensor(const Expression& shape, RuleOptions options) {
  options.shape = shape;
  return Rule(rule_part(options));
}

struct ZerosOptions {
  std::string dtype;
  bool once = false;  // the kernels leave it all zero whenever they end
};

// For scratch: a tensor that is zero when the first kernel starts.
inline Rule zeros(const Expression& shape, const ZerosOptions& options) {
  Part part;
  part.set("shape", shape.text()).set("dtype", options.dtype);
  return Rule(part.flag("zeros", true).flag("once", options.once));
}

// For scratch: a seed and an offset of random numbers.
inline Rule philox(std::string dtype = "uint64") {
  Part part;
  return Rule(part.set("shape", "2").set("dtype", std::move(dtype)).set("random", "philox"));
}

// For scratch: random numbers of the exponential distribution of rate 1, those that PyTorch's
// exponential_() gives.
inline Rule exponential(const Expression& shape, std::string dtype = "float32") {
  Part part;
  part.set("shape", shape.text()).set("dtype", std::move(dtype));
  return Rule(part.set("random", "exponential"));
}

using Rules = std::vector<std::pair<std::string, Rule>>;  // by name

inline std::vector<Part> rule_parts(const Rules& rules) {
  std::vector<Part> parts;
  for (const auto& [name, rule] : rules) parts.push_back(rule.named(name));
  return parts;
}

// ---- implementations ----------------------------------------------------------------------------

// One launch of several.
struct Step {
  Source source = {};
  Binary binary = {};
  std::string entry;
  Expression grid = {}, block = {}, cluster = {}, shared = {};
  std::string args = {};
  Texts options = {}, include_dirs = {};
  bool cooperative = false, programmatic = false;
};

struct Cuda {
  Source source = {};
  Binary binary = {};
  std::string entry = {};
  Expression grid = {}, block = {}, cluster = {}, shared = {};
  std::string args = {};
  Rules scratch = {};
  std::vector<Step> steps = {};
  Texts requires_ = {};
  Texts options = {}, include_dirs = {};
  std::string compiler = "auto";
  int priority = 0;
  std::string name = "cuda";
  bool cooperative = false, programmatic = false;
};

struct Cpu {
  Source source = {};
  std::string entry = {}, args = {};
  Rules scratch = {};
  std::vector<Step> steps = {};
  Texts requires_ = {};
  Texts options = {}, include_dirs = {};
  int priority = 0;
  std::string name = "cpu";
};

// Of a function of this library. On CUDA its last parameter is the stream; it launches on that
// stream and does not wait for it.
struct Function {
  std::string args;
  Rules scratch = {};
  Texts requires_ = {};
  int priority = 0;
  std::string name = {};  // by default that of the device
};

struct Library {
  std::string path, symbol, args, device;
  std::string signature = {};
  Rules scratch = {};
  Texts requires_ = {};
  int priority = 0;
  std::string name = "library";
};

struct TvmFfi {
  std::string module, function, args, device;
  Rules scratch = {};
  Texts requires_ = {};
  int priority = 0;
  std::string name = "tvm_ffi";
};

// ---- ops ----------------------------------------------------------------------------------------

using Place = std::source_location;

inline std::string place_text(const Place& place) {
  const std::string_view path = place.file_name();
  return std::string(path.substr(path.find_last_of('/') + 1)) + ":" + std::to_string(place.line());
}

class Op {
 public:
  Op(const std::string& ns, const std::string& schema, const Place& place)
      : name_(ns + "::" + schema.substr(0, schema.find('('))) {
    part_.set("schema", ns + "::" + schema).set("place", place_text(place));
  }

  // How results are made: one rule for a single result, else rules by name.
  Op& outputs(const Rule& rule) {
    part_.list("outputs", std::vector<Part>{rule.named("")});
    return *this;
  }
  Op& outputs(const Rules& rules) {
    part_.list("outputs", rule_parts(rules));
    return *this;
  }

  // "random" or "ordered".
  Op& effects(std::string effects) {
    part_.set("effects", std::move(effects));
    return *this;
  }
  // Names of torch.Tag: "cudagraph_unsafe".
  Op& tags(const Texts& tags) {
    part_.list("tags", tags.items());
    return *this;
  }

  // The op that gives the gradient, bound by the names in its schema. In processes with Python;
  // without, the op has no gradient.
  Op& backward(std::string op, std::string saves = "") {
    part_.set("backward", std::move(op)).set("saves", std::move(saves));
    return *this;
  }
  // The op that gives the meaning and serves calls that no implementation fits. It has the same
  // arguments and results.
  Op& reference(std::string op) {
    part_.set("reference", std::move(op));
    return *this;
  }

  Op& cuda(const Cuda& given, const Place& place = Place::current()) {
    Part& part = add("cuda", "cuda", given, place);
    launch(part, given);
    part.set("compiler", given.compiler).list("steps", steps(given.steps));
    return *this;
  }

  Op& cpu(const Cpu& given, const Place& place = Place::current()) {
    Part& part = add("cpu", "cpu", given, place);
    part.set("entry", given.entry).list("steps", steps(given.steps));
    part.list("options", given.options.items()).list("include_dirs", given.include_dirs.items());
    code(part, given.source.parts());
    return *this;
  }

  template <class... Parameters>
  Op& cpu(void (*function)(Parameters...), const Function& given,
          const Place& place = Place::current()) {
    return add_function("cpu", function, given, place);
  }
  template <class... Parameters>
  Op& cuda(void (*function)(Parameters...), const Function& given,
           const Place& place = Place::current()) {
    return add_function("cuda", function, given, place);
  }

  Op& library(const Library& given, const Place& place = Place::current()) {
    Part& part = add("library", given.device, given, place);
    part.set("entry", given.symbol).set("signature", given.signature);
    part.set("kind", "library").set("code", given.path);
    return *this;
  }

  Op& tvm_ffi(const TvmFfi& given, const Place& place = Place::current()) {
    Part& part = add("tvm_ffi", given.device, given, place);
    part.set("entry", given.function).set("kind", "tvm_ffi").set("code", given.module);
    return *this;
  }

  Part part() const {
    Part made = part_;
    return made.list("implementations", implementations_);
  }

 private:
  static void code(Part& part, const std::vector<Part>& given) {
    part.parts.insert(part.parts.end(), given.begin(), given.end());
  }

  // What every kind has.
  template <class T>
  Part& add(const std::string& method, const std::string& device, const T& given,
            const Place& place) {
    Part& part = implementations_.emplace_back();
    part.set("place", place_text(place)).set("where", name_ + ": ." + method + "(...)");
    part.set("device", device).set("name", given.name).set("args", given.args);
    part.set("priority", std::to_string(given.priority));
    return part.list("requires", given.requires_.items())
        .list("scratch", rule_parts(given.scratch));
  }

  template <class T>
  static void launch(Part& part, const T& given) {
    part.set("entry", given.entry).set("grid", given.grid.text()).set("block", given.block.text());
    part.set("cluster", given.cluster.text()).set("shared", given.shared.text());
    part.list("options", given.options.items()).list("include_dirs", given.include_dirs.items());
    part.flag("cooperative", given.cooperative).flag("programmatic", given.programmatic);
    code(part, given.source.parts());
    code(part, given.binary.parts());
  }

  static std::vector<Part> steps(const std::vector<Step>& all) {
    std::vector<Part> parts;
    for (const Step& step : all) {
      launch(parts.emplace_back(), step);
      parts.back().set("args", step.args);
    }
    return parts;
  }

  // Calls a function with values from an array of pointers, the first of which points to its
  // address.
  template <class... Parameters, size_t... I>
  static void call_with(void** values, std::index_sequence<I...>) {
    (*static_cast<void (**)(Parameters...)>(values[0]))(
        *static_cast<Parameters*>(values[I + 1])...);
  }
  template <class... Parameters>
  static void call(void** values) {
    call_with<Parameters...>(values, std::index_sequence_for<Parameters...>());
  }

  template <class... Parameters>
  Op& add_function(const std::string& device, void (*function)(Parameters...),
                   const Function& given, const Place& place) {
    Part& part = add(device, device, given, place);
    part.set("kind", "function").set("mangled_signature", typeid(void(Parameters...)).name());
    part.parts.push_back({"function", "", {}, reinterpret_cast<void (*)()>(function)});
    part.parts.push_back({"call", "", {}, reinterpret_cast<void (*)()>(&call<Parameters...>)});
    return *this;
  }

  std::string name_;
  Part part_;
  std::vector<Part> implementations_;
};

// Declares the ops of one namespace; `op` in an OPAQ_OPS block.
class Ops {
 public:
  explicit Ops(std::string ns) : ns_(std::move(ns)) {}
  Ops(const Ops&) = delete;

  // schema: PyTorch's grammar without the namespace, "scale(Tensor x, float factor=2.0) -> Tensor".
  Op& operator()(const std::string& schema, const Place& place = Place::current()) {
    return ops_.emplace_back(ns_, schema, place);
  }

  void declare(const Place& place, const void* inside) const {
    Part block;
    block.set("version", OPAQ_VERSION).set("place", place_text(place));
    std::vector<Part> ops;
    for (const Op& op : ops_) ops.push_back(op.part());
    block.list("ops", std::move(ops));
    block.parts.push_back(
        {"libtorch", "", {}, reinterpret_cast<void (*)()>(&aoti_torch_device_type_cpu)});
    std::deque<std::vector<opaq_field>> kept;
    const opaq_field fields = field(block, kept);
    opaq_declare(&fields, inside);
  }

 private:
  static opaq_field field(const Part& part, std::deque<std::vector<opaq_field>>& kept) {
    std::vector<opaq_field>& fields = kept.emplace_back();
    for (const Part& each : part.parts) fields.push_back(field(each, kept));
    return {part.key.c_str(), part.text.data(), part.text.size(),
            fields.data(),    fields.size(),    part.function};
  }

  const std::string ns_;
  std::deque<Op> ops_;
};

inline bool declare_block(const char* ns, void (*block)(Ops&),
                          const Place& place = Place::current()) {
  Ops ops(ns);
  block(ops);
  ops.declare(place, reinterpret_cast<const void*>(block));
  return true;
}

}  // namespace opaq
#pragma GCC visibility pop

// OPAQ_OPS(mylib) { op(...)...; }, at namespace scope: declares ops when the library is loaded.
#define OPAQ_OPS(ns) OPAQ_OPS_NUMBERED(ns, __COUNTER__)
#define OPAQ_OPS_NUMBERED(ns, number) OPAQ_OPS_NAMED(ns, number)
#define OPAQ_OPS_NAMED(ns, number) OPAQ_OPS_BLOCK(ns, opaq_ops_##ns##_##number)
#define OPAQ_OPS_BLOCK(ns, name)                                                          \
  static void name(::opaq::Ops& op);                                                      \
  [[maybe_unused]] static const bool name##_declared = ::opaq::declare_block(#ns, &name); \
  static void name([[maybe_unused]] ::opaq::Ops& op)
