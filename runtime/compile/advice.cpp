// Tables of headers and names, and the compiler errors for which they have advice.
#include "advice.h"

#include <algorithm>
#include <filesystem>
#include <regex>
#include <span>
#include <vector>

#include "base/error.h"
#include "compile/image.h"
#include "device_headers.h"
#include "headers.h"
#include "nvrtc.h"
#include "torch_headers.h"
#include "words.h"

namespace opaq {
namespace {

namespace fs = std::filesystem;

// ---- tables -------------------------------------------------------------------------------------

// Headers of cuda/std that some CCCL has; others are typing errors.
constexpr std::string_view kCudaStd =
    "algorithm array atomic barrier bit bitset charconv chrono complex concepts execution expected "
    "functional initializer_list iterator latch limits mdspan memory numbers numeric optional "
    "random ranges ratio semaphore source_location span string_view tuple type_traits utility "
    "variant version cfloat climits cmath cstddef cstdint cstdlib cstring ctime";

// Names whose header is not included. The advice is right for every CCCL since that of CUDA 12.4:
// if versions differ, a name has several rows, and the first whose header exists is used.
struct Name {
  std::string_view names;    // a '*' at the end stands for any letters
  std::string_view header;   // that defines it; "" if `instead` needs none
  std::string_view instead;  // what to write in place of the name; may be ""
};
constexpr Name kNames[] = {
    {"CUDART_*", "math_constants.h", ""},
    {"uchar", "", "unsigned char"},
    {"half half2 __half __half2 __float2half __half2float __float2half_rn __hadd __hmul __hfma "
     "__hmax __hmin",
     "cuda_fp16.h", ""},
    {"nv_bfloat16 nv_bfloat162 __nv_bfloat16 __nv_bfloat162 __float2bfloat16 __bfloat162float "
     "__float2bfloat16_rn",
     "cuda_bf16.h", ""},
    {"bfloat16 bf16", "cuda_bf16.h", "__nv_bfloat16"},
    {"__nv_fp8*", "cuda_fp8.h", ""},
    {"__nv_fp6*", "cuda_fp6.h", ""},
    {"__nv_fp4*", "cuda_fp4.h", ""},
    {"curandState* curand_init curand_uniform curand_normal curand", "curand_kernel.h", ""},
    {"cuComplex cuDoubleComplex cuFloatComplex make_cuComplex", "cuComplex.h", ""},
    {"__pipeline_*", "cuda_pipeline.h", ""},
    {"__shfl", "", "__shfl_sync, whose first argument is the mask of threads"},
    {"__shfl_up", "", "__shfl_up_sync, whose first argument is the mask of threads"},
    {"__shfl_down", "", "__shfl_down_sync, whose first argument is the mask of threads"},
    {"__shfl_xor", "", "__shfl_xor_sync, whose first argument is the mask of threads"},
};

// Members of cuda::std, or what CUDA has instead without any include, under the same name ("") or
// another. In std, they are in the header of the same name.
constexpr Name kStdMembers[] = {
    {"max min clamp", "cuda/std/algorithm", ""},
    {"max min", "", ""},
    {"clamp", "", "min(max(value, low), high)"},
    {"numeric_limits", "cuda/std/limits", ""},
    {"size_t ptrdiff_t byte nullptr_t", "cuda/std/cstddef", ""},
    {"int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t intptr_t uintptr_t",
     "cuda/std/cstdint", ""},
    {"is_same is_same_v is_integral is_integral_v is_floating_point is_floating_point_v is_signed "
     "is_unsigned enable_if enable_if_t conditional "
     "conditional_t remove_reference remove_reference_t remove_cv_t decay decay_t "
     "integral_constant true_type false_type make_unsigned_t "
     "make_signed_t void_t is_convertible_v",
     "cuda/std/type_traits", ""},
    {"sqrt cbrt abs exp exp2 expm1 log log2 log10 log1p pow hypot sin cos tan asin acos atan atan2 "
     "sinh cosh tanh asinh acosh atanh fabs fmax fmin "
     "fdim fmod remainder floor ceil round trunc rint nearbyint lround llround lrint ldexp frexp "
     "modf isnan isinf isfinite signbit fma erf erfc "
     "tgamma lgamma copysign nextafter",
     "", ""},
    {"move forward swap pair make_pair exchange index_sequence make_index_sequence",
     "cuda/std/utility", ""},
    {"array", "cuda/std/array", ""},
    {"tuple make_tuple tie", "cuda/std/tuple", ""},
    {"complex", "cuda/std/complex", ""},
    {"optional", "cuda/std/optional", ""},
    {"span", "cuda/std/span", ""},
    {"bit_cast", "", "__builtin_bit_cast(type, value)"},
    {"atomic", "cuda/std/atomic", ""},
    {"plus multiplies less greater", "cuda/std/functional", ""},
    {"accumulate gcd lcm iota", "cuda/std/numeric", ""},
    {"popcount countl_zero countr_zero bit_ceil bit_width", "cuda/std/bit", ""},
    {"variant visit", "cuda/std/variant", ""},
    {"string_view", "cuda/std/string_view", ""},
    {"bitset", "cuda/std/bitset", ""},
};

constexpr std::string_view kNoTorch =
    "PyTorch's C++ headers need a host compiler, and NVRTC cannot read them; functions that use "
    "them are left out, but device code needs something of theirs: write it with pointers and "
    "numbers, and half types as in CUDA";

// Names that are used before "::".
constexpr Name kNamespaces[] = {
    {"cub", "cub/block/block_reduce.cuh", "the header of what is used, such as"},
    {"thrust", "thrust/functional.h", "the header of what is used, such as"},
    {"cuda", "cuda/std/limits", "the header of what is used, such as"},
    {"cooperative_groups", "cooperative_groups.h", ""},
    {"nvcuda wmma", "mma.h", ""},
};

// The pip package of a header of NVIDIA's: for CUDA 13, whether its version must be the compiler's;
// and for CUDA 12.
struct Package {
  std::string_view prefixes, name, cuda12, holds;
  std::string_view mark;  // a header of it that every version has
  bool of_version;
};
constexpr Package kPackages[] = {
    {"cub/ thrust/ cuda/ nv/", "nvidia-cuda-cccl", "nvidia-cuda-cccl-cu12", "CCCL",
     "cuda/std/version", false},
    {"curand", "nvidia-curand", "nvidia-curand-cu12", "cuRAND", "curand_kernel.h", false},
    {"crt/", "nvidia-cuda-crt", "nvidia-cuda-nvcc-cu12", "the compiler's own headers",
     "crt/host_defines.h", true},
    {"cuda_fp16.h cuda_bf16.h cuda_fp8.h cuda_fp6.h cuda_fp4.h cooperative_group mma.h "
     "math_constants.h cuComplex.h cuda_pipeline cuda_runtime "
     "cuda.h vector_types.h vector_functions.h",
     "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "the headers of CUDA's runtime",
     "cuda_fp16.h", true},
};

// ---- looking up ---------------------------------------------------------------------------------

template <class F>
bool any_word(std::string_view words, F&& accepts) {
  for (size_t at = 0; at < words.size();) {
    const size_t end = std::min(words.find(' ', at), words.size());
    if (end > at && accepts(words.substr(at, end - at))) return true;
    at = end + 1;
  }
  return false;
}

bool covers(std::string_view words, std::string_view name) {
  return any_word(words, [&](std::string_view word) {
    return word.ends_with('*') ? name.starts_with(word.substr(0, word.size() - 1)) : word == name;
  });
}

bool holds(const std::string& dir, std::string_view header) {
  std::error_code error;
  return fs::is_regular_file(fs::path(dir) / header, error);
}

bool found(std::string_view header) {
  const auto& dirs = cuda_header_dirs();
  return std::any_of(dirs.begin(), dirs.end(),
                     [&](const std::string& dir) { return holds(dir, header); });
}

// The first row whose header exists; if none does, the first row, whose header can be installed.
const Name* find(std::span<const Name> rows, std::string_view name) {
  const Name* first = nullptr;
  for (const Name& row : rows) {
    if (!covers(row.names, name)) continue;
    if (row.header.empty() || found(row.header)) return &row;
    if (first == nullptr) first = &row;
  }
  return first;
}

// The folder in which the package that pip would install already is, but without the header.
std::string folder_of_package(const Package& package) {
  for (const std::string& dir : cuda_header_dirs()) {
    if (holds(dir, package.mark)) return dir;
  }
  return "";
}

// Files in the folder where the header would be, among which to suggest one.
std::vector<std::string> neighbours(const std::string& dir, std::string_view header) {
  std::vector<std::string> names;
  const std::string folder(
      header.substr(0, header.rfind('/') == std::string_view::npos ? 0 : header.rfind('/') + 1));
  std::error_code error;
  for (fs::directory_iterator it(fs::path(dir) / folder, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with('_') && it->is_regular_file(error))
      names.push_back(folder + name);  // "__algorithm_" is CCCL's own
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Where to get a header of cuda/std that the CCCL in use is too old for; "" if no CCCL has it.
std::string newer_cccl(std::string_view header) {
  const auto slash = header.rfind('/') + 1;
  if (header.substr(0, slash) != "cuda/std/" || !covers(kCudaStd, header.substr(slash))) return "";
  const bool pip = header_origin().layout == HeaderOrigin::Layout::Cuda13Wheels;
  return std::string("; a newer CCCL has it: ") +
         (pip ? "`pip install --upgrade nvidia-cuda-cccl`, or " : "") +
         "give its folder in include_dirs=";
}

// How to get what is in no folder.
std::string install_advice(const Package& package) {
  switch (const HeaderOrigin origin = header_origin(); origin.layout) {
    case HeaderOrigin::Layout::Cuda13Wheels: {
      const std::string version =
          package.of_version && !origin.version.empty() ? "==" + origin.version + ".*" : "";
      return "`pip install \"" + std::string(package.name) + version + "\"`";
    }
    case HeaderOrigin::Layout::Cuda12Wheels:
      return "`pip install " + std::string(package.cuda12) + "`";
    case HeaderOrigin::Layout::Toolkit:
      break;
  }
  return "";
}

bool belongs(std::string_view header, const Package& package) {
  return any_word(package.prefixes,
                  [&](std::string_view prefix) { return header.starts_with(prefix); });
}

// own: whether the header may be the user's, as in #include "cuda/helpers.cuh".
std::string package_advice(const std::string& header, bool own) {
  for (const Package& package : kPackages) {
    if (!belongs(header, package)) continue;
    const std::string what(package.holds);
    if (const std::string dir = folder_of_package(package); !dir.empty()) {
      if (own) return "";
      const std::string newer = newer_cccl(header);
      return "it belongs to " + what + ", and the folder in use for that, " + dir +
             ", has no such file" +
             (newer.empty() ? did_you_mean(header, neighbours(dir, header)) : newer);
    }
    const std::string install = install_advice(package);
    return "it belongs to " + what +
           (install.empty()
                ? ", which is missing from the CUDA toolkit in use: install that part of it"
                : ": " + install) +
           ", or give the folder that holds it in include_dirs=";
  }
  return "";
}

std::string include_of(std::string_view header) {
  const std::string text(header);
  std::string line = "#include <" + text + ">";
  if (!found(header)) {
    if (const std::string advice = package_advice(text, false); !advice.empty())
      line += " (" + advice + ")";
  }
  return line;
}

// ---- complaints ---------------------------------------------------------------------------------

class Lines {
 public:
  void add(const std::string& line) {
    if (std::find(lines_.begin(), lines_.end(), line) == lines_.end()) lines_.push_back(line);
  }
  std::string take() const {
    std::string out;
    for (size_t i = 0; i < std::min<size_t>(lines_.size(), 8); ++i) out += "\n" + lines_[i];
    return out;
  }

 private:
  std::vector<std::string> lines_;
};

constexpr std::string_view kGiveFolder =
    "give the folder that holds it, as in include_dirs=[\"/path/to/folder\"]";

bool is_cuda_header(const std::string& path) {
  const auto& dirs = cuda_header_dirs();
  return std::any_of(dirs.begin(), dirs.end(),
                     [&](const std::string& dir) { return path.starts_with(dir + '/'); });
}

std::string missing_header(const std::string& header, const std::string& includer, bool quoted) {
  const std::string head = "'" + header + "' was not found: ";
  const bool nested = is_cuda_header(includer);
  std::string inside =
      nested ? "NVIDIA's own " + fs::path(includer).filename().string() + " includes it; " : "";
  if (std::string advice = package_advice(header, quoted && !nested); !advice.empty())
    return head + inside + advice;
  if (nested) return head + inside + "that header is for host code: leave out its include";
  if (is_torch_header(header)) {
    return head +
           "PyTorch's C++ headers need a host compiler; NVRTC goes without them, but for a "
           "condition (#if) that asks for a macro of theirs";
  }
  return head +
         (quoted ? "the folder of the source's file (where it came by opaq.file) and include_dirs= "
                   "were searched; "
                 : "") +
         std::string(kGiveFolder);
}

void about_name(const Name* row, const std::string& given, Lines& lines) {
  if (row == nullptr) return;
  const std::string instead(row->instead);
  if (row->header.empty()) {
    lines.add("NVRTC does not know '" + given + "': write " + instead);
  } else {
    lines.add("'" + given + "' needs an include: " +
              (instead.empty() ? "" : "write " + instead + ", with ") + include_of(row->header));
  }
}

// Of a member of std, or of cuda::std where `cccl`.
void about_member(const std::string& member, bool cccl, Lines& lines) {
  const Name* row = find(kStdMembers, member);
  const std::string space = cccl ? "cuda::std::" : "std::", name = space + member;
  if (row == nullptr) {
    if (!cccl)
      lines.add(name +
                " is not there for device code: use pointers, arrays, and what CCCL has in "
                "cuda::std");
  } else if (row->header.empty()) {
    lines.add(name + " is not there: write " +
              (row->instead.empty() ? member : std::string(row->instead)) +
              ", which needs no include");
  } else if (cccl) {
    lines.add(name + " is not there: write " + name + ", with " + include_of(row->header));
  } else {
    // the header of std stands for that of CCCL, whose name says where to get it
    const std::string_view header = row->header.substr(row->header.rfind('/') + 1);
    lines.add("'" + name + "' needs an include: #include <" + std::string(header) + ">" +
              (found(row->header) ? "" : ", with CCCL's " + include_of(row->header)));
  }
}

// The word in `line` at or after the column of the caret in the line below it.
std::string word_at_caret(const std::string& line, const std::string& caret) {
  size_t at = caret.find('^');
  if (at == std::string::npos || at >= line.size()) return "";
  while (at > 0 && is_word_char(line[at]) && is_word_char(line[at - 1])) --at;
  size_t end = at;
  while (end < line.size() && is_word_char(line[end])) ++end;
  return line.substr(at, end - at);
}

std::vector<std::string> split(std::string_view log) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < log.size();) {
    const size_t end = std::min(log.find('\n', at), log.size());
    lines.emplace_back(log.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

}  // namespace

// g++: "fatal error: a.h: No such file or
// directory"; clang++: "fatal error: 'a.h' file not found".
std::vector<std::string> missing_for_host(std::string_view log) {
  static const std::regex no_file(
      R"re(fatal error: '?([^':]+)'?(?:: No such file or directory| file not found))re");
  std::vector<std::string> headers;
  for (const std::string& line : split(log)) {
    std::smatch match;
    if (line.size() <= 4096 && std::regex_search(line, match, no_file)) headers.push_back(match[1]);
  }
  return headers;
}

std::string cuda_advice(std::string_view log) {
  static const std::regex no_file(R"re(^(.*?)\(\d+\): .*cannot open source file "([^"]+)")re");
  // (CCCL declares the types of cuda_fp16.h without defining them.)
  static const std::regex no_name(
      R"re(error: identifier "([^"]+)" is undefined|incomplete type "(?:\w+" \(aka ")?(__half2?|__nv_\w+)")re");
  static const std::regex no_type(R"re(\[with .*=(__half2?|__nv_\w+)\W)re");
  static const std::regex no_member(
      R"re(error: namespace "(cuda::)?std" has no member(?: class)? "([^"]+)")re");
  static constexpr std::string_view kNoNamespace =
      "name followed by \"::\" must be a class or namespace name";
  static constexpr std::string_view kNoLaunch = "device-side kernel launch could not be processed";
  static constexpr std::string_view kNoVote = "Instruction 'vote' without '.sync'";
  static constexpr std::string_view kNoRoom = "Formal parameter space overflowed";
  const std::vector<std::string> all = split(log);
  const auto line = [&](size_t i) { return i < all.size() ? all[i] : std::string(); };
  Lines lines;
  const bool incomplete = log.find("pointer to a complete object type") != std::string_view::npos;
  bool missing = false;
  for (size_t i = 0; i < all.size(); ++i) {
    std::smatch match;
    if (all[i].size() > 4096) continue;  // std::regex recurses by letter
    if (std::regex_search(all[i], match, no_file)) {
      missing = true;
      lines.add(missing_header(match[2], match[1], line(i + 1).find('"') != std::string::npos));
    } else if (std::regex_search(all[i], match, no_name)) {
      const std::string name = match[1].matched ? match[1] : match[2];
      about_name(find(kNames, name), name, lines);
    } else if (incomplete && std::regex_search(all[i], match, no_type)) {
      about_name(find(kNames, match[1].str()), match[1], lines);
    } else if (std::regex_search(all[i], match, no_member)) {
      about_member(match[2], match[1].matched, lines);
    } else if (all[i].find(kNoNamespace) != std::string::npos) {
      const std::string name = word_at_caret(line(i + 1), line(i + 2));
      if (name == "at" || name == "c10" || name == "torch") {
        lines.add("'" + name + "::' is PyTorch's: " + std::string(kNoTorch));
      } else if (const Name* row = find(kNamespaces, name)) {
        const std::string such(row->instead);
        lines.add("'" + name + "::' needs an include: " + (such.empty() ? "" : such + " ") +
                  include_of(row->header));
      }
    } else if (all[i].find(kNoLaunch) != std::string::npos) {
      lines.add(
          "device code cannot launch kernels here: let the host launch them, as several ops or "
          "steps of one");
    } else if (all[i].find(kNoVote) != std::string::npos) {
      lines.add(
          "write __ballot_sync, __any_sync or __all_sync, whose first argument is the mask of "
          "threads");
    } else if (all[i].find(kNoRoom) != std::string::npos) {
      lines.add(
          "a kernel takes at most 32764 bytes of parameters (4096 before CUDA 12.1); pass what is "
          "larger in a tensor");
    }
  }
  std::string text = lines.take();
  if (missing) {
    const auto& dirs = cuda_header_dirs();
    text += dirs.empty() ? "\nNo CUDA headers were found on this machine"
                         : "\nCUDA headers in use: " + join(dirs);
  }
  return text;
}

std::string host_advice(std::string_view log) {
  Lines lines;
  for (const std::string& header : missing_for_host(log)) {
    const auto begins = [&](std::string_view prefix) { return header.starts_with(prefix); };
    std::string advice(kGiveFolder);
    if (begins("cuda") || begins("cub/") || begins("thrust/") || begins("curand")) {
      advice = "it is CUDA's, and source=... of .cpu(...) is compiled for the CPU; " + advice;
    } else if (begins("torch/") || begins("ATen/") || begins("c10/")) {
      advice =
          "an entry takes pointers and numbers, and needs none of PyTorch's headers; " + advice;
    }
    if (header == "omp.h")
      advice = "it is OpenMP's, which comes with g++, and for clang++ with the package libomp-dev";
    lines.add("'" + header + "' was not found: " + advice);
  }
  // g++, clang++
  if (log.find("target specific option mismatch") != std::string_view::npos ||
      log.find("requires target feature") != std::string_view::npos) {
    lines.add(
        "vector instructions need their option, such as options=[\"-mavx2\", \"-mfma\"], or "
        "options=[\"-march=native\"] for processors like this one alone");
  }
  return lines.take();
}

std::vector<HeaderSet> header_sets() {
  std::vector<HeaderSet> sets;
  for (const Package& package : kPackages) {
    HeaderSet& set = sets.emplace_back();
    set.holds = package.holds;
    set.folder = folder_of_package(package);
    if (set.folder.empty() && nvrtc_place().path.empty()) {
      set.advice = "`pip install " + std::string(package.name) + "`";
    } else if (set.folder.empty()) {
      set.advice = install_advice(package);
      if (set.advice.empty()) set.advice = "install that part of the CUDA toolkit";
    }
    const auto add = [&](std::span<const Name> names) {
      for (const Name& name : names) {
        const std::string header(name.header);
        if (belongs(header, package) &&
            std::find(set.examples.begin(), set.examples.end(), header) == set.examples.end())
          set.examples.push_back(header);
      }
    };
    add(kNames);
    add(kStdMembers);
    add(kNamespaces);
  }
  HeaderSet torch{"PyTorch's headers for device code", "", "", {}};
  if (!torch_device_dirs().empty()) torch.folder = torch_device_dirs()[0];
  sets.push_back(std::move(torch));
  return sets;
}

}  // namespace opaq
