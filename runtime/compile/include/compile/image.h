// Compiled code: NVRTC or nvcc turns CUDA C++ into an image, nvJitLink links one of LTO-IR, the
// system's C++ compiler turns host C++ into a loaded function.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace opaq {

struct FieldType;

// One parameter of a kernel as its signature, its mangled name or its binary tells it.
struct ParamType {
  // Tensor: a DLTensor, by its address.
  enum class Kind : uint8_t { Pointer, Int, UInt, Float, Bool, Struct, Tensor, Unknown };
  Kind kind = Kind::Unknown;
  int size = 0;         // bytes; 0 when unknown
  std::string text;     // C++ spelling, "float const*"; "" when unknown
  std::string pointee;  // for pointers: "float", "__half", "void", ...; "" when unknown
  bool pointee_const = false;
  std::vector<int64_t> extents;   // of a field that is an array: the rest tells of its items
  std::vector<FieldType> fields;  // of a struct whose layout was asked for
};

// A field of a struct. Those of bases and of nameless members are fields of the struct itself.
struct FieldType {
  std::string name;
  int64_t offset = 0;  // bytes, in the struct
  int bits = 0;        // of a bit-field; else 0
  ParamType type;
};

// What a kernel takes, including the functions that it calls without inlining; nullopt where it is
// unknown.
struct Resources {
  std::optional<int64_t> registers;  // of a thread
  std::optional<int64_t> shared;     // static, of a block, in bytes
  std::optional<int64_t> stack;      // of a thread, in bytes; more where functions call themselves
  // Of a thread, in bytes: registers that are kept in memory for want of room.
  std::optional<int64_t> spill_stores, spill_loads;
};

struct Entry {
  std::string name;    // as asked for: "rms_norm<float, 4096>"
  std::string symbol;  // in the image: mangled, or the name itself for extern "C"
  std::vector<ParamType> params;
  bool params_known =
      false;  // false: a binary without a readable signature; sizes come from the driver at load
  std::optional<Resources>
      resources;  // as the compiler told them, or a cubin that the user brought; nullopt for PTX
};

struct Image {
  std::string bytes;     // cubin, fatbin or PTX
  std::string arch;      // "sm_90a"; "sm_80,sm_90" for a fatbin; "" if unknown
  std::string compiler;  // "NVRTC", "nvcc" or "nvJitLink"; "" for what the user brought
  std::vector<Entry> entries;
  std::string log;     // warnings; and why this image is not cached, when an include is computed
                       // (#include MACRO)
  double seconds = 0;  // spent compiling; 0 from a cache
  bool from_cache = false;
  std::string key;  // cache key, 64 hex digits
  std::string
      sources;  // SourceDigest::digest of what it was compiled from; "" for what the user brought

  // Of an entry; nullopt where they are unknown.
  std::optional<Resources> resources(std::string_view entry) const;
};

// Everything beside entry and architecture that decides what a source compiles to: its text, the
// headers that it includes, options and compiler. Two looks with equal digests would compile the
// same.
struct SourceDigest {
  std::string digest;
  std::string unknown;  // why some of it cannot be known before compiling ("k.cu: #include MACRO"),
                        // so that nothing may be kept; else ""
};

// Which compiler serves a CUDA source. Auto: NVRTC, and nvcc for what NVRTC refuses.
enum class CudaCompiler : uint8_t { Auto, Nvrtc, Nvcc };

struct CudaRequest {
  std::string source;
  std::string file;  // name in diagnostics; its folder is searched for #include "..."
  std::vector<std::string> entries;  // name expressions
  std::string arch;                  // "sm_90a"; "compute_90" gives PTX
  std::vector<std::string> options;
  std::vector<std::string> include_dirs;
  bool layouts = false;  // whether the fields of structs that entries take are asked for, too
  CudaCompiler compiler = CudaCompiler::Auto;
};

// Entries and arch are not read. With Auto, it changes when either compiler does.
SourceDigest source_digest(const CudaRequest& request);

// Compiles, or takes from the disk cache. Never touches a device. Throws Compile (the message holds
// the compiler's log, or those of both, in the user's file and line, and for an unknown entry the
// names that look like kernels), or Missing when the compiler is not to be found (places searched,
// what to install).
std::shared_ptr<const Image> compile_cuda(const CudaRequest& request);

// Wraps a cubin, fatbin or PTX; `entry` must be among its symbols (checked where the format allows:
// ELF symbol table, PTX text). Parameter types come from the mangled name or from PTX; else
// params_known is false. `arch`: Image::arch; "": as image_archs(bytes).
std::shared_ptr<const Image> binary_image(std::string bytes, std::string_view file,
                                          std::string_view entry, std::string arch = "");

// The targets of an image as its bytes tell them: "sm_90" of a cubin (which does not tell "sm_90a"
// apart), "compute_80" of PTX, "sm_80,sm_90a" of a fatbin; "" if unknown.
std::string image_archs(std::string_view bytes);

