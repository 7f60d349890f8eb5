// The blocks of declarations that shared libraries bring.
#include "front/library.h"

#include <dlfcn.h>
#include <opaq/version.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/shared_state.h"
#include "base/warnings.h"
#include "front/fields.h"
#include "registry/lists.h"
#include "torch/dispatcher.h"

namespace opaq::front {
namespace {

struct Kept {  // guarded by shared_state(); never destroyed
  std::vector<LibraryOp> ops;
  std::vector<std::string> failures;
};

Kept& kept() {
  static auto& instance = *new Kept;
  return instance;
}

std::atomic<void (*)()> told_hook{nullptr};

// An error whose message begins with the place of what was declared.
struct Placed : Error {
  using Error::Error;
};

// `work()`, whose errors are Placed.
template <class Work>
auto at(const opaq_field& declared, Work&& work) {
  try {
    return work();
  } catch (const Placed&) {
    throw;
  } catch (const Error& error) {
    throw Placed(error.kind, text(declared, "place") + ": " + error.what());
  }
}

struct Declaration {
  const opaq_field* fields;
  std::string schema;
  std::vector<OutputText> outputs;
  std::vector<std::pair<const opaq_field*, ImplementationText>> implementations;
  LibraryOp op;
};

// A kernel is rarely meant to run as one block, or as one thread.
void check_size_given(const opaq_field& implementation) {
  if (text(implementation, "device") != "cuda" || find(implementation, "steps")) return;
  const std::string kind = text(implementation, "kind");
  if (kind != "source" && kind != "binary") return;
  for (const char* size : {"grid", "block"}) {
    if (!find(implementation, size))
      fail(ErrorKind::Declaration, text(implementation, "where") + ": " + size +
                                       " is not given; say how many, as in ." + size +
                                       " = \"ceil_div(x.numel(), 256)\", or ." + size + " = 1");
  }
}

Declaration read(const opaq_field& fields, const std::string& library) {
  Declaration made{&fields, text(fields, "schema"), {}, {}, {}};
  if (const opaq_field* outputs = find(fields, "outputs")) made.outputs = output_texts(*outputs);
  made.op = {.name = "",
             .library = library,
             .place = text(fields, "place"),
             .effects = text(fields, "effects"),
             .tags = texts(fields, "tags"),
             .backward = text(fields, "backward"),
             .saves = text(fields, "saves"),
             .reference = text(fields, "reference")};
  if (!made.op.effects.empty() && made.op.effects != "ordered" && made.op.effects != "random")
    fail(ErrorKind::Declaration, made.schema.substr(0, made.schema.find('(')) + ": got effects='" +
                                     made.op.effects +
                                     "'; expected \"random\", \"ordered\", or none for a function "
                                     "of its arguments");
  const std::string folder = library.substr(0, library.find_last_of('/'));
  if (const opaq_field* all = find(fields, "implementations")) {
    for (size_t i = 0; i < all->count; ++i) {
      const opaq_field& each = all->fields[i];
      made.implementations.emplace_back(&each, at(each, [&] {
        check_size_given(each);
        return implementation_text(each, made.op.effects, folder);
      }));
    }
  }
  return made;
}

void check(const Declaration& declared) {
  DeclarationCheck check(declared.schema, declared.outputs);
  for (const auto& [fields, text] : declared.implementations)
    at(*fields, [&, &text = text] { check.add(text); });
}

void register_op(Declaration& declared) {
  const OpSpec spec = make_op(declared.schema, declared.outputs);
  const bool known = find_op(spec.schema.qualname()) != nullptr;
  Op& op = declare(declared.schema, declared.outputs, false);
  declared.op.name = op.name();
  if (!known) {
    try {
      define_with_torch(op);
    } catch (...) {
      forget(op);
      throw;
    }
    if (!declared.op.reference.empty()) set_has_reference(op, declared.op.reference);
  }
  for (const auto& [fields, text] : declared.implementations) implement(op, text, false);
  const std::lock_guard lock(shared_state());
  for (LibraryOp& each : kept().ops) {
    if (each.name == declared.op.name && each.library == declared.op.library) return;
  }
  kept().ops.push_back(declared.op);
}

// Whether a library lies in a package of AOTInductor, which has unpacked it for its functions
// alone: the package launches them itself, and does not hold what else the declarations need.
bool in_package(const std::string& library) {
  return std::ifstream(library.substr(0, library.find_last_of('/')) + "/opaq.json").is_open();
}

std::string file_of(const void* inside) {
  Dl_info info{};
  if (dladdr(inside, &info) == 0 || info.dli_fname == nullptr) return "";
  char* real = realpath(info.dli_fname, nullptr);
  const std::string path = real ? real : info.dli_fname;
  std::free(real);
  return path;
}

// ---- processes with Python ----------------------------------------------------------------------

// The runtime does not link Python. Where Python is in the process, its functions are found by
// name.

template <class F>
F* python_function(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name));
}

