// Host C++ source to a loaded function: disk cache, else the system's C++ compiler.
#include <dlfcn.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/settings.h"
#include "base/sha256.h"
#include "base/shared_state.h"
#include "base/single_flight.h"
#include "cache/cache.h"
#include "compile/image.h"
#include "cxx.h"
#include "diagnostics.h"
#include "host_types.h"
#include "includes.h"
#include "layout.h"
#include "loaded.h"
#include "options.h"
#include "param_types.h"
#include "private_folder.h"
#include "process.h"
#include "record.h"
#include "stats.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFormat = "opaq host library 3";

// The function takes an array of pointers to its arguments, and tells its parameters one by one:
// size (with a flag for enumerations), and the name of the type within the compiler's text for the
// function that knows it.
constexpr std::string_view kTrailer = R"(
namespace opaq_host {
template <unsigned... I> struct Indices {};
template <unsigned N, unsigned... I> struct Count : Count<N - 1, N - 1, I...> {};
template <unsigned... I> struct Count<0, I...> { using Type = Indices<I...>; };
template <class T> struct IsVoid { static constexpr bool value = false; };
template <> struct IsVoid<void> { static constexpr bool value = true; };
template <class T> struct IsReference { static constexpr bool value = false; };
template <class T> struct IsReference<T&> { static constexpr bool value = true; };
template <class T> struct IsReference<T&&> { static constexpr bool value = true; };
template <bool...> struct Flags;
template <bool... B> struct Any {
  static constexpr bool value = !__is_same(Flags<B..., false>, Flags<false, B...>);
};
template <class T> const char* name() { return __PRETTY_FUNCTION__; }
template <class R, class... P, unsigned... I>
void call(R (*function)(P...), void** arguments, Indices<I...>) {
  static_assert(IsVoid<R>::value,
                "opaq: the entry returns a value; expected void, with results written through "
                "pointers");
  static_assert(!Any<IsReference<P>::value...>::value,
                "opaq: a parameter of the entry is a reference; expected pointers, numbers or "
                "plain structs");
  (void)arguments;
  function(*static_cast<P*>(arguments[I])...);
}
template <class R, class... P> void call(R (*function)(P...), void** arguments) {
  call(function, arguments, typename Count<sizeof...(P)>::Type{});
}
template <class R, class... P> unsigned parameter(R (*)(P...), unsigned index, const char** text) {
  const char* const names[] = {name<P>()..., nullptr};
  const unsigned sizes[] = {(sizeof(P) | (__is_enum(P) ? 1u << 30 : 0u))..., 0u};
  if (index >= sizeof...(P)) return 0;
  *text = names[index];
  return sizes[index];
}
}
)";
constexpr unsigned kEnumFlag = 1u << 30;

SingleFlight<HostFunction>& compilations() {
  static SingleFlight<HostFunction>& instance = *new SingleFlight<HostFunction>(
      /*keep=*/true);  // what is loaded stays loaded: once is enough
  return instance;
}

struct Job {
  const HostRequest& request;
  std::string file;
  std::string basename;
  std::vector<std::string> compiler;  // and its leading arguments: CXX may be "ccache g++"
  IncludeSearch search;
  OptionFacts facts;
};

Job make_job(const HostRequest& request) {
  Job job{request, request.file.empty() ? "<opaq source>" : request.file,
          {},      cxx_command(),
          {},      read_options(request.options)};
  std::replace_if(
      job.file.begin(), job.file.end(), [](unsigned char c) { return std::iscntrl(c); }, ' ');
  job.basename = fs::path(job.file).filename().string();
  if (job.compiler.empty()) {
    fail(ErrorKind::Missing, "no C++ compiler for " + job.basename +
                                 " was found: neither c++, g++ nor clang++ is on PATH; " +
                                 kCxxAdvice);
  }
  job.search.folder = ".";
  if (!request.file.empty()) {
    if (auto folder = fs::path(job.file).parent_path().string(); !folder.empty())
      job.search.folder = folder;
  }
  // The source is compiled in a folder of its own, so #include "..." of the source finds its true
  // folder through the search path.
  job.search.dirs.push_back(job.search.folder);
  job.search.dirs.insert(job.search.dirs.end(), request.include_dirs.begin(),
                         request.include_dirs.end());
  job.search.dirs.insert(job.search.dirs.end(), job.facts.dirs.begin(), job.facts.dirs.end());
  // Not all that the compiler searches, but where headers that __has_include asks for come and go;
  // the compiler names the rest itself.
  job.search.toolkit = {"/usr/local/include", "/usr/include"};
  return job;
}

