// What a prepared launch runs: kernels whose signatures are checked, CUDA source, host source,
// shared libraries.
#include <cstdlib>
#include <fstream>

#include "base/settings.h"
#include "launch_fixture.h"

namespace opaq {
namespace {

class CodeTest : public LaunchFixture {
 protected:
  ~CodeTest() override { std::filesystem::remove_all(folder); }
  std::string file(const std::string& name, const std::string& text) {
    std::filesystem::create_directories(folder);
    std::ofstream(folder / name) << text;
    return folder / name;
  }

  // The error of launching a kernel of this mangled name with these arguments.
  std::string refusal(const std::string& symbol, std::vector<size_t> sizes, const std::string& args,
                      DType dtype = DType::Float32) {
    auto prepared = binary("mylib::f(Tensor x, float eps=1e-6) -> (Tensor y)",
                           {{symbol, std::move(sizes)}}, {.args = args});
    const Tensor t({8, 16}, dtype);
    return message(*prepared, {t, Arg::of_float(1e-6), t}, ErrorKind::Compile);
  }
  bool accepted(const std::string& pointee, DType dtype) {
    auto prepared =
        binary("mylib::f(Tensor x) -> (Tensor y)", {{"_Z1kP" + pointee, {8}}}, {.args = "y"});
    const Tensor t({4}, dtype);
    const std::vector<Arg> args = {t, t};
    try {
      prepared->launch(args.data(), kCuda, nullptr);
      return true;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind, ErrorKind::Compile) << error.what();
      return false;
    }
  }

