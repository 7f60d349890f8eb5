// Reports settings, counters, and the software that was found on this machine.
#include <string>

#include "base/settings.h"
#include "cache/cache.h"
#include "choose/choose.h"
#include "driver/driver.h"
#include "functions.h"
#include "kinds/cublaslt.h"
#include "registry/lists.h"

namespace opaq::python {
namespace {

Ref describe_settings() {
  const Settings& s = settings();
  Dict d;
  d.set("cache_dir", s.cache_dir)
      .set("cache_bytes", s.cache_bytes)
      .set("driver", s.driver)
      .set("nvrtc", s.nvrtc)
      .set("nvjitlink", s.nvjitlink)
      .set("nvcc", s.nvcc)
      .set("cxx", s.cxx);
  d.set("compile_threads", int64_t{s.compile_threads})
      .set("library_dirs", s.library_dirs)
      .set("cuda_include_dirs", s.cuda_include_dirs);
  d.set("check", s.check_contract ? "contract" : "");
  return d.take();
}

}  // namespace

PyObject* implementation_stats(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* {
    List list;
    for (const Op* op : all_forms()) {
      for (PreparedLaunch* launch : chooser(*op).all()) {
        const LaunchStats s = launch->stats();
        const bool unused_form = &op->declared() != op && s.calls == 0 && s.compiled == 0;
        if (unused_form) continue;  // made to check a declaration, or to plan a call
        Dict d;
        d.set("op", op->name())
            .set("implementation", launch->implementation().name)
            .set("device", device_type_name(launch->implementation().target));
        d.set("calls", s.calls)
            .set("skipped_empty", s.skipped_empty)
            .set("timed_calls", s.timed_calls)
            .set("host_seconds", s.host_seconds)
            .set("compile_seconds", s.compile_seconds);
        d.set("compiled", s.compiled)
            .set("disk_hits", s.disk_hits)
            .set("compiler", s.compiler)
            .put("spill_bytes", s.spill_bytes ? from(*s.spill_bytes) : none())
            .put("image_bytes", s.image_bytes ? from(*s.image_bytes) : none());
        list.add(d.take());
      }
    }
    return list.take().release();
  });
}

namespace {

template <class Info>
Dict of_part(const Info& info) {
  Dict part;
  part.set("found", info.found)
      .set("path", info.path)
      .set("version", info.version)
      .set("why_not", info.why_not);
  return part;
}

}  // namespace

PyObject* doctor(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* {
    const Driver& cuda = driver();
    const NvrtcInfo nvrtc = nvrtc_info();
    const CacheStats c = disk_cache().stats();
    const CompileStats compiled = compile_stats();
    Dict d;
    d.put("driver", Dict()
                        .set("found", cuda.available)
                        .set("path", cuda.path)
                        .set("version", cuda_version(cuda))
                        .set("why_not", cuda.why_not)
                        .take());
    d.put("nvrtc",
          of_part(nvrtc).set("include_dirs", nvrtc.include_dirs).set("archs", nvrtc.archs).take());
    List headers;
    for (const HeaderSet& set : header_sets())
      headers.add(Dict()
                      .set("holds", set.holds)
                      .set("folder", set.folder)
                      .set("advice", set.advice)
                      .set("examples", set.examples)
                      .take());
    d.put("headers", headers.take());
    d.put("nvjitlink", of_part(nvjitlink_info()).take());
    d.put("cublaslt", of_part(cublaslt_info()).take());
    const NvccInfo nvcc = nvcc_info();
    d.put("nvcc", of_part(nvcc).set("include_dirs", nvcc.include_dirs).take());
    d.put("cache", Dict()
                       .set("path", disk_cache().folder())
                       .set("usable", disk_cache().usable())
                       .set("bytes", disk_cache().bytes_on_disk())
                       .set("hits", c.hits)
                       .set("misses", c.misses)
                       .set("stores", c.stores)
                       .set("healed", c.healed)
                       .set("evicted", c.evicted)
                       .set("failed_writes", c.failed_writes)
                       .take());
    d.put("compile", Dict()
                         .set("compiled", compiled.compiled)
                         .set("disk_hits", compiled.disk_hits)
                         .set("seconds", compiled.seconds)
                         .take());
    d.put("cxx", Dict().set("found", !settings().cxx.empty()).set("path", settings().cxx).take());
    return d.take().release();
  });
}

PyObject* settings_dict(PyObject*, PyObject*) {
  return guarded([&]() -> PyObject* { return describe_settings().release(); });
}

PyObject* configure(PyObject*, PyObject*, PyObject* kwargs) {
  return guarded([&]() -> PyObject* {
    Settings& s = settings();
    if (PyObject* dirs = PyDict_GetItemString(kwargs, "library_dirs"))
      s.library_dirs = to_strings(dirs, "library_dirs");
    if (PyObject* dirs = PyDict_GetItemString(kwargs, "cuda_include_dirs")) {
      std::vector<std::string> merged = to_strings(dirs, "cuda_include_dirs");
      for (const std::string& dir : s.cuda_include_dirs) merged.push_back(dir);
      s.cuda_include_dirs = merged;
    }
    if (PyObject* dirs = PyDict_GetItemString(kwargs, "torch_include_dirs"))
      s.torch_include_dirs = to_strings(dirs, "torch_include_dirs");
    return none().release();
  });
}

}  // namespace opaq::python
