// Prepared launches: an implementation, instantiated for one set of template arguments on one
// device, with everything constant folded in.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "compile/image.h"
#include "expr/arg.h"
#include "launch/occupancy.h"
#include "spec/spec.h"

namespace opaq {

class ScratchRules;  // launch/scratch.h
namespace standalone {
class KeptZeros;  // standalone/kept_zeros.h
}

// Counters of one implementation; written with relaxed atomics, read by report().
struct LaunchStats {
  int64_t calls = 0, skipped_empty = 0;
  int64_t timed_calls = 0;  // calls given to add_host_time
  double host_seconds = 0;  // of those, together
  double compile_seconds = 0;
  int64_t compiled = 0, disk_hits = 0;
  std::string compiler;  // of its device code: "NVRTC", "nvcc" or "NVRTC, nvcc"; "" for
                         // other code, and before the first
  // Resources::spill_stores + spill_loads, maximum over the images; nullopt if unknown.
  std::optional<int64_t> spill_bytes;
  std::optional<int64_t> image_bytes;  // of the largest image; nullopt: none was made so far
};

// What one step of a launch would do, for tests, `explain` and reports.
struct LaunchPlan {
  std::string entry;
  int64_t grid[3] = {1, 1, 1}, block[3] = {1, 1, 1}, cluster[3] = {0, 0, 0};
  int64_t shared = 0;
  bool empty = false;  // a grid dimension is 0: nothing is launched
};

// What `check_code` found for one architecture; host code has one of these, with no arch,
// and so has a binary if none is asked for.
struct CheckedCode {
  std::string arch;
  std::string problem;              // why it cannot be launched; "" where nothing was found
  std::vector<std::string> params;  // types of the entry's parameters, as far as they are known
  std::optional<Resources> resources;
  std::optional<Occupancy> occupancy;
  int64_t bytes = 0;  // of the image
  double seconds = 0;
  bool from_cache = false;
  std::string compiler;  // Image::compiler
  std::string log;       // the compiler's warnings
};

struct LaunchCheck {
  std::string entry;                   // filled
  std::string problem;                 // of the launch rule, whatever the architecture
  std::vector<std::string> assumed;    // without arguments: "x.dtype = float32"
  std::vector<std::string> unchecked;  // without arguments: what depends on them
  std::optional<LaunchPlan> plan;
  std::vector<CheckedCode> code;
};

// An expression as it was declared, as C++ (Expr::print_cpp), and Expr::place.
struct CppText {
  std::string text, cpp, place;
};

// A tensor map, encoded with the numbers of these expressions (none: not given). The modes and the
// element type are numbers of cuda.h's enumerations.
struct CppTensorMap {
  std::string tensor;
  int interleave = 0, swizzle = 0, l2_promotion = 0, oob_fill = 0;
  int type = -1;  // -1: the tensor is absent
  std::vector<CppText> shape, strides, box, element_strides;
};

struct CppField;

// One item of an argument list, and what the kernel's parameter takes.
struct CppArgument : CppText {
  Type type = Type::Int;
  std::string encoding;       // "pointer", "integer", "half", "bfloat16", "float", "double"
  int64_t low = 0, high = 0;  // integers: what fits
  int precision = 0;          // of a floating-point type: bits of the significand
  std::string
      parameter;      // for messages: "`int`", "of 4 bytes"; for a library's function its C type
  std::string where;  // for messages: "mylib::f: argument 2 `n`"

  std::string dlpack;  // of a tensor that is passed whole: its DLDataType, "{2, 32, 1}"
  std::shared_ptr<const CppTensorMap> map;  // of a tensor map

  // Of a struct, or of a tensor map that is the parameter, as its only field
  int64_t size = 0;  // bytes; 0: neither
  std::vector<CppField> fields;
};

// One field of a struct that an argument list fills; what no field fills is zero.
struct CppField {
  CppArgument value;
  int64_t offset = 0;
  int width = 0;
  int64_t count = 1;            // of an int[]: items of the array
  bool may_have_fewer = false;  // of an int[]
};

// What a generated C++ wrapper needs to launch one kernel or function without this runtime: its
// code compiled, its launch rule as C++.
struct CppLaunch {
  std::string entry, symbol;
  std::vector<std::shared_ptr<const Image>> images;  // device code: one for each arch asked for
  std::shared_ptr<const HostFunction> host;          // host code that is shipped with the wrapper
  std::string library;  // path of the library that holds the symbol, which is called directly
  bool takes_tensors = false;                 // KindFacts::takes_tensors
  std::string matmul;                         // WrapperHostCode::matmul
  std::vector<CppText> grid, block, cluster;  // CUDA: three each; cluster empty when not used
  CppText shared;
  std::vector<CppArgument> args;
};

struct CppScratch {
  std::string name, place;  // place: begins errors
  std::vector<CppText> shape;
  std::vector<bool> lists;  // of each item of the shape: whether it is a list of sizes
  DType dtype = DType::Float32;
  ScratchRule::Content content = ScratchRule::Content::Undefined;
};

struct CppImplementation {
  std::vector<CppLaunch> steps;
  // In the order of their memory: what is zeroed by each launch, what is left at zero, what is
  // undefined, random numbers.
  std::vector<CppScratch> scratch;
  std::vector<std::string> reads;    // symbols that any expression of the implementation refers to
  std::vector<std::string> shaped;   // of those, tensors of which more than the address is read
  std::vector<std::string> strided;  // of those, tensors of which the strides are read
};

// One implementation of one op, ready to launch on any device of its kind. Thread-safe. The steady
// path takes no lock, allocates nothing and looks nothing up: template arguments are compared with
// those of the last instance on the device.
class PreparedLaunch {
 public:
  PreparedLaunch(std::string op, std::shared_ptr<const Implementation> implementation,
                 std::vector<Symbol> symbols);
  ~PreparedLaunch();

