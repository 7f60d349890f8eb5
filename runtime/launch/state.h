// What a prepared launch keeps: its rules, the instances made so far, the images they came from,
// and counters.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/single_flight.h"
#include "instance.h"
#include "launch/launch.h"
#include "standalone/counter.h"

namespace opaq {

// Throws Internal when the image does not list it.
const Entry& find_entry(const Subject& subject, const Image& image, const std::string& name);

struct PreparedLaunch::State {
  State(const std::string& op, std::shared_ptr<const Implementation> implementation,
        const std::vector<Symbol>& symbols);
  ~State();

  const Subject subject;
  const bool kernel;  // Kind::kernel
  const GeometryRule geometry;
  std::vector<int> written;  // symbols

  TemplateArgs template_args(const Arg* args) const;
  std::string entry(const TemplateArgs& values) const;
  bool writes_nothing(const Arg* args) const;  // the op writes tensors, and all of them are empty

  // The instance for these template arguments, made when there is none. `stream`: where a capture
  // would forbid that; nullptr when warming up. Lock-free when the instance exists.
  Instance& instance(const TemplateArgs& values, const Arg* args, Device device,
                     const CUstream* stream);
  Instance* find(const TemplateArgs& values, Device device);  // nullptr when there is none yet

  // From memory, the disk cache or the compiler; the signature is checked. Several architectures
  // are compiled at once; `images` has the order of `archs`.
  std::shared_ptr<const Image> image(const std::string& entry, const std::string& arch,
                                     const Arg* args);
  std::vector<std::shared_ptr<const Image>> images(const std::string& entry,
                                                   const std::vector<std::string>& archs,
                                                   const Arg* args);
  // The same for host code.
  HostCode host_code(const std::string& entry, const Arg* args);
  WrapperHostCode wrapper_code(const std::string& entry, const Arg* args);

  standalone::Counter calls, skipped_empty;
  std::atomic<int64_t> timed_calls{0}, host_nanoseconds{0}, compile_nanoseconds{0}, compiled{0},
      disk_hits{0};
  std::string sources();    // digest of what has been compiled; "" when nothing has been
  std::string compilers();  // LaunchStats::compiler
  // Whether an attempt to compile it has succeeded, its signature included; whether one has failed.
  std::atomic<bool> has_compiled{false}, has_failed{false};
  std::atomic<int64_t> spill_bytes{-1}, image_bytes{-1};  // maxima over images; -1 while unknown

  // The image for an architecture that need not be a device's: compiled for it, or the best that
  // the declaration brings (of these, the first if `arch` is ""). Throws Missing where none fits.
  std::shared_ptr<const Image> image_for(const std::string& entry, const std::string& arch,
                                         const Arg* args);

  // Which of the images that the declaration brings is best for a compute capability (90 for 9.0).
  // `device`: for the message that none fits; -1 for none.
  std::string best_arch(const std::string& entry, int capability, int device) const;

 private:
  struct PerDevice {
    std::atomic<Instance*> last{nullptr};    // used last; most calls end here
    std::atomic<Instance*> newest{nullptr};  // head of the list of all
  };
  PerDevice& on(Device device);
  Instance* find(PerDevice& list, const TemplateArgs& values) const;
  std::unique_ptr<Instance> make(const TemplateArgs& values, const Arg* args, Device device);
  std::shared_ptr<const Image> make_image(const std::string& entry, const std::string& arch);
  std::shared_ptr<const Module> module(const std::string& entry, const std::string& arch,
                                       const Image& image);
  void load_device_code(Instance& instance, const Arg* args);
  void load_host_code(Instance& instance, const Arg* args);
  void count(double seconds, bool from_cache);
  template <class Work>
  auto noting_success(Work&& work) {
    try {
      auto result = work();
      has_compiled.store(true, std::memory_order_relaxed);
      return result;
    } catch (const Error&) {
      has_failed.store(true, std::memory_order_relaxed);
      throw;
    }
  }
  void hold_sources(const std::string& entry, const std::string& digest);
  void note_compiled(const std::string& entry, const HostFunction& function);
  void check_host_signature(const std::string& entry, const std::vector<ParamType>& params,
                            const Arg* args) const;

  const size_t template_arg_count_;
  std::array<PerDevice, kMaxDevices> devices_;

  using Key = std::pair<int32_t, TemplateArgs>;  // device index
  SingleFlight<Instance, Key> in_progress_{
      /*keep=*/false};   // each is made by one thread; others wait for it
  std::string sources_;  // of all that is compiled here: kernels of one implementation never come
                         // from different versions of a header; guarded by shared_state()
  std::set<std::string> compilers_;  // guarded by shared_state()
  // By entry and arch; each is compiled or loaded once, and serves every device of its arch.
  using ImageKey = std::pair<std::string, std::string>;
  SingleFlight<Image, ImageKey> images_{/*keep=*/true};
  SingleFlight<Module, ImageKey> modules_{/*keep=*/true};
};

}  // namespace opaq