std::string processor_identity() {
  std::ifstream in("/proc/cpuinfo");
  std::string identity, line;
  while (std::getline(in, line) && !line.empty()) {  // the first processor
    for (const char* field : {"model name", "flags", "Features", "CPU implementer", "CPU part"}) {
      if (line.starts_with(field)) identity += line + '\n';
    }
  }
  return identity;
}

// What defines the types that stand for {x.dtype}: our own, where the source or the entry may use
// them, and the standard library's complex numbers, where the entry does.
std::string types_for(const Job& job) {
  const auto uses_ours = [](std::string_view text) {
    return text.find("opaq::") != std::string_view::npos;
  };
  std::string types;
  if (job.request.entry.find("std::complex") != std::string::npos) types += "#include <complex>\n";
  if (uses_ours(job.request.source) || uses_ours(job.request.entry))
    types += public_header("opaq/host_types.h");
  return types;
}

SourceDigest digest_of(const Job& job, const IncludeClosure& closure) {
  utsname machine{};
  uname(&machine);
  Sha256 hash;
  hash.field(kFormat)
      .field(job.request.source)
      .field(job.facts.embeds_paths ? job.file : job.basename);
  hash.field(cxx_identity())
      .field(machine.machine)
      .field(job.facts.native ? processor_identity() : "")
      .field(closure.digest);
  for (const std::string& option : job.request.options) {
    hash.field(option);
    if (!option.starts_with('-')) hash.field(file_stamp(option));  // a library or object to link
  }
  return {hash.hex(), job.facts.opaque.empty() ? closure.computed : job.facts.opaque};
}

IncludeClosure closure_of(const Job& job) {
  return include_closure(job.request.source, job.basename, job.search, job.facts.forced);
}

std::string key_of(const Job& job, const SourceDigest& sources) {
  Sha256 hash;
  hash.field(sources.digest).field(job.request.entry).field(types_for(job));
  if (job.request.layouts) hash.field("layouts");
  return hash.hex();
}

std::string source_text(const Job& job) {
  const std::string& entry = job.request.entry;
  std::string types = types_for(job);
  if (!types.empty()) types = "#line 1 \"opaq: element types\"\n" + types;
  return types + "#line 1 \"" + escaped(job.file) + "\"\n" + job.request.source + "\n\n#line 1 \"" +
         std::string(kCallPlace) + escaped(entry) + "\"" + std::string(kTrailer) +
         "extern \"C\" __attribute__((visibility(\"default\"))) void opaq_invoke(void** arguments) "
         "{\n" +
         "  opaq_host::call(" + entry + ", arguments);\n}\n" +
         "extern \"C\" __attribute__((visibility(\"default\"))) unsigned opaq_parameter(unsigned "
         "index, const char** text) {\n" +
         "  return opaq_host::parameter(" + entry + ", index, text);\n}\n";
}

struct Library {
  std::string bytes;
  Record record;
};

// `more`: for the end of the source, and options for the end of the list.
Library compile(const Job& job, const IncludeClosure& closure, const std::string& trailer = "",
                const std::vector<std::string>& more = {}) {
  PrivateFolder folder;
  const std::string source = folder.path() + "/source.cpp", library = folder.path() + "/library.so";
  const std::string output = folder.path() + "/log", dependencies = folder.path() + "/dependencies";
  write_source(source, source_text(job) + trailer, job.basename);

  std::vector<std::string> arguments = job.compiler;
  for (const char* option : {"-std=c++20", "-O3", "-shared", "-fPIC"})
    arguments.emplace_back(option);
  arguments.insert(arguments.end(), {"-MD", "-MF", dependencies, "-iquote", job.search.folder});
  for (const std::string& dir : job.request.include_dirs) arguments.push_back("-I" + dir);
  arguments.insert(arguments.end(), {source, "-o", library});
  arguments.insert(arguments.end(), job.request.options.begin(),
                   job.request.options.end());  // libraries come after what needs them
  arguments.insert(arguments.end(), more.begin(), more.end());

  const ProcessResult result = run_process(arguments, folder.path());
  if (result.start_error != 0) {
    fail(ErrorKind::Missing, "the C++ compiler '" + job.compiler[0] + "' for " + job.basename +
                                 " cannot be started: " + std::strerror(result.start_error) + "; " +
                                 kCxxAdvice);
  }
  Library made;
  made.bytes = file_text(library);
  made.record.log = file_text(output);
  if (!result.succeeded || made.bytes.empty()) {
    std::string log =
        made.record.log.empty() ? result.ending + ", and nothing was printed" : made.record.log;
    log += lack_of_space(folder.path());
    fail(ErrorKind::Compile,
         host_failure(job.basename, fs::path(job.compiler.back()).filename().string(), log,
                      job.request.source, job.request.entry));
  }
  made.record.files = outside_files(file_text(dependencies), closure.files, {folder.path()});
  return made;
}

