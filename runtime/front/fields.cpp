// Texts of a declaration from a tree of fields.
#include "front/fields.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "base/warnings.h"
#include "compile/image.h"

namespace opaq::front {
namespace {

std::string_view text_of(const opaq_field& field) { return {field.text, field.size}; }

bool flag(const opaq_field& of, std::string_view key) { return !text(of, key).empty(); }

int number(const opaq_field& of, std::string_view key) {
  const std::string given = text(of, key, "0");
  int value = 0;
  const auto [end, error] = std::from_chars(given.data(), given.data() + given.size(), value);
  if (error != std::errc() || end != given.data() + given.size())
    fail(ErrorKind::Declaration,
         std::string(key) + ": got '" + given + "'; expected an int of 32 bits");
  return value;
}

class Reader {
 public:
  Reader(std::string where, const std::string& folder)
      : where_(std::move(where)), folder_(folder) {}

  std::string in_folder(const std::string& path) const {
    return path.empty() || path.front() == '/' || folder_.empty() ? path : folder_ + "/" + path;
  }

  std::string read(const std::string& path) const {
    std::ifstream in(path, std::ios::binary);
    std::string content{std::istreambuf_iterator<char>(in), {}};
    if (!in.is_open() || in.bad())
      fail(ErrorKind::Declaration, where_ + ": cannot read " + path + ": " + std::strerror(errno));
    return content;
  }

  // The code of an implementation or a step: given, or in a file, or in several files.
  void read_code(const opaq_field& fields, ImplementationText& result) const {
    result.code = text(fields, "code");
    result.file = in_folder(text(fields, "file"));
    if (find(fields, "code") == nullptr && !result.file.empty()) result.code = read(result.file);
    const opaq_field* images = find(fields, "images");
    if (images == nullptr) return;
    std::vector<std::string> bytes, paths;
    for (size_t i = 0; i < images->count; ++i) {
      paths.push_back(in_folder(std::string(text_of(images->fields[i]))));
      bytes.push_back(read(paths.back()));
    }
    std::vector<ArchImage> set;
    for (size_t i = 0; i < images->count; ++i)
      set.push_back({images->fields[i].key, paths[i], bytes[i]});
    result.code = write_image_set(set);
  }

