// Kinds of implementations. A kind is one object of a class in a file of this room: it says what a
// declaration of that kind holds, and how its code is prepared for a launch or a generated C++
// wrapper. Other rooms ask it and never compare kinds. A new kind is one new file, and its name in
// the list of kinds.cpp.
//
// Kinds are constant, live as long as the process, and may be used by several threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "compile/image.h"
#include "spec/expressions.h"
#include "spec/spec.h"

namespace opaq {

// What is the same for all implementations of a kind.
struct KindFacts {
  std::string_view name;     // as in ImplementationText::kind: "source"
  std::string_view article;  // in messages: "a library"
  std::string_view code;     // what a declaration gives as code: "library path"; "": no code
  std::vector<DeviceType> devices;

  bool kernel = false;    // the driver launches it, with a grid; else it is a function on the host
  bool compiled = false;  // here, by a compiler or a linker that takes options
  bool source = false;    // from source, which tells layouts of structs; takes include folders
  bool native = true;     // launched with an entry and an argument list; else Python calls it
  bool takes_signature = false;  // a declaration may give the function's C signature
  bool takes_tensors = false;    // a function that is given tensors and no addresses
  bool takes_roles = false;      // ImplementationText::roles in the place of an argument list
  std::vector<std::string> compilers = {};  // that a declaration may name, beside "auto"
};

// Host code, ready to be called.
struct HostCode {
  std::shared_ptr<const HostFunction> function;  // its `invoke` takes pointers to the arguments
  std::vector<ParamType> params;                 // of the argument list

  // The address of a library's function. Then `invoke` takes a pointer to it before the arguments,
  // and on CUDA a pointer to the stream after them. 0: the arguments alone.
  uint64_t address = 0;
};

// What a generated C++ wrapper calls in the place of HostCode.
struct WrapperHostCode {
  std::shared_ptr<const HostFunction> function;  // to be shipped; nullptr: there is a path
  std::string path;                              // of the library that holds the symbol
  std::string symbol;
  std::vector<ParamType> params;  // of the argument list
  std::string matmul;             // a MatmulRule's text: cuBLASLt is called, and nothing shipped
};

class Kind : public KindFacts {
 public:
  explicit Kind(KindFacts facts) : KindFacts(std::move(facts)) {}
  Kind(const Kind&) = delete;
  virtual ~Kind() = default;

  bool runs_on(DeviceType device) const;

  // ---- declarations ----

  // The kind of a declaration that names this one and gives this code.
  virtual const Kind& of_code(std::string_view code) const;

  // The declaration as other kinds are given it: code, entry, argument list, scratch and
  // requirements of what this kind is declared by (ImplementationText::roles). owner: begins
  // errors. Throws Declaration.
  virtual ImplementationText completed(ImplementationText text, const std::string& owner) const;

  // Checks a declaration of this kind, whose parts have been parsed. Throws Declaration, through
  // `scope`.
  virtual void check(const spec::Scope& scope, const Implementation& implementation) const;

  // An implementation's code as messages show it: its size and digest, unless it is short.
  virtual std::string code_in_messages(const std::string& code) const;

  // ---- code ----
  // `op` names the op in errors. `entry`: the entry template, filled.

  // The digest of the source and everything that it includes, as it would be compiled now. Both
  // strings are empty for code that is not compiled from source. Throws Compile, or Missing (no
  // compiler).
  virtual SourceDigest sources(const Implementation& implementation) const;

  // For kernels that are not compiled here: the targets of the images that the declaration brings,
  // as in Image::arch.
  virtual std::vector<std::string> archs(const Implementation& implementation) const;

  // Kernels only: device code that holds the entry. `arch`: what it is compiled for ("sm_90a";
  // "compute_90" for PTX), or one of `archs`. Throws Compile, Declaration (the entry is not in it),
  // Missing.
  virtual std::shared_ptr<const Image> image(const Implementation& implementation,
                                             const std::string& entry,
                                             const std::string& arch) const;

  // Host functions only. Throws Compile, Declaration (there is no such symbol), Missing (a compiler
  // or a library).
  virtual HostCode host_code(const std::string& op, const Implementation& implementation,
                             const std::string& entry) const;

  // The same for generated C++ wrappers. Compiled kinds ship the code of `host_code`, which is the
  // default; other kinds with host code override this, too.
  virtual WrapperHostCode wrapper_code(const std::string& op, const Implementation& implementation,
                                       const std::string& entry) const;

  // What to add to WrapperHostCode::matmul where calls like this one are expected: what the library
  // chooses for it now. values: as HostFunction::invoke takes them. The device's context is
  // current. Throws Launch, Missing.
  virtual std::string known_algorithm(const Implementation& implementation, void** values) const;

  // The library without which this machine can run no implementation of this kind: why it was not
  // found, and what to do. "" where nothing is missing, and for kinds that need none.
  virtual std::string missing_library() const;
};

// Those that declarations name, in the order in which messages list them. (Kind::of_code may give
// others.)
const std::vector<const Kind*>& kinds();

// Finds the kind, parses and checks the declaration. Throws Declaration, naming op, field, what was
// given and what is accepted.
Implementation make_implementation(const OpSpec& op, const ImplementationText& text);

}  // namespace opaq