  const std::filesystem::path folder = std::filesystem::temp_directory_path() /
                                       ("opaq_launch_code_test." + std::to_string(getpid()));
};

// ---- signatures ---------------------------------------------------------------------------------

TEST_F(CodeTest, ArgumentListMustMeetTheSignature) {
  EXPECT_EQ(refusal("_Z1kPfPKfi", {8, 8, 4}, "y, x, x.numel(), eps"),
            "mylib::f: kernel `k` takes 3 parameters (float*, float const*, int); args lists 4: y, "
            "x, x.numel(), eps");
  EXPECT_EQ(refusal("_Z1kPfi", {8, 4}, "y, x"),
            "mylib::f: argument 2 `x` is Tensor, but parameter 2 is `int`; pass a number of it, "
            "such as x.numel(), or declare the parameter as a "
            "pointer");
  EXPECT_EQ(refusal("_Z1kPfPf", {8, 8}, "y, x.numel()"),
            "mylib::f: argument 2 `x.numel()` is int, but parameter 2 is `float*`; pass a tensor "
            "by its name, 0 for a null pointer, or declare the parameter as a scalar");
  EXPECT_EQ(refusal("_Z1kPfi", {8, 4}, "y, eps"),
            "mylib::f: argument 2 `eps` is float, but parameter 2 is `int`; declare the parameter "
            "as float or double");
  EXPECT_EQ(refusal("_Z1kPfPKf", {8, 8}, "y, x", DType::Float16).substr(0, 69),
            "mylib::f: argument 1 `y` is float16, but parameter 1 is `float*`; con");
  EXPECT_EQ(refusal("_Z1kPKfPf", {8, 8}, "y, x"),
            "mylib::f: `y` is written by this op, but parameter 1 is `float const*`; take the "
            "const away, or check the order of args: y, x");
  EXPECT_EQ(refusal("_Z1kPf6Params", {8, 24}, "y, eps"),
            "mylib::f: argument 2 `eps` is float, but parameter 2 is the struct `Params` of 24 "
            "bytes; give the struct's fields, opaq.struct(\"Params\", field=...)");
  EXPECT_EQ(fake.launch_count(), 0);
}

TEST_F(CodeTest, MutatedArgumentsNeedPointersThatMayBeWritten) {
  auto prepared = binary("mylib::g(Tensor(a!) x) -> ()", {{"_Z1kPKf", {8}}}, {.args = "x"});
  EXPECT_EQ(message(*prepared, {x}, ErrorKind::Compile),
            "mylib::g: `x` is written by this op, but parameter 1 is `float const*`; take the "
            "const away, or check the order of args: x");
}

TEST_F(CodeTest, PointersTakeTheDTypesTheyCanAddress) {
  struct Case {
    const char* pointee;
    std::vector<DType> taken, refused;
  };
  using enum DType;
  const std::vector<DType> all = {Bool,     UInt8,   Int8,    Int32,     Int64,       Float16,
                                  BFloat16, Float32, Float64, Complex64, Float8E4M3FN};
  for (const Case& c : std::vector<Case>{
           {"v", all, {}},
           {"c", all, {}},
           {"h", all, {}},
           {"6Packet", all, {}},
           {"5uint4", all, {}},
           {"4int2", all, {}},
           {"f", {Float32}, {Float16, Float64, Int32, Complex64}},
           {"6float4", {Float32}, {Float16, Float64, Int32}},
           {"6float2", {Float32, Complex64}, {Float64}},
           {"d", {Float64}, {Float32, Int64}},
           {"6__half", {Float16}, {BFloat16, Float32}},
           {"7__half2", {Float16}, {BFloat16}},
           {"13__nv_bfloat16", {BFloat16}, {Float16}},
           {"14__nv_bfloat162", {BFloat16}, {Float16}},
           {"13__nv_fp8_e4m3", {Float8E4M3FN}, {Float8E5M2, UInt8}},
           {"i", {Int32}, {UInt32, Int64, Float32}},
           {"l", {Int64}, {Int32, UInt64}},
           {"x", {Int64}, {Int32, UInt64}},
           {"m", {UInt64}, {Int64}},
           {"s", {Int16}, {UInt16, Float16}},
           {"a", {Int8}, {UInt8, Bool}},
           {"b", {Bool}, {UInt8, Int8}},
       }) {
    for (const DType dtype : c.taken)
      EXPECT_TRUE(accepted(c.pointee, dtype)) << c.pointee << " must take " << name(dtype);
    for (const DType dtype : c.refused)
      EXPECT_FALSE(accepted(c.pointee, dtype)) << c.pointee << " must refuse " << name(dtype);
  }
}

// ---- CUDA source --------------------------------------------------------------------------------

class SourceTest : public CodeTest {
 protected:
  void SetUp() override {
    if (!nvrtc_info().found) GTEST_SKIP() << nvrtc_info().why_not;
  }
  const OpSpec spec = op("mylib::scale(Tensor x, float s=2.0) -> (Tensor y)");
  ImplementationText text{
      .name = "cuda",
      .device = "cuda",
      .kind = "source",
      .code =
          "template <class T, int N> __global__ void scale(T* y, const T* x, int n, float s) {\n"
          "  __shared__ T tile[N];\n"
          "  tile[threadIdx.x % N] = x[0];\n"
          "  y[threadIdx.x] = tile[0] * T(s) * T(n);\n"
          "}\n",
      .file = "scale.cu",
      .entry = "scale<{x.dtype}, {x.size(-1)}>",
      .block = "16",
      .args = "y, x, x.numel(), s"};
  const std::vector<Arg> args = {x, Arg::of_float(2), y};
};

TEST_F(SourceTest, CompilesForTheDeviceAndLaunches) {
  auto prepared = prepare(spec, text);
  prepared->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(param<int32_t>(last(), 2), 128);
  EXPECT_EQ(param<float>(last(), 3), 2.0f);
  const LaunchStats stats = prepared->stats();
  EXPECT_EQ(stats.compiled + stats.disk_hits, 1);

  const Tensor wide({4, 32}, DType::Float64);
  const std::vector<Arg> other = {wide, Arg::of_float(2), wide};
  prepared->launch(other.data(), kCuda, nullptr);
  EXPECT_NE(std::string(last()->kernel), fake.launch(0)->kernel);
  EXPECT_EQ(prepared->stats().compiled + prepared->stats().disk_hits, 2);
}

TEST_F(SourceTest, CompilesForANamedArchWithoutADevice) {
  auto prepared = prepare(spec, text);
  const std::shared_ptr<const Image> image = prepared->compile(args.data(), "sm_90");
  EXPECT_EQ(image->arch, "sm_90");
  ASSERT_EQ(image->entries.size(), 1u);
  EXPECT_EQ(image->entries[0].name, "scale<float, 16>");
  EXPECT_EQ(image->entries[0].params.size(), 4u);
  EXPECT_EQ(prepared->compile(args.data(), "sm_90"), image) << "compiled once";
  EXPECT_EQ(fake.calls("cuInit") + fake.calls("cuDevicePrimaryCtxRetain") +
                fake.calls("cuLibraryLoadData"),
            0);
  EXPECT_STREQ(
      error_of([&] { prepared->compile(args.data(), ""); }).what(),
      "mylib::scale: compiling for a device needs its architecture, such as \"sm_90a\"; got \"\"");
}

TEST_F(SourceTest, SignatureIsCheckedWhenCompiling) {
  text.args = "y, x, s, x.numel()";
  EXPECT_STREQ(error_of([&] { prepare(spec, text)->compile(args.data(), "sm_90"); }).what(),
               "mylib::scale: argument 3 `s` is float, but parameter 3 is `int`; declare the "
               "parameter as float or double");
  text.code += "__device__ oops\n";
  const Error error = error_of([&] { prepare(spec, text)->compile(args.data(), "sm_90"); });
  EXPECT_EQ(error.kind, ErrorKind::Compile);
  EXPECT_NE(std::string(error.what()).find("mylib::scale"), std::string::npos) << error.what();
  EXPECT_NE(std::string(error.what()).find("scale.cu"), std::string::npos) << error.what();
}

TEST_F(SourceTest, ACubinThatHidesItsTypesIsReadByTheDriver) {
  CudaRequest request;
  request.source =
      "extern \"C\" __global__ void plain(float* y, const float* x, int n, double s) { y[n] = x[n] "
      "* s; }";
  request.file = "plain.cu";
  request.entries = {"plain"};
  request.arch = "sm_90";
  text.kind = "binary";
  text.code = compile_cuda(request)->bytes;
  text.file = "plain.cubin";
  text.entry = "plain";
  prepare(spec, text)->launch(args.data(), kCuda, nullptr);
  EXPECT_EQ(param<uint64_t>(last(), 0), 8192u);
  EXPECT_EQ(param<int32_t>(last(), 2), 128);
  EXPECT_EQ(param<double>(last(), 3), 2.0);
  text.args = "y, x, x.numel()";
  EXPECT_EQ(message(*prepare(spec, text), args, ErrorKind::Compile),
            "mylib::scale: kernel `plain` takes 4 parameters (8 bytes, 8 bytes, 4 bytes, 8 bytes); "
            "args lists 3: y, x, x.numel()");
}

// ---- host code ----------------------------------------------------------------------------------

class HostTest : public CodeTest {
 protected:
  static Tensor on_host(std::vector<float>& data) {
    return Tensor({static_cast<int64_t>(data.size())}, DType::Float32,
                  reinterpret_cast<uintptr_t>(data.data()), kCpu);
  }
  std::vector<float> in{1, 2, 3, 4}, out{0, 0, 0, 0};
  const Tensor x = on_host(in), y = on_host(out);
  const OpSpec spec = op("mylib::scale(Tensor x, float s, int n=4) -> (Tensor y)");
  const std::vector<Arg> args = {x, Arg::of_float(2.5), Arg::of_int(4), y};
};

TEST_F(HostTest, SourceRunsWithItsOwnParameterTypes) {
  ImplementationText text{
      .name = "cpu",
      .device = "cpu",
      .kind = "source",
      .code =
          "#include <cstdint>\n"
          "template <class T> void scale(T* y, const T* x, int n, double s, bool all, int64_t "
          "step) {\n"
          "  for (int64_t i = 0; i < (all ? n : 1); i += step) y[i] = x[i] * s;\n"
          "}\n",
      .file = "scale.cpp",
      .entry = "scale<{x.dtype}>",
      .args = "y, x, n, s, x.is_contiguous(), 1"};
  auto prepared = prepare(spec, text);
  prepared->launch(args.data(), kCpu, nullptr);
  EXPECT_EQ(out, (std::vector<float>{2.5, 5, 7.5, 10}));
  EXPECT_EQ(prepared->stats().compiled + prepared->stats().disk_hits, 1);

  std::vector<Arg> too_long = args;
  too_long[2] = Arg::of_int(1ll << 31);
  EXPECT_EQ(message(*prepared, too_long, ErrorKind::Launch, kCpu),
            "mylib::scale: argument 3 `n` is 2147483648, which does not fit the kernel's parameter "
            "`int`; declare the parameter as int64_t");
  const std::shared_ptr<const Image> described = prepared->compile(args.data(), "");
  EXPECT_EQ(described->entries.at(0).name, "scale<float>");
  EXPECT_TRUE(described->bytes.empty());

  text.args = "y, x, n, s";
  EXPECT_EQ(message(*prepare(spec, text), args, ErrorKind::Compile, kCpu),
            "mylib::scale: function `scale<float>` takes 6 parameters (float*, float const*, int, "
            "double, bool, long); args lists 4: y, x, n, s");
}

class LibraryTest : public HostTest {
 protected:
  std::string build(const std::string& source) {
    // A name of its own: a library stays loaded, and the loader may take another of its name for
    // it.
    const std::string library =
        folder /
        (std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) + ".so");
    const std::string command =
        settings().cxx + " -shared -fPIC -o '" + library + "' '" + file("k.cpp", source) + "'";
    EXPECT_EQ(std::system(command.c_str()), 0);
    return library;
  }
  ImplementationText text{.name = "library",
                          .device = "cpu",
                          .kind = "library",
                          .entry = "scale",
                          .args = "y, x, int32(n), float32(s), s, n"};
};

