// The fake CUDA driver: the functions of <driver/driver.h>, with the driver's rules but without a
// device.
#pragma GCC visibility push(default)
#include <cuda.h>
#pragma GCC visibility pop

#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "state.h"

namespace fake {

State& state = *new State;
thread_local constinit ContextStack context_stack{};

namespace {

thread_local CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

// Never destroyed, as the state is.
const auto& kErrors = *new const std::map<CUresult, std::pair<const char*, const char*>>{
#define ERROR(name, text) \
  {                       \
    name, { #name, text } \
  }
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_DEINITIALIZED, "driver shutting down"),
    ERROR(CUDA_ERROR_DEVICE_UNAVAILABLE, "CUDA-capable device(s) is/are busy or unavailable"),
    ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    ERROR(CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error encountered"),
    ERROR(CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"),
    ERROR(CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
          "the provided PTX was compiled with an unsupported toolchain."),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    ERROR(CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"),
    ERROR(CUDA_ERROR_ASSERT, "device-side assert triggered"),
    ERROR(CUDA_ERROR_HARDWARE_STACK_ERROR, "hardware stack error"),
    ERROR(CUDA_ERROR_ILLEGAL_INSTRUCTION, "an illegal instruction was encountered"),
    ERROR(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    ERROR(CUDA_ERROR_INVALID_ADDRESS_SPACE,
          "operation not supported on global/shared address space"),
    ERROR(CUDA_ERROR_INVALID_PC, "invalid program counter"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
          "operation not permitted when stream is capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
          "operation failed due to a previous error during capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
          "operation would make the legacy stream depend on a capturing blocking stream"),
#undef ERROR
};

// What every entry point does first: count, fail on demand, and insist on cuInit by this very
// process.
CUresult enter(std::string_view function, bool needs_init = true) {
  if (function.ends_with("_v2") || function.ends_with("_v3")) function.remove_suffix(3);
  std::lock_guard lock(state.mutex);
  const std::string name(function);
  ++state.configuration.calls[name];
  if (const auto it = state.configuration.failures.find(name);
      it != state.configuration.failures.end() && it->second.times != 0) {
    if (it->second.times > 0) --it->second.times;
    return it->second.result;
  }
  return needs_init && state.initialized_by != getpid() ? CUDA_ERROR_NOT_INITIALIZED : CUDA_SUCCESS;
}
#define ENTER(...)                                                         \
  if (const CUresult entered = enter(__func__ __VA_OPT__(, ) __VA_ARGS__); \
      entered != CUDA_SUCCESS)                                             \
    return entered;                                                        \
  const std::lock_guard lock(state.mutex)

// Calls that the driver forbids to threads whose capture mode is not relaxed while a stream is
// captured in global mode.
CUresult unsafe_during_capture() {
  bool broken = false;
  for (auto& [stream, status] : state.configuration.captures) {
    if (capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED || status == CU_STREAM_CAPTURE_STATUS_NONE)
      continue;
    status = CU_STREAM_CAPTURE_STATUS_INVALIDATED;
    broken = true;
  }
  return broken ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

bool is_device(int device) { return device >= 0 && device < state.configuration.devices; }

Kernel* as_kernel(const void* handle) {
  if (!state.kernels.contains(handle)) return nullptr;
  Kernel* kernel = static_cast<Kernel*>(const_cast<void*>(handle));
  return kernel->library->loaded ? kernel : nullptr;
}

CUresult record(const void* function, FakeLaunch launch, void** params) {
  Kernel* kernel = as_kernel(function);
  if (kernel == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (context_stack.top() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  launch.device = context_stack.top()->device;
  size_t threads = 1;
  for (int i = 0; i < 3; ++i) {
    threads *= launch.block[i];
    if (launch.grid[i] == 0 || (i > 0 && launch.grid[i] > 65535)) return CUDA_ERROR_INVALID_VALUE;
    if (launch.cluster[i] != 0 && launch.grid[i] % launch.cluster[i] != 0)
      return CUDA_ERROR_INVALID_VALUE;
  }
  if (threads == 0 || threads > 1024) return CUDA_ERROR_INVALID_VALUE;
  const auto allowed =
      kernel->attributes.find({CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, launch.device});
  const int most = allowed == kernel->attributes.end() ? kSharedDefault
                                                       : std::max(allowed->second, kSharedDefault);
  if (launch.shared > static_cast<unsigned>(most)) return CUDA_ERROR_INVALID_VALUE;
  if (const auto it = state.configuration.captures.find(launch.stream);
      it != state.configuration.captures.end() &&
      it->second == CU_STREAM_CAPTURE_STATUS_INVALIDATED) {
    return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  }

  Record& record = state.configuration.launches.emplace_back();
  record.symbol = kernel->symbol;
  record.sizes = param_sizes(*kernel);
  for (size_t i = 0; i < record.sizes.size(); ++i) {
    if (params == nullptr || params[i] == nullptr) {
      state.configuration.launches.pop_back();
      return CUDA_ERROR_INVALID_VALUE;
    }
    const char* bytes = static_cast<const char*>(params[i]);
    record.bytes.emplace_back(bytes, bytes + record.sizes[i]);
  }
  for (const auto& bytes : record.bytes) record.params.push_back(bytes.data());
  record.launch = launch;
  record.launch.kernel = record.symbol.c_str();
  record.launch.param_count = static_cast<int>(record.sizes.size());
  record.launch.param_sizes = record.sizes.data();
  record.launch.params = record.params.data();
  return CUDA_SUCCESS;
}

}  // namespace

}  // namespace fake

using namespace fake;

// ---- errors, devices ----------------------------------------------------------------------------

CUresult cuGetErrorName(CUresult error, const char** text) {
  const auto it = kErrors.find(error);
  *text = it == kErrors.end() ? nullptr : it->second.first;
  return it == kErrors.end() ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  const auto it = kErrors.find(error);
  *text = it == kErrors.end() ? nullptr : it->second.second;
  return it == kErrors.end() ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int* version) {
  ENTER(false);
  *version = state.version;
  return CUDA_SUCCESS;
}
CUresult cuInit(unsigned) {
  ENTER(false);
  if (state.configuration.devices == 0) return CUDA_ERROR_NO_DEVICE;
  if (state.initialized_by != 0 && state.initialized_by != getpid())
    return CUDA_ERROR_NOT_INITIALIZED;
  state.initialized_by = getpid();
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) {
  ENTER();
  *count = state.configuration.devices;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER();
  *device = ordinal;
  return is_device(ordinal) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  ENTER();
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = state.configuration.capability[device].first;
      break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = state.configuration.capability[device].second;
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = 132;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = 1024;
      break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      *value = 32;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
      *value = kSharedDefault;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = kSharedMost;
      break;
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
      *value = 1;
      break;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

// ---- contexts -----------------------------------------------------------------------------------

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  ENTER();
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  state.contexts[device].device = device;
  *context = reinterpret_cast<CUcontext>(&state.contexts[device]);
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
  ENTER();
  *context = reinterpret_cast<CUcontext>(context_stack.top());
  return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext context) {
  ENTER();
  if (context == nullptr || context_stack.depth == context_stack.contexts.size())
    return CUDA_ERROR_INVALID_CONTEXT;
  context_stack.contexts[context_stack.depth++] = reinterpret_cast<Context*>(context);
  return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext* context) {
  ENTER();
  if (context_stack.depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (context != nullptr) *context = reinterpret_cast<CUcontext>(context_stack.top());
  --context_stack.depth;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
  ENTER();
  if (context_stack.depth > 0) --context_stack.depth;
  if (context != nullptr)
    context_stack.contexts[context_stack.depth++] = reinterpret_cast<Context*>(context);
  return CUDA_SUCCESS;
}

// ---- libraries, kernels -------------------------------------------------------------------------

CUresult cuLibraryLoadData(CUlibrary* library, const void* code, CUjit_option*, void**, unsigned,
                           CUlibraryOption*, void**, unsigned) {
  ENTER();
  const char* bytes = static_cast<const char*>(code);
  const bool elf = std::strncmp(bytes, ELFMAG, SELFMAG) == 0;
  if (!elf && std::strstr(bytes, ".version") == nullptr) return CUDA_ERROR_INVALID_IMAGE;
  if (const CUresult result = unsafe_during_capture(); result != CUDA_SUCCESS) return result;
  size_t size = std::strlen(bytes);
  // A real cubin ends after its section or its program headers, whichever are last; a test's "\x7f"
  // "ELF and names" at its NUL.
  if (const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes);
      elf && bytes[EI_CLASS] == ELFCLASS64) {
    size = std::max(header->e_shoff + header->e_shnum * sizeof(Elf64_Shdr),
                    header->e_phoff + header->e_phnum * sizeof(Elf64_Phdr));
  }
  state.libraries.push_back(std::make_unique<Library>(Library{std::string(bytes, size)}));
  *library = reinterpret_cast<CUlibrary>(state.libraries.back().get());
  return CUDA_SUCCESS;
}
CUresult cuLibraryUnload(CUlibrary handle) {
  ENTER();
  if (const CUresult result = unsafe_during_capture(); result != CUDA_SUCCESS) return result;
  Library* library = reinterpret_cast<Library*>(handle);
  if (!library->loaded) return CUDA_ERROR_INVALID_HANDLE;
  library->loaded = false;
  return CUDA_SUCCESS;
}
CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary handle, const char* name) {
  ENTER();
  Library* library = reinterpret_cast<Library*>(handle);
  if (!library->loaded) return CUDA_ERROR_INVALID_HANDLE;
  if (library->image.find(name) == std::string::npos) return CUDA_ERROR_NOT_FOUND;
  std::unique_ptr<Kernel>& found = library->kernels[name];
  if (!found) found.reset(new Kernel{name, library, {}});
  state.kernels.insert(found.get());
  *kernel = reinterpret_cast<CUkernel>(found.get());
  return CUDA_SUCCESS;
}
CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  ENTER();
  if (as_kernel(kernel) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (context_stack.depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (const CUresult result = unsafe_during_capture(); result != CUDA_SUCCESS) return result;
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}
CUresult cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel handle,
                              CUdevice device) {
  ENTER();
  const Kernel* kernel = as_kernel(handle);
  if (kernel == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const auto it = kernel->attributes.find({attribute, device});
  if (it != kernel->attributes.end()) {
    *value = it->second;
  } else {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK           ? 1024
             : attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? kSharedDefault
             : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS                      ? 32
                                                                            : 0;
  }
  return CUDA_SUCCESS;
}
CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel handle,
                              CUdevice device) {
  ENTER();
  Kernel* kernel = as_kernel(handle);
  if (kernel == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES &&
      (value < 0 || value > kSharedMost))
    return CUDA_ERROR_INVALID_VALUE;
  kernel->attributes[{attribute, device}] = value;
  return CUDA_SUCCESS;
}
CUresult cuKernelGetParamInfo(CUkernel handle, size_t index, size_t* offset, size_t* size) {
  ENTER();
  const Kernel* kernel = as_kernel(handle);
  if (kernel == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (context_stack.top() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  const std::vector<size_t> sizes = param_sizes(*kernel);
  if (index >= sizes.size()) return CUDA_ERROR_INVALID_VALUE;
  size_t at = 0;
  for (size_t i = 0;; at += sizes[i++]) {
    const size_t alignment = sizes[i] % 8 == 0   ? 8
                             : sizes[i] % 4 == 0 ? 4
                             : sizes[i] % 2 == 0 ? 2
                                                 : 1;
    at = (at + alignment - 1) / alignment * alignment;
    if (i == index) break;
  }
  *offset = at;
  if (size != nullptr) *size = sizes[index];
  return CUDA_SUCCESS;
}

// ---- launches, streams --------------------------------------------------------------------------

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        CUstream stream, void** params, void** extra) {
  ENTER();
  if (extra != nullptr) return CUDA_ERROR_INVALID_VALUE;
  FakeLaunch launch{.grid = {grid_x, grid_y, grid_z},
                    .block = {block_x, block_y, block_z},
                    .shared = shared,
                    .stream = stream};
  return record(function, launch, params);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params,
                          void** extra) {
  ENTER();
  if (extra != nullptr) return CUDA_ERROR_INVALID_VALUE;
  FakeLaunch launch{.grid = {config->gridDimX, config->gridDimY, config->gridDimZ},
                    .block = {config->blockDimX, config->blockDimY, config->blockDimZ},
                    .shared = config->sharedMemBytes,
                    .stream = config->hStream};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const CUlaunchAttribute& attribute = config->attrs[i];
    switch (attribute.id) {
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
        launch.cluster[0] = attribute.value.clusterDim.x;
        launch.cluster[1] = attribute.value.clusterDim.y;
        launch.cluster[2] = attribute.value.clusterDim.z;
        break;
      case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
        launch.cooperative = attribute.value.cooperative;
        break;
      case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
        launch.programmatic = attribute.value.programmaticStreamSerializationAllowed;
        break;
      default:
        return CUDA_ERROR_INVALID_VALUE;
    }
  }
  return record(function, launch, params);
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  ENTER();
  const auto it = state.configuration.captures.find(stream);
  *status = it == state.configuration.captures.end() ? CU_STREAM_CAPTURE_STATUS_NONE : it->second;
  return CUDA_SUCCESS;
}
CUresult cuStreamGetCaptureInfo(CUstream stream, CUstreamCaptureStatus* status, cuuint64_t*,
                                CUgraph* graph, const CUgraphNode**,
#if CUDA_VERSION >= 13000
                                const CUgraphEdgeData**,
#endif
                                size_t*) {
  ENTER();
  const auto it = state.configuration.captures.find(stream);
  *status = it == state.configuration.captures.end() ? CU_STREAM_CAPTURE_STATUS_NONE : it->second;
  *graph = reinterpret_cast<CUgraph>(stream);
  return CUDA_SUCCESS;
}
CUresult cuUserObjectCreate(CUuserObject* made, void* object, CUhostFn destroy, unsigned references,
                            unsigned flags) {
  ENTER();
  if (references != 1 || flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC)
    return CUDA_ERROR_INVALID_VALUE;
  state.configuration.objects.push_back({destroy, object});
  *made = reinterpret_cast<CUuserObject>(&state.configuration.objects.back());
  return CUDA_SUCCESS;
}
CUresult cuGraphRetainUserObject(CUgraph graph, CUuserObject object, unsigned references,
                                 unsigned flags) {
  ENTER();
  if (references != 1 || flags != CU_GRAPH_USER_OBJECT_MOVE) return CUDA_ERROR_INVALID_VALUE;
  state.configuration.retained.emplace(graph, reinterpret_cast<const UserObject*>(object));
  return CUDA_SUCCESS;
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  ENTER();
  std::swap(*mode, capture_mode);
  return CUDA_SUCCESS;
}

// ---- memory: the host's, which a test reads and writes as if it were the device's ---------------

CUresult cuMemAlloc(CUdeviceptr* memory, size_t bytes) {
  ENTER();
  if (const CUresult result = unsafe_during_capture(); result != CUDA_SUCCESS) return result;
  if (context_stack.top() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  char* const made = new char[bytes];
  state.configuration.allocations.insert(made);
  *memory = reinterpret_cast<CUdeviceptr>(made);
  return CUDA_SUCCESS;
}
CUresult cuStreamGetId(CUstream stream, unsigned long long* id) {
  ENTER();
  *id = reinterpret_cast<unsigned long long>(stream) + 1000;
  return CUDA_SUCCESS;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t dim,
                                void* address, const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* element_strides,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion l2_promotion,
                                CUtensorMapFloatOOBfill oob_fill) {
  ENTER();
  if (context_stack.top() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  const auto at = reinterpret_cast<unsigned long long>(address);
  if (reinterpret_cast<unsigned long long>(map) % 64 != 0 || dim < 1 || dim > 5 || at % 16 != 0)
    return CUDA_ERROR_INVALID_VALUE;
  FakeTensorMap made{};
  made.address = at;
  made.type = static_cast<unsigned char>(type);
  made.dim = static_cast<unsigned char>(dim);
  made.interleave = static_cast<unsigned char>(interleave);
  made.swizzle = static_cast<unsigned char>(swizzle);
  made.l2_promotion = static_cast<unsigned char>(l2_promotion);
  made.oob_fill = static_cast<unsigned char>(oob_fill);
  for (cuuint32_t i = 0; i < dim; ++i) {
    if (sizes[i] < 1 || sizes[i] > 1ull << 32 || box[i] < 1 || box[i] > 256 ||
        element_strides[i] < 1 || element_strides[i] > 8)
      return CUDA_ERROR_INVALID_VALUE;
    made.sizes[i] = static_cast<unsigned>(sizes[i] - 1);
    made.box[i] = static_cast<unsigned short>(box[i]);
    made.element_strides[i] = static_cast<unsigned char>(element_strides[i]);
    if (i + 1 == dim) break;
    if (strides[i] % 16 != 0 || strides[i] >= 1ull << 40) return CUDA_ERROR_INVALID_VALUE;
    made.strides[i] = strides[i];
  }
  std::memset(map, 0, sizeof *map);
  std::memcpy(map, &made, sizeof made);
  return CUDA_SUCCESS;
}
CUresult cuMemAllocAsync(CUdeviceptr* memory, size_t bytes, CUstream) {
  ENTER();
  if (context_stack.top() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  char* const made = new char[bytes];
  state.configuration.allocations.insert(made);
  *memory = reinterpret_cast<CUdeviceptr>(made);
  return CUDA_SUCCESS;
}
CUresult cuMemFreeAsync(CUdeviceptr memory, CUstream) {
  ENTER();
  char* const made = reinterpret_cast<char*>(memory);
  if (state.configuration.allocations.erase(made) == 0) return CUDA_ERROR_INVALID_VALUE;
  delete[] made;
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream) {
  ENTER();
  if (context_stack.top() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream) {
  ENTER();
  if (context_stack.top() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return CUDA_SUCCESS;
}
// Recorded, not done: tests give addresses that nothing may write to.
CUresult cuMemsetD8Async(CUdeviceptr memory, unsigned char value, size_t bytes, CUstream stream) {
  ENTER();
  if (context_stack.top() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  state.configuration.memsets.push_back(
      {memory, bytes, value, stream, static_cast<int>(state.configuration.launches.size())});
  return CUDA_SUCCESS;
}
CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  ENTER();
  if (const CUresult result = unsafe_during_capture(); result != CUDA_SUCCESS) return result;
  if (context_stack.top() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  *stream = reinterpret_cast<CUstream>(kOwnStream);
  return CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream) {
  ENTER();
  return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream stream) {
  ENTER();
  return state.configuration.captures.contains(stream) ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
                                                       : CUDA_SUCCESS;
}
