// Kernels of opaque ops: one image for each arch, loaded once for each device, launched through the
// driver.
#include <cuda.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

struct opaq_image {
  const char* arch;  // "sm_90a", "sm_100f"; "compute_90" for PTX; "" for what the user brought
  const char* file;
  const char* sha256;
};

struct opaq_rule {  // texts as declared, for messages
  const char* op;
  const char* grid[3];
  const char* block[3];
  const char* cluster[3];  // first one nullptr: no clusters
  const char* shared;
  bool cooperative, programmatic;
};

struct opaq_geometry {
  int64_t grid[3], block[3], cluster[3], shared;
};

[[gnu::cold, gnu::noinline]] inline void opaq_driver(CUresult result, const std::string& what) {
  if (result == CUDA_SUCCESS) return;
  const char *name = nullptr, *text = nullptr;
  cuGetErrorName(result, &name);
  cuGetErrorString(result, &text);
  opaq_raise(
      "%s: %s%s%s%s", what.c_str(), name ? name : opaq_text("%d", static_cast<int>(result)).c_str(),
      text ? ", " : "", text ? text : "",
      result == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED ? "; run the model once before capturing it"
                                                      : "");
}

// How well an image fits a device: 0 not at all, else more is better. Plain targets serve their
// major version from their minor on, "f" ones too, "a" ones just their own; PTX serves all that is
// newer.
inline int opaq_fit(const char* arch, int device) {
  if (!*arch) return 1;
  const bool ptx = std::strncmp(arch, "compute_", 8) == 0;
  char* suffix = nullptr;
  const int number = static_cast<int>(std::strtol(arch + (ptx ? 8 : 3), &suffix, 10));
  if (*suffix == 'a') return number == device ? (ptx ? 1000 : 4000) : 0;
  if (number > device) return 0;
  if (ptx && *suffix != 'f') return number;
  return number / 10 == device / 10 ? 2000 + number : 0;
}

// ---- geometry -----------------------------------------------------------------------------------

inline std::string opaq_dim(const char* what, int axis, const char* text, int64_t value) {
  return opaq_text("%s.%c `%s` is %" PRId64, what, "xyz"[axis], text, value);
}

inline std::string opaq_product(const char* const* texts, const int64_t* values) {
  return opaq_text("(`%s` = %" PRId64 ", `%s` = %" PRId64 ", `%s` = %" PRId64 ")", texts[0],
                   values[0], texts[1], values[1], texts[2], values[2]);
}

// `what`: "grid", "block"; `to`: its three dimensions, each to be from `least` to `most`.
inline void opaq_dims(const opaq_rule& rule, const char* what, const char* const* texts,
                      const int64_t (&values)[3], int64_t least, const int64_t (&most)[3],
                      int64_t* to) {
  for (int i = 0; i < 3; ++i) {
    if (values[i] < least || values[i] > most[i]) {
      opaq_raise("%s: %s; it must be between %" PRId64 " and %" PRId64, rule.op,
                 opaq_dim(what, i, texts[i], values[i]).c_str(), least, most[i]);
    }
    to[i] = values[i];
  }
}

// False when a dimension is 0: nothing is to be launched.
inline bool opaq_grid(const opaq_rule& rule, opaq_geometry& g, int64_t x, int64_t y, int64_t z) {
  opaq_dims(rule, "grid", rule.grid, {x, y, z}, 0, {2147483647, 65535, 65535}, g.grid);
  return x && y && z;
}

inline void opaq_block(const opaq_rule& rule, opaq_geometry& g, int64_t x, int64_t y, int64_t z) {
  const int64_t values[3] = {x, y, z};
  opaq_dims(rule, "block", rule.block, values, 1, {1024, 1024, 64}, g.block);
  if (x * y * z > 1024) {
    opaq_raise("%s: block %s has %" PRId64 " threads; at most 1024 fit a block", rule.op,
               opaq_product(rule.block, values).c_str(), x * y * z);
  }
}

