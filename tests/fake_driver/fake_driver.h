// Control of the fake CUDA driver: a shared library with the entry points of <driver/driver.h> that
// runs nothing and records everything.
//
// The runtime opens it as its driver (OPAQ_DRIVER), without knowing that it is not real; a test
// calls the functions below through `Fake`, or by ctypes. The fake is as strict as a driver: it
// refuses a launch without a context, an unknown handle, a grid of 0, dynamic shared memory above
// 48 KB without its attribute, a load that would break the capture of another thread, and use in a
// child forked after cuInit. Thread-safe. Handles (contexts, libraries, kernels, their attributes)
// stay valid until the process ends, since the tested code keeps them; fake_reset() resets
// everything else. Returned pointers are valid until fake_reset().
#pragma once

#include <cuda.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>

struct FakeLaunch {
  const char* kernel;                      // symbol
  int device;                              // of the context that was current
  unsigned grid[3], block[3], cluster[3];  // cluster is 0, 0, 0 when not given
  unsigned shared;
  CUstream stream;
  int cooperative, programmatic;
  int param_count;
  const size_t* param_sizes;
  const void* const* params;  // copies, of these sizes
};

struct FakeMemset {
  CUdeviceptr memory;
  size_t bytes;
  unsigned char value;
  CUstream stream;
  int launches_before;
};

// What cuTensorMapEncodeTiled writes here: what it was given, innermost dimension first.
struct FakeTensorMap {
  unsigned long long address;
  unsigned char type, dim, interleave, swizzle, l2_promotion, oob_fill;
  unsigned char element_strides[5];
  unsigned short box[5];
  unsigned sizes[5];  // less 1
  unsigned long long strides[4];
  unsigned char unused[36];
};
static_assert(sizeof(FakeTensorMap) <= sizeof(CUtensorMap));

extern "C" {
void fake_reset();  // one device of compute capability 9.0, driver 13.0, no launches, counts,
                    // failures, captures or signatures
void fake_set_devices(int count);
void fake_set_capability(int device, int major, int minor);
void fake_set_version(int version);  // 12040; has effect on a driver that is opened afterwards

// Status of a stream, as if another thread captured it in global mode: an unsafe call by a thread
// whose capture mode is not relaxed invalidates the capture and fails.
void fake_set_capture(CUstream stream, CUstreamCaptureStatus status);
CUstreamCaptureStatus fake_capture(CUstream stream);
// Destroys the graph that the stream is captured to.
void fake_destroy_graph(CUstream stream);

// The next `times` calls of `function` ("cuLaunchKernel"; no version suffix) return `result`; times
// < 0: all of them.
void fake_fail(const char* function, CUresult result, int times);

// Parameter sizes of a kernel. Without it they are read from the image where it is a cubin; else a
// mangled name tells the number of parameters, of 8 bytes each; else there are none.
void fake_set_params(const char* symbol, int count, const size_t* sizes);

int fake_launch_count();
const FakeLaunch* fake_launch(int index);  // nullptr when there is none
const FakeMemset* fake_memset(int index);  // nullptr when there is none
int fake_calls(const char* function);      // since fake_reset()
int fake_libraries();                      // loaded and not unloaded
int fake_allocations();                    // of memory, not freed
int fake_attribute(const char* symbol, CUfunction_attribute attribute,
                   int device);  // as last set; -1 when never set
int fake_context_depth();        // contexts on this thread's stack
int fake_context_device();       // of this thread's current context; -1 when there is none
}

// The functions above, resolved from the library at `path`.
struct Fake {
  explicit Fake(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(std::string("fake driver: ") + dlerror());
#define OPAQ_FAKE_RESOLVE(name) \
  name = reinterpret_cast<decltype(name)>(dlsym(library, "fake_" #name))
    OPAQ_FAKE_RESOLVE(reset);
    OPAQ_FAKE_RESOLVE(set_devices);
    OPAQ_FAKE_RESOLVE(set_capability);
    OPAQ_FAKE_RESOLVE(set_version);
    OPAQ_FAKE_RESOLVE(set_capture);
    OPAQ_FAKE_RESOLVE(capture);
    OPAQ_FAKE_RESOLVE(destroy_graph);
    OPAQ_FAKE_RESOLVE(fail);
    OPAQ_FAKE_RESOLVE(set_params);
    OPAQ_FAKE_RESOLVE(launch_count);
    OPAQ_FAKE_RESOLVE(launch);
    OPAQ_FAKE_RESOLVE(memset);
    OPAQ_FAKE_RESOLVE(calls);
    OPAQ_FAKE_RESOLVE(libraries);
    OPAQ_FAKE_RESOLVE(allocations);
    OPAQ_FAKE_RESOLVE(attribute);
    OPAQ_FAKE_RESOLVE(context_depth);
    OPAQ_FAKE_RESOLVE(context_device);
#undef OPAQ_FAKE_RESOLVE
  }

  decltype(&fake_reset) reset;
  decltype(&fake_set_devices) set_devices;
  decltype(&fake_set_capability) set_capability;
  decltype(&fake_set_version) set_version;
  decltype(&fake_set_capture) set_capture;
  decltype(&fake_capture) capture;
  decltype(&fake_destroy_graph) destroy_graph;
  decltype(&fake_fail) fail;
  decltype(&fake_set_params) set_params;
  decltype(&fake_launch_count) launch_count;
  decltype(&fake_launch) launch;
  decltype(&fake_memset) memset;
  decltype(&fake_calls) calls;
  decltype(&fake_libraries) libraries;
  decltype(&fake_allocations) allocations;
  decltype(&fake_attribute) attribute;
  decltype(&fake_context_depth) context_depth;
  decltype(&fake_context_device) context_device;
};