 private:
  const std::string where_;
  const std::string& folder_;
};

ScratchText scratch_text(const opaq_field& fields) {
  return {text(fields, "name"),  text(fields, "like"), text(fields, "shape"), text(fields, "dtype"),
          flag(fields, "zeros"), flag(fields, "once"), text(fields, "random")};
}

// A function of the library that declares the op: its address and its type as typeid names it.
void read_function(const opaq_field& fields, ImplementationText& result) {
  const opaq_field *function = find(fields, "function"), *call = find(fields, "call");
  if (!function || !call) return;
  result.function = function->function;
  result.call = reinterpret_cast<void (*)(void**)>(call->function);
  const std::string mangled = text(fields, "mangled_signature");
  int status = 0;
  char* signature = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  result.signature = signature ? signature : mangled;
  std::free(signature);
  Dl_info info{};
  const void* address = reinterpret_cast<const void*>(result.function);
  const bool found = dladdr(address, &info) != 0;
  const std::string_view path = found && info.dli_fname ? info.dli_fname : "";
  const bool exported = found && info.dli_sname && info.dli_saddr == address;
  result.code = path.substr(path.find_last_of('/') + 1);  // the same library in another folder
  result.entry = exported ? info.dli_sname : "function";
}

// One launch of an implementation; or all of it, but for scratch tensors and steps.
ImplementationText launch_text(const opaq_field& fields, const Reader& reader) {
  ImplementationText result;
  result.name = text(fields, "name");
  result.device = text(fields, "device");
  result.kind = text(fields, "kind");
  reader.read_code(fields, result);
  result.options = texts(fields, "options");
  for (const std::string& folder : texts(fields, "include_dirs"))
    result.include_dirs.push_back(reader.in_folder(folder));
  result.compiler = text(fields, "compiler", "auto");
  result.signature = text(fields, "signature");
  result.entry = text(fields, "entry");
  result.grid = text(fields, "grid", "1");
  result.block = text(fields, "block", "1");
  result.cluster = text(fields, "cluster");
  result.shared = text(fields, "shared", "0");
  result.args = text(fields, "args");
  result.requires_ = texts(fields, "requires");
  result.priority = number(fields, "priority");
  const opaq_field* values = find(fields, "values");
  for (size_t i = 0; values && i < values->count; ++i)
    result.values.emplace_back(values->fields[i].key, std::string(text_of(values->fields[i])));
  const opaq_field* roles = find(fields, "roles");
  for (size_t i = 0; roles && i < roles->count; ++i)
    result.roles.emplace_back(roles->fields[i].key, std::string(text_of(roles->fields[i])));
  result.cooperative = flag(fields, "cooperative");
  result.programmatic = flag(fields, "programmatic");
  return result;
}

}  // namespace

const opaq_field* find(const opaq_field& of, std::string_view key) {
  for (size_t i = 0; i < of.count; ++i) {
    if (of.fields[i].key == key) return &of.fields[i];
  }
  return nullptr;
}

std::string text(const opaq_field& of, std::string_view key, std::string_view otherwise) {
  const opaq_field* field = find(of, key);
  return std::string(field ? text_of(*field) : otherwise);
}

std::vector<std::string> texts(const opaq_field& of, std::string_view key) {
  std::vector<std::string> all;
  const opaq_field* field = find(of, key);
  for (size_t i = 0; field && i < field->count; ++i) all.emplace_back(text_of(field->fields[i]));
  return all;
}

std::vector<OutputText> output_texts(const opaq_field& rules) {
  std::vector<OutputText> all;
  for (size_t i = 0; i < rules.count; ++i) {
    const opaq_field& rule = rules.fields[i];
    all.push_back({text(rule, "name"), text(rule, "like"), text(rule, "shape"), text(rule, "dtype"),
                   text(rule, "strides"), text(rule, "device"), flag(rule, "partial"),
                   flag(rule, "may_overwrite")});
    const opaq_field* counts = find(rule, "counts");
    for (size_t k = 0; counts && k < counts->count; ++k)
      all.back().counts.push_back({counts->fields[k].key, std::string(text_of(counts->fields[k]))});
  }
  return all;
}

ImplementationText implementation_text(const opaq_field& fields, const std::string& effects,
                                       const std::string& folder) {
  const std::string where = text(fields, "where");
  const Reader reader(where, folder);
  ImplementationText result = launch_text(fields, reader);
  if (const opaq_field* scratch = find(fields, "scratch")) {
    for (size_t i = 0; i < scratch->count; ++i) {
      result.scratch.push_back(scratch_text(scratch->fields[i]));
      if (!result.scratch.back().random.empty() && effects.empty())
        fail(ErrorKind::Declaration,
             where + ": scratch '" + result.scratch.back().name +
                 "' holds random numbers; declare the op with opaq.op(..., effects=\"random\"), so "
                 "that compiled graphs do not merge its calls");
    }
  }
  if (const opaq_field* steps = find(fields, "steps")) {
    for (size_t i = 0; i < steps->count; ++i)
      result.steps.push_back(launch_text(steps->fields[i], reader));
  }
  if (result.kind.empty() && !result.steps.empty()) {  // each step has its own code
    for (size_t i = 0; i < result.steps.size(); ++i) {
      if (result.steps[i].kind.empty())
        fail(ErrorKind::Declaration, where + ": step " + std::to_string(i + 1) +
                                         " has no code; give it source=, or give source= to the "
                                         "implementation");
    }
    result.kind = result.steps.front().kind;
  }
  if (result.kind == "function") read_function(fields, result);
  return result;
}

}  // namespace opaq::front