  // Bytes of memory on the device that a launch with these arguments uses while it runs: its
  // scratch tensors. Throws Launch.
  bool needs_workspace() const { return needs_workspace_; }
  int64_t workspace_bytes(const Arg* args, Device device) const;

  // `args`: inputs then outputs, in schema order; already checked against requirements. `stream`:
  // CUstream, ignored on CPU. `workspace`: of workspace_bytes(), aligned to kScratchAlignment or as
  // torch aligns memory; it may be used again by whatever comes later on the stream. Throws
  // Compile, Launch, Driver, or Capture (a load is needed while `stream` is captured).
  void launch(const Arg* args, Device device, void* stream, void* workspace = nullptr);

  // The same, but false and nothing done where something must be compiled or loaded first: for
  // callers that hold a lock (Python's) they would rather release for that.
  bool launch_if_loaded(const Arg* args, Device device, void* stream, void* workspace = nullptr);

  // Counts a call of a Python function, which the caller makes: there is nothing to launch.
  void count_call();

  // Adds the host time of one call. Calls that compile or load something are not timed.
  void add_host_time(int64_t nanoseconds);

  // Compiles and loads what `launch` with these arguments would need.
  void warmup(const Arg* args, Device device);

  // Compiles one step for a named arch without a device: image only. Empty arch: this is host code.
  std::shared_ptr<const Image> compile(const Arg* args, const std::string& arch, size_t step = 0);

  // The implementation for the template arguments of `args`, which must not change from launch to
  // launch; device code for each arch ("sm_90a", "compute_90" for PTX). Throws as `compile` does,
  // and Compile for a parameter whose encoding only the loaded kernel tells.
  CppImplementation cpp(const Arg* args, const std::vector<std::string>& archs);

  // Compiles a step for each arch, checks the signature and computes what a launch would take,
  // without a device. A required argument, and a result, may be Arg::Kind::None: it is not known,
  // and what depends on it is left out; where template arguments read a dtype, one that fits is
  // assumed. Errors of the user's code become a `problem`. Not for Python functions.
  LaunchCheck check_code(const Arg* given, const std::vector<std::string>& archs, size_t step = 0);

  LaunchPlan plan(const Arg* args, size_t step = 0) const;
  LaunchStats stats() const;  // of all steps together
  // SourceDigest::digest of what has been compiled of a step; "" when nothing has been
  std::string sources(size_t step = 0) const;
  // Whether it was to be compiled, and never could be as a whole: no launch has used it.
  bool never_compiled() const;
  void note_failure();  // records that compiling it failed elsewhere
  const Implementation& implementation() const { return *implementation_; }

  struct State;

 private:
  bool run(const Arg* args, Device device, void* stream, void* workspace, bool may_load);
  bool run_steps(const Arg* args, Device device, void* stream, void* workspace, bool may_load);
  State& state(size_t step) const { return step == 0 ? *state_ : *later_[step - 1]; }
  std::string op_;
  std::shared_ptr<const Implementation> implementation_;
  std::vector<Symbol> symbols_;                   // of the op
  bool needs_workspace_ = false, plain_ = false;  // plain: one step without scratch
  std::unique_ptr<State> state_;                  // of the first step
  std::vector<std::unique_ptr<State>> later_;     // of the others
  std::unique_ptr<const ScratchRules> scratch_;
  std::unique_ptr<standalone::KeptZeros> kept_;  // for scratch tensors that are left at zero
};

// Checks that a kernel's parameters can take the argument list; throws Compile, naming the
// argument's index, expression and type or dtype, and the parameter's type. `args`: as for launch;
// tensor dtypes are read from it, an absent optional is not checked. Symbols marked `written` may
// not go to a pointer to const.
void check_signature(const std::string& op, const Implementation& implementation,
                     const std::vector<Symbol>& symbols, const Entry& entry, const Arg* args);

}  // namespace opaq