TEST_F(LibraryTest, SymbolIsCalledWithTheTypesOfTheArgumentList) {
  text.code = build(
      "extern \"C\" void scale(float* y, const float* x, int n, float f, double s, long long m) {\n"
      "  for (int i = 0; i < n; ++i) y[i] = x[i] * s + f * m;\n"
      "}\n");
  prepare(spec, text)->launch(args.data(), kCpu, nullptr);
  EXPECT_EQ(out, (std::vector<float>{12.5, 15, 17.5, 20}));

  text.entry = "scael";
  EXPECT_EQ(message(*prepare(spec, text), args, ErrorKind::Declaration, kCpu),
            "mylib::scale: " + text.code +
                " has no symbol `scael`; declare the function as extern \"C\", export it, and "
                "check the name with `nm -D`");
  text.code = folder / "absent.so";
  const std::string absent = message(*prepare(spec, text), args, ErrorKind::Missing, kCpu);
  EXPECT_EQ(
      absent.rfind("mylib::scale: the library of implementation `library` cannot be loaded: ", 0),
      0u)
      << absent;
  EXPECT_NE(absent.find("absent.so"), std::string::npos) << absent;
}

TEST_F(LibraryTest, NumbersAreConvertedToTheTypesOfTheSignature) {
  text.code = build(
      "extern \"C\" void scale(float* y, const float* x, short n, float s) {\n"
      "  for (short i = 0; i < n; ++i) y[i] = x[i] * s;\n"
      "}\n");
  text.args = "y, x, n, s";
  text.signature = "void(float*, const float*, int16_t, float)";
  prepare(spec, text)->launch(args.data(), kCpu, nullptr);
  EXPECT_EQ(out, (std::vector<float>{2.5, 5, 7.5, 10}));

  text.args = "y, x, n + 40000, s";
  EXPECT_EQ(message(*prepare(spec, text), args, ErrorKind::Launch, kCpu),
            "mylib::scale: argument 3 `n + 40000` is 40004, which does not fit the kernel's "
            "parameter `short`; declare the parameter as int64_t");
  text.signature = "void(float*, const double*, int16_t, float)";
  const std::string dtype = message(*prepare(spec, text), args, ErrorKind::Compile, kCpu);
  EXPECT_NE(dtype.find("argument 2 `x`"), std::string::npos) << dtype;
  EXPECT_NE(dtype.find("double const*"), std::string::npos) << dtype;
  text.signature = "void(const float*, const float*, int16_t, float)";
  const std::string constant = message(*prepare(spec, text), args, ErrorKind::Compile, kCpu);
  EXPECT_NE(constant.find("const"), std::string::npos) << constant;
}

