// Declarations: an op's schema and output rules, and its implementations. Only this room parses and
// checks the texts of a declaration.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "expr/expr.h"
#include "spec/argument.h"

namespace opaq {

// One argument of a schema.
struct ArgSpec {
  std::string name;
  std::string torch_type;  // as in the schema without `?` and alias marks: "Tensor", "SymInt",
                           // "ScalarType", "int[]", "int[2]", "Tensor?[]", ...
  Type type;  // in expressions; String for Device, Layout and MemoryFormat, which expressions
              // cannot read
  Type item = Type::Tensor;    // of a List: what its items are
  bool item_optional = false;  // Tensor?[]
  bool optional = false;
  bool mutated = false;       // Tensor(a!)
  bool keyword_only = false;  // after `*`
  bool has_default = false;
  std::string
      default_text;  // canonical: "1e-6", "None", "True", "'mean'", "[1, 1]", "float32", "'cpu'"

  bool is_tensor_list() const { return type == Type::List && item == Type::Tensor; }
  std::string item_type() const;  // of a List: "Tensor" of "Tensor?[]"
};

struct Schema {
  std::string ns, name;  // "mylib", "rms_norm"
  std::string overload;  // "two" of mylib::f.two; "" for PyTorch's default overload
  std::vector<ArgSpec> args;
  std::vector<std::string> returns;  // names; every return is a Tensor. A single unnamed one is
                                     // `out`, several are out0, out1, ...
  std::string text;  // canonical, for PyTorch: "mylib::rms_norm(Tensor x, Tensor weight, float
                     // eps=1e-6) -> (Tensor y)"

  std::string local_name() const { return overload.empty() ? name : name + "." + overload; }
  std::string qualname() const { return ns + "::" + local_name(); }
  bool always_has_tensor() const;            // an argument that is not optional, or a list
  int index_of(std::string_view arg) const;  // -1 when absent; returns follow the arguments

  // Lists, but for those of ints. Their lengths are known at a call, and what the op does there is
  // declared by the schema with these lengths (`with_lengths`), of which each item is an argument.
  bool has_lists() const;
  std::vector<SymbolList> lists;  // of a schema with lengths: in order; else empty
};

// Parses PyTorch's schema grammar. Throws Declaration, with the name and the reason, for what opaq
// does not support: Scalar, complex, Dict, Generator, results that are not Tensors or
// alias arguments, names without `ns::`, arguments named true or false.
Schema parse_schema(std::string_view text);

// The schema "mylib::f[3]" of mylib::f(Tensor[] xs, int n): its arguments are xs_0, xs_1, xs_2 and
// n. One length for each list.
Schema with_lengths(const Schema& schema, std::span<const int64_t> lengths);

// A size of results that only the launch knows: the implementation writes it, a 64-bit integer.
struct CountRule {
  std::string name;
  Expr bound;             // the largest it can be; memory is allocated for it. Of type Int
  bool returned = false;  // it is a result of the op too; then results keep the size `bound`
};

// Shape, dtype, device and strides of one output, as expressions over the inputs.
struct OutputRule {
  struct Counted {
    int dim;  // from the end if negative, as lists of sizes may come before it
    size_t count;
  };
  std::vector<Expr> shape;       // Int and int[] items; an int[] stands for several sizes
  Expr dtype;                    // of type DType
  std::vector<Expr> strides;     // empty: contiguous
  int device_of = -1;            // the tensor whose device it shares, or an argument of type Device
  std::optional<Device> device;  // that the rule names itself; index -1: the current one
  bool partial = false;          // implementations may leave elements unwritten
  // The argument in whose memory implementations may be given the output; -1: none.
  int over = -1;
  // Dimensions of which `shape` has the bound of a count that is read after the launch.
  std::vector<Counted> counted;
};

struct OpSpec {
  Schema schema;
  std::vector<OutputRule> outputs;  // one per return
  std::vector<CountRule> counts;
  // Of the returns, those that PyTorch gets; the others, which follow, are counts.
  size_t returned = 0;
  // Whether counts are read after a launch, and results get the sizes that they say.
  bool reads_counts() const { return returned < schema.returns.size(); }
  // Whether calls may have no tensor, so that the rules name the device of the results.
  bool names_device = false;
  std::string hash;  // of schema and output rules, 64 hex digits