// One of several images that the user brings for one kernel.
struct ArchImage {
  std::string arch;        // "sm_90a", "compute_80" for PTX; of one alone, as image_archs
  std::string file;        // "" for bytes
  std::string_view bytes;  // of a cubin or PTX; of one alone, a fatbin too
};

// Images as the code of one implementation. Throws Declaration where a name is no target, or the
// image is for another.
std::string write_image_set(const std::vector<ArchImage>& images);

// What write_image_set wrote, or one image alone. `file`: that of one alone. The code must outlive
// the result.
std::vector<ArchImage> read_image_set(std::string_view code, std::string_view file);

// Device code that is linked with other device code: LTO-IR, relocatable cubins, fatbins and PTX,
// objects and archives of the host with such inside.
struct LinkInput {
  std::string file;  // "" for bytes
  std::string_view bytes;
};

// A list as the code of one implementation. Throws Declaration for what is no device code.
std::string write_link_inputs(const std::vector<LinkInput>& inputs);

// Whether code is to be linked: what write_link_inputs wrote, LTO-IR, or a fatbin with LTO-IR.
bool needs_linking(std::string_view code);

struct LinkRequest {
  std::string_view code;             // which needs_linking; it must outlive the request
  std::string file;                  // that of one input alone
  std::string entry;                 // as binary_image takes it
  std::string arch;                  // "sm_90a"; "compute_90" gives PTX, of LTO-IR alone
  std::vector<std::string> options;  // of nvJitLink
};

// Entry and arch are not read. It changes when nvJitLink does.
SourceDigest source_digest(const LinkRequest& request);

// Links with nvJitLink, or takes the result from the disk cache. Never touches a device. Throws
// Compile (the message holds nvJitLink's log, and for an unknown entry the names of the kernels),
// or Missing when nvJitLink is not to be found.
std::shared_ptr<const Image> link_image(const LinkRequest& request);

// What a kernel uses, by its symbol. All unknown for what is no 64-bit cubin (PTX, a fatbin), is
// cut short or damaged: the bytes may be anything. Nothing is thrown.
Resources cubin_resources(std::string_view bytes, const std::string& symbol);

// How a file that holds an image is called: ".cubin", ".fatbin", ".ptx".
std::string_view image_suffix(std::string_view bytes);

// Reads "void f<...>(float*, float const*, int)" style demangled parameter lists.
std::vector<ParamType> parse_parameters(std::string_view demangled_list);

// A type as a user writes it, with the names of <cstdint>, of streams and of half-precision types
// replaced by what they stand for, as parse_parameters reads them.
std::string spelled_out(std::string_view type);

// A host function, called with an array of pointers to its arguments, as a kernel is.
struct HostFunction {
  void (*invoke)(void** args) = nullptr;
  std::vector<ParamType> params;
  std::string library;  // bytes of the shared object, which exports `invoke` as "opaq_invoke"
  double seconds = 0;
  bool from_cache = false;
  std::string sources;  // as Image::sources
};

struct HostRequest {
  std::string source, file, entry;
  std::vector<std::string> options, include_dirs;
  bool layouts = false;  // as CudaRequest::layouts
};

SourceDigest source_digest(const HostRequest& request);  // the entry is not read

// Compiles host C++ with settings().cxx (no shell) and loads it; the library stays loaded, and
// equal requests share one function. The entry returns void and takes pointers, numbers,
// enumerations or plain structs. Throws Compile or Missing.
std::shared_ptr<const HostFunction> compile_host(const HostRequest& request);

// Headers that come together: a part of CUDA, or PyTorch's for device code.
struct HeaderSet {
  std::string holds;                  // "CCCL"
  std::string folder;                 // where they were found; "" if they were not
  std::string advice;                 // how to get them
  std::vector<std::string> examples;  // headers of it that messages advise to include
};
std::vector<HeaderSet> header_sets();

struct NvrtcInfo {
  bool found = false;
  std::string path, version, why_not;     // version "13.0"
  std::vector<std::string> include_dirs;  // CUDA and CCCL headers in use
  std::vector<std::string> archs;         // supported: "sm_75", ...
};
NvrtcInfo nvrtc_info();

struct NvJitLinkInfo {
  bool found = false;
  std::string path, version, why_not;  // version "13.0"
};
NvJitLinkInfo nvjitlink_info();

struct NvccInfo {
  bool found = false;
  std::string path, version;  // version "13.0"; "" when it cannot be run
  std::string why_not;        // what is wrong: not found, or no match for the CUDA headers in use
  std::vector<std::string> include_dirs;  // CUDA and CCCL headers that it uses
};
NvccInfo nvcc_info();

struct CompileStats {
  int64_t compiled = 0, disk_hits = 0;
  double seconds = 0;
};
CompileStats compile_stats();

}  // namespace opaq
