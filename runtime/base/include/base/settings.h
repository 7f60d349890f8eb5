// Settings from the environment, read once at first use: the only place that calls getenv.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace opaq {

struct Settings {
  std::string cache_dir;  // OPAQ_CACHE_DIR, else $XDG_CACHE_HOME/opaq, else ~/.cache/opaq
  int64_t cache_bytes;    // OPAQ_CACHE_SIZE: "512M", "2G" or bytes; default 1 GiB; 0 turns the disk
                          // cache off
  std::string driver;     // OPAQ_DRIVER: path of the CUDA driver library; default libcuda.so.1
  std::string nvrtc;      // OPAQ_NVRTC: path of libnvrtc; default: see compile/
  std::string nvjitlink;  // OPAQ_NVJITLINK: path of libnvJitLink; default: see compile/
  std::string nvcc;       // OPAQ_NVCC: path of nvcc; default: see compile/
  std::string nvcc_flags;      // NVCC_PREPEND_FLAGS and NVCC_APPEND_FLAGS, which nvcc itself reads
  std::string cxx;             // OPAQ_CXX, else CXX, else the first of c++, g++, clang++ on PATH
  std::string compile_helper;  // OPAQ_COMPILE_HELPER: path of the program opaq-compile; default:
                               // beside the runtime
  std::string temporary_dir;   // TMPDIR, else /tmp
  bool check_contract;  // OPAQ_CHECK=contract: every launch is compared with its op's declaration
  int compile_threads;  // OPAQ_COMPILE_THREADS; default: number of cores
  // The library folders of the nvidia wheels; set by Python.
  std::vector<std::string> library_dirs;
  // The include folders of the nvidia wheels, set by Python; then those of CUDA_HOME, CUDA_PATH and
  // /usr/local/cuda.
  std::vector<std::string> cuda_include_dirs;
  // The include folders of torch and Python, for sources that nvcc compiles; set by Python.
  std::vector<std::string> torch_include_dirs;
  std::vector<std::string> program_dirs;  // PATH, without the current folder
};

Settings& settings();  // Python adds directories before the first use; after that it is read-only

}  // namespace opaq