  // The arguments, then (for launch rules) the outputs: the order of every array of Args.
  std::vector<Symbol> input_symbols() const;
  std::vector<Symbol> all_symbols() const;
};

// An output rule as declared: every field is text, "" if not given. like: a tensor argument whose
// shape, dtype and device are the defaults. Strides are row-major by default. A shape of "[]" is a
// 0-d output. device: a tensor argument; of an op without one that is always given, an argument of
// type Device, or "cpu", "cuda", "cuda:1". A count is a size by itself, in the shape of any output.
struct CountText {
  std::string name, bound;
};
struct OutputText {
  std::string name;  // "" with a single output
  std::string like, shape, dtype, strides, device;
  bool partial = false;
  bool may_overwrite = false;          // whether the output may lie in the memory of `like`
  std::vector<CountText> counts = {};  // sizes that only the launch knows, for all outputs
};

// Of an op with lists without `lengths`, the rules are not read; they are with lengths.
OpSpec make_op(std::string_view schema, const std::vector<OutputText>& outputs,
               std::span<const int64_t> lengths = {});

// An entry with expressions in braces: "rms_norm<{x.dtype}, {x.size(-1)}>".
struct EntryTemplate {
  std::vector<std::string> pieces;  // pieces.size() == template_args.size() + 1
  std::vector<Expr> template_args;  // Int, Bool or DType
  // The entry with these values in place of the expressions. A DType is given by its number and
  // printed as the type's name in the target's language.
  std::string fill(const std::vector<int64_t>& values, DeviceType target) const;
  std::string text() const;  // as declared
};

struct LaunchRule {
  EntryTemplate entry;
  std::vector<Expr> grid, block, cluster;  // 3 each; cluster empty when not used. CUDA only
  Expr shared;                             // bytes of dynamic shared memory
  std::vector<Argument> args;
  bool cooperative = false;
  bool programmatic = false;  // programmatic dependent launch
};

// A tensor that an implementation uses while it runs and nobody else sees. Row-major, on the device
// of the launch.
struct ScratchRule {
  enum class Content : uint8_t {
    Undefined,
    Zeros,       // when the first kernel starts
    LeftAtZero,  // as Zeros, and the kernels promise to leave it zero: it need not be zeroed again
    // What PyTorch's default generator of the device has drawn for this launch:
    Philox,       // a seed and an offset, each from 0 to 2^62 - 1
    Exponential,  // what exponential_() fills a tensor of this dtype and count of elements with
  };
  std::string name;
  std::vector<Expr> shape;  // Int and int[] items, over arguments and results
  Expr dtype;
  Content content = Content::Undefined;
};

constexpr bool holds_zeros(ScratchRule::Content content) {
  return content == ScratchRule::Content::Zeros || content == ScratchRule::Content::LeftAtZero;
}

constexpr bool is_random(ScratchRule::Content content) {
  return content == ScratchRule::Content::Philox || content == ScratchRule::Content::Exponential;
}

// "philox", "exponential"; "" where `is_random` does not hold.
std::string_view random_name(ScratchRule::Content content);

// Why no tensor of this dtype has this content, to follow the dtype in an error; "" if it may.
std::string why_not_dtype(ScratchRule::Content content, DType dtype);

class Kind;  // kinds/kind.h

struct Implementation {
  std::string name;  // "cuda", "cuda:vec4", ...; unique within the op
  DeviceType target;
  const Kind* kind = nullptr;  // always one, once it is made
  std::string code;            // source text, binary bytes, or path of the library
  std::string file;  // where the code came from, for diagnostics and for #include "..." beside it;
                     // may be empty
  std::vector<std::string> options;  // compiler options
  std::vector<std::string> include_dirs;
  std::string compiler;   // which one; "" where the kind leaves no choice
  std::string signature;  // of a library's function: "void(const float*, int64_t)"; may be empty
  void (*function)() = nullptr;    // one that is in the process (kinds/linked_function.cpp)
  void (*call)(void**) = nullptr;  // and what calls it, as HostCode's function with an address
  LaunchRule launch;
  std::vector<Expr> requires_;  // Bool, over arguments and outputs
  int priority = 0;             // higher is tried first; ties in order of declaration
  // For each argument and output: whether it must be contiguous, since no expression of this
  // implementation reads its strides. False for outputs (their rules lay them out) and for Python
  // functions.
  std::vector<bool> needs_contiguous;
  // After arguments and results, expressions of the launch rule may refer to these.
  std::vector<ScratchRule> scratch;
  // If it is more than one launch: each of them, in order, with its own code and launch rule. Then
  // `launch` is empty, and of the code only the kind means anything.
  std::vector<std::shared_ptr<const Implementation>> steps;
  // Of everything above, 64 hex digits; without headers, and with only the base name of `file`.
  std::string hash;

  size_t step_count() const { return steps.empty() ? 1 : steps.size(); }
  const Implementation& step(size_t i) const { return steps.empty() ? *this : *steps[i]; }
  // The first requirement that no device of this architecture ("sm_80") meets; "" if there is none.
  std::string refuses(std::string_view arch) const;
  // `symbols`, those of the op, and the scratch tensors.
  std::vector<Symbol> with_scratch(std::vector<Symbol> symbols) const;
};

// A scratch tensor as declared: shape and dtype as of an OutputText.
struct ScratchText {
  std::string name, like, shape, dtype;
  bool zeros = false, once = false;  // once: left at zero
  std::string random;                // "philox" or "exponential": see ScratchRule::Content
};

// An implementation as declared; every expression is text. make_implementation (kinds/kind.h)
// checks it.
struct ImplementationText {
  std::string name;    // "": that of the device
  std::string device;  // "cuda", "cpu"
  std::string kind;    // Kind::name
  std::string code, file;
  std::vector<std::string> options, include_dirs;
  std::string compiler = "auto";
  std::string signature, entry;
  // What a kind is declared by that has no argument list of its own: expressions by their roles.
  std::vector<std::pair<std::string, std::string>> roles;
  // Integers by the names that stand for them in every expression: one combination of those that
  // are to be chosen among by measurement.
  std::vector<std::pair<std::string, std::string>> values;
  void (*function)() = nullptr;  // as in Implementation
  void (*call)(void**) = nullptr;
  std::string grid = "1", block = "1", cluster, shared = "0", args;
  std::vector<std::string> requires_;
  int priority = 0;
  bool cooperative = false, programmatic = false;
  std::vector<ScratchText> scratch;
  // What each launch has for itself: the launch rule, and code where it is not that of the whole.
  std::vector<ImplementationText> steps;
};

}  // namespace opaq
