// The extension module opaq._runtime. One binary for Python 3.10 and newer.
#include "bind.h"
#include "check/check.h"
#include "functions.h"
#include "interruption.h"
#include "raised.h"
#include "standalone/scratch.h"
#include "torch/dispatcher.h"

namespace {

using namespace opaq::python;

template <typename F>
PyCFunction as_function(F* f) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(f));
}

PyMethodDef methods[] = {
    {"configure", as_function(configure), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"bind_torch", as_function(bind_torch), METH_VARARGS | METH_KEYWORDS, nullptr},
    {"declare", declare, METH_VARARGS, nullptr},
    {"implement", implement, METH_VARARGS, nullptr},
    {"define", define, METH_O, nullptr},
    {"set_reference", set_reference, METH_VARARGS, nullptr},
    {"set_python_function", set_python_function, METH_VARARGS, nullptr},
    {"python_kernel", python_kernel, METH_VARARGS, nullptr},
    {"reference_kernel", reference_kernel, METH_VARARGS, nullptr},
    {"note_python_error", note_python_error, METH_O, nullptr},
    {"extend_hash", extend_hash, METH_VARARGS, nullptr},
    {"describe", describe, METH_O, nullptr},
    {"on_library", on_library, METH_O, nullptr},
    {"library_ops", library_ops, METH_NOARGS, nullptr},
    {"library_failures", library_failures, METH_NOARGS, nullptr},
    {"form", form, METH_VARARGS, nullptr},
    {"call_alone", call_alone, METH_VARARGS, nullptr},
    {"compare_tensors", compare_tensors, METH_VARARGS, nullptr},
    {"launcher", launcher, METH_VARARGS, nullptr},
    {"wrapper_nodes", wrapper_nodes, METH_NOARGS, nullptr},
    {"graph_name", graph_name, METH_O, nullptr},
    {"eager", eager, METH_VARARGS, nullptr},
    {"watch", watch, METH_VARARGS, nullptr},
    {"kernel_is_ours", kernel_is_ours, METH_VARARGS, nullptr},
    {"watcher", watcher, METH_VARARGS, nullptr},
    {"plan", plan, METH_VARARGS, nullptr},
    {"cubin_resources", cubin_resources, METH_VARARGS, nullptr},
    {"image_set", image_set, METH_VARARGS, nullptr},
    {"link_inputs", link_inputs, METH_VARARGS, nullptr},
    {"expression", expression, METH_VARARGS, nullptr},
    {"compile", compile, METH_VARARGS, nullptr},
    {"check_code", check_code, METH_VARARGS, nullptr},
    {"cpp_node", cpp_node, METH_VARARGS, nullptr},
    {"cpp_code", cpp_code, METH_O, nullptr},
    {"cpp_function", cpp_function, METH_VARARGS, nullptr},
    {"cpp_graph", cpp_graph, METH_O, nullptr},
    {"cpp_counters", cpp_counters, METH_VARARGS, nullptr},
    {"cpp_string", cpp_string, METH_O, nullptr},
    {"event_name", event_name, METH_O, nullptr},
    {"python_identifier", python_identifier, METH_O, nullptr},
    {"cpp_prelude", cpp_prelude, METH_O, nullptr},
    {"device_arch", device_arch, METH_O, nullptr},
    {"device_fact", device_fact, METH_VARARGS, nullptr},
    {"choose", choose, METH_VARARGS, nullptr},
    {"problem", problem, METH_VARARGS, nullptr},
    {"set_fastest", set_fastest, METH_VARARGS, nullptr},
    {"prefer", prefer, METH_VARARGS, nullptr},
    {"cuda_driver", cuda_driver, METH_NOARGS, nullptr},
    {"cublaslt_version", cublaslt_version, METH_NOARGS, nullptr},
    {"refresh_sources", refresh_sources, METH_O, nullptr},
    {"warmup", warmup, METH_VARARGS, nullptr},
    {"implementation_stats", implementation_stats, METH_NOARGS, nullptr},
    {"node_stats", node_stats, METH_NOARGS, nullptr},
    {"doctor", doctor, METH_NOARGS, nullptr},
    {"settings", settings_dict, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "opaq._runtime",
                          "The opaq runtime: declarations in, launches out.",
                          -1,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__runtime() {
  return guarded([]() -> PyObject* {
    Ref module = check(PyModule_Create(&definition));
    set_error_classes(module.get());
    watch_for_signals();
    opaq::on_kernel_error(throw_as_python);
    opaq::draw_with_torch();
    opaq::set_call_site(find_call_site);
    check(PyModule_AddObjectRef(module.get(), "Unbound", unbound_type().get()));
    check(PyModule_AddIntConstant(module.get(), "SCRATCH_ALIGNMENT",
                                  static_cast<long>(opaq::standalone::kScratchAlignment)));
    return module.release();
  });
}