TEST_F(LibraryTest, OnCudaTheStreamComesLastAndTheDeviceIsCurrent) {
  const std::string seen = folder / "seen";
  text.code = build(
      "#include <cstdio>\n"
      "extern \"C\" void scale(void* y, long long n, void* stream) {\n"
      "  FILE* f = fopen(\"" +
      seen +
      "\", \"w\");\n"
      "  fprintf(f, \"%p %lld %p\", y, n, stream);\n"
      "  fclose(f);\n"
      "}\n");
  text.device = "cuda";
  text.args = "y, n";
  const Tensor on_device({4});
  const std::vector<Arg> there = {on_device, Arg::of_float(1), Arg::of_int(4), on_device};
  auto prepared = prepare(spec, text);
  prepared->launch(there.data(), kCuda, reinterpret_cast<void*>(0xabc));
  std::string line;
  std::getline(std::ifstream(seen) >> std::ws, line);
  EXPECT_EQ(line, "0x1000 4 0xabc");
  EXPECT_EQ(fake.calls("cuCtxPushCurrent"), 2) << "once to load, once to run";
  EXPECT_EQ(fake.context_depth(), 0);
  EXPECT_EQ(fake.launch_count(), 0);
}

// A function of TVM-FFI, in a library that has the function of its runtime which sets the stream.
TEST_F(LibraryTest, AFunctionOfTvmFfiGetsWholeTensorsAndTheStream) {
  const std::string seen = folder / "seen";
  text.code = build(
      "#include <cstdio>\n"
      "struct Value { int type; unsigned zero; union { long long i; double f; struct Tensor* t; }; "
      "};\n"
      "struct Tensor { void* data; int device, index, ndim; unsigned char code, bits;\n"
      "                unsigned short lanes; long long *shape, *strides; unsigned long long "
      "offset; };\n"
      "static FILE* f;\n"
      "extern \"C\" int TVMFFIEnvSetStream(int device, int index, void* stream, void** before) {\n"
      "  if (!f) f = fopen(\"" +
      seen +
      "\", \"w\");\n"
      "  if (before) *before = (void*)0x123;\n"
      "  fprintf(f, \"stream %d:%d %p, \", device, index, stream);\n"
      "  fflush(f);\n"
      "  return 0;\n"
      "}\n"
      "extern \"C\" int __tvm_ffi_scale(void* self, const Value* v, int count, Value* result) {\n"
      "  const Tensor& t = *v[0].t;\n"
      "  fprintf(f, \"%d values, %d: %p %d:%d %d-d %d %d %d [%lld] [%lld] %llu, %d: %lld, %d: %g, "
      "\"\n"
      "          \"%d: %lld, %d, \", count, v[0].type, t.data, t.device, t.index, t.ndim, t.code,\n"
      "          t.bits, t.lanes, *t.shape, *t.strides, t.offset, v[1].type, v[1].i, v[2].type,\n"
      "          v[2].f, v[3].type, v[3].i, result->type);\n"
      "  return v[1].i == 5 ? -1 : 0;\n"
      "}\n");
  text.kind = "tvm_ffi";
  text.device = "cuda";
  text.args = "y, n, s, n == 4";
  const Tensor on_device({4});
  std::vector<Arg> there = {on_device, Arg::of_float(2.5), Arg::of_int(4), on_device};
  auto prepared = prepare(spec, text);
  prepared->launch(there.data(), kCuda, reinterpret_cast<void*>(0xabc));
  std::string line;
  std::getline(std::ifstream(seen) >> std::ws, line);
  EXPECT_EQ(
      line,
      "stream 2:0 0xabc, 4 values, 7: 0x1000 2:0 1-d 2 32 1 [4] [1] 0, 1: 4, 3: 2.5, 2: 1, 0, "
      "stream 2:0 0x123, ");
  EXPECT_EQ(fake.context_depth(), 0);

  there[2] = Arg::of_int(5);
  EXPECT_EQ(message(*prepared, there),
            "mylib::scale: its function `scale` threw: an error without a text");

  text.entry = "scael";
  EXPECT_EQ(message(*prepare(spec, text), there, ErrorKind::Declaration),
            "mylib::scale: " + text.code +
                " has no symbol `__tvm_ffi_scael`; export the function by "
                "TVM_FFI_DLL_EXPORT_TYPED_FUNC(scael, ...), and check the name with `nm -D`");
}

TEST_F(LibraryTest, AFunctionOfTvmFfiOnCudaNeedsItsRuntime) {
  text.code = build("extern \"C\" int __tvm_ffi_scale(void*, void*, int, void*) { return 0; }");
  text.kind = "tvm_ffi";
  text.device = "cuda";
  text.args = "y";
  const Tensor on_device({4});
  EXPECT_EQ(message(*prepare(spec, text), {on_device, Arg::of_float(1), Arg::of_int(4), on_device},
                    ErrorKind::Missing),
            "mylib::scale: the library of `scale` is not linked with libtvm_ffi, through which it "
            "would get the CUDA stream; link it with -ltvm_ffi");
}

}  // namespace
}  // namespace opaq
