// Runs the CUDA part of the C++ prelude on a driver of its own that records launches;
// test_cuda_prelude.py compiles it below the prelude. Prints what each case gave, one a line.
#include <iostream>
#include <utility>
#include <vector>

static int capability = 90, loads = 0, launches = 0, shared_limit = 0, pushes = 0;
static int encoded = 0;
static CUcontext current = nullptr;
static CUstreamCaptureMode capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
static unsigned last_grid = 0, last_shared = 0;
static std::string loaded;

extern "C" {
AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle, void**) { return 0; }
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle, int64_t**) { return 0; }
AOTITorchError aoti_torch_get_strides(AtenTensorHandle, int64_t**) { return 0; }
AOTITorchError aoti_torch_get_dim(AtenTensorHandle, int64_t*) { return 0; }
AOTITorchError aoti_torch_get_numel(AtenTensorHandle, int64_t*) { return 0; }
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t*) { return 0; }
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t*) { return 0; }
AOTITorchError aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t,
                                        int32_t, AtenTensorHandle*) {
  return 0;
}
AOTITorchError aoti_torch_copy_(AtenTensorHandle, AtenTensorHandle, int32_t) { return 0; }
AOTITorchError aoti_torch_get_current_cuda_stream(int, void**) { return 0; }
CUresult cuGetErrorName(CUresult, const char** name) {
  return *name = "CUDA_ERROR_OF_THE_TEST", CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char** text) {
  return *text = "as asked for", CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int index) { return *device = index, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? capability / 10
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? capability % 10
                                                                       : 200000;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  return *context = reinterpret_cast<CUcontext>(1), CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) { return *context = current, CUDA_SUCCESS; }
