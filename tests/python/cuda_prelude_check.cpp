// Runs the CUDA part of the C++ prelude on a driver of its own that records launches;
// test_cuda_prelude.py compiles it below the prelude. Prints what each case gave, one a line.
#include <iostream>
#include <vector>

static int capability = 90, loads = 0, launches = 0, shared_limit = 0;
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
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? capability / 10
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? capability % 10
                                                                       : 200000;
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  loaded = static_cast<const char*>(image);
  ++loads;
  *module = reinterpret_cast<CUmodule>(1);
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char*) {
  return *function = reinterpret_cast<CUfunction>(1), CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute, CUfunction) {
  return *value = 1024, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int value) {
  return shared_limit = value, CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction, unsigned x, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned shared, CUstream, void**, void**) {
  ++launches;
  last_grid = x;
  last_shared = shared;
  return x == 666 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig*, CUfunction, void**, void**) {
  return CUDA_SUCCESS;
}
}

// A launch as the emitter prints it; a template, so that each case starts with nothing loaded.
template <int Case>
static void launch(const opaq_folder& folder, int64_t grid, int64_t block = 128,
                   int64_t shared = 0) {
  static constexpr opaq_rule rule = {
      "lib::op", {"n", "1", "1"}, {"b", "1", "1"}, {nullptr}, "s", false, false};
  static constexpr opaq_image images[] = {{"sm_80", "old.cubin", OLD},
                                          {"sm_90a", "new.cubin", NEW},
                                          {"compute_80", "any.ptx", ANY},
                                          {"sm_75", "bad.cubin", OLD}};
  static opaq_kernel<4> kernel(rule, "f<float>", "_Z1f", images);
  opaq_geometry shape{};
  if (!opaq_grid(rule, shape, grid, 1, 1)) return;
  opaq_block(rule, shape, block, 1, 1);
  opaq_shared(rule, shape, shared);
  kernel.launch(shape, 0, folder, nullptr, nullptr);
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
  const opaq_folder folder = std::string(argv[1]);
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
  report("half", [] {
    for (double value : {1.0, 65504.0, 5.9604644775390625e-08, -0.1})
      std::cout << std::hex << opaq_as_half(value, "", "") << " " << std::dec;
    opaq_as_half(65520, "lib::op: argument 1 `v`", "`__half`");
  });
}
