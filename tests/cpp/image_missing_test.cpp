// A machine without NVRTC and without a C++ compiler: the program runs, and what needs them says
// what to install.
#include "image_test.h"

using opaq::ErrorKind;
using opaq_test::message_of;

namespace {

const bool environment_is_set = [] {
  setenv("OPAQ_NVRTC", "/no/such/folder/libnvrtc.so.13", 1);
  setenv("OPAQ_NVJITLINK", "/no/such/folder/libnvJitLink.so.13", 1);
  setenv("OPAQ_NVCC", "/no/such/folder/nvcc", 1);
  setenv("OPAQ_CXX", "/no/such/folder/c++", 1);
  return true;
}();

TEST(Missing, NvrtcSaysWhereItLookedAndWhatToInstall) {
  opaq::CudaRequest request;
  request.source = "extern \"C\" __global__ void k() {}";
  request.entries = {"k"};
  request.arch = "sm_90a";
  const std::string message = message_of(ErrorKind::Missing, [&] { opaq::compile_cuda(request); });
  EXPECT_CONTAINS(message, "NVRTC, the CUDA C++ compiler library, was not found");
  EXPECT_CONTAINS(message, "OPAQ_NVRTC is '/no/such/folder/libnvrtc.so.13'");
  EXPECT_CONTAINS(message, "pip install nvidia-cuda-nvrtc");
}

TEST(Missing, NvccSaysWhereItLookedAndWhatToInstall) {
  opaq::CudaRequest request;
  request.source = "extern \"C\" __global__ void k() {}";
  request.entries = {"k"};
  request.arch = "sm_90a";
  request.compiler = opaq::CudaCompiler::Nvcc;
  const std::string message = message_of(ErrorKind::Missing, [&] { opaq::compile_cuda(request); });
  EXPECT_CONTAINS(message, "nvcc was not found: OPAQ_NVCC is '/no/such/folder/nvcc'");
  EXPECT_CONTAINS(message, "`pip install 'nvidia-cuda-nvcc");
  EXPECT_FALSE(opaq::nvcc_info().found);
}

TEST(Missing, NvJitLinkSaysWhereItLookedAndWhatToInstall) {
  opaq::LinkRequest request;
  request.code = "\xED\x43\x4E\x7F";
  request.entry = "k";
  request.arch = "sm_90a";
  EXPECT_EQ(message_of(ErrorKind::Missing, [&] { opaq::link_image(request); }),
            "nvJitLink, the CUDA library that links LTO-IR, was not found: OPAQ_NVJITLINK is "
            "'/no/such/folder/libnvJitLink.so.13', and there is no such library; install it with "
            "`pip install 'nvidia-nvjitlink'`, or a CUDA toolkit named in CUDA_HOME, or name the "
            "library in OPAQ_NVJITLINK");
  EXPECT_FALSE(opaq::nvjitlink_info().found);
  request.arch = "90";
  EXPECT_CONTAINS(message_of(ErrorKind::Compile, [&] { opaq::link_image(request); }),
                  "the binary: unknown architecture '90'");
}

TEST(Missing, InfoIsAFactNotAnError) {
  const auto info = opaq::nvrtc_info();
  EXPECT_FALSE(info.found);
  EXPECT_CONTAINS(info.why_not, "was not found");
}

TEST(Missing, CompilerSaysWhatToInstall) {
  opaq::HostRequest request;
  request.source = "void k() {}";
  request.entry = "k";
  request.file = "k.cpp";
  const std::string message = message_of(ErrorKind::Missing, [&] { opaq::compile_host(request); });
  EXPECT_CONTAINS(message,
                  "the C++ compiler '/no/such/folder/c++' for k.cpp cannot be started: No such "
                  "file or directory");
  EXPECT_CONTAINS(message, "OPAQ_CXX");
}

}  // namespace