bool in_python() {
  const auto is_initialized = python_function<int()>("Py_IsInitialized");
  return is_initialized && is_initialized() != 0;
}

// Imports opaq, which then adopts the ops. Runs in Python's main thread, with the GIL.
int import_opaq(void*) {
  void* module = python_function<void*(const char*)>("PyImport_ImportModule")("opaq");
  if (module) {
    python_function<void(void*)>("Py_DecRef")(module);
    return 0;
  }
  const std::vector<std::string> failures = take_failures();
  if (failures.empty()) {  // without opaq's Python package, the ops serve eager calls
    python_function<void()>("PyErr_Print")();
    return 0;
  }
  void* type = *static_cast<void**>(dlsym(RTLD_DEFAULT, "PyExc_RuntimeError"));
  python_function<void(void*, const char*)>("PyErr_SetString")(type, failures.front().c_str());
  return -1;
}

void tell() {
  if (auto* told = told_hook.load(std::memory_order_acquire)) return told();
  if (in_python()) {
    python_function<int(int (*)(void*), void*)>("Py_AddPendingCall")(import_opaq, nullptr);
    return;
  }
  for (const std::string& warning : take_warnings())
    std::fprintf(stderr, "opaq: warning: %s\n", warning.c_str());
  const std::vector<std::string> failures = take_failures();
  for (const std::string& failure : failures) std::fprintf(stderr, "opaq: %s\n", failure.c_str());
  if (!failures.empty()) std::abort();
}

}  // namespace

void declare_block(const opaq_field& block, const void* inside) {
  const std::string library = file_of(inside), built = text(block, "version");
  const auto minor = [](const std::string& v) { return v.substr(0, v.find_last_of('.')); };
  if (minor(built) != minor(OPAQ_VERSION))
    fail(ErrorKind::Declaration,
         text(block, "place") + ": " + library + " was compiled with <opaq/op.h> of opaq " + built +
             ", and the libopaq.so of this process is " + OPAQ_VERSION +
             "; compile the library again with the headers of " + OPAQ_VERSION);
  if (in_package(library)) return;
  std::vector<Declaration> all;
  if (const opaq_field* ops = find(block, "ops")) {
    for (size_t i = 0; i < ops->count; ++i) {
      at(ops->fields[i], [&] {
        all.push_back(read(ops->fields[i], library));
        check(all.back());
      });
    }
  }
  draw_with_torch();
  for (Declaration& each : all) at(*each.fields, [&] { register_op(each); });
}

std::vector<LibraryOp> library_ops() {
  const std::lock_guard lock(shared_state());
  return kept().ops;
}

std::vector<std::string> take_failures() {
  const std::lock_guard lock(shared_state());
  return std::exchange(kept().failures, {});
}

void on_block(void (*told)()) { told_hook.store(told, std::memory_order_release); }

}  // namespace opaq::front

extern "C" void opaq_declare(const opaq_field* block, const void* inside) {
  namespace front = opaq::front;
  try {
    front::declare_block(*block, inside);
  } catch (const std::exception& error) {
    const std::lock_guard lock(opaq::shared_state());
    front::kept().failures.emplace_back(error.what());
  }
  front::tell();
}