inline void opaq_cluster(const opaq_rule& rule, opaq_geometry& g, int64_t x, int64_t y, int64_t z) {
  const int64_t values[3] = {x, y, z};
  for (int i = 0; i < 3; ++i) {
    const int64_t value = g.cluster[i] = values[i];
    if (value < 1 || value > 16) {
      opaq_raise("%s: %s; it must be between 1 and 16", rule.op,
                 opaq_dim("cluster", i, rule.cluster[i], value).c_str());
    }
    if (g.grid[i] % value != 0) {
      opaq_raise(
          "%s: %s, which is not a multiple of %s; round the grid up and let the extra blocks "
          "return early",
          rule.op, opaq_dim("grid", i, rule.grid[i], g.grid[i]).c_str(),
          opaq_dim("cluster", i, rule.cluster[i], value).c_str());
    }
  }
  if (x * y * z > 16) {
    opaq_raise("%s: cluster %s has %" PRId64 " blocks; at most 16 fit a cluster", rule.op,
               opaq_product(rule.cluster, values).c_str(), x * y * z);
  }
}

inline void opaq_shared(const opaq_rule& rule, opaq_geometry& g, int64_t bytes) {
  if (bytes < 0)
    opaq_raise("%s: shared `%s` is %" PRId64 "; it is a size in bytes", rule.op, rule.shared,
               bytes);
  g.shared = bytes;
}

// ---- kernels ------------------------------------------------------------------------------------

// A function-local static, constant-initialised; the steady path of `launch` reads two atomics.
template <int Images>
class opaq_kernel {
 public:
  constexpr opaq_kernel(const opaq_rule& rule, const char* entry, const char* symbol,
                        const opaq_image (&images)[Images])
      : rule_(rule), entry_(entry), symbol_(symbol), images_(images) {}

  void launch(const opaq_geometry& g, int device, const opaq_folder& folder, CUstream stream,
              void** args) {
    if (device < 0 || device >= kDevices)
      opaq_raise("%s: there is no device cuda:%d", rule_.op, device);
    PerDevice& here = devices_[device];
    CUfunction function = here.function.load(std::memory_order_acquire);
    if (!function) function = load(here, device, folder);
    if (g.shared > here.shared.load(std::memory_order_acquire)) allow(here, device, g.shared);
    CUresult result;
    const auto u = [](int64_t value) { return static_cast<unsigned>(value); };
    if (!rule_.cluster[0] && !rule_.cooperative && !rule_.programmatic) {
      result = cuLaunchKernel(function, u(g.grid[0]), u(g.grid[1]), u(g.grid[2]), u(g.block[0]),
                              u(g.block[1]), u(g.block[2]), u(g.shared), stream, args, nullptr);
    } else {
      result = launch_with_attributes(function, g, stream, args);
    }
    if (result != CUDA_SUCCESS) failed(result, device, g);
  }

 private:
  static constexpr int kDevices = 128;
  struct PerDevice {
    std::atomic<CUfunction> function{nullptr};
    std::atomic<int64_t> shared{0};  // dynamic shared memory that a launch may ask for
    int64_t declared = 0;            // by the kernel itself
  };

  [[gnu::cold, gnu::noinline]] void failed(CUresult result, int device,
                                           const opaq_geometry& g) const {
    opaq_driver(result, opaq_text("%s: launching `%s` on cuda:%d with grid (%" PRId64 ", %" PRId64
                                  ", %" PRId64 "), block (%" PRId64 ", %" PRId64 ", %" PRId64
                                  "), %" PRId64 " bytes of dynamic shared memory",
                                  rule_.op, entry_, device, g.grid[0], g.grid[1], g.grid[2],
                                  g.block[0], g.block[1], g.block[2], g.shared));
  }

  CUresult launch_with_attributes(CUfunction function, const opaq_geometry& g, CUstream stream,
                                  void** args) const {
    CUlaunchAttribute attributes[3] = {};
    unsigned count = 0;
    if (rule_.cluster[0]) {
      attributes[count].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
      attributes[count].value.clusterDim.x = static_cast<unsigned>(g.cluster[0]);
      attributes[count].value.clusterDim.y = static_cast<unsigned>(g.cluster[1]);
      attributes[count++].value.clusterDim.z = static_cast<unsigned>(g.cluster[2]);
    }
    if (rule_.cooperative) {
      attributes[count].id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
      attributes[count++].value.cooperative = 1;
    }
    if (rule_.programmatic) {
      attributes[count].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
      attributes[count++].value.programmaticStreamSerializationAllowed = 1;
    }
    CUlaunchConfig config = {};
    config.gridDimX = static_cast<unsigned>(g.grid[0]);
    config.gridDimY = static_cast<unsigned>(g.grid[1]);
    config.gridDimZ = static_cast<unsigned>(g.grid[2]);
    config.blockDimX = static_cast<unsigned>(g.block[0]);
    config.blockDimY = static_cast<unsigned>(g.block[1]);
    config.blockDimZ = static_cast<unsigned>(g.block[2]);
    config.sharedMemBytes = static_cast<unsigned>(g.shared);
    config.hStream = stream;
    config.attrs = attributes;
    config.numAttrs = count;
    return cuLaunchKernelEx(&config, function, args, nullptr);
  }