// "const char* opaq_host::name() [with T = const float*]", "... [T = const float *]"
std::string type_name(std::string_view function) {
  const size_t begin = function.find("T = ");
  const size_t end = function.rfind(']');
  return begin == std::string_view::npos || end == std::string_view::npos || end < begin + 4
             ? ""
             : std::string(function.substr(begin + 4, end - begin - 4));
}

std::shared_ptr<HostFunction> load(const Library& library, const Job& job) {
  void* handle = load_library(library.bytes, "the library compiled from " + job.basename);
  auto function = std::make_shared<HostFunction>();
  function->library = library.bytes;
  function->invoke = reinterpret_cast<void (*)(void**)>(dlsym(handle, "opaq_invoke"));
  const auto parameter =
      reinterpret_cast<unsigned (*)(unsigned, const char**)>(dlsym(handle, "opaq_parameter"));
  if (function->invoke == nullptr || parameter == nullptr) {
    fail(ErrorKind::Compile,
         "the library compiled from " + job.basename +
             " hides opaq_invoke; leave out options that choose the exported symbols");
  }
  const char* text = nullptr;
  for (unsigned i = 0, size; (size = parameter(i, &text)) != 0; ++i) {
    function->params.push_back(
        parse_type(type_name(text), static_cast<int>(size & ~kEnumFlag), (size & kEnumFlag) != 0));
  }
  return function;
}

// Structs with their fields, as the compiler's debug information tells them: the source is compiled
// a second time, without optimization.
std::vector<ParamType> layouts(const Job& job, const IncludeClosure& closure,
                               std::vector<ParamType> params) {
  const Library debug =
      compile(job, closure, layout_trailer(job.request.entry, params.size()),
              {"-O0", "-g", "-gdwarf-4", "-gz=none", "-gno-split-dwarf", "-fno-lto"});
  const std::string what = "the debug information of " + job.basename;
  const std::vector<ParamType> told = read_host_layouts(debug.bytes, params.size(), what);
  for (size_t i = 0; i < params.size(); ++i) {
    if (params[i].kind != ParamType::Kind::Struct) continue;
    if (told[i].size != params[i].size)
      fail(ErrorKind::Compile, what + " does not tell the struct `" + params[i].text + "`");
    params[i].fields = told[i].fields;
  }
  return params;
}

std::shared_ptr<HostFunction> compile_and_load(const Job& job, const IncludeClosure& closure,
                                               const std::string& key) {
  const auto start = std::chrono::steady_clock::now();
  Library library = compile(job, closure);
  auto function = load(library, job);
  if (job.request.layouts) {
    function->params = layouts(job, closure, std::move(function->params));
    library.record.entries.push_back({.name = job.request.entry, .params = function->params});
  }
  function->seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  count_compiled(function->seconds);
  // A stored library will be executed: only a folder that nobody else can write to may hold it.
  if (!key.empty() && disk_cache().usable())
    disk_cache().put(key, {write_record(library.record), library.bytes});
  return function;
}

std::shared_ptr<HostFunction> from_disk(const Job& job, const std::string& key) {
  if (!disk_cache().usable()) return nullptr;
  auto cached = disk_cache().get(key);
  if (!cached) return nullptr;
  auto record = read_record(cached->metadata);
  if (!record || !files_unchanged(*record)) return nullptr;
  if (job.request.layouts && record->entries.size() != 1) return nullptr;
  auto function = load({std::move(cached->image), *record}, job);
  if (job.request.layouts) function->params = std::move(record->entries[0].params);
  function->from_cache = true;
  count_disk_hit();
  return function;
}

}  // namespace

SourceDigest source_digest(const HostRequest& request) {
  const Job job = make_job(request);
  return digest_of(job, closure_of(job));
}

std::shared_ptr<const HostFunction> compile_host(const HostRequest& request) {
  const Job job = make_job(request);
  const IncludeClosure closure = closure_of(job);
  const SourceDigest sources = digest_of(job, closure);
  const auto with_sources =
      [&](std::shared_ptr<HostFunction> function) -> std::shared_ptr<const HostFunction> {
    function->sources = sources.digest;
    return function;
  };
  if (!sources.unknown.empty()) return with_sources(compile_and_load(job, closure, ""));
  const std::string key = key_of(job, sources);
  return compilations().run(key, [&]() -> std::shared_ptr<const HostFunction> {
    if (auto function = from_disk(job, key)) return with_sources(std::move(function));
    const Cache::Turn turn = disk_cache().turn(key);
    if (disk_cache().holds(key)) {  // another process has compiled it meanwhile
      if (auto function = from_disk(job, key)) return with_sources(std::move(function));
    }
    return with_sources(compile_and_load(job, closure, key));
  });
}

}  // namespace opaq
