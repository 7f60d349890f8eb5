// The module's functions, by file; backend/_runtime.pyi documents them.
#pragma once

#include "choose/measured.h"
#include "compile/image.h"
#include "launch/launch.h"
#include "object.h"

namespace opaq::python {

// declare.cpp
PyObject* declare(PyObject*, PyObject* args);
PyObject* implement(PyObject*, PyObject* args);
PyObject* define(PyObject*, PyObject* args);
PyObject* set_reference(PyObject*, PyObject* args);
PyObject* set_python_function(PyObject*, PyObject* args);
PyObject* python_kernel(PyObject*, PyObject* args);
PyObject* reference_kernel(PyObject*, PyObject* args);
PyObject* extend_hash(PyObject*, PyObject* args);
PyObject* describe(PyObject*, PyObject* args);
PyObject* on_library(PyObject*, PyObject* function);
PyObject* library_ops(PyObject*, PyObject*);
PyObject* library_failures(PyObject*, PyObject*);
PyObject* form(PyObject*, PyObject* args);
// The fallback given to set_reference; empty if there is none.
Ref reference_of(const std::string& op);
// The function given to set_python_function; empty if there is none.
Ref python_function_of(const std::string& op, const std::string& implementation);

// launcher.cpp
PyObject* launcher(PyObject*, PyObject* args);
PyObject* node_stats(PyObject*, PyObject*);

// wrapper_nodes.cpp
PyObject* wrapper_nodes(PyObject*, PyObject*);
PyObject* graph_name(PyObject*, PyObject* label);

// raised.cpp
PyObject* note_python_error(PyObject*, PyObject* exception);

// watch.cpp
PyObject* watch(PyObject*, PyObject* args);
PyObject* kernel_is_ours(PyObject*, PyObject* args);
PyObject* watcher(PyObject*, PyObject* args);

// check.cpp
// The line of user code that called the op which this thread runs; takes the GIL.
std::string find_call_site();
PyObject* call_alone(PyObject*, PyObject* args);
PyObject* compare_tensors(PyObject*, PyObject* args);

// eager.cpp
PyObject* eager(PyObject*, PyObject* args);
Ref unbound_type();  // a base class whose instances do not become methods of a class

// choose.cpp
inline constexpr const char* kNodeChoice = "opaq.node_choice";  // the handle of a NodeChoice
PyObject* choose(PyObject*, PyObject* args);
MeasuredSizes to_measured(const Op& op, PyObject* value);

// tune.cpp
PyObject* problem(PyObject*, PyObject* args);
PyObject* set_fastest(PyObject*, PyObject* args);
PyObject* prefer(PyObject*, PyObject* args);
PyObject* cuda_driver(PyObject*, PyObject*);
PyObject* cublaslt_version(PyObject*, PyObject*);

// cpp.cpp
PyObject* cpp_node(PyObject*, PyObject* args);
PyObject* cpp_code(PyObject*, PyObject* node);
PyObject* cpp_function(PyObject*, PyObject* args);
PyObject* cpp_graph(PyObject*, PyObject* label);
PyObject* cpp_counters(PyObject*, PyObject* args);
PyObject* cpp_string(PyObject*, PyObject* text);
PyObject* event_name(PyObject*, PyObject* op);
PyObject* python_identifier(PyObject*, PyObject* name);
PyObject* cpp_prelude(PyObject*, PyObject*);
PyObject* device_arch(PyObject*, PyObject* index);
PyObject* device_fact(PyObject*, PyObject* args);

// plan.cpp
Ref resources(const std::optional<Resources>& found);  // None where they are unknown
Ref plan_dict(const LaunchPlan& plan);
PyObject* plan(PyObject*, PyObject* args);
PyObject* cubin_resources(PyObject*, PyObject* args);
PyObject* image_set(PyObject*, PyObject* args);
PyObject* link_inputs(PyObject*, PyObject* args);
PyObject* expression(PyObject*, PyObject* args);
PyObject* compile(PyObject*, PyObject* args);
PyObject* warmup(PyObject*, PyObject* args);
PyObject* refresh_sources(PyObject*, PyObject* op);

// check_code.cpp
PyObject* check_code(PyObject*, PyObject* args);

// status.cpp
PyObject* implementation_stats(PyObject*, PyObject*);
PyObject* doctor(PyObject*, PyObject*);
PyObject* settings_dict(PyObject*, PyObject*);
PyObject* configure(PyObject*, PyObject* args, PyObject* kwargs);

}  // namespace opaq::python