  [[gnu::cold, gnu::noinline]] CUfunction load(PerDevice& here, int device,
                                               const opaq_folder& folder) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (CUfunction loaded = here.function.load(std::memory_order_relaxed)) return loaded;
    const std::string where = opaq_text("%s: loading `%s` on cuda:%d", rule_.op, entry_, device);
    CUdevice handle;
    int major = 0, minor = 0, declared = 0;
    opaq_driver(cuDeviceGet(&handle, device), where);
    opaq_driver(cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle),
                where);
    opaq_driver(cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle),
                where);
    const opaq_image* best = nullptr;
    std::string archs;
    for (const opaq_image& image : images_) {
      archs += opaq_text("%s%s", archs.empty() ? "" : ", ", image.arch);
      const int fit = opaq_fit(image.arch, major * 10 + minor);
      if (fit && (!best || fit > opaq_fit(best->arch, major * 10 + minor))) best = &image;
    }
    if (!best) {
      opaq_raise(
          "%s: `%s` is compiled for %s; cuda:%d is sm_%d; package the model with this arch in "
          "archs=[...], or with ptx=True",
          rule_.op, entry_, archs.c_str(), device, major * 10 + minor);
    }
    const std::string what = opaq_text("%s: the code of `%s`%s%s", rule_.op, entry_,
                                       *best->arch ? " for " : "", best->arch);
    const std::string image = opaq_read(opaq_path(best->file, folder), best->sha256,
                                        what);  // PTX is text: std::string ends it with a zero
    CUmodule module;
    CUfunction function;
    opaq_driver(cuModuleLoadData(&module, image.c_str()),
                where);  // kept for the process's life: launches may be in flight
    opaq_driver(cuModuleGetFunction(&function, module, symbol_), where);
    opaq_driver(cuFuncGetAttribute(&declared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function),
                where);
    if (rule_.cluster[0])
      cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED,
                         1);  // else a launch says so
    here.declared = declared;
    here.shared.store(std::max<int64_t>(48 * 1024 - declared, 0), std::memory_order_release);
    here.function.store(function, std::memory_order_release);
    return function;
  }

  [[gnu::cold, gnu::noinline]] void allow(PerDevice& here, int device, int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    const std::string where = opaq_text(
        "%s: allowing `%s` %" PRId64 " bytes of dynamic shared memory", rule_.op, entry_, bytes);
    CUdevice handle;
    int most = 0;
    opaq_driver(cuDeviceGet(&handle, device), where);
    opaq_driver(
        cuDeviceGetAttribute(&most, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, handle),
        where);
    if (bytes > most - here.declared) {
      const std::string own =
          here.declared
              ? opaq_text(", of which `%s` declares %" PRId64 " itself", entry_, here.declared)
              : "";
      opaq_raise("%s: shared `%s` is %" PRId64
                 " bytes, but cuda:%d allows a block at most %d bytes%s; use a smaller tile",
                 rule_.op, rule_.shared, bytes, device, most, own.c_str());
    }
    opaq_driver(
        cuFuncSetAttribute(here.function.load(), CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                           static_cast<int>(bytes)),
        where);
    here.shared.store(bytes, std::memory_order_release);
  }

  const opaq_rule& rule_;
  const char *const entry_, *const symbol_;
  const opaq_image (&images_)[Images];
  std::mutex mutex_;
  PerDevice devices_[kDevices];
};

// The current stream of the device, asked for by each launch: no variable of the wrapper has to be
// declared before it, in any node order.
inline CUstream opaq_current_stream(int device) {
  void* stream = nullptr;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<CUstream>(stream);
}