CUresult cuCtxPushCurrent(CUcontext context) { return current = context, ++pushes, CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(CUcontext*) { return current = nullptr, CUDA_SUCCESS; }
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return CUDA_SUCCESS;
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  *status = stream ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuLibraryLoadData(CUlibrary* library, const void* image, CUjit_option*, void**, unsigned,
                           CUlibraryOption*, void**, unsigned) {
  if (capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  loaded = static_cast<const char*>(image);
  ++loads;
  *library = reinterpret_cast<CUlibrary>(1);
  return CUDA_SUCCESS;
}
CUresult cuLibraryGetKernel(CUkernel* kernel, CUlibrary, const char*) {
  return *kernel = reinterpret_cast<CUkernel>(1), CUDA_SUCCESS;
}
CUresult cuKernelGetFunction(CUfunction* function, CUkernel) {
  return *function = reinterpret_cast<CUfunction>(1),
         current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuKernelGetAttribute(int* value, CUfunction_attribute, CUkernel, CUdevice) {
  return *value = 1024, CUDA_SUCCESS;
}
CUresult cuKernelSetAttribute(CUfunction_attribute, int value, CUkernel, CUdevice) {
  return shared_limit = value, CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction, unsigned x, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned shared, CUstream, void**, void**) {
  ++launches;
  last_grid = x;
  last_shared = shared;
  return x == 666 ? CUDA_ERROR_INVALID_VALUE : current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuMemAlloc(CUdeviceptr*, size_t) { return CUDA_ERROR_OUT_OF_MEMORY; }
CUresult cuStreamCreate(CUstream*, unsigned) { return CUDA_SUCCESS; }
CUresult cuStreamDestroy(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamGetCaptureInfo(CUstream, CUstreamCaptureStatus*, cuuint64_t*, CUgraph*,
                                const CUgraphNode**,
#if CUDA_VERSION >= 13000
                                const CUgraphEdgeData**,
#endif
                                size_t*) {
  return CUDA_SUCCESS;
}
CUresult cuUserObjectCreate(CUuserObject*, void*, CUhostFn, unsigned, unsigned) {
  return CUDA_SUCCESS;
}
CUresult cuGraphRetainUserObject(CUgraph, CUuserObject, unsigned, unsigned) { return CUDA_SUCCESS; }
CUresult cuStreamGetId(CUstream, unsigned long long* id) { return *id = 0, CUDA_SUCCESS; }
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t, void*,
                                const cuuint64_t* sizes, const cuuint64_t*, const cuuint32_t*,
                                const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  ++encoded;
  map->opaque[0] = type;
  map->opaque[1] = sizes[0];
  return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuMemsetD8Async(CUdeviceptr, unsigned char, size_t, CUstream) { return CUDA_SUCCESS; }
CUresult cuLaunchKernelEx(const CUlaunchConfig*, CUfunction, void**, void**) {
  return CUDA_SUCCESS;
}
}

using namespace opaq::standalone;

// A launch as the emitter prints it; a template, so that each case starts with nothing loaded.
template <int Case>
static void launch(const Folder& folder, int64_t grid, int64_t block = 128, int64_t shared = 0,
                   CUstream stream = nullptr) {
  static constexpr DeclaredLaunch declared = {
      "lib::op", {"n", "1", "1"}, {"b", "1", "1"}, {nullptr}, "s", false, false};
  static constexpr PackagedImage images[] = {{"sm_80", "old.cubin", OLD},
                                             {"sm_90a", "new.cubin", NEW},
                                             {"compute_80", "any.ptx", ANY},
                                             {"sm_75", "bad.cubin", OLD}};
  static PackagedKernel<4> kernel(kLinkedDriver, declared, "f<float>", "_Z1f", images);
  Geometry geometry;
  if (!set_grid(declared, geometry, {grid, 1, 1})) return;
  set_block(declared, geometry, {block, 1, 1});
  set_shared(declared, geometry, shared);
  kernel.launch(geometry, 0, folder, stream, nullptr);
}

template <class F>
static void report(const char* what, F&& body) {
  std::cout << what << ": ";
  try {
    body();
    std::cout << "loaded " << loaded << ", grid " << last_grid << ", shared " << last_shared
              << " of " << shared_limit << ", loads " << loads << ", launches " << launches << "\n";
  } catch (const std::exception& error) {
    std::cout << error.what() << "\n";
  }
}

int main(int, char** argv) {
  const Folder folder = std::string(argv[1]);
  const auto captured = reinterpret_cast<CUstream>(2);
  report("captured too early", [&] { launch<0>(folder, 7, 128, 0, captured); });
  report("first", [&] { launch<0>(folder, 7); });
  report("again", [&] { launch<0>(folder, 8); });
  report("empty grid", [&] { launch<0>(folder, 0); });
  report("grid too large", [&] { launch<0>(folder, int64_t{1} << 31); });
  report("negative grid", [&] { launch<0>(folder, -1); });
  report("block too large", [&] { launch<0>(folder, 1, 1025); });
  report("more shared", [&] { launch<0>(folder, 1, 1, 100000); });
  report("too much shared", [&] { launch<0>(folder, 1, 1, 200000); });
  report("driver error", [&] { launch<0>(folder, 666); });
  capability = 86;
  report("minor", [&] { launch<1>(folder, 1); });
  capability = 100;
  report("newer", [&] { launch<2>(folder, 1); });
  capability = 70;
  report("none", [&] { launch<3>(folder, 1); });
  capability = 75;
  report("damaged", [&] { launch<4>(folder, 1); });
  capability = 90;
  report("missing", [&] { launch<5>(folder->substr(0, folder->size() - 1) + "/nowhere", 1); });
  report("captured", [&] { launch<0>(folder, 9, 128, 0, captured); });
  std::cout << "contexts: pushed " << (pushes > 0) << ", left " << (current != nullptr) << "\n";
  report("tensor maps", [] {
    static constexpr DeclaredTensorMap declared = {"lib::op: argument 1 `map`", "x", 0, 0, 0, 0};
    static KeptTensorMap kept;
    const int64_t sizes[] = {3, 8}, strides[] = {8, 1};
    opaq_tensor x{};
    x.data = reinterpret_cast<void*>(4096);
    x.sizes = sizes;
    x.strides = strides;
    x.dim = 2;
    x.itemsize = 4;
    CUtensorMap map{};
    const auto put = [&](std::optional<opaq_tensor> tensor, int64_t box) {
      opaq_put_tensor_map(reinterpret_cast<unsigned char*>(&map), kept, declared, tensor, 7, {}, {},
                          {1, box}, {}, 0);
      std::cout << map.opaque[0] << " " << map.opaque[1] << " encoded " << encoded << ", ";
    };
    put(std::nullopt, 4);
    put(x, 4);
    put(x, 4);
    put(x, 8);
    put(x, 3);
  });
  report("half", [] {
    for (double value : {1.0, 65504.0, 5.9604644775390625e-08, -0.1})
      std::cout << std::hex << as_half(value, "", "") << " " << std::dec;
    as_half(65520, "lib::op: argument 1 `v`", "`__half`");
  });
}
